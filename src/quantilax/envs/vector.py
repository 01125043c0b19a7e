"""Several environments as one: the only place that maps over environments.

A library that is batched by nature can fulfil `VectorEnv` itself; one environment in JAX is mapped over by `Mapped`.
"""

from typing import Protocol

import jax
from jaxtyping import Array, Bool, Key, PyTree

from quantilax import pytree
from quantilax.types import Environment, Observation, TimeStep


class VectorEnv(Protocol):
    """E environments as one; every array has the leading axis E. As `Environment` otherwise."""

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
