"""Adapter for jumanji 1.x (https://github.com/instadeepai/jumanji).

The library's own time limits end an episode with discount 0, which reads as a termination. So
environments are made with the largest limit, and the adapter counts the steps and truncates.
"""

import math
import warnings
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree, Shaped
from jumanji import specs

from quantilax import pytree
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, Discrete, Environment, TimeStep

TASKS = {
    "BinPack-v2": 20,
    "CVRP-v1": 40,
    "Game2048-v1": 10_000,
    "GraphColoring-v1": 20,
    "Knapsack-v1": 50,
    "Maze-v0": 100,
    "Minesweeper-v0": 90,
    "PacMan-v1": 1_000,
    "RubiksCube-partly-scrambled-v0": 20,
    "RubiksCube-v0": 200,
    "SlidingTilePuzzle-v0": 500,
    "Snake-v1": 4_000,
    "Sudoku-v0": 81,
    "Sudoku-very-easy-v0": 81,
    "TSP-v1": 20,
    "Tetris-v0": 400,
}
"""Steps in an episode: the library's limit; where it has none, the most that legal actions can
take, except for Game2048, which gets a limit here."""
AGENTS = "it has several agents, and one action for each"
REFUSED = {
    "Cleaner-v0": AGENTS,
    "Connector-v3": AGENTS,
    "FlatPack-v0": "its 8,100 combined actions are more than the 4,096 that are flattened into one",
    "JobShop-v0": "its 21^10 combined actions are more than the 4,096 that are flattened into one",
    "LevelBasedForaging-v0": AGENTS,
    "MMST-v0": AGENTS,
    "MultiCVRP-v0": AGENTS,
    "RobotWarehouse-v0": AGENTS,
    "SearchAndRescue-v0": AGENTS,
    "Sokoban-v0": "its levels are downloaded when it is made",
}
"""Why a registered environment cannot be made."""
ARGUMENTS = ("max_episode_steps", "observe")


@pytree.dataclass
class Jumanji:
    """A jumanji environment as an `Environment`. Its state is (the library's state, steps)."""

    task: str
    env: Any = pytree.field(static=True)
    observe: str = ""
    """The field of the observation that is observed; "" means all of them, as one vector."""
    max_episode_steps: Int[Array, ""]
    """Steps after which an episode is truncated."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"jumanji/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        values = {"observe": self.observe, "max_episode_steps": int(self.max_episode_steps)}
        return dict(adapters.changed(values, {"observe": "", "max_episode_steps": TASKS[self.task]}))

    @property
    def observation_space(self) -> Box:
        """One vector, or the field `observe` in its own shape."""
        obs = jax.eval_shape(self._encode, _first(self.env).observation)
        return Box(obs.shape, obs.dtype)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name per entry of an observation, in the order of the flattened array."""
        return tuple(
            name + (f"[{','.join(map(str, index))}]" if index else "")
            for name, leaf in self._parts(_first(self.env).observation)
            for index in np.ndindex(leaf.shape)
        )

    @property
    def action_space(self) -> Discrete:
        """The actions; those of several parts are numbered as `numpy.ravel_multi_index` does."""
        return Discrete(math.prod(_sizes(self.env)))

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        inner, told = adapters.strong(self.env.reset(key))
        return (inner, jnp.zeros((), jnp.int32)), self._encode(told.observation), *_mask(told.observation)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step. The library needs no key for it; a reset takes `key`."""
        inner, steps = state
        sizes = _sizes(self.env)
        with warnings.catch_warnings():  # BinPack writes whole float32 numbers into int32 arrays
            warnings.filterwarnings("ignore", "scatter inputs have incompatible types", FutureWarning)
            inner, told = self.env.step(inner, action if len(sizes) == 1 else _parts_of_action(action, sizes))
        inner, told = adapters.strong((inner, told))
        steps = steps + 1
        terminated = told.last() & (told.discount == 0)
        truncated = ~terminated & (told.last() | (steps >= self.max_episode_steps))
        next_obs, next_legal = self._encode(told.observation), _mask(told.observation)
        fresh = self.reset(key)
        state, obs, *legal = jax.tree.map(
            lambda new, old: jnp.where(terminated | truncated, new, old), fresh, ((inner, steps), next_obs, *next_legal)
        )
        return state, TimeStep(
            obs=obs,
            next_obs=next_obs,
            reward=jnp.asarray(told.reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
            legal=legal[0] if legal else None,
            next_legal=next_legal[0] if legal else None,
        )

    def _parts(self, observation: PyTree) -> list[tuple[str, Any]]:
        """Return (name, array) for each observed array, in the library's order."""
        return [(name, leaf) for name, leaf in _leaves(observation) if self.observe in ("", name.split(".")[0])]

    def _encode(self, observation: PyTree) -> Shaped[Array, "*obs"]:
        arrays = [leaf for _, leaf in self._parts(observation)]
        if self.observe and len(arrays) == 1:
            (array,) = arrays
            return jnp.asarray(jnp.atleast_1d(array), jnp.bool_ if array.dtype == jnp.bool_ else jnp.float32)
        return jnp.concatenate([jnp.ravel(array).astype(jnp.float32) for array in arrays])


def _leaves(observation: PyTree) -> list[tuple[str, Any]]:
    """Return (name, array) for each array of an observation but its mask."""
    named = [
        (".".join(str(getattr(part, "name", getattr(part, "key", part))) for part in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(observation)
    ]
    return [(name, leaf) for name, leaf in named if name != "action_mask"]


def _mask(observation: PyTree) -> tuple[Bool[Array, "A"], ...]:
    """Return the mask of legal actions, if there is one."""
    return (jnp.ravel(observation.action_mask),) if hasattr(observation, "action_mask") else ()


def _parts_of_action(action: Int[Array, ""], sizes: tuple[int, ...]) -> Int[Array, "parts"]:
    return jnp.stack(jnp.unravel_index(action, sizes)).astype(jnp.int32)


@cache
def _first(env: Any) -> Any:
    """Return the first time step, as shapes."""
    return jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0))[1]


@cache
def _sizes(env: Any) -> tuple[int, ...]:
    """Return how many values each part of an action has."""
    with jax.ensure_compile_time_eval():
        spec = env.action_spec
        return tuple(int(n) for n in np.atleast_1d(spec.num_values))


@cache
def _environment(name: str) -> Any:
    """Return the one object of a name, with the largest time limit if it has any."""
    with jax.ensure_compile_time_eval():
        env = jumanji.make(name)
        if hasattr(env, "time_limit"):
            env = jumanji.make(name, time_limit=MAX_INT32)
        assert isinstance(env.action_spec, specs.DiscreteArray | specs.MultiDiscreteArray)
        return env


def make(name: str, **env_args: Any) -> Environment:
    """Return the jumanji environment of that name, such as `Snake-v1`.

    Args:
        name: one of `names()`.
        env_args: `observe`, the one field of the observation to keep, in its own shape (default:
            all of them, flattened into one vector); `max_episode_steps`.

    Raises:
        ConfigError: the name is unknown or refused, or an argument is.
    """
    if name in REFUSED:
        raise ConfigError(
            f"env: jumanji/{name} is not supported: {REFUSED[name]}; choose another (quantilax list --environments jumanji)"
        )
    if name not in TASKS:
        raise ConfigError(f"unknown environment 'jumanji/{name}'{did_you_mean(name, TASKS, 'tasks', 'quantilax list')}")
    for argument in env_args:
        if argument not in ARGUMENTS:
            raise ConfigError(
                f"env_args: jumanji/{name} has no argument '{argument}'{did_you_mean(argument, ARGUMENTS, 'arguments')}"
            )
    limit = env_args.get("max_episode_steps", TASKS[name])
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_INT32:
        raise ConfigError(
            f"env_args: max_episode_steps must be a whole number from 1 to {MAX_INT32}, got {shown(limit)}"
        )
    env, observe = _environment(name), env_args.get("observe", "")
    fields = tuple(dict.fromkeys(part.split(".")[0] for part, _ in _leaves(_first(env).observation)))
    if observe and observe not in fields:
        raise ConfigError(
            f"env_args: observe: jumanji/{name} has no field {shown(observe)}; its fields are {', '.join(fields)}"
        )
    return Jumanji(task=name, env=env, observe=observe, max_episode_steps=jnp.asarray(limit, jnp.int32))


def names() -> tuple[str, ...]:
    """Names that `make` takes."""
    return tuple(TASKS)
