"""Directories that users name: which paths can be used, and how text becomes part of a name."""

import os
import re
from pathlib import Path
from typing import Any

from quantilax.errors import ConfigError

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Start of an address, which is not a local path; `C:/` does not count.

`Path` turns an address's `//` into `/`.
"""
UNUSABLE = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]+')
"""Characters that some system does not allow in a file's name."""
LONGEST = 100
"""Most bytes of user text within a file's name; a whole name may have 255."""


def check(path: Any, option: str = "--out") -> Path:
    """Return a user's path if it can name something on this machine, to read or to write.

    Args:
        path: a string or a path, relative or absolute.
        option: the user's name for it, for the message.

    Raises:
        ConfigError: it is not a path, is an address, is not UTF-8, holds a null byte, or is
            relative to a working directory that is gone.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise ConfigError(f"{option}: expected a path, got {path!r}")
    path = Path(path)
    name = str(path).encode(errors="backslashreplace").decode()
    if name != str(path):
        raise ConfigError(f"{option}: {name} is not valid UTF-8; choose another directory")
    if "\0" in name:
        raise ConfigError(f"{option}: {name!r} has a null byte; choose another directory")
    if ADDRESS.match(name):
        raise ConfigError(
            f"{option}: {name} is an address; give a path on this machine, and copy or mount remote files"
        )
    if not path.is_absolute():
        check_working_directory()
    return path


def make(path: Path) -> Path:
    """Make a directory and its parents unless they exist, and return it.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be created: {error.strerror}; choose another --out") from None
    return path


def check_working_directory() -> None:
    """Raise `ConfigError` if the working directory was deleted, so that relative paths fail."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("the working directory is gone; change to one that exists") from None


def as_name(text: str) -> str:
    """Return user text as part of a file's name: no separators, no leading dot, not too long."""
    kept = UNUSABLE.sub("-", text).strip(". ")
    return kept.encode(errors="ignore")[:LONGEST].decode(errors="ignore") or "unnamed"
