"""Calls of Python from inside a program: one for all environments, with few and small arguments.

JAX takes some 50 us to hand an array to Python, so all that a step needs is one array (`packed`).

An array of 100 KiB or more is copied on a thread of XLA's pool. If all threads of the pool are in
such calls, as the only thread of a process with one core is, the copy never begins and the call
never ends. So arrays are handed over in smaller `pieces`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt32

from quantilax.simulators.bench import Rows

PIECE = 2**16
"""Bytes of a piece."""


def packed(
    handle: UInt32[Array, "N 2"],
    seed: UInt32[Array, "N"],
    clock: Int[Array, "N"],
    digest: UInt32[Array, "N"],
    next_seeds: UInt32[Array, "N"],
    actions: Shaped[Array, "N *action"],
) -> UInt32[Array, "N K"]:
    """Return all that a step of N simulators needs as one array."""
    words = actions.reshape(len(seed), -1)
    words = jax.lax.bitcast_convert_type(words, jnp.uint32) if words.itemsize == 4 else words.astype(jnp.uint32)
    columns = (seed, clock.astype(jnp.uint32), digest, next_seeds)
    return jnp.concatenate([handle, *(column[:, None] for column in columns), words], axis=1)


def unpacked(packed: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Return rows, actions of `dtype` and `shape`, and the seeds of the next episodes."""
    handle, (seed, clock, digest, next_seeds), words = packed[:, :2], packed[:, 2:6].T, packed[:, 6:]
    actions = np.ascontiguousarray(words).view(dtype) if dtype.itemsize == 4 else words.astype(dtype)
    return Rows(handle, seed, clock, digest), actions.reshape(len(packed), *shape), next_seeds


def pieces(array: Array) -> list[Array]:
    """Return an array as arrays of `PIECE` bytes at most."""
    size = PIECE // array.itemsize
    return [array.ravel()[begin : begin + size] for begin in range(0, array.size, size)]


def joined(pieces: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Undo `pieces`."""
    return np.concatenate([np.asarray(piece) for piece in pieces]).reshape(shape)


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of one row from a function of N; `jax.vmap` of it adds rows."""

    @jax.custom_batching.custom_vmap
    def of_rows(*arguments: Any) -> Any:
        return function(*arguments)

    @of_rows.def_vmap
    def _rule(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        first, is_batched = jax.tree.leaves(arguments)[0], jax.tree.leaves(batched)[0]
        rows = first.shape[1 if is_batched else 0]

        def flat(x: Array, is_batched: bool) -> Array:
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(size * rows, *x.shape[2:])

        given = of_rows(*jax.tree.map(flat, arguments, tuple(batched)))
        return jax.tree.map(lambda x: x.reshape(size, rows, *x.shape[1:]), given), jax.tree.map(lambda _: True, given)

    def of_one(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: x[0], of_rows(*jax.tree.map(lambda x: jnp.asarray(x)[None], arguments)))

    return of_one
