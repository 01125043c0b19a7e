"""Adapter for the single-player games of pgx 2.x (https://github.com/sotetsuk/pgx).

pgx never truncates, and a step after the end does nothing. The adapter counts the steps, truncates
and resets.
"""

import importlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from quantilax import pytree
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, Discrete, Environment, TimeStep

FREEWAY = "minatar-freeway"
FREEWAY_LIMIT = 2_501
"""pgx counts from 2,500 down to below 0, as the original does, and calls that a termination."""
CLASSES = {
    "2048": "pgx.play2048:Play2048",
    "minatar-asterix": "pgx.minatar.asterix:MinAtarAsterix",
    "minatar-breakout": "pgx.minatar.breakout:MinAtarBreakout",
    FREEWAY: "pgx.minatar.freeway:MinAtarFreeway",
    "minatar-seaquest": "pgx.minatar.seaquest:MinAtarSeaquest",
    "minatar-space_invaders": "pgx.minatar.space_invaders:MinAtarSpaceInvaders",
}
LIMITS = {"2048": 10_000, FREEWAY: FREEWAY_LIMIT}
"""Steps after which an episode is truncated, if not `NO_LIMIT`."""
NO_LIMIT = 5_000
"""That of a MinAtar game without a time limit, as in the adapter for gymnax."""
STICKY = 0.1
"""The probability with which MinAtar repeats the last action."""
SEVERAL_PLAYERS = (
    "animal_shogi",
    "backgammon",
    "bridge_bidding",
    "chess",
    "connect_four",
    "gardner_chess",
    "go_19x19",
    "go_9x9",
    "hex",
    "kuhn_poker",
    "leduc_holdem",
    "othello",
    "shogi",
    "sparrow_mahjong",
    "tic_tac_toe",
)
"""Games of pgx that are refused."""


@pytree.dataclass
class Pgx:
    """A single-player game of pgx as an `Environment`. Its state is (the library's state, steps).

    Only 2048 has masks of legal actions; in MinAtar all actions are always legal.
    """

    task: str
    env: Any = pytree.field(static=True)
    max_episode_steps: Int[Array, ""]
    """Steps after which an episode is truncated."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"pgx/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        sticky = float(getattr(self.env, "sticky_action_prob", STICKY))
        values = {"max_episode_steps": int(self.max_episode_steps), "sticky_action_prob": sticky}
        defaults = {"max_episode_steps": LIMITS.get(self.task, NO_LIMIT), "sticky_action_prob": STICKY}
        return dict(adapters.changed(values, defaults))

    @property
    def observation_space(self) -> Box:
        """Bools: rows, columns and channels."""
        obs = _first(self.env).observation
        return Box(obs.shape, obs.dtype)

    @property
    def action_space(self) -> Discrete:
        """The actions; in MinAtar those that have an effect (its minimal set)."""
        return Discrete(_first(self.env).legal_action_mask.shape[0])

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        inner = self.env.init(key)
        return (inner, jnp.zeros((), jnp.int32)), inner.observation, *self._mask(inner)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step."""
        key_step, key_reset = jax.random.split(key)
        inner, steps = state
        inner, steps = self.env.step(inner, action, key_step), steps + 1
        terminated = inner.terminated & (self.task != FREEWAY)
        truncated = ~terminated & (inner.terminated | (steps >= self.max_episode_steps))
        next_obs, next_legal = inner.observation, self._mask(inner)
        state, obs, *legal = jax.tree.map(
            lambda new, old: jnp.where(terminated | truncated, new, old),
            self.reset(key_reset),
            ((inner, steps), next_obs, *next_legal),
        )
        return state, TimeStep(
            obs=obs,
            next_obs=next_obs,
            reward=inner.rewards[0],
            terminated=terminated,
            truncated=truncated,
            legal=legal[0] if legal else None,
            next_legal=next_legal[0] if legal else None,
        )

    def _mask(self, inner: Any) -> tuple[Bool[Array, "A"], ...]:
        return (inner.legal_action_mask,) if self.task == "2048" else ()


@cache
def _first(env: Any) -> Any:
    """Return the first state, as shapes."""
    return jax.eval_shape(env.init, jax.eval_shape(jax.random.key, 0))


@cache
def _environment(name: str, **arguments: Any) -> Any:
    """Return the one object of a name and arguments, which `pgx.make` does not take."""
    module, cls = CLASSES[name].split(":")
    with jax.ensure_compile_time_eval():
        return getattr(importlib.import_module(module), cls)(**arguments)


def make(name: str, **env_args: Any) -> Environment:
    """Return the game of pgx of that name, such as `minatar-breakout`.

    Args:
        name: one of `names()`.
        env_args: `max_episode_steps`; of MinAtar also `sticky_action_prob`.

    Raises:
        ConfigError: the name is unknown or refused, or an argument is.
    """
    if name in SEVERAL_PLAYERS:
        raise ConfigError(f"env: pgx/{name} has several players, and algorithms here learn for one; choose another")
    if name not in CLASSES:
        raise ConfigError(f"unknown environment 'pgx/{name}'{did_you_mean(name, CLASSES, 'games')}")
    minatar = name.startswith("minatar-")
    arguments = ("max_episode_steps", "sticky_action_prob") if minatar else ("max_episode_steps",)
    for argument in env_args:
        if argument not in arguments:
            raise ConfigError(
                f"env_args: pgx/{name} has no argument '{argument}'{did_you_mean(argument, arguments, 'arguments')}"
            )
    most = FREEWAY_LIMIT if name == FREEWAY else MAX_INT32
    limit = env_args.get("max_episode_steps", LIMITS.get(name, NO_LIMIT))
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= most:
        raise ConfigError(f"env_args: max_episode_steps must be a whole number from 1 to {most}, got {shown(limit)}")
    sticky = env_args.get("sticky_action_prob", STICKY)
    if isinstance(sticky, bool) or not isinstance(sticky, int | float) or not 0 <= sticky <= 1:
        raise ConfigError(f"env_args: sticky_action_prob must be a number from 0 to 1, got {shown(sticky)}")
    env = _environment(name, sticky_action_prob=float(sticky)) if minatar else _environment(name)
    return Pgx(task=name, env=env, max_episode_steps=jnp.asarray(limit, jnp.int32))


def names() -> tuple[str, ...]:
    """Names that `make` takes."""
    return tuple(CLASSES)
