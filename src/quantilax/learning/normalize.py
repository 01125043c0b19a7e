"""Normalisation of observations and rewards by running moments.

Replay holds what the environment gave; normalisation happens on reading, with the moments of the moment.
"""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from quantilax.types import NStep, Observation, Transition

Experience = TypeVar("Experience", Transition, NStep)
EPSILON = 1e-8
ROUNDING = 1e-10
"""Of the square of a mean: what the variance of equal numbers may come to in float32, and a thousand times more."""
CLIP = 10.0
"""Standard deviations: a feature constant so far must not enter as thousands when it moves."""


class Moments(NamedTuple):
    """Number, mean and variance of all that was seen."""

    number: Int[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


class RewardMoments(NamedTuple):
    """Discounted return so far of each environment's episode, and the moments of all of those."""

    discounted_return: Float[Array, "E"]
    moments: Moments


class Normalizer(NamedTuple):
    """Moments of what is normalised; None where it is not."""

    observation: Moments | None
    reward: RewardMoments | None
    reward_scale: Float[Array, ""]
    """Fixed; rewards are multiplied by it, whether they are normalised or not."""


def init(
    shape: tuple[int, ...],
    num_envs: int,
    observations: bool,
    rewards: bool,
    reward_scale: Float[Array, ""] | float = 1.0,
) -> Normalizer:
    """Nothing seen yet; `shape` is that of one observation."""
    return Normalizer(
        init_moments(shape) if observations else None,
        RewardMoments(jnp.zeros(num_envs), init_moments(())) if rewards else None,
        jnp.asarray(reward_scale, jnp.float32),
    )


def advice(normalize_rewards: bool, reward_scale: float) -> list[str]:
    """Lines on rewards that are scaled twice."""
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
    """`(obs - mean) / std`, no further than `CLIP` from 0, for any number of leading axes.

    What hardly varies, with a std below the root of `EPSILON`, stays small.
    """
    if normalizer.observation is None:
        return obs
    _, mean, variance = normalizer.observation
    return jnp.clip((jnp.asarray(obs, jnp.float32) - mean) / jnp.sqrt(variance + EPSILON), -CLIP, CLIP)


def rewards(normalizer: Normalizer, reward: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """`reward_scale * reward`, over the std of the discounted returns; their mean stays: shifting rewards changes the task."""
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
    """Standard deviation; 1 where all was the same so far, to rounding, as after a first step that pays alike everywhere."""
    differs = moments.variance > ROUNDING * moments.mean**2
    return jnp.sqrt(jnp.where(differs, moments.variance, 1.0))


def transitions(normalizer: Normalizer, batch: Experience) -> Experience:
    """Normalise a batch's observations and rewards, or sums of rewards."""
    return batch._replace(
        obs=observations(normalizer, batch.obs),
        next_obs=observations(normalizer, batch.next_obs),
        reward=rewards(normalizer, batch.reward),
    )


def init_moments(shape: tuple[int, ...]) -> Moments:
    """Nothing seen yet: mean 0, variance 1."""
    return Moments(jnp.zeros((), jnp.int32), jnp.zeros(shape), jnp.ones(shape))


def update_moments(moments: Moments, batch: Float[Array, "B *shape"]) -> Moments:
    """Add a batch, by the pairwise formula of Chan, Golub & LeVeque (1983) as a running mean: no sum outgrows float32."""
    batch = jnp.asarray(batch, jnp.float32)
    number = moments.number + batch.shape[0]
    weight = batch.shape[0] / number
    delta = batch.mean(axis=0) - moments.mean
    spread = batch.var(axis=0) + (1 - weight) * delta**2
    return Moments(number, moments.mean + weight * delta, moments.variance + weight * (spread - moments.variance))


def update_reward_moments(
    state: RewardMoments, reward: Float[Array, "E"], done: Bool[Array, "E"], gamma: Float[Array, ""] | float
) -> RewardMoments:
    """Add one step of each environment; the end of an episode starts its return anew."""
    discounted_return = gamma * state.discounted_return + reward
    moments = update_moments(state.moments, discounted_return)
    return RewardMoments(jnp.where(done, 0.0, discounted_return), moments)
