"""Exploration: the schedule of epsilon (and of the learning rate), and the epsilon-greedy choice."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

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
