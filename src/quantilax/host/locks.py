"""Locks on directories: one process at a time may write to one."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantilax.errors import ConfigError

try:
    import fcntl
except ImportError as error:
    raise ImportError("runs, studies and the command line need Linux or macOS; on Windows use WSL") from error


@contextmanager
def lock(directory: Path, name: str = "lock", wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a directory while the context lasts.

    The kernel holds the lock and releases it when the process ends, however it ends. The file
    `name` says which process that is.

    Args:
        directory: the directory to lock.
        name: the lock's file in the directory, which may have several locks.
        wait: wait for the holder, if holders keep this lock only briefly.

    Raises:
        ConfigError: another process holds the lock, or the directory cannot be written to.
    """
    file = directory / name
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be written to: {error.strerror}; copy it elsewhere") from None
        with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as stream:
            if not _take(descriptor, wait):
                raise ConfigError(
                    f"{directory}: is in use by {stream.read().strip() or 'another process'}; wait for it or stop it"
                )
            if not _is_file(descriptor, file):  # the previous holder has deleted it meanwhile
                continue
            _say_holder(descriptor, f"process {os.getpid()} on {platform.node()} ({command()})\n")
            try:
                yield
            except ConfigError:  # refused before anything was written
                _delete(file)
                raise
            _delete(file)  # after another error it stays: a directory without run.json is known by it
            return


def is_locked(directory: Path, name: str = "lock") -> bool:
    """Say whether a process holds the lock of a directory."""
    try:
        with (directory / name).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def command() -> str:
    """Return the command line of this process."""
    program = Path(sys.argv[0]).name  # `__main__.py` for `python -m quantilax`
    return shlex.join(["quantilax" if program == "__main__.py" else program, *sys.argv[1:]])


def _take(descriptor: int, wait: bool) -> bool:
    for _ in range(5):  # `is_locked` in another process may hold it for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            return True  # the file system has no locks: go on without one
        else:
            return True
    return False


def _delete(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _say_holder(descriptor: int, who: str) -> None:
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # the disk is full: the lock holds without the name
        os.pwrite(descriptor, who.encode(errors="backslashreplace"), 0)
