"""Environments that live outside of JAX: plain Python and NumPy, in this process or in workers.

A *simulator* is one live environment. A `Bench` keeps many and steps them together. What JAX sees
of them is `quantilax.envs.host`.
"""

import importlib
from typing import Any, NamedTuple, Protocol

import numpy as np


class SimulatorError(Exception):
    """A simulator failed; the message is one line."""


class Step(NamedTuple):
    """The result of one step of a simulator."""

    obs: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    legal: np.ndarray | None = None
    """Mask of the actions that may be taken next; None if the simulator has no masks."""
    continues: bool = False
    """Whether the simulator plays on, although the episode terminated for learning."""


class Simulator(Protocol):
    """One live environment. An episode is determined by its seed and its actions."""

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Begin an episode: (observation, mask of legal actions or None)."""

    def step(self, action: Any) -> Step:
        """Take one step. There is no automatic reset."""

    def picture(self) -> np.ndarray:
        """Return a picture, (height, width, 3); only if it was made with `pictures`."""

    def close(self) -> None:
        """Release what the simulator holds."""


class Maker(NamedTuple):
    """How to make a simulator, in a form that other processes understand."""

    module: str
    """A module with a function `make` that returns a `Simulator`."""
    arguments: dict[str, Any]

    def __call__(self, pictures: bool = False) -> Simulator:
        """Make one; `pictures` says whether its `picture` will be called."""
        made: Simulator = importlib.import_module(self.module).make(**self.arguments, pictures=pictures)
        return made


class Form(NamedTuple):
    """Shapes and dtypes of what simulators return."""

    shape: tuple[int, ...]
    dtype: str
    actions: int | None
    """Number of actions if there are masks, else None."""
    limit: int
    """Steps after which an episode is cut off."""
