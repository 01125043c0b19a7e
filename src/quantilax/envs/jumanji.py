"""Adapter for jumanji 1.1 (https://github.com/instadeepai/jumanji).

jumanji reports a time limit as an end (discount 0). Here its limit is out of reach, and the adapter
counts the steps itself, so that the limit is a truncation. docs/environments/jumanji.md has the
tasks.
"""

import inspect
import math
import warnings
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from jumanji import specs

from quantilax import pytree, switches
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean, reason
from quantilax.types import Box, Discrete, Environment, TimeStep

MAX_ACTIONS = 4_096
"""Most actions into which several numbers are joined."""
NO_LIMIT = 5_000
"""Steps after which a task without a limit is cut off, so that evaluations end."""
ENDS = {
    "BinPack-v2": 20,
    "CVRP-v1": 40,
    "GraphColoring-v1": 20,
    "Knapsack-v1": 50,
    "Minesweeper-v0": 90,
    "Sudoku-v0": 81,
    "Sudoku-very-easy-v0": 81,
    "TSP-v1": 20,
}
"""Steps after which the rules of a task without a time limit have ended every episode."""
SEVERAL = "several agents act at once, and quantilax has one"
REFUSED = {
    "Cleaner-v0": SEVERAL,
    "Connector-v3": SEVERAL,
    "FlatPack-v0": f"it has 8,100 actions, more than the {MAX_ACTIONS:,} that are joined into one number",
    "JobShop-v0": f"it has 21^10 actions, more than the {MAX_ACTIONS:,} that are joined into one number",
    "LevelBasedForaging-v0": SEVERAL,
    "MMST-v0": SEVERAL,
    "MultiCVRP-v0": SEVERAL,
    "RobotWarehouse-v0": SEVERAL,
    "SearchAndRescue-v0": SEVERAL,
    "Sokoban-v0": "it downloads its levels",
}
"""Tasks that cannot be used, and why."""
HIDDEN = ("time_limit", "debug")
"""Arguments of jumanji's classes that `make` does not take."""


@pytree.dataclass
class Jumanji:
    """A task of jumanji as an `Environment`.

    Its observation is a vector of all parts but `action_mask`, or one part with its own shape. A
    state is jumanji's, and the steps of the episode so far.
    """

    env: Any = pytree.field(static=True)
    task: str
    max_episode_steps: int
    """Steps after which an episode is cut off."""
    observe: str = ""
    """The part to observe, such as `grid`; empty: all, as a vector."""
    args: tuple[tuple[str, Any], ...] = ()
    """The arguments of `make` that differ from their defaults."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"jumanji/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        return dict(self.args)

    @property
    def observation_space(self) -> Box:
        """A vector, or the shape of the part that `observe` names; float32 in any case."""
        shapes = _parts(self.env)
        return Box(shapes[self.observe] or (1,) if self.observe else (sum(map(math.prod, shapes.values())),))

    @property
    def observation_names(self) -> tuple[str, ...]:
        """What each entry of an observation is, in C order: `step_count`, `puzzle[1,2]`."""
        return tuple(
            name + (f"[{','.join(map(str, index))}]" if shape else "")
            for name, shape in _parts(self.env).items()
            if self.observe in ("", name)
            for index in np.ndindex(shape)
        )

    @property
    def action_space(self) -> Discrete:
        """Several numbers of jumanji are joined into one, in C order."""
        return Discrete(math.prod(_sizes(self.env)))

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        state, first = self.env.reset(key)
        return (adapters.strong(state), jnp.zeros((), jnp.int32)), self._encode(first), *self._legal(first)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step; jumanji draws its numbers from a key in its state."""
        sizes = _sizes(self.env)
        taken = action if len(sizes) == 1 else jnp.stack(jnp.unravel_index(action, sizes)).astype(jnp.int32)
        with warnings.catch_warnings():  # BinPack writes floats into arrays of ints
            warnings.filterwarnings("ignore", "scatter inputs have incompatible types", FutureWarning)
            inner, told = self.env.step(state[0], taken)
        steps = state[1] + 1
        terminated = told.last() & (told.discount == 0)
        truncated = ~terminated & (told.last() | (steps >= self.max_episode_steps))
        next_obs, next_legal = self._encode(told), self._legal(told)
        successor = (adapters.strong(inner), steps), next_obs, *next_legal
        state, obs, *legal = adapters.select(terminated | truncated, self.reset(key), successor)
        return state, TimeStep(
            obs=obs,
            next_obs=next_obs,
            reward=told.reward.astype(jnp.float32),
            terminated=terminated,
            truncated=truncated,
            legal=legal[0] if legal else None,
            next_legal=next_legal[0] if next_legal else None,
        )

    def _encode(self, told: Any) -> Float[Array, "..."]:
        """Return the observation as floats."""
        parts = {name: jnp.asarray(part, jnp.float32) for name, part in _named(told.observation)}
        if self.observe:
            return jnp.atleast_1d(parts[self.observe])
        return jnp.concatenate([part.ravel() for part in parts.values()])

    def _legal(self, told: Any) -> tuple[Bool[Array, "A"], ...]:
        """Return the mask, if the task has one.

        A snake that shut itself in has no legal action but has to take one: then all are legal.
        """
        mask = getattr(told.observation, "action_mask", None)
        if mask is None:
            return ()
        flat = mask.ravel()
        return (flat | ~flat.any(),)


def _named(observation: Any) -> list[tuple[str, Any]]:
    """Return the parts of an observation but its mask, with names like `agent_position.row`."""
    paths = jax.tree_util.tree_flatten_with_path(observation)[0]
    named = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
    return [(name, leaf) for name, leaf in named if name != "action_mask"]


@cache
def _parts(env: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an observation's parts."""
    with switches.standard():
        told = jax.eval_shape(lambda key: env.reset(key)[1], jax.random.key(0))
    return {name: part.shape for name, part in _named(told.observation)}


@cache
def _sizes(env: Any) -> tuple[int, ...]:
    """Return how many values each number of an action has."""
    with switches.standard(), jax.ensure_compile_time_eval():
        spec = env.action_spec
        if isinstance(spec, specs.DiscreteArray):
            return (int(spec.num_values),)
        if isinstance(spec, specs.MultiDiscreteArray):
            return tuple(int(size) for size in np.asarray(spec.num_values).ravel())
    return ()


@cache
def _environment(name: str, args: tuple[tuple[str, Any], ...]) -> Any:
    """Return jumanji's object, one per name and arguments because it is part of the treedef."""
    with switches.standard(), jax.ensure_compile_time_eval():
        limit = {"time_limit": pytree.MAX_INT32} if "time_limit" in _parameters(name) else {}
        return jumanji.make(name, **limit, **dict(args))


@cache
def _parameters(name: str) -> dict[str, Any]:
    """Return the arguments of a task's class that are numbers or switches, with their defaults."""
    spec = jumanji.registration._REGISTRY[name]
    found = inspect.signature(jumanji.registration.load(spec.entry_point).__init__).parameters
    return {key: found[key].default for key in found if key == "time_limit" or type(found[key].default) in (int, bool)}


@cache
def _limit(name: str) -> int:
    """Return the default of `max_episode_steps`: jumanji's time limit where the task has one."""
    if "time_limit" not in _parameters(name):
        return ENDS.get(name, NO_LIMIT)
    with switches.standard(), jax.ensure_compile_time_eval():
        made: Any = jumanji.make(name)
    return int(made.time_limit)


def make(name: str, **env_args: Any) -> Environment:
    """Return the task of jumanji with that name.

    Args:
        name: as in `names()`.
        env_args: `observe`, the part of the observation to see; `max_episode_steps`; and numbers
            and switches of the task's own class, such as `num_rows` of Snake.

    Raises:
        ConfigError: the name or an argument is unknown, or the task cannot be used.
    """
    if name in REFUSED:
        raise ConfigError(
            f"env: jumanji/{name} cannot be used: {REFUSED[name]}; quantilax list --environments jumanji names those that can"
        )
    if name not in names():
        raise ConfigError(
            f"unknown environment 'jumanji/{name}'"
            + did_you_mean(name, names(), "tasks", "quantilax list --environments jumanji")
        )
    own = {key: value for key, value in _parameters(name).items() if key not in HIDDEN}
    defaults = {"observe": "", "max_episode_steps": _limit(name), **own}
    given = adapters.arguments(env_args, defaults, f"jumanji/{name}")
    args = adapters.changed(given, defaults)
    try:
        env = _environment(name, tuple((key, value) for key, value in args if key in own))
        parts, sizes = _parts(env), _sizes(env)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"env_args: jumanji/{name} refuses these arguments: {reason(error)}") from None
    if given["observe"] and given["observe"] not in parts:
        raise ConfigError(f"env_args: observe: jumanji/{name} has no '{given['observe']}', but {', '.join(parts)}")
    if not sizes or math.prod(sizes) > MAX_ACTIONS:
        raise ConfigError(f"env: jumanji/{name} has no actions that can be joined into at most {MAX_ACTIONS:,}")
    return Jumanji(
        env=env, task=name, max_episode_steps=given["max_episode_steps"], observe=given["observe"], args=args
    )


def names() -> tuple[str, ...]:
    """Names of the tasks that can be used, including those that you registered with jumanji."""
    return tuple(sorted(set(jumanji.registered_environments()) - set(REFUSED)))
