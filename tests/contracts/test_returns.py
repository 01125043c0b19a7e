"""Held-out episodes: what `quantilax.returns.episodes` plays, keeps and sums up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax.errors import ConfigError
from quantilax.returns import calibration, episodes
from tests.conftest import each, tiny

KEY = jax.random.key(1)
GAMMA = 0.9


@pytest.fixture(scope="module")
def agent():
    return tiny("iqn", "probe/geometric", gamma=GAMMA)


@pytest.fixture(scope="module")
def state(agent):
    return agent.init(jax.random.key(0))


@pytest.fixture(scope="module")
def sampled(agent, state):
    return jax.device_get(episodes.sample(agent, state, KEY, 2_000, states=4))


def test_the_episodes_are_those_of_evaluate(agent, state, sampled):
    lengths, returns = agent.evaluate(state, KEY, 2_000)
    assert_array_equal(sampled.lengths, lengths)
    assert_array_equal(sampled.episode_returns, returns)


def test_returns_to_go_are_those_of_the_states_kept(sampled):
    left = sampled.lengths[:, None] - sampled.time
    kept = sampled.weight > 0
    assert_allclose(sampled.returns[kept], ((1 - GAMMA**left) / (1 - GAMMA))[kept], rtol=1e-5)
    assert (sampled.time[:, 0] == 0).all()
    assert (kept.sum(axis=1) == np.minimum(sampled.lengths, 4)).all()
    times = [set(row[there]) for row, there in zip(sampled.time, kept, strict=True)]
    assert [len(row) for row in times] == list(kept.sum(axis=1))  # no state is kept twice


def test_weighted_states_stand_for_all_visited_states(sampled):
    """Each step is the last with probability 0.3. Unweighted, ends would be nearer than they are."""
    left, weight = sampled.lengths[:, None] - sampled.time, sampled.weight
    assert weight.sum() == sampled.lengths.sum()
    near = np.array([(left <= n) for n in (1, 2, 3)])
    truth = 1 - 0.7 ** np.array([1, 2, 3])
    assert_allclose((near * weight).sum(axis=(1, 2)) / weight.sum(), truth, atol=0.02)
    kept = weight > 0
    assert ((near & kept).sum(axis=(1, 2)) / kept.sum() - truth > 0.03).all()


def test_quantiles_are_those_of_the_action_taken(agent, state, sampled):
    taus = jnp.linspace(0.1, 0.9, 5)
    Z = episodes.predicted(agent, state, sampled.obs[:2], sampled.action[:2], taus)
    assert_allclose(Z[1, 2], agent.quantiles(state, sampled.obs[1, 2], taus)[:, 0], rtol=1e-5)


def test_memory_depends_on_the_states_kept_and_not_on_the_length_of_episodes(agent, state):
    """An episode may have 10,000 steps here."""
    given = *agent.arguments(), state, KEY, jnp.int32(episodes.ALL), 64, 4
    program = episodes._sample.__wrapped__.lower(*given).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**20


def test_states_near_a_time_limit_are_left_out_by_their_time_alone():
    agent = tiny("dsac", gamma=0.2)  # the regulator is cut off after 5 steps; 0.2^3 < 1 % < 0.2^2
    found = jax.device_get(episodes.sample(agent, agent.init(jax.random.key(0)), KEY, 8))
    assert found.cut.all()
    assert_array_equal(found.time[found.weight > 0].reshape(8, 3), [[0, 1, 2]] * 8)
    assert_allclose(found.left_out, 2 / 5, rtol=1e-6)


def test_returns_that_are_cut_are_refused_unless_learning_takes_the_limit_for_the_end():
    agent = tiny("dsac")
    state = agent.init(jax.random.key(0))
    with pytest.raises(ConfigError, match="the time limit of 5 steps cuts the returns"):
        episodes.sample(agent, state, KEY, 8)
    found = episodes.sample(agent.replace(bootstrap_truncated=False), state, KEY, 8)
    assert float(found.left_out) == 0
    assert float(found.weight.sum()) == 40


def test_an_algorithm_without_quantiles_is_refused_in_one_line():
    agent = tiny("dqn")
    with pytest.raises(ConfigError, match="dqn learns expected values, no quantiles"):
        episodes.sample(agent, agent.init(jax.random.key(0)), KEY, 8)


QUANTILES = ("c51", "qrdqn", "iqn", "fqf", "pqn", "ppo", "tqc", "dsac", "td3_c51", "d4pg")


@pytest.mark.parametrize("name", each(QUANTILES, ("ppo",)))
def test_every_loop_is_calibrated_with_the_distribution_of_what_its_policy_does(name):
    head = {"head": "quantile", "num_quantiles": 5} if name in ("pqn", "ppo") else {}
    agent = tiny(name, **head).replace(bootstrap_truncated=False)
    state = agent.init(jax.random.key(0))
    found = episodes.sample(agent, state, KEY, 8, states=2)
    taus = jnp.array([0.2, 0.7])
    Z = agent.quantiles(state, found.obs[:, 0], taus)
    taken = Z[..., 0] if Z.shape[-1] == 1 else jax.vmap(lambda Z, a: Z[:, a])(Z, found.action[:, 0])
    assert_allclose(episodes.predicted(agent, state, found.obs, found.action, taus)[:, 0], taken, rtol=1e-4, atol=1e-5)
    assert calibration.calibrate(agent, state, KEY, 8, states=2).raw.u.shape == (8, 2)
