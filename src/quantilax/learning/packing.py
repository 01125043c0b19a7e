"""Optimisers on fewer, larger arrays: the small arrays of a network become one vector.

On a CPU, XLA pays per operation in the body of a loop, and a network has ten arrays or more, most
of them small. Packing them into one vector saves operations. Large arrays stay separate because
they gain nothing, and building a vector that contains one can take fifty times as long as the rest
of the gradient step: see docs/decisions/0022-large-arrays-by-themselves.md.
"""

from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

PACKED = 3 * 2**14
"""Most elements in the vector, somewhat fewer than XLA splits over several threads."""


def packed(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `inner` made to see the small arrays as one vector, or all arrays if they fit into it.

    The arithmetic of each element is the same, and so is a norm over all arrays. `inner` must treat
    all arrays alike.
    """

    def init(params: PyTree) -> Any:
        return inner.init(pack(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        packed_params = None if params is None else pack(params)
        changed, state = inner.update(pack(updates), state, packed_params)
        return unpack(changed, updates), state

    return optax.GradientTransformation(init, update)


def pack(tree: PyTree) -> PyTree:
    """Return `(vector, large)`: the small arrays side by side, and a list of the others.

    Without large arrays, return the vector alone.
    """
    leaves = jax.tree.leaves(tree)
    small = _small(leaves)
    parts = [jnp.ravel(x) for x, is_small in zip(leaves, small, strict=True) if is_small]
    vector = jnp.concatenate(parts) if parts else jnp.zeros(0)
    large = [x for x, is_small in zip(leaves, small, strict=True) if not is_small]
    return (vector, large) if large else vector


def unpack(arrays: PyTree, like: PyTree) -> PyTree:
    """Undo `pack`: return the arrays as a tree like `like`."""
    leaves, structure = jax.tree.flatten(like)
    vector, large = arrays if isinstance(arrays, tuple) else (arrays, [])
    small, rest = _small(leaves), iter(large)
    ends = accumulate((x.size for x, is_small in zip(leaves, small, strict=True) if is_small), initial=0)
    parts = iter([vector[start:end] for start, end in pairwise(ends)])
    return jax.tree.unflatten(
        structure, [next(parts).reshape(x.shape) if s else next(rest) for x, s in zip(leaves, small, strict=True)]
    )


def _small(leaves: list[Array]) -> list[bool]:
    """Return for each array whether it goes into the vector: the smallest first, while they fit."""
    small = [False] * len(leaves)
    room = PACKED
    for i in sorted(range(len(leaves)), key=lambda i: leaves[i].size):
        room -= leaves[i].size
        small[i] = room >= 0
    return small
