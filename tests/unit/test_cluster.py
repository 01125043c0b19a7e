"""Who trains what on a cluster, with workers that die or cannot be used; no Ray is needed."""

import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from gymnax import registration

from quantilax import ALGORITHMS
from quantilax.pytree import ConfigError
from quantilax.runs import RunError, extensions
from quantilax.studies import cluster, definition, execution, machines, processes
from quantilax.studies.cluster import Hand, Shift
from quantilax.studies.execution import Layout
from quantilax.studies.store import Failure, Store
from tests.endtoend.conftest import TINY


class TaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class DiedError(Exception):
    pass


ERRORS = SimpleNamespace(RayTaskError=TaskError, RayError=DiedError)


class Crew(cluster.Crew):
    """Workers that do as they are told: `acts` says what the next thing that one does comes to."""

    def __init__(self, laid: Layout, acts) -> None:
        self.ray, self.laid = SimpleNamespace(exceptions=ERRORS, get=self.get, kill=lambda hand: None), laid
        self.groups, self.at, self.unusable, self.looked = {}, {}, 0, -1e9
        self.acts, self.names, self.given = acts, itertools.count(), []

    def hire(self, most: int) -> None:
        for _ in range(min(most, cluster.room(self.laid) - self.unusable) - len(self.groups)):
            hand = next(self.names)
            self.groups[hand] = None
            self.at[("prepare", hand)] = hand, None

    def give(self, hand: Any, portion: execution.Portion) -> None:
        self.groups[hand] = portion.group
        self.given.append((hand, portion))
        self.at[("rows", hand)] = hand, portion

    def come(self) -> list[Any]:
        return list(self.at)[:1]

    def get(self, reference: Any) -> Any:
        what, hand = reference
        portion = next((p for h, p in reversed(self.given) if h == hand), None) if what == "rows" else None
        found = self.acts(what, hand, portion)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def planned(tmp_path: Path) -> execution.Plan:
    (tmp_path / "tiny.yaml").write_text(TINY)
    base = {"config": str(tmp_path / "tiny.yaml"), "section": "iqn"}
    study = definition.make({"base": base, "cells": {"named": {"big": {"batch_size": 24}}}, "seeds": 4}, "s")
    return execution.plan(study, jobs=1)


class Told:
    """Keeps what a user would see."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.began = lambda portion, groups: None
        self.finished = lambda portion, rows: None
        self.say = lambda line: None
        self.warn = self.warnings.append


@pytest.fixture
def told() -> Told:
    return Told()


def rows_of(portion: execution.Portion) -> tuple[list[dict[str, Any]], str]:
    return [{"cell": cell, "seed": seed, "env_step": 40, "seconds": 0.0} for cell, seed in portion.runs], ""


@pytest.fixture
def work(planned, tmp_path, monkeypatch, told):
    """Let workers act, two at most, and return the store and the crew."""

    def run(acts, room: int = 2) -> tuple[Store, Crew]:
        monkeypatch.setattr(cluster, "room", lambda laid: room)
        store = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")
        crew = Crew(planned.laid, acts)
        Shift(planned, store, told, crew).work()
        return store, crew

    return run


def good(what: str, hand: int, portion: execution.Portion | None) -> Any:
    return machines.facts() if portion is None else rows_of(portion)


def test_each_run_is_trained_once_and_a_worker_keeps_to_its_group(work, told):
    store, crew = work(good)
    runs = [run for _, portion in crew.given for run in portion.runs]
    assert sorted(runs) == [(cell, seed) for cell in ("base", "big") for seed in range(4)]
    assert store.finished() == set(runs)
    groups = {hand: {portion.group for h, portion in crew.given if h == hand} for hand in (0, 1)}
    assert sorted(map(len, groups.values())) == [1, 1]
    assert told.warnings == []


def test_a_portion_whose_worker_dies_is_run_again_by_another(work, told):
    died = []

    def once(what, hand, portion):
        if portion is not None and portion.runs == (("base", 2),) and not died:
            died.append(hand)
            return DiedError()
        return good(what, hand, portion)

    store, crew = work(once)
    assert len(store.finished()) == 8
    at = [hand for hand, portion in crew.given if portion.runs == (("base", 2),)]
    assert len(at) == 2
    assert at[0] == died[0] != at[1]
    assert told.warnings == ["a worker died at 1 run(s) (DiedError)"]


def test_a_group_over_which_three_workers_die_is_given_up_and_the_rest_goes_on(work, told):
    def deadly(what, hand, portion):
        is_deadly = portion is not None and portion.group == 1
        return DiedError() if is_deadly else good(what, hand, portion)

    store, crew = work(deadly)
    assert {cell for cell, _ in store.finished()} == {"base"}
    assert store.failures() == [Failure("big", "3 workers died over its runs, perhaps for want of memory")]
    assert max([portion for _, portion in crew.given].count(p) for _, p in crew.given) == 3


def test_a_group_that_cannot_be_run_is_noted_once_and_the_rest_goes_on(work, told):
    def broken(what, hand, portion):
        return ([], "out of memory") if portion is not None and portion.group == 0 else good(what, hand, portion)

    store, _ = work(broken)
    assert {cell for cell, _ in store.finished()} == {"big"}
    assert store.failures() == [Failure("base", "out of memory")]
    assert len(told.warnings) == 1


def test_workers_that_die_before_they_begin_end_the_study(work):
    with pytest.raises(RunError, match="3 workers in a row died before they could begin"):
        work(lambda what, hand, portion: DiedError())


def test_a_worker_that_cannot_be_used_is_done_without(work, told):
    def unfit(what, hand, portion):
        return TaskError(ConfigError("it has 1 device(s)")) if hand == 0 else good(what, hand, portion)

    store, crew = work(unfit)
    assert len(store.finished()) == 8
    assert {hand for hand, _ in crew.given} == {1}
    assert told.warnings == ["a worker cannot be used: it has 1 device(s)"]


def test_where_no_worker_can_be_used_the_study_ends(work):
    with pytest.raises(RunError, match=r"cannot be used: it has 1 device.*; no other is left; go on with --resume"):
        work(lambda what, hand, portion: TaskError(ConfigError("it has 1 device(s)")))


def test_a_mistake_in_the_program_is_not_hidden(work):
    def mistaken(what, hand, portion):
        return good(what, hand, portion) if portion is None else TaskError(KeyError("who"))

    with pytest.raises(KeyError, match="who"):
        work(mistaken)


def test_another_machine_is_told_once(work, told):
    def other(what, hand, portion):
        return {**machines.facts(), "cores": 999} if portion is None else good(what, hand, portion)

    work(other)
    (line,) = told.warnings
    assert line.startswith("a worker's machine has cores 999, this one ")
    assert line.endswith("the low bits of its runs may be others than here")


def test_a_worker_with_other_devices_than_the_study_is_laid_on_refuses(planned):
    with pytest.raises(ConfigError, match=r"it has \d device\(s\) of kind cpu, and the study is laid on 64 of cpu"):
        Hand().prepare(planned.study, Layout(64, 1), "cpu", False)
    with pytest.raises(ConfigError, match="of kind cpu, and the study is laid on 1 of gpu"):
        Hand().prepare(planned.study, Layout(1, 1), "gpu", False)


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
    study = definition.make({"base": {**base, "overrides": overrides}, "cells": {}, "seeds": 1}, "s")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cloudpickle=pickle))
    handed = cluster.beginning(execution.plan(study, jobs=1), False)

    forget()
    for name in ("mine.py", "base.py"):
        (tmp_path / name).unlink()
    worker = Hand()
    assert worker.begin(*handed) == machines.facts()
    (agent,) = worker.worker.groups[0].agents.values()
    assert (agent.algorithm.name, agent.env.name, agent.algorithm.update.__module__) == ("mine", "mine-v0", "base")


def test_a_file_of_the_user_that_fails_in_a_worker_is_named_with_its_line():
    file = extensions.File("mine.py", "/nowhere/mine.py", b"import math\nopen('/nowhere/data')\n")
    with pytest.raises(ConfigError, match=r"^mine.py: line 2: FileNotFoundError: No such file or directory; mend"):
        Hand().begin([file], b"")
    assert "mine" not in sys.modules


def test_a_worker_gives_rows_or_says_why_a_group_cannot_be_run(planned, monkeypatch):
    hand = Hand()
    assert hand.prepare(planned.study, planned.laid, "cpu", False) == machines.facts()
    rows, why = hand.rows(planned.portions[0])
    assert ({row["seed"] for row in rows}, why) == ({0}, "")

    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(execution.Worker, "traced", exhausted)
    assert hand.rows(planned.portions[0]) == ([], "RESOURCE_EXHAUSTED: Out of memory")


def test_several_writers_do_not_touch_each_others_files(planned, tmp_path):
    first = Store.create(tmp_path / "out", planned.study, jobs=1, width=1, starts=[], status="running")
    second = Store.open(tmp_path / "out")
    second.writer = 1
    for store, portion in zip((first, second, second, first), planned.portions, strict=False):
        store.write(rows_of(portion)[0])
    second.write(rows_of(planned.portions[0])[0])  # for which the first was taken for dead
    names = sorted(file.name for file in (tmp_path / "out" / "records").iterdir())
    assert names == ["000000.parquet", "000001-1.parquet", "000002-1.parquet", "000003.parquet", "000004-1.parquet"]
    assert len(first.finished()) == first.records().height == 4
    for store in (first, second):
        store.failed(Failure("big", "out of memory"))
    assert second.failures() == [Failure("big", "out of memory")]
    first.begin()
    assert second.failures() == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"laid": [2, 1]},
            "process 1 is laid out as 2 job.s. of 1 run.s., process 0 as 1 job.s. of 1 run.s.; give all the",
        ),
        (
            {"runs": "others"},
            "process 1 has other runs to do than process 0; give all the same study, --seeds and --out",
        ),
        ({"error": "no study"}, "process 1: no study"),
    ],
)
def test_processes_with_other_plans_are_refused(planned, told, other, words):
    said = json.dumps({**processes._agreed(planned), **other})
    with pytest.raises(ConfigError, match=words):
        processes._agree(SimpleNamespace(number=2, get=lambda name, who: said), planned, told)


def test_processes_with_one_plan_agree_and_another_machine_is_told(planned, told):
    said = json.dumps(processes._agreed(planned))
    processes._agree(SimpleNamespace(number=2, get=lambda name, who: said), planned, told)
    assert told.warnings == []
    said = json.dumps({**processes._agreed(planned), "machine": {**machines.facts(), "jaxlib": "0.1"}})
    processes._agree(SimpleNamespace(number=2, get=lambda name, who: said), planned, told)
    assert [line.split(",")[0] for line in told.warnings] == ["process 1 has jaxlib 0.1"]
