"""What a user sees while a run goes on: a bar in a terminal, plain lines elsewhere, nothing if asked to be quiet."""

from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from quantilax.types import Record


class RunProgress:
    """Progress of one run on standard error.

    Use as a context manager around the run; `compiled` once, then `evaluated` after each segment.
    """

    def __init__(self, total_steps: int, quiet: bool = False, console: Console | None = None) -> None:
        """Prepare for a run of `total_steps` environment steps per seed."""
        self.total = total_steps
        self.first: tuple[int, float] | None = None
        self.console = console or Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · {task.fields[speed]} · "),
            TimeRemainingColumn(compact=True),
            TextColumn("left · {task.fields[evaluation]}"),
            console=self.console,
            disable=not self.console.is_terminal or quiet,
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
        """Leave the bar as it stands."""
        if not self.bar.disable:  # rich 14.0 would print an empty line
            self.bar.stop()

    def compiled(self, trace_seconds: float, compile_seconds: float) -> None:
        """Say how long compiling took, and begin to count steps."""
        total = trace_seconds + compile_seconds
        self.console.print(f"compiled in {total:.1f} s ({trace_seconds:.1f} s of it tracing)")
        self.bar.reset(self.task, total=self.total, description="training")

    def evaluated(self, record: Record, seconds: float) -> None:
        """Show an evaluation; `record` has a leading axis of seeds."""
        step = int(np.asarray(record.env_step)[0])
        seeds = len(np.asarray(record.returns))
        means = np.asarray(record.returns).mean(axis=1)
        spread = f" ({means.min():.1f} to {means.max():.1f} over {seeds} seeds)" if seeds > 1 else ""
        evaluation = f"return {means.mean():.1f}{spread}"
        if self.first is None:
            self.first = step, seconds
        done, elapsed = (
            step - self.first[0],
            seconds - self.first[1],
        )  # without warm-up and the evaluation before training
        speed = f"{done * seeds / elapsed:,.0f} steps/s" if done else "- steps/s"
        self.bar.update(self.task, completed=step, speed=speed, evaluation=evaluation)
        if self.bar.disable:
            left = f"{elapsed * (self.total - step) / done:.0f} s left" if done else "- s left"
            self.console.print(f"step {step:,} of {self.total:,} · {speed} · {left} · {evaluation}")
