"""quantilax: distributional reinforcement learning in JAX on Flax NNX, whole training as one XLA program."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from quantilax.agent import C51, DQN, FQF, IQN, PQN, QRDQN, Agent, ConfigWarning
from quantilax.algorithms import ALGORITHMS, register
from quantilax.envs import make
from quantilax.pytree import ConfigError
from quantilax.types import Algorithm, Box, Discrete, Environment, Metrics, Record, TimeStep, Transition

if TYPE_CHECKING:
    from quantilax.runs import RunError, load, resume, run
    from quantilax.studies.definition import Study

__version__ = version("quantilax")

__all__ = [
    "ALGORITHMS",
    "C51",
    "DQN",
    "FQF",
    "IQN",
    "PQN",
    "QRDQN",
    "Agent",
    "Algorithm",
    "Box",
    "ConfigError",
    "ConfigWarning",
    "Discrete",
    "Environment",
    "Metrics",
    "Record",
    "RunError",
    "Study",
    "TimeStep",
    "Transition",
    "load",
    "make",
    "register",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    """Look up `runs`, `run`, `Study` and the like on first use: progress bars and YAML take a fifth of a second to import."""
    if name not in {*__all__, "runs", "studies"}:
        raise AttributeError(f"module 'quantilax' has no attribute '{name}'")
    if name in ("runs", "studies"):
        return importlib.import_module(f"quantilax.{name}")
    return getattr(
        importlib.import_module("quantilax.studies.definition" if name == "Study" else "quantilax.runs"), name
    )
