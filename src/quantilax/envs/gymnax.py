"""Adapter for gymnax 1.x (https://github.com/RobertTLange/gymnax).

In gymnax 1.x, `step` returns six values and resets by itself.

The games of MinAtar follow Young & Tian (2019), https://arxiv.org/abs/1903.03176, as far as
parameters allow: sticky actions, and no time limit except in games that have one.
docs/guides/environments.md lists the remaining differences.
"""

import builtins
import dataclasses
import importlib
import sys
import types
from collections.abc import Callable
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from quantilax import pytree, switches
from quantilax.envs.wrappers import StickyActions
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, TimeStep

# Five environments of gymnax import seaborn and matplotlib.pyplot for their renderers, which
# nothing here calls. That takes 1.2 s; gymnax itself takes 0.1 s. Stand-ins delay these imports
# until they are needed, in these modules and nowhere else.


class _Later(types.ModuleType):
    """Stands in for a module until an attribute is looked up in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


SEABORN, MATPLOTLIB = _Later("seaborn"), _Later("matplotlib")
MATPLOTLIB.pyplot, MATPLOTLIB.colors = _Later("matplotlib.pyplot"), _Later("matplotlib.colors")  # type: ignore[attr-defined]
LATER = {("seaborn",): SEABORN, ("matplotlib.pyplot",): MATPLOTLIB, ("matplotlib", "colors"): MATPLOTLIB}
"""Maps what an import asks for to the stand-in that it gets."""


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = None, level: int = 0) -> Any:
    """Replaces `__import__` in these modules."""
    there = LATER.get((name, *(fromlist or ())))
    return builtins.__import__(name, globals, locals, fromlist, level) if there is None else there


class _Loader(SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Makes gymnax environments import with `_import`; other modules are not affected."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname.startswith("gymnax.environments.") else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


sys.meta_path.insert(sys.meta_path.index(PathFinder), finder := _Finder())
try:
    import gymnax
finally:
    sys.meta_path.remove(finder)


NO_LIMIT = 5_000
"""Steps after which a game without a time limit is cut off, so that evaluations end."""
MINATAR = {
    "Asterix-MinAtar": NO_LIMIT,
    "Breakout-MinAtar": NO_LIMIT,
    "Freeway-MinAtar": 2_501,  # the original counts from 2,500 down to below 0
    "Seaquest-MinAtar": NO_LIMIT,
    "SpaceInvaders-MinAtar": NO_LIMIT,
}
"""Steps in an episode of each MinAtar game."""
CONTINUOUS = ("MountainCarContinuous-v0", "Pendulum-v1", "PointRobot-misc", "Reacher-misc", "Swimmer-misc")
"""Environments of gymnax with real-valued actions, which all algorithms here refuse."""


@pytree.dataclass
class Gymnax:
    """A gymnax environment as an `Environment`.

    Its parameters (physics, time limit) are leaves.
    """

    env: Any = pytree.field(static=True)
    params: PyTree
    registered: str = ""
    """The name under which it was made; not every gymnax environment calls itself by it."""

    @property
    def name(self) -> str:
        """The name that `make` takes.

        For an object that was made elsewhere: the environment's own name.
        """
        return self.registered or self.env.name

    @property
    def env_args(self) -> dict[str, Any]:
        """The parameters that differ from those of gymnax."""
        default, found = self.env.default_params, {}
        limit = MINATAR.get(self.registered, getattr(default, "max_steps_in_episode", None))
        for field in dataclasses.fields(self.params):
            was = limit if field.name == "max_steps_in_episode" else getattr(default, field.name)
            value = np.asarray(getattr(self.params, field.name))
            if value.shape == () and value != np.asarray(was).astype(value.dtype):
                found[field.name] = float(f"{value.item():.7g}") if value.dtype.kind == "f" else value.item()
        return found

    @property
    def observation_space(self) -> Box:
        """Shape and dtype of an observation.

        A discrete observation becomes one-hot, and MinAtar's zeros and ones become bools.
        """
        space, low, high = _read(self.env.observation_space, self.env.default_params)
        if hasattr(space, "n"):
            return Box((int(space.n),))
        if not hasattr(space, "shape"):
            raise ConfigError(
                f"env: {self.name} has observations of several parts ({type(space).__name__}); choose an environment with"
                " one array"
            )
        return Box(tuple(space.shape), jnp.bool_ if self.name in MINATAR else space.dtype, low, high)

    @property
    def action_space(self) -> Discrete | Box:
        """Discrete, or a box of real numbers."""
        space, low, high = _read(self.env.action_space, self.env.default_params)
        return Discrete(int(space.n)) if hasattr(space, "n") else Box(tuple(space.shape), space.dtype, low, high)

    @property
    def max_episode_steps(self) -> Int[Array, ""]:
        """The time limit."""
        return self.params.max_steps_in_episode

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Begin an episode."""
        obs, state = self.env.reset(key, self.params)
        return state, self._encode(obs)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step.

        gymnax resets after the last step of an episode and returns the true successor in `info`.
        """
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, self.params)
        return state, TimeStep(
            obs=self._encode(obs),
            next_obs=self._encode(info["final_observation"]),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
        )

    def _encode(self, obs: PyTree) -> PyTree:
        space = self.env.observation_space(self.env.default_params)
        if hasattr(space, "n"):
            return jax.nn.one_hot(obs, int(space.n))
        return jnp.asarray(obs, self.observation_space.dtype)


def _read(make: Callable[[Any], Any], params: Any) -> tuple[Any, Any, Any]:
    """Return a gymnax space and its bounds.

    A bound is one number if it is the same for all entries.
    """
    # gymnax creates arrays for spaces, even while a program is traced.
    with switches.standard(), jax.ensure_compile_time_eval():
        space = make(params)
        ends = [np.asarray(getattr(space, name, 0.0)) for name in ("low", "high")]
    low, high = (end.item(0) if (end == end.item(0)).all() else end for end in ends)
    return space, low, high


@cache
def _environment(name: str) -> Any:
    return gymnax.make(name)[0]  # one object per name, because it is part of the treedef


def make(name: str, **env_args: Any) -> Environment:
    """Return the gymnax environment of that name.

    Args:
        name: as in `names()`.
        env_args: parameters of gymnax, such as `max_steps_in_episode`; the others keep their
            defaults. A game of MinAtar has those of the original.

    Raises:
        ConfigError: the name or a parameter is unknown, or the environment cannot be made.
    """
    if name not in names():
        discrete = [one for one in names() if one not in CONTINUOUS]
        hint = did_you_mean(name, discrete, "environments", "quantilax list --environments gymnax")
        own = "" if hint.endswith("?") else "; a class of your own is named module:Class"
        raise ConfigError(f"unknown environment '{name}'{hint}{own}")
    try:
        env = _environment(name)
    except OSError as error:  # MNISTBandit-bsuite downloads its images
        raise ConfigError(
            f"environment '{name}' cannot be made: {error}; choose another (quantilax list --environments gymnax)"
        ) from None
    params = env.default_params
    if name in MINATAR:
        params = params.replace(max_steps_in_episode=MINATAR[name])
    params = params.replace(**_parameters(params, env_args))
    try:
        params = jax.tree.map(jnp.asarray, params)
    except (TypeError, ValueError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"environment '{name}': a parameter is no number that programs have: {reason}") from None
    made = Gymnax(env=env, params=params, registered=name)
    return StickyActions(env=made, probability=0.1) if name in MINATAR else made


def _parameters(params: Any, env_args: dict[str, Any]) -> dict[str, Any]:
    """Check arguments against an environment's parameters; return them with their types."""
    known = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    found = {}
    for name, value in env_args.items():
        if name not in known:
            raise ConfigError(f"env_args: unknown parameter '{name}'{did_you_mean(name, known, 'parameters')}")
        default = known[name]
        try:
            found[name] = type(default)(pytree.number(value) if isinstance(value, str) else value)
            right = isinstance(value, str | type(default)) or (isinstance(default, float) and type(value) is int)
        except (TypeError, ValueError):
            right = False
        if not right:
            raise ConfigError(f"env_args: {name}: expected a value such as {default!r}, got {value!r}")
    return found


def names() -> tuple[str, ...]:
    """Names that gymnax knows, including those that you registered with it."""
    return tuple(gymnax.registered_envs)
