"""Unfinished batches: states and evaluations are kept, so that an interruption costs little.

    STUDY/unfinished/1f3a.../000000060000/     a checkpoint (`quantilax.runs.checkpoints`) of the
                                               batch of that name

See docs/decisions/0025-unfinished-portions.md.
"""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from quantilax import devices
from quantilax.agent import Agent
from quantilax.errors import CheckpointError, reason
from quantilax.runs import checkpoints, evaluations
from quantilax.runs.evaluations import Evaluation
from quantilax.runs.identity import code
from quantilax.runs.provenance import versions
from quantilax.studies import machines
from quantilax.types import State

DIRECTORY = "unfinished"
EVERY = 60.0
"""Least seconds of training between two checkpoints of a batch; a shorter batch writes none."""
SHARE = 20.0
"""After a checkpoint, of whichever batch, training runs for at least this many times as long as the
checkpoint took before the next one is written."""

Runs = tuple[tuple[str, int], ...]
"""(variant, seed) of each run in a batch."""

UNUSABLE = (CheckpointError, jax.errors.JaxRuntimeError, MemoryError)
"""Errors that reading a kept state may raise."""


class Unfinished:
    """The kept states of one study's unfinished batches."""

    def __init__(
        self,
        study: Path,
        variants: Mapping[str, Any],
        batch_shape: Any,
        warn: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """Prepare for one start of the study.

        Args:
            study: the study's directory.
            variants: every field of each variant, as JSON.
            batch_shape: how runs are laid out.
            warn: called with a line if a state cannot be written or read; training goes on.
            say: called with a line if training continues from a kept state.
        """
        self.root = study / DIRECTORY
        self.variants, self.batch_shape = variants, batch_shape
        self.warn, self.say = warn, say
        self.is_warned = self.is_closed = False
        self.writing = threading.Lock()
        self.pause = 0.0
        self.begun = self.since = time.monotonic()

    def find(
        self, runs: Runs, made_by: dict[str, Any], program: devices.Program
    ) -> tuple[State, list[Evaluation]] | None:
        """Return the last kept state of a batch and its evaluations; None if none is usable.

        Args:
            runs: the runs of the batch.
            made_by: what else affects their results, from `origin`; a state with another origin is
                not used.
            program: the compiled program, which knows the shapes.
        """
        self.begun = time.monotonic()
        root = self._root(runs)
        if not checkpoints.steps(root):
            return None
        try:
            checkpoint = checkpoints.find(root, warn=self.warn)
            if differing := _differing(checkpoint.facts.get("origin"), made_by):
                raise CheckpointError(f"{checkpoint.path}: was saved with {differing}")
            found = evaluations.unpack(checkpoint, program.specs)
        except UNUSABLE as error:
            why = error if isinstance(error, CheckpointError) else f"{root}: cannot be used ({reason(error)})"
            self.warn(f"{why}; its runs start again")
            return None
        self.say(f"training continues from environment step {checkpoint.facts['env_step']:,}")
        return found

    def keep(self, runs: Runs, made_by: dict[str, Any], state: State, history: list[Evaluation]) -> None:
        """Write a checkpoint if one is due; report a failure to write once."""
        now = time.monotonic()
        if now - max(self.begun, self.since) < EVERY or now - self.since < self.pause:
            return
        root, env_step = self._root(runs), int(history[-1].record.env_step[0])
        config = {"batch": self._identity(runs)}
        facts = {"config": config, "origin": made_by, "rows": len(history), "versions": versions()}
        with self.writing:
            if self.is_closed:
                return
            try:
                self.root.mkdir(exist_ok=True)
                mean = float(history[-1].record.returns.mean())
                packed = evaluations.pack(state, history)
                checkpoints.save(root, env_step, packed, {**facts, "return_mean": mean}, keep=1)
            except Exception as error:  # anything: the batch goes on
                if not self.is_warned:
                    self.warn(
                        f"{root}: cannot be written ({reason(error)}); the runs go on, but an interruption loses more of"
                        " their progress"
                    )
                self.is_warned = True
        self.since = time.monotonic()
        self.pause = SHARE * (self.since - now)

    def forget(self, runs: Runs) -> None:
        """Delete what was kept of a finished batch."""
        shutil.rmtree(self._root(runs), ignore_errors=True)

    def close(self) -> None:
        """Write nothing from now on; wait for a checkpoint that is being written."""
        with self.writing:
            self.is_closed = True

    def _identity(self, runs: Runs) -> Any:
        """Return what identifies a batch, as JSON: runs, every field of their variants, layout."""
        return json.loads(
            json.dumps([runs, {variant: self.variants[variant] for variant, _ in runs}, self.batch_shape])
        )

    def _root(self, runs: Runs) -> Path:
        return self.root / hashlib.sha256(json.dumps(self._identity(runs), sort_keys=True).encode()).hexdigest()[:16]


def origin(agent: Agent) -> dict[str, Any]:
    """Return what affects a batch's results besides its runs: versions, machine and code."""
    return {**machines.facts(), "code": code(agent)}


def _differing(there: Any, here: dict[str, Any]) -> str:
    """Return what differs, or "" if nothing does."""
    there = there if isinstance(there, dict) else {}
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(
        "different code" if name == "code" else f"{name} {there.get(name, 'unknown')}, here {here[name]}"
        for name in names
    )


def forget_all(study: Path) -> None:
    """Delete all kept states, such as those of batches that a later start laid out differently."""
    shutil.rmtree(study / DIRECTORY, ignore_errors=True)
