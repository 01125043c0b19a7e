"""A sum tree: draws positions by weight, at a cost that grows with the logarithm of their number.

Each node is the sum of its children, computed anew from them whenever one of them changes. Nothing
is ever added to or subtracted from an existing sum, so float32 cannot drift, and a position of
weight 0 is never drawn.

    level 0    (n / 32, 32)     the weights, 32 in a row
    level 1    (n / 32^2, 32)   sums of the rows of level 0
    ...
    the last   (1, 32)
"""

from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FANOUT = 32
Tree: TypeAlias = tuple[Float[Array, "_ 32"], ...]


def init(n: int) -> Tree:
    """Return a tree of `n` weights of 0."""
    levels: list[Float[Array, "_ 32"]] = []
    while not levels or levels[-1].shape[0] > 1:
        rows = -(-n // FANOUT)
        levels.append(jnp.zeros((rows, FANOUT)))
        n = rows
    return tuple(levels)


def put(tree: Tree, position: Int[Array, "B"], weight: Float[Array, "B"]) -> Tree:
    """Set weights.

    For a position given twice, the larger weight counts. A position out of bounds is skipped.

    Args:
        position: 0, 1, ...
        weight: 0 or more.
    """
    row, column = position // FANOUT, position % FANOUT
    leaves = tree[0].at[row, column].set(0.0, mode="drop").at[row, column].max(weight, mode="drop")
    levels = [leaves]
    for level in tree[1:]:
        # Computing a sum again does no harm where nothing changed.
        row = jnp.clip(row, 0, levels[-1].shape[0] - 1)
        sums = levels[-1][row].sum(axis=1)
        levels.append(level.at[row // FANOUT, row % FANOUT].set(sums))
        row = row // FANOUT
    return tuple(levels)


def total(tree: Tree) -> Float[Array, ""]:
    """Return the sum of all weights."""
    return tree[-1].sum()


def weights(tree: Tree, position: Int[Array, "B"]) -> Float[Array, "B"]:
    """Return the weights of positions."""
    return tree[0][position // FANOUT, position % FANOUT]


def find(tree: Tree, u: Float[Array, "B"]) -> Int[Array, "B"]:
    """Return the positions before which the share `u` of all weight lies.

    For uniform u, these are positions drawn by weight.

    Args:
        tree: with a weight above 0.
        u: in [0, 1).
    """
    rest = u * total(tree)
    row = jnp.zeros(u.shape, jnp.int32)
    for level in reversed(tree):
        children = level[row]  # (B, 32)
        below = jnp.cumsum(children, axis=1)
        last = FANOUT - 1 - jnp.argmax(children[:, ::-1] > 0, axis=1)
        # Rounding may lead beyond the last child with weight.
        column = jnp.minimum(jnp.sum(below <= rest[:, None], axis=1), last)
        before = jnp.where(
            column > 0, jnp.take_along_axis(below, jnp.maximum(column - 1, 0)[:, None], axis=1)[:, 0], 0.0
        )
        rest = jnp.maximum(rest - before, 0.0)
        row = row * FANOUT + column
    return row
