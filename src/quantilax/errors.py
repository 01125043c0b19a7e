"""The errors that users see, and helpers for their messages."""

import difflib
from collections.abc import Iterable
from typing import Any

MAX_MESSAGE = 2_000
"""Longest message, in characters; a value that it quotes may have millions."""


class ConfigError(ValueError):
    """A user's request cannot be carried out.

    The message is one line: the field or file, what is wrong and what to do.
    """

    def __init__(self, message: str) -> None:
        """Join the message's lines, since a quoted name may hold line breaks, and shorten it."""
        message = " ".join(message.splitlines())
        super().__init__(message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "...")


class RunError(RuntimeError):
    """A run cannot continue or cannot be read; its files are kept."""


class CheckpointError(RunError):
    """A checkpoint cannot be read or does not fit; the message names the file and the problem."""


class LostEpisodesWarning(UserWarning):
    """Episodes of a checkpoint could not be continued exactly, and others began in their place."""


def reason(error: BaseException) -> str:
    """Describe an exception in one line."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.splitlines()[0][:200] if text else type(error).__name__


def out_of_memory(error: BaseException, lower: str) -> str:
    """Describe an error of JAX that says that a device's memory is full; empty for any other error.

    Args:
        error: the error.
        lower: the fields or options to lower.
    """
    return f"out of device memory; lower {lower}" if "RESOURCE_EXHAUSTED" in str(error) else ""


FEW = 8
"""Most names that a message lists."""


def did_you_mean(word: Any, known: Iterable[str], noun: str = "", command: str = "") -> str:
    """Return `; did you mean 'x'?` for a near miss, else the known names.

    If there are more than `FEW`, only the nearest are listed, with the command that lists all.

    Args:
        word: the name that was asked for.
        known: all known names.
        noun: what the names are called, in the plural.
        command: the command that lists them all.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(known) <= FEW:
        return f"; known {noun}: {', '.join(known)}"
    nearest = difflib.get_close_matches(str(word), known, n=3, cutoff=0.0)
    return f"; the nearest {noun} are {', '.join(nearest)}" + (f"; {command} lists all" if command else "")
