"""Files that are there whole or not at all, and tables whose paths Polars does not see: it takes brackets for a pattern."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def write_whole(path: Path, text: str) -> None:
    """Write a file aside, flush it to the disk and rename it: a reader, or a crash, never meets half of it."""
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_parquet(path: Path) -> "pl.DataFrame":
    """Read a table.

    Raises:
        OSError: the file cannot be read.
        polars.exceptions.PolarsError: it holds no table.
    """
    import polars as pl  # takes a good part of a second

    with path.open("rb") as stream:
        return pl.read_parquet(stream)


def write_parquet(table: "pl.DataFrame", path: Path) -> None:
    """Write a table."""
    with path.open("wb") as stream:
        table.write_parquet(stream)
