"""Load what a run learned (agent, state and policy) and evaluate its policy."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from quantilax import switches, train
from quantilax.agent import Agent
from quantilax.errors import ConfigError
from quantilax.host import paths
from quantilax.runs import checkpoints, recalibration
from quantilax.runs.directory import RunDirectory
from quantilax.runs.identity import check_config, check_environment
from quantilax.types import State


class Loaded(NamedTuple):
    """A trained agent: `algo, state, policy = quantilax.load("runs/x")`."""

    algo: Agent
    state: State
    """The state of one seed."""
    policy: Callable[..., Array]
    """(observation, key) -> action, as in evaluations; see `Agent.policy`."""


def load(path: Path | str, checkpoint: str | int = "last", *, seed: int | None = None, env: Any = None) -> Loaded:
    """Load agent, state and policy from a run. Writes nothing.

    If the checkpoint has a recalibration, `algo.quantiles(..., calibrated=True)` uses it.

    No code from the run is executed either. But if its `config.yaml` has `env: module:Class`, that
    module is imported.

    Args:
        path: the run's directory; it may have been moved or be read-only.
        checkpoint: `last`, `best` (highest mean return of its evaluation) or environment steps.
        seed: one of the run's seeds; None: the first.
        env: the environment, if the run used an object of your own.

    Raises:
        ConfigError: `path` is not a run directory, the run lacks this seed, or the recalibration is
            damaged.
        CheckpointError: no checkpoint can be read, or it does not fit this version.
    """
    algo, states, seeds, env_step = load_states(paths.check(path, "run"), checkpoint, env)
    if seed is None:
        seed = seeds[0]
    if seed not in seeds:
        raise ConfigError(f"{path}: has no seed {seed}; it has {', '.join(map(str, seeds))}")
    state = jax.tree.map(lambda x: x[seeds.index(seed)], states)
    fitted = recalibration.read(RunDirectory.open(Path(path)).checkpoints, env_step)
    algo = dataclasses.replace(algo, recalibration=fitted.get(seed))
    return Loaded(algo, state, algo.policy(state))


@switches.standard()
def load_states(path: Path, which: str | int, env: Any = None) -> tuple[Agent, State, list[int], int]:
    """Return a run's agent, states (leading axis of seeds), seeds and the checkpoint's step."""
    switches.devices()  # without a device no checkpoint could be read
    directory = RunDirectory.open(path)
    agent = directory.agent(env)
    checkpoint = checkpoints.find(directory.checkpoints, which, _print_warning)
    seeds = directory.facts["seeds"]
    check_config(checkpoint, agent, seeds)
    if env is None:  # another environment is allowed: the caller wants to see the policy there
        check_environment(checkpoint, agent)
    one = train.state_spec(*agent.arguments())
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(seeds), *x.shape), x.dtype), one)
    arrays = {name: array for name, array in checkpoint.arrays.items() if name.startswith("state/")}
    tree = checkpoints.unpack(checkpoint._replace(arrays=arrays), {"state": spec})
    return agent, tree["state"], seeds, checkpoint.facts["env_step"]


class Evaluated(NamedTuple):
    """Episodes played with a run's policies."""

    env_step: int
    """Environment steps of the checkpoint."""
    seeds: list[int]
    returns: np.ndarray
    """(S, E)"""
    lengths: np.ndarray
    """(S, E)"""


@switches.standard()
def evaluate(
    path: Path | str, checkpoint: str | int = "last", *, episodes: int = 1_000, seed: int = 0, env: Any = None
) -> Evaluated:
    """Play episodes with the policy of each of a run's seeds.

    `quantilax.statistics.summarize` summarizes the returns.

    Args:
        path, checkpoint, env: as for `load`.
        episodes: E, each played to its end.
        seed: seed of the episodes; all seeds of the run start from the same first states.

    Raises:
        ConfigError, CheckpointError: as for `load`.
    """
    agent, states, seeds, env_step = load_states(paths.check(path, "run"), checkpoint, env)
    key = jax.random.key(seed)
    played = [agent.evaluate(jax.tree.map(lambda x, i=i: x[i], states), key, episodes) for i in range(len(seeds))]
    return Evaluated(
        env_step,
        seeds,
        returns=np.stack([np.asarray(returns) for _, returns in played]),
        lengths=np.stack([np.asarray(lengths) for lengths, _ in played]),
    )


def _print_warning(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
