"""Progress of a run: a bar in a terminal, plain lines elsewhere, nothing with `quiet`."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from quantilax.host import console
from quantilax.runs.evaluations import Entry


class RunProgress:
    """Progress of one run, shown on standard error.

    Use it as a context manager around the run. Call `compiling` and `compiled` once, then
    `evaluated` after each segment.
    """

    def __init__(self, total_steps: int, quiet: bool = False, onto: Console | None = None) -> None:
        """Prepare for a run of `total_steps` environment steps per seed."""
        self.total = total_steps
        self.first: tuple[int, float] | None = None
        self.console = onto or console.console(quiet)
        self.log = console.Log(self.console)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · {task.fields[speed]} · "),
            TimeRemainingColumn(compact=True),
            TextColumn("left · {task.fields[evaluation]}"),
            console=self.console,
            disable=not console.is_live(self.console),
        )
        self.task = self.bar.add_task("compiling", total=None, speed="- steps/s", evaluation="return -")

    def __enter__(self) -> Self:
        """Show the bar."""
        if not self.bar.disable:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar and leave it on the screen."""
        if self.bar.disable:  # rich 14.0 would print an empty line
            self.log.end()
        else:
            self.bar.stop()

    def compiling(self) -> None:
        """Say that compiling begins, unless a bar shows it."""
        if self.bar.disable:
            self.log.say("compiling")

    def compiled(self, trace_seconds: float, compile_seconds: float) -> None:
        """Say how long compiling took, and start to count steps."""
        total = trace_seconds + compile_seconds
        self.log.say(f"compiled in {total:.1f} s ({trace_seconds:.1f} s of it tracing)")
        self.bar.reset(self.task, total=self.total, description="training")

    def resumed(self, step: int, seconds: float) -> None:
        """Say at which step the run continues.

        Args:
            step: environment steps so far.
            seconds: seconds of training so far.
        """
        self.say(f"continuing from step {step:,} of {self.total:,}")
        self.first = step, seconds
        self.bar.update(self.task, completed=step)

    def say(self, line: str) -> None:
        """Print a line, except with `quiet`."""
        self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Print a line that begins with `warning:`, even with `quiet`."""
        heard = console.console() if self.console.quiet else self.console
        heard.print(f"warning: {line}", markup=False)

    def evaluated(self, entry: Entry) -> None:
        """Show an evaluation and the speed."""
        step, seeds, means = entry.env_step, len(entry.seeds), entry.all
        spread = ""
        if seeds > 1:
            spread = f" ({means['return_lowest']:.1f} to {means['return_highest']:.1f} over {seeds} seeds)"
        evaluation = f"return {means['return_mean']:.1f}{spread}"
        if self.first is None:  # the speed leaves out warm-up and first evaluation
            self.first = step, entry.seconds
        done, elapsed = step - self.first[0], entry.seconds - self.first[1]
        speed = f"{done * seeds / elapsed:,.0f} steps/s" if done else "- steps/s"
        self.bar.update(self.task, completed=step, speed=speed, evaluation=evaluation)
        if self.bar.disable:
            left = f" · {speed} · {elapsed * (self.total - step) / done:.0f} s left" if done else ""
            self.log.progress(f"step {step:,} of {self.total:,}{left} · {evaluation}")
