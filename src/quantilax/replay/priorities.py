"""Priorities of the steps in a ring: proportional prioritized replay.

    P(i) = p_i^alpha / sum_k p_k^alpha,    w_i = (n P(i))^-beta / max_j w_j

A step that nothing was learned from yet has the largest priority so far, 1 at least: it never falls. What a gradient step
says of the steps it was given is written before the next draw, not after it: so each loop body writes first and reads after,
as the ring's does.

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
"""Added to a priority, so that no step is left out for ever."""


@pytree.dataclass
class Priorities:
    """p^alpha of each step in a ring, and what is still to be written."""

    weights: Tree = pytree.field(static=False)
    """Step of iteration i of environment e at i mod T times E plus e; 0 where nothing may be drawn."""
    largest: Float[Array, ""]
    """The largest so far, 1 at least."""
    iteration: Int[Array, "B"]
    """Of the steps drawn last; -1 before the first draw."""
    env: Int[Array, "B"]
    weight: Float[Array, "B"]
    """p^alpha of these."""


def init(ring: Ring, batch_size: int) -> Priorities:
    """Return the priorities of a ring without steps, of which `batch_size` are drawn at a time."""
    iterations, num_envs = ring.rows.offset.shape
    return Priorities(
        weights=tree.init(iterations * num_envs),
        largest=jnp.ones(()),
        iteration=jnp.full(batch_size, -1),
        env=jnp.zeros(batch_size, jnp.int32),
        weight=jnp.zeros(batch_size),
    )


def add(priorities: Priorities, ring: Ring) -> Priorities:
    """Follow `ring.add`: new steps get the largest priority once they can be drawn, those that the ring gave up get 0."""
    num_envs = ring.cursor.shape[0]
    env = jnp.arange(num_envs)
    newest = jnp.full(num_envs, ring.iterations - 1)
    ready = newest - (ring.n_step - 1)  # now n_step - 1 others follow them
    gone, env_gone = place(ring, ring.size + jnp.arange(3 * num_envs))  # an addition gives up three rows at most
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
    """Write the priorities of the steps drawn last, of those that are still there."""
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
    """Draw transitions by priority, one from each of `batch_size` equal strata: with their weights, and (iteration, env).

    Args:
        beta: 1 makes up for the priorities entirely, 0 not at all.
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
    """Keep what a gradient step says of the steps it was given, for `write`.

    Args:
        drawn: (iteration, env) of `sample`.
        priority: 0 or more.
        alpha: 0 makes all alike.
    """
    weight = (priority + EPSILON) ** alpha
    largest = jnp.maximum(priorities.largest, weight.max())
    return replace(priorities, iteration=drawn[0], env=drawn[1], weight=weight, largest=largest)


def _position(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"]) -> Int[Array, "B"]:
    """Where the tree has a step; nowhere before the first and beyond the ring's rows."""
    iterations, num_envs = ring.rows.offset.shape
    there = (iteration >= 0) & (iteration >= ring.iterations - iterations)
    return jnp.where(there, iteration % iterations * num_envs + env, _nowhere(ring))


def _can_be_drawn(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"]) -> Array:
    num_envs = ring.cursor.shape[0]
    age = (ring.iterations - 1 - iteration) * num_envs + num_envs - 1 - env
    return (iteration >= 0) & (age < ring.size) & (age >= (ring.n_step - 1) * num_envs)


def _nowhere(ring: Ring) -> int:
    """A position that no tree has."""
    iterations, num_envs = ring.rows.offset.shape
    return -(-iterations * num_envs // tree.FANOUT) * tree.FANOUT
