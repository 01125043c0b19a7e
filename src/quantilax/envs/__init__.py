"""Environments: an adapter per library, probes with known returns, and checks of the contract.

The contract is `quantilax.types.Environment`.
"""

import contextlib
import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import pytree, switches
from quantilax.envs import classes, probes
from quantilax.errors import ConfigError, did_you_mean
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, Discrete, Environment, TimeStep, no_action

__all__ = ["as_environment", "is_known", "make", "masks", "name_of", "names"]

MAX_ACTIONS = 2**24
"""Most actions; a random action is made from a uniform float, which has no more values."""
MASKS = ("legal", "next_legal")
MEMBERS = ("name", "observation_space", "action_space", "max_episode_steps", "reset", "step")


class Identity:
    """Wraps an object so that it is compared by identity, whatever its own `==` does."""

    def __init__(self, value: Any) -> None:
        """Wrap the object."""
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Return whether both wrap the same object."""
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        """Hash the object's identity."""
        return id(self.value)


@pytree.dataclass
class Opaque:
    """Wraps an environment object that is not a pytree, which makes it static as a whole.

    A compiled program keeps the object's values at the time of compilation. To change a value, make
    a new object.
    """

    env: Identity = pytree.field(static=True)

    def __getattr__(self, member: str) -> Any:
        """Return a member of the contract from the object."""
        if member not in MEMBERS:
            raise AttributeError(member)
        return getattr(self.env.value, member)


@switches.standard()
def make(name: str) -> Environment:
    """Return the environment with a name.

    Args:
        name: a probe (`probe/...`), an environment of gymnax, or a class of your own
            (`module:Class`).

    Raises:
        ConfigError: there is no such environment; the message suggests another name.
    """
    if ":" in name:
        return _of_class(classes.find(name), name)
    if name in probes.PROBES:
        return probes.PROBES[name]()
    if name.startswith("probe/"):
        raise ConfigError(f"unknown environment '{name}'{did_you_mean(name, probes.PROBES, 'probes')}")
    from quantilax.envs import gymnax  # slow (seconds): imported only if needed

    return gymnax.make(name)


@switches.standard()
def masks(env: Environment) -> bool:
    """Return whether an environment has masks of legal actions."""
    return len(jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0))) == 3


@switches.standard()
def names() -> dict[str, tuple[str, ...]]:
    """Return the names that `make` knows, by library."""
    from quantilax.envs import gymnax

    return {"gymnax": gymnax.names(), "quantilax": tuple(probes.PROBES)}


def is_known(name: str) -> bool:
    """Return whether a name is that of an environment, or has the form `module:Class`."""
    return ":" in name or name in probes.PROBES or any(name in of_library for of_library in names().values())


def name_of(env: Environment) -> str:
    """Return a name for which `make` returns this environment again.

    If there is none, return the environment's own `name`.
    """
    registered = getattr(env, "registered", None)  # None: `env` is not an adapter
    inner: Any = env if registered is None else env.env  # type: ignore[attr-defined]
    cls = type(inner.env.value if isinstance(inner, Opaque) else inner)
    candidates = [env.name, classes.name_of(cls)]
    if not registered and cls.__module__.split(".")[0] not in ("quantilax", "gymnax"):
        candidates.reverse()
    for name in filter(None, candidates):
        with contextlib.suppress(ConfigError):
            made: Any = make(name)
            if registered is not None and hasattr(made, "registered"):
                made = dataclasses.replace(made, registered=registered)
            if classes.are_equal(made, env):
                return name
    return env.name


@cache
def _of_class(cls: type, name: str) -> Environment:
    """Return the one object of a class.

    It is shared because compiled programs belong to one object if the object is not a pytree.
    """
    return as_environment(classes.construct(cls, name))


def as_environment(env: Any) -> Environment:
    """Return an environment that fulfils the contract.

    Args:
        env: a name for `make`, an environment of gymnax, which gets its adapter, or any other
            object, which is checked.

    Raises:
        ConfigError: the object lacks a member or has one of the wrong kind, or its `reset` or
            `step` returns something that the contract does not allow.
    """
    if isinstance(env, str):
        made = make(env)
        _check_members(made)  # gymnax also knows environments that users registered
        return made
    if hasattr(env, "step_env") and hasattr(env, "default_params"):
        from quantilax.envs import gymnax

        env = gymnax.Gymnax(env=env, params=env.default_params)
    missing = [member for member in MEMBERS if not hasattr(env, member)]
    if missing:
        raise ConfigError(
            f"env: {type(env).__name__} has no '{missing[0]}'; give a name, a gymnax environment, or an object or module:Class"
            f" with {', '.join(MEMBERS)}"
        )
    if jax.tree_util.all_leaves([env]):  # not registered as a pytree
        env = Opaque(env=Identity(env))
    _check_contract(env)
    return env


def _check_members(env: Environment) -> None:
    if not isinstance(env.name, str):
        raise ConfigError(f"env: an environment's name must be text, got {shown(env.name)}")
    _check_spaces(env)
    if not _is_limit(env.max_episode_steps):
        raise ConfigError(
            f"env: {env.name}'s max_episode_steps must be a whole number from 1 to {MAX_INT32}, so that evaluations end;"
            f" got {shown(env.max_episode_steps)}"
        )


@switches.standard()
def _check_contract(env: Environment) -> None:
    _check_members(env)
    space, actions = env.observation_space, env.action_space
    pytree.check(env, f"env: {env.name}")

    def one_step(env: Environment, key: jax.Array) -> Any:
        _check_spaces(env)
        key, key_step = jax.random.split(key)  # `jax_debug_key_reuse` allows each key once
        state, obs, *legal = env.reset(key)
        action = no_action(actions)
        return (state, obs, *legal), env.step(key_step, state, action)

    try:
        leaves = jax.tree.map(jnp.asarray, env)  # training traces them, whatever their type
        (state, obs, *legal), (next_state, time_step) = jax.eval_shape(one_step, leaves, jax.random.key(0))
    except ConfigError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"env: {env.name}'s reset or step does not fit the contract: {reason}") from error
    if not isinstance(time_step, TimeStep):
        raise ConfigError(f"env: {env.name}'s step must return (state, quantilax.types.TimeStep)")
    if _kinds(state) != _kinds(next_state):
        raise ConfigError(f"env: {env.name}'s state changes its structure, shapes or dtypes from reset to step")
    of_masks: list[tuple[str, Any, tuple[int, ...], Any]] = []
    told = {"reset's mask": legal[0] if legal else None, **{f"TimeStep.{x}": getattr(time_step, x) for x in MASKS}}
    if any(mask is not None for mask in told.values()):
        if not isinstance(actions, Discrete):
            raise ConfigError(f"env: {env.name} has masks of legal actions, which real-valued actions cannot have")
        missing = [label for label, mask in told.items() if mask is None]
        if missing:
            raise ConfigError(
                f"env: {env.name}: {missing[0]} is missing, and others are there; with masks reset returns (state,"
                " observation, mask) and a TimeStep has legal and next_legal"
            )
        of_masks = [(label, mask, (actions.n,), np.bool_) for label, mask in told.items()]
    for label, value, shape, kind in (
        *of_masks,
        ("reset's observation", obs, space.shape, space.number),
        ("TimeStep.obs", time_step.obs, space.shape, space.number),
        ("TimeStep.next_obs", time_step.next_obs, space.shape, space.number),
        ("TimeStep.reward", time_step.reward, (), np.floating),
        ("TimeStep.terminated", time_step.terminated, (), np.bool_),
        ("TimeStep.truncated", time_step.truncated, (), np.bool_),
    ):
        if not hasattr(value, "shape") or value.shape != tuple(shape):
            raise ConfigError(
                f"env: {env.name}: {label} must have shape {tuple(shape)}, got {getattr(value, 'shape', value)}"
            )
        if not jnp.issubdtype(value.dtype, kind):
            wanted = getattr(kind, "__name__", kind)
            raise ConfigError(f"env: {env.name}: {label} must be of type {wanted}, got {value.dtype}")


def _check_spaces(env: Environment) -> None:
    """Check the spaces.

    While tracing, this finds sizes that depend on a leaf of the environment.
    """
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, Box) or not isinstance(actions, Discrete | Box):
        raise ConfigError(
            f"env: {env.name}'s observation_space must be a quantilax.types.Box and its action_space a Discrete or Box"
        )
    if isinstance(actions, Discrete) and not (_is_size(actions.n) and actions.n <= MAX_ACTIONS):
        raise ConfigError(
            f"env: {env.name}: the n of a Discrete must be an int from 1 to {MAX_ACTIONS}, got {shown(actions.n)}"
        )
    for box in (space, actions):
        if not isinstance(box, Box):
            continue
        if not isinstance(box.shape, tuple) or not all(_is_size(size) for size in box.shape):
            raise ConfigError(
                f"env: {env.name}: the shape of a Box must be a tuple such as (4,), got {shown(box.shape)}; its sizes"
                " are ints of 1 or more"
            )
        if not _is_number(box):
            raise ConfigError(
                f"env: {env.name}: the dtype of a Box must be that of real numbers or bools, such as jnp.float32, got"
                f" {shown(box.dtype)}"
            )
        if not _are_bounds(box):
            raise ConfigError(
                f"env: {env.name}: the bounds of a Box must be numbers, or arrays of its shape, with low <= high; got"
                f" {shown(box.low)} and {shown(box.high)}"
            )


def _are_bounds(box: Box) -> bool:
    """Return whether `low` and `high` are numbers that fit the shape, with low <= high."""
    try:
        low, high = np.asarray(box.low), np.asarray(box.high)
        fits = all(np.broadcast_shapes(end.shape, box.shape) == box.shape for end in (low, high))
        return fits and bool((low <= high).all())
    except (TypeError, ValueError):
        return False


def _kinds(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.dtype, leaf.shape) for leaf in leaves]


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _is_number(box: Box) -> bool:
    try:
        kinds = [jnp.issubdtype(box.number, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)]
    except (TypeError, ValueError):
        return False
    return box.dtype is not None and any(kinds)


def _is_limit(value: Any) -> bool:
    if isinstance(value, jax.core.Tracer):
        return value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    try:
        limit = np.asarray(value)
    except (TypeError, ValueError):
        return False
    return limit.shape == () and limit.dtype.kind in "iuf" and bool(1 <= limit <= MAX_INT32 and limit == int(limit))
