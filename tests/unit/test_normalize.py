"""Running moments compared with NumPy's over all data seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax.learning import normalize
from quantilax.types import Transition


def steps(rng: np.random.Generator, n: int) -> Transition:
    obs = jnp.asarray(rng.normal(100, 3, size=(n, 2)), jnp.float32)
    end = rng.uniform(size=n)
    terminated, truncated = jnp.asarray(end < 0.2), jnp.asarray(end > 0.85)
    reward = jnp.asarray(rng.normal(size=n), jnp.float32)
    return Transition(obs, jnp.zeros(n, jnp.int32), reward, obs, terminated, truncated)


def test_moments_equal_those_of_all_batches_together():
    rng = np.random.default_rng(0)
    normalizer, seen = normalize.init((2,), 5, observations=True, rewards=False), []
    for _ in range(200):
        batch = steps(rng, 5)
        normalizer = normalize.update(normalizer, batch, 0.9)
        seen.append(np.asarray(batch.obs))
    everything = np.concatenate(seen).astype(np.float64)
    assert_allclose(normalizer.observation.mean, everything.mean(axis=0), rtol=1e-6)
    assert_allclose(normalizer.observation.variance, everything.var(axis=0), rtol=1e-4)
    scaled = normalize.observations(normalizer, everything)
    assert_allclose(np.asarray(scaled).mean(axis=0), 0, atol=1e-3)
    assert_allclose(np.asarray(scaled).std(axis=0), 1, rtol=1e-3)


def test_rewards_are_divided_by_the_deviation_of_discounted_returns_within_episodes():
    rng = np.random.default_rng(1)
    normalizer = normalize.init((2,), 3, observations=False, rewards=True)
    running, seen = np.zeros(3), []
    for _ in range(300):
        batch = steps(rng, 3)
        normalizer = normalize.update(normalizer, batch, 0.9)
        running = 0.9 * running + np.asarray(batch.reward)
        seen.append(running.copy())
        running[np.asarray(batch.terminated | batch.truncated)] = 0
    assert_allclose(normalize.rewards(normalizer, jnp.array(2.0)), 2.0 / np.concatenate(seen).std(), rtol=1e-4)


def test_what_is_not_normalised_passes_as_it_is():
    normalizer = normalize.init((2,), 3, observations=False, rewards=False)
    batch = steps(np.random.default_rng(2), 3)
    normalizer = normalize.update(normalizer, batch, 0.9)
    assert_allclose(normalize.transitions(normalizer, batch).obs, batch.obs)
    assert_allclose(normalize.transitions(normalizer, batch).reward, batch.reward)


def test_rewards_are_scaled_by_a_fixed_factor_and_returns_scaled_back():
    rng = np.random.default_rng(3)
    for rewards in (False, True):
        plain, scaled = (
            normalize.init((2,), 3, observations=False, rewards=rewards, reward_scale=x) for x in (1.0, 0.25)
        )
        for _ in range(20):
            batch = steps(rng, 3)
            plain, scaled = (normalize.update(normalizer, batch, 0.9) for normalizer in (plain, scaled))
        reward = jnp.array([2.0, -3.0])
        assert_allclose(normalize.rewards(scaled, reward), normalize.rewards(plain, reward) / 4, rtol=1e-6)
        assert_allclose(normalize.returns(scaled, normalize.rewards(scaled, reward)), reward, rtol=1e-6)
    assert normalize.rewards(normalize.init((2,), 3, False, False), reward).tolist() == [2.0, -3.0]


def test_before_anything_is_seen_observations_pass_unscaled():
    normalizer = normalize.init((2,), 3, observations=True, rewards=True)
    assert_allclose(normalize.observations(normalizer, jnp.array([3.0, -4.0])), [3.0, -4.0], rtol=1e-6)


@pytest.mark.parametrize("reward", [1.0, 0.1, -0.01, 0.3, 0.7, 0.0])
@pytest.mark.parametrize("num_envs", [3, 7, 10, 20])
def test_rewards_that_were_all_the_same_so_far_pass_as_they_are(num_envs, reward):
    normalizer = normalize.init((2,), num_envs, observations=False, rewards=True)
    batch = steps(np.random.default_rng(4), num_envs)._replace(reward=jnp.full(num_envs, reward))
    normalizer = normalize.update(normalizer, batch, 0.99)
    assert_allclose(normalize.rewards(normalizer, jnp.array([1.0, -2.0])), [1.0, -2.0], rtol=1e-6)
    assert_allclose(normalize.returns(normalizer, jnp.array([1.0, -2.0])), [1.0, -2.0], rtol=1e-6)


def test_rewards_come_to_the_same_in_any_unit():
    def normalised(scale):
        rng, normalizer = np.random.default_rng(5), normalize.init((2,), 4, observations=False, rewards=True)
        for _ in range(50):
            batch = steps(rng, 4)
            batch = batch._replace(reward=scale * batch.reward)
            normalizer = normalize.update(normalizer, batch, 0.9)
        return normalize.rewards(normalizer, batch.reward)

    assert_allclose(normalised(1e6), normalised(1.0), rtol=1e-4)
    # Beside the variance of 1 that stands there before anything is seen, the first of 50 rounds is lost in rounding.
    assert_allclose(normalised(1e-6), normalised(1.0), rtol=1 / 50)
