"""Adapter for craftax 1.6 (https://github.com/MichaelTMatthews/Craftax).

craftax's `done` has its time limit in it. Here that limit is out of reach, and the adapter cuts
episodes off by craftax's own counter of steps. docs/environments/craftax.md has the games.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from craftax.craftax_env import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    make_craftax_env_from_name,
)
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import pytree, switches
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, TimeStep

GAMES = ("Craftax-Classic-Symbolic-v1", "Craftax-Symbolic-v1")
"""Games that can be used."""
PIXELS = ("Craftax-Classic-Pixels-v1", "Craftax-Pixels-v1")
"""Games that cannot be used."""


@pytree.dataclass
class Craftax:
    """A game of craftax as an `Environment`. A state is that of craftax, which counts the steps."""

    env: Any = pytree.field(static=True)
    params: Any = pytree.field(static=True)
    """craftax's parameters; their time limit is out of reach."""
    game: str
    max_episode_steps: int
    """Steps after which an episode is cut off."""
    args: tuple[tuple[str, Any], ...] = ()
    """The arguments of `make` that differ from their defaults."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"craftax/{self.game}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        return dict(self.args)

    @property
    def observation_space(self) -> Box:
        """A vector: the map around the player, and what the player has."""
        return Box(tuple(self.env.observation_space(self.params).shape), jnp.float32, 0, 1)

    @property
    def action_space(self) -> Discrete:
        """The actions of the game."""
        return Discrete(self.env.num_actions)

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Float[Array, "D"]]:
        """Begin an episode in a new world."""
        obs, first = self.env.reset_env(key, self.params)
        return adapters.strong(first), adapters.strong(obs)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step."""
        key_step, key_reset = jax.random.split(key)
        next_obs, successor, reward, terminated, _ = self.env.step_env(key_step, state, action, self.params)
        truncated = ~terminated & (successor.timestep >= self.max_episode_steps)
        successor, next_obs = adapters.strong((successor, next_obs))
        state, obs = adapters.select(terminated | truncated, self.reset(key_reset), (successor, next_obs))
        return state, TimeStep(
            obs=obs,
            next_obs=next_obs,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
        )


@cache
def _environment(name: str) -> Any:
    """Return craftax's object, one per name because it is part of the treedef."""
    with switches.standard(), jax.ensure_compile_time_eval():
        return make_craftax_env_from_name(name, auto_reset=False)


def make(name: str, **env_args: Any) -> Environment:
    """Return the game of craftax with that name.

    Args:
        name: as in `names()`.
        env_args: `max_episode_steps`, and numbers and switches of craftax's `EnvParams`, such as
            `day_length`.

    Raises:
        ConfigError: the name or an argument is unknown, or the game cannot be used.
    """
    if name in PIXELS:
        raise ConfigError(
            f"env: craftax/{name} cannot be used: it writes its textures into the installed package; choose"
            f" {' or '.join(GAMES)}"
        )
    if name not in GAMES:
        raise ConfigError(f"unknown environment 'craftax/{name}'{did_you_mean(name, GAMES, 'games')}")
    env = _environment(name)
    params = env.default_params
    own = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    limit = own.pop("max_timesteps")
    own = {key: value for key, value in own.items() if isinstance(value, int | float)}
    defaults = {"max_episode_steps": limit, **own}
    given = adapters.arguments(env_args, defaults, f"craftax/{name}")
    args = adapters.changed(given, defaults)
    limit = given.pop("max_episode_steps")
    params = params.replace(max_timesteps=pytree.MAX_INT32, **given)
    return Craftax(env=env, params=params, game=name, max_episode_steps=limit, args=args)


def names() -> tuple[str, ...]:
    """Names of the games that can be used."""
    return GAMES
