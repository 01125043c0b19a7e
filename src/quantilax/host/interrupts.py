"""Ctrl-C, SIGTERM and SIGHUP: a first signal ends a run after its segment, a second one at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from quantilax.host import background

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run; what the run wrote is kept.

    `exit_status` is 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """

    def __init__(self, message: str, number: int, at_once: bool = False) -> None:
        """Say in `message` how to continue; `at_once`: a compiled program may still be running."""
        super().__init__(message)
        self.exit_status = 128 + number
        self.at_once = at_once


class Stop:
    """Handlers for `SIGNALS` while the context lasts; they do nothing outside the main thread.

    Signals are held at first, so that the run's status can be written; `release` acts on a held
    one. From then on the first signal ends at once, unless `is_training` is set: then it sets
    `requested`, so that the segment ends and is saved, and the second ends at once. A signal that
    is ignored, as under `nohup` or in a script's background job, stays ignored.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Prepare; `tell` is called with a line at the first signal during training."""
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
                ):  # None: Python could not restore that handler
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the previous handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Hold signals from now on."""
        self.is_holding = True

    def release(self) -> None:
        """Stop holding signals.

        Raises:
            Interrupted: one was held.
        """
        self.is_holding = False
        self._raise_held()

    def cut_short(self, wait: Callable[[], None]) -> None:
        """Call a function that waits; a signal only ends the wait. Afterwards signals are held."""
        self.is_training = False
        try:
            self.release()
            wait()
        except Interrupted:
            pass
        finally:
            self.hold()

    def finish_first(self, function: Callable[[], T]) -> T:
        """Call a function that no signal may interrupt.

        Tracing needs this: JAX's callbacks swallow exceptions.

        Raises:
            Interrupted: a signal came meanwhile.
        """
        self.hold()
        try:
            return function()
        finally:
            self.is_holding = False
            self._raise_held(at_once=True)

    def wait_for(self, function: Callable[[], T]) -> T:
        """Call a function that Python cannot interrupt, such as a compiled program.

        It runs in a thread of its own, so that the main thread can handle signals meanwhile.

        Raises:
            Interrupted: a signal came meanwhile, or one before it was swallowed.
        """
        result = background.call(function)()
        self._raise_held(at_once=True)
        return result

    def _raise_held(self, at_once: bool = False) -> None:
        if self.held is not None:
            raise Interrupted("ended at once", self.held, at_once)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_holding:
            self.held = number
        elif self.is_training and self.requested is None:
            self.requested = number
            self.tell("stopping: this segment ends and is saved; a second signal ends at once")
        else:
            self.held = number  # destructors and callbacks of the garbage collector swallow what is raised
            raise Interrupted("ended at once", number, at_once=True)
