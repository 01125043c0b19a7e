"""Loggers: the curve of a run in the formats that people read, each seed apart and all together.

A run always writes `evaluations.csv`, `evaluations.jsonl` and `evaluations.parquet`; TensorBoard and Weights & Biases are
asked for by name. A logger that fails ends no run: there is one warning, and the files are made whole when they can be.
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
    """What a run tells of its evaluations.

    `begin` comes first, with all that a resumed run did before (else nothing); then `log` for each evaluation, then `close`.
    """

    name: str
    can_begin_again: bool
    """`begin` replaces all that was written: after a failure it mends."""

    def begin(self, history: list[Entry]) -> None:
        """Start, with the evaluations that there are already."""

    def log(self, entry: Entry) -> None:
        """Add an evaluation."""

    def close(self) -> None:
        """Finish what was left open."""


class CSV:
    """`evaluations.csv`: a row per evaluation and seed."""

    def __init__(self, run: Path) -> None:
        """Write into a run's directory."""
        self.name, self.can_begin_again = "evaluations.csv", True
        self.path = run / self.name

    def begin(self, history: list[Entry]) -> None:
        """Write the history anew."""
        self.path.write_text("".join(self._lines(e, header=i == 0) for i, e in enumerate(history)), encoding="utf-8")

    def log(self, entry: Entry) -> None:
        """Append the seeds' rows."""
        header = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(self._lines(entry, header))

    def close(self) -> None:
        """Nothing is open; see to it that a crash of the machine loses nothing."""
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
    """`evaluations.jsonl`: a line per evaluation, `{"env_step", "seconds", "all": {...}, "seeds": [{...}, ...]}`."""

    def __init__(self, run: Path) -> None:
        """Write into a run's directory."""
        self.name, self.can_begin_again = "evaluations.jsonl", True
        self.path = run / self.name

    def begin(self, history: list[Entry]) -> None:
        """Write the history anew."""
        self.path.write_text("".join(map(self._line, history)), encoding="utf-8")

    def log(self, entry: Entry) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(self._line(entry))

    def close(self) -> None:
        """Nothing is open; see to it that a crash of the machine loses nothing."""
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
    """`evaluations.parquet`: a row per evaluation and seed, with every episode's return and length as lists.

    Parquet cannot be appended to: it is written anew each time it has grown by a tenth, and at the end.
    """

    def __init__(self, run: Path) -> None:
        """Write into a run's directory."""
        self.name, self.can_begin_again = "evaluations.parquet", True
        self.path = run / self.name
        self.rows: list[dict[str, Any]] = []
        self.entries = 0
        self.written = 0

    def begin(self, history: list[Entry]) -> None:
        """Write the history anew."""
        self.rows, self.entries, self.written = [], 0, 0
        for entry in history:
            self._add(entry)
        if history:
            self._write()

    def log(self, entry: Entry) -> None:
        """Add an evaluation, and write now and then."""
        self._add(entry)
        if self.entries >= 1.1 * self.written:
            self._write()

    def close(self) -> None:
        """Write what is not written yet."""
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
    """Rows of `evaluations.parquet`: those of the seeds, with every episode's return and length."""
    parts = zip(entry.seeds, entry.returns, entry.lengths, strict=True)
    return [{**row, "returns": returns.tolist(), "lengths": lengths.tolist()} for row, returns, lengths in parts]


def table(rows: list[dict[str, Any]]) -> "pl.DataFrame":  # type: ignore[name-defined]
    """Put `rows` of all evaluations into a frame, with the types of `evaluations.parquet`."""
    import polars as pl  # takes a good part of a second

    types: dict[str, Any] = dict.fromkeys(rows[0], pl.Float64)
    types |= {"seed": pl.Int64, "env_step": pl.Int64, "returns": pl.List(pl.Float32), "lengths": pl.List(pl.Int32)}
    return pl.DataFrame(rows, schema=types)


class TensorBoard:
    """`tensorboard/`: event files, a directory per seed and one for all, so that one chart overlays them."""

    def __init__(self, run: Path) -> None:
        """Write into a run's directory."""
        self.name, self.can_begin_again = "tensorboard", False
        self.root = run / "tensorboard"
        self.writers: dict[str, Any] = {}

    def begin(self, history: list[Entry]) -> None:
        """Write the history anew: a resumed run leaves no steps that it has not done."""
        import tensorboardX  # here, where a broken install is a logger that fails

        self.make = tensorboardX.SummaryWriter
        shutil.rmtree(self.root, ignore_errors=True)
        for entry in history:
            self.log(entry)

    def log(self, entry: Entry) -> None:
        """Add the seeds' scalars and those of all."""
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
    """Weights & Biases: one run, `<column>/seed-<n>` and `<column>/all`. `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        """Write into a run's directory, or to where wandb was told to."""
        self.name, self.can_begin_again = "wandb", False
        self.run, self.config = run, config
        self.session: Any = None

    def begin(self, history: list[Entry]) -> None:
        """Start a run of wandb, or go on with the one that this run began; then the history is there already."""
        import wandb  # as above

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
        write_whole(identity, name)  # only now: one that could not be begun is begun again, with the whole history

    def log(self, entry: Entry) -> None:
        """Add an evaluation at its environment step."""
        values = {f"{name}/all": value for name, value in _scalars(entry.all)}
        for row in entry.seeds:
            values |= {f"{name}/seed-{row['seed']}": value for name, value in _scalars(row)}
        self.session.log(values, step=entry.env_step)

    def close(self) -> None:
        """Finish the run of wandb."""
        if self.session is not None:
            self.session.finish()


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Loggers to ask for, and what each needs; an extra has its name."""


def check(names: Iterable[str]) -> None:
    """Raise `ConfigError` for a logger that is unknown, or not installed, with the command that installs it."""
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
    """Say whether a run's own tables have all rows of so many evaluations."""
    import polars as pl

    expected = {"evaluations.csv": evaluations * seeds + 1, "evaluations.jsonl": evaluations}
    try:
        lines = {name: (run / name).read_bytes().count(b"\n") for name in expected}
        rows = read_parquet(run / "evaluations.parquet").height
    except (OSError, pl.exceptions.PolarsError):
        return False
    return lines == expected and rows == evaluations * seeds


def others(names: Iterable[str], run: Path, config: dict[str, Any]) -> list[Logger]:
    """Return the loggers that were asked for (see `check`)."""
    return [TensorBoard(run) if name == "tensorboard" else WandB(run, config) for name in names]


PATIENCE = 60.0
"""Seconds that the end of a run waits for slow loggers."""
SILENCE = 2.0
"""Seconds of these without a word."""


class Writer:
    """A thread that hands evaluations to loggers, so that a run waits for none of them and none can end it.

    A logger that fails is reported once. It gets the whole history with the next evaluation if it can begin again.
    """

    def __init__(self, loggers: list[Logger], warn: Callable[[str], None]) -> None:
        """Prepare the thread; `warn` is called with a line on each logger that failed."""
        self.loggers, self.warn = loggers, warn
        self.thread = Background(f"quantilax-{loggers[0].name}")
        self.history: list[Entry] = []
        self.failed: set[str] = set()
        self.behind: set[str] = set()

    def begin(self, history: list[Entry]) -> None:
        """Start all loggers, with the evaluations that there are already."""
        self.thread.put(partial(self._begin, list(history)))

    def log(self, entry: Entry) -> None:
        """Add an evaluation."""
        self.thread.put(partial(self._log, entry))

    def close(self) -> None:
        """Close all loggers after what was added."""
        self.thread.put(self._close)

    def leave(self) -> None:
        """Say that the loggers are no longer waited for; nothing is said of them from here on."""
        for logger in self.loggers:
            line = f"{logger.name} is not done and no longer waited for; what it has not written may be missing there"
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
    """Wait for slow loggers at the end of the context, for `PATIENCE` at most; a signal ends the waiting.

    A process that is to end at once does not wait. A writer that is not done by then is left with a warning.
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
        say(f"waiting for {' and '.join(names)}, {PATIENCE:g} s at most; Ctrl-C ends the waiting")
        _join(writers, end)


def _join(writers: list[Writer], end: float) -> None:
    for writer in writers:
        writer.thread.join(max(0.0, end - time.monotonic()))


def _at_work(writers: list[Writer]) -> list[Writer]:
    return [writer for writer in writers if writer.thread.is_at_work]


def is_any_left() -> bool:
    """Say whether a logger that was left is still at work: the interpreter's exit may wait for it."""
    return bool(_at_work(LEFT))


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    return [(k, float(v)) for k, v in row.items() if v is not None and k not in ("seed", "env_step", "num_seeds")]
