"""Portions that are not finished: states and evaluations are kept while they run, so that an interruption costs little.

    STUDY/unfinished/1f3a.../000000060000/     a checkpoint (`quantilax.runs.checkpoints`) of the portion of that name

See docs/decisions/0025-unfinished-portions.md.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantilax import train
from quantilax.runs import checkpoints, evaluations
from quantilax.runs.directory import versions
from quantilax.runs.errors import CheckpointError, reason
from quantilax.runs.evaluations import Evaluation
from quantilax.types import State

DIRECTORY = "unfinished"
EVERY = 60.0
"""Seconds of training between two checkpoints, at least: a portion that is done sooner writes none."""
SHARE = 20.0
"""So many times as long as a checkpoint took is trained before the next one."""


class Unfinished:
    """The kept state of one portion."""

    def __init__(self, study: Path, portion: Any, warn: Callable[[str], None], say: Callable[[str], None]) -> None:
        """Name it.

        Args:
            study: the study's directory.
            portion: all that decides its numbers, as JSON: runs, their fields, how they are laid out.
            warn: called with a line where something cannot be written or read; training goes on.
            say: called with a line where training goes on from a state that was kept.
        """
        self.portion = json.loads(json.dumps(portion))
        digest = hashlib.sha256(json.dumps(self.portion, sort_keys=True).encode()).hexdigest()
        self.root = study / DIRECTORY / digest[:16]
        self.warn, self.say = warn, say
        self.is_warned = False
        self.rest = EVERY
        self.since = time.monotonic()

    def find(self, program: train.Program) -> tuple[State, list[Evaluation]] | None:
        """Return the last state that was kept, and the evaluations up to it; None where there is none that can be used."""
        if not checkpoints.steps(self.root):
            return None
        try:
            checkpoint = checkpoints.find(self.root, warn=self.warn)
            if (there := checkpoints.versions(checkpoint.facts)) != versions():
                raise CheckpointError(f"{checkpoint.path}: was written with other versions ({_differing(there)})")
            found = evaluations.unpack(checkpoint, program.specs)
        except CheckpointError as error:
            self.warn(f"{error}; its runs begin anew")
            return None
        self.say(f"training goes on from environment step {checkpoint.facts['env_step']:,}")
        return found

    def keep(self, state: State, history: list[Evaluation]) -> None:
        """Write a checkpoint if one is due; one that cannot be written is told once."""
        if time.monotonic() - self.since < self.rest:
            return
        begun = time.monotonic()
        env_step = int(history[-1].record.env_step[0])
        facts = {"config": {"portion": self.portion}, "rows": len(history), "versions": versions()}
        try:
            self.root.parent.mkdir(exist_ok=True)
            mean = float(history[-1].record.returns.mean())
            checkpoints.save(self.root, env_step, evaluations.pack(state, history), {**facts, "return_mean": mean})
            for step in checkpoints.steps(self.root)[:-1]:
                shutil.rmtree(self.root / f"{step:012d}", ignore_errors=True)
        except Exception as error:  # whatever it is: the portion goes on
            if not self.is_warned:
                self.warn(
                    f"{self.root}: cannot be written ({reason(error)}); the runs go on, an interruption loses them"
                )
            self.is_warned = True
        self.since = time.monotonic()
        self.rest = max(EVERY, SHARE * (self.since - begun))

    def forget(self) -> None:
        """Delete it: the portion is finished."""
        shutil.rmtree(self.root, ignore_errors=True)


def _differing(there: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {there.get(name)}, here {here}" for name, here in versions().items() if there.get(name) != here
    )


def forget_all(study: Path) -> None:
    """Delete what is left of portions that a later start laid out otherwise."""
    shutil.rmtree(study / DIRECTORY, ignore_errors=True)
