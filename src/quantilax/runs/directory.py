"""The directory of a run: what was asked for, what came out, and what is needed to get it again."""

import csv
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from jaxtyping import PyTree

from quantilax import pytree
from quantilax.agent import Agent
from quantilax.pytree import ConfigError
from quantilax.types import Record

EVALUATION_COLUMNS = (
    "seed", "env_step", "return_mean", "return_std", "return_min", "length_mean", "seconds",
)  # fmt: skip


class RunDirectory:
    """Files of one run, written as results come.

    | file | what |
    |---|---|
    | `config.yaml` | the resolved config, every field; `quantilax train` takes it again |
    | `run.json` | seeds, command, versions, commit, machine, state of the run |
    | `evaluations.csv` | a row per seed and evaluation |
    | `learning_curve.png` | the same, drawn |
    | `parameters.npz` | final parameters, leading axis seeds; loaded with `numpy.load`, no pickle |
    """

    def __init__(self, path: Path) -> None:
        """Create the directory; an existing one must be empty.

        Raises:
            ConfigError: where it holds anything, or cannot be made.
        """
        self.path = path
        made: list[Path] = []
        try:
            for directory in (*reversed(path.parents), path):
                if not directory.is_dir():
                    directory.mkdir()
                    made.append(directory)
            taken = any(path.iterdir())
        except OSError as error:
            for directory in reversed(made):
                directory.rmdir()
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise ConfigError(f"--out: {path} or a parent of it is a file; choose another directory") from None
            raise ConfigError(f"--out: {path} cannot be made: {error.strerror}; choose another directory") from None
        if taken:
            raise ConfigError(f"--out: {path} is not empty, and nothing is overwritten; choose another directory")
        if not os.access(path, os.W_OK):
            raise ConfigError(f"--out: {path} cannot be written to; choose another directory")

    def write_config(self, name: str, agent: Agent) -> None:
        """Write `config.yaml`: one section, complete."""
        (self.path / "config.yaml").write_text(config_yaml(name, agent), encoding="utf-8")

    def write_run(self, **facts: Any) -> None:
        """Write `run.json`: the given facts, and those of this process and machine."""
        text = json.dumps({**facts, **provenance()}, indent=2)
        (self.path / "run.json").write_text(text + "\n", encoding="utf-8")

    def write_evaluation(self, seeds: list[int], record: Record, seconds: float) -> None:
        """Append a row per seed to `evaluations.csv`; `record` has a leading axis of seeds."""
        file = self.path / "evaluations.csv"
        begun = file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if not begun:
                writer.writerow(EVALUATION_COLUMNS)
            returns, lengths = np.asarray(record.returns), np.asarray(record.lengths)
            for i, seed in enumerate(seeds):
                row = (returns[i].mean(), returns[i].std(), returns[i].min(), lengths[i].mean())
                step = int(np.asarray(record.env_step)[i])
                writer.writerow([seed, step, *(f"{x:.6g}" for x in row), f"{seconds:.3f}"])

    def write_parameters(self, **trees: PyTree) -> None:
        """Write `parameters.npz`: every leaf of the trees under its path, such as `params/psi/layers/0/kernel`."""
        leaves = {}
        for name, tree in trees.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                leaves[f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
        np.savez(self.path / "parameters.npz", **leaves)  # type: ignore[arg-type]


def default_path(env: str, section: str) -> Path:
    """Return a new directory's path under `runs/`: environment, section and time."""
    stem = f"{env.replace('/', '-')}-{section}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path("runs") / stem
    number = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{number}"
        number += 1
    return path


def config_yaml(name: str, agent: Agent) -> str:
    """Return the section of an agent as YAML, every field with its value."""
    section = {"algorithm": agent.algorithm.name, "env": agent.env.name, **pytree.to_dict(agent.config)}
    return yaml.safe_dump({name: section}, sort_keys=False, default_flow_style=None)


def provenance() -> dict[str, Any]:
    """Return what is needed to get a run's numbers again: command, versions, commit and machine."""
    packages = ("quantilax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join(["quantilax" if program == "cli.py" else program, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str | None:
    """Return the commit of quantilax's checkout, with `+` where it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")
