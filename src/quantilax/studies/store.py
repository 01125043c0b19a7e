"""The directory of a study: what was asked, what is finished, and every evaluation."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Self

import polars as pl
import yaml

from quantilax import algorithms, pytree, statistics
from quantilax.pytree import ConfigError
from quantilax.runs import RunError, locks, paths, strict_yaml
from quantilax.runs.errors import reason
from quantilax.runs.evaluations import COLUMNS
from quantilax.runs.files import flush, read_parquet, write_parquet, write_whole
from quantilax.studies.definition import Study, plain

STUDY, FACTS, RECORDS, FAILURES = "study.yaml", "study.json", "records", "failures{}.jsonl"

PART = re.compile(r"\d+(-\d+)?\.parquet")
"""Name of a file of records."""


class Failure(NamedTuple):
    """A cell that could not be run."""

    cell: str
    reason: str


class Store:
    """Files of one study, written as results come.

    | file | what |
    |---|---|
    | `study.yaml` | the study as it was first asked for |
    | `study.json` | every cell resolved, seeds, how runs are laid out, and for each start command, versions, commit, machine |
    | `records/*.parquet` | finished runs: a row per cell, seed and evaluation |
    | `unfinished/` | states of runs that are not finished: see `quantilax.studies.unfinished` |
    | `failures*.jsonl` | cells that could not be run, and why |
    | `lock` | who is writing to the directory |
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.facts = facts
        """What `study.json` says."""
        self.is_part = False
        """Whether only the runs of the seeds that `facts` name count; see `part`."""
        self.writer = 0
        """Number of this process where several write to the directory; names the files that are its own."""

    @classmethod
    def create(cls, path: Path, study: Study, **facts: Any) -> Self:
        """Create the directory of a study that begins; an existing one must be empty.

        Raises:
            ConfigError: it holds something, or cannot be written.
        """
        paths.check(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()) and not _is_cut_short(path):
                has = "holds results" if (path / FACTS).exists() else "is not empty"
                how = (
                    "go on with --resume, or choose another --out"
                    if (path / FACTS).exists()
                    else "choose another --out"
                )
                raise ConfigError(f"{path}: {has}, and nothing is overwritten; {how}")
            (path / RECORDS).mkdir(exist_ok=True)
            write_whole(path / STUDY, yaml.safe_dump(study.definition, sort_keys=False, allow_unicode=True))
            store = cls(path, {})
            store.update(**described(study), **facts)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {reason(error)}; choose another --out") from None
        return store

    def delete(self) -> None:
        """Delete what `create` made; the directory stays, empty."""
        for name in (STUDY, FACTS):
            (self.path / name).unlink()
        (self.path / RECORDS).rmdir()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the directory of a study that was begun.

        Raises:
            ConfigError: it is none, or its `study.json` is damaged.
        """
        file = paths.check(path, "study") / FACTS
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{path}: is no study's directory: it has no {FACTS}") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            facts = None
        texts = dict.fromkeys(("name", "question", "prediction", "base", "section", "status"), str)
        others = {"cells": dict, "overrides": dict, "seeds": list, "jobs": int, "width": int, "starts": list}
        expected: dict[str, type] = texts | others
        if not isinstance(facts, dict) or not all(isinstance(facts.get(k), t) for k, t in expected.items()):
            raise ConfigError(f"{file}: is damaged or of no study; put back the file as it was written")
        parts = {
            "cells": all(
                isinstance(fields, dict) and all(isinstance(fields.get(name), str) for name in ("algorithm", "env"))
                for fields in facts["cells"].values()
            ),
            "seeds": bool(facts["seeds"]) and all(type(seed) is int for seed in facts["seeds"]),
            "starts": all(isinstance(start, dict) and isinstance(start.get("date"), str) for start in facts["starts"]),
            "changes": _are_changes(facts.get("changes", [])),
            "solved": facts.get("solved") is None or type(facts["solved"]) in (int, float),
            "looks": _are_looks(facts.get("looks", {})),
            "jobs": facts["jobs"] > 0,
            "width": facts["width"] > 0,
        }
        if wrong := [name for name, holds in parts.items() if not holds]:
            raise ConfigError(f"{file}: {wrong[0]}: is damaged; put back the file as it was written")
        return cls(path, facts)

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """Open the directory of a study that was begun; None where nothing is there yet."""
        return cls.open(path) if os.path.exists(paths.check(path) / FACTS) else None

    def asked(self) -> dict[str, Any]:
        """What `study.yaml` says.

        Raises:
            ConfigError: it is missing or damaged.
        """
        file = self.path / STUDY
        try:
            definition = strict_yaml.parse(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, strict_yaml.BrokenError) as error:
            raise ConfigError(f"{file}: cannot be read: {reason(error)}; put back the file as it was written") from None
        if not isinstance(definition, dict):
            raise ConfigError(f"{file}: is damaged; put back the file as it was written")
        return definition

    def part(self, seeds: list[int], solved: float | None) -> Self:
        """The same results, of some of the seeds and by another threshold."""
        found = type(self)(self.path, {**self.facts, "seeds": seeds, "solved": solved})
        found.is_part = True
        return found

    def check(self, study: Study) -> None:
        """Raise `ConfigError` unless these are the results of that study; it may ask for more cells and seeds.

        A hyperparameter that came after the study's begin stood at its default then.
        """
        file, asked = self.path / FACTS, described(study)
        for cell, fields in asked["cells"].items():
            defaults = json.loads(json.dumps(pytree.defaults(algorithms.get(fields["algorithm"]).config)))
            there = {**defaults, **self.facts["cells"].get(cell, fields)}
            differing = [name for name in {**there, **fields} if there.get(name) != fields.get(name)]
            if differing:
                name = differing[0]
                raise ConfigError(
                    f"{file}: are results of another study: cell '{cell}' has {name}={there.get(name)} there and"
                    f" {fields.get(name)} in {study.where}; choose another --out"
                )
        if not set(asked["cells"]) & set(self.facts["cells"]):
            raise ConfigError(f"{file}: are results of another study: no cell is in both; choose another --out")

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the directory."""
        return locks.lock(self.path)

    @property
    def status(self) -> str:
        """`running`, `finished`, `interrupted`, `killed` or, of one whose base alone was validated, `not run`."""
        status = str(self.facts["status"])
        return "killed" if status == "running" and not locks.is_locked(self.path) else status

    def update(self, **facts: Any) -> None:
        """Change what `study.json` says.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        self.facts = {**self.facts, **facts}
        write_whole(self.path / FACTS, json.dumps(self.facts, indent=1) + "\n")

    def begin(self, **facts: Any) -> None:
        """Note the begin of a start, as `update` does; failures of a former one are forgotten: what failed is tried again.

        Raises:
            RunError: it cannot be written.
        """
        try:
            self.update(**facts)
            for file in self._failure_files():
                file.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritten(self.path / FACTS, error) from None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows of runs that are finished, whole or not at all.

        Raises:
            RunError: it could not be written.
        """
        name = f"{self._next():06}{self._mark}.parquet"
        aside = self.path / RECORDS / f"{name}.partial"
        try:
            write_parquet(frame(rows), aside)
            flush(aside)
            aside.replace(self.path / RECORDS / name)
            flush(self.path / RECORDS)
        except (OSError, pl.exceptions.PolarsError) as error:  # the latter where the disk is full
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise _unwritten(aside, error) from None

    @property
    def _mark(self) -> str:
        """Of a writer's own files: nothing for the process that holds the lock, else `-1`, `-2`, ..."""
        return f"-{self.writer}" if self.writer else ""

    def _next(self) -> int:
        return max((int(file.stem.split("-")[0]) for file in self._files()), default=-1) + 1

    def _files(self) -> list[Path]:
        return sorted(file for file in (self.path / RECORDS).glob("*.parquet") if PART.fullmatch(file.name))

    def records(self) -> pl.DataFrame:
        """All finished runs: a row per cell, seed and evaluation, in the order of the study's cells and seeds.

        A run that two processes have finished, each taking the other for dead, stands there once.

        Raises:
            ConfigError: a file of them cannot be read.
        """
        parts = []
        for file in self._files():
            try:
                parts.append(read_parquet(file))
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read: {reason(error)}") from None
            except pl.exceptions.PolarsError as error:
                raise ConfigError(
                    f"{file}: is damaged ({reason(error)}); put it elsewhere and go on with --resume"
                ) from None
        if not parts:
            return frame([])
        order = {cell: i for i, cell in enumerate(self.facts["cells"])}
        seeds = {seed: i for i, seed in enumerate(self.facts["seeds"])}
        if self.is_part:
            parts = [part.filter(pl.col("seed").is_in(list(seeds))) for part in parts]
        try:
            several = pl.concat(parts, how="diagonal").unique(
                ["cell", "seed", "env_step"], keep="first", maintain_order=True
            )
        except pl.exceptions.PolarsError as error:
            raise ConfigError(
                f"{self.path / RECORDS}: holds a file that is none of its own ({reason(error)}); take it away"
            ) from None
        return several.sort(
            pl.col("cell").replace_strict(order, default=len(order)),
            pl.col("seed").replace_strict(seeds, default=len(seeds)),
            "env_step",
            maintain_order=True,
        )

    def summary(self) -> pl.DataFrame:
        """A row per cell: its figures with intervals, and the comparison with the base; see `quantilax.statistics.summary`.

        Where the study has no `solved`, the columns on solving are left out; where the base has no runs, nothing is compared.
        """
        records, base = self.records(), self.facts["base"]
        return _told(statistics.summary, records, self.solved, base if base in records["cell"] else None)

    def outcomes(self) -> pl.DataFrame:
        """A row per run: what became of it; see `quantilax.statistics.outcomes`, and `summary` where there is no `solved`."""
        return _told(statistics.outcomes, self.records(), self.solved)

    @property
    def solved(self) -> float | None:
        """Return from which on the task counts as solved."""
        solved = self.facts.get("solved")
        return None if solved is None else float(solved)

    def finished(self) -> set[tuple[str, int]]:
        """(cell, seed) of every run that is finished."""
        return set(self.records().select("cell", "seed").unique().iter_rows())

    def failed(self, failure: Failure) -> None:
        """Note that a cell cannot be run.

        Raises:
            RunError: it cannot be written.
        """
        file = self.path / FAILURES.format(self._mark)
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(failure._asdict()) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise _unwritten(file, error) from None

    def failures(self) -> list[Failure]:
        """Cells that could not be run in the last start; each once, also where several processes tried.

        A line that was cut short, by a kill or a full disk, tells of none: its cell has missing runs.
        """
        lines = [line for file in self._failure_files() for line in file.read_text(encoding="utf-8").splitlines()]
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                found.append(Failure(**json.loads(line)))
        return list({failure.cell: failure for failure in reversed(found)}.values())[::-1]

    def _failure_files(self) -> list[Path]:
        return sorted(self.path.glob(FAILURES.format("*")))


def _are_changes(found: Any) -> bool:
    """Say whether this is what `Results.changes` has."""
    of: dict[Any, Any] = {"prediction": str, "solved": (int, float, type(None))}
    return isinstance(found, list) and all(
        isinstance(change, dict)
        and change.get("field") in of
        and type(change.get("runs")) is int
        and all(isinstance(change.get(key), of[change["field"]]) for key in ("before", "after"))
        for change in found
    )


def _are_looks(found: Any) -> bool:
    """Say whether this is, by cell, with how many held-out seeds it was judged."""
    return isinstance(found, dict) and all(
        isinstance(numbers, list) and all(type(number) is int for number in numbers) for numbers in found.values()
    )


def _is_cut_short(path: Path) -> bool:
    """Say whether all that a directory holds is what `Store.create` had made of it when it was killed."""
    left = {file.name for file in path.iterdir()}
    made = {RECORDS, STUDY, f"{STUDY}.partial", f"{FACTS}.partial"}
    return RECORDS in left and left <= made and (path / RECORDS).is_dir() and not any((path / RECORDS).iterdir())


def _unwritten(file: Path, error: Exception) -> RunError:
    return RunError(
        f"{file}: cannot be written: {reason(error)}; make room, then go on with --resume: finished runs are kept"
    )


SOLVING = ("first_solved", "solved_", "reached", "fell", "worst_drop")
"""How the names of the columns begin that need a threshold."""


def _told(
    statistic: Callable[..., pl.DataFrame], records: pl.DataFrame, solved: float | None, *more: Any
) -> pl.DataFrame:
    """Apply a statistic that takes a threshold; without one, whatever depends on it is dropped."""
    told = statistic(records, 0.0 if solved is None else solved, *more)
    return told if solved is not None else told.drop(c for c in told.columns if c.startswith(SOLVING))


def frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a frame with the columns that all studies have, in their order."""
    types: dict[str, Any] = {"cell": pl.String, "seed": pl.Int64, "env_step": pl.Int64, "finite": pl.Boolean}
    rows = list(rows)
    names = ["cell", *COLUMNS, *dict.fromkeys(name for row in rows for name in row)]
    schema = {name: types.get(name, pl.Float64) for name in dict.fromkeys(names)}
    return pl.DataFrame(rows, schema=schema)


def described(study: Study) -> dict[str, Any]:
    """Return what a study comes to, as plain values: each cell with every field."""
    return {
        "name": study.name,
        "question": study.question,
        "prediction": study.prediction,
        "solved": study.solved,
        "seeds": list(study.seeds),
        "base": study.base.name,
        "section": study.base.section.name,
        "overrides": json.loads(json.dumps({cell.name: cell.overrides for cell in study.cells})),
        "cells": {cell.name: plain(cell.section) for cell in study.cells},
    }
