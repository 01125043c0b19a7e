"""Exploration: schedules, epsilon-greedy actions, and random actions that last several steps.

The linear schedule serves both epsilon and the learning rate. Random actions that last are
temporally extended epsilon-greedy (ez-greedy): Dabney, Ostrovski & Barreto (2021),
https://arxiv.org/abs/2006.01782.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from quantilax.types import Action, Carry, Legal, Observation, Policy

Number = Float[Array, ""] | float


def linear_schedule(start: Number, end: Number, duration: Number, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Go linearly from `start` at step 0 to `end` at step `duration`, and stay there."""
    share = jnp.where(
        duration > 0, jnp.clip(jnp.asarray(step, jnp.float32) / jnp.maximum(duration, 1.0), 0.0, 1.0), 1.0
    )
    way = jnp.asarray(end - start)
    # Without the clip XLA may or may not fuse the product with the sum, which changes the low bits.
    gone = jnp.clip(way * share, jnp.minimum(way, 0), jnp.maximum(way, 0))
    return start + gone


def masked(q: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"] | None) -> Float[Array, "*batch A"]:
    """Return values of actions, with -inf for illegal ones.

    If no action is legal, all values stay. The mask after an episode's end may be like that.
    """
    return q if legal is None else jnp.where(legal | ~legal.any(axis=-1, keepdims=True), q, -jnp.inf)


def legal_action(u: Float[Array, ""], legal: Bool[Array, "A"]) -> Int[Array, ""]:
    """Return the legal action at the share u of all legal ones, 0 <= u < 1."""
    number = legal.sum()
    place = jnp.minimum((u * number).astype(jnp.int32), number - 1)
    return jnp.argmax(jnp.cumsum(legal) > place).astype(jnp.int32)


def epsilon_greedy(key: Key[Array, ""], q: Float[Array, "A"], epsilon: Number, legal: Legal = None) -> Int[Array, ""]:
    """Return the legal action of largest value or, with probability `epsilon`, a random one.

    All legal actions have equal chances then.
    """
    # One call of the generator for both. `action * A` never rounds up to A.
    explore, action = jax.random.uniform(key, (2,))
    any_action = (action * q.shape[-1]).astype(jnp.int32) if legal is None else legal_action(action, legal)
    return jnp.where(explore < epsilon, any_action, jnp.argmax(masked(q, legal), axis=-1).astype(jnp.int32))


class Repeats(NamedTuple):
    """A random action that repeats, with the leading axis E of environments."""

    action: Int[Array, "E"]
    left: Int[Array, "E"]
    """Steps for which it is still taken, including the next one; 0: the greedy action is taken."""


def begin_repeats(
    repeats: Repeats,
    key: Key[Array, ""],
    epsilon: Number,
    num_actions: int,
    longest: int,
    legal: Bool[Array, "E A"] | None = None,
) -> Repeats:
    """Begin a random action with probability `epsilon` in each environment where none goes on.

    It lasts n steps, with probability proportional to n^-2.

    Args:
        repeats: before the step. An action that is no longer legal does not go on.
        key: consumed.
        epsilon: the probability that a random action begins.
        num_actions: each has equal chances.
        longest: the most steps; with 1 it is epsilon-greedy.
        legal: masks of the actions that may be taken.
    """
    explore, action, duration = jax.random.uniform(key, (3, *repeats.left.shape))
    chances = 1.0 / np.arange(1, longest + 1) ** 2
    # P(n <= 1), ..., P(n <= longest - 1)
    below = jnp.asarray(np.cumsum(chances[:-1]) / chances.sum(), jnp.float32)
    n = 1 + jnp.searchsorted(below, duration, side="right").astype(jnp.int32)
    goes_on = repeats.left > 0
    if legal is None:
        any_action = (action * num_actions).astype(jnp.int32)
    else:
        any_action = jax.vmap(legal_action)(action, legal)
        goes_on &= jnp.take_along_axis(legal, repeats.action[:, None], axis=1)[:, 0]
    new = Repeats(any_action, jnp.where(explore < epsilon, n, 0))
    return jax.tree.map(lambda old, new: jnp.where(goes_on, old, new), repeats, new)


def repeating(policy: Policy, epsilon: Number, num_actions: int, longest: int) -> Policy:
    """Return the policy with random actions that repeat.

    The carry holds the random action, so the policy forgets it when the episode ends.

    Args:
        policy: acts when no random action goes on; it must not explore by itself.
        epsilon, num_actions, longest: as in `begin_repeats`.
    """

    def before(carry: Carry, key: Key[Array, ""], legal: Bool[Array, "E A"] | None) -> Carry:
        return begin_repeats(carry[0], key, epsilon, num_actions, longest, legal), carry[1]

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        repeats, inner = carry
        action, inner = policy.act(obs, inner, key, legal)
        left = jnp.maximum(repeats.left - 1, 0)
        return jnp.where(repeats.left > 0, repeats.action, action), (repeats._replace(left=left), inner)

    nothing = jnp.zeros((), jnp.int32)
    return Policy(act, (Repeats(nothing, nothing), policy.carry), before)


def share_of_repeats(epsilon: Number, longest: int) -> Number:
    """Return the share of steps on which random actions are taken.

    This holds for long episodes at a constant `epsilon`: each random action takes `mean_repeats`
    steps.
    """
    if longest == 1:
        return epsilon
    taken = epsilon * mean_repeats(longest)
    return taken / (taken + 1 - epsilon)


def mean_repeats(longest: int) -> float:
    """Return the mean of n."""
    n = np.arange(1, longest + 1)
    return float((1 / n).sum() / (1 / n**2).sum())


def advice(eps_start: float, eps_end: float, exploration_fraction: float) -> list[str]:
    """Return lines on schedules that never end, each with the remedy."""
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
