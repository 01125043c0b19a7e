"""Progress of a study: a bar in a terminal, plain lines elsewhere, nothing with `quiet`."""

import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from quantilax.host import console


class HasRuns(Protocol):
    """A batch of runs of one compile group."""

    @property
    def group(self) -> int:
        """The number of the compile group, from 0."""

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """The runs, each as (variant, seed)."""


class StudyProgress:
    """Progress of one start of a study, shown on standard error; use it as a context manager."""

    def __init__(self, runs: int, quiet: bool = False) -> None:
        """Prepare for `runs` runs."""
        self.total, self.done = runs, 0
        self.group: int | None = None
        self.start = time.perf_counter()
        self.console = console.console(quiet)
        self.log = console.Log(self.console)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs · "),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=not console.is_live(self.console),
        )
        self.task = self.bar.add_task("compiling", total=runs)

    def __enter__(self) -> Self:
        """Show the bar."""
        self.start = time.perf_counter()
        if not self.bar.disable:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar and leave it on the screen."""
        if self.bar.disable:
            self.log.end()
        else:
            self.bar.stop()

    def began(self, batch: HasRuns, groups: int) -> None:
        """Say which compile group begins, if it is a new one."""
        if batch.group != self.group:
            self.group = batch.group
            self.log.say(f"compile group {batch.group + 1} of {groups}")

    def finished(self, batch: HasRuns, rows: list[dict[str, Any]]) -> None:
        """Show the last evaluation of each run of a batch."""
        self.done += len(batch.runs)
        elapsed = time.perf_counter() - self.start
        left = elapsed * (self.total - self.done) / self.done
        last = {(row["variant"], row["seed"]): row["return_mean"] for row in rows}
        self.bar.update(self.task, completed=self.done, description="training")
        if self.bar.disable:
            ends = "; ".join(f"{variant} seed {seed}: {value:.1f}" for (variant, seed), value in last.items())
            self.log.progress(f"{self.done} of {self.total} runs · {left:.0f} s left · {ends}")

    def say(self, line: str) -> None:
        """Print a line, except with `quiet`."""
        self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Print a line that begins with `warning:`, even with `quiet`."""
        heard = console.console() if self.console.quiet else self.console
        heard.print(f"warning: {line}", markup=False)
