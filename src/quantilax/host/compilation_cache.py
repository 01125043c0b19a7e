"""The cache of compiled programs in the user's directory."""

import contextlib
import os
from pathlib import Path

import jax

CACHE_BYTES = 2**30
"""How much compiled programs may take when a command starts; a run's take about 1 MiB."""


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, so that a second start takes no compiling.

    There `CACHE_BYTES` bound them, or JAX itself where `JAX_COMPILATION_CACHE_MAX_SIZE` is set. `JAX_COMPILATION_CACHE_DIR`
    names another place, which is the user's to clear; a place that cannot be written to is left alone.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantilax" / "xla"
            cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # the latter where the user has no home
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
        if jax.config.jax_compilation_cache_max_size == -1:  # type: ignore[attr-defined]
            _make_room(cache, CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _make_room(cache: Path, most: int) -> None:
    """Delete the programs that were not used for the longest time, by the file system's notes, while all take more than `most`.

    JAX's own bound reads the whole directory for each program that it adds, and adds none where one lies that was kept
    without it.
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
        with contextlib.suppress(OSError):  # another process deleted it, or it is not ours to delete
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.unlink(path.removesuffix("-cache") + "-atime")  # by which JAX's own bound would go
        total -= size
