"""Adapter for navix 0.7 (https://github.com/epignatelli/navix): MiniGrid in JAX.

navix ends an episode one step late: the step after the last one ignores its action and resets. The
adapter takes the step below that and resets at once, so that no ignored step enters experience.
docs/environments/navix.md has the tasks and the observations.
"""

import warnings
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree, Shaped

from quantilax import pytree, switches
from quantilax.envs import Identity, adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, TimeStep

with warnings.catch_warnings():  # navix imports distrax, which reads names of JAX that are deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import navix

LIMIT = 100
"""Steps after which navix cuts an episode off, unless `max_episode_steps` says otherwise."""
THINGS = {"wall": 2, "door": 4, "key": 5, "ball": 6, "box": 7, "goal": 8, "lava": 9, "player": 10}
"""What may lie in a cell, and navix's number of it."""
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
STATES = 4
"""States of a thing: the player looks east, south, west or north; a door is open, closed or locked.
"""
PLANES = {
    "symbolic": len(THINGS) + len(COLOURS) + STATES,
    "symbolic_first_person": len(THINGS) + len(COLOURS) + STATES,
    "categorical": len(THINGS),
    "categorical_first_person": len(THINGS),
    "rgb": 3,
    "rgb_first_person": 3,
}
"""Observations of navix, and their channels here."""
UNSEEN = "the door to go to is not part of the observation"
REFUSED = dict.fromkeys(("Navix-GoToDoor-5x5-v0", "Navix-GoToDoor-6x6-v0", "Navix-GoToDoor-8x8-v0"), UNSEEN)
"""Tasks that cannot be used, and why."""


@pytree.dataclass
class Navix:
    """A task of navix as an `Environment`.

    A state is navix's, and the steps of the episode so far.
    """

    env: Identity = pytree.field(static=True)
    task: str
    observation: str = "symbolic"
    """What is seen: a key of `PLANES`."""
    max_episode_steps: int = LIMIT
    """Steps after which an episode is cut off."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"navix/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        return dict(adapters.changed({name: getattr(self, name) for name in DEFAULTS}, DEFAULTS))

    @property
    def observation_space(self) -> Box:
        """Rows, columns, and planes of zeros and ones; or pixels."""
        shape = self.env.value.observation_space.shape
        if self._has_pixels:
            return Box(shape, jnp.uint8, 0, 255)
        return Box((*shape[:2], PLANES[self.observation]), jnp.bool_, 0, 1)

    @property
    def action_space(self) -> Discrete:
        """Turn left, turn right, go forward, pick up, drop, toggle, done."""
        return Discrete(len(self.env.value.action_set))

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Array]:
        """Begin an episode."""
        first = self.env.value.reset(key)
        return self._state(first), self._encode(first.observation)

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step; navix draws its numbers from a key in its state."""
        inner, steps = state
        before = navix.Timestep(t=steps, observation=None, action=None, reward=None, step_type=None, state=inner)
        told = self.env.value._step(before, action)
        terminated, truncated = told.is_termination(), told.is_truncation()
        successor = self._state(told), self._encode(told.observation)
        state, obs = adapters.select(terminated | truncated, self.reset(key), successor)
        return state, TimeStep(
            obs=obs,
            next_obs=successor[1],
            reward=jnp.asarray(told.reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
        )

    @property
    def _has_pixels(self) -> bool:
        return self.observation.startswith("rgb")

    def _state(self, told: Any) -> PyTree:
        # The cache holds the pixels of every cell, which no other observation reads.
        inner = told.state if self._has_pixels else told.state.replace(cache=None)
        return adapters.strong((inner, told.t))

    def _encode(self, seen: Shaped[Array, "..."]) -> Array:
        if self._has_pixels:
            return seen
        symbols = seen if self.observation.startswith("symbolic") else seen[..., None]
        things = jnp.where(symbols[..., 0] == -1, THINGS["wall"], symbols[..., 0])  # -1: a wall of `categorical`
        planes = things[..., None] == jnp.array(list(THINGS.values()))
        if self.observation.startswith("categorical"):
            return planes
        of_colour = symbols[..., 1, None] == jnp.arange(len(COLOURS))
        of_state = symbols[..., 2, None] == jnp.arange(STATES)
        is_there = planes.any(-1, keepdims=True)
        return jnp.concatenate([planes, of_colour & is_there, of_state & is_there], -1)


DEFAULTS = {"observation": "symbolic", "max_episode_steps": LIMIT}
"""The arguments of `make`."""


@cache
def _environment(name: str, observation: str, max_steps: int) -> Identity:
    """Return navix's object, one per name and arguments because it is part of the treedef."""
    with switches.standard(), jax.ensure_compile_time_eval():
        seen = getattr(navix.observations, observation)
        return Identity(navix.make(name, max_steps=max_steps, observation_fn=seen))


def make(name: str, **env_args: Any) -> Environment:
    """Return the task of navix with that name.

    Args:
        name: as in `names()`.
        env_args: `observation`, a key of `PLANES`, and `max_episode_steps`.

    Raises:
        ConfigError: the name or an argument is unknown, or the task cannot be used.
    """
    if name in REFUSED:
        raise ConfigError(f"env: navix/{name} cannot be used: {REFUSED[name]}; quantilax list names those that can")
    if name not in names():
        raise ConfigError(f"unknown environment 'navix/{name}'{did_you_mean(name, names(), 'tasks', 'quantilax list')}")
    given = adapters.arguments(env_args, DEFAULTS, f"navix/{name}")
    seen, limit = given["observation"], given["max_episode_steps"]
    if seen not in PLANES:
        raise ConfigError(f"env_args: observation: there is no '{seen}'{did_you_mean(seen, PLANES, 'observations')}")
    return Navix(env=_environment(name, seen, limit), task=name, observation=seen, max_episode_steps=limit)


def names() -> tuple[str, ...]:
    """Names of the tasks of navix that can be used, including those that you registered with it."""
    return tuple(sorted(set(navix.registry()) - set(REFUSED)))
