"""Results in few files: a study's records in one, several studies in an archive, and back, without losing anything."""

import itertools
import json
import os

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from quantilax.errors import ConfigError, RunError
from quantilax.studies import archive
from quantilax.studies import store as stores
from quantilax.studies.store import Failure, Store
from tests.studies import GOOD, LATE, store


@pytest.fixture
def several(tmp_path):
    """A directory with three studies: one alone, one with a validation below it."""
    store(tmp_path / "all" / "one", {"base": [GOOD] * 3, "slow": [LATE] * 3})
    store(tmp_path / "all" / "two", {"base": [GOOD] * 2})
    store(tmp_path / "all" / "two" / "validation", {"base": [LATE] * 2})
    (tmp_path / "all" / "README.md").write_text("mine")
    return tmp_path / "all"


NAMES = ("one", "two", "two/validation")


def files(path):
    return sorted(
        str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != "tiny.yaml"
    )


def test_a_study_in_two_files_says_what_it_said(several):
    before = Store.open(several / "one")
    before.write([{"variant": "base", "seed": 7, "env_step": 100, "return_mean": 1.0}])
    records, facts = before.records(), before.facts
    archive.compact(several / "one")
    assert files(several / "one") == ["records.parquet", "study.json"]
    after = Store.open(several / "one")
    assert_frame_equal(after.records(), records)
    assert after.facts == facts
    after.write([{"variant": "base", "seed": 9, "env_step": 100, "return_mean": 2.0}])
    assert after.records().height == records.height + 1, "a study that goes on adds files again"
    assert after.finished() == before.finished() | {("base", 9)}


def test_an_archive_gives_each_study_by_the_path_that_it_had_and_can_be_unpacked(several):
    Store.open(several / "one").failed(Failure("slow", "out of memory"))
    before = {name: (Store.open(several / name).facts, Store.open(several / name).records()) for name in NAMES}
    assert archive.compact(several) == [several / name for name in NAMES]
    assert files(several) == ["README.md", "records.parquet", "studies.json"]
    for name, (facts, records) in before.items():
        packed = Store.open(several / name)
        assert_frame_equal(packed.records(), records)
        assert packed.facts.items() >= facts.items()
        assert_frame_equal(packed.summary(), Store.find(several / name).summary())
    assert Store.open(several / "one").failures() == [Failure("slow", "out of memory")]
    archive.unpack(several)
    assert "studies.json" not in files(several)
    assert Store.open(several / "one").failures() == [Failure("slow", "out of memory")]
    for name, (facts, records) in before.items():
        assert Store.open(several / name).facts == facts
        assert_frame_equal(Store.open(several / name).records(), records)


def test_a_study_is_opened_by_a_path_that_is_text_in_its_directory_and_in_an_archive(several):
    path, records = str(several / "one"), Store.open(several / "one").records()
    assert_frame_equal(Store.open(path).records(), records)
    archive.compact(several)
    assert_frame_equal(Store.open(path).records(), records)


def test_a_study_of_an_archive_is_not_written_to(several):
    archive.compact(several)
    refused = r"is in an archive; unpack it with: quantilax study .*all --unpack"
    with pytest.raises(ConfigError, match=refused), Store.open(several / "one").lock():
        pytest.fail("it is locked")
    assert Store.find(several / "three") is None
    with pytest.raises(ConfigError, match="is not a study directory"):
        Store.open(several / "three")


def test_a_directory_of_an_earlier_version_is_refused_with_the_command_that_brings_it_up_to_date(several):
    path = several / "one"
    new = Store.open(path)
    records = new.records()
    facts = {{"variants": "cells"}.get(key, key): value for key, value in new.facts.items() if key != "asked"}
    (path / "study.json").write_text(json.dumps(facts))
    (path / "study.yaml").write_text("base: {config: x.yaml}\ncells: {named: {slow: {gamma: 1e-1}}}\n")
    for file in (path / "records").iterdir():
        pl.read_parquet(file).rename({"variant": "cell"}).write_parquet(file)
    with pytest.raises(ConfigError, match=r"written by an earlier version; .*: quantilax study .*one --compact"):
        Store.open(path)
    archive.compact(path)
    assert files(path) == ["records.parquet", "study.json"]
    after = Store.open(path)
    assert_frame_equal(after.records(), records)
    assert after.facts["asked"]["variants"] == {"named": {"slow": {"gamma": "1e-1"}}}


def test_a_study_in_use_is_neither_packed_nor_lost(several):
    before = files(several)
    with Store.open(several / "two").lock(), pytest.raises(ConfigError, match="is in use by process"):
        archive.compact(several)
    assert files(several) == before


@pytest.mark.parametrize("name", ["records.parquet", "studies.json"])
def test_an_archive_that_cannot_be_written_deletes_nothing(several, monkeypatch, name):
    before = {n: Store.open(several / n).records() for n in NAMES}

    def full(file, *arguments):
        raise OSError(28, "No space left on device")

    if name == "studies.json":
        monkeypatch.setattr(archive, "write_whole", full)
    else:
        monkeypatch.setattr(stores, "write_parquet", lambda table, file: full(file))
    with pytest.raises(RunError, match="all: cannot be written: No space left on device; make room"):
        archive.compact(several)
    monkeypatch.undo()
    for n in NAMES:
        assert_frame_equal(Store.open(several / n).records(), before[n])


def test_files_that_an_archive_does_not_hold_are_neither_deleted_nor_overwritten(several):
    (several / "one" / "notes.md").write_text("mine")
    (several / "two" / "unfinished").mkdir()
    (several / "two" / "unfinished" / "state").write_text("kept for the next start")
    archive.compact(several)
    mine = ["README.md", "one/notes.md", "two/unfinished/state"]
    assert files(several) == sorted([*mine, "records.parquet", "studies.json"])
    assert Store.open(several / "one").records().height > 0
    archive.unpack(several)
    assert {"one/study.json", "one/notes.md", "two/unfinished/state"} <= set(files(several))
    (several / "records.parquet").write_text("mine")
    with pytest.raises(ConfigError, match=r"records\.parquet: is in the way of the archive's records; move it away"):
        archive.compact(several)
    assert (several / "records.parquet").read_text() == "mine"


@pytest.mark.parametrize("fault", range(6))
def test_bringing_a_directory_up_to_date_goes_on_after_a_crash(several, fault, monkeypatch):
    path = several / "one"
    new = Store.open(path)
    new.write([{"variant": "base", "seed": 7, "env_step": 100, "return_mean": 1.0}])
    records = new.records()
    facts = {{"variants": "cells"}.get(key, key): value for key, value in new.facts.items() if key != "asked"}
    (path / "study.json").write_text(json.dumps(facts))
    (path / "study.yaml").write_text("base: {config: x.yaml}\n")
    for file in (path / "records").iterdir():
        pl.read_parquet(file).rename({"variant": "cell"}).write_parquet(file)
    calls = itertools.count()

    def mortal(real):
        def call(*arguments, **options):
            if next(calls) == fault:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((os, "replace"), (os, "unlink"), (os, "fsync")):
            patched.setattr(owner, name, mortal(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            archive.compact(path)
    archive.compact(path)
    assert files(path) == ["records.parquet", "study.json"]
    assert_frame_equal(Store.open(path).records(), records)


def test_a_directory_of_an_earlier_version_without_its_study_is_refused_in_a_line(several):
    path = several / "one"
    facts = {{"variants": "cells"}.get(key, key): value for key, value in Store.open(path).facts.items()}
    (path / "study.json").write_text(json.dumps(facts))
    before = files(several)
    with pytest.raises(ConfigError, match=r"study\.yaml: no such file"):
        archive.compact(path)
    assert [name for name in files(several) if "lock" not in name] == before


@pytest.mark.parametrize("key", ["columns", "failures"])
def test_a_damaged_archive_is_named(several, key):
    archive.compact(several)
    studies = json.loads((several / "studies.json").read_text())
    del studies["one"][key]
    (several / "studies.json").write_text(json.dumps(studies))
    with pytest.raises(ConfigError, match=r"studies\.json: is damaged"):
        Store.open(several / "one")


def test_what_is_no_study_and_no_archive_is_refused(several, tmp_path):
    with pytest.raises(ConfigError, match="contains no study directory"):
        archive.compact(tmp_path / "none")
    with pytest.raises(ConfigError, match="contains no archive"):
        archive.unpack(several)
    archive.compact(several)
    store(several / "one", {"base": [GOOD]})
    with pytest.raises(ConfigError, match="one: already exists; move it away"):
        archive.unpack(several)
    with pytest.raises(ConfigError, match="already holds an archive"):
        archive.compact(several)
    (several / "studies.json").write_text("[")
    with pytest.raises(ConfigError, match=r"studies\.json: is damaged"):
        archive.unpack(several)
