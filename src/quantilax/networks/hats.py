"""A torso that sees some inputs through hat functions, which makes jumps easy to learn."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from quantilax.types import Box

NUMBER = 33
"""Hat functions of each input."""


def hats(x: Float[Array, "*shape"]) -> Float[Array, "*shape NUMBER"]:
    """Return the values at x of hat functions, whose tops are evenly spaced from -1 to 1.

    They sum to 1, and a weighted sum of them interpolates the weights linearly.
    """
    tops = jnp.linspace(-1.0, 1.0, NUMBER)
    return jnp.maximum(1 - jnp.abs(x[..., None] - tops) * (NUMBER - 1) / 2, 0)


class WithHats(nnx.Module):
    """A torso for observations whose last `number` entries are numbers from -1 to 1."""

    def __init__(self, make: Callable[[Box], Any], space: Box, number: int) -> None:
        """Build the torso for the entries and their hat functions, in a space without bounds."""
        channels = space.shape[-1] + number * NUMBER
        self.torso = make(space._replace(shape=(*space.shape[:-1], channels), low=-jnp.inf, high=jnp.inf))
        self.features, self.number = self.torso.features, number

    def __call__(self, obs: Float[Array, "*obs"]) -> Float[Array, "features"]:
        """Return psi of one observation."""
        extra = hats(obs[..., -self.number :])
        return self.torso(jnp.concatenate([obs, extra.reshape(*obs.shape[:-1], -1)], axis=-1))
