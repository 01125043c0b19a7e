"""Normalisation of observations and rewards by running moments.

The replay stores what the environment gave. Normalisation happens on reading, with the moments of
that time.
"""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from quantilax.types import NStep, Observation, Transition

Experience = TypeVar("Experience", Transition, NStep)
EPSILON = 1e-8
ROUNDING = 1e-10
"""A variance below this share of the squared mean is taken for rounding.

It is a thousand times the variance that equal numbers may have in float32.
"""
CLIP = 10.0
"""Standard deviations. A feature that was constant must not enter as thousands when it moves."""


class Moments(NamedTuple):
    """Number, mean and variance of everything seen."""

    number: Int[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


class RewardMoments(NamedTuple):
    """Discounted return so far of each environment's episode, and the moments of these returns."""

    discounted_return: Float[Array, "E"]
    moments: Moments


class Normalizer(NamedTuple):
    """Moments of what is normalised; None for what is not."""

    observation: Moments | None
    reward: RewardMoments | None
    reward_scale: Float[Array, ""]
    """A fixed factor of the rewards, whether they are normalised or not."""


def init(
    shape: tuple[int, ...],
    num_envs: int,
    observations: bool,
    rewards: bool,
    reward_scale: Float[Array, ""] | float = 1.0,
) -> Normalizer:
    """Return a normalizer that has seen nothing. `shape` is that of one observation."""
    return Normalizer(
        init_moments(shape) if observations else None,
        RewardMoments(jnp.zeros(num_envs), init_moments(())) if rewards else None,
        jnp.asarray(reward_scale, jnp.float32),
    )


def advice(normalize_rewards: bool, reward_scale: float) -> list[str]:
    """Return a line on rewards that are scaled twice, with the remedy."""
    if normalize_rewards and reward_scale != 1:
        return [
            f"reward_scale={reward_scale:g} multiplies what normalize_rewards divides: returns are learned {reward_scale:g}"
            " times as large as running moments make them; set reward_scale to 1.0 or normalize_rewards to false"
        ]
    return []


def update(normalizer: Normalizer, transitions: Transition, gamma: Float[Array, ""] | float) -> Normalizer:
    """Add one step of each of E environments."""
    observation, reward, scale = normalizer
    if observation is not None:
        observation = update_moments(observation, transitions.obs)
    if reward is not None:
        reward = update_reward_moments(
            reward, transitions.reward, transitions.terminated | transitions.truncated, gamma
        )
    return Normalizer(observation, reward, scale)


def observations(normalizer: Normalizer, obs: Observation) -> Observation:
    """Return `(obs - mean) / std`, clipped to +-`CLIP`, for any number of leading axes.

    Features that hardly vary, with a std below the root of `EPSILON`, stay small.
    """
    if normalizer.observation is None:
        return obs
    _, mean, variance = normalizer.observation
    return jnp.clip((jnp.asarray(obs, jnp.float32) - mean) / jnp.sqrt(variance + EPSILON), -CLIP, CLIP)


def rewards(normalizer: Normalizer, reward: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return `reward_scale * reward`, divided by the std of the discounted returns if normalised.

    The mean is not subtracted, because shifting rewards changes the task.
    """
    scaled = normalizer.reward_scale * reward
    if normalizer.reward is None:
        return scaled
    return scaled / deviation(normalizer.reward.moments)


def returns(normalizer: Normalizer, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Undo `rewards` on returns that were learned from such rewards."""
    if normalizer.reward is not None:
        z = z * deviation(normalizer.reward.moments)
    return z / normalizer.reward_scale


def deviation(moments: Moments) -> Float[Array, "*shape"]:
    """Return the standard deviation, or 1 if all numbers so far are equal up to rounding.

    They are equal, for example, after a first step that pays the same in every environment.
    """
    differs = moments.variance > ROUNDING * moments.mean**2
    return jnp.sqrt(jnp.where(differs, moments.variance, 1.0))


def transitions(normalizer: Normalizer, batch: Experience) -> Experience:
    """Normalise the observations and the rewards, or sums of rewards, of a batch."""
    return batch._replace(
        obs=observations(normalizer, batch.obs),
        next_obs=observations(normalizer, batch.next_obs),
        reward=rewards(normalizer, batch.reward),
    )


def init_moments(shape: tuple[int, ...]) -> Moments:
    """Return the moments of nothing: mean 0, variance 1."""
    return Moments(jnp.zeros((), jnp.int32), jnp.zeros(shape), jnp.ones(shape))


def update_moments(moments: Moments, batch: Float[Array, "B *shape"]) -> Moments:
    """Add a batch by the pairwise formula of Chan, Golub & LeVeque (1983).

    It is written as a running mean, so that no sum outgrows float32.
    """
    batch = jnp.asarray(batch, jnp.float32)
    number = moments.number + batch.shape[0]
    weight = batch.shape[0] / number
    delta = batch.mean(axis=0) - moments.mean
    spread = batch.var(axis=0) + (1 - weight) * delta**2
    return Moments(number, moments.mean + weight * delta, moments.variance + weight * (spread - moments.variance))


def update_reward_moments(
    state: RewardMoments, reward: Float[Array, "E"], done: Bool[Array, "E"], gamma: Float[Array, ""] | float
) -> RewardMoments:
    """Add one step of each environment. The end of an episode resets its return to 0."""
    discounted_return = gamma * state.discounted_return + reward
    moments = update_moments(state.moments, discounted_return)
    return RewardMoments(jnp.where(done, 0.0, discounted_return), moments)
