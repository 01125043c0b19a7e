"""Loggers that may wait for others, for a network say: each in a thread of its own, so that nothing of a run waits for them."""

import time
from functools import partial
from types import TracebackType
from typing import Self

from quantilax.runs.background import Background
from quantilax.runs.evaluations import Entry
from quantilax.runs.loggers import Guarded, Logger
from quantilax.runs.progress import RunProgress
from quantilax.runs.signals import Stop

PATIENCE = 60.0
"""Seconds that the end of a run waits for them."""
SILENCE = 2.0
"""Seconds of these without a word."""
LEFT: list[Background] = []
"""Threads that are waited for no longer."""


class Beside:
    """Several loggers as one that never waits; leaving the context waits for what they still have to do, but not for long.

    A signal ends that waiting too, and an end at once does not begin it. A logger that is not done by then is left to
    itself with a warning.
    """

    def __init__(self, loggers: list[Logger], progress: RunProgress, stop: Stop) -> None:
        """Prepare; the threads begin with `begin`."""
        self.name, self.can_begin_again = "beside", False
        self.progress, self.stop = progress, stop
        self.pairs = [(Guarded([logger], progress.warn), Background(f"quantilax-{logger.name}")) for logger in loggers]

    def begin(self, history: list[Entry]) -> None:
        """Start all of them."""
        for guarded, thread in self.pairs:
            thread.start()
            thread.put(partial(guarded.begin, list(history)))

    def log(self, entry: Entry) -> None:
        """Add an evaluation to all of them."""
        for guarded, thread in self.pairs:
            thread.put(partial(guarded.log, entry))

    def close(self) -> None:
        """Close all of them."""
        for guarded, thread in self.pairs:
            thread.put(guarded.close)

    def __enter__(self) -> Self:
        """Nothing is begun yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for them, unless the process is to end at once."""
        for _, thread in self.pairs:
            thread.end()
        if isinstance(error, KeyboardInterrupt) and getattr(error, "at_once", True):
            return
        self.stop.cut_short(self._wait)
        for guarded, thread in self._at_work():
            guarded.leave()
            LEFT.append(thread)

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        self._join(time.monotonic() + min(SILENCE, PATIENCE))
        if names := [logger.name for guarded, _ in self._at_work() for logger in guarded.loggers]:
            self.progress.say(f"waiting for {' and '.join(names)}, {PATIENCE:g} s at most; Ctrl-C ends the waiting")
            self._join(end)

    def _join(self, end: float) -> None:
        for _, thread in self.pairs:
            thread.join(max(0.0, end - time.monotonic()))

    def _at_work(self) -> list[tuple[Guarded, Background]]:
        return [pair for pair in self.pairs if pair[1].is_at_work]


def is_any_left() -> bool:
    """Say whether a logger that was left to itself is still at work: the interpreter's exit may wait for it."""
    return any(thread.is_at_work for thread in LEFT)
