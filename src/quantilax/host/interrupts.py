"""Ctrl-C, SIGTERM and SIGHUP: the first lets a segment end and be saved, the second ends at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from quantilax.host import background

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; what it wrote is kept. `exit_status`: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP."""

    def __init__(self, message: str, number: int, at_once: bool = False) -> None:
        """Tell with `message` how to go on, and with `at_once` that a compiled program may still run."""
        super().__init__(message)
        self.exit_status = 128 + number
        self.at_once = at_once


class Stop:
    """Handlers of `SIGNALS` for as long as the context lasts; without effect outside the main thread.

    At first a signal is held, so that what says how a run stands is written; `release` acts on it. From then on the first
    signal ends at once, or, where `is_training` is set and there is something to save, lets the segment end. A signal that is
    ignored, as by `nohup` or in a background job of a script, stays ignored.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Prepare; `tell` is called with a line at the first signal."""
        self.tell = tell
        self.is_holding = True
        self.held: int | None = None
        self.is_training = False
        self.requested: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (
                    signal.SIG_IGN,
                    None,
                ):  # None: a handler that Python could not put back
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back the handlers that were there."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Hold signals from here on."""
        self.is_holding = True

    def release(self) -> None:
        """Hold no more signals.

        Raises:
            Interrupted: one was held.
        """
        self.is_holding = False
        if self.held is not None:
            raise Interrupted("ended at once", self.held)

    def cut_short(self, wait: Callable[[], None]) -> None:
        """Call a function that waits: a signal ends the waiting, and nothing else. Afterwards signals are held."""
        self.is_training = False
        try:
            self.release()
            wait()
        except Interrupted:
            pass
        finally:
            self.hold()

    def finish_first(self, function: Callable[[], T]) -> T:
        """Call a function that a signal must not break into, as what traces: JAX's callbacks swallow exceptions.

        Raises:
            Interrupted: a signal came meanwhile.
        """
        self.hold()
        try:
            return function()
        finally:
            self.is_holding = False
            if self.held is not None:
                raise Interrupted("ended at once", self.held, at_once=True)

    def wait_for(self, function: Callable[[], T]) -> T:
        """Call a function that Python cannot interrupt (a compiled program) and stay able to handle signals meanwhile."""
        return background.call(function)()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_holding:
            self.held = number
        elif self.is_training and self.requested is None:
            self.requested = number
            self.tell("stopping: the segment ends and is saved; once more ends at once")
        else:
            raise Interrupted("ended at once", number, at_once=True)
