"""Files that are written completely or not at all, and Parquet tables at any path.

Tables are opened here because Polars takes brackets in a path for a pattern.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file aside, flush it to disk and rename it, so that nobody ever finds half a file."""
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_parquet(path: Path) -> "pl.DataFrame":
    """Read a Parquet table.

    Raises:
        OSError: the file cannot be read.
        polars.exceptions.PolarsError: it holds no table.
    """
    import polars as pl  # slow to import: a good part of a second

    with path.open("rb") as stream:
        return pl.read_parquet(stream)


def write_parquet(table: "pl.DataFrame", path: Path) -> None:
    """Write a Parquet table."""
    with path.open("wb") as stream:
        table.write_parquet(stream)
