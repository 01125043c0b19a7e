"""Set up signal handlers and standard streams, before any slow import and before any work."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
SHOW_CURSOR = b"\x1b[?25h"


def prepare() -> None:
    """Open closed standard streams, and install handlers for SIGINT and SIGTERM."""
    _open_closed_streams()
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]  # some terminals set 0, and Rich would print nothing
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in DEFAULTS:  # an ignored signal (`nohup`) stays ignored
                signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process immediately.

    An exception would print a traceback during imports, and would be lost in a JAX callback or a
    finalizer. Nothing is lost by ending at once: while a run or a study has something to save,
    `quantilax.host.interrupts.Stop` handles signals instead.
    """
    with contextlib.suppress(OSError):
        is_drawn = os.isatty(2) and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        os.write(2, (SHOW_CURSOR + b"\r" if is_drawn else b"") + b"ended at once\n")
    os._exit(128 + number)


def _open_closed_streams() -> None:
    """Open the standard streams that are closed.

    Otherwise the next file that is opened, such as a checkpoint, would get the free descriptor, and
    libraries would write their messages into it. Writing to a reopened standard output fails, as in
    other programs; messages on a reopened standard error are lost.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # the lowest free descriptor is this one
                os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
