"""PQN against an independent evaluation of its equations, and its settings."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from quantilax import PQN, ConfigError, ConfigWarning
from quantilax.algorithms import pqn
from tests.conftest import tiny


@pytest.fixture
def algo():
    return tiny("pqn", gamma=0.9, lambda_=0.7, num_steps=64, num_minibatches=4, eval_freq=256)


def q_values(state, obs):
    return np.asarray(jax.vmap(nnx.merge(state.network, state.params))(obs), np.float64)


def test_targets_are_lambda_returns_of_the_true_successors_cut_at_the_end_of_episodes(algo):  # bug 9
    state = algo.init(jax.random.key(0))
    state, t = pqn.collect(algo.env, algo.config, state, jnp.array(1.0), jax.random.key(1))
    targets = pqn.lambda_targets(algo.config, state, t)
    ended = np.asarray(t.terminated | t.truncated)
    assert t.terminated.any()
    assert t.truncated.any()
    for e in range(algo.config.num_envs):
        g = None
        for i in reversed(range(algo.config.num_steps)):
            v = q_values(state, t.next_obs[i, e][None])[0].max()
            alive = 0.9 * (1 - float(t.terminated[i, e]))
            last = g is None or ended[i, e]
            g = float(t.reward[i, e]) + alive * (v if last else 0.3 * v + 0.7 * g)
            assert_allclose(targets[i, e], g, rtol=1e-4, atol=1e-5)


def test_each_step_is_learned_from_once_per_epoch(algo):
    rows = algo.config.steps_per_iteration
    state, _ = algo.step(algo.init(jax.random.key(0)))
    assert int(state.gradient_steps) == algo.config.num_epochs * algo.config.num_minibatches
    assert algo.config.derived()["minibatch_size"] * algo.config.num_minibatches == rows


def test_the_gradient_does_not_flow_through_the_target(algo):
    state = algo.init(jax.random.key(0))
    obs = jnp.ones(6)

    def value(target):
        return pqn.loss(state.params, state.network, obs, jnp.array(0), target)[0]

    assert float(jax.grad(value)(jnp.array(3.0))) == 0
    q = q_values(state, obs[None])[0, 0]
    assert_allclose(value(jnp.array(3.0)), 0.5 * (q - 3) ** 2, rtol=1e-5)


def test_the_learning_rate_falls_to_its_end():
    config = tiny("pqn", learning_rate=1e-2, learning_rate_end=0.0, max_grad_norm=float("inf")).config
    optimizer = pqn.optimizer(config)
    state, sizes = optimizer.init(jnp.zeros(1)), []
    for _ in range(config.gradient_steps + 1):
        updates, state = optimizer.update(jnp.array([1.0]), state)
        sizes.append(abs(float(updates[0])))
    assert sizes[0] > 0
    assert sizes[-1] == 0


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="num_minibatches: 3 does not divide num_envs \\* num_steps = 32"):
        tiny("pqn", num_minibatches=3)
    with pytest.raises(ConfigError, match="total_timesteps: 16 is less than one iteration"):
        tiny("pqn", total_timesteps=16, eval_freq=16)


def test_leaving_layer_norm_out_warns():
    with pytest.warns(ConfigWarning, match="layer_norm=false"):
        PQN.create(env="probe/corridor", layer_norm=False)


def test_targets_follow_the_parameters_of_the_iteration(algo):
    state = algo.init(jax.random.key(0))
    state, t = pqn.collect(algo.env, algo.config, state, jnp.array(1.0), jax.random.key(1))
    other = replace(state, params=jax.tree.map(lambda x: x + 0.1, state.params))
    assert not np.allclose(pqn.lambda_targets(algo.config, state, t), pqn.lambda_targets(algo.config, other, t))
