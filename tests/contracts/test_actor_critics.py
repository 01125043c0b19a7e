"""SAC and TD3 with every head: equations against NumPy, known optima, and what is refused in one line."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from quantilax import ALGORITHMS, Box, ConfigError, ConfigWarning, heads
from quantilax.agent import create
from quantilax.algorithms import actor_critic, sac
from quantilax.envs.probes import Regulator
from quantilax.heads import HEADS
from quantilax.heads.base import Prediction
from quantilax.types import NStep
from tests.conftest import TINY, tiny
from tests.contracts.test_loops_and_heads import SMALL
from tests.trees import raw

LOOPS = ("sac", "td3")
GAMMA = 0.9


def pair(loop, head, **changes):
    return create(ALGORITHMS[loop], "probe/regulator", {**TINY[loop], **SMALL, "head": head, **changes})


PAIRS = [("sac", "scalar"), ("sac", "proposed"), ("td3", "quantile"), ("td3", "categorical")]
"""In `make test`; the others are in `make validate`."""


@pytest.mark.parametrize(
    ("loop", "head"),
    [
        pytest.param(loop, head, marks=() if (loop, head) in PAIRS else pytest.mark.validation)
        for loop in LOOPS
        for head in HEADS
    ],
)
def test_every_loop_learns_with_every_head(loop, head):
    steps = 2 if loop == "td3" else 1
    algo = pair(loop, head, weight_averaging=0.9, n_step=steps, prioritized=True, normalize_observations=True)
    state, record = algo.records(jax.random.key(0))
    before, after = raw(state.average_params), raw(state.params)  # the average stays behind what moves
    assert all(np.isfinite(x).all() for x in after)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "each array is learned"
    for name in ("loss", "gradient_norm", "q", "td_error", "target_distance", "replay_fill"):
        assert np.isfinite(getattr(record.metrics, name)[1:]).all(), name
    action = algo.policy(state)(jnp.array([0.5]), jax.random.key(0))
    assert action.shape == (1,)
    assert np.abs(action) <= 1
    if HEADS[head].quantiles is None:
        with pytest.raises(ConfigError, match=f"head: {head} learns expected values, no quantiles; choose"):
            algo.quantiles(state, jnp.zeros(1), jnp.array([0.5]))
        return
    Z = algo.quantiles(state, jnp.zeros((2, 1)), jnp.array([0.1, 0.5, 0.9]))
    assert Z.shape == (2, 3, 1)
    assert np.isfinite(Z).all()


def test_the_log_probability_of_sac_is_that_of_the_squashed_gaussian():
    """The density of a = tanh(u) is that of u divided by the slope of tanh, here by differences."""
    mu, log_sigma, h = np.array([0.3, -1.2]), np.array([-0.5, 0.2]), 1e-6
    outputs = jnp.array([mu, log_sigma])
    a, log_pi = jax.vmap(sac.sample, in_axes=(0, None))(jax.random.split(jax.random.key(0), 500), outputs)
    u = np.arctanh(np.asarray(a, np.float64))
    slope = (np.tanh(u + h) - np.tanh(u - h)) / (2 * h)
    expected = (stats.norm.logpdf(u, mu, np.exp(log_sigma)) - np.log(slope)).sum(axis=1)
    near = np.abs(a).max(axis=1) < 0.999  # closer to 1, arctanh of a float32 is inexact
    assert near.mean() > 0.8
    np.testing.assert_allclose(log_pi[near], expected[near], rtol=1e-3, atol=1e-3)


def test_log_probabilities_stay_finite_where_tanh_rounds_to_one():
    outputs = jnp.array([[40.0], [0.0]])
    a, log_pi = sac.sample(jax.random.key(0), outputs)
    assert float(a[0]) == 1
    assert np.isfinite(log_pi)
    assert all(np.isfinite(jax.grad(lambda x: sac.sample(jax.random.key(0), x)[1])(outputs)).ravel())


def critics(Y, tau=None):
    return Prediction(jnp.asarray(Y, jnp.float32), None if tau is None else jnp.asarray(tau, jnp.float32))


def test_tqc_pools_the_quantiles_of_all_critics_and_drops_the_top_ones():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(5, 25))
    config = tiny("tqc", num_critics=5, num_quantiles=25, top_quantiles_to_drop=2).config
    kept = np.sort(Z.ravel())[: 5 * (25 - 2)]
    np.testing.assert_allclose(np.sort(actor_critic.together(config, critics(Z)).Y), kept, rtol=1e-6)
    np.testing.assert_allclose(actor_critic.value(config, critics(Z)), Z.mean(), rtol=1e-5)  # the actor sees all


@pytest.mark.parametrize("head", ["scalar", "quantile", "categorical", "hl_gauss"])
def test_the_least_of_the_critics_is_the_minimum_by_quantile_or_the_smallest_mean(head):
    rng = np.random.default_rng(1)
    config = pair("sac", head).config
    Y = rng.normal(size=(3, {"scalar": 1, "quantile": 5}.get(head, 7)))
    least = actor_critic.together(config, critics(Y, np.tile(np.linspace(0, 1, Y.shape[1]), (3, 1)))).Y
    if head in ("scalar", "quantile"):
        np.testing.assert_allclose(least, Y.min(axis=0), rtol=1e-6)
        return
    p = np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(least, Y[(p @ np.linspace(-2, 2, 7)).argmin()], rtol=1e-6)


def batch_of(rng, size):
    return NStep(
        obs=jnp.asarray(rng.normal(size=(size, 1)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, (size, 1)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=size), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(size, 1)), jnp.float32),
        terminated=jnp.asarray(rng.random(size) < 0.5),
        truncated=jnp.asarray(rng.random(size) < 0.5),
        steps=jnp.asarray(rng.integers(1, 4, size)),
    )


def layers(params):
    """Kernels and biases of the dense layers of psi, then of the head, per critic, in float64."""
    psi = params["psi"]["layers"]
    out = params["head"]["out"]
    return [
        (np.asarray(x["kernel"][...], np.float64), np.asarray(x["bias"][...], np.float64)) for x in [*psi.values(), out]
    ]


def forward(params, i, x):
    *hidden, (kernel, bias) = [(k[i], b[i]) for k, b in layers(params)]
    for k, b in hidden:
        x = np.maximum(x @ k + b, 0)
    return x @ kernel + bias


def test_targets_and_losses_of_sac_are_those_of_numpy():
    """R + gamma^m d (min_i Q_i(x', a') - alpha ln pi), the summed squared errors, and the actor's loss."""
    algo = pair("sac", "scalar", head_sizes=(), gamma=GAMMA)
    state, _ = algo.train(jax.random.key(0))
    rng, n = np.random.default_rng(0), 6
    batch, config = batch_of(rng, n), algo.config
    a_next, log_pi, alpha = rng.uniform(-1, 1, (n, 1)), rng.normal(size=n), 0.3
    y = actor_critic.targets(config, state, batch, jnp.asarray(a_next, jnp.float32), -alpha * log_pi, None)
    inputs = np.concatenate([batch.next_obs, a_next], axis=1)
    Q = np.stack([forward(state.target_params["critic"], i, inputs)[:, 0] for i in range(2)])
    alive = 1.0 - np.asarray(batch.terminated)
    expected = np.asarray(batch.reward) + GAMMA ** np.asarray(batch.steps) * alive * (Q.min(axis=0) - alpha * log_pi)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    value, (q, td_error, _) = actor_critic.critic_loss(state.params["critic"], config, state, batch, y, None)
    inputs = np.concatenate([batch.obs, batch.action], axis=1)
    Q = np.stack([forward(state.params["critic"], i, inputs)[:, 0] for i in range(2)])
    np.testing.assert_allclose(value, (0.5 * (expected - Q) ** 2).sum(axis=0).mean(), rtol=1e-4)
    np.testing.assert_allclose(q, Q.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(td_error, np.abs(expected - Q).mean(axis=0), rtol=1e-4, atol=1e-5)

    keys = jax.random.split(jax.random.key(1))
    loss, log_pi = sac.actor_loss(state.params["actor"], config, state, batch, jnp.float32(alpha), keys)
    a, _ = sac.actions(state, state.params["actor"], batch.obs, keys[0])
    inputs = np.concatenate([batch.obs, a], axis=1)
    Q = np.stack([forward(state.params["critic"], i, inputs)[:, 0] for i in range(2)]).min(axis=0)
    np.testing.assert_allclose(loss, (alpha * np.asarray(log_pi) - Q).mean(), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda log_alpha: sac.temperature_loss(log_alpha, config, state, log_pi)[0])(jnp.float32(0.2))
    np.testing.assert_allclose(slope, -(np.mean(log_pi) - 1.0), rtol=1e-4)  # H = -1 for one component


def test_td3_moves_actor_and_targets_every_policy_delay_steps():
    algo = pair("td3", "scalar", policy_delay=3, num_epochs=1)
    states = [algo.init(jax.random.key(0))]
    for _ in range(6):
        states.append(algo.step(states[-1])[0])
    for i, (before, after) in enumerate(itertools.pairwise(states), start=1):
        moved = [
            not np.array_equal(a, b)
            for entry in ("actor", "critic")
            for a, b in zip(raw(before.target_params[entry]), raw(after.target_params[entry]), strict=True)
        ]
        acts = [
            not np.array_equal(a, b)
            for a, b in zip(raw(before.params["actor"]), raw(after.params["actor"]), strict=True)
        ]
        assert (any(moved), any(acts)) == (i % 3 == 0, i % 3 == 0)
        assert all(moved) == all(acts) == (i % 3 == 0)


@pytest.mark.parametrize(("delay", "freq", "period"), [(1, 1, 1), (3, 1, 3), (2, 3, 6)])
def test_the_time_constant_of_td3_counts_the_delay(delay, freq, period):
    config = pair("td3", "scalar", policy_delay=delay, target_update_freq=freq, polyak=0.0).config
    assert config.derived()["target_time_constant_updates"] == period


@pytest.mark.parametrize("loop", LOOPS)
def test_actions_keep_within_the_bounds_and_reach_them(loop):
    """Scaled actions -1 and 1 are the bounds, whatever these are."""
    low, high = jnp.array([-3.0, 0.0]), jnp.array([1.0, 10.0])
    bounds = actor_critic.Bounds(low, high)
    np.testing.assert_allclose(bounds.unscaled(jnp.array([-1.0, 1.0])), [-3.0, 10.0])
    tight = actor_critic.Bounds(jnp.array([-3.0]), jnp.array([-0.8]))  # low + (high - low) rounds to above high
    assert tight.unscaled(jnp.ones(1)) <= tight.high
    a = jnp.array([[0.5, 2.0], [-3.0, 10.0]])
    np.testing.assert_allclose(bounds.unscaled(bounds.scaled(a)), a, rtol=1e-6)
    algo = pair(loop, "scalar")
    state = algo.init(jax.random.key(0))
    grown = jax.tree.map(lambda x: 1e3 * x, state.params["actor"])
    policy = algo.algorithm.act(algo.env, algo.config, replace(state, params=state.params | {"actor": grown}))
    x = jnp.linspace(-1, 1, 64)[:, None]
    action = jax.vmap(lambda x, key: policy.act(x, (), key, None)[0])(x, jax.random.split(jax.random.key(0), 64))
    assert np.abs(action).max() <= 1


LEARNING = dict(
    total_timesteps=6_000, eval_freq=6_000, eval_episodes=64, num_envs=8, num_epochs=4, buffer_size=6_000,
    fill_buffer=500, batch_size=64, learning_rate=3e-3, learning_rate_end=0.0, polyak=0.98, gamma=GAMMA,
    torso_sizes=(32, 32), weight_averaging=0.99,
)  # fmt: skip


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("td3", dict(head="scalar", target_noise=0.0, num_critics=1)),  # either lowers Q
        ("sac", dict(head="scalar", learn_temperature=False, temperature=1e-3)),
        pytest.param(
            "tqc",
            dict(num_quantiles=16, num_critics=2, top_quantiles_to_drop=0, learn_temperature=False, temperature=1e-3),
            marks=pytest.mark.validation,
        ),
    ],
    ids=["td3", "sac", "tqc"],
)  # fmt: skip
def test_the_linear_regulator_is_solved_to_its_known_optimum(name, settings):
    """mu(x) = -k x and Q(x, mu(x)) = -p x^2, from the Riccati equation, through time limits that are no ends."""
    env = Regulator(noise=0.05)
    algo = create(ALGORITHMS[name], env, LEARNING | settings)
    state, _ = algo.train(jax.random.key(0))
    x = jnp.linspace(-0.9, 0.9, 13)[:, None]
    p, k = env.solution(GAMMA)
    action = jax.vmap(lambda x: algo.policy(state)(x, jax.random.key(0)))(x)
    assert np.abs(action + k * x).mean() < 0.1
    config, scaled = algo.config, state.bounds.scaled(action)
    tau = heads.of(config).draw(jax.random.key(0), (len(x),), "tau")[0]
    Z = actor_critic.predictions(state.network.critic, state.params["critic"], config, x, scaled, tau)
    Q = jax.vmap(jax.vmap(heads.of(config).mean))(Z).mean(axis=0)
    assert np.abs(Q + p * x[:, 0] ** 2).mean() < 0.15


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("sac", dict(head="scalar", top_quantiles_to_drop=1), "top_quantiles_to_drop: head=scalar has no quantiles to"),
        ("tqc", dict(top_quantiles_to_drop=5), "top_quantiles_to_drop: 5 of 5 quantiles per critic leaves none to learn"),
        ("sac", dict(buffer_size=2), "buffer_size: 2 cannot hold one step of num_envs=4"),
        ("sac", dict(torso="simba", torso_sizes=(8, 16)), "torso_sizes: simba adds its blocks' outputs to their inputs"),
        ("d4pg", dict(v_min=3.0), "v_min: 3.0 is not below v_max=2.0"),
        ("sac", dict(head="quantiles"), "head: unknown value 'quantiles'; did you mean 'quantile'"),
        ("tqc", dict(head="quantile"), "unknown field 'head'"),
        ("sac", dict(double=True), "unknown field 'double'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_in_one_line(name, settings, line):
    with pytest.raises(ConfigError, match=line) as refused:
        tiny(name, **settings)
    assert "\n" not in str(refused.value)


def test_discrete_actions_and_boxes_without_bounds_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="CartPole-v1 has discrete actions and sac needs continuous ones; choose"):
        create(ALGORITHMS["sac"], "CartPole-v1", TINY["sac"])

    class Unbounded(Regulator):
        action_space = Regulator.action_space._replace(high=np.inf)

    with pytest.raises(ConfigError, match="probe/regulator's actions have no bounds; give its action_space a low"):
        create(ALGORITHMS["td3"], Unbounded(), TINY["td3"])


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (Box((1,), low=1.0, high=1.0), "action_space needs each low below its high"),
        (Box((1,), low=-3.3e38, high=3.3e38), "action_space needs each low below its high, and both of moderate size"),
        (Box((1,), jnp.int32, 0, 4), "actions are whole numbers in a box; sac needs real numbers"),
    ],
)
def test_boxes_in_which_no_action_can_be_scaled_are_refused_in_one_line(space, line):
    class Odd(Regulator):
        action_space = space

    with pytest.raises(ConfigError, match=line):
        create(ALGORITHMS["sac"], Odd(), TINY["sac"])


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("sac", dict(n_step=3), "n_step=3: the entropy of the steps in between does not enter SAC's targets"),
        ("td3", dict(torso="minatar", head_sizes=()), "head_sizes=\\[\\] with torso=minatar: the action joins the last layer"),
    ],
)  # fmt: skip
def test_settings_that_mislead_are_warned_of(name, settings, line):
    class Seen(Regulator):
        observation_space = Box((4, 4, 1))

        def reset(self, key):
            state, x = super().reset(key)
            return state, jnp.broadcast_to(x, (4, 4, 1))

        def step(self, key, state, action):
            state, told = super().step(key, state, action)
            pictures = (jnp.broadcast_to(x, (4, 4, 1)) for x in (told.obs, told.next_obs))
            return state, told._replace(**dict(zip(("obs", "next_obs"), pictures, strict=True)))

    env = Seen() if "torso" in settings else "probe/regulator"
    with pytest.warns(ConfigWarning, match=line):
        tiny(name, env, **settings)
