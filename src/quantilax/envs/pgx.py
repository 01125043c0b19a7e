"""Adapter for the one-player games of pgx 2.6 (https://github.com/sotetsuk/pgx).

pgx cuts no episode off and does nothing after an end, so the adapter counts the steps and resets.
docs/environments/pgx.md has the games.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pgx  # type: ignore[import-untyped,import-not-found,unused-ignore]
from jaxtyping import Array, Bool, Int, Key, PyTree

from quantilax import pytree, switches
from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, TimeStep

NO_LIMIT = 5_000
"""Steps after which a game without a time limit is cut off, so that evaluations end."""
TIMER = 2_501
"""Steps of Freeway, whose timer counts from 2,500 down to below 0."""
FREEWAY = "minatar-freeway"
GAMES = (
    "2048",
    "minatar-asterix",
    "minatar-breakout",
    FREEWAY,
    "minatar-seaquest",
    "minatar-space_invaders",
)
"""Games of one player."""
STICKY = 0.1
"""Probability of a sticky action in MinAtar, as in the original."""


@pytree.dataclass
class Pgx:
    """A game of pgx as an `Environment`. A state is that of pgx, which counts the steps."""

    env: Any = pytree.field(static=True)
    game: str
    max_episode_steps: int
    """Steps after which an episode is cut off."""
    args: tuple[tuple[str, Any], ...] = ()
    """The arguments of `make` that differ from their defaults."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"pgx/{self.game}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        return dict(self.args)

    @property
    def observation_space(self) -> Box:
        """Planes of bools."""
        return Box(_shapes(self.env)[0], jnp.bool_, 0, 1)

    @property
    def action_space(self) -> Discrete:
        """The actions of the game."""
        return Discrete(_shapes(self.env)[1])

    @property
    def has_masks(self) -> bool:
        """Whether some actions are illegal; in MinAtar all are legal always."""
        return self.game == "2048"

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        first = adapters.strong(self.env.init(key))
        return first, first.observation, *self._legal(first)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step. The end of Freeway's timer is a cut."""
        key_step, key_reset = jax.random.split(key)
        successor = adapters.strong(self.env.step(state, action, key_step))
        ended = successor.terminated & (self.game != FREEWAY)
        cut = ~ended & (successor.terminated | (successor._step_count >= self.max_episode_steps))
        state = adapters.select(ended | cut, adapters.strong(self.env.init(key_reset)), successor)
        legal, next_legal = self._legal(state), self._legal(successor)
        return state, TimeStep(
            obs=state.observation,
            next_obs=successor.observation,
            reward=successor.rewards[0].astype(jnp.float32),
            terminated=ended,
            truncated=cut,
            legal=legal[0] if legal else None,
            next_legal=next_legal[0] if next_legal else None,
        )

    def _legal(self, state: Any) -> tuple[Bool[Array, "A"], ...]:
        return (state.legal_action_mask,) if self.has_masks else ()


@cache
def _shapes(env: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape of an observation and the number of actions."""
    with switches.standard():
        state = jax.eval_shape(env.init, jax.random.key(0))
    return state.observation.shape, state.legal_action_mask.shape[0]


@cache
def _environment(name: str, args: tuple[tuple[str, Any], ...]) -> Any:
    """Return pgx's object, one per name and arguments because it is part of the treedef."""
    with switches.standard(), jax.ensure_compile_time_eval():
        made = pgx.make(name)
        return type(made)(**dict(args)) if args else made


def make(name: str, **env_args: Any) -> Environment:
    """Return the game of pgx with that name.

    Args:
        name: as in `names()`.
        env_args: `max_episode_steps`, and for MinAtar `sticky_action_prob` and
            `use_minimal_action_set`.

    Raises:
        ConfigError: the name or an argument is unknown, or the game has several players.
    """
    if name in set(pgx.available_envs()) - set(GAMES):
        raise ConfigError(
            f"env: pgx/{name} cannot be used: it is for several players, and quantilax has one; choose {', '.join(GAMES)}"
        )
    if name not in GAMES:
        raise ConfigError(f"unknown environment 'pgx/{name}'{did_you_mean(name, GAMES, 'games')}")
    minatar = {"sticky_action_prob": STICKY, "use_minimal_action_set": True} if name != "2048" else {}
    defaults = {"max_episode_steps": TIMER if name == FREEWAY else NO_LIMIT, **minatar}
    given = adapters.arguments(env_args, defaults, f"pgx/{name}")
    if not 0 <= given.get("sticky_action_prob", 0.0) <= 1:
        raise ConfigError(
            f"env_args: sticky_action_prob: expected a probability from 0 to 1, got {given['sticky_action_prob']}"
        )
    limit = min(given["max_episode_steps"], TIMER) if name == FREEWAY else given["max_episode_steps"]
    args = adapters.changed(given, defaults)
    env = _environment(name, tuple((key, value) for key, value in args if key in minatar))
    return Pgx(env=env, game=name, max_episode_steps=limit, args=args)


def names() -> tuple[str, ...]:
    """Names of the games of pgx that one player plays."""
    return GAMES
