"""Handle standard output that is full, closed or without a reader: one error line, no traceback."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LostError(Exception):
    """Standard output cannot be written.

    The message is empty if the reader is gone, as in `quantilax list | head -1`.
    """

    def __init__(self, error: OSError | ValueError) -> None:
        """Make the error from the exception that writing raised."""
        is_unread = isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE
        why = getattr(error, "strerror", None) or error
        super().__init__("" if is_unread else f"standard output cannot be written: {why}")
        self.exit_status = 128 + signal.SIGPIPE if is_unread else 2


class Guarded:
    """A text stream that raises `LostError` when writing fails.

    `LostError` is not an `OSError`, because click and Rich handle `OSError` in ways of their own.
    """

    def __init__(self, stream: TextIO) -> None:
        """Guard a stream."""
        self.stream = stream
        self.lost: LostError | None = None

    def write(self, text: str) -> int:
        """Write text; after the first failure, text is dropped."""
        with self._telling():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush; see `write`."""
        with self._telling():
            self.stream.flush()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if self.lost is None:
                self.lost = LostError(error)
                _discard(self.stream)
                raise self.lost from None

    def __getattr__(self, name: str) -> Any:
        """Use the stream for all else, but hide `buffer`, to which click would write directly."""
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.stream, name)


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device.

    Otherwise the interpreter would try to write the stream's buffer again at its exit.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard standard output, and flush it at the end.

    Raises:
        LostError: it cannot be written.
    """
    stream = sys.stdout
    if stream is None:
        yield
        return
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are not text
    here: Any = Guarded(stream)
    sys.stdout = here
    try:
        yield
        here.flush()
        if here.lost is not None:  # click probes the stream and swallows the error
            raise here.lost
    finally:
        sys.stdout = stream
