"""What failed in a callback, for the thread that called the program.

XLA passes the text of an exception that a callback raises, not the exception. So a callback leaves
it here, and whoever called the program takes it.
"""

import logging
import threading

_failures: list[BaseException] = []
_lock = threading.Lock()
_expected = False


class CallbackError(RuntimeError):
    """Ends a program; the reason was left with `leave`."""


def expect() -> None:
    """Say that callbacks of this process may fail from now on."""
    global _expected
    with _lock:
        if not _expected:  # JAX logs what a callback raises, with its traceback
            logging.getLogger("jax._src.callback").addFilter(_is_not_ours)
        _expected = True


def are_expected() -> bool:
    """Return whether callbacks of this process may fail."""
    return _expected


def leave(error: BaseException) -> CallbackError:
    """Keep what failed in a callback, and return the exception to raise there."""
    with _lock:
        _failures.append(error)
    return CallbackError(str(error))


def take() -> BaseException | None:
    """Return the first failure since the last call, if any."""
    with _lock:
        first = _failures[0] if _failures else None
        _failures.clear()
    return first


def _is_not_ours(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], CallbackError)
