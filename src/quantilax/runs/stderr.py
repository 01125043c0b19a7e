"""Standard error that may be gone, its disk full or its reader ended: what is said there is lost, and nothing else."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console


class Lossy:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: Callable[[], TextIO]) -> None:
        """Write to what `stream` returns at the time."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write if it can be done."""
        with contextlib.suppress(OSError):
            self.stream().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if it can be done."""
        with contextlib.suppress(OSError):
            self.stream().flush()

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self.stream(), name)


def console(quiet: bool = False) -> Console:
    """Return a console on standard error that ends no run, whatever becomes of standard error."""
    lossy: Any = Lossy(lambda: sys.stderr)
    return Console(file=lossy, quiet=quiet, highlight=False, soft_wrap=True)
