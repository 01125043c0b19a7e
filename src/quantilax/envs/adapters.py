"""What adapters of JAX libraries share: checked arguments, and the reset after a last step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from quantilax.errors import ConfigError
from quantilax.pytree import MAX_INT32, shown


def arguments(given: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return `defaults` with what was given instead.

    Args:
        given: the arguments of a user.
        defaults: every argument that exists. The type of a default is that of the argument; whole
            numbers are at least 1.
        name: the environment, for messages.

    Raises:
        ConfigError: an argument is unknown, or has another type.
    """
    for argument, value in given.items():
        if argument not in defaults:
            known = ", ".join(sorted(defaults))
            raise ConfigError(f"env_args: unknown argument '{argument}'; {name} takes {known}")
        kind = type(defaults[argument])
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is int and fits:
            fits = 1 <= value <= MAX_INT32
        if not fits:
            raise ConfigError(
                f"env_args: {argument}: expected a value such as {defaults[argument]!r}, got {shown(value)}"
            )
    return {argument: type(default)(given.get(argument, default)) for argument, default in defaults.items()}


def changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the arguments that differ from their defaults, by name."""
    return tuple(sorted((name, value) for name, value in values.items() if value != defaults[name]))


def strong(tree: PyTree) -> PyTree:
    """Return a state whose arrays have strong types, which a loop needs to carry it."""

    def one(leaf: Any) -> Array:
        array = jnp.asarray(leaf)
        typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return array if typed else jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map(one, tree)


def select(done: Bool[Array, ""], first: PyTree, successor: PyTree) -> PyTree:
    """Return the first state of the next episode after a last step, else the successor."""
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), first, successor)
