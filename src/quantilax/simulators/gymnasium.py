"""Simulators of gymnasium (https://gymnasium.farama.org), version 1."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten

from quantilax.simulators import SimulatorError, Step


def make(env: str | Callable[..., Any], arguments: dict[str, Any], pictures: bool = False) -> "Gymnasium":
    """Make the simulator of an environment.

    Args:
        env: a registered id, `module:function` or a callable that returns an environment.
        arguments: for `gymnasium.make`, or for the function.
        pictures: whether it is made with `render_mode="rgb_array"`.
    """
    return Gymnasium(construct(env, {**arguments, "render_mode": "rgb_array"} if pictures else arguments))


def construct(env: str | Callable[..., Any], arguments: dict[str, Any]) -> gymnasium.Env:
    """Return the environment itself."""
    if callable(env):
        return env(**arguments)
    if ":" in env:
        module, _, path = env.partition(":")
        function: Any = importlib.import_module(module)
        for part in path.split("."):
            function = getattr(function, part)
        return function(**arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*")  # the user named this version
        # Box2D's extension warns while it is imported, and Python dies if that is an error.
        warnings.simplefilter("ignore", DeprecationWarning)
        return gymnasium.make(env, **arguments)


class Gymnasium:
    """A gymnasium environment as a `Simulator`."""

    def __init__(self, env: gymnasium.Env) -> None:
        """Wrap an environment."""
        self.env = env
        self._flat = isinstance(env.observation_space, spaces.Box)
        self._discrete = isinstance(env.action_space, spaces.Discrete)
        self._start = int(getattr(env.action_space, "start", 0))

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Begin an episode."""
        obs, info = self.env.reset(seed=seed)
        return self._encode(obs), info.get("action_mask")

    def _taken(self, action: Any) -> Any:
        """Return the action in the form that the environment takes."""
        if self._discrete:
            return int(action) + self._start
        space: Any = self.env.action_space  # a bound of 64 bits may lie between two numbers of 32
        return np.clip(np.asarray(action, space.dtype), space.low, space.high)

    def step(self, action: Any) -> Step:
        """Take one step."""
        obs, reward, terminated, truncated, info = self.env.step(self._taken(action))
        return Step(self._encode(obs), float(reward), bool(terminated), bool(truncated), info.get("action_mask"))

    def picture(self) -> np.ndarray:
        """Return a picture."""
        drawn: Any = self.env.render()
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
            raise SimulatorError("its render returns no picture")
        return drawn

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _encode(self, obs: Any) -> np.ndarray:
        if self._flat:
            return np.asarray(obs)
        try:
            return np.asarray(flatten(self.env.observation_space, obs), np.float32)
        except (TypeError, ValueError, KeyError, IndexError, AssertionError) as error:
            raise SimulatorError(f"returned an observation that does not fit its space: {error}") from None


def names_of(space: spaces.Space, prefix: str = "") -> list[str]:
    """Return a name for each number of a flattened observation, such as `position[0]`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [name for key, part in parts for name in names_of(part, f"{prefix}.{key}" if prefix else str(key))]
    size = spaces.flatdim(space)
    prefix = prefix or "obs"
    if isinstance(space, spaces.Discrete):
        return [f"{prefix}={int(space.start) + i}" for i in range(size)]
    return [f"{prefix}[{i}]" for i in range(size)] if size > 1 else [prefix]
