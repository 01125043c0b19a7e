"""Environments: the contract (see `quantilax.types.Environment`), one adapter per library, and probes with known returns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import pytree
from quantilax.envs import probes
from quantilax.pytree import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, TimeStep

__all__ = ["as_environment", "make", "names"]

MEMBERS = ("name", "observation_space", "action_space", "max_episode_steps", "reset", "step")


class Identity:
    """Compares an object by what it is, whatever its own `==` says."""

    def __init__(self, value: Any) -> None:
        """Hold the object."""
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Say whether both hold the same object."""
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        """Follow the identity."""
        return id(self.value)


@pytree.dataclass
class Opaque:
    """An environment object that is no pytree: static as a whole.

    Programs compiled for it keep what it was then: do not change the object afterwards, make another.
    """

    env: Identity = pytree.field(static=True)

    def __getattr__(self, member: str) -> Any:
        """Pass the contract's members through."""
        if member not in MEMBERS:
            raise AttributeError(member)
        return getattr(self.env.value, member)


def make(name: str) -> Environment:
    """Return the environment of that name: a probe (`probe/...`) or one of gymnax.

    Raises:
        ConfigError: where there is none, with a suggestion.
    """
    if name in probes.PROBES:
        return probes.PROBES[name]()
    if name.startswith("probe/"):
        raise ConfigError(f"unknown environment '{name}'{did_you_mean(name, probes.PROBES, 'probes')}")
    from quantilax.envs import gymnax  # takes seconds: only for those who need it

    return gymnax.make(name)


def names() -> dict[str, tuple[str, ...]]:
    """Names that `make` knows, by library."""
    from quantilax.envs import gymnax

    return {"gymnax": gymnax.names(), "quantilax": tuple(probes.PROBES)}


def as_environment(env: Any) -> Environment:
    """Return what fulfils the contract: for a name `make`'s, for a gymnax environment its adapter, else the checked object.

    Raises:
        ConfigError: where the object lacks a member, or its `reset` or `step` return something else than the contract says.
    """
    if isinstance(env, str):
        return make(env)
    if hasattr(env, "step_env") and hasattr(env, "default_params"):
        from quantilax.envs import gymnax

        env = gymnax.Gymnax(env=env, params=env.default_params)
    missing = [member for member in MEMBERS if not hasattr(env, member)]
    if missing:
        raise ConfigError(
            f"env: {type(env).__name__} has no '{missing[0]}'; pass a name, a gymnax environment or an object with"
            f" {', '.join(MEMBERS)}"
        )
    if jax.tree_util.all_leaves([env]):  # not registered as a pytree
        env = Opaque(env=Identity(env))
    _check_contract(env)
    return env


def _check_contract(env: Environment) -> None:
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, Box) or not isinstance(actions, Discrete | Box):
        raise ConfigError(
            f"env: {env.name}'s observation_space must be a quantilax.types.Box and its action_space a Discrete or Box"
        )
    for box in (space, actions):
        if isinstance(box, Box) and not isinstance(box.shape, tuple):
            raise ConfigError(f"env: {env.name}: the shape of a Box must be a tuple such as (4,), got {box.shape!r}")
    limit = env.max_episode_steps
    if not isinstance(limit, jax.core.Tracer) and not _is_limit(limit):
        raise ConfigError(
            f"env: {env.name}'s max_episode_steps must be a number, 1 or more and finite, so that evaluations end;"
            f" got {limit!r}"
        )
    pytree.check(env, f"env: {env.name}")

    def one_step(env: Environment, key: jax.Array) -> Any:
        state, obs = env.reset(key)
        action = jnp.zeros((), jnp.int32) if isinstance(actions, Discrete) else jnp.zeros(actions.shape)
        return (state, obs), env.step(key, state, action)

    try:
        leaves = jax.tree.map(jnp.asarray, env)  # in training they are traced, whatever they are here
        (state, obs), (next_state, time_step) = jax.eval_shape(one_step, leaves, jax.random.key(0))
    except (TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"env: {env.name}'s reset or step does not fit the contract: {reason}") from error
    if not isinstance(time_step, TimeStep):
        raise ConfigError(f"env: {env.name}'s step must return (state, quantilax.types.TimeStep)")
    if _kinds(state) != _kinds(next_state):
        raise ConfigError(f"env: {env.name}'s state changes its structure, shapes or dtypes from reset to step")
    for label, value, shape, kind in (
        ("reset's observation", obs, space.shape, space.dtype),
        ("TimeStep.obs", time_step.obs, space.shape, space.dtype),
        ("TimeStep.next_obs", time_step.next_obs, space.shape, space.dtype),
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


def _kinds(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.dtype, leaf.shape) for leaf in leaves]


def _is_limit(value: Any) -> bool:
    limit = np.asarray(value)
    return limit.shape == () and limit.dtype.kind in "iuf" and bool(1 <= limit < np.inf)
