"""The directory of a run: its config, its results, and all that is needed to reproduce them."""

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
    """What the value of a key of `run.json` must be."""

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
    "status": Fact("text", _is_text),
    "checkpoint_every": Fact("a whole number, 0 or more", _is_whole, False),
    "log": Fact("a list of names", lambda x: isinstance(x, list) and all(map(_is_text, x)), False),
    "saved": Fact("a whole number, 0 or more", _is_whole, False),
    "devices": Fact("a whole number, 1 or more", lambda x: _is_whole(x, 1), False),
    "seconds": Fact("a number, 0 or more", lambda x: type(x) in (int, float) and 0 <= x < 1e18, False),
    "starts": Fact("a list of starts", lambda x: isinstance(x, list) and bool(x)),
}
"""All keys of `run.json` that are read back."""

START = {
    "from_env_step": Fact("a whole number, 0 or more", _is_whole),
    "command": Fact("text", _is_text),
    "date": Fact("text", _is_text),
}
"""All keys of an entry of `starts` that are read back."""


BEFORE_FACTS = {"lock", "config.yaml", "config.yaml.partial", "run.json.partial"}
"""Files that a run may have before it has written its `run.json`."""


class RunDirectory:
    """The files of one run, written as results come.

    | file | what |
    |---|---|
    | `config.yaml` | the resolved config with every field; `quantilax train` accepts it |
    | `run.json` | seeds, status; for each start the command, versions, commit and machine |
    | `checkpoints/` | the run's whole state at the ends of segments: the last three and the best |
    | `evaluations.csv` | a row per seed and evaluation |
    | `evaluations.jsonl` | a line per evaluation: each seed, and all seeds together |
    | `evaluations.parquet` | a row per seed and evaluation, with each episode's return and length |
    | `learning_curve.png` | a plot of the mean returns |
    | `lock` | which process is writing to the directory |
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """Do not call this directly; use `create` or `open`."""
        self.path = path
        self.facts = facts
        """The content of `run.json`."""
        self.updating = threading.Lock()  # the thread that writes checkpoints calls `update` too

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints; see `quantilax.runs.checkpoints`."""
        return self.path / "checkpoints"

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create the directory.

        An existing directory must be empty. One that was left by a run that was killed before it
        wrote its `run.json` counts as empty.

        Raises:
            ConfigError: the directory is not empty, or cannot be created or written to.
        """
        paths.check(path)
        made: list[Path] = []
        try:
            for directory in (*reversed(path.parents), path):
                if not directory.is_dir():
                    directory.mkdir(exist_ok=True)  # another process may create it now
                    made.append(directory)
            there = {file.name for file in path.iterdir()}
            taken = bool(there) and not ("lock" in there and there <= BEFORE_FACTS and not locks.is_locked(path))
        except OSError as error:
            for directory in reversed(made):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise ConfigError(f"--out: {path} or a parent of it is a file; choose another directory") from None
            raise ConfigError(f"--out: {path} cannot be created: {error.strerror}; choose another directory") from None
        if taken:
            raise ConfigError(f"--out: {path} is not empty, and nothing is overwritten; choose another directory")
        if not os.access(path, os.W_OK):
            raise ConfigError(f"--out: {path} cannot be written to; choose another directory")
        return cls(path, {})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the directory of an existing run.

        Raises:
            ConfigError: it is not the directory of a run, or its `run.json` is damaged.
        """
        file = paths.check(path, "run") / "run.json"
        if not os.path.isdir(path):  # also: name too long, or a parent that may not be entered
            raise ConfigError(f"{path}: no such run directory; see quantilax list-runs")
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: is not a run directory: it has no run.json; see quantilax list-runs") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise ConfigError(f"{file}: is damaged or not from a run; restore the original file")
        _check(file, "", facts, FACTS)
        for number, start in enumerate(facts["starts"]):
            if not isinstance(start, dict):
                raise ConfigError(f"{file}: starts[{number}]: expected a start; restore the original file")
            _check(file, f"starts[{number}].", start, START)
        return cls(path, facts)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the directory; see `quantilax.host.locks`."""
        return locks.lock(self.path)

    def is_locked(self) -> bool:
        """Return whether a process is writing to the directory."""
        return locks.is_locked(self.path)

    @property
    def status(self) -> str:
        """The state of the run.

        One of `running`, `finished`, `stopped` (by a callback), `interrupted` (by a signal),
        `failed: <why>` or `killed`.
        """
        status = str(self.facts["status"])
        return "killed" if status == "running" and not self.is_locked() else status

    def update(self, **facts: Any) -> None:
        """Change facts in `run.json`; any thread may call this.

        Raises:
            OSError: the file cannot be written, and is unchanged.
        """
        with self.updating:
            self.facts = {**self.facts, **facts}
            write_whole(self.path / "run.json", json.dumps(self.facts, indent=2) + "\n")

    def agent(self, env: Any = None, eval_callback: Callable[..., PyTree] | None = None) -> Agent:
        """Build the run's agent from its `config.yaml`.

        Args:
            env: the environment, if it is an object that cannot be made from a name; None: the
                environment that the config names.
            eval_callback: the agent's callback at evaluations.

        Raises:
            ConfigError: the config is damaged, or its environment or algorithm is not known here.
        """
        section = configs.load_section(self.path / "config.yaml")
        if env is None and not envs.is_known(section.env):
            raise ConfigError(
                f"{self.path}: was trained in '{section.env}', which cannot be made from its name here; pass env= from Python,"
                " give the file that registers it with --import, or, if its class needs no arguments, write"
                " env: module:Class into config.yaml"
            )
        with warnings.catch_warnings(category=ConfigWarning, action="ignore"):  # shown when the run began
            return section.create(env, eval_callback)

    def write_config(self, name: str, agent: Agent) -> None:
        """Write `config.yaml`: one section with every field."""
        write_whole(self.path / "config.yaml", config_yaml(name, agent))


def _check(file: Path, prefix: str, there: Mapping[str, Any], facts: Mapping[str, Fact]) -> None:
    """Raise `ConfigError` for the first key that is missing or has a wrong value."""
    for name, fact in facts.items():
        if name in there:
            wrong = "" if fact.holds(there[name]) else f"expected {fact.expected}, got {reprlib.repr(there[name])}"
        else:
            wrong = "is missing" if fact.is_required else ""
        if wrong:
            raise ConfigError(f"{file}: {prefix}{name}: {wrong}; restore the original file")


def default_path(env: str, section: str) -> Path:
    """Return the path of a new directory in `runs/`, named after environment, section and time."""
    stem = f"{paths.as_name(env)}-{paths.as_name(section)}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path("runs") / stem
    number = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{number}"
        number += 1
    return path


def config_yaml(name: str, agent: Agent) -> str:
    """Return an agent's config as a YAML section with every field."""
    section = {"algorithm": agent.algorithm.name, **envs.fields_of(agent.env), **pytree.to_dict(agent.config)}
    return yaml.safe_dump({name: section}, sort_keys=False, default_flow_style=None)
