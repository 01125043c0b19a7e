"""Loggers write a run's learning curve in common formats, per seed and for all seeds together.

A run always writes `evaluations.csv`, `evaluations.jsonl` and `evaluations.parquet`; TensorBoard
and Weights & Biases are optional. A logger that fails does not end a run: there is one warning,
and the run's own files are completed as soon as they can be written.
"""

import contextlib
import csv
import importlib.util
import io
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from quantilax.errors import ConfigError, did_you_mean, reason
from quantilax.host.background import Background
from quantilax.host.files import flush, read_parquet, write_parquet, write_whole
from quantilax.host.interrupts import Stop
from quantilax.runs.evaluations import Entry, finite_or_none


class Logger(Protocol):
    """Receives a run's evaluations.

    `begin` is called first, with the evaluations from before a resume (else none). Then `log` is
    called for each evaluation, and `close` at the end.
    """

    name: str
    can_begin_again: bool
    """Whether `begin` rewrites everything, so that calling it again repairs a failure."""

    def begin(self, history: list[Entry]) -> None:
        """Start with the evaluations so far."""

    def log(self, entry: Entry) -> None:
        """Add an evaluation."""

    def close(self) -> None:
        """Finish what is still open."""


class CSV:
    """`evaluations.csv`: a row per evaluation and seed."""

    def __init__(self, run: Path) -> None:
        """Prepare to write into a run's directory."""
        self.name, self.can_begin_again = "evaluations.csv", True
        self.path = run / self.name

    def begin(self, history: list[Entry]) -> None:
        """Rewrite the file with the history."""
        self.path.write_text("".join(self._lines(e, header=i == 0) for i, e in enumerate(history)), encoding="utf-8")

    def log(self, entry: Entry) -> None:
        """Append a row per seed."""
        header = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(self._lines(entry, header))

    def close(self) -> None:
        """Flush to disk, so that a crash of the machine loses nothing; no file is open."""
        flush(self.path)

    def _lines(self, entry: Entry, header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if header:
            writer.writerow(entry.seeds[0])
        for row in entry.seeds:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) and k != "seconds" else v for k, v in row.items()])
        return text.getvalue()


class JSONLines:
    """`evaluations.jsonl`: a line per evaluation.

    A line is `{"env_step", "seconds", "all": {...}, "seeds": [{...}, ...]}`.
    """

    def __init__(self, run: Path) -> None:
        """Prepare to write into a run's directory."""
        self.name, self.can_begin_again = "evaluations.jsonl", True
        self.path = run / self.name

    def begin(self, history: list[Entry]) -> None:
        """Rewrite the file with the history."""
        self.path.write_text("".join(map(self._line, history)), encoding="utf-8")

    def log(self, entry: Entry) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(self._line(entry))

    def close(self) -> None:
        """Flush to disk, so that a crash of the machine loses nothing; no file is open."""
        flush(self.path)

    def _line(self, entry: Entry) -> str:
        def clean(row: dict[str, Any]) -> dict[str, Any]:
            return {name: finite_or_none(value) for name, value in row.items()}

        line = {
            "env_step": entry.env_step,
            "seconds": round(entry.seconds, 3),
            "all": clean(entry.all),
            "seeds": [clean(row) for row in entry.seeds],
        }
        return json.dumps(line) + "\n"


class Parquet:
    """`evaluations.parquet`: a row per evaluation and seed, with lists of the episodes' results.

    The lists hold the return and the length of every episode. Parquet files cannot be appended to,
    so the file is rewritten each time it has grown by a tenth, and at the end.
    """

    def __init__(self, run: Path) -> None:
        """Prepare to write into a run's directory."""
        self.name, self.can_begin_again = "evaluations.parquet", True
        self.path = run / self.name
        self.rows: list[dict[str, Any]] = []
        self.entries = 0
        self.written = 0

    def begin(self, history: list[Entry]) -> None:
        """Rewrite the file with the history."""
        self.rows, self.entries, self.written = [], 0, 0
        for entry in history:
            self._add(entry)
        if history:
            self._write()

    def log(self, entry: Entry) -> None:
        """Add an evaluation, and write the file if it has grown by a tenth."""
        self._add(entry)
        if self.entries >= 1.1 * self.written:
            self._write()

    def close(self) -> None:
        """Write the rows that are not in the file yet."""
        if self.entries > self.written:
            self._write()
        if self.written:
            flush(self.path)

    def _add(self, entry: Entry) -> None:
        self.entries += 1
        self.rows += rows(entry)

    def _write(self) -> None:
        written = table(self.rows)
        aside = self.path.with_name(self.name + ".partial")
        try:
            write_parquet(written, aside)
            aside.replace(self.path)
        finally:
            aside.unlink(missing_ok=True)
        self.written = self.entries


def rows(entry: Entry) -> list[dict[str, Any]]:
    """Return the rows of `evaluations.parquet`: a row per seed, with its episodes' results."""
    parts = zip(entry.seeds, entry.returns, entry.lengths, strict=True)
    return [{**row, "returns": returns.tolist(), "lengths": lengths.tolist()} for row, returns, lengths in parts]


def table(rows: list[dict[str, Any]]) -> "pl.DataFrame":  # type: ignore[name-defined]
    """Put the `rows` of all evaluations into a frame with the types of `evaluations.parquet`."""
    import polars as pl  # slow to import: a good part of a second

    types: dict[str, Any] = dict.fromkeys(rows[0], pl.Float64)
    types |= {"seed": pl.Int64, "env_step": pl.Int64, "returns": pl.List(pl.Float32), "lengths": pl.List(pl.Int32)}
    return pl.DataFrame(rows, schema=types)


class TensorBoard:
    """`tensorboard/`: event files, a directory per seed and one for all, overlaid in one chart."""

    def __init__(self, run: Path) -> None:
        """Prepare to write into a run's directory."""
        self.name, self.can_begin_again = "tensorboard", False
        self.root = run / "tensorboard"
        self.writers: dict[str, Any] = {}

    def begin(self, history: list[Entry]) -> None:
        """Rewrite the event files, so that none holds steps a resumed run has not reached."""
        import tensorboardX  # imported here, so that a broken install is only a failed logger

        self.make = tensorboardX.SummaryWriter
        shutil.rmtree(self.root, ignore_errors=True)
        for entry in history:
            self.log(entry)

    def log(self, entry: Entry) -> None:
        """Add the scalars of each seed and of all seeds."""
        for row in entry.seeds:
            self._scalars(f"seed-{row['seed']}", row)
        self._scalars("all", entry.all)

    def close(self) -> None:
        """Close the event files."""
        for writer in self.writers.values():
            writer.close()

    def _scalars(self, part: str, row: dict[str, Any]) -> None:
        if part not in self.writers:
            self.writers[part] = self.make(str(self.root / part))
        for name, value in _scalars(row):
            self.writers[part].add_scalar(name, value, row["env_step"])
        self.writers[part].flush()


class WandB:
    """Weights & Biases: one run with `<column>/seed-<n>` and `<column>/all`.

    `WANDB_MODE=offline` keeps it on this machine.
    """

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        """Prepare to write into a run's directory, or wherever wandb is configured to."""
        self.name, self.can_begin_again = "wandb", False
        self.run, self.config = run, config
        self.session: Any = None

    def begin(self, history: list[Entry]) -> None:
        """Start a wandb run, or continue the one of this run, which has the history already."""
        import wandb  # imported here, as above

        identity = self.run / "wandb" / "id"
        identity.parent.mkdir(exist_ok=True)
        known = identity.read_text(encoding="utf-8") if identity.exists() else ""
        name = known or uuid.uuid4().hex[:12]
        self.session = wandb.init(
            id=name,
            resume="allow",
            dir=str(self.run),
            name=self.run.resolve().name,
            config=self.config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        for entry in history if not known else []:
            self.log(entry)
        write_whole(identity, name)  # only now: a start that failed is repeated with the whole history

    def log(self, entry: Entry) -> None:
        """Add an evaluation at its environment step."""
        values = {f"{name}/all": value for name, value in _scalars(entry.all)}
        for row in entry.seeds:
            values |= {f"{name}/seed-{row['seed']}": value for name, value in _scalars(row)}
        self.session.log(values, step=entry.env_step)

    def close(self) -> None:
        """Finish the wandb run."""
        if self.session is not None:
            self.session.finish()


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Optional loggers and the package each needs; an extra has the logger's name."""


def check(names: Iterable[str]) -> None:
    """Raise `ConfigError` if a logger is unknown, given twice or not installed.

    The message names the command that installs it.
    """
    names = list(names)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"log: {name} is given twice; leave one out")
        if name not in PACKAGES:
            raise ConfigError(f"log: unknown logger '{name}'{did_you_mean(name, PACKAGES, 'loggers')}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(f"log: {PACKAGES[name]} is not installed; pip install 'quantilax[{name}]'")


def own(run: Path) -> list[Logger]:
    """Return the loggers of a run's own files."""
    return [CSV(run), JSONLines(run), Parquet(run)]


def are_whole(run: Path, evaluations: int, seeds: int) -> bool:
    """Say whether a run's own tables have all rows of this many evaluations."""
    import polars as pl

    expected = {"evaluations.csv": evaluations * seeds + 1, "evaluations.jsonl": evaluations}
    try:
        lines = {name: (run / name).read_bytes().count(b"\n") for name in expected}
        rows = read_parquet(run / "evaluations.parquet").height
    except (OSError, pl.exceptions.PolarsError):
        return False
    return lines == expected and rows == evaluations * seeds


def others(names: Iterable[str], run: Path, config: dict[str, Any]) -> list[Logger]:
    """Return the optional loggers of these names (see `check`)."""
    return [TensorBoard(run) if name == "tensorboard" else WandB(run, config) for name in names]


PATIENCE = 60.0
"""Seconds that the end of a run waits for slow loggers."""
SILENCE = 2.0
"""Seconds of this wait before a message says so."""


class Writer:
    """A thread that passes evaluations to loggers, so that they can neither delay nor end a run.

    A logger's failure is reported once. If the logger can begin again, it gets the whole history
    with the next evaluation.
    """

    def __init__(self, loggers: list[Logger], warn: Callable[[str], None]) -> None:
        """Prepare the thread; `warn` is called with a line for each logger that failed."""
        self.loggers, self.warn = loggers, warn
        self.thread = Background(f"quantilax-{loggers[0].name}")
        self.history: list[Entry] = []
        self.failed: set[str] = set()
        self.behind: set[str] = set()

    def begin(self, history: list[Entry]) -> None:
        """Start all loggers with the evaluations so far."""
        self.thread.put(partial(self._begin, list(history)))

    def log(self, entry: Entry) -> None:
        """Add an evaluation."""
        self.thread.put(partial(self._log, entry))

    def close(self) -> None:
        """Close all loggers once they have what was added."""
        self.thread.put(self._close)

    def leave(self) -> None:
        """Warn that the loggers are no longer waited for; they report nothing after that."""
        for logger in self.loggers:
            line = f"{logger.name} has not finished and is no longer waited for; some of its data may be missing"
            self._tell(logger, line)

    def _begin(self, history: list[Entry]) -> None:
        self.history = history
        for logger in self.loggers:
            self._try(logger, partial(logger.begin, self.history))

    def _log(self, entry: Entry) -> None:
        self.history.append(entry)
        for logger in self.loggers:
            if logger.name not in self.behind:
                self._try(logger, partial(logger.log, entry))
            elif logger.can_begin_again:
                self._try(logger, partial(logger.begin, self.history))

    def _close(self) -> None:
        for logger in self.loggers:
            if logger.name in self.behind and logger.can_begin_again:
                self._try(logger, partial(logger.begin, self.history))
            self._try(logger, logger.close)

    def _try(self, logger: Logger, act: Callable[[], None]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # a logger may raise anything
            self.behind.add(logger.name)
            self._tell(logger, f"{logger.name} could not be written ({reason(error)}); the run goes on")
        else:
            self.behind.discard(logger.name)

    def _tell(self, logger: Logger, line: str) -> None:
        if logger.name not in self.failed:
            self.failed.add(logger.name)
            self.warn(line)


LEFT: list[Writer] = []
"""Writers that are no longer waited for."""


@contextlib.contextmanager
def waited_for(writers: list[Writer], say: Callable[[str], None], stop: Stop) -> Iterator[None]:
    """Start the writers; at the end of the context, wait up to `PATIENCE` for slow loggers.

    A signal ends the wait, and a process that should end at once does not wait. A writer that is
    not done by then is left with a warning.
    """
    at_once = False
    for writer in writers:
        writer.thread.start()
    try:
        yield
    except KeyboardInterrupt as error:
        at_once = getattr(error, "at_once", True)
        raise
    finally:
        for writer in writers:
            writer.thread.end()
        if not at_once:
            stop.cut_short(partial(_wait, writers, say))
            for writer in _at_work(writers):
                writer.leave()
                LEFT.append(writer)


def _wait(writers: list[Writer], say: Callable[[str], None]) -> None:
    end = time.monotonic() + PATIENCE
    _join(writers, time.monotonic() + min(SILENCE, PATIENCE))
    if names := [logger.name for writer in _at_work(writers) for logger in writer.loggers]:
        say(f"waiting for {' and '.join(names)}, at most {PATIENCE:g} s; Ctrl-C stops waiting")
        _join(writers, end)


def _join(writers: list[Writer], end: float) -> None:
    for writer in writers:
        writer.thread.join(max(0.0, end - time.monotonic()))


def _at_work(writers: list[Writer]) -> list[Writer]:
    return [writer for writer in writers if writer.thread.is_at_work]


def is_any_left() -> bool:
    """Say whether an abandoned logger is still at work; the interpreter's exit may wait for it."""
    return bool(_at_work(LEFT))


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    return [(k, float(v)) for k, v in row.items() if v is not None and k not in ("seed", "env_step", "num_seeds")]
