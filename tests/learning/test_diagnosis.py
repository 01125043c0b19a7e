"""A small part of the validation of docs/diagnosis.md: faults and the causes that are named first.

Seeds 200 and 201 were used neither to set the ranges nor in the confusion matrix. Variants with the
same treedef share one program.
"""

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from quantilax import Agent, devices, pytree, train
from quantilax.checks.diagnosis import diagnose
from quantilax.runs import evaluations, loggers

pytestmark = [pytest.mark.optimized, pytest.mark.validation]

FAULTS = Path(__file__).parents[2] / "investigations" / "0003-diagnosis" / "faults.py"
SEEDS = [200, 201]


@pytest.fixture(scope="module")
def faults() -> Any:
    """The variants of the validation."""
    spec = importlib.util.spec_from_file_location("faults", FAULTS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def named(faults) -> dict[str, list[str]]:
    """First cause of each seed, by variant: of the healthy base and of every fault."""
    agents = {v.name: v.agent() for v in faults.VARIANTS if v.name == "base" or v in faults.FAULTS}
    groups = defaultdict(dict)
    for name, agent in agents.items():
        groups[jax.tree.structure(agent.arguments()[1:])][name] = agent
    found = {}
    for group in groups.values():
        table = curves(list(group.values()))
        for number, (name, agent) in enumerate(group.items()):
            mine = table.filter(table["seed"] // len(SEEDS) == number)
            causes = [one.causes for one in diagnose(mine, pytree.to_dict(agent.config))]
            found[name] = [c[0].cause if c else "none" for c in causes]
    return found


def curves(agents: list[Agent]) -> pl.DataFrame:
    """Evaluations of agents of one treedef with each of `SEEDS`; runs are numbered in the column `seed`."""
    inputs = [(*agent.arguments()[1:], jax.random.key(seed)) for agent in agents for seed in SEEDS]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)
    algorithm = agents[0].algorithm
    program = jax.jit(lambda inputs: devices.over_seeds(lambda x: train.train(algorithm, *x)[1], inputs))
    records = jax.device_get(program(stacked))
    rows = []
    for i in range(records.env_step.shape[1]):
        one = jax.tree.map(lambda x, i=i: np.asarray(x[:, i]), records)
        rows += loggers.rows(evaluations.entry(list(range(len(inputs))), evaluations.Evaluation(one, 0.0), i == 0))
    return loggers.table(rows)


def test_faults_are_named_first_and_the_healthy_run_is_left_alone(faults, named):
    right = [cause == fault.cause for fault in faults.FAULTS for cause in named[fault.name]]
    assert len(right) == len(SEEDS) * 12
    assert named["base"] == ["none"] * len(SEEDS), named
    assert sum(right) >= 0.8 * len(right), named
