"""A run survives kills, full disks, moves, damage and hostile files: it ends as an undisturbed run does."""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
import yaml

import quantilax
from quantilax import runs
from quantilax.runs import checkpoints, evaluations, loading, session
from quantilax.studies.store import Store
from tests.manifests import content_of, write_manifest

from ..conftest import each
from .conftest import TINY, TINY_DQN, Call, tree
from .processes import Ended, Life, Server, process

SHORT = TINY_DQN.replace("total_timesteps: 300", "total_timesteps: 440").replace("eval_freq: 100", "eval_freq: 40")
"""Eleven segments, at steps 40, 80, ..., 440."""
SEEDS = ("--seeds", "2")
STOPPED_AT = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    server = Server(directory, directory / "cache")
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: Server) -> Path:
    """An undisturbed run of `SHORT`; do not change it."""
    config(server.directory)
    ended = server.run(server.directory, "train", "short.yaml", *SEEDS, "--out", "whole")
    assert ended.status == 0, ended.stderr
    return server.directory / "whole"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with `short.yaml`."""
    config(tmp_path)
    return tmp_path


def config(directory: Path) -> None:
    (directory / "short.yaml").write_text(SHORT)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made in this process and stopped at step 200 of 440; not to be changed."""
    return in_this_process(tmp_path_factory.mktemp("begun"), lambda state, record: record.env_step[0] == STOPPED_AT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, made in this process without a stop; not to be changed."""
    return in_this_process(tmp_path_factory.mktemp("finished"), None)


def in_this_process(directory: Path, callback: Any) -> Path:
    config(directory)
    agent = runs.load_section(directory / "short.yaml").create()
    return runs.run(agent, directory / "run", (0, 1), callback=callback, quiet=True).path


@pytest.fixture
def stopped(begun: Path, tmp_path: Path) -> Path:
    """A copy of the run that was stopped, to do anything with."""
    return Path(shutil.copytree(begun, tmp_path / "stopped"))


def root(run: Path) -> Path:
    return run / "checkpoints"


def last(run: Path) -> Path:
    return checkpoints.path_of(root(run), checkpoints.steps(root(run))[-1])


def keep_only_last(run: Path) -> Path:
    for step in checkpoints.steps(root(run))[:-1]:
        checkpoints.path_of(root(run), step).unlink()
    return last(run)


def status(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["status"]


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def curves(run: Path) -> tuple[Any, ...]:
    """What the three tables say, but for the seconds."""
    with (run / "evaluations.csv").open(newline="") as stream:
        rows = [without_seconds(row) for row in csv.DictReader(stream)]
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    lines = [
        {**without_seconds(e), "all": without_seconds(e["all"]), "seeds": [without_seconds(row) for row in e["seeds"]]}
        for e in lines
    ]
    table = pl.read_parquet(run / "evaluations.parquet").drop("seconds")
    return rows, lines, table.schema, table.rows()


def assert_same_end(run: Path, expected: Path) -> None:
    """The last checkpoint bit for bit, and every table."""
    assert status(run) == status(expected) == "finished"
    assert checkpoints.steps(root(run)) == checkpoints.steps(root(expected))
    one, other = (checkpoints.read(last(path)).arrays for path in (run, expected))
    assert one.keys() == other.keys()
    for name in one.keys() - {"history/seconds"}:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name
    assert curves(run) == curves(expected)
    assert not [path.name for path in run.rglob("*.partial")]
    assert (run / "learning_curve.png").stat().st_size > 0


def assert_refused(ended: Ended, *patterns: str) -> None:
    """One line, exit status 2."""
    assert ended.status == 2, ended
    assert ended.stdout == ""
    (line,) = ended.lines
    assert line.startswith("error: ")
    for pattern in patterns:
        assert re.search(pattern, line), line


def warnings_of(ended: Ended) -> list[str]:
    return [line for line in ended.lines if line.startswith("warning: ")]


# 1. kill -9


def reached(run: Path) -> int:
    return (checkpoints.steps(root(run)) or [0])[-1]


def partials(run: Path) -> set[tuple[str, int, int]]:
    """Checkpoints that are partly written; one that is begun again counts as another."""
    found = set()
    for path in root(run).rglob("*.partial"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino, path.stat().st_ctime_ns))
    return found


def leftovers(run: Path) -> set[tuple[str, int]]:
    """What a save that was cut short leaves: partial files, and blocks that no checkpoint has."""
    paths = list(root(run).glob("*.safetensors"))
    known = {digest for path in paths for *_, digests in content_of(path)["blocks"].values() for digest in digests}
    found = [*root(run).glob("*.partial"), *(root(run) / "blocks").glob("*")]
    return {(path.name, path.stat().st_mtime_ns) for path in found if path.name not in known}


def pass_time(life: Life, run: Path, seconds: float) -> None:
    """Let time pass, or three segments."""
    end, before = time.monotonic() + seconds, reached(run)
    life.until(lambda: time.monotonic() > end or reached(run) >= before + 60)


def pass_save(life: Life, run: Path) -> None:
    before = reached(run)
    life.until(lambda: reached(run) > before)


def kill_during_a_save(life: Life, run: Path, rng: random.Random) -> None:
    """After up to two saves, in the midst of another."""
    for _ in range(rng.randrange(3)):
        pass_save(life, run)
    before = partials(run)
    life.until(lambda: partials(run) - before, every=0)
    time.sleep(rng.uniform(0, 0.003))
    life.kill()


def kill_after_a_save(life: Life, run: Path, rng: random.Random) -> None:
    pass_save(life, run)
    pass_time(life, run, rng.uniform(0, 0.3))
    life.kill()


def kill_at_any_moment(life: Life, run: Path, rng: random.Random) -> None:
    """Kill at any moment, also while the process starts, compiles or reads."""
    pass_time(life, run, rng.uniform(0, 2.5))
    life.kill()


@pytest.mark.parametrize("times", each([8, 20], []))
def test_a_run_killed_many_times_ends_as_the_uninterrupted_one(times, server, here):
    run, rng = here / "run", random.Random(0)
    ways = [kill_during_a_save, kill_after_a_save, kill_during_a_save, kill_at_any_moment] * (times // 4)
    ways = [kill_after_a_save, *rng.sample(ways, times - 1)]
    total_timesteps = 600 + 70 * times  # not at its end when killed for the last time
    train = ("train", "short.yaml", *SEEDS, f"total_timesteps={total_timesteps}", "eval_freq=20")
    expected = server.begin(here, *train, "--out", "expected")
    killed, in_saves, progress, said = 0, 0, [0], ""
    for number, way in enumerate(ways):
        before = leftovers(run)
        life = server.begin(here, *(("resume", "run") if number else (*train, "--out", "run")))
        way(life, run, rng)
        killed += life.status == -signal.SIGKILL
        in_saves += bool(leftovers(run) - before)
        progress.append(reached(run))
        said += life.stderr
    assert killed == times  # each of them while it ran
    assert in_saves >= times // 4, in_saves
    assert progress == sorted(progress)
    assert 40 < progress[-1] < total_timesteps
    ended = server.run(here, "resume", "run")
    assert ended.status == 0, ended.stderr
    assert "Traceback" not in said + ended.stderr
    assert "warning" not in said + ended.stderr  # no kill leaves a checkpoint that cannot be read
    assert len(json.loads((run / "run.json").read_text())["starts"]) > times // 2
    assert expected.wait().status == 0
    assert_same_end(run, here / "expected")


@pytest.mark.validation
def test_a_run_of_processes_begun_from_a_shell_is_resumed_alike(server, whole, here):
    life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", "run")
    life.until(lambda: len(checkpoints.steps(root(here / "run"))) >= 2)
    life.kill()
    ended = process(here, server.directory / "cache", "resume", "run")
    assert ended.status == 0, ended.stderr
    assert_same_end(here / "run", whole)


@pytest.mark.validation
def test_a_run_killed_after_its_last_checkpoint_is_brought_to_its_end_by_resume(server, whole, here):
    run = here / "run"
    shutil.copytree(whole, run)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    (run / "learning_curve.png").unlink()
    for name in ("csv", "jsonl", "parquet"):
        (run / f"evaluations.{name}").unlink()
    assert server.run(here, "resume", "run").status == 0
    assert_same_end(run, whole)


@pytest.mark.validation
def test_a_run_killed_before_its_first_checkpoint_begins_anew_with_resume(server, whole, here):
    life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", "run")
    life.until(lambda: (here / "run" / "run.json").exists())
    life.kill()
    assert checkpoints.steps(root(here / "run")) == []
    ended = server.run(here, "resume", "run")
    assert ended.status == 0, ended.stderr
    assert_same_end(here / "run", whole)


# 2. A full disk


def assert_told_once_each_and_in_the_end(ended: Ended, run: Path, saved: str) -> None:
    assert ended.status == 2, ended
    assert "Traceback" not in ended.stderr
    error = ended.lines[-1]
    assert error.startswith("error: the checkpoint of step 440 could not be written (")
    assert re.search(rf"make room, then continue from {saved} with: quantilax resume {re.escape(str(run))}$", error), (
        error
    )
    assert sum(line.startswith("error: ") for line in ended.lines) == 1
    things = [re.sub(r"step [\d,]+", "step N", line.split(" could not be written")[0]) for line in warnings_of(ended)]
    assert "warning: the checkpoint of step N" in things
    assert len(things) == len(set(things)), things
    assert "step 440 of 440" in ended.stderr  # it went on to the end


def test_a_disk_that_is_full_from_some_step_on_ends_no_run_and_costs_nothing_after_making_room(server, whole, here):
    run = here / "run"
    life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", "run")
    life.until(lambda: len(checkpoints.steps(root(run))) >= 2)
    life.kill()
    steps = checkpoints.steps(root(run))
    ended = server.run(here, "resume", "run", file_size=6_000)
    assert_told_once_each_and_in_the_end(ended, Path("run"), f"step {steps[-1]}")
    assert checkpoints.steps(root(run)) == steps
    for step in steps:
        checkpoints.read(checkpoints.path_of(root(run), step))
    assert status(run).startswith("failed")
    assert server.run(here, "resume", "run").status == 0
    assert_same_end(run, whole)


@pytest.mark.validation
def test_a_disk_that_is_full_from_the_beginning_costs_nothing_after_making_room(server, whole, here):
    ended = server.run(here, "train", "short.yaml", *SEEDS, "--out", "run", file_size=6_000)
    assert_told_once_each_and_in_the_end(ended, Path("run"), "the beginning")
    ended = server.run(here, "resume", "run")
    assert ended.status == 0, ended.stderr
    assert_same_end(here / "run", whole)


def test_a_run_that_cannot_be_begun_on_a_full_disk_is_refused_in_one_line(server, here):
    assert_refused(server.run(here, "train", "short.yaml", "--out", "run", file_size=1), "File too large", "run")


@pytest.mark.validation
def test_a_study_on_a_disk_that_is_full_ends_in_one_line_and_goes_on_after_making_room(server, here):
    (here / "s.yaml").write_text("base: {config: short.yaml, section: dqn}\nseeds: 3\n")
    study = "study", "s.yaml", "--out", "s", "--jobs", "1", "--quiet", "--no-cache"
    ended = server.run(here, *study, file_size=4_000)  # for study.json, not for records
    assert_refused(ended, r"^error: s/records/000000\.parquet: cannot be written: ", "too large", "--resume")
    assert [file.name for file in (here / "s" / "records").iterdir()] == []
    assert server.run(here, *study, "--resume").status == 0
    assert len(Store.open(here / "s").finished()) == 3


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Mount something on a directory, or skip the test."""
    try:
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream:
        for size in (65_536, 4_096, 1):
            try:
                while True:
                    stream.write(b"\0" * size)
            except OSError:
                pass


@pytest.mark.validation
def test_a_small_disk_that_runs_full_meanwhile_ends_no_run(server, whole, here):
    disk = here / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "none"):
        run = disk / "run"
        life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", str(run))
        life.until(lambda: len(checkpoints.steps(root(run))) >= 2)
        life.send(signal.SIGSTOP)
        fill(disk / "ballast")
        saved = checkpoints.steps(root(run))
        life.send(signal.SIGCONT)
        ended = life.wait()
        assert_told_once_each_and_in_the_end(ended, run, r"step [\d,]+")
        assert "No space left on device" in ended.lines[-1]
        assert checkpoints.steps(root(run)) == saved
        checkpoints.read(last(run))
        (run / "lock").unlink(missing_ok=True)
        fill(disk / "more_ballast")
        assert_refused(server.run(here, "resume", str(run)), "No space left on device", str(run))
        assert server.run(here, "show", str(run)).status == 0
        for ballast in disk.glob("*ballast"):
            ballast.unlink()
        ended = server.run(here, "resume", str(run))
        assert ended.status == 0, ended.stderr
        assert_same_end(run, whole)


# 3. A directory that cannot be written to


@contextmanager
def read_only(run: Path) -> Iterator[None]:
    """Make a directory unwritable, for root too, whom permissions do not stop."""
    if os.geteuid() == 0:
        with mounted(run, "--bind", str(run)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(run)], check=True)
            yield
        return
    paths = [run, *run.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)


def test_a_read_only_run_is_shown_listed_loaded_and_evaluated_and_not_resumed(stopped, call):
    before = tree(stopped)
    with read_only(stopped):
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (stopped / "new").write_text("")
        listed = call("list-runs", ".")
        assert (listed.status, listed.lines) == (0, [])
        assert re.search(r"stopped .* stopped +200 ", listed.stdout), listed.stdout
        shown = call("show", "stopped")
        assert (shown.status, shown.lines) == (0, [])
        assert "state: stopped, step 200 of 440" in shown.stdout
        evaluated = call("evaluate", "stopped", "--episodes", "4", "--no-cache")
        assert (evaluated.status, evaluated.lines) == (0, [])
        assert "the policy at step 200" in evaluated.stdout
        assert int(quantilax.load(stopped).state.env_steps) == STOPPED_AT
        assert_refused(call("resume", "stopped", "--no-cache"), "^error: stopped: cannot be written", "Read-only|Perm")
    assert tree(stopped) == before


# 4. Two processes


def test_a_second_process_is_refused_and_a_killed_holders_lock_is_no_hindrance(server, here, call):
    run = here / "run"
    life = server.begin(here, "train", "short.yaml", *SEEDS, "total_timesteps=1_000_000", "--out", "run")
    life.until(lambda: checkpoints.steps(root(run)))
    for second in (server.run(here, "resume", "run"), call("resume", "run", "--no-cache")):
        assert_refused(second, "run: is in use by process", rf"\b{life.pid}\b", platform.node())
    assert_refused(server.run(here, "train", "short.yaml", "--out", "run"), "not empty")
    assert re.search(r"^run .* running ", call("list-runs", ".").stdout, re.MULTILINE)
    assert "state: running" in call("show", "run").stdout
    assert call("evaluate", "run", "--episodes", "2", "--no-cache").status == 0
    assert life.poll() is None
    life.kill()
    assert str(life.pid) in (run / "lock").read_text()
    assert re.search(r"^run .* killed ", call("list-runs", ".").stdout, re.MULTILINE)
    shown = call("show", "run").stdout
    assert "state: killed" in shown
    assert "continue with: quantilax resume run" in shown
    again = server.begin(here, "resume", "run")
    before = checkpoints.steps(root(run))
    again.until(lambda: checkpoints.steps(root(run)) != before)
    assert re.search(r"^run .* running ", call("list-runs", ".").stdout, re.MULTILINE)
    again.kill()


# 5. Another place


def test_a_run_moved_elsewhere_loads_shows_and_resumes_with_a_relative_path(stopped, finished, call, monkeypatch):
    place = stopped.parent / "else where" / "deep"
    place.mkdir(parents=True)
    stopped.rename(place / "moved")
    monkeypatch.chdir(place)
    assert int(quantilax.load("moved").state.env_steps) == STOPPED_AT
    assert call("show", "moved").status == 0
    monkeypatch.chdir(place / "moved")
    assert call("show", ".").status == 0
    ended = call("resume", ".", "--no-cache")
    assert ended.status == 0, ended.stderr
    assert_same_end(place / "moved", finished)


# 6. The clock


def test_file_times_and_a_clock_that_runs_backwards_change_nothing(stopped, finished, monkeypatch):
    for age, step in enumerate(checkpoints.steps(root(stopped))):
        os.utime(checkpoints.path_of(root(stopped), step), (2**33 - age, 2**33 - age))
    ticks = itertools.count(1_000_000_000, -3_600)
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    runs.resume(stopped, quiet=True)
    monkeypatch.undo()
    assert_same_end(stopped, finished)
    starts = json.loads((stopped / "run.json").read_text())["starts"]
    assert [start["from_env_step"] for start in starts] == [0, STOPPED_AT]


# 7. Damage (each file and each cut: tests/unit/test_checkpoints.py)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_same_end(stopped, finished, call):
    newest = last(stopped)
    os.truncate(newest, 100)
    ended = call("resume", "stopped", "--no-cache")
    assert ended.status == 0, ended.stderr
    (warning,) = warnings_of(ended)
    assert str(newest.relative_to(stopped.parent)) in warning
    assert warning.endswith("; using step 160 instead")
    assert_same_end(stopped, finished)


@pytest.mark.parametrize("command", [("resume",), ("evaluate",), ("evaluate", "--checkpoint", "best")])
def test_a_run_without_a_readable_checkpoint_is_refused_in_one_line_and_nothing_is_deleted(stopped, call, command):
    for step in checkpoints.steps(root(stopped)):
        os.truncate(checkpoints.path_of(root(stopped), step), 100)
    before = {name: data for name, data in tree(stopped).items() if name != "lock"}
    assert_refused(call(command[0], "stopped", *command[1:], "--no-cache"), "no checkpoint can be read", "safetensors")
    assert {name: data for name, data in tree(stopped).items() if name != "lock"} == before
    assert call("show", "stopped").status == 0
    assert call("list-runs", ".").status == 0


# 8. Hostile files


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sentinel}",)


COMMANDS = (
    ("list-runs",),
    ("show",),
    ("evaluate", "--episodes", "2", "--no-cache"),
    ("resume", "--quiet", "--no-cache"),
)


def assert_harmless(call: Call, run: Path, sentinel: Path, commands: Iterable[tuple[str, ...]] = COMMANDS) -> None:
    """Each command ends in one line or works; none runs what the file says."""
    with suppress(quantilax.RunError, quantilax.ConfigError):
        quantilax.load(run)
    assert not sentinel.exists()
    for command in commands:
        ended = call(command[0], run.name, *command[1:])
        told = [line for line in ended.lines if not line.startswith("warning: ")]
        assert (ended.status, len(told)) in ((0, 0), (2, 1)), ended
        assert not sentinel.exists(), ended


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


@pytest.fixture
def hostile(stopped: Path, tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Put a file into a fresh copy of a run that has one checkpoint."""
    keep_only_last(stopped)
    stopped = stopped.rename(tmp_path.parent / f"{tmp_path.name}-original")
    numbers = itertools.count()

    def make(name: str, content: bytes) -> Path:
        run = Path(shutil.copytree(stopped, tmp_path / f"hostile-{next(numbers)}"))
        (run / name).write_bytes(content)
        return run

    make.files = [str(p.relative_to(stopped)) for p in sorted(stopped.rglob("*")) if p.is_file()]
    return make


@pytest.fixture
def bombs(sentinel: Path) -> tuple[bytes, bytes]:
    """A pickle that is text, and one that is not."""
    return pickle.dumps(Bomb(sentinel), 0), pickle.dumps(Bomb(sentinel), 5)


def test_the_bombs_of_these_tests_go_off(bombs, sentinel):
    for bomb in bombs:
        pickle.loads(bomb)
        sentinel.unlink()


def test_a_pickle_in_the_place_of_any_file_is_never_loaded(hostile, bombs, sentinel, call):
    assert len(hostile.files) > 12
    for name in hostile.files:
        is_text = name.endswith((".yaml", ".json", ".jsonl", ".csv"))
        run = hostile(name, bombs[not is_text])
        assert_harmless(call, run, sentinel, () if "blocks" in name else COMMANDS)
        shutil.rmtree(run)


def test_a_pickle_in_the_place_of_a_block_that_the_manifest_vouches_for_is_never_loaded(hostile, bombs, sentinel, call):
    run = hostile("x", b"")
    content, digest = content_of(last(run)), hashlib.sha256(bombs[1]).hexdigest()
    (root(run) / "blocks" / digest).write_bytes(bombs[1])
    for name in content["blocks"]:
        content["blocks"][name] = [[2, len(bombs[1])], "uint8", 2**16, [digest, digest]]
    write_manifest(last(run), content)
    assert_harmless(call, run, sentinel, COMMANDS[-1:])


def test_a_pickle_beside_the_arrays_is_never_loaded(hostile, bombs, sentinel, call):
    run = hostile("x", bombs[1])
    for name in ("checkpoint", "aggregate", "arrays.pkl", "state.pickle", "_sharding", "blocks/state.pkl"):
        (root(run) / name).write_bytes(bombs[1])
    assert_harmless(call, run, sentinel)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "dqn: !!python/object/apply:os.system ['touch {}']",
        "dqn: {{env: !!python/object/new:os.system ['touch {}']}}",
        "dqn: {{env: !!python/name:os.system , learning_rate: !!python/object/apply:os.system ['touch {}']}}",
    ],
)
def test_yaml_that_names_functions_calls_none(hostile, sentinel, call, text):
    run = hostile("config.yaml", text.format(sentinel).encode())
    with pytest.raises(quantilax.ConfigError):
        quantilax.load(run)
    assert_harmless(call, run, sentinel)


WRONG_FACTS = {
    "no section": {"section": None},
    "a section that is a list": {"section": []},
    "starts that are words": {"starts": ["a", "b"]},
    "starts that are empty": {"starts": []},
    "a negative seed": {"seeds": [-1, 0]},
    "a huge seed": {"seeds": [2**40, 0]},
    "seeds that are truths": {"seeds": [True, False]},
    "other seeds": {"seeds": [5, 6]},
    "a seed more": {"seeds": [0, 1, 2]},
    "a word as interval": {"checkpoint_every": "often"},
    "a logger that is a number": {"log": 5},
    "a logger that is unknown": {"log": ["abacus"]},
    "a logger that is a list": {"log": [["wandb"]]},
    "devices in words": {"devices": "two"},
    "starts without a step": {"starts": [{"command": "quantilax train", "date": "2026-07-01"}]},
    "a section and a status with brackets": {"section": "[/b]", "status": "failed: no [/closing] of [this]"},
    "a status that is a number": {"status": 5},
}


@pytest.mark.parametrize("facts", WRONG_FACTS.values(), ids=WRONG_FACTS)
def test_a_run_json_that_says_something_else_is_one_line(hostile, sentinel, call, facts):
    run = hostile("x", b"")
    file = run / "run.json"
    changed = {**json.loads(file.read_text()), **facts}
    file.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
    assert_harmless(call, run, sentinel)


def test_list_runs_prints_section_and_status_as_they_are(stopped, call):
    file = stopped / "run.json"
    facts = {"section": "[/b]", "status": "failed: no [this] of :smile:"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))
    told = call("list-runs", ".").stdout
    assert facts["section"] in told
    assert facts["status"] in told


@pytest.mark.parametrize(
    "line",
    [
        '{"env_step": Infinity, "all": {}, "seeds": []}',
        '{"env_step": 40, "all": {"return_mean": "high"}, "seeds": []}',
        '{"env_step": 40, "all": {"return_mean": [1]}, "seeds": [1, 2]}',
        f'{{"env_step": 40, "all": {{"return_mean": 1{"0" * 400}}}, "seeds": []}}',
        '{"env_step": 40, "all": {}, "seeds": ' + "[" * 100_000,
    ],
)
def test_a_line_of_the_curve_that_says_something_else_is_left_out(stopped, call, line):
    (stopped / "evaluations.jsonl").write_text(line + "\n")
    assert re.search(r"stopped +- +- ", call("list-runs", ".").stdout)
    ended = call("show", "stopped")
    assert (ended.status, ended.lines) == (0, [])
    assert "step 0 of 440" in ended.stdout


@pytest.mark.parametrize("line", ['{"env_step": 40, "all": {"return_mean": null}, "seeds": [{}, {}]}', ""])
def test_a_curve_without_a_number_is_shown_without_a_plot(stopped, call, line):
    (stopped / "evaluations.jsonl").write_text(f"{line}\n")
    ended = call("show", "stopped")
    assert (ended.status, ended.lines) == (0, [])
    assert "mean return over environment steps" not in ended.stdout


def test_a_checkpoint_of_no_length_is_refused_in_one_line(stopped, call):
    content = content_of(keep_only_last(stopped))
    content["config"]["total_timesteps"] = ["440"]
    write_manifest(last(stopped), content)
    assert_refused(call("resume", "stopped", "--no-cache", "--quiet"), "safetensors: its manifest", "total_timesteps")


def test_a_run_whose_seeds_are_not_those_of_its_checkpoint_is_not_resumed(stopped, call):
    file = stopped / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seeds": [5, 6]}))
    assert_refused(call("resume", "stopped", "--no-cache"), "seeds")


WRONG_CONTENT = {
    "another step": {"env_step": 120},
    "seconds in words": {"seconds": "many"},
    "versions in a list": {"versions": ["1"]},
    "rows of no number there is": {"rows": 10**30},
    "fewer rows": {"rows": 2},
    "no rows": {"rows": 0},
    "negative rows": {"rows": -1},
    "a config that is empty": {"config": {}},
    "a config of lists": {"config": {"total_timesteps": [], "env": []}},
    "a mean return that is infinite": {"return_mean": float("inf")},
}


@pytest.mark.parametrize("facts", WRONG_CONTENT.values(), ids=WRONG_CONTENT)
def test_a_manifest_that_says_something_else_with_the_right_sum_is_one_line(hostile, sentinel, call, facts):
    run = hostile("x", b"")
    content = content_of(last(run))
    write_manifest(last(run), {**content, **facts})
    assert_harmless(call, run, sentinel)


# 9. A loss that is not finite


def test_a_run_whose_loss_is_not_finite_fails_in_one_line_and_keeps_its_checkpoints(here, call):
    ended = call("train", "short.yaml", *SEEDS, "--quiet", "--no-cache", "learning_rate=1e30", "--out", "run")
    warning, line = ended.lines
    assert warning.startswith("warning: short.yaml: dqn: learning_rate=1e+30 is above 0.01")
    refused = ended._replace(stderr=line)
    assert_refused(refused, r"^error: the (loss is (nan|-?inf)|parameters hold NaN or inf) at environment step \d+")
    steps = checkpoints.steps(root(here / "run"))
    assert steps
    for step in steps:
        arrays = checkpoints.read(checkpoints.path_of(root(here / "run"), step)).arrays
        assert all(np.isfinite(array).all() for name, array in arrays.items() if name.startswith("state/params"))
    assert re.search(r"^run .* failed: the ", call("list-runs", ".").stdout, re.MULTILINE)
    evaluated = call("evaluate", "run", "--episodes", "2", "--no-cache")
    assert (evaluated.status, evaluated.lines) == (0, [])
    assert f"the policy at step {steps[-1]}" in evaluated.stdout
    assert_refused(call("resume", "run", "--quiet", "--no-cache"), "^error: the (loss|parameters) ")
    assert checkpoints.steps(root(here / "run")) == steps


# 10. Signals


@pytest.mark.parametrize(
    ("number", "out"),
    [(signal.SIGTERM, "run"), pytest.param(signal.SIGINT, "a run's directory", marks=pytest.mark.validation)],
)
def test_a_signal_lets_the_segment_end_saves_it_and_the_command_told_goes_on(server, whole, here, number, out):
    run = here / out
    life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", out)
    life.until(lambda: len(checkpoints.steps(root(run))) >= 2)
    life.send(number)
    ended = life.wait()
    assert ended.status == 128 + number, ended
    assert ended.stdout == ""
    stopping, *_, told = ended.lines[-3:] if "stopping: " in ended.lines[-3] else ended.lines[-2:]
    assert stopping.startswith("stopping: ")
    step = checkpoints.steps(root(run))[-1]
    assert told.startswith(f"stopped at step {step} of 440; continue from step {step} with: quantilax resume ")
    assert status(run) == "interrupted"
    checkpoints.read(last(run))
    program, *arguments = shlex.split(told.split(" with: ")[1])
    assert program == "quantilax"
    resumed = server.run(here, *arguments)
    assert resumed.status == 0, resumed.stderr
    assert_same_end(run, whole)


def test_a_second_ctrl_c_ends_at_once_and_leaves_a_readable_run(server, here):
    run = here / "run"
    long = ("total_timesteps=50_000_000", "eval_freq=25_000_000")  # hours
    begun = time.monotonic()
    life = server.begin(here, "train", "short.yaml", *SEEDS, *long, "--out", "run")
    life.until(lambda: checkpoints.steps(root(run)) == [40])
    soon = max(10, 2 * (time.monotonic() - begun))  # a loaded machine was as slow so far; a segment takes hours
    time.sleep(0.3)
    life.send(signal.SIGINT)
    life.until(lambda: "stopping: " in life.stderr, seconds=soon)
    time.sleep(1)
    assert life.poll() is None
    life.send(signal.SIGINT)
    ended = life.wait(soon)
    assert ended.status == 130, ended
    assert "Traceback" not in ended.stderr
    assert ended.lines[-1] == "ended at once; continue from step 40 with: quantilax resume run"
    assert status(run) == "interrupted"
    checkpoints.read(last(run))


def test_ctrl_c_while_compiling_ends_at_once(server, here):
    (here / "iqn.yaml").write_text(TINY)  # it compiles for longer than the last signal waits
    for number, seconds in enumerate((0, 0.3, 0.7, 1.1)):
        run = here / f"run-{number}"
        life = server.begin(
            here, "train", "iqn.yaml", *SEEDS, "num_cosines=5", "--quiet", "--no-cache", "--out", run.name
        )
        life.until(lambda run=run: (run / "run.json").exists())
        time.sleep(seconds)
        life.send(signal.SIGINT)
        ended = life.wait(20)
        assert ended.status == 130, ended
        assert ended.lines == [f"ended at once; continue from the beginning with: quantilax resume {run.name}"]
        assert status(run) == "interrupted"


HANGING = """
import atexit, time
Settings = dict
def init(**_):
    atexit.register(time.sleep, 3600)  # wandb waits there for what it has not sent
    time.sleep(3600)
"""


@pytest.mark.validation
def test_a_logger_that_hangs_is_waited_for_when_all_is_written_until_ctrl_c(server, whole, here):
    (here / "wandb.py").write_text(HANGING)
    life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", "run", "--log", "wandb")
    life.until(lambda: (here / "run" / "learning_curve.png").exists())
    life.until(lambda: "waiting for wandb, at most 60 s; Ctrl-C stops waiting" in life.stderr)
    assert_same_end(here / "run", whole)
    life.send(signal.SIGINT)
    ended = life.wait(10)
    assert ended.status == 0
    assert ended.stdout.startswith("final mean return ")
    (warning,) = warnings_of(ended)
    assert warning.startswith("warning: wandb has not finished and is no longer waited for")


@pytest.mark.validation
def test_a_stopped_run_says_so_before_it_waits_for_a_logger_that_hangs(server, whole, here):
    (here / "wandb.py").write_text(HANGING)
    life = server.begin(here, "train", "short.yaml", *SEEDS, "--out", "run", "--log", "wandb")
    life.until(lambda: len(checkpoints.steps(root(here / "run"))) >= 2)
    life.send(signal.SIGTERM)
    life.until(lambda: "waiting for wandb" in life.stderr)
    assert status(here / "run") == "interrupted"
    life.send(signal.SIGTERM)
    ended = life.wait(10)
    assert ended.status == 128 + signal.SIGTERM
    assert re.match(r"stopped at step \d+ of 440; continue from step \d+ with: quantilax resume run$", ended.lines[-1])
    assert len(warnings_of(ended)) == 1
    (here / "wandb.py").write_text("raise ImportError('gone')")
    assert server.run(here, "resume", "run", "--quiet").status == 0
    assert_same_end(here / "run", whole)


# 11. Another config, another format, longer runs


@pytest.mark.parametrize(
    ("field", "value", "there"),
    [("batch_size", 8, "16"), ("learning_rate", 0.01, "0.001"), ("torso_sizes", [4], r"\[8\]")],
)
@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_config_that_was_edited_is_refused_with_what_differs(stopped, call, field, value, there, command):
    edit(stopped, field, value)
    ended = call(command, "stopped", "--no-cache")
    assert_refused(ended, "config.yaml: does not match", rf"{field} is {there} there, {re.escape(str(value))} here")


def edit(run: Path, field: str, value: Any) -> None:
    sections = yaml.safe_load((run / "config.yaml").read_text())
    sections["dqn"][field] = value
    (run / "config.yaml").write_text(yaml.safe_dump(sections))


def test_a_checkpoint_whose_arrays_are_of_another_network_is_refused_by_name_not_by_jax(stopped, call):
    edit(stopped, "torso_sizes", [4])
    content = content_of(keep_only_last(stopped))
    content["config"]["torso_sizes"] = [4]
    write_manifest(last(stopped), content)
    for command in ("resume", "evaluate"):
        ended = call(command, "stopped", "--no-cache", *(["--quiet"] if command == "resume" else []))
        assert_refused(
            ended, "does not fit", r"state/params/\S+ is float32\[2, 8, 8\] in the checkpoint, float32\[2, 4, 8\] here"
        )


def test_a_checkpoint_of_a_later_format_is_refused_with_the_version_to_use(stopped, call):
    content = content_of(keep_only_last(stopped))
    write_manifest(last(stopped), {**content, "format": 99, "versions": {"quantilax": "7.0"}})
    for command in ("resume", "evaluate"):
        assert_refused(call(command, "stopped", "--no-cache"), "has format 99", "use quantilax 7.0")


def test_fewer_steps_than_the_run_has_are_refused_and_change_nothing(stopped, call):
    before = {name: data for name, data in tree(stopped).items() if name != "lock"}
    for steps in ("200", "439", "1"):
        ended = call("resume", "stopped", "--no-cache", "--total-timesteps", steps)
        assert_refused(ended, f"--total-timesteps: {steps} is less than the run's 440")
    assert {name: data for name, data in tree(stopped).items() if name != "lock"} == before


def test_a_finished_run_resumed_stays_as_it_is(finished, tmp_path, call):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = tree(run)
    ended = call("resume", "run", "--no-cache")
    assert (ended.status, ended.lines) == (0, [])
    assert ended.stdout.startswith("already finished: mean return ")
    assert tree(run) == before


@pytest.mark.validation
def test_an_extension_that_was_killed_and_resumed_ends_as_one_that_was_not(server, whole, here):
    extend = ("--total-timesteps", "700")
    for name in ("one", "other"):
        shutil.copytree(whole, here / name)
    unhindered = server.begin(here, "resume", "one", *extend)
    for asked in (extend, ()):
        life = server.begin(here, "resume", "other", *asked)
        before = checkpoints.steps(root(here / "other"))
        life.until(lambda before=before: checkpoints.steps(root(here / "other")) != before)
        life.kill()
    assert server.run(here, "resume", "other").status == 0
    ended = unhindered.wait()
    assert ended.status == 0, ended.stderr
    assert "extended from 440 to 700 steps" in ended.stderr
    assert checkpoints.steps(root(here / "one"))[-1] == 700
    assert_same_end(here / "other", here / "one")


# Whatever else may fail


@pytest.mark.parametrize("error", [MemoryError(), AssertionError(), ValueError("two\nlines")])
def test_a_save_that_fails_without_a_word_neither_hangs_nor_ends_the_run(stopped, monkeypatch, error):
    def fail(*args: Any) -> None:
        raise error

    warnings: list[str] = []
    agent, states, seeds, _ = loading.load_states(stopped, "last")
    record = agent.records(jax.random.key(0))[1]
    row = jax.tree.map(lambda x: np.stack([np.asarray(x)[-1]] * len(seeds)), record)
    monkeypatch.setattr(checkpoints, "save", fail)
    progress = SimpleNamespace(warn=warnings.append)
    one = session.Session(agent, runs.RunDirectory.open(stopped), None, progress, None, None)
    one.history = [evaluations.Evaluation(row, 1.0)]
    one._checkpoint(states)()
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert one.unsaved_reason


@pytest.mark.validation
def test_a_standard_error_that_is_full_ends_no_run(server, whole, here):
    command = ("train", "short.yaml", *SEEDS, "--out")
    loud, quiet = (
        server.begin(here, *command, name, *more, stderr="/dev/full")
        for name, more in (("loud", ()), ("quiet", ("-q",)))
    )
    for name, life in (("loud", loud), ("quiet", quiet)):
        assert life.wait().status == 0
        assert_same_end(here / name, whole)


@pytest.mark.validation
def test_a_standard_error_that_is_closed_ends_no_run_and_no_refusal(here):
    def closed(*arguments):
        command = [sys.executable, "-m", "quantilax.cli", *arguments]
        shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        environment = os.environ | {"XDG_CACHE_HOME": str(here / "cache"), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(shell, cwd=here, env=environment, capture_output=True, text=True, timeout=300)

    ended = closed("train", "short.yaml", "--out", "run")
    assert (ended.returncode, status(here / "run")) == (0, "finished")
    assert ended.stdout.startswith("final mean return ")
    assert closed("train", "none.yaml").returncode == 2


@pytest.mark.parametrize("how", ["deleted", "a link to nowhere"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_keeps_what_it_came_to(finished, tmp_path, call, how):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(root(run))
    if how != "deleted":
        facts = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**facts, "status": "interrupted"}))
        root(run).symlink_to(tmp_path / "scratch")
    before = {name: data for name, data in tree(run).items() if name != "lock"}
    assert_refused(
        call("resume", "run", "--no-cache"), "run/checkpoints: has no checkpoints, although the run wrote some"
    )
    assert {name: data for name, data in tree(run).items() if name != "lock"} == before


@pytest.mark.parametrize("told_by", ["saved", "starts"])
@pytest.mark.parametrize("how", ["running", "interrupted"])
def test_a_run_that_was_stopped_and_whose_checkpoints_are_gone_is_refused(stopped, call, how, told_by):
    facts = json.loads((stopped / "run.json").read_text()) | {"status": how}
    assert facts["saved"] == 40
    if told_by == "starts":  # as before `saved` was noted
        del facts["saved"]
        facts["starts"].append({**facts["starts"][0], "from_env_step": 120})
    (stopped / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(root(stopped))
    assert_refused(call("resume", "stopped", "--no-cache"), "has no checkpoints, although the run wrote some")


@pytest.mark.parametrize("table", ["evaluations.csv", "evaluations.jsonl", "evaluations.parquet"])
def test_a_table_of_a_finished_run_that_lacks_rows_is_made_whole(finished, tmp_path, table):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / table).write_bytes((run / table).read_bytes()[:200])
    assert runs.resume(run, quiet=True).status == "finished"
    assert curves(run) == curves(finished)


def test_a_run_killed_before_its_run_json_was_there_is_begun_by_the_same_command(call, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("lock", "config.yaml", "run.json.partial"):
        (run / name).write_text("")
    (run / "notes.txt").write_text("mine")
    assert_refused(call("train", "tiny.yaml", "--no-cache", "--out", "run"), "run is not empty")
    (run / "notes.txt").unlink()
    ended = call("train", "tiny.yaml", "--no-cache", "-q", "--out", "run")
    assert ended.status == 0, ended.stderr
    assert status(run) == "finished"


def test_a_shorter_run_than_the_checkpoint_is_of_is_refused(stopped, call):
    edit(stopped, "total_timesteps", 160)
    before = tree(stopped)
    ended = call("resume", "stopped", "--no-cache")
    assert_refused(ended, "total_timesteps is 440 in 0+200, 160 here: a run can be extended, not shortened")
    assert {name: data for name, data in tree(stopped).items() if name != "lock"} == {
        name: data for name, data in before.items() if name != "lock"
    }


def test_a_hyperparameter_that_came_after_a_run_stood_at_its_default(stopped):
    content = content_of(keep_only_last(stopped))
    del content["config"]["double"]
    write_manifest(last(stopped), content)
    assert quantilax.load(stopped).algo.config.double is False
    edit(stopped, "double", True)
    with pytest.raises(quantilax.ConfigError, match="double is False there, True here"):
        quantilax.load(stopped)


def test_an_environment_of_other_parameters_is_made_again_from_its_section(tmp_path, call):
    agent = runs.load_section(config_of(tmp_path)).create()
    longer = dataclasses.replace(agent.env, cells=8)
    agent = dataclasses.replace(agent, env=longer)
    runs.run(agent, tmp_path / "run", callback=lambda state, record: True, quiet=True)
    ended = call("evaluate", "run", "--no-cache", "--episodes", "2")
    assert (ended.status, ended.stderr) == (0, "")
    assert quantilax.load(tmp_path / "run").algo.env == longer
    assert quantilax.load(tmp_path / "run", env=longer).algo.env is longer
    assert runs.resume(tmp_path / "run", quiet=True).status == "finished"


def config_of(directory: Path) -> Path:
    config(directory)
    return directory / "short.yaml"
