"""Distributional reinforcement learning in JAX and Flax NNX; a training is one XLA program."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantilax.agent import C51, DQN, FQF, IQN, PQN, QRDQN, Agent, ConfigWarning, QLearning
    from quantilax.agent import D4PG as D4PG
    from quantilax.agent import DSAC as DSAC
    from quantilax.agent import PPO as PPO
    from quantilax.agent import SAC as SAC
    from quantilax.agent import TD3 as TD3
    from quantilax.agent import TD3C51 as TD3C51
    from quantilax.agent import TQC as TQC
    from quantilax.algorithms import ALGORITHMS, register
    from quantilax.envs import make
    from quantilax.errors import ConfigError, RunError
    from quantilax.runs import load, resume, run
    from quantilax.studies.definition import Study
    from quantilax.types import Algorithm, Box, Discrete, Environment, Metrics, Record, TimeStep
    from quantilax.types import Transition as Transition

    __version__: str

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
    "QLearning",
    "Record",
    "RunError",
    "Study",
    "TimeStep",
    "load",
    "make",
    "register",
    "resume",
    "run",
]

_ROOMS = {
    "agent": (
        *("C51", "DQN", "FQF", "IQN", "PQN", "QRDQN", "QLearning"),
        *("PPO", "SAC", "TQC", "DSAC", "TD3", "TD3C51", "D4PG"),
        *("Agent", "ConfigWarning"),
    ),
    "algorithms": ("ALGORITHMS", "register"),
    "envs": ("make",),
    "errors": ("ConfigError", "RunError"),
    "runs": ("load", "resume", "run"),
    "studies.definition": ("Study",),
    "types": ("Algorithm", "Box", "Discrete", "Environment", "Metrics", "Policy", "Record", "TimeStep", "Transition"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Look up a name, or a module such as `quantilax.runs`, on first use.

    `import quantilax` does not import JAX. The command line can then handle signals before JAX is
    imported, and unused parts cost no time.
    """
    if name in _HOME:
        value = getattr(importlib.import_module(f"quantilax.{_HOME[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("quantilax")
    elif not name.startswith("_") and importlib.util.find_spec(f"quantilax.{name}") is not None:
        value = importlib.import_module(f"quantilax.{name}")
    else:
        raise AttributeError(f"module 'quantilax' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
