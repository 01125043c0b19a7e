"""Adapter for the MiniGrid tasks of xminigrid 0.9 (https://github.com/dunnolab/xland-minigrid).

At the last step of an episode a discount of 0 means termination, and 1 that time is up.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import xminigrid
from jaxtyping import Array, Int, Key, PyTree, Shaped
from xminigrid.core.constants import NUM_COLORS, NUM_TILES

from quantilax import pytree
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, Discrete, Environment, TimeStep

TASKS = (
    "MiniGrid-BlockedUnlockPickUp",
    *(f"MiniGrid-DoorKey-{n}x{n}" for n in (5, 6, 8, 16)),
    *(f"MiniGrid-Empty-{n}x{n}" for n in (5, 6, 8, 16)),
    *(f"MiniGrid-EmptyRandom-{n}x{n}" for n in (5, 6, 8, 16)),
    "MiniGrid-FourRooms",
    "MiniGrid-LockedRoom",
    *(f"MiniGrid-MemoryS{n}" for n in (8, 16, 32, 64, 128)),
    "MiniGrid-Unlock",
    "MiniGrid-UnlockPickUp",
)
WITHOUT_GOAL = "MiniGrid-Playground"
ENCODINGS = ("one-hot", "ids")
ARGUMENTS = ("encoding", "max_episode_steps")


@pytree.dataclass
class XMiniGrid:
    """A task of xminigrid as an `Environment`. Its state is the library's time step.

    The parameters are static, since the library compiles them into its programs.
    """

    task: str
    env: Any = pytree.field(static=True)
    params: Any = pytree.field(static=True)
    encoding: str = pytree.field("one-hot", "how a cell of the view is observed", choices=ENCODINGS)

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"xminigrid/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        default = int(_environment(self.task)[1].max_steps)
        values = {"encoding": self.encoding, "max_episode_steps": self.max_episode_steps}
        return dict(adapters.changed(values, {"encoding": ENCODINGS[0], "max_episode_steps": default}))

    @property
    def observation_space(self) -> Box:
        """The agent's view: rows, columns and channels."""
        size = self.params.view_size
        if self.encoding == "ids":
            return Box((size, size, 2), jnp.uint8, 0, max(NUM_TILES, NUM_COLORS) - 1)
        return Box((size, size, NUM_TILES + NUM_COLORS), jnp.bool_)

    @property
    def action_space(self) -> Discrete:
        """Forward, right, left, pick up, put down, toggle."""
        return Discrete(self.env.num_actions(self.params))

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is truncated."""
        return int(self.params.max_steps)

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Shaped[Array, "rows columns channels"]]:
        """Begin an episode."""
        inner = adapters.strong(self.env.reset(self.params, key))
        return inner, self._encode(inner.observation)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step. The library needs no key for it; a reset takes `key`."""
        told = adapters.strong(self.env.step(self.params, state, action))
        done, terminated = told.last(), told.last() & (told.discount == 0)
        next_obs = self._encode(told.observation)
        state, obs = jax.tree.map(lambda new, old: jnp.where(done, new, old), self.reset(key), (told, next_obs))
        return state, TimeStep(
            obs=obs,
            next_obs=next_obs,
            reward=told.reward,
            terminated=terminated,
            truncated=done & ~terminated,
        )

    def _encode(self, view: Int[Array, "rows columns 2"]) -> Shaped[Array, "rows columns channels"]:
        if self.encoding == "ids":
            return view
        tiles, colors = (
            jax.nn.one_hot(view[..., i], n, dtype=jnp.bool_) for i, n in enumerate((NUM_TILES, NUM_COLORS))
        )
        return jnp.concatenate([tiles, colors], axis=-1)


@cache
def _environment(name: str) -> tuple[Any, Any]:
    """Return the one (object, parameters) of a name."""
    with jax.ensure_compile_time_eval():
        return xminigrid.make(name)


def make(name: str, **env_args: Any) -> Environment:
    """Return the task of xminigrid of that name, such as `MiniGrid-DoorKey-5x5`.

    Args:
        name: one of `names()`.
        env_args: `encoding`, `one-hot` (default) or `ids`; `max_episode_steps`.

    Raises:
        ConfigError: the name is unknown or refused, or an argument is.
    """
    if name.startswith("XLand-MiniGrid") and name in xminigrid.registered_environments():
        raise ConfigError(f"env: xminigrid/{name} needs rule sets that are downloaded; choose a MiniGrid task")
    if name == WITHOUT_GOAL:
        raise ConfigError(f"env: xminigrid/{name} has no goal, so all its returns are 0; choose another")
    if name not in TASKS:
        raise ConfigError(
            f"unknown environment 'xminigrid/{name}'{did_you_mean(name, TASKS, 'tasks', 'quantilax list')}"
        )
    for argument in env_args:
        if argument not in ARGUMENTS:
            raise ConfigError(
                f"env_args: xminigrid/{name} has no argument '{argument}'{did_you_mean(argument, ARGUMENTS, 'arguments')}"
            )
    encoding = env_args.get("encoding", ENCODINGS[0])
    if encoding not in ENCODINGS:
        raise ConfigError(f"env_args: encoding must be one of {', '.join(ENCODINGS)}, got {shown(encoding)}")
    env, params = _environment(name)
    limit = env_args.get("max_episode_steps", params.max_steps)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_INT32:
        raise ConfigError(
            f"env_args: max_episode_steps must be a whole number from 1 to {MAX_INT32}, got {shown(limit)}"
        )
    return XMiniGrid(task=name, env=env, params=params.replace(max_steps=limit), encoding=encoding)


def names() -> tuple[str, ...]:
    """Names that `make` takes."""
    return TASKS
