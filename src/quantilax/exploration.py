"""Exploration: the schedule of epsilon (and of the learning rate), the epsilon-greedy choice, and its form that lasts.

Temporally extended epsilon-greedy, ez-greedy: Dabney, Ostrovski & Barreto (2021), https://arxiv.org/abs/2006.01782.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Number = Float[Array, ""] | float


def linear_schedule(start: Number, end: Number, duration: Number, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Go linearly from `start` at step 0 to `end` at step `duration`, and stay there."""
    share = jnp.where(
        duration > 0, jnp.clip(jnp.asarray(step, jnp.float32) / jnp.maximum(duration, 1.0), 0.0, 1.0), 1.0
    )
    way = jnp.asarray(end - start)
    gone = jnp.clip(
        way * share, jnp.minimum(way, 0), jnp.maximum(way, 0)
    )  # else fused with the sum, or not: other low bits
    return start + gone


def epsilon_greedy(key: Key[Array, ""], q: Float[Array, "A"], epsilon: Number) -> Int[Array, ""]:
    """Choose the action of largest value or, with probability `epsilon`, any action with equal chances."""
    explore, action = jax.random.uniform(key, (2,))  # one call of the generator; `action * A` never rounds up to A
    random_action = (action * q.shape[-1]).astype(jnp.int32)
    return jnp.where(explore < epsilon, random_action, jnp.argmax(q, axis=-1).astype(jnp.int32))


class Repeats(NamedTuple):
    """Random actions that go on, one per environment."""

    action: Int[Array, "E"]
    left: Int[Array, "E"]
    """Steps for which it is still to be taken, the coming one included; 0: the greedy action is."""


def no_repeats(num_envs: int) -> Repeats:
    """Nothing has begun."""
    return Repeats(jnp.zeros(num_envs, jnp.int32), jnp.zeros(num_envs, jnp.int32))


def begin_repeats(key: Key[Array, ""], repeats: Repeats, epsilon: Number, num_actions: int, longest: int) -> Repeats:
    """Where none goes on, begin one with probability `epsilon`: any action, for n steps with chances in proportion to n^-2.

    Args:
        key: consumed.
        repeats: before the step.
        epsilon: probability.
        num_actions: each has equal chances.
        longest: the most steps; with 1 it is epsilon-greedy.
    """
    explore, action, duration = jax.random.uniform(key, (3, *repeats.left.shape))
    chances = 1.0 / np.arange(1, longest + 1) ** 2
    below = jnp.asarray(np.cumsum(chances[:-1]) / chances.sum(), jnp.float32)  # P(n <= 1), ..., P(n <= longest - 1)
    n = 1 + jnp.searchsorted(below, duration, side="right").astype(jnp.int32)
    new = Repeats((action * num_actions).astype(jnp.int32), jnp.where(explore < epsilon, n, 0))
    return jax.tree.map(lambda old, new: jnp.where(repeats.left > 0, old, new), repeats, new)


def end_step(repeats: Repeats, done: Bool[Array, "E"]) -> Repeats:
    """One step fewer is left, and none where an episode has ended."""
    return repeats._replace(left=jnp.where(done, 0, jnp.maximum(repeats.left - 1, 0)))


def share_of_repeats(epsilon: Number, longest: int) -> Number:
    """Share of steps that a random action takes, in long episodes at a constant `epsilon`: each begun takes `mean_repeats`."""
    if longest == 1:
        return epsilon
    taken = epsilon * mean_repeats(longest)
    return taken / (taken + 1 - epsilon)


def mean_repeats(longest: int) -> float:
    """Mean of n."""
    n = np.arange(1, longest + 1)
    return float((1 / n).sum() / (1 / n**2).sum())


def advice(eps_start: float, eps_end: float, exploration_fraction: float) -> list[str]:
    """Lines on schedules that never come to an end."""
    if exploration_fraction >= 1 and eps_start > eps_end:
        return [
            f"exploration never ends: epsilon only reaches eps_end={eps_end} at the last step"
            f" (exploration_fraction={exploration_fraction}), so little is learned near the greedy policy;"
            " set exploration_fraction to 0.5 or less"
        ]
    if eps_end > 0.2:
        return [
            f"exploration never ends: epsilon stays at eps_end={eps_end} and the buffer fills with random actions;"
            " set eps_end to 0.05 or less"
        ]
    return []
