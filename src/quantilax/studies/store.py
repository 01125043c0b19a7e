"""A study's directory: the definition, which runs are finished, and every evaluation."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import polars as pl

from quantilax import algorithms, pytree
from quantilax.errors import ConfigError, RunError, reason
from quantilax.host import locks, paths
from quantilax.host.files import flush, read_parquet, write_parquet, write_whole
from quantilax.runs.evaluations import COLUMNS
from quantilax.studies import tables
from quantilax.studies.definition import Study, plain

FACTS, TABLE, RECORDS, FAILURES = "study.json", "records.parquet", "records", "failures{}.jsonl"
ARCHIVE = "studies.json"
"""Facts of several studies in one directory, by path; see `quantilax.studies.archive`."""

PART = re.compile(r"\d+(-\d+)?\.parquet")
"""Pattern of the names of files in `records/`."""


class Failure(NamedTuple):
    """A variant that could not be run."""

    variant: str
    reason: str


class Store:
    """The files of one study, written as results come.

    | file | what |
    |---|---|
    | `study.json` | the definition, variants, seeds; per start command, versions, commit, machine |
    | `records.parquet` | finished runs: a row per variant, seed and evaluation |
    | `records/*.parquet` | the same while the study is unfinished, written as runs end |
    | `unfinished/` | states of unfinished runs: see `quantilax.studies.unfinished` |
    | `failures*.jsonl` | variants that could not be run, and why |
    | `lock` | who is writing to the directory |
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """Use `create` or `open` instead."""
        self.path = path
        self.facts = facts
        """The contents of `study.json`."""
        self.is_part = False
        """Whether only the seeds in `facts` count; see `part`."""
        self.writer = 0
        """This process's shard, from 1 on, and 0 without shards; part of the names of its files."""
        self.archive: Path | None = None
        """The directory of the archive that holds the study; such a study is read-only."""

    @classmethod
    def create(cls, path: Path, study: Study, **facts: Any) -> Self:
        """Create the directory of a new study; an existing directory must be empty.

        Raises:
            ConfigError: the directory is not empty or cannot be written.
        """
        paths.check(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if _names(path) and not _is_cut_short(path):
                has = "holds results" if (path / FACTS).exists() else "is not empty"
                how = (
                    "continue with --resume, or choose another --out"
                    if (path / FACTS).exists()
                    else "choose another --out"
                )
                raise ConfigError(f"{path}: {has}, and nothing is overwritten; {how}")
            (path / RECORDS).mkdir(exist_ok=True)
            store = cls(path, {})
            store.update(**facts_of(study), **facts, asked=json.loads(json.dumps(study.definition)))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {reason(error)}; choose another --out") from None
        return store

    def delete(self) -> None:
        """Delete the facts, records and failures; everything else in the directory stays."""
        for file in (*self._files(), *self._failure_files(), self.path / FACTS):
            file.unlink()
        with contextlib.suppress(OSError):  # it is gone already, or holds a file of the user's
            (self.path / RECORDS).rmdir()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the directory of a study, or a study in an archive by the path it had.

        Raises:
            ConfigError: it is not a study, or its `study.json` is damaged.
        """
        found = cls.find(paths.check(path, "study"))
        if found is None:
            raise ConfigError(f"{path}: is not a study directory: it has no {FACTS}")
        return found

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """Open an existing study like `open`; return None if there is none yet."""
        file, archive = paths.check(path) / FACTS, None
        try:
            facts = read_json(file)
        except (FileNotFoundError, NotADirectoryError):
            archive = next((one for one in path.parents if str(path.relative_to(one)) in archived(one)), None)
            if archive is None:
                return None
            file, facts = archive / ARCHIVE, archived(archive)[str(path.relative_to(archive))]
        check_facts(file, facts, archive is not None)
        store = cls(path, facts)
        store.archive = archive
        return store

    def part(self, seeds: list[int], solved: float | None) -> Self:
        """Return the same results for some of the seeds, and with another threshold."""
        found = type(self)(self.path, {**self.facts, "seeds": seeds, "solved": solved})
        found.is_part = True
        return found

    def check(self, study: Study) -> None:
        """Raise `ConfigError` unless these are the results of this study.

        The study may ask for more variants and seeds. A hyperparameter that is newer than the
        results had its default value then.
        """
        file, asked = self.path / FACTS, facts_of(study)
        for variant, fields in asked["variants"].items():
            there = with_defaults(self.facts["variants"].get(variant, fields))
            differing = [name for name in {**there, **fields} if there.get(name) != fields.get(name)]
            if differing:
                name = differing[0]
                raise ConfigError(
                    f"{file}: holds results of another study: variant '{variant}' has {name}={there.get(name)} there and"
                    f" {fields.get(name)} in {study.where}; choose another --out"
                )
        if not set(asked["variants"]) & set(self.facts["variants"]):
            raise ConfigError(
                f"{file}: holds results of another study, with no variant in common; choose another --out"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing to the directory; a shard lets other shards write.

        Raises:
            ConfigError: the directory is in use, or in an archive.
        """
        if self.archive is not None:
            raise ConfigError(f"{self.path}: is in an archive; unpack it with: quantilax study {self.archive} --unpack")
        with locks.lock(self.path, f"lock{self._mark}"):
            # Checked while holding our own lock: of two that start at once, each sees the other.
            if self.others_at_work() if not self.writer else locks.is_locked(self.path):
                who = "shards are working on it" if not self.writer else "another process is working on all of it"
                raise ConfigError(f"{self.path}: is in use: {who}; wait for them or stop them")
            yield

    def others_at_work(self) -> bool:
        """Whether another process holds a lock of the directory as a shard."""
        mine = f"lock{self._mark}"
        return any(f.name != mine and locks.is_locked(self.path, f.name) for f in self.path.glob("lock-*"))

    @property
    def status(self) -> str:
        """`running`, `finished`, `interrupted`, `failed`, `killed`, `incomplete` or `not run`.

        `incomplete`: runs of other shards are missing. `not run`: only the base was validated.
        """
        status = str(self.facts["status"])
        is_at_work = locks.is_locked(self.path) or self.others_at_work()
        return "killed" if status == "running" and not is_at_work else status

    def update(self, **facts: Any) -> None:
        """Change entries of `study.json`.

        Raises:
            OSError: the file cannot be written; it is unchanged.
        """
        self.facts = {**self.facts, **facts}
        write_whole(self.path / FACTS, json.dumps(self.facts, indent=1) + "\n")

    def amend(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change `study.json` based on its current contents, which other shards may have changed.

        Raises:
            OSError: the file cannot be written; it is unchanged.
        """
        with locks.lock(self.path, "updating", wait=True):
            self.facts = type(self).open(self.path).facts
            self.update(**change(self.facts))

    def begin(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Record a start, like `amend`, and forget this process's failures of an earlier start.

        Raises:
            RunError: it cannot be written.
        """
        try:
            self.amend(change)
            own = [self.path / FAILURES.format(self._mark)] if self.writer else self._failure_files()
            for file in own:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritten(self.path / FACTS, error) from None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows of finished runs, completely or not at all.

        Raises:
            RunError: they could not be written.
        """
        file = self.path / RECORDS / f"{self._next():06}{self._mark}.parquet"
        try:
            file.parent.mkdir(exist_ok=True)
            write_records(file, frame(rows))
        except (OSError, pl.exceptions.PolarsError) as error:  # PolarsError: the disk is full
            raise _unwritten(file, error) from None

    @property
    def _mark(self) -> str:
        """Suffix of this process's own files: empty without shards, else `-1`, `-2`, ..."""
        return f"-{self.writer}" if self.writer else ""

    def _next(self) -> int:
        return max((int(file.stem.split("-")[0]) for file in self._files() if file.name != TABLE), default=-1) + 1

    def _files(self) -> list[Path]:
        parts = sorted(file for file in (self.path / RECORDS).glob("*.parquet") if PART.fullmatch(file.name))
        return [*(file for file in [self.path / TABLE] if file.exists()), *parts]

    def compact(self) -> None:
        """Merge the records into one file. Call this with the lock held.

        A study that is resumed adds new files.

        Raises:
            OSError, polars.exceptions.PolarsError: it cannot be written; the records are
                unchanged.
        """
        parts = [file for file in self._files() if file.name != TABLE]
        if parts:
            write_records(self.path / TABLE, self.records())
        for file in parts:
            file.unlink()
        with contextlib.suppress(OSError):  # it holds somebody else's files
            (self.path / RECORDS).rmdir()

    def records(self) -> pl.DataFrame:
        """Return all finished runs, a row per variant, seed and evaluation.

        They are in the order of the study's variants and seeds. A run appears once even if two
        processes finished it, each assuming the other was dead.

        Raises:
            ConfigError: a file of records cannot be read.
        """
        if self.archive is None:
            parts = [_readable(file) for file in self._files()]
        else:
            whole = _readable(self.archive / TABLE)
            mine = whole.filter(study=str(self.path.relative_to(self.archive)))
            parts = [mine.select(self.facts["columns"])]
        if not parts:
            return frame([])
        order = {variant: i for i, variant in enumerate(self.facts["variants"])}
        seeds = {seed: i for i, seed in enumerate(self.facts["seeds"])}
        if self.is_part:
            parts = [part.filter(pl.col("seed").is_in(list(seeds))) for part in parts]
        try:
            several = pl.concat(parts, how="diagonal").unique(
                ["variant", "seed", "env_step"], keep="first", maintain_order=True
            )
        except pl.exceptions.PolarsError as error:
            raise ConfigError(
                f"{self.path / RECORDS}: contains a file that does not belong there ({reason(error)}); remove it"
            ) from None
        return several.sort(
            pl.col("variant").replace_strict(order, default=len(order)),
            pl.col("seed").replace_strict(seeds, default=len(seeds)),
            "env_step",
            maintain_order=True,
        )

    def summary(self) -> pl.DataFrame:
        """Return a row per variant: its figures with intervals, and the comparison with the base.

        See `tables.summary`. Without `solved`, columns that need it are left out. Without runs of
        the base, nothing is compared.
        """
        records, base = self.records(), self.facts["base"]
        return _told(tables.summary, records, self.solved, base if base in records["variant"] else None)

    def outcomes(self) -> pl.DataFrame:
        """Return a row per run with its outcome; see `tables.outcomes`.

        Without `solved`, columns that need it are left out.
        """
        return _told(tables.outcomes, self.records(), self.solved)

    @property
    def solved(self) -> float | None:
        """Mean return at which the task counts as solved; None: not defined."""
        solved = self.facts.get("solved")
        return None if solved is None else float(solved)

    def finished(self) -> set[tuple[str, int]]:
        """Return (variant, seed) of every finished run."""
        return set(self.records().select("variant", "seed").unique().iter_rows())

    def failed(self, failure: Failure) -> None:
        """Record that a variant cannot be run.

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
        """Return the variants that could not be run in the last start, each once.

        A line that was cut short, by a kill or a full disk, is skipped; its variant then has
        missing runs.
        """
        if self.archive is not None:
            return [Failure(**failure) for failure in self.facts["failures"]]
        lines = [line for file in self._failure_files() for line in file.read_text(encoding="utf-8").splitlines()]
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                found.append(Failure(**json.loads(line)))
        return list({failure.variant: failure for failure in reversed(found)}.values())[::-1]

    def _failure_files(self) -> list[Path]:
        return sorted(self.path.glob(FAILURES.format("*")))


def check_facts(file: Path, facts: Any, is_archived: bool = False) -> None:
    """Raise `ConfigError` unless these are a study's facts, from `study.json` or an archive."""
    texts = dict.fromkeys(("name", "question", "prediction", "base", "section", "status"), str)
    others = {"variants": dict, "overrides": dict, "seeds": list, "jobs": int, "width": int, "starts": list}
    others |= {"asked": dict} | ({"columns": list, "failures": list} if is_archived else {})
    expected: dict[str, type] = texts | others
    if isinstance(facts, dict) and "cells" in facts:
        raise ConfigError(
            f"{file}: was written by an earlier version; update it with: quantilax study {file.parent} --compact"
        )
    if not isinstance(facts, dict) or not all(isinstance(facts.get(k), t) for k, t in expected.items()):
        raise ConfigError(f"{file}: is damaged or not from a study; restore the original file")
    parts = {
        "variants": all(
            isinstance(fields, dict) and all(isinstance(fields.get(name), str) for name in ("algorithm", "env"))
            for fields in facts["variants"].values()
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
        raise ConfigError(f"{file}: {wrong[0]}: is damaged; restore the original file")


def read_json(file: Path) -> Any:
    """Read a file of facts; return None if it is not JSON.

    Raises:
        FileNotFoundError, NotADirectoryError: the file does not exist.
        ConfigError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        return None


def archived(directory: Path) -> dict[str, Any]:
    """Return the facts of the studies in a directory's archive, by their paths.

    Empty if there is no archive: every directory above a study is checked, whatever it contains.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ConfigError):
        studies = read_json(directory / ARCHIVE)
        return studies if isinstance(studies, dict) else {}
    return {}


def write_records(file: Path, records: pl.DataFrame) -> None:
    """Write a file of records completely or not at all.

    Raises:
        OSError, polars.exceptions.PolarsError: it could not be written.
    """
    aside = file.with_name(f"{file.name}.partial")
    try:
        write_parquet(records, aside)
        flush(aside)
        aside.replace(file)
        flush(file.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _readable(file: Path) -> pl.DataFrame:
    try:
        return read_parquet(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {reason(error)}") from None
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"{file}: is damaged ({reason(error)}); move it elsewhere and continue with --resume"
        ) from None


def _are_changes(found: Any) -> bool:
    """Say whether this is a valid list of changes (see `quantilax.studies.start`)."""
    of: dict[Any, Any] = {"prediction": str, "solved": (int, float, type(None))}
    return isinstance(found, list) and all(
        isinstance(change, dict)
        and change.get("field") in of
        and type(change.get("runs")) is int
        and all(isinstance(change.get(key), of[change["field"]]) for key in ("before", "after"))
        for change in found
    )


def _are_looks(found: Any) -> bool:
    """Say whether this maps variants to the numbers of held-out seeds they were judged with."""
    return isinstance(found, dict) and all(
        isinstance(numbers, list) and all(type(number) is int for number in numbers) for numbers in found.values()
    )


def _names(path: Path) -> set[str]:
    """Return the names in a directory, except those of locks."""
    return {file.name for file in path.iterdir() if not re.fullmatch(r"lock(-\d+)?|updating", file.name)}


def _is_cut_short(path: Path) -> bool:
    """Say whether a directory holds only what a killed `Store.create` leaves."""
    left = _names(path)
    made = {RECORDS, f"{FACTS}.partial"}
    return RECORDS in left and left <= made and (path / RECORDS).is_dir() and not any((path / RECORDS).iterdir())


def _unwritten(file: Path, error: Exception) -> RunError:
    return RunError(
        f"{file}: cannot be written: {reason(error)}; make room, then continue with --resume: finished runs are kept"
    )


SOLVING = ("first_solved", "solved_", "reached", "fell", "worst_drop")
"""Prefixes of the columns that need a threshold."""


def _told(
    statistic: Callable[..., pl.DataFrame], records: pl.DataFrame, solved: float | None, *more: Any
) -> pl.DataFrame:
    """Apply a statistic that takes a threshold; without one, drop the columns that depend on it."""
    told = statistic(records, 0.0 if solved is None else solved, *more)
    return told if solved is not None else told.drop(c for c in told.columns if c.startswith(SOLVING))


def frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return rows as a frame, with the columns common to all studies first, in their order."""
    types: dict[str, Any] = {"variant": pl.String, "seed": pl.Int64, "env_step": pl.Int64, "finite": pl.Boolean}
    rows = list(rows)
    names = ["variant", *COLUMNS, *dict.fromkeys(name for row in rows for name in row)]
    schema = {name: types.get(name, pl.Float64) for name in dict.fromkeys(names)}
    return pl.DataFrame(rows, schema=schema)


def with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Add hyperparameters that are newer than the study; they had their default values then."""
    defaults = pytree.defaults(algorithms.get(fields["algorithm"]).config)
    return {**json.loads(json.dumps(defaults)), **fields}


def facts_of(study: Study) -> dict[str, Any]:
    """Return a study as plain values, with every field of each variant."""
    return {
        "name": study.name,
        "question": study.question,
        "prediction": study.prediction,
        "solved": study.solved,
        "seeds": list(study.seeds),
        "base": study.base.name,
        "section": study.base.section.name,
        "overrides": json.loads(json.dumps({variant.name: variant.overrides for variant in study.variants})),
        "variants": {variant.name: plain(variant.section) for variant in study.variants},
    }
