"""Archives: several studies in two files.

    compact(DIR)   merge a study's records into one file, or the studies below DIR into an archive
    unpack(DIR)    turn an archive back into directories, for example to continue a study

The files are `studies.json`, with each study's facts by its path, and `records.parquet`, with a
column `study`. `Store.open` reads a study in an archive by the path its directory had.
"""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

from quantilax.errors import ConfigError, RunError, reason
from quantilax.host import locks, paths
from quantilax.host.files import read_parquet, write_whole
from quantilax.runs import configs
from quantilax.studies.store import (
    ARCHIVE,
    FACTS,
    TABLE,
    Failure,
    Store,
    archived,
    check_facts,
    read_json,
    write_records,
)

BROKEN = (OSError, pl.exceptions.PolarsError)


def compact(root: Path) -> list[Path]:
    """Merge what studies wrote: one study into two files, several studies into one archive.

    A directory written by an earlier version of quantilax is brought up to date first.

    Args:
        root: a study's directory, or a directory with several studies below it, which becomes
            their archive.

    Returns:
        the studies' directories. If they went into an archive, the files that it holds are
        deleted from them; other files, such as reports, stay.

    Raises:
        ConfigError: there is no study, one is in use, or one has a damaged file.
        RunError: a file cannot be written; nothing is deleted.
    """
    directories = sorted(file.parent for file in paths.check(root, "DIR").rglob(FACTS))
    if not directories:
        raise ConfigError(f"{root}: contains no study directory")
    for directory in directories:
        _update(directory)
    with ExitStack() as locked:
        stores = [Store.open(directory) for directory in directories]
        for store in stores:
            locked.enter_context(store.lock())
        try:
            if root in directories:  # a single study, perhaps with its validation
                for store in stores:
                    store.compact()
            else:
                _pack(root, stores)
        except BROKEN as error:
            raise RunError(f"{root}: cannot be written: {reason(error)}; make room and repeat the command") from None
    return directories


def _pack(root: Path, stores: list[Store]) -> None:
    if (root / ARCHIVE).exists():
        raise ConfigError(f"{root}: already holds an archive; unpack it first, with --unpack")
    if (root / TABLE).exists():
        raise ConfigError(f"{root / TABLE}: is in the way of the archive's records; move it away")
    facts: dict[str, Any] = {}
    frames = []
    for store in stores:
        name, records = str(store.path.relative_to(root)), store.records()
        failures = [failure._asdict() for failure in store.failures()]
        facts[name] = {**store.facts, "columns": records.columns, "failures": failures}
        frames.append(records.with_columns(study=pl.lit(name)))
    order = ["study", *dict.fromkeys(column for frame in frames for column in frame.columns if column != "study")]
    write_records(root / TABLE, pl.concat(frames, how="diagonal").select(order))
    write_whole(root / ARCHIVE, json.dumps(facts, indent=1) + "\n")
    for store in stores:
        store.delete()
        for directory in (store.path, *store.path.parents):  # up to the root, as far as they are empty
            if directory == root or any(file.name != "lock" for file in directory.iterdir()):
                break
            shutil.rmtree(directory)


def unpack(root: Path) -> list[Path]:
    """Turn an archive back into directories, one per study, and delete the archive.

    Raises:
        ConfigError: there is no archive, it is damaged, or a study already exists at a path.
        RunError: a file cannot be written; the archive is unchanged.
    """
    studies = archived(paths.check(root, "DIR"))
    if not studies and (root / ARCHIVE).exists():
        raise ConfigError(f"{root / ARCHIVE}: is damaged; restore the original file")
    if not studies:
        raise ConfigError(f"{root}: contains no archive: it has no {ARCHIVE}")
    for name, facts in studies.items():
        check_facts(root / ARCHIVE, facts, is_archived=True)
        if (root / name / FACTS).exists():
            raise ConfigError(f"{root / name}: already exists; move it away")
    records = {name: Store.open(root / name).records() for name in studies}
    try:
        for name, facts in studies.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            write_records(root / name / TABLE, records[name])
            of_study = {key: value for key, value in facts.items() if key not in ("columns", "failures")}
            write_whole(root / name / FACTS, json.dumps(of_study, indent=1) + "\n")
            for failure in facts["failures"]:
                Store.open(root / name).failed(Failure(**failure))
        for name in (ARCHIVE, TABLE):
            (root / name).unlink()
    except BROKEN as error:
        raise RunError(f"{root}: cannot be written: {reason(error)}; make room and repeat the command") from None
    return [root / name for name in studies]


def _update(directory: Path) -> None:
    """Bring a directory of an earlier version up to date; that version called variants cells.

    The records are merged into one file, whose column `variant` was `cell`.
    """
    facts = read_json(directory / FACTS)
    if not isinstance(facts, dict) or "cells" not in facts:
        return
    asked, table = directory / "study.yaml", directory / TABLE
    with locks.lock(directory):
        renamed = {"variants" if key == "cells" else key: value for key, value in facts.items()}
        renamed["asked"] = {
            "variants" if key == "cells" else key: value for key, value in configs.read_yaml(asked, "study").items()
        }
        check_facts(directory / FACTS, renamed)
        files = sorted((directory / "records").glob("*.parquet"))
        try:
            # Each step can be repeated: after a crash the next call continues with what it finds.
            parts = [read_parquet(file).rename({"cell": "variant"}, strict=False) for file in files]
            if parts:
                parts += [read_parquet(table)] if table.exists() else []
                rows = pl.concat(parts, how="diagonal").unique(["variant", "seed", "env_step"], maintain_order=True)
                write_records(table, rows)
            for file in files:
                file.unlink()
            write_whole(directory / FACTS, json.dumps(renamed, indent=1) + "\n")
            asked.unlink()
        except BROKEN as error:
            raise RunError(f"{directory}: cannot be brought up to date: {reason(error)}") from None
