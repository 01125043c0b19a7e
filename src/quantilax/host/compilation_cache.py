"""The cache of compiled programs in the user's cache directory."""

import contextlib
import os
from pathlib import Path

import jax

CACHE_BYTES = 2**30
"""Limit on the bytes of compiled programs when a command starts; a run's take about 1 MiB."""


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, so that a second start is fast.

    The cache is trimmed to `CACHE_BYTES`, or left to JAX's own limit if
    `JAX_COMPILATION_CACHE_MAX_SIZE` is set. `JAX_COMPILATION_CACHE_DIR` names another directory,
    which is the user's to clear. A directory that cannot be made is not used.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantilax" / "xla"
            cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # RuntimeError: the user has no home directory
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
        if jax.config.jax_compilation_cache_max_size == -1:  # type: ignore[attr-defined]
            _make_room(cache, CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _make_room(cache: Path, most: int) -> None:
    """Delete the least recently used programs until the rest take at most `most` bytes.

    The time of use is the file system's access or modification time. JAX's own limit is no
    substitute: it reads the whole directory for each program it adds, and adds none if the
    directory holds a program that was stored without the limit.
    """
    found, total = [], 0
    with contextlib.suppress(OSError), os.scandir(cache) as entries:
        for entry in entries:
            if entry.name.endswith("-cache") and entry.is_file(follow_symlinks=False):
                status = entry.stat()
                found.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
                total += status.st_size
    for _, size, path in sorted(found):
        if total <= most:
            break
        with contextlib.suppress(OSError):  # another process deleted it, or we may not
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.unlink(path.removesuffix("-cache") + "-atime")  # JAX's own limit reads this file
        total -= size
