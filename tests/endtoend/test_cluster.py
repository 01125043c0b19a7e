"""Studies beyond one process: a Ray cluster and the shards of a job array give the records of one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from quantilax.studies import definition, start
from quantilax.studies.store import Store
from tests.endtoend.conftest import TINY_DQN, Call
from tests.endtoend.test_cli_refusals import refused

STUDY = """\
base: {config: base.yaml, section: dqn, overrides: {total_timesteps: 1000, eval_freq: 500}}
variants: {named: {far: {gamma: 0.5}, big: {batch_size: 24}}}
seeds: 3
"""
"""Two compile groups, nine runs."""
ONE_GROUP = STUDY.replace(", big: {batch_size: 24}", "")
"""Six of these runs, in one compile group."""

MINE = """\
import quantilax

DQN = quantilax.ALGORITHMS["dqn"]


def update(config, state, key):
    return DQN.update(config, state, key)


quantilax.register(DQN._replace(name="mine", update=update))
"""

QUANTILAX = [sys.executable, "-W", "error", "-m", "quantilax.cli"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(TINY_DQN)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Records of the study by one process."""
    here = tmp_path_factory.mktemp("alone")
    (here / "base.yaml").write_text(TINY_DQN)
    (here / "study.yaml").write_text(STUDY)
    return records(start.run(definition.load(here / "study.yaml"), here / "out", jobs=1, quiet=True))


@pytest.fixture
def begin(place: Path, pytestconfig: pytest.Config) -> Callable[..., "subprocess.Popen[str]"]:
    """Begin `quantilax study` with one job."""

    def start(*arguments: str, files: tuple[str, ...] = (), **environment: str) -> "subprocess.Popen[str]":
        fixed = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(pytestconfig.cache.mkdir("xla")),
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the home directory
        }
        imports = (f"--import={file}" for file in files)
        return subprocess.Popen(
            [*QUANTILAX, *imports, "study", "study.yaml", "--jobs", "1", "--out", "out", *arguments],
            cwd=place,
            env={**os.environ, **fixed, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def records(store: Store) -> pl.DataFrame:
    return store.records().drop("seconds")


def until(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    """Wait until a condition holds; it must hold before the process ends."""
    while not (found := condition()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return found


def at_work(driver: int) -> list[psutil.Process]:
    """Ray's workers that are training a batch; Ray sets their process title to the method's name."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if child.cmdline()[:1] == ["ray::RayWorker.rows"]:
                found.append(child)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_ray_cluster_of_which_a_worker_is_killed_gives_the_records_of_one_process(place, alone, begin):
    """The algorithm is DQN, registered by another name in a file of the user."""
    (place / "files").mkdir()  # nowhere on the workers' path
    (place / "files" / "mine.py").write_text(MINE)
    (place / "base.yaml").write_text(TINY_DQN.replace("dqn:\n", "dqn:\n  algorithm: mine\n"))
    (place / "study.yaml").write_text(ONE_GROUP)
    driver = begin("--on", "ray", files=("files/mine.py",))
    until(lambda: list(place.glob("out/records/*.parquet")), driver)
    seen = until(lambda: (lambda found: found if len(found) == 2 else None)(at_work(driver.pid)), driver)
    seen[0].kill()
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert out.splitlines()[-1].startswith("results in out;")
    assert "warning: a worker died during 1 run(s) (ActorDiedError)\n1 run(s) start again\n" in err
    assert "6 of 6 runs" in err
    assert "7 of 6 runs" not in err  # each run once
    store = Store.open(place / "out")
    assert_frame_equal(records(store), alone.filter(pl.col("variant") != "big"))
    assert (store.status, store.failures(), store.facts["starts"][0]["on"]) == ("finished", [], "ray")
    assert not psutil.pid_exists(seen[1].pid)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def test_shards_at_the_same_time_give_the_records_of_one_process(place, alone, begin):
    shards = [begin("--shard", f"{number}/2") for number in (1, 2)]
    ended = [shard.communicate(timeout=200) for shard in shards]
    assert [shard.returncode for shard in shards] == [0, 0], ended
    store = Store.open(place / "out")
    assert_frame_equal(records(store), alone)
    assert (store.status, store.failures()) == ("finished", [])
    assert [start["shard"] for start in sorted(store.facts["starts"], key=lambda start: start["shard"])] == [1, 2]
    assert ["5 of 5 runs" in ended[0][1], "4 of 4 runs" in ended[1][1]] == [True, True], "every other run by each"
    assert sorted(file.name for file in (place / "out").iterdir()) == ["records.parquet", "study.json"]
    assert sum("variant " in out for out, _ in ended) <= 1, "the last one tells the results"


def test_a_shard_that_is_killed_does_its_share_when_it_is_given_again(place, alone, begin):
    (place / "study.yaml").write_text(ONE_GROUP)
    first, second = begin("--shard", "1/2"), begin("--shard", "2/2")
    assert any("compile group 1 of 1" in line for line in second.stderr)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, err = first.communicate(timeout=200)
    assert first.returncode == 0, err
    assert Store.open(place / "out").status == "incomplete"
    again = begin("--shard", "2/2")
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    store = Store.open(place / "out")
    assert_frame_equal(records(store), alone.filter(pl.col("variant") != "big"))
    assert store.status == "finished"


def test_a_directory_is_worked_on_as_a_whole_or_by_shards(place, begin, call: Call):
    shard = begin("--shard", "1/9")
    assert any("compile group" in line for line in shard.stderr)
    assert "is in use: shards are working on it" in refused(call("study", "study.yaml", "--out", "out", "--resume"))
    assert "out: is in use by process" in refused(call("study", "study.yaml", "--out", "out", "--shard", "1/9"))
    _, err = shard.communicate(timeout=100)
    assert shard.returncode == 0, err
    with Store.open(place / "out").lock():
        line = refused(call("study", "study.yaml", "--out", "out", "--shard", "2/9"))
    assert "is in use: another process is working on all of it" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shard", "0/2"), "--shard: expected I/N with I from 1 to N, such as 2/8, got '0/2'"),
        (("--shard", "3/2"), "--shard: expected I/N"),
        (("--shard", "2"), "--shard: expected I/N"),
        (("--shard", "1/2", "--on", "ray"), "--shard: cannot be combined with --on ray"),
    ],
)
def test_a_shard_that_is_none_is_refused(place, call: Call, arguments, words):
    assert words in refused(call("study", "study.yaml", *arguments))
    assert not (place / "studies").exists()


def test_without_the_extra_ray_is_refused_with_the_remedy(place, call: Call, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")  # so that it is as before afterwards
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(call("study", "study.yaml", "--on", "ray"))
    assert line == "error: --on ray needs the extra: pip install 'quantilax[ray]'"
    assert not (place / "studies").exists()


def test_an_address_of_ray_that_does_not_answer_is_refused_at_once(place, call: Call, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    line = refused(call("study", "study.yaml", "--on", "ray"))
    assert "does not answer (Connection refused); start a cluster with 'ray start', or unset it" in line
    assert not (place / "studies").exists()


def test_an_unknown_place_is_refused(place, call: Call):
    assert "'--on': 'slurm' is not 'ray'" in refused(call("study", "study.yaml", "--on", "slurm"))
