"""Checks of what users pass to an agent: observations, fractions, states, episode counts.

Shapes and types are known while JAX traces, so checking them adds nothing to a program. Values are
checked only if they are concrete; those of a tracer are unknown.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from quantilax.errors import ConfigError
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, Discrete, Legal, State


def as_observation(space: Box, obs: Any) -> Shaped[Array, "*obs"]:
    """Return one observation of the space as an array, or raise `ConfigError`."""
    given = _as_array("obs", obs)
    if given.shape != space.shape:
        several = given.ndim > len(space.shape) and given.shape[given.ndim - len(space.shape) :] == space.shape
        hint = "; for several, jax.vmap the policy over observations and keys" if several else ""
        raise ConfigError(f"obs: expected one observation of shape {space.shape}, got shape {given.shape}{hint}")
    return _as_numbers(space, given)


def as_observations(space: Box, obs: Any) -> Shaped[Array, "*batch obs"]:
    """Return observations with any number of leading axes as an array.

    Raises:
        ConfigError: they are not observations of the space.
    """
    given = _as_array("obs", obs)
    if given.shape[max(given.ndim - len(space.shape), 0) :] != space.shape:
        wanted = ", ".join(["...", *map(str, space.shape)])
        raise ConfigError(f"obs: expected observations of shape ({wanted}), got shape {given.shape}")
    return _as_numbers(space, given)


def as_legal(space: Discrete | Box, masks: bool, legal: Any) -> Legal:
    """Return the mask of legal actions as an array, or raise `ConfigError`.

    Args:
        space: the action space.
        masks: whether the environment has masks.
        legal: what the user passed; None if nothing.
    """
    if not masks or not isinstance(space, Discrete):
        if legal is not None:
            raise ConfigError("legal: the environment has no masks of legal actions; leave it out")
        return None
    if legal is None:
        raise ConfigError("legal: the environment has masks of legal actions; pass that of the observation")
    given = _as_array("legal", legal)
    if given.shape != (space.n,) or not jnp.issubdtype(given.dtype, jnp.bool_):
        raise ConfigError(f"legal: expected {space.n} bools, one per action, got {given.dtype} of shape {given.shape}")
    return jnp.asarray(given)


def as_fractions(taus: Any) -> Float[Array, "N"]:
    """Return fractions as an array, or raise `ConfigError` if one is outside of [0, 1]."""
    given = _as_array("taus", taus)
    if jnp.issubdtype(given.dtype, jnp.bool_) or given.ndim != 1:
        raise ConfigError(f"taus: expected fractions of shape (N,), got {given.dtype} of shape {given.shape}")
    fractions = jnp.asarray(given, jnp.float32)
    if not isinstance(fractions, jax.core.Tracer):
        values = np.asarray(fractions)
        wrong = values[~((values >= 0) & (values <= 1))]
        if wrong.size:
            raise ConfigError(f"taus: expected fractions from 0 to 1, got {wrong[0]:g}")
    return fractions


def one_state(state: State) -> State:
    """Return the state of one run; raise `ConfigError` for several runs, or if it is no state."""
    if not hasattr(state, "env_steps"):
        raise ConfigError(
            f"state: expected the state of a run, which init returns and train returns first, got {type(state).__name__}"
        )
    if np.ndim(state.env_steps):
        raise ConfigError(
            f"state: expected that of one run, got {len(state.env_steps)} on a leading axis; take one with"
            " jax.tree.map(lambda x: x[0], state), or map over all with jax.vmap"
        )
    return state


def as_count(name: str, value: Any) -> int:
    """Return a positive whole number as an int, or raise `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= MAX_INT32:
        raise ConfigError(f"{name}: expected a whole number from 1 to {MAX_INT32}, got {shown(value)}")
    return int(value)


def _as_array(name: str, value: Any) -> Any:
    """Return numbers in any form as a JAX or NumPy array."""
    # NumPy cannot read tracers.
    of_jax = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))
    try:
        array = jnp.asarray(value) if of_jax else np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty((), object)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise ConfigError(f"{name}: expected an array of numbers, got {shown(value)}")
    return array


def _as_numbers(space: Box, given: Any) -> Array:
    """Convert an array to the space's dtype if that keeps its values.

    For pixels, for example, floats and integers above 255 are refused.
    """
    dtype = space.number
    if jnp.issubdtype(dtype, jnp.floating) or given.dtype == dtype:
        return jnp.asarray(given, dtype)
    least, most = (0, 1) if jnp.issubdtype(dtype, jnp.bool_) else (int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max))
    if jnp.issubdtype(given.dtype, jnp.floating):
        raise ConfigError(
            f"obs: expected {dtype}, got {given.dtype}; pass what the environment gives, whole numbers from {least} to"
            f" {most}, as {dtype}"
        )
    if not isinstance(given, jax.core.Tracer):
        values = np.asarray(given)
        wrong = values[(values < least) | (values > most)]
        if wrong.size:
            raise ConfigError(f"obs: expected {dtype}, from {least} to {most}, got {wrong[0]}")
    return jnp.asarray(given, dtype)
