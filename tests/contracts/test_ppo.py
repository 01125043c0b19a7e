"""PPO: probabilities, advantages and the loss against NumPy; it learns with every head and both kinds of actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from quantilax import ALGORITHMS, ConfigError
from quantilax.agent import create
from quantilax.algorithms import ppo
from quantilax.algorithms.actor_critic import Bounds
from quantilax.envs.probes import Corridor, Regulator
from quantilax.heads import HEADS
from quantilax.learning import rollout
from tests.conftest import TINY, tiny
from tests.contracts.test_loops_and_heads import SMALL
from tests.trees import raw

BOUNDS = Bounds(jnp.array([-2.0, 0.0]), jnp.array([2.0, 10.0]))


PAIRS = [("probe/regulator", "scalar"), ("probe/regulator", "proposed"), ("probe/corridor", "categorical")]
"""In `make test`; the others are in `make validate`."""


@pytest.mark.parametrize(
    ("env", "head"),
    [
        pytest.param(env, head, marks=() if (env, head) in PAIRS else pytest.mark.validation)
        for env in ("probe/corridor", "probe/regulator")
        for head in HEADS
    ],
)
def test_it_learns_with_every_head_and_both_kinds_of_actions(env, head):
    algo = create(ALGORITHMS["ppo"], env, {**TINY["ppo"], **SMALL, "head": head, "weight_averaging": 0.9})
    state, record = algo.records(jax.random.key(0))
    before, after = raw(state.average_params), raw(state.params)
    assert all(np.isfinite(x).all() for x in after)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "each array is learned"
    for name in ("loss", "gradient_norm", "q", "td_error"):
        assert np.isfinite(getattr(record.metrics, name)[1:]).all(), name
    obs = jnp.zeros((2, *algo.env.observation_space.shape))
    if HEADS[head].quantiles is None:
        with pytest.raises(ConfigError, match=f"head: {head} learns expected values, no quantiles; choose"):
            algo.quantiles(state, obs, jnp.array([0.5]))
    else:
        assert algo.quantiles(state, obs, jnp.array([0.1, 0.5, 0.9])).shape == (2, 3, 1)


def test_the_probabilities_of_clipped_actions_are_those_of_what_is_drawn():
    """Beyond the bounds lies mass, inside a density: shares of many draws, and an integral of 1."""
    pi = ppo.Clipped(jnp.array([0.6, -0.2]), jnp.array([-0.3, -1.0]), BOUNDS)
    draws = np.asarray(jax.vmap(pi.sample)(jax.random.split(jax.random.key(0), 40_000)))
    assert (draws >= BOUNDS.low).all()
    assert (draws <= BOUNDS.high).all()
    one = ppo.Clipped(jnp.array([0.6]), jnp.array([-0.3]), Bounds(jnp.array([-2.0]), jnp.array([2.0])))
    low, high = (float(jnp.exp(one.log_pi(jnp.array([bound])))) for bound in (-2.0, 2.0))
    np.testing.assert_allclose([(draws[:, 0] == -2).mean(), (draws[:, 0] == 2).mean()], [low, high], atol=0.01)
    grid = np.linspace(-1.999, 1.999, 4_001, dtype=np.float32)
    density = np.exp(jax.vmap(one.log_pi)(grid[:, None])) / 2  # of the scaled action, which is half as wide
    np.testing.assert_allclose(np.trapezoid(density, grid) + low + high, 1, atol=2e-3)
    inside = stats.norm.logpdf(0.25, 0.6, np.exp(-0.3)) + stats.norm.logpdf(-0.4, -0.2, np.exp(-1.0))
    np.testing.assert_allclose(pi.log_pi(jnp.array([0.5, 3.0])), inside, rtol=1e-5)
    np.testing.assert_allclose(pi.entropy(), sum(stats.norm.entropy(0, np.exp(s)) for s in (-0.3, -1.0)), rtol=1e-5)


def test_log_probabilities_stay_finite_far_beyond_the_bounds():
    pi = ppo.Clipped(jnp.array([9.0, -9.0]), jnp.array([-1.0, -1.0]), BOUNDS)
    value, slope = jax.value_and_grad(lambda mu: pi._replace(mu=mu).log_pi(jnp.array([-2.0, 10.0])))(pi.mu)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_illegal_actions_have_no_probability():
    legal = jnp.array([True, False, True])
    pi = ppo.Categorical(jax.nn.log_softmax(jnp.where(legal, jnp.array([0.3, 9.0, -0.2]), -jnp.inf)))
    drawn = jax.vmap(pi.sample)(jax.random.split(jax.random.key(0), 1_000))
    assert set(drawn.tolist()) == {0, 2}
    p = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()
    np.testing.assert_allclose(pi.entropy(), -(p * np.log(p)).sum(), rtol=1e-5)
    assert int(pi.mode()) == 0
    slope = jax.grad(lambda q: ppo.Categorical(jax.nn.log_softmax(jnp.where(legal, q, -jnp.inf))).entropy())
    assert np.isfinite(slope(jnp.array([0.3, 9.0, -0.2]))).all()


def observed(env, **changes):
    """An agent, a state after `observe`, and the transitions that it observed."""
    algo = tiny("ppo", env, num_steps=12, total_timesteps=480, eval_freq=480, gamma=0.9, lambda_=0.7, **changes)
    state, _ = algo.train(jax.random.key(0))
    act = lambda config, state: ppo.act(algo.env, config, state)  # noqa: E731
    state, transitions = jax.jit(lambda s: rollout.collect(algo.env, algo.config, act, s, jax.random.key(1)))(state)
    return algo, ppo.observe(algo.config, state, transitions, jax.random.key(2)), transitions


@pytest.mark.parametrize("env", [Corridor(cells=2), Regulator(limit=3)], ids=["terminated", "truncated"])
def test_advantages_are_generalised_advantage_estimates(env):
    """Sums of delta, each weighted by (gamma lambda)^l, which no end of an episode lets through."""
    _, state, t = observed(env)
    network = nnx.merge(state.network, state.params)
    V = lambda x: np.asarray(jax.vmap(jax.vmap(lambda x: network.head(network.psi(x))[0, 0]))(x))  # noqa: E731
    delta = np.asarray(t.reward) + 0.9 * (1.0 - np.asarray(t.terminated)) * V(t.next_obs) - V(t.obs)
    ended, A = np.asarray(t.terminated | t.truncated), np.zeros_like(delta)
    assert ended.any()
    for i in reversed(range(len(A))):
        A[i] = delta[i] + (0 if i + 1 == len(A) else 0.9 * 0.7 * ~ended[i] * A[i + 1])
    np.testing.assert_allclose(state.rows.advantage, A.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.rows.target, (A + V(t.obs)).ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env", [Corridor(cells=2), Regulator()], ids=["discrete", "real-valued"])
def test_the_loss_is_that_of_the_paper(env):
    algo, state, _ = observed(env, clip_ratio=0.1, entropy_coefficient=0.03, value_coefficient=0.7)
    config, rows = algo.config, state.rows
    log_pi, entropy = ppo.probabilities(nnx.merge(state.network, state.params), state, rows.obs, rows.action, None)
    np.testing.assert_allclose(log_pi, rows.log_pi, rtol=1e-5, atol=1e-6)  # before a step the ratio is 1
    rows = rows._replace(log_pi=rows.log_pi + jnp.linspace(-0.5, 0.5, len(rows.log_pi)))
    value, measured = ppo.loss(state.params, config, state, rows, jax.random.key(0))
    v, td_error = measured["q"], measured["td_error"]
    A = np.asarray(rows.advantage, np.float64)
    A = (A - A.mean()) / A.std()
    ratio = np.exp(np.asarray(log_pi, np.float64) - np.asarray(rows.log_pi))
    surrogate = np.where(A > 0, np.minimum(ratio, 1.1) * A, np.maximum(ratio, 0.9) * A)
    squared = 0.5 * (np.asarray(v) - np.asarray(rows.target)) ** 2
    np.testing.assert_allclose(
        value, (0.7 * squared - surrogate - 0.03 * np.asarray(entropy)).mean(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(measured["actor_loss"], -surrogate, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(measured["entropy"], entropy)
    np.testing.assert_allclose(measured["approx_kl"], ratio - 1 - np.log(ratio), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(measured["clip_fraction"], (ratio < 0.9) | (ratio > 1.1))
    np.testing.assert_allclose(td_error, np.abs(np.asarray(v) - np.asarray(rows.target)), rtol=1e-5, atol=1e-6)


@pytest.mark.optimized
@pytest.mark.validation
def test_the_linear_regulator_is_solved_to_its_known_optimum():
    env = Regulator(noise=0.05)
    algo = create(ALGORITHMS["ppo"], env, dict(
        total_timesteps=61_440, eval_freq=61_440, eval_episodes=64, num_envs=16, num_steps=32, num_epochs=8,
        learning_rate=3e-3, gamma=0.9, torso_sizes=(32,), weight_averaging=0.99, head="quantile",
    ))  # fmt: skip
    state, _ = algo.train(jax.random.key(0))
    x = jnp.linspace(-0.9, 0.9, 13)[:, None]
    p, k = env.solution(0.9)
    action = jax.vmap(lambda x: algo.policy(state)(x, jax.random.key(0)))(x)
    assert np.abs(action + k * x).mean() < 0.1
    V = algo.quantiles(state, x, (jnp.arange(32) + 0.5) / 32).mean(axis=(1, 2))
    assert np.abs(V + p * x[:, 0] ** 2).mean() < 0.25  # of the policy that draws, whose noise costs


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(head="implicit_quantile", risk="cvar", risk_eta=0.5), "risk: has no meaning in ppo, whose policy is no"),
        (dict(num_minibatches=3), "num_minibatches: 3 does not divide num_envs \\* num_steps = 32; choose a divisor"),
        (dict(total_timesteps=16), "total_timesteps: 16 is less than one iteration of num_envs \\* num_steps = 32"),
        (
            dict(num_minibatches=32),
            "num_minibatches: 32 leaves one step per minibatch, whose advantage less its mean is 0",
        ),
        (dict(clip_ratio=0.0), "clip_ratio: must be > 0"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(settings, line):
    with pytest.raises(ConfigError, match=line) as refused:
        tiny("ppo", **settings)
    assert "\n" not in str(refused.value)
