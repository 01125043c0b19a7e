"""The directory of a run: what was asked for, what came out, and what is needed to get it again."""

import contextlib
import json
import os
import reprlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from jaxtyping import PyTree

from quantilax import envs, pytree
from quantilax.agent import Agent, ConfigWarning
from quantilax.errors import ConfigError
from quantilax.host import locks, paths
from quantilax.host.files import write_whole
from quantilax.runs import configs


class Fact(NamedTuple):
    """What a key of `run.json` must hold."""

    expected: str
    holds: Callable[[Any], bool]
    is_required: bool = True


def _is_whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_seeds(value: Any) -> bool:
    is_list = isinstance(value, list) and all(_is_whole(seed) and seed < 2**32 for seed in value)
    return is_list and len(value) == len(set(value)) > 0


FACTS = {
    "section": Fact("a name", _is_text),
    "seeds": Fact("different whole numbers from 0 to 2^32 - 1", _are_seeds),
    "status": Fact("words", _is_text),
    "checkpoint_every": Fact("a whole number, 0 or more", _is_whole, False),
    "log": Fact("a list of names", lambda x: isinstance(x, list) and all(map(_is_text, x)), False),
    "saved": Fact("a whole number, 0 or more", _is_whole, False),
    "devices": Fact("a whole number, 1 or more", lambda x: _is_whole(x, 1), False),
    "seconds": Fact("a number, 0 or more", lambda x: type(x) in (int, float) and 0 <= x < 1e18, False),
    "starts": Fact("a list of starts", lambda x: isinstance(x, list) and bool(x)),
}
"""Every key of `run.json` that is read again."""

START = {
    "from_env_step": Fact("a whole number, 0 or more", _is_whole),
    "command": Fact("words", _is_text),
    "date": Fact("words", _is_text),
}
"""Every key of one of its starts that is read again."""


BEFORE_FACTS = {"lock", "config.yaml", "config.yaml.partial", "run.json.partial"}
"""What there may be of a run before its `run.json` is."""


class RunDirectory:
    """Files of one run, written as results come.

    | file | what |
    |---|---|
    | `config.yaml` | the resolved config, every field; `quantilax train` takes it again |
    | `run.json` | seeds, state of the run, and for each start of it command, versions, commit, machine |
    | `checkpoints/` | all of the run's state at the ends of segments: the last three and the best |
    | `evaluations.csv` | a row per seed and evaluation |
    | `evaluations.jsonl` | a line per evaluation: each seed, and all together |
    | `evaluations.parquet` | a row per seed and evaluation, with each episode's return and length |
    | `learning_curve.png` | the mean returns, drawn |
    | `lock` | who is writing to the directory |
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.facts = facts
        """What `run.json` says."""
        self.updating = threading.Lock()  # the thread that writes checkpoints notes the first one

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie; see `quantilax.runs.checkpoints`."""
        return self.path / "checkpoints"

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create the directory; an existing one must be empty, or of a run that was killed before its `run.json` was there.

        Raises:
            ConfigError: where it holds anything, or cannot be made.
        """
        paths.check(path)
        made: list[Path] = []
        try:
            for directory in (*reversed(path.parents), path):
                if not directory.is_dir():
                    directory.mkdir(exist_ok=True)  # another process may make it just now
                    made.append(directory)
            there = {file.name for file in path.iterdir()}
            taken = bool(there) and not ("lock" in there and there <= BEFORE_FACTS and not locks.is_locked(path))
        except OSError as error:
            for directory in reversed(made):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise ConfigError(f"--out: {path} or a parent of it is a file; choose another directory") from None
            raise ConfigError(f"--out: {path} cannot be made: {error.strerror}; choose another directory") from None
        if taken:
            raise ConfigError(f"--out: {path} is not empty, and nothing is overwritten; choose another directory")
        if not os.access(path, os.W_OK):
            raise ConfigError(f"--out: {path} cannot be written to; choose another directory")
        return cls(path, {})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the directory of a run that was begun.

        Raises:
            ConfigError: it is none, or its `run.json` is damaged.
        """
        file = paths.check(path, "run") / "run.json"
        if not os.path.isdir(path):  # also of a name that is too long, or below what may not be entered
            raise ConfigError(f"{path}: no such run directory; see quantilax list-runs")
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: is no run directory: it has no run.json; see quantilax list-runs") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise ConfigError(f"{file}: is damaged or of no run; put back the file as it was written")
        _check(file, "", facts, FACTS)
        for number, start in enumerate(facts["starts"]):
            if not isinstance(start, dict):
                raise ConfigError(f"{file}: starts[{number}]: expected a start; put back the file as it was written")
            _check(file, f"starts[{number}].", start, START)
        return cls(path, facts)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the directory; see `quantilax.host.locks`."""
        return locks.lock(self.path)

    def is_locked(self) -> bool:
        """Say whether a process is writing to the directory."""
        return locks.is_locked(self.path)

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped` (by a callback), `interrupted` (by a signal), `failed: <why>` or `killed`."""
        status = str(self.facts["status"])
        return "killed" if status == "running" and not self.is_locked() else status

    def update(self, **facts: Any) -> None:
        """Change what `run.json` says; any thread may.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        with self.updating:
            self.facts = {**self.facts, **facts}
            write_whole(self.path / "run.json", json.dumps(self.facts, indent=2) + "\n")

    def agent(self, env: Any = None, eval_callback: Callable[..., PyTree] | None = None) -> Agent:
        """Build the run's agent from its `config.yaml`.

        Args:
            env: the environment, where it is an object that no name makes; None: the one that the config names.
            eval_callback: that of the agent.

        Raises:
            ConfigError: a damaged config, or an environment or algorithm that is not known here.
        """
        section = configs.load_section(self.path / "config.yaml")
        if env is None and not envs.is_known(section.env):
            raise ConfigError(
                f"{self.path}: was trained in '{section.env}', which no name makes here; pass env= from Python, give the file"
                " that registers it with --import, or write the class as env: module:Class into config.yaml, if it needs no"
                " arguments"
            )
        with warnings.catch_warnings(category=ConfigWarning, action="ignore"):  # told when the run began
            return section.create(env, eval_callback)

    def write_config(self, name: str, agent: Agent) -> None:
        """Write `config.yaml`: one section, complete."""
        write_whole(self.path / "config.yaml", config_yaml(name, agent))


def _check(file: Path, prefix: str, there: Mapping[str, Any], facts: Mapping[str, Fact]) -> None:
    """Raise `ConfigError` for the first key that is missing, or holds something else."""
    for name, fact in facts.items():
        if name in there:
            wrong = "" if fact.holds(there[name]) else f"expected {fact.expected}, got {reprlib.repr(there[name])}"
        else:
            wrong = "is missing" if fact.is_required else ""
        if wrong:
            raise ConfigError(f"{file}: {prefix}{name}: {wrong}; put back the file as it was written")


def default_path(env: str, section: str) -> Path:
    """Return a new directory's path under `runs/`: environment, section and time."""
    stem = f"{paths.as_name(env)}-{paths.as_name(section)}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path("runs") / stem
    number = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{number}"
        number += 1
    return path


def config_yaml(name: str, agent: Agent) -> str:
    """Return the section of an agent as YAML, every field with its value."""
    section = {"algorithm": agent.algorithm.name, "env": envs.name_of(agent.env), **pytree.to_dict(agent.config)}
    return yaml.safe_dump({name: section}, sort_keys=False, default_flow_style=None)
