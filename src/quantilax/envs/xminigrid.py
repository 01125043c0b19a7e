"""Adapter for the MiniGrid tasks of XLand-MiniGrid 0.9 (https://github.com/dunnolab/xland-minigrid).

The library tells a time limit from an end: after a last step, a discount of 1 means a limit.
docs/environments/xminigrid.md has the tasks.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import xminigrid  # type: ignore[import-untyped,import-not-found,unused-ignore]
from jaxtyping import Array, Int, Key, PyTree

# as above
from xminigrid.core.constants import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    NUM_COLORS,
    NUM_TILES,
)

from quantilax import pytree, switches
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, TimeStep

ENCODINGS = ("one_hot", "ids")
NO_REWARD = ("MiniGrid-Playground",)
"""Tasks without a goal."""


@pytree.dataclass
class XMiniGrid:
    """A task of XLand-MiniGrid as an `Environment`.

    The agent sees a square of `view_size` tiles before it, each with a kind and a colour. A state
    is the library's time step.
    """

    env: Any = pytree.field(static=True)
    params: Any = pytree.field(static=True)
    task: str
    encoding: str = "one_hot"
    """`one_hot`: 13 bools for the kind and 12 for the colour of a tile; `ids`: two numbers."""
    args: tuple[tuple[str, Any], ...] = ()
    """The arguments of `make` that differ from their defaults."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"xminigrid/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        return dict(self.args)

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is cut off; rewards depend on it."""
        return int(self.params.max_steps)

    @property
    def observation_space(self) -> Box:
        """(view_size, view_size, 25) bools, or (view_size, view_size, 2) floats."""
        size = self.params.view_size
        if self.encoding == "one_hot":
            return Box((size, size, NUM_TILES + NUM_COLORS), jnp.bool_, 0, 1)
        return Box((size, size, 2), jnp.float32, 0, max(NUM_TILES, NUM_COLORS) - 1)

    @property
    def action_space(self) -> Discrete:
        """Forward, turn right, turn left, pick up, put down, toggle."""
        return Discrete(self.env.num_actions(self.params))

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Array]:
        """Begin an episode."""
        first = adapters.strong(self.env.reset(self.params, key))
        return first, self._encode(first.observation)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step, which needs no random numbers."""
        successor = adapters.strong(self.env.step(self.params, state, action))
        terminated = successor.last() & (successor.discount == 0)
        truncated = successor.last() & ~terminated
        state = adapters.select(successor.last(), adapters.strong(self.env.reset(self.params, key)), successor)
        return state, TimeStep(
            obs=self._encode(state.observation),
            next_obs=self._encode(successor.observation),
            reward=successor.reward.astype(jnp.float32),
            terminated=terminated,
            truncated=truncated,
        )

    def _encode(self, tiles: Int[Array, "size size 2"]) -> Array:
        """Return the observation of a view of tiles."""
        if self.encoding == "ids":
            return tiles.astype(jnp.float32)
        kinds, colours = tiles[..., 0, None], tiles[..., 1, None]
        return jnp.concatenate([kinds == jnp.arange(NUM_TILES), colours == jnp.arange(NUM_COLORS)], axis=-1)


@cache
def _environment(name: str, args: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """Return the library's objects, one pair per name and arguments."""
    with switches.standard(), jax.ensure_compile_time_eval():
        made: tuple[Any, Any] = xminigrid.make(name, **dict(args))
        return made


def make(name: str, **env_args: Any) -> Environment:
    """Return the MiniGrid task with that name.

    Args:
        name: as in `names()`.
        env_args: `encoding` (`one_hot` or `ids`), `view_size` (odd), `max_episode_steps`.

    Raises:
        ConfigError: the name or an argument is unknown, or the task cannot be used.
    """
    if name.startswith("XLand"):
        raise ConfigError(
            f"env: xminigrid/{name} cannot be used: its goals come from a benchmark that has to be downloaded; choose a"
            " MiniGrid task (quantilax list --environments xminigrid)"
        )
    if name in NO_REWARD:
        raise ConfigError(f"env: xminigrid/{name} cannot be used: it has no goal and pays nothing; choose another")
    if name not in names():
        raise ConfigError(
            f"unknown environment 'xminigrid/{name}'"
            + did_you_mean(name, names(), "tasks", "quantilax list --environments xminigrid")
        )
    params = _environment(name, ())[1]
    defaults = {"encoding": "one_hot", "view_size": params.view_size, "max_episode_steps": params.max_steps}
    given = adapters.arguments(env_args, defaults, f"xminigrid/{name}")
    if given["encoding"] not in ENCODINGS:
        raise ConfigError(f"env_args: encoding: expected {' or '.join(ENCODINGS)}, got '{given['encoding']}'")
    if given["view_size"] % 2 == 0 or given["view_size"] < 3:
        raise ConfigError(f"env_args: view_size: expected an odd number from 3 on, got {given['view_size']}")
    args = adapters.changed(given, defaults)
    of_library = {"view_size": "view_size", "max_episode_steps": "max_steps"}
    env, params = _environment(name, tuple((of_library[key], value) for key, value in args if key in of_library))
    return XMiniGrid(env=env, params=params, task=name, encoding=given["encoding"], args=args)


def names() -> tuple[str, ...]:
    """Names of the MiniGrid tasks that have a goal."""
    found = xminigrid.registered_environments()
    return tuple(name for name in found if name.startswith("MiniGrid-") and name not in NO_REWARD)
