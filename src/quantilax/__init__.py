"""quantilax: distributional reinforcement learning in JAX on Flax NNX, whole training as one XLA program."""

from importlib.metadata import version

from quantilax.agent import IQN, PQN, Agent, ConfigWarning, Curve
from quantilax.algorithms import ALGORITHMS, register
from quantilax.envs import make
from quantilax.pytree import ConfigError
from quantilax.runs import CheckpointError, Result, RunError, load, resume, run
from quantilax.types import Algorithm, Box, Discrete, Environment, Metrics, Record, TimeStep, Transition

__version__ = version("quantilax")

__all__ = [
    "ALGORITHMS",
    "IQN",
    "PQN",
    "Agent",
    "Algorithm",
    "Box",
    "CheckpointError",
    "ConfigError",
    "ConfigWarning",
    "Curve",
    "Discrete",
    "Environment",
    "Metrics",
    "Record",
    "Result",
    "RunError",
    "TimeStep",
    "Transition",
    "load",
    "make",
    "register",
    "resume",
    "run",
]
