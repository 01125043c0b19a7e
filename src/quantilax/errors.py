"""Errors that users meet, and how their lines are written."""

import difflib
from collections.abc import Iterable
from typing import Any

MAX_MESSAGE = 2_000
"""Characters of a message; a value that it repeats may have millions."""


class ConfigError(ValueError):
    """What a user asked for cannot be done: one line that names the field or file, what is wrong and the remedy."""

    def __init__(self, message: str) -> None:
        """Fold line breaks, of which names typed by users may have some, and cut short what they may have made of a value."""
        message = " ".join(message.splitlines())
        super().__init__(message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "...")


class RunError(RuntimeError):
    """A run that cannot go on, or cannot be read; what it wrote is kept."""


class CheckpointError(RunError):
    """A checkpoint that cannot be read or does not fit; names the file and what is wrong with it."""


def reason(error: BaseException) -> str:
    """Return a line on an error."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.splitlines()[0][:200] if text else type(error).__name__


FEW = 8
"""Names that a message may list."""


def did_you_mean(word: Any, known: Iterable[str], noun: str = "", command: str = "") -> str:
    """Return `; did you mean 'x'?` for a near miss, else the names there are: of many the nearest, and what lists them all.

    Args:
        word: what was asked for.
        known: the names there are.
        noun: what they are called.
        command: lists them.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(known) <= FEW:
        return f"; known {noun}: {', '.join(known)}"
    nearest = difflib.get_close_matches(str(word), known, n=3, cutoff=0.0)
    return f"; the nearest {noun} are {', '.join(nearest)}" + (f"; {command} lists all" if command else "")
