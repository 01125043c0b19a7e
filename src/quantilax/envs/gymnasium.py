"""Adapter for gymnasium (https://gymnasium.farama.org): any registered id, or a factory of yours.

`gymnasium/LunarLander-v3` is a registered id. `mypackage.envs:make_env` names a function of yours
that returns an environment, or a class. Arguments go to `gymnasium.make` or to the function, except

| argument | meaning |
|---|---|
| `vectorization_mode` | `sync` (default): simulators step in this process; `async`: in others |
| `num_workers` | processes of `async`; default: one per core |
| `max_episode_steps` | time limit; default: that of the registered id |

Observations of several parts are flattened into one vector, as by `gymnasium.spaces.flatten`, and
`observation_names` names its numbers.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten_space

from quantilax.envs.host import Hosted, Simulation, number_of_workers
from quantilax.errors import ConfigError, did_you_mean, reason
from quantilax.pytree import shown
from quantilax.simulators import Maker
from quantilax.simulators import gymnasium as simulator
from quantilax.types import Box, Discrete


def names() -> tuple[str, ...]:
    """Return the registered ids, the newest version of each."""
    newest: dict[str, tuple[int, str]] = {}
    for id_, spec in gymnasium.registry.items():
        key = f"{spec.namespace or ''}/{spec.name}"
        newest[key] = max(newest.get(key, (-1, "")), (-1 if spec.version is None else spec.version, id_))
    return tuple(sorted(id_ for _, id_ in newest.values()))


def make(name: str | Callable[..., Any], **env_args: Any) -> Hosted:
    """Return a gymnasium environment.

    Args:
        name: a registered id, `module:function`, or a callable that returns an environment.
        env_args: see the module.

    Raises:
        ConfigError: there is no such environment, it cannot be made with these arguments, or its
            spaces cannot be used.
    """
    key = (name, repr(sorted(env_args.items())))
    if key not in _MADE:
        _MADE[key] = _make(name, env_args)
    return _MADE[key]


_MADE: dict[tuple[Any, str], Hosted] = {}
"""One object per name and arguments, because it is part of the treedef."""


def _make(name: str | Callable[..., Any], arguments: dict[str, Any]) -> Hosted:
    given = dict(arguments)
    told = name if isinstance(name, str) else getattr(name, "__qualname__", repr(name))
    told = told if ":" in told or not isinstance(name, str) else f"gymnasium/{told}"
    workers = number_of_workers(told, given)
    limit = given.pop("max_episode_steps", None)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigError(f"env_args: max_episode_steps: expected a whole number of 1 or more, got {shown(limit)}")
    if isinstance(name, str) and ":" not in name:
        _check_id(name)
    try:
        env = simulator.construct(name, given)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(f"env: {told} needs another package: {reason(error)}") from None
    except Exception as error:  # a user's environment may raise anything
        raise ConfigError(f"env: {told} cannot be made: {type(error).__name__}: {reason(error)}") from None
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"env: {told} returned {type(env).__name__}; it must return a gymnasium.Env")
    observation_space, action_space = _observations(env, told), _actions(env, told)
    if limit is None:
        limit = _limit(env, told)
    masks = _has_masks(env, told)
    return Hosted(
        simulation=Simulation(
            told,
            Maker("quantilax.simulators.gymnasium", {"env": name, "arguments": given}),
            observation_space,
            action_space,
            limit,
            masks,
            workers,
            simulator.Gymnasium(env),
            arguments=dict(arguments),
            observation_names=tuple(simulator.names_of(env.observation_space)),
        )
    )


def _check_id(name: str) -> None:
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error:
        if name in gymnasium.registry:
            return
        known = [f"gymnasium/{one}" for one in names()]
        hint = did_you_mean(f"gymnasium/{name}", known, "environments", "quantilax list --environments gymnasium")
        raise ConfigError(f"unknown environment 'gymnasium/{name}'{hint}") from None


def _limit(env: gymnasium.Env, told: str) -> int:
    """Return the time limit of an environment."""
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if limit is None:
        with contextlib.suppress(AttributeError):
            limit = env.get_wrapper_attr("_max_episode_steps")
    if limit is None:
        raise ConfigError(
            f"env: {told} has no time limit, which evaluations need to end; add env_args: {{max_episode_steps: 1000}}"
        )
    return int(limit)


def _has_masks(env: gymnasium.Env, told: str) -> bool:
    try:
        _, info = env.reset(seed=0)
    except Exception as error:  # a user's environment may raise anything
        raise ConfigError(f"env: {told}: reset raised {type(error).__name__}: {reason(error)}") from None
    return isinstance(env.action_space, spaces.Discrete) and "action_mask" in info


def _observations(env: gymnasium.Env, told: str) -> Box:
    space = env.observation_space
    try:
        flat = space if isinstance(space, spaces.Box) else flatten_space(space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, spaces.Box):
        raise ConfigError(
            f"env: {told} has observations of the kind {type(space).__name__}, which have no fixed size; wrap it so that"
            " they become a Box, Discrete, MultiBinary, MultiDiscrete, Dict or Tuple"
        )
    dtype = np.dtype(flat.dtype if isinstance(space, spaces.Box) else np.float32)
    if dtype.itemsize > 4:
        dtype = np.dtype(np.float32 if dtype.kind == "f" else np.int32)
    return Box(flat.shape, dtype, _bound(flat.low, dtype), _bound(flat.high, dtype))


def _bound(bound: np.ndarray, dtype: np.dtype) -> Any:
    """Return one number if it is the same for all entries."""
    ends = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype) if dtype.kind in "iu" else None
    bound = bound if ends is None else np.clip(bound, float(ends.min), float(ends.max)) if dtype.kind in "iu" else bound
    return bound.item(0) if bound.size and (bound == bound.item(0)).all() else np.asarray(bound)


def _actions(env: gymnasium.Env, told: str) -> Discrete | Box:
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (_bound(bound, np.dtype(space.dtype)) for bound in (space.low, space.high))
        return Box(space.shape, np.dtype(np.float32), low, high)
    raise ConfigError(
        f"env: {told} has actions of the kind {type(space).__name__}; wrap it so that they become Discrete or Box"
    )
