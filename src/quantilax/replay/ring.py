"""A ring of the newest steps, which stores each observation once and reads n-step transitions.

For each environment (in this one, step 7 was truncated):

    rows     iteration                5    6    7    8       row i mod T: action, reward, flags
    slots    5    6    7    8    9    10                     slot s mod L: an observation
             x_5  x_6  x_7  x'_7 x_8  x_9

The successor of a step is in the slot after its observation. `cursor` is the slot of the
observation to act on next. If a step is truncated, its true successor (x'_7) takes a slot of its
own, before the observation after the reset (x_8). The observation in which an episode terminated is
not kept, because nothing bootstraps from it. Slots therefore run ahead of iterations by one per
truncation, and each row says where its observation is.

Observations that join `Box.frames` earlier ones (stacks of pictures) are stored by their newest
part alone. `depth` says how many slots before it belong to the same episode. Reading joins them
again, with zeros before the first.

Adding costs O(E) and sampling O(batch), whatever the capacity, as long as each loop body WRITES
FIRST AND READS AFTER. Otherwise XLA copies the whole ring. See docs/decisions/0002-own-replay.md
and 0012-each-observation-once.md.
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
"""Iterations per anchor.

Each iteration moves the cursor by two slots at most, so a slot minus its anchor fits into a byte.
"""


class Seen(NamedTuple):
    """What a slot stores if there are masks. Without masks it stores just the observation."""

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
    """Slot of the step's observation, minus the anchor of its block of iterations."""


@pytree.dataclass
class Ring:
    """The newest steps of E environments.

    Iterations and slots are counted from the first one on.
    """

    rows: Rows
    observations: PyTree
    """What `seen` returns. Each leaf is (L, E, *obs), of the observation's own dtype."""
    depth: UInt8[Array, "L E"] | None
    """Slots before this one that belong to the same episode, at most `frames` - 1; None if `frames`
    is 1."""
    cursor_depth: UInt8[Array, "E"] | None
    """`depth` of the slot at the cursor."""
    anchors: UInt32[Array, "blocks E"]
    """Slot of the first step of iterations 0 .. 127, 128 .. 255, and so on.

    The newest blocks overwrite the oldest.
    """
    cursor: UInt32[Array, "E"]
    """Slot of the observation to act on next."""
    iterations: Int[Array, ""]
    size: Int[Array, ""]
    """The newest `size` steps have their observations and successors."""
    capacity: int
    """The largest possible `size`."""
    n_step: int
    """The most steps in a sampled transition."""
    frames: int
    """Observations that one observation joins."""


def init(
    example: Transition,
    obs: Observation,
    capacity: int,
    n_step: int = 1,
    legal: Bool[Array, "E A"] | None = None,
    frames: int = 1,
) -> Ring:
    """Return an empty ring.

    Args:
        example: gives the dtypes of a transition and the shape of its action (arrays or
            `jax.ShapeDtypeStruct`).
        obs: the observations to act on first, with leading axis E.
        capacity: steps of all environments together, at least E * n_step. Storage comes in whole
            iterations.
        n_step: the most steps in a sampled transition.
        legal: the actions that may be taken first, if the environment has masks.
        frames: observations that one observation joins along its last axis (`Box.frames`).
    """
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    iterations = -(-capacity // num_envs)  # T
    # Spare slots: one per 32 steps, for truncations, and two more. There must also be enough for n
    # steps that are all truncated, and for the frames before the oldest observation.
    slots = max(iterations + iterations // 32 + 2, 2 * n_step) + frames  # L

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
        observations=jax.tree.map(
            lambda x: jnp.zeros((slots, *x.shape), x.dtype).at[0].set(x), seen(_newest(obs, frames), legal)
        ),
        depth=None if frames == 1 else jnp.zeros((slots, num_envs), jnp.uint8),
        cursor_depth=None if frames == 1 else jnp.zeros(num_envs, jnp.uint8),
        anchors=jnp.zeros((iterations // BLOCK + 2, num_envs), jnp.uint32),
        cursor=jnp.zeros(num_envs, jnp.uint32),
        iterations=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
        capacity=capacity,
        n_step=n_step,
        frames=frames,
    )


def _newest(obs: Observation, frames: int) -> Observation:
    """Return the newest of the observations that one joins."""
    return obs if frames == 1 else obs[..., -(obs.shape[-1] // frames) :]


def add(ring: Ring, transition: Transition, obs: Observation, legal: Bool[Array, "E A"] | None = None) -> Ring:
    """Write one step of each environment over the oldest ones.

    Args:
        transition: leading axis E. Its `obs` must be those last given to the ring to act on.
        obs, legal: the observations to act on next, after automatic resets, and the actions that
            may be taken there.
    """
    (steps, num_envs), slots = ring.rows.offset.shape, jax.tree.leaves(ring.observations)[0].shape[0]
    env = jnp.arange(num_envs)
    cut = transition.truncated & ~transition.terminated

    # An index out of bounds is not written. This skips anchors within a block, and the
    # second slot of a step that was not truncated.
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

    depth, cursor_depth = ring.depth, ring.cursor_depth
    if depth is not None and cursor_depth is not None:
        deeper = jnp.minimum(cursor_depth + 1, ring.frames - 1).astype(jnp.uint8)
        cursor_depth = jnp.where(transition.terminated | transition.truncated, 0, deeper).astype(jnp.uint8)
        depth = write(depth, deeper, cursor_depth)
    ring = replace(
        ring,
        rows=rows,
        observations=jax.tree.map(
            write,
            ring.observations,
            seen(_newest(transition.next_obs, ring.frames), transition.next_legal),
            seen(_newest(obs, ring.frames), legal),
        ),
        depth=depth,
        cursor_depth=cursor_depth,
        anchors=anchors,
        cursor=ring.cursor + 1 + cut,
        iterations=ring.iterations + 1,
        size=jnp.minimum(ring.size + num_envs, ring.capacity),
    )
    # At most two slots per environment were overwritten, so its two oldest steps may have lost
    # their observations. All steps at least as old as the newest of these are given up.
    ages = ring.size - 1 - jnp.arange(2 * num_envs)  # of the oldest steps; the newest has age 0
    iteration, env = place(ring, jnp.maximum(ages, 0))
    lost = ring.cursor[env] - _slot(ring, iteration, env) >= slots - (ring.frames - 1)
    return replace(ring, size=jnp.where(lost, ages, ring.size).min())


def sample(ring: Ring, key: Key[Array, ""], batch_size: int, gamma: Float[Array, ""] | float) -> NStep:
    """Draw `batch_size` transitions uniformly, with replacement.

    They begin at any step that `n_step` - 1 others of its environment follow, so there must be at
    least `n_step` iterations. Rewards are summed and discounted over `n_step` steps, or to the end
    of the episode.
    """
    num_envs = ring.cursor.shape[0]
    age = jax.random.randint(key, (batch_size,), (ring.n_step - 1) * num_envs, ring.size)
    return read(ring, *place(ring, age), gamma)


def read(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"], gamma: Float[Array, ""] | float) -> NStep:
    """Return the transitions that begin at the given steps.

    Each step must be followed by `n_step` - 1 others of its environment.
    """
    steps = ring.rows.offset.shape[0]
    j = jnp.arange(ring.n_step)
    at = (iteration[:, None] + j) % steps, env[:, None]
    reward, terminated, truncated = (x[at] for x in (ring.rows.reward, ring.rows.terminated, ring.rows.truncated))
    # Steps to the first end of an episode, (B,)
    m = jnp.where(terminated | truncated, j + 1, ring.n_step).min(axis=1)
    used = j < m[:, None]  # (B, n); only the last of them can end the episode

    # No step before the last one is truncated, so the successor is m slots ahead.
    slot = _slot(ring, iteration, env)
    first, following = (_stored(ring, at, env) for at in (slot, slot + m.astype(slot.dtype)))
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


def _stored(ring: Ring, slot: UInt32[Array, "B"], env: Int[Array, "B"]) -> PyTree:
    """Return what the slots store, with the frames before each observation."""
    slots = jax.tree.leaves(ring.observations)[0].shape[0]
    found = jax.tree.map(lambda x: x[slot % slots, env], ring.observations)
    if ring.depth is None:
        return found
    back = jnp.arange(ring.frames - 1, 0, -1, dtype=jnp.uint32)  # the oldest first
    there = back <= ring.depth[slot % slots, env][:, None]  # (B, frames - 1)
    at = (slot[:, None] - jnp.where(there, back, 0)) % slots

    def joined(x: Array, newest: Array) -> Array:
        before = x[at, env[:, None]]  # (B, frames - 1, *newest)
        before = jnp.where(there.reshape(*there.shape, *[1] * (before.ndim - 2)), before, 0)
        before = jnp.moveaxis(before, 1, -2).reshape(*newest.shape[:-1], -1)
        return jnp.concatenate([before, newest], axis=-1)

    if isinstance(found, Seen):
        return found._replace(obs=joined(ring.observations.obs, found.obs))
    return joined(ring.observations, found)


def place(ring: Ring, age: Int[Array, "B"]) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Return the iteration and environment of steps, given their age.

    The newest step, that of the last environment, has age 0.
    """
    num_envs = ring.cursor.shape[0]
    return ring.iterations - 1 - age // num_envs, num_envs - 1 - age % num_envs


def _slot(ring: Ring, iteration: Int[Array, "B"], env: Int[Array, "B"]) -> UInt32[Array, "B"]:
    """Return the slot of a step's observation."""
    anchor = ring.anchors[iteration // BLOCK % ring.anchors.shape[0], env]
    return anchor + ring.rows.offset[iteration % ring.rows.offset.shape[0], env]


def compact(ring: Ring) -> Ring:
    """Drop the rows and slots never written, from rings with a leading axis of runs.

    This happens on the host, without copying.
    """
    iterations, slots = int(np.max(ring.iterations)), int(np.max(ring.cursor)) + 1
    return replace(
        ring,
        rows=jax.tree.map(lambda x: np.asarray(x)[:, :iterations], ring.rows),
        observations=jax.tree.map(lambda x: np.asarray(x)[:, :slots], ring.observations),
        depth=jax.tree.map(lambda x: np.asarray(x)[:, :slots], ring.depth),
    )


def expand(ring: Ring, specs: Ring) -> Ring:
    """Undo `compact`, to the shapes of `specs`.

    What was never written is zero, as in `init`.
    """

    def whole(x: np.ndarray, spec: jax.ShapeDtypeStruct) -> np.ndarray:
        zeros = np.zeros(spec.shape, x.dtype)
        zeros[:, : x.shape[1]] = x
        return zeros

    return replace(
        ring,
        rows=jax.tree.map(whole, ring.rows, specs.rows),
        observations=jax.tree.map(whole, ring.observations, specs.observations),
        depth=jax.tree.map(whole, ring.depth, specs.depth),
    )
