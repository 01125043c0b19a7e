"""Who is writing to a directory: one process at a time."""

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
    """Keep other processes from writing to a directory, for as long as this one lives.

    The kernel holds the lock, so it ends with its holder, however that ends; the file `name` says who it is.

    Args:
        directory: what is locked.
        name: of the lock's file in it; one directory may have several.
        wait: wait for the holder, who does not keep it for long.

    Raises:
        ConfigError: another process holds it (without `wait`), or the directory cannot be written to.
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
            if not _is_file(descriptor, file):  # its last holder has deleted it meanwhile
                continue
            _say_holder(descriptor, f"process {os.getpid()} on {platform.node()} ({command()})\n")
            try:
                yield
            finally:
                with suppress(OSError):
                    file.unlink()
            return


def is_locked(directory: Path, name: str = "lock") -> bool:
    """Say whether a process is writing to a directory."""
    try:
        with (directory / name).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def command() -> str:
    """Return the command that this process runs."""
    program = Path(sys.argv[0]).name  # `__main__.py` where it was `python -m quantilax`
    return shlex.join(["quantilax" if program == "__main__.py" else program, *sys.argv[1:]])


def _take(descriptor: int, wait: bool) -> bool:
    for _ in range(5):  # `is_locked` of another process may hold it for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            return True  # a file system without locks: nothing better is to be had
        else:
            return True
    return False


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _say_holder(descriptor: int, who: str) -> None:
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # the disk is full: the lock holds without a name
        os.pwrite(descriptor, who.encode(errors="backslashreplace"), 0)
