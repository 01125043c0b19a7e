"""What the program does before it imports anything heavy, and so before any of its own work can be lost."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
SHOW_CURSOR = b"\x1b[?25h"


def prepare() -> None:
    """Take signals and streams in hand."""
    _open_closed_streams()
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]  # 0: of a terminal that does not tell its width; Rich would print nothing
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in DEFAULTS:  # what is ignored, as by `nohup`, stays ignored
                signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process here and now.

    An exception would be a traceback while modules are imported, and would be lost in a callback of JAX or a finalizer. There
    is nothing to save: while a run or a study has something, `quantilax.host.interrupts.Stop` handles signals.
    """
    with contextlib.suppress(OSError):
        is_drawn = os.isatty(2) and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        os.write(2, (SHOW_CURSOR + b"\r" if is_drawn else b"") + b"ended at once\n")
    os._exit(128 + number)


def _open_closed_streams() -> None:
    """Open the standard streams that are closed.

    Otherwise the next file that is opened, a checkpoint say, takes the number and gets what libraries write to standard error.
    Writing to standard output then fails, as it does for other programs, and what is said on standard error is lost.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # the lowest number that is free is this one
                os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
