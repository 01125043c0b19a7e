"""Who trains what on a cluster, with workers that die or cannot be used; no Ray is needed."""

import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from gymnax import registration

from quantilax import ALGORITHMS
from quantilax.errors import ConfigError
from quantilax.host import locks
from quantilax.runs import RunError, extensions
from quantilax.studies import cluster, definition, execution, machines
from quantilax.studies.cluster import RayWorker, Scheduler
from quantilax.studies.execution import BatchShape
from quantilax.studies.store import Failure, Store
from tests.endtoend.conftest import TINY


class TaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class DiedError(Exception):
    pass


ERRORS = SimpleNamespace(RayTaskError=TaskError, RayError=DiedError)


class Pool(cluster.Pool):
    """Workers with scripted behaviour: `acts` gives the outcome of each next action."""

    def __init__(self, batch_shape: BatchShape, acts) -> None:
        self.ray, self.batch_shape = (
            SimpleNamespace(exceptions=ERRORS, get=self.get, kill=lambda worker: None),
            batch_shape,
        )
        self.groups, self.at, self.unusable, self.looked = {}, {}, 0, -1e9
        self.acts, self.names, self.given = acts, itertools.count(), []

    def hire(self, most: int) -> None:
        for _ in range(min(most, cluster.room(self.batch_shape) - self.unusable) - len(self.groups)):
            worker = next(self.names)
            self.groups[worker] = None
            self.at[("prepare", worker)] = worker, None

    def give(self, worker: Any, batch: execution.Batch) -> None:
        self.groups[worker] = batch.group
        self.given.append((worker, batch))
        self.at[("rows", worker)] = worker, batch

    def come(self) -> list[Any]:
        return list(self.at)[:1]

    def get(self, reference: Any) -> Any:
        what, worker = reference
        batch = next((p for h, p in reversed(self.given) if h == worker), None) if what == "rows" else None
        found = self.acts(what, worker, batch)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def planned(tmp_path: Path) -> execution.Plan:
    (tmp_path / "tiny.yaml").write_text(TINY)
    base = {"config": str(tmp_path / "tiny.yaml"), "section": "iqn"}
    study = definition.make({"base": base, "variants": {"named": {"big": {"batch_size": 24}}}, "seeds": 4}, "s")
    return execution.plan(study, jobs=1)


class Told:
    """Keeps what a user would see."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.began = lambda batch, groups: None
        self.finished = lambda batch, rows: None
        self.say = lambda line: None
        self.warn = self.warnings.append


@pytest.fixture
def told() -> Told:
    return Told()


def rows_of(batch: execution.Batch) -> tuple[list[dict[str, Any]], str]:
    return [{"variant": variant, "seed": seed, "env_step": 40, "seconds": 0.0} for variant, seed in batch.runs], ""


@pytest.fixture
def work(planned, tmp_path, monkeypatch, told):
    """Let workers act, two at most, and return the store and the pool."""

    def run(acts, room: int = 2) -> tuple[Store, Pool]:
        monkeypatch.setattr(cluster, "room", lambda batch_shape: room)
        store = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")
        pool = Pool(planned.batch_shape, acts)
        Scheduler(planned, store, told, pool).work()
        return store, pool

    return run


def good(what: str, worker: int, batch: execution.Batch | None) -> Any:
    return machines.facts() if batch is None else rows_of(batch)


def test_each_run_is_trained_once_and_a_worker_keeps_to_its_group(work, told):
    store, pool = work(good)
    runs = [run for _, batch in pool.given for run in batch.runs]
    assert sorted(runs) == [(variant, seed) for variant in ("base", "big") for seed in range(4)]
    assert store.finished() == set(runs)
    groups = {worker: {batch.group for h, batch in pool.given if h == worker} for worker in (0, 1)}
    assert sorted(map(len, groups.values())) == [1, 1]
    assert told.warnings == []


def test_a_batch_whose_worker_dies_is_run_again_by_another(work, told):
    died = []

    def once(what, worker, batch):
        if batch is not None and batch.runs == (("base", 2),) and not died:
            died.append(worker)
            return DiedError()
        return good(what, worker, batch)

    store, pool = work(once)
    assert len(store.finished()) == 8
    at = [worker for worker, batch in pool.given if batch.runs == (("base", 2),)]
    assert len(at) == 2
    assert at[0] == died[0] != at[1]
    assert told.warnings == ["a worker died during 1 run(s) (DiedError)"]


def test_a_group_over_which_three_workers_die_is_given_up_and_the_rest_goes_on(work, told):
    def deadly(what, worker, batch):
        is_deadly = batch is not None and batch.group == 1
        return DiedError() if is_deadly else good(what, worker, batch)

    store, pool = work(deadly)
    assert {variant for variant, _ in store.finished()} == {"base"}
    assert store.failures() == [Failure("big", "3 workers died during its runs, perhaps out of memory")]
    assert max([batch for _, batch in pool.given].count(p) for _, p in pool.given) == 3


def test_a_group_that_cannot_be_run_is_noted_once_and_the_rest_goes_on(work, told):
    def broken(what, worker, batch):
        return ([], "out of memory") if batch is not None and batch.group == 0 else good(what, worker, batch)

    store, _ = work(broken)
    assert {variant for variant, _ in store.finished()} == {"big"}
    assert store.failures() == [Failure("base", "out of memory")]
    assert len(told.warnings) == 1


def test_workers_that_die_before_they_begin_end_the_study(work):
    with pytest.raises(RunError, match="3 workers in a row died before they could begin"):
        work(lambda what, worker, batch: DiedError())


def test_a_worker_that_cannot_be_used_is_done_without(work, told):
    def unfit(what, worker, batch):
        return TaskError(ConfigError("it has 1 device(s)")) if worker == 0 else good(what, worker, batch)

    store, pool = work(unfit)
    assert len(store.finished()) == 8
    assert {worker for worker, _ in pool.given} == {1}
    assert told.warnings == ["a worker cannot be used: it has 1 device(s)"]


def test_where_no_worker_can_be_used_the_study_ends(work):
    with pytest.raises(
        RunError, match=r"cannot be used: it has 1 device.*; no other worker is left; continue with --resume"
    ):
        work(lambda what, worker, batch: TaskError(ConfigError("it has 1 device(s)")))


def test_a_mistake_in_the_program_is_not_hidden(work):
    def mistaken(what, worker, batch):
        return good(what, worker, batch) if batch is None else TaskError(KeyError("who"))

    with pytest.raises(KeyError, match="who"):
        work(mistaken)


def test_another_machine_is_told_once(work, told):
    def other(what, worker, batch):
        return {**machines.facts(), "cores": 999} if batch is None else good(what, worker, batch)

    work(other)
    (line,) = told.warnings
    assert line.startswith("a worker's machine has cores 999, this one ")
    assert line.endswith("the low bits of its results may differ")


def test_a_worker_with_other_devices_than_the_study_is_laid_on_refuses(planned):
    with pytest.raises(ConfigError, match=r"it has \d device\(s\) of kind cpu, but the study's layout needs 64 of cpu"):
        RayWorker().prepare(planned.study, BatchShape(64, 1), "cpu", False)
    with pytest.raises(ConfigError, match="of kind cpu, but the study's layout needs 1 of gpu"):
        RayWorker().prepare(planned.study, BatchShape(1, 1), "gpu", False)


MINE = """
import gymnax
import quantilax
from base import update  # of a file that is named after this one

gymnax.register("mine-v0", gymnax.environments.CartPole)
quantilax.register(quantilax.ALGORITHMS["iqn"]._replace(name="mine", update=update))
"""
BASE = """
import quantilax


def update(config, state, key):
    return quantilax.ALGORITHMS["iqn"].update(config, state, key)
"""


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Make this process one that has not run the two files."""

    def clean() -> None:
        for name in ("mine", "base"):
            extensions.FILES.pop(name, None)
            sys.modules.pop(name, None)
        ALGORITHMS.pop("mine", None)
        if registration._registry.pop("mine-v0", None):
            registration.registered_envs.remove("mine-v0")

    yield clean
    clean()


def test_a_worker_knows_what_files_of_the_user_define_though_it_has_no_such_files(tmp_path, monkeypatch, forget):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "tiny.yaml").write_text(TINY)
    extensions.load(tmp_path / "mine.py", tmp_path / "base.py")
    base = {"config": str(tmp_path / "tiny.yaml"), "section": "iqn"}
    overrides = {"algorithm": "mine", "env": "mine-v0"}
    study = definition.make({"base": {**base, "overrides": overrides}, "variants": {}, "seeds": 1}, "s")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cloudpickle=pickle))
    handed = cluster.beginning(execution.plan(study, jobs=1), False)

    forget()
    for name in ("mine.py", "base.py"):
        (tmp_path / name).unlink()
    worker = RayWorker()
    assert worker.begin(*handed) == machines.facts()
    (agent,) = worker.worker.groups[0].agents.values()
    assert (agent.algorithm.name, agent.env.name, agent.algorithm.update.__module__) == ("mine", "mine-v0", "base")


def test_a_file_of_the_user_that_fails_in_a_worker_is_named_with_its_line():
    file = extensions.File("mine.py", "/nowhere/mine.py", b"import math\nopen('/nowhere/data')\n")
    with pytest.raises(ConfigError, match=r"^mine.py: line 2: FileNotFoundError: No such file or directory; fix"):
        RayWorker().begin([file], b"")
    assert "mine" not in sys.modules


def test_a_worker_gives_rows_or_says_why_a_group_cannot_be_run(planned, monkeypatch):
    worker = RayWorker()
    assert worker.prepare(planned.study, planned.batch_shape, "cpu", False) == machines.facts()
    rows, why = worker.rows(planned.batches[0])
    assert ({row["seed"] for row in rows}, why) == ({0}, "")

    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(execution.Worker, "traced", exhausted)
    assert worker.rows(planned.batches[0]) == ([], "RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize("of", [1, 2, 3, 9])
def test_shards_have_every_run_once_and_keep_to_theirs_whatever_is_finished(planned, tmp_path, of):
    def runs(store: Store | None) -> list[list[tuple[str, int]]]:
        shares = (execution.plan(planned.study, store, 1, (number, of)) for number in range(1, of + 1))
        return [[run for batch in share.batches for run in batch.runs] for share in shares]

    shares = runs(None)
    assert sorted(run for share in shares for run in share) == sorted(
        (variant.name, seed) for variant in planned.study.variants for seed in planned.study.seeds
    )
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    store = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")
    store.write(rows_of(planned.batches[2])[0])
    done = planned.batches[2].runs[0]
    assert runs(store) == [[run for run in share if run != done] for share in shares]


def test_shards_that_note_something_at_once_lose_nothing(planned, tmp_path):
    store = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")

    def note(number: int) -> None:
        mine = Store.open(store.path)
        mine.amend(lambda facts: {"starts": [*facts["starts"], {"date": str(number)}]})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    assert sorted(int(one["date"]) for one in Store.open(store.path).facts["starts"]) == list(range(40))


@pytest.mark.parametrize("writer", [0, 3])
def test_who_else_is_at_work_is_asked_with_the_own_lock_in_hand(planned, tmp_path, monkeypatch, writer):
    store = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")
    store.writer, own, other = writer, f"lock-{writer}" if writer else "lock", "lock" if writer else "lock-1"
    is_locked, held = locks.is_locked, []

    def asked(directory, name="lock"):
        held.append((name, is_locked(directory, own)))
        return is_locked(directory, name)

    (store.path / other).touch()  # else nobody is asked for
    monkeypatch.setattr(locks, "is_locked", asked)
    with store.lock():
        assert held == [(other, True)], "of two that begin at once none overlooks the other"


def test_several_writers_do_not_touch_each_others_files(planned, tmp_path):
    first = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")
    second = Store.open(tmp_path / "out")
    second.writer = 1
    for store, batch in zip((first, second, second, first), planned.batches, strict=False):
        store.write(rows_of(batch)[0])
    second.write(rows_of(planned.batches[0])[0])  # for which the first was taken for dead
    names = sorted(file.name for file in (tmp_path / "out" / "records").iterdir())
    assert names == ["000000.parquet", "000001-1.parquet", "000002-1.parquet", "000003.parquet", "000004-1.parquet"]
    assert len(first.finished()) == first.records().height == 4
    for store in (first, second):
        store.failed(Failure("big", "out of memory"))
    assert second.failures() == [Failure("big", "out of memory")]
    second.begin(lambda facts: {})
    assert first.failures() == [Failure("big", "out of memory")], "a shard tries its own failures again"
    first.begin(lambda facts: {})
    assert second.failures() == []
