"""Costs of the compiled gradient step, as XLA counts them: this guards speed without timing."""

import re

import jax
import pytest

from quantilax import IQN
from quantilax.algorithms import q_learning
from quantilax.checks import inert
from quantilax.learning.packing import PACKED
from tests.conftest import each, tiny

pytestmark = pytest.mark.optimized

B, N, N_PRIME, K, WIDTH = 64, 64, 48, 32, 64


def cost(**settings) -> dict[str, float]:
    """XLA's count for one gradient step with hidden layers of 64, swish, N = 64, N' = 48, K = 32, batch 64."""
    algo = IQN.create(
        env="CartPole-v1", batch_size=B, buffer_size=1_000, fill_buffer=100, total_timesteps=1_000, eval_freq=1_000,
        num_tau_samples=N, num_tau_prime_samples=N_PRIME, num_quantile_samples=K, activation="swish", **settings,
    )  # fmt: skip
    _, _, config = algo.arguments()
    state = jax.eval_shape(algo.init, jax.random.key(0))
    program = (
        jax.jit(q_learning.step).lower(config, state, jax.eval_shape(jax.random.key, 0)).compile(inert.QUICKLY_COMPILED)
    )
    return program.cost_analysis()


@pytest.mark.parametrize("share", [False, True])
def test_a_gradient_step_computes_little_beyond_its_products_and_makes_few_passes_over_its_activations(share):
    # A product of a row with 64 x 64 weights is 2 * 64^2 operations. Forwards: the embedding (of each fraction once if the
    # batch shares them) and the hidden layer, for N + N' + K fractions; backwards, for N: both weights and the hidden input.
    embedded = 1 if share else B
    products = 2 * WIDTH**2 * ((embedded + B) * (N + N_PRIME + K) + (embedded + 2 * B) * N)
    measured = cost(share_tau=share)
    assert products < measured["flops"] < 1.25 * products  # the rest: psi, the output, the loss, random numbers

    activations = 4 * B * (N + N_PRIME + K) * WIDTH  # bytes of one hidden layer of every row
    # Of these, 3.9 and 1.8 are operands turned for the weights' gradients and fractions sent together (decision 0013): more
    # bytes in a sixth less time. That no product reads by columns is held in tests/unit/test_networks.py.
    assert measured["bytes accessed"] < (23.1 if share else 30.5) * activations


@pytest.mark.parametrize("name", each())
def test_no_algorithm_copies_a_large_array_of_the_network_into_a_vector(name):
    # XLA on a CPU takes sums (of biases' gradients) into such a copy, and then it took 50 of the 54 ms of DQN's gradient step.
    algo = tiny(name, "Breakout-MinAtar", torso="minatar", torso_sizes=(128,), head_sizes=())
    state = jax.eval_shape(algo.init, jax.random.key(0))
    text = jax.jit(algo.step).lower(state).compile(inert.QUICKLY_COMPILED).as_text()
    assert max(x.size for x in jax.tree.leaves(state.params)) > PACKED
    vectors = [int(n) for n in re.findall(r" f32\[(\d+)\]\S* concatenate\(", text)]
    assert vectors
    assert max(vectors) <= PACKED
