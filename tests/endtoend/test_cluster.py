"""Studies beyond one process: a Ray cluster and the processes of `jax.distributed` give the records of one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from quantilax.studies import definition, execution
from quantilax.studies.store import Store
from tests.endtoend.conftest import TINY, Call
from tests.endtoend.test_cli_refusals import refused

STUDY = """\
base: {config: tiny.yaml, section: iqn, overrides: {total_timesteps: 1000, eval_freq: 500}}
cells: {named: {far: {gamma: 0.5}, big: {batch_size: 24}}}
seeds: 3
"""
"""Two compile groups, nine runs."""

MINE = """\
import quantilax

IQN = quantilax.ALGORITHMS["iqn"]


def update(config, state, key):
    return IQN.update(config, state, key)


quantilax.register(IQN._replace(name="mine", update=update))
"""

QUANTILAX = [sys.executable, "-W", "error", "-m", "quantilax.cli"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Records of the study by one process."""
    here = tmp_path_factory.mktemp("alone")
    (here / "tiny.yaml").write_text(TINY)
    (here / "study.yaml").write_text(STUDY)
    return records(execution.run(definition.load(here / "study.yaml"), here / "out", jobs=1, quiet=True))


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
    """Wait until something is so, which it must be before the process has ended."""
    while not (found := condition()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return found


def at_work(driver: int) -> list[psutil.Process]:
    """Ray's workers that are at a portion; Ray makes of its name the title of the process."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if child.cmdline()[:1] == ["ray::Hand.rows"]:
                found.append(child)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_ray_cluster_of_which_a_worker_is_killed_gives_the_records_of_one_process(place, alone, begin):
    """The algorithm is IQN, registered by another name in a file of the user."""
    (place / "files").mkdir()  # nowhere on the workers' path
    (place / "files" / "mine.py").write_text(MINE)
    (place / "tiny.yaml").write_text(TINY.replace("iqn:\n", "iqn:\n  algorithm: mine\n"))
    driver = begin("--on", "ray", files=("files/mine.py",))
    until(lambda: list(place.glob("out/records/*.parquet")), driver)
    seen = until(lambda: (lambda found: found if len(found) == 2 else None)(at_work(driver.pid)), driver)
    seen[0].kill()
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert out.splitlines()[-1].startswith("results in out;")
    assert "warning: a worker died at 1 run(s) (ActorDiedError)\n1 run(s) begin again\n" in err
    assert "9 of 9 runs" in err
    store = Store.open(place / "out")
    assert_frame_equal(records(store), alone)
    assert (store.status, store.failures(), store.facts["starts"][0]["on"]) == ("finished", [], "ray")
    assert len(list(place.glob("out/records/*"))) == 9  # each run once
    assert not psutil.pid_exists(seen[1].pid)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture
def pair(begin) -> Callable[..., "list[subprocess.Popen[str]]"]:
    """Begin two processes of `jax.distributed` over loopback."""

    def start(*arguments: str) -> "list[subprocess.Popen[str]]":
        address = f"127.0.0.1:{free_port()}"
        return [
            begin(
                *("--on", "jax", *arguments),
                JAX_COORDINATOR_ADDRESS=address,
                JAX_COORDINATOR_BIND_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(number),
            )
            for number in range(2)
        ]

    return start


def test_two_processes_of_jax_over_loopback_give_the_records_of_one_process(place, alone, pair):
    processes = pair()
    ended = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert all(out.splitlines()[-1].startswith("results in out;") for out, _ in ended)
    assert len(ended[1][0].splitlines()) == 1  # the first tells the results
    assert any("9 of 9 runs" in err for _, err in ended)
    store = Store.open(place / "out")
    assert_frame_equal(records(store), alone)
    assert (store.status, store.failures(), store.facts["starts"][0]["on"]) == ("finished", [], "jax")
    files = {file.name for file in place.glob("out/records/*")}
    assert len(files) == 9
    assert 1 <= sum("-1." in file for file in files) <= 8  # both took part


def test_what_a_killed_process_leaves_undone_the_first_one_runs(place, alone, pair):
    first, second = pair()
    assert "compile group 1 of 2" in second.stderr.readline()  # it has taken a portion
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, err = first.communicate(timeout=200)
    assert first.returncode == 0, err
    assert "warning: 1 process(es) ended before their time: 1 run(s) begin again here" in err
    store = Store.open(place / "out")
    assert_frame_equal(records(store), alone)
    assert (store.status, store.failures()) == ("finished", [])


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
    assert "does not answer (Connection refused); begin a cluster with 'ray start', or unset it" in line
    assert not (place / "studies").exists()


def test_an_unknown_place_is_refused(place, call: Call):
    assert "'--on': 'slurm' is not one of 'ray', 'jax'" in refused(call("study", "study.yaml", "--on", "slurm"))


def test_processes_that_are_not_known_are_refused_with_the_remedy(place, begin):
    process = begin("--on", "jax")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, len(err.splitlines())) == (2, "", 1)
    assert "set JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start" in err
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_number_of_processes_that_is_none_is_refused(place, call: Call, monkeypatch, name):
    monkeypatch.setenv(name, "two")
    assert refused(call("study", "study.yaml", "--on", "jax")) == f"error: {name}: expected a whole number, got 'two'"


def test_processes_that_would_meet_after_jax_has_begun_to_compute_are_refused(place, call: Call, monkeypatch):
    jax.local_devices()
    for name, value in {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    assert "must be called before any JAX calls" in refused(call("study", "study.yaml", "--on", "jax"))
