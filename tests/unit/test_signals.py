"""Signals: formulas against numbers derived by hand, measurements against independent computations."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax import ConfigWarning, signals, train
from quantilax.envs.probes import Corridor, Terminal, TimeLimit
from quantilax.learning import rollout
from quantilax.types import Discrete, Policy
from tests.conftest import tiny


def test_two_parts_give_the_noise_scale_of_two_halves():
    # g1 = (1, 2), g2 = (3, 0), b = 3: |g1|^2 = 5, |g2|^2 = 9, mean (2, 1) with square 5.
    # G2 = g1 . g2 = 3; S = b |g1 - g2|^2 / 2 = 3 * 8 / 2 = 12.
    signal, noise = signals.noise_parts(jnp.float32(7), jnp.float32(5), 2, 3)
    assert (float(signal), float(noise)) == (3, 12)


def test_the_noise_parts_are_unbiased_on_a_known_quadratic():
    # Loss of one transition |theta - x|^2 / 2 with x ~ N(0, diag(1, 4, 9)): gradient theta - x at theta = (1, 0, -2), so
    # G2 = |theta|^2 = 5 and S = 1 + 4 + 9 = 14, whatever M and b are.
    parts, size, repeats = 4, 5, 20_000
    x = np.random.default_rng(0).normal(size=(repeats, parts, size, 3)) * [1, 2, 3]
    g = (np.array([1, 0, -2]) - x).mean(axis=2)
    found = jax.vmap(signals.noise_parts, in_axes=(0, 0, None, None))(
        (g**2).sum(axis=-1).mean(axis=1), (g.mean(axis=1) ** 2).sum(axis=-1), parts, size
    )
    assert_allclose(np.mean(found, axis=1), [5, 14], rtol=0.02)


@pytest.mark.parametrize(("after", "share"), [([1.0, -2.0], 0), ([0.5, -1.0], 0.5), ([0.0, 0.0], 1), ([-1.0, 2.0], 2)])
def test_overshoot_is_the_share_of_the_errors_that_a_step_removes(after, share):
    assert_allclose(signals.overshoot(jnp.array([1.0, -2.0]), jnp.array(after)), share, atol=1e-6)


def test_the_gap_is_between_the_best_and_the_second():
    assert float(signals.gap(jnp.array([1.0, 4.0, 2.5]))) == 1.5
    assert np.isnan(signals.gap(jnp.array([1.0])))


def test_a_decision_is_as_sure_as_its_gap_over_the_noise_of_k_fractions():
    # Means 0.5, 2, -9; Z_1 - Z_2 = 1, 2 with mean 1.5 and variance 0.25; K = 4: 1.5 / sqrt(0.25 / 4) = 6.
    Z = jnp.array([[0.0, 1.0, -9.0], [1.0, 3.0, -9.0]])
    assert_allclose(signals.decision_snr(Z, 4), 6, rtol=1e-5)


def test_quantiles_of_the_returns_are_calibrated_and_others_are_not():
    # Returns 0.05, 0.15, ..., 0.95: a tenth of them lies below 0.1, and so on.
    tau = jnp.array([0.1, 0.5, 0.9])
    G = (jnp.arange(10) + 0.5) / 10
    assert_allclose(signals.calibration(jnp.broadcast_to(tau, (10, 3)), tau, G), 0, atol=1e-6)
    # All above the returns: P = 1 for each, so |1 - 0.1|, |1 - 0.5|, |1 - 0.9| with mean 0.5.
    assert_allclose(signals.calibration(jnp.full((10, 3), 2.0), tau, G), 0.5, rtol=1e-6)


def test_dormant_units_are_those_far_below_their_layers_mean():
    # Mean activations 1, 1, 0.02, 0: their mean is 0.505, a fortieth of it 0.0126; one of four is at or below.
    features = jnp.array([[2.0, 0.0, 0.04, 0.0], [0.0, -2.0, 0.0, 0.0]])
    assert float(signals.dormant_share(features)) == 0.25


def test_the_effective_rank_counts_directions():
    assert_allclose(signals.effective_rank(jnp.eye(6, 4)), 1, rtol=1e-4)
    assert_allclose(signals.effective_rank(jnp.ones((6, 4))), 1 / 4, rtol=1e-4)
    # Singular values 3, 1: shares 3/4 and 1/4, entropy 0.5623, exp 1.7548; of a width of 2.
    assert_allclose(signals.effective_rank(jnp.diag(jnp.array([3.0, 1.0]))), 1.7548 / 2, rtol=1e-4)


def test_entropy_is_one_for_uniform_counts():
    assert_allclose(signals.entropy(jnp.array([5.0, 5.0, 5.0])), 1, rtol=1e-5)
    assert_allclose(signals.entropy(jnp.array([4.0, 0.0])), 0, atol=1e-5)
    # Shares 1/4 and 3/4: 0.5 + 0.3113 bits.
    assert_allclose(signals.entropy(jnp.array([1.0, 3.0])), 0.8113, rtol=1e-4)


def test_damping_is_what_epsilon_leaves_of_a_step():
    # m / sqrt(v) = 1, 2; with eps = sqrt(v) half of each is left. Where v is 0 there is no step.
    m, sqrt_v = jnp.array([0.1, 0.2, 0.0]), jnp.array([0.1, 0.1, 0.0])
    assert_allclose(signals.damping(m, sqrt_v, 0.1), 0.5, rtol=1e-5)
    # eps = 0.3 and sqrt(v) = 0.1, 0.3: a quarter and a half are left, sqrt(1/16 + 4/4) / sqrt(1 + 4).
    assert_allclose(signals.damping(jnp.array([0.1, 0.6]), jnp.array([0.1, 0.3]), 0.3), (17 / 16 / 5) ** 0.5, rtol=1e-5)


def test_watching_plays_the_episodes_that_evaluating_plays(algo):
    algorithm, env, config = algo.arguments()
    policy, key = algorithm.policy(env, config, algo.init(jax.random.key(0))), jax.random.key(3)
    lengths, returns = rollout.evaluate(algo.env, policy, key, 5)
    watched = rollout.watch(algo.env, policy, key, 5, 0.9)
    assert lengths.tolist() == watched.lengths.tolist()
    # Whole rewards add up exactly; real ones are added up in two programs, which may round differently.
    rtol = 0 if isinstance(env.action_space, Discrete) else 1e-6
    assert_allclose(watched.returns, returns, rtol=rtol)


def test_watching_keeps_the_discounted_return_the_first_step_and_the_last():
    policy = Policy(lambda obs, carry, key, legal: (jnp.zeros((), jnp.int32), carry))
    # Two steps, the second pays 3: gamma * 3.
    episodes = rollout.watch(Terminal(reward=3.0), policy, jax.random.key(0), 2, 0.5)
    assert episodes.discounted.tolist() == [1.5, 1.5]
    assert episodes.first.obs.tolist() == [[1, 0]] * 2
    assert episodes.last.obs.tolist() == [[0, 1]] * 2
    assert episodes.last.next_obs.tolist() == [[0, 0]] * 2
    assert episodes.last.terminated.all()
    # Four steps of 1, cut off: 1 + 1/2 + 1/4 + 1/8.
    episodes = rollout.watch(TimeLimit(limit=4), policy, jax.random.key(0), 2, 0.5)
    assert episodes.discounted.tolist() == [1.875, 1.875]
    assert episodes.last.truncated.all()
    assert not episodes.last.terminated.any()


def test_the_reference_batch_is_made_of_random_steps_and_repeats():
    R = signals.reference(Corridor(cells=3), jax.random.key(0))
    assert R.reward.shape == (signals.REFERENCE_ENVS * signals.REFERENCE_STEPS,)
    assert 0.3 < R.action.mean() < 0.7
    assert R.terminated.any()
    assert R.obs.tolist() == signals.reference(Corridor(cells=3), jax.random.key(0)).obs.tolist()


@pytest.fixture(scope="module")
def trained():
    """An agent, its final state, and its last signals, with what they were measured on."""
    agent = tiny("iqn", signals=True, gamma=0.9, fill_buffer=100)
    state, record = agent.records(jax.random.key(1))
    reference_key, _ = train.signal_keys(state)
    R = signals.reference(agent.env, jax.random.split(reference_key)[0])
    tau = (np.arange(signals.NUM_FRACTIONS) + 0.5) / signals.NUM_FRACTIONS
    Z = np.asarray(agent.quantiles(state, R.obs, tau))
    ahead = np.asarray(agent.quantiles(state, R.next_obs, tau)).mean(axis=1).max(axis=1)
    swapped = dataclasses.replace(state, average_params=state.target_params)
    Z_target = np.asarray(agent.quantiles(swapped, R.obs, tau))
    Z_next = np.asarray(agent.quantiles(swapped, R.next_obs, tau))
    last = {k: None if v is None else float(v[-1]) for k, v in record.signals._asdict().items()}
    return agent, state, jax.device_get(R), Z, Z_target, (Z_next, ahead), last


def test_the_values_measured_are_those_of_the_agents_quantiles(trained):
    _, _, R, Z, Z_target, (Z_next, ahead), last = trained
    q, q_target = Z.mean(axis=1), Z_target.mean(axis=1)
    scale = np.sqrt(np.mean(q**2))
    taken = np.take_along_axis(q, R.action[:, None], axis=1)[:, 0]
    target = R.reward + 0.9 * (1 - R.terminated) * Z_next.mean(axis=1).max(axis=1)
    order = np.sort(q, axis=1)
    greedy = np.take_along_axis(Z, q.argmax(axis=1)[:, None, None], axis=2)[..., 0]
    expected = {
        "reference_q": q.mean(),
        "reference_q_target": q_target.mean(),
        "target_lag": np.abs(q - q_target).mean() / scale,
        "target_disagreement": (q.argmax(axis=1) != q_target.argmax(axis=1)).mean(),
        "action_gap": (order[:, -1] - order[:, -2]).mean() / scale,
        "reference_error": np.abs(target - taken).mean() / scale,
        "value_change": np.abs(ahead - q.max(axis=1))[~R.terminated].mean() / q.max(axis=1).std(),
        "crossing": (np.diff(greedy, axis=1) < 0).mean(),
        "value_bound": np.abs(q).max() * (1 - 0.9) / 1.0,  # rewards of the corridor: 0 and 1
    }
    assert {name: last[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_what_is_in_the_replay_is_counted(trained):
    _, state, _, _, _, _, last = trained
    rows = jax.device_get(state.replay.rows)
    ends = rows.terminated | rows.truncated
    assert last["terminal_share"] == pytest.approx(rows.terminated.mean())  # it is full
    assert last["replay_episodes"] == ends.sum()
    assert last["truncation_share"] == pytest.approx((rows.truncated & ~rows.terminated).sum() / ends.sum())
    share = np.bincount(np.ravel(rows.action), minlength=2) / rows.action.size
    assert last["action_entropy"] == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-4)


@pytest.fixture(scope="module")
def measure(trained):
    """(config, state, episodes, key, key) -> signals, compiled once."""
    algorithm, env, _ = trained[0].arguments()
    return jax.jit(partial(signals.measure, env, algorithm))


@pytest.fixture(scope="module")
def episodes(trained):
    """Two episodes that the agent played."""
    agent, state = trained[:2]
    algorithm, env, config = agent.arguments()
    return rollout.watch(env, algorithm.policy(env, config, state), jax.random.key(0), 2, 0.9)


@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 0.0), (1.0, 0.5), (0.2, 0.1)])
def test_exploration_is_the_share_of_actions_that_epsilon_makes_not_greedy(trained, measure, episodes, epsilon, share):
    # Of two actions a random one is the greedy one half of the time. Without epsilon it is 0 to the bit, however much
    # actions change with the fractions drawn.
    agent, state = trained[:2]
    _, _, config = agent.replace(eps_start=epsilon, eps_end=epsilon).arguments()
    found = measure(config, state, episodes, *train.signal_keys(state))
    assert float(found.exploration) == pytest.approx(share, abs=0.04 if share else 0.0)


@pytest.mark.parametrize("action", [0, 1])
def test_off_policy_is_the_share_of_the_actions_in_the_replay_that_are_not_greedy_now(
    trained, measure, episodes, action
):
    agent, state = trained[:2]
    _, _, config = agent.arguments()
    rows = state.replay.rows._replace(action=jnp.full_like(state.replay.rows.action, action))
    always = dataclasses.replace(state, replay=dataclasses.replace(state.replay, rows=rows))
    batch, _ = agent.algorithm.signals.draw(config, state, jax.random.key(0), 2_000)
    q = np.asarray(agent.quantiles(state, batch.obs, signals.midpoints(signals.NUM_FRACTIONS))).mean(axis=1)
    found = measure(config, always, episodes, *train.signal_keys(state)).off_policy
    assert float(found) == pytest.approx((q.argmax(axis=1) != action).mean(), abs=0.07)  # of a batch of 512


def test_returns_are_compared_with_the_values_of_the_weights_that_played(trained, measure, episodes):
    agent, state = trained[:2]
    _, _, config = agent.arguments()
    others = jax.tree.map(lambda x: x + 0.1, state.params)
    as_it_is, averaged, learned = (
        measure(config, dataclasses.replace(state, **weights), episodes, *train.signal_keys(state))
        for weights in ({}, {"average_params": others}, {"params": others})
    )
    assert as_it_is.reference_q == averaged.reference_q != learned.reference_q
    assert as_it_is.start_q == learned.start_q != averaged.start_q
    assert as_it_is.spread_predicted == learned.spread_predicted != averaged.spread_predicted


def test_adams_second_moments_are_compared_with_its_epsilon(trained):
    _, state, _, _, _, _, last = trained
    v = np.asarray([x for x in jax.tree.leaves(state.optimizer_state) if x.ndim == 1][1], np.float64)
    scale = np.sqrt(v[v > 0] / (1 - 0.999 ** int(state.gradient_steps)))
    assert last["adam_scale"] == pytest.approx(np.median(scale), rel=1e-3)
    assert last["adam_below_eps"] == pytest.approx((scale < 3.125e-4).mean(), abs=1e-3)
    assert last["without_gradient"] == pytest.approx((v == 0).mean(), abs=1e-3)


@pytest.mark.validation
def test_a_time_limit_told_as_death_is_seen_where_values_run_on():
    # Each step pays 1 for ever. Told as death after 4 steps, which nobody can see coming, Q cannot fall to 1 before it.
    settings = dict(total_timesteps=600, eval_freq=600, learning_rate=1e-2, gamma=0.9, signals=True)
    seen = tiny("iqn", TimeLimit(limit=4), **settings).records(jax.random.key(0))[1].signals
    assert (float(seen.limit_reached[-1]), float(seen.limit_deaths[-1])) == (1, 0)
    assert float(seen.truncation_share[-1]) == 1
    with pytest.warns(ConfigWarning, match="bootstrap_truncated=false"):
        ended = tiny("iqn", TimeLimit(limit=4), **settings, bootstrap_truncated=False)
    seen = ended.records(jax.random.key(0))[1].signals
    assert float(seen.limit_deaths[-1]) == 1
    assert float(seen.truncation_share[-1]) == 0
    assert float(seen.limit_error[-1]) > 0.2
