"""Signals of SAC, TD3 and PPO: against quantiles, actions and replay of the trained agent, computed on their own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quantilax import Box, signals, train
from quantilax.algorithms import actor_critic, ppo, sac
from quantilax.envs.probes import Corridor, Regulator
from quantilax.learning import rollout
from quantilax.signals import OF_CHOICES
from quantilax.types import NStep
from tests.conftest import tiny
from tests.trees import assert_same_bits

GAMMA, N = 0.9, signals.NUM_FRACTIONS
TAU = (np.arange(N) + 0.5) / N


class Lopsided(Regulator):
    """Bounds that are not -1 and 1, so that actions have to be scaled."""

    action_space = Box((1,), low=-3.0, high=1.0)


class Measured:
    """A trained agent, its reference batch and the signals of its last evaluation."""

    def __init__(self, name, env, **changes):
        self.agent = tiny(name, env, signals=True, gamma=GAMMA, head="quantile", num_quantiles=N, **changes)
        self.state, record = self.agent.records(jax.random.key(1))
        reference_key, _ = train.signal_keys(self.state)
        self.R = jax.device_get(signals.reference(env, jax.random.split(reference_key)[0]))
        last = record.signals._asdict().items()
        self.last = {name: None if x is None else float(x[-1]) for name, x in last}

    def quantiles(self, obs, params=None):
        params = self.state.params if params is None else params
        return np.asarray(self.agent.quantiles(replace(self.state, average_params=params), obs, TAU))[..., 0]

    def episodes(self):
        algorithm, env, config = self.agent.arguments()
        key = jax.random.fold_in(self.state.evaluation_key, self.state.env_steps)
        policy = algorithm.policy(env, config, self.state)
        return rollout.watch(env, policy, key, config.eval_episodes, GAMMA)

    def expect(self, **expected):
        assert {name: self.last[name] for name in expected} == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.fixture(scope="module")
def soft():
    return Measured("sac", Lopsided())


@pytest.fixture(scope="module", params=["td3"])
def deterministic(request):
    return Measured(request.param, Lopsided(), num_critics=1)


@pytest.fixture(scope="module")
def on_policy():
    return Measured("ppo", Corridor(cells=3))


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def test_values_of_sac_are_means_over_critics_for_the_greedy_action(soft):
    Z = soft.quantiles(soft.R.obs)
    target = soft.state.params | soft.state.target_params
    q, q_target = Z.mean(axis=1), soft.quantiles(soft.R.obs, target).mean(axis=1)
    soft.expect(
        reference_q=q.mean(),
        reference_q_target=q_target.mean(),
        target_lag=np.abs(q - q_target).mean() / rms(q),
        crossing=(np.diff(Z, axis=1) < 0).mean(),
    )
    assert all(soft.last[name] is None for name in OF_CHOICES)


def test_the_error_of_sac_on_the_reference_batch_is_to_its_target_with_the_entropy(soft):
    state, config, R = soft.state, soft.agent.config, soft.R
    a, log_pi = sac.actions(state, state.params["actor"], R.next_obs, jax.random.key(0))
    batch = NStep(*R[:6], steps=np.ones(len(R.reward), np.int32))
    bonus = -jnp.exp(state.params["log_alpha"]) * log_pi
    y = np.asarray(actor_critic.targets(config, state, batch, a, bonus, None)).mean(axis=1)
    scaled = (R.action + 3) / 2 - 1
    Z = actor_critic.predictions(state.network.critic, state.params["critic"], config, R.obs, scaled, None)
    taken = np.asarray(Z.Y).mean(axis=(0, 2))
    soft.expect(reference_error=np.abs(y - taken).mean() / rms(soft.quantiles(R.obs).mean(axis=1)))


def test_exploration_is_how_far_actions_are_from_the_greedy_ones_in_half_widths(soft):
    actor = nnx.merge(soft.state.network.actor, soft.state.params["actor"])
    mu, log_sigma = np.asarray(jax.vmap(actor)(soft.R.obs)).transpose(1, 0, 2)
    e = np.random.default_rng(0).normal(size=(400, *mu.shape))
    distance = np.abs(np.tanh(mu + np.exp(np.clip(log_sigma, -20, 2)) * e) - np.tanh(mu)).mean()
    assert soft.last["exploration"] == pytest.approx(distance, abs=0.02)


def test_the_entropy_of_real_valued_actions_is_that_of_ten_bins(soft):
    rows = jax.device_get(soft.state.replay.rows)
    there = np.arange(len(rows.reward)) < int(soft.state.replay.iterations)
    share = np.histogram(rows.action[there], bins=10, range=(-3, 1))[0] / rows.action[there].size
    share = share[share > 0]
    batch, _ = soft.agent.algorithm.signals.draw(soft.agent.config, soft.state, jax.random.key(0), 2_000)
    mu = np.asarray(jax.vmap(nnx.merge(soft.state.network.actor, soft.state.params["actor"]))(batch.obs))[:, 0]
    distance = np.abs(batch.action - np.tanh(mu)).mean()
    assert soft.last["off_policy"] == pytest.approx(distance, abs=0.07)  # of a batch of 512
    soft.expect(action_entropy=-(share * np.log(share)).sum() / np.log(10), replay_episodes=rows.truncated[there].sum())


@pytest.mark.validation
def test_td3_is_measured_by_its_policy_with_a_target_actor(deterministic):
    d, R = deterministic, deterministic.R
    q = d.quantiles(R.obs).mean(axis=1)
    q_target = d.quantiles(R.obs, d.state.params | d.state.target_params).mean(axis=1)
    episodes = d.episodes()
    G = np.asarray(episodes.discounted) + GAMMA ** np.asarray(episodes.lengths) * d.quantiles(
        episodes.last.next_obs, d.state.average_params
    ).mean(axis=1)
    start = d.quantiles(episodes.first.obs, d.state.average_params)
    d.expect(
        reference_q=q.mean(),
        target_lag=np.abs(q - q_target).mean() / rms(q),
        start_q=start.mean(),
        start_return=G.mean(),
        bias=(start.mean(axis=1) - G).mean() / rms(G),
        calibration=np.abs((G[:, None] <= start).mean(axis=0) - TAU).mean(),
    )
    noise = np.abs(np.random.default_rng(0).normal(size=10_000)).mean() * d.agent.config.exploration_noise
    assert d.last["exploration"] == pytest.approx(noise, abs=0.01)  # hardly any action comes to a bound


@pytest.mark.validation
def test_ppo_is_measured_on_a_rollout_by_its_value_of_states(on_policy):
    p = on_policy
    start = p.quantiles(p.episodes().first.obs, p.state.average_params)
    p.expect(reference_q=p.quantiles(p.R.obs).mean(), start_q=start.mean())
    network = nnx.merge(p.state.network, p.state.params)
    log_p = np.asarray(jax.vmap(lambda x: network.pi(x, None, None).log_p)(p.R.obs))
    assert p.last["exploration"] == pytest.approx(1 - np.exp(log_p).max(axis=1).mean(), abs=0.03)
    assert 0 < p.last["action_entropy"] <= 1
    absent = {*OF_CHOICES, *ppo.SIGNALS.without, "reference_q_target", "target_lag", "replay_episodes"}
    assert {name for name, x in p.last.items() if x is None} == absent


@pytest.mark.validation
@pytest.mark.parametrize("head", ["scalar", "categorical", "hl_gauss", "implicit_quantile", "proposed"])
@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_signals_are_finite_with_every_head_and_change_no_bit_of_training(name, head):
    """Returns are the same up to rounding: without signals another program adds their rewards up."""
    settings = dict(head=head, num_atoms=7, v_min=-2.0, v_max=2.0, num_fractions=4, num_cosines=8, prioritized=True)
    if name == "ppo":
        del settings["prioritized"]
    state, record = tiny(name, Lopsided(), signals=True, **settings).records(jax.random.key(0))
    for signal in ("gradient_noise", "clip_factor", "update_ratio", "overshoot", "replay_error", "bias", "dormant"):
        assert np.isfinite(np.asarray(getattr(record.signals, signal))).all(), signal
    other, without = tiny(name, Lopsided(), **settings).records(jax.random.key(0))
    assert_same_bits((state, record.metrics), (other, without.metrics))
    np.testing.assert_allclose(record.returns, without.returns, rtol=1e-6)
