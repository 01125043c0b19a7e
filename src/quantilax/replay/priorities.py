"""Proportional prioritized replay: priorities of the steps in a ring.

    P(i) = p_i^alpha / sum_k p_k^alpha,    w_i = (n P(i))^-beta / max_j w_j

A step that has not been learned from yet has the largest priority so far. That is 1 at least, and
never falls. The priorities that a gradient step computes are written before the next draw, not
right after the step. So each loop body writes first and reads after, as the ring requires.

Source: Schaul, Quan, Antonoglou & Silver (2016), https://arxiv.org/abs/1511.05952, section 3.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from quantilax import pytree
from quantilax.replay import tree
from quantilax.replay.ring import Ring, place, read
from quantilax.replay.tree import Tree
from quantilax.types import NStep

EPSILON = 1e-6
"""Added to each priority, so that no step is left out for ever."""


@pytree.dataclass
class Priorities:
    """p^alpha of each step in a ring, and the values still to be written."""

    weights: Tree = pytree.field(static=False)
    """Position `(i mod T) E + e` is the step of iteration i in environment e.

    The weight is 0 where nothing may be drawn.
    """
    largest: Float[Array, ""]
    """The largest weight so far, 1 at least."""
    iteration: Int[Array, "B"]
    """Of the steps drawn last; -1 before the first draw."""
    env: Int[Array, "B"]
    weight: Float[Array, "B"]
    """p^alpha of the steps drawn last."""


def init(ring: Ring, batch_size: int) -> Priorities:
    """Return the priorities of an empty ring, of which `batch_size` steps are drawn at a time."""
    iterations, num_envs = ring.rows.offset.shape
    return Priorities(
        weights=tree.init(iterations * num_envs),
        largest=jnp.ones(()),
        iteration=jnp.full(batch_size, -1),
        env=jnp.zeros(batch_size, jnp.int32),
        weight=jnp.zeros(batch_size),
    )


def add(priorities: Priorities, ring: Ring) -> Priorities:
    """Update the weights after `ring.add`.

    New steps get the largest priority once they can be drawn. Steps that the ring gave up get 0.
    """
    num_envs = ring.cursor.shape[0]
    env = jnp.arange(num_envs)
    newest = jnp.full(num_envs, ring.iterations - 1)
    ready = newest - (ring.n_step - 1)  # n_step - 1 others follow these now
    # An addition gives up three rows at most.
    gone, env_gone = place(ring, ring.size + jnp.arange(3 * num_envs))
    position = jnp.concatenate(
        [
            _position(ring, newest, env),
            jnp.where(_can_be_drawn(ring, ready, env), _position(ring, ready, env), _nowhere(ring)),
            _position(ring, gone, env_gone),
        ]
    )
    weight = jnp.zeros(position.shape).at[num_envs : 2 * num_envs].set(priorities.largest)
    return replace(priorities, weights=tree.put(priorities.weights, position, weight))


def write(priorities: Priorities, ring: Ring) -> Priorities:
    """Write the priorities of the steps drawn last, as far as these can still be drawn."""
    there = _can_be_drawn(ring, priorities.iteration, priorities.env)
    position = jnp.where(there, _position(ring, priorities.iteration, priorities.env), _nowhere(ring))
    return replace(priorities, weights=tree.put(priorities.weights, position, priorities.weight))


def sample(
    priorities: Priorities,
    ring: Ring,
    key: Key[Array, ""],
    batch_size: int,
    gamma: Float[Array, ""] | float,
    beta: Float[Array, ""] | float,
) -> tuple[NStep, tuple[Int[Array, "B"], Int[Array, "B"]]]:
    """Draw transitions by priority, one from each of `batch_size` equal strata.

    Args:
        beta: 1 makes up for the priorities entirely, 0 not at all.

    Returns:
        The transitions with their weights, and (iteration, env) of each.
    """
    u = (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))) / batch_size
    position = tree.find(priorities.weights, u)
    iterations, num_envs = ring.rows.offset.shape
    newest = ring.iterations - 1
    iteration, env = newest - (newest - position // num_envs) % iterations, position % num_envs
    n = ring.size - (ring.n_step - 1) * num_envs
    chance = tree.weights(priorities.weights, position) / tree.total(priorities.weights)
    weight = (n * chance) ** -beta
    return read(ring, iteration, env, gamma)._replace(weight=weight / weight.max()), (iteration, env)


def remember(
    priorities: Priorities,
    drawn: tuple[Int[Array, "B"], Int[Array, "B"]],
    priority: Float[Array, "B"],
    alpha: Float[Array, ""] | float,
) -> Priorities:
    """Keep the priorities that a gradient step computes for its batch, until `write`.

    Args:
        drawn: (iteration, env) from `sample`.
        priority: 0 or more.
        alpha: 0 makes all steps alike.
    """
    weight = (priority + EPSILON) ** alpha
    largest = jnp.maximum(priorities.largest, weight.max())
    return replace(priorities, iteration=drawn[0], env=drawn[1], weight=weight, largest=largest)


def _position(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"]) -> Int[Array, "B"]:
    """Return the positions of steps in the tree.

    A step before the first, or one that the ring no longer holds, is out of bounds.
    """
    iterations, num_envs = ring.rows.offset.shape
    there = (iteration >= 0) & (iteration >= ring.iterations - iterations)
    return jnp.where(there, iteration % iterations * num_envs + env, _nowhere(ring))


def _can_be_drawn(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"]) -> Array:
    num_envs = ring.cursor.shape[0]
    age = (ring.iterations - 1 - iteration) * num_envs + num_envs - 1 - env
    return (iteration >= 0) & (age < ring.size) & (age >= (ring.n_step - 1) * num_envs)


def _nowhere(ring: Ring) -> int:
    """Return a position that no tree has."""
    iterations, num_envs = ring.rows.offset.shape
    return -(-iterations * num_envs // tree.FANOUT) * tree.FANOUT
