"""A ring buffer over any pytree of transitions: the newest rows replace the oldest.

Adding costs O(rows added) and sampling O(batch), whatever the capacity, as long as each loop body WRITES FIRST AND READS
AFTER: otherwise XLA copies the whole buffer (see docs/decisions/0002-own-replay.md).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from quantilax import pytree


@pytree.dataclass
class Ring:
    """Rows 0 .. size - 1 are filled; the next one is written at `position`."""

    rows: PyTree
    """Each leaf (capacity, *shape), of the transition's own dtype."""
    position: Int[Array, ""]
    size: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """How many rows it can hold."""
        return jax.tree.leaves(self.rows)[0].shape[0]


def init(example: PyTree, capacity: int) -> Ring:
    """Return an empty ring for rows of the example's shapes and dtypes (arrays or `jax.ShapeDtypeStruct`)."""
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Ring(rows=rows, position=jnp.zeros((), jnp.int32), size=jnp.zeros((), jnp.int32))


def add(ring: Ring, batch: PyTree) -> Ring:
    """Write a batch (leading axis n <= capacity) over the oldest rows."""
    n = jax.tree.leaves(batch)[0].shape[0]
    index = (ring.position + jnp.arange(n)) % ring.capacity
    rows = jax.tree.map(lambda r, b: r.at[index].set(b, unique_indices=True), ring.rows, batch)
    return Ring(
        rows=rows,
        position=(ring.position + n) % ring.capacity,
        size=jnp.minimum(ring.size + n, ring.capacity),
    )


def sample(ring: Ring, key: Key[Array, ""], batch_size: int) -> PyTree:
    """Draw `batch_size` filled rows with replacement, each with equal chances."""
    index = jax.random.randint(key, (batch_size,), 0, ring.size)
    return jax.tree.map(lambda r: r[index], ring.rows)


def compact(ring: Ring) -> Ring:
    """Leave out the rows never written, of rings with a leading axis of runs, all filled alike; on the host, no copy."""
    filled = int(np.max(ring.size))
    return replace(ring, rows=jax.tree.map(lambda rows: np.asarray(rows)[:, :filled], ring.rows))


def expand(ring: Ring, capacity: int) -> Ring:
    """Undo `compact`: rows never written are zeros, as `init` makes them."""

    def one(rows: np.ndarray) -> np.ndarray:
        whole = np.zeros((rows.shape[0], capacity, *rows.shape[2:]), rows.dtype)
        whole[:, : rows.shape[1]] = rows
        return whole

    return replace(ring, rows=jax.tree.map(one, ring.rows))
