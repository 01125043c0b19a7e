"""A console on standard error that survives a closed stream, a full disk or a reader that ended.

What cannot be written is dropped; nothing else fails.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console

GONE = (OSError, ValueError)
"""Errors that writing to a lost stream raises; `ValueError` if it is closed."""


class Lossy:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: Callable[[], TextIO | None]) -> None:
        """Write to the stream that `stream` returns at each call, or nowhere if it returns None."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write the text if possible."""
        with contextlib.suppress(*GONE):
            if (stream := self.stream()) is not None:
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with contextlib.suppress(*GONE):
            if (stream := self.stream()) is not None:
                stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with contextlib.suppress(*GONE):
            return getattr(self.stream(), "isatty", bool)()
        return False

    def __getattr__(self, name: str) -> Any:
        """Take all other attributes from the stream, except `buffer`.

        Without `buffer`, click cannot bypass this class, as it would if the encoding were ASCII.
        `rich_proxied_file`, the stream behind one that Rich's progress bars replace, is made lossy
        as well.
        """
        if name == "buffer":
            raise AttributeError(name)
        found = getattr(self.stream(), name)
        return Lossy(lambda: found) if name == "rich_proxied_file" else found


def console(quiet: bool = False) -> Console:
    """Return a console that never ends a run, whatever happens to standard error."""
    lossy: Any = Lossy(lambda: sys.stderr)
    return Console(file=lossy, quiet=quiet, highlight=False, soft_wrap=True)


def is_live(console: Console) -> bool:
    """Say whether a console can redraw a line; a file with forced colours cannot."""
    return console.is_interactive and console.file.isatty() and not console.quiet


class Log:
    """Lines with the time of day.

    Progress lines are for outputs without a bar: at most one in `EVERY` seconds, and the last one.
    """

    EVERY = 10.0

    def __init__(self, console: Console) -> None:
        """Write to a console."""
        self.console = console
        self.told, self.held = -math.inf, ""

    def say(self, line: str) -> None:
        """Print a line now."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    def progress(self, line: str) -> None:
        """Print a line if the one before is old enough, else keep it for `end`."""
        if time.monotonic() - self.told < Log.EVERY:
            self.held = line
            return
        self.told, self.held = time.monotonic(), ""
        self.say(line)

    def end(self) -> None:
        """Print the last line of progress, if it was kept."""
        if self.held:
            self.say(self.held)
        self.held = ""


@contextlib.contextmanager
def status(line: str) -> Iterator[Callable[[str], None]]:
    """Show an activity line in a terminal; the yielded function changes it."""
    here = console()
    if not is_live(here):
        yield lambda line: None
        return
    with here.status(line) as shown:
        yield shown.update
