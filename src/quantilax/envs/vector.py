"""Several environments as one; this is the only module that maps over environments.

A library that is batched by nature can implement `VectorEnv` itself; `Mapped` maps over one
environment in JAX.
"""

from typing import Protocol

import jax
from jaxtyping import Array, Bool, Key, PyTree

from quantilax import pytree
from quantilax.types import Environment, Observation, TimeStep


class VectorEnv(Protocol):
    """E environments as one, like `Environment` but every array has the leading axis E."""

    def reset(self, keys: Key[Array, "E"]) -> tuple[PyTree, Observation, Bool[Array, "E A"] | None]:
        """Begin an episode in each: (states, observations, masks of legal actions)."""

    def step(self, keys: Key[Array, "E"], state: PyTree, action: Array) -> tuple[PyTree, TimeStep]:
        """Take one step in each, with automatic resets: (states, time steps)."""


@pytree.dataclass
class Mapped:
    """As many copies of one environment as there are keys, by `jax.vmap`."""

    env: Environment

    def reset(self, keys: Key[Array, "E"]) -> tuple[PyTree, Observation, Bool[Array, "E A"] | None]:
        """Begin an episode in each."""
        state, obs, *legal = jax.vmap(self.env.reset)(keys)
        return state, obs, legal[0] if legal else None

    def step(self, keys: Key[Array, "E"], state: PyTree, action: Array) -> tuple[PyTree, TimeStep]:
        """Take one step in each."""
        return jax.vmap(self.env.step)(keys, state, action)
