"""A ring of the newest steps that stores each observation once and reads transitions of n steps.

For each environment (here its step 7 was cut off):

    rows     iteration                5    6    7    8         row i mod T: action, reward, terminated, truncated
    slots    5    6    7    8    9    10                       slot s mod L: an observation
             x_5  x_6  x_7  x'_7 x_8  x_9

A step's successor lies in the slot after its observation; `cursor` is the slot of the observation to act on next. The
true successor of a step that was cut off (x'_7) takes a slot of its own, before the observation after the reset (x_8); the
observation in which an episode terminated is never bootstrapped from, and not kept. So slots run ahead of iterations by one
per cut, and a row says where its observation lies.

Adding costs O(E) and sampling O(batch), whatever the capacity, as long as each loop body WRITES FIRST AND READS AFTER:
otherwise XLA copies the whole ring. See docs/decisions/0002-own-replay.md and 0012-each-observation-once.md.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt8, UInt32

from quantilax import pytree
from quantilax.types import NStep, Observation, Transition

BLOCK = 128
"""Iterations with one anchor: each moves the cursor by two slots at most, so that a slot less its anchor fits into a byte."""


class Seen(NamedTuple):
    """What is stored in a slot where there are masks; else the observation by itself."""

    obs: Observation
    legal: Bool[Array, "*batch A"]
    """The actions that may be taken there."""


def seen(obs: Observation, legal: Bool[Array, "*batch A"] | None) -> PyTree:
    """Return what a slot stores."""
    return obs if legal is None else Seen(obs, legal)


class Rows(NamedTuple):
    """What is stored of a step besides its observation."""

    action: Shaped[Array, "T E *action"]
    reward: Float[Array, "T E"]
    terminated: Bool[Array, "T E"]
    truncated: Bool[Array, "T E"]
    offset: UInt8[Array, "T E"]
    """Slot of the step's observation, less the anchor of its block of iterations."""


@pytree.dataclass
class Ring:
    """The newest steps of E environments; iterations and slots are counted from the first one on."""

    rows: Rows
    observations: PyTree
    """What `seen` makes of observations; each leaf (L, E, *obs), of the observation's own dtype."""
    anchors: UInt32[Array, "blocks E"]
    """Slot of the first step of iterations 0 .. 127, 128 .. 255, ..., the newest blocks over the oldest."""
    cursor: UInt32[Array, "E"]
    """Slot of the observation to act on next."""
    iterations: Int[Array, ""]
    size: Int[Array, ""]
    """The newest `size` steps have their observations and successors."""
    capacity: int
    """The most that `size` can be."""
    n_step: int
    """The most steps in a sampled transition."""


def init(
    example: Transition,
    obs: Observation,
    capacity: int,
    n_step: int = 1,
    legal: Bool[Array, "E A"] | None = None,
) -> Ring:
    """Return a ring without steps.

    Args:
        example: dtypes of a transition, and the shape of its action (arrays or `jax.ShapeDtypeStruct`).
        obs: the observations to act on first, leading axis E.
        capacity: steps of all environments together, E * n_step or more; the storage is in whole iterations.
        n_step: the most steps in a sampled transition.
        legal: the actions that may be taken first, of an environment with masks.
    """
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    iterations = -(-capacity // num_envs)  # T
    # To spare: a slot for one cut in 32 steps and two more; and enough for n steps that are cut off each.
    slots = max(iterations + iterations // 32 + 2, 2 * n_step) + 1  # L

    def zeros(dtype: jnp.dtype, *shape: int) -> Array:
        return jnp.zeros((iterations, num_envs, *shape), dtype)

    return Ring(
        rows=Rows(
            action=zeros(example.action.dtype, *example.action.shape),
            reward=zeros(example.reward.dtype),
            terminated=zeros(example.terminated.dtype),
            truncated=zeros(example.truncated.dtype),
            offset=zeros(jnp.uint8),
        ),
        observations=jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype).at[0].set(x), seen(obs, legal)),
        anchors=jnp.zeros((iterations // BLOCK + 2, num_envs), jnp.uint32),
        cursor=jnp.zeros(num_envs, jnp.uint32),
        iterations=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
        capacity=capacity,
        n_step=n_step,
    )


def add(ring: Ring, transition: Transition, obs: Observation, legal: Bool[Array, "E A"] | None = None) -> Ring:
    """Write one step of each environment over the oldest ones.

    Args:
        transition: leading axis E; its `obs` are those that the ring was last given to act on.
        obs, legal: the observations to act on next, after automatic resets, and the actions that may be taken there.
    """
    (steps, num_envs), slots = ring.rows.offset.shape, jax.tree.leaves(ring.observations)[0].shape[0]
    env = jnp.arange(num_envs)
    cut = transition.truncated & ~transition.terminated

    # An index out of bounds is not written: an anchor within a block, a second slot without a cut.
    blocks = ring.anchors.shape[0]
    block = ring.iterations // BLOCK % blocks
    begins = jnp.where(ring.iterations % BLOCK == 0, block, blocks)
    anchors = ring.anchors.at[jnp.full(num_envs, begins), env].set(ring.cursor, mode="drop", unique_indices=True)

    row = jnp.full(num_envs, ring.iterations % steps)
    written = Rows(
        action=transition.action,
        reward=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
        offset=(ring.cursor - anchors[block]).astype(jnp.uint8),
    )
    rows = jax.tree.map(lambda x, new: x.at[row, env].set(new, unique_indices=True), ring.rows, written)

    slot = jnp.stack([(ring.cursor + 1) % slots, jnp.where(cut, (ring.cursor + 2) % slots, slots)])  # (2, E)

    def write(x: Array, successor: Array, following: Array) -> Array:
        first = jnp.where(cut.reshape(-1, *[1] * (following.ndim - 1)), successor, following)
        return x.at[slot, env].set(jnp.stack([first, following]), mode="drop", unique_indices=True)

    ring = replace(
        ring,
        rows=rows,
        observations=jax.tree.map(
            write, ring.observations, seen(transition.next_obs, transition.next_legal), seen(obs, legal)
        ),
        anchors=anchors,
        cursor=ring.cursor + 1 + cut,
        iterations=ring.iterations + 1,
        size=jnp.minimum(ring.size + num_envs, ring.capacity),
    )
    # Two slots at most were overwritten per environment: its oldest two steps may have lost their observations, and all that
    # are as old as the newest that did are given up.
    ages = ring.size - 1 - jnp.arange(2 * num_envs)  # of the oldest; the newest step has age 0
    iteration, env = place(ring, jnp.maximum(ages, 0))
    lost = ring.cursor[env] - _slot(ring, iteration, env) >= slots
    return replace(ring, size=jnp.where(lost, ages, ring.size).min())


def sample(ring: Ring, key: Key[Array, ""], batch_size: int, gamma: Float[Array, ""] | float) -> NStep:
    """Draw `batch_size` transitions with replacement, from all steps that `n_step` - 1 others of the environment follow.

    Each has equal chances. Rewards are summed and discounted over `n_step` steps, or to the end of the episode. There must be
    `n_step` iterations or more.
    """
    num_envs = ring.cursor.shape[0]
    age = jax.random.randint(key, (batch_size,), (ring.n_step - 1) * num_envs, ring.size)
    return read(ring, *place(ring, age), gamma)


def read(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"], gamma: Float[Array, ""] | float) -> NStep:
    """Return the transitions that begin at steps, each of which `n_step` - 1 others of its environment follow."""
    steps = ring.rows.offset.shape[0]
    slots = jax.tree.leaves(ring.observations)[0].shape[0]
    j = jnp.arange(ring.n_step)
    at = (iteration[:, None] + j) % steps, env[:, None]
    reward, terminated, truncated = (x[at] for x in (ring.rows.reward, ring.rows.terminated, ring.rows.truncated))
    m = jnp.where(terminated | truncated, j + 1, ring.n_step).min(axis=1)  # steps to the first end, (B,)
    used = j < m[:, None]  # (B, n); an end among them is that of the last

    slot = _slot(ring, iteration, env)  # no step before the last one is cut off: the successor lies m slots on
    first, following = (
        jax.tree.map(lambda x, at=at: x[at % slots, env], ring.observations)
        for at in (slot, slot + m.astype(slot.dtype))
    )
    (obs, legal), (next_obs, next_legal) = (x if isinstance(x, Seen) else (x, None) for x in (first, following))
    return NStep(
        obs=obs,
        action=ring.rows.action[iteration % steps, env],
        reward=jnp.where(used, gamma**j * reward, 0).sum(axis=1),
        next_obs=next_obs,
        terminated=(terminated & used).any(axis=1),
        truncated=(truncated & used).any(axis=1),
        steps=m,
        legal=legal,
        next_legal=next_legal,
    )


def place(ring: Ring, age: Int[Array, "B"]) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Iteration and environment of a step; the newest, of the last environment, has age 0."""
    num_envs = ring.cursor.shape[0]
    return ring.iterations - 1 - age // num_envs, num_envs - 1 - age % num_envs


def _slot(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"]) -> UInt32[Array, "B"]:
    """Slot of a step's observation."""
    anchor = ring.anchors[iteration // BLOCK % ring.anchors.shape[0], env]
    return anchor + ring.rows.offset[iteration % ring.rows.offset.shape[0], env]


def compact(ring: Ring) -> Ring:
    """Leave out the rows and slots never written, of rings with a leading axis of runs; on the host, no copy."""
    iterations, slots = int(np.max(ring.iterations)), int(np.max(ring.cursor)) + 1
    return replace(
        ring,
        rows=jax.tree.map(lambda x: np.asarray(x)[:, :iterations], ring.rows),
        observations=jax.tree.map(lambda x: np.asarray(x)[:, :slots], ring.observations),
    )


def expand(ring: Ring, specs: Ring) -> Ring:
    """Undo `compact`, to the shapes of `specs`: what was never written is zero, as `init` makes it."""

    def whole(x: np.ndarray, spec: jax.ShapeDtypeStruct) -> np.ndarray:
        zeros = np.zeros(spec.shape, x.dtype)
        zeros[:, : x.shape[1]] = x
        return zeros

    return replace(
        ring,
        rows=jax.tree.map(whole, ring.rows, specs.rows),
        observations=jax.tree.map(whole, ring.observations, specs.observations),
    )
