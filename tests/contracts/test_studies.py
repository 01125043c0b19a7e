"""Studies have the records of `quantilax train`, however they are split, interrupted or extended."""

import copy
import dataclasses
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from quantilax import devices, runs, train
from quantilax.errors import ConfigError
from quantilax.host import background
from quantilax.host.interrupts import Stop
from quantilax.runs import Interrupted, RunError
from quantilax.studies import definition, execution, forecast, start, unfinished
from quantilax.studies.progress import StudyProgress
from quantilax.studies.store import Failure, Store
from tests.endtoend.conftest import TINY_DQN, tree
from tests.studies import GOOD, store

VARIANTS = {"named": {"fast": {"learning_rate": 0.01}, "far": {"gamma": 0.5}, "big": {"batch_size": 24}}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY_DQN)
    return str(file)


def study(config: str, variants=VARIANTS, seeds=3, **overrides) -> definition.Study:
    base = {"config": config, "section": "dqn", "overrides": overrides}
    return definition.make({"base": base, "variants": variants, "seeds": seeds}, "s")


def run(asked: definition.Study, out: Path, **options) -> pl.DataFrame:
    return without_time(start.run(asked, out, quiet=True, **options).records())


def without_time(records: pl.DataFrame) -> pl.DataFrame:
    return records.drop("seconds")


@pytest.fixture(scope="module")
def made(config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed study; do not change it."""
    path = tmp_path_factory.mktemp("made") / "whole"
    run(study(config), path)
    return path


@pytest.fixture
def whole(made, tmp_path) -> pl.DataFrame:
    """The records of the undisturbed study; `whole` is a copy that tests may change."""
    shutil.copytree(made, tmp_path / "whole")
    return without_time(Store.open(tmp_path / "whole").records())


def test_a_study_has_the_records_that_train_has_bit_for_bit(config, tmp_path, whole):
    for variant, override in (("base", {}), ("far", {"gamma": 0.5}), ("big", {"batch_size": 24})):
        agent = runs.load_section(Path(config), "dqn", override).create()
        runs.run(agent, tmp_path / variant, range(3), quiet=True)
        curve = pl.read_parquet(tmp_path / variant / "evaluations.parquet").sort("seed", "env_step")
        mine = whole.filter(variant=variant)
        for column in ("seed", "env_step", "return_mean", "length_mean", "loss", "q", "target_distance"):
            assert mine[column].to_list() == curve[column].to_list(), column


def test_variants_with_one_treedef_share_a_program_and_others_do_not(config):
    asked = study(config)
    found, failures = execution.groups(asked)
    assert [list(group.agents) for group in found] == [["base", "fast", "far"], ["big"]]
    assert failures == []


def test_a_row_stands_for_every_variant_seed_and_evaluation(whole):
    assert whole.height == 4 * 3 * 4  # variants, seeds, rows of the curve (40, 100, 200, 300)
    assert whole.select("variant", "seed", "env_step").is_unique().all()
    assert whole["variant"].unique(maintain_order=True).to_list() == ["base", "fast", "far", "big"]
    assert whole["finite"].all()
    assert whole["return_mean"].is_finite().all()


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_an_interrupted_study_goes_on_to_the_same_records_and_repeats_nothing(
    config, tmp_path, whole, monkeypatch, stop_after
):
    asked, done = study(config), []
    prepared = execution.Worker.prepared

    def counting(worker, batch):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        found = prepared(worker, batch)
        done.extend([batch])
        return found

    monkeypatch.setattr(execution.Worker, "prepared", counting)
    with pytest.raises(Interrupted, match=r"runs are kept in .*; continue with the same command and --resume"):
        start.run(asked, tmp_path / "cut", quiet=True)
    before = Store.open(tmp_path / "cut")
    assert before.status == "interrupted"
    kept = before.finished()
    assert len(kept) == sum(len(batch.runs) for batch in done)

    monkeypatch.setattr(execution.Worker, "prepared", prepared)
    again = []
    monkeypatch.setattr(execution.Worker, "evaluations", _noting(execution.Worker.evaluations, again))
    assert_frame_equal(run(asked, tmp_path / "cut", resume=True), whole)
    repeated = {r for batch in again for r in batch.runs} & kept
    assert repeated == set()
    assert Store.open(tmp_path / "cut").status == "finished"


def _noting(evaluations, batches):
    def noting(worker, batch, *arguments):
        batches.append(batch)
        return evaluations(worker, batch, *arguments)

    return noting


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """Iterations of every segment that is trained, in order; batches are kept after each."""
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    monkeypatch.setattr(unfinished, "SHARE", 0.0)
    segments, fit = [], devices.fit

    def noting(env, config, program, state, since=None):
        todo = train.segment_iterations(jax.tree.map(lambda x: x[0], config), since)
        for iterations, row in zip(todo, fit(env, config, program, state, since), strict=True):
            segments.append(iterations)
            yield row

    monkeypatch.setattr(devices, "fit", noting)
    return segments


def _stop_after(monkeypatch, number):
    """Let the training of a study end, as a signal would, after so many segments."""
    fit, left = devices.fit, iter(range(number - 1))

    def stopping(*arguments):
        for row in fit(*arguments):
            yield row
            if next(left, None) is None:
                raise KeyboardInterrupt

    monkeypatch.setattr(devices, "fit", stopping)


ONE = {"named": {"fast": {"learning_rate": 0.01}}}


@pytest.fixture
def cut(config, tmp_path, trained, monkeypatch) -> Path:
    """A study whose second batch of two was interrupted after three of its four evaluations."""
    with monkeypatch.context() as patched:
        _stop_after(patched, 7)
        with pytest.raises(Interrupted):
            start.run(study(config, ONE, seeds=2), tmp_path / "cut", quiet=True, jobs=2)
    assert len(trained) == 7
    assert Store.open(tmp_path / "cut").finished() == {("base", 0), ("fast", 0)}
    trained.clear()
    return tmp_path / "cut"


def test_a_batch_that_was_interrupted_goes_on_where_it_was_to_the_same_records(config, tmp_path, cut, trained, capfd):
    start.run(study(config, ONE, seeds=2), cut, resume=True)
    assert "training continues from environment step 200\n" in capfd.readouterr().err
    records = without_time(Store.open(cut).records())
    assert trained == [25]  # the last of four
    assert not (cut / unfinished.DIRECTORY).exists()
    assert_frame_equal(records, run(study(config, ONE, seeds=2), tmp_path / "whole", jobs=2))
    seconds = Store.open(cut).records().filter(seed=1, variant="base")["seconds"].to_list()
    assert seconds == sorted(seconds)
    assert not (tmp_path / "whole" / unfinished.DIRECTORY).exists()


OTHERS = {
    "of another version": ({"jax": "9.9.9"}, "was saved with jax 0."),
    "of another machine": ({"processor": "Z80", "cores": 99}, ", here Z80, cores "),
    "of other code": ({"code": "abc"}, "was saved with different code; its runs start again"),
}
"""What made a state that was kept: what of it is another now, and what is told."""


def _made_by_another(monkeypatch, how):
    origin = unfinished.origin
    monkeypatch.setattr(unfinished, "origin", lambda agent: {**origin(agent), **OTHERS[how][0]})


@pytest.mark.parametrize("how", ["damaged", *OTHERS, "of other variants"])
def test_what_was_kept_of_a_batch_and_cannot_be_used_is_told_and_its_runs_begin_anew(
    config, tmp_path, cut, trained, monkeypatch, capfd, how
):
    (kept,) = (cut / unfinished.DIRECTORY).iterdir()
    variants, line = ONE, ""
    if how == "damaged":
        for file in kept.glob("*.safetensors"):
            file.write_text("{")
        line = "no checkpoint can be read"
    elif how in OTHERS:
        _made_by_another(monkeypatch, how)
        line = OTHERS[how][1]
    else:
        variants = {"named": {**ONE["named"], "far": {"gamma": 0.5}}}
    records = run(study(config, variants, seeds=2), cut, resume=True)
    assert len(trained) == 4 * (1 if variants == ONE else 2)
    told = capfd.readouterr().err
    assert (f"{line}" in told and "; its runs start again" in told) or not line
    assert not (cut / unfinished.DIRECTORY).exists()
    assert_frame_equal(records, run(study(config, variants, seeds=2), tmp_path / "whole", jobs=2))


def test_runs_that_began_anew_are_kept_too_and_a_second_interruption_goes_on_from_there(
    config, tmp_path, cut, trained, monkeypatch
):
    _made_by_another(monkeypatch, "of other code")
    with monkeypatch.context() as patched:
        _stop_after(patched, 2)  # before the step at which the state lies that cannot be used
        with pytest.raises(Interrupted):
            start.run(study(config, ONE, seeds=2), cut, quiet=True, resume=True)
    trained.clear()
    records = run(study(config, ONE, seeds=2), cut, resume=True)
    assert len(trained) == 2  # of four
    assert_frame_equal(records, run(study(config, ONE, seeds=2), tmp_path / "whole", jobs=2))


def test_a_state_that_does_not_fit_into_the_memory_is_told_and_its_runs_begin_anew(config, cut, trained, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(unfinished.evaluations, "unpack", exhausted)
    store = start.run(study(config, ONE, seeds=2), cut, quiet=True, resume=True)
    assert (store.failures(), len(store.finished()), len(trained)) == ([], 4, 4)


def test_a_group_that_fails_on_the_way_is_tried_again_from_where_it_was_kept(config, tmp_path, trained, monkeypatch):
    fit = devices.fit

    def failing(*arguments):
        for i, row in enumerate(fit(*arguments)):
            if i == 2:
                raise jax.errors.JaxRuntimeError("INTERNAL: the driver is gone")
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(devices, "fit", failing)
        store = start.run(study(config, {}, seeds=1), tmp_path / "out", quiet=True)
    assert [failure.reason for failure in store.failures()] == ["INTERNAL: the driver is gone"]
    assert store.status == "finished"
    trained.clear()
    assert run(study(config, {}, seeds=1), tmp_path / "out", resume=True).height == 4
    assert len(trained) == 2
    assert not (tmp_path / "out" / unfinished.DIRECTORY).exists()


def test_after_an_interruption_in_a_living_process_nothing_more_is_written_and_training_ends(
    config, tmp_path, trained, monkeypatch
):
    held, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    fit = devices.fit

    def slow(*arguments):
        rows = fit(*arguments)
        yield next(rows)
        yield next(rows)
        held.set()
        go_on.wait(60)
        try:
            yield from rows
        finally:
            ended.set()

    class Interrupting(Stop):
        def wait_for(self, function):
            background.call(function)
            assert held.wait(60)
            raise KeyboardInterrupt

    monkeypatch.setattr(devices, "fit", slow)
    asked = study(config, {}, seeds=1)
    planned = execution.plan(asked)
    store = Store.create(tmp_path / "out", asked, jobs=1, width=1, starts=[], status="running")
    with pytest.raises(KeyboardInterrupt):
        execution.execute(planned, store, StudyProgress(1, quiet=True), Interrupting(print))
    before = tree(store.path)
    assert any(unfinished.DIRECTORY in name for name in before)
    go_on.set()
    assert ended.wait(60)
    assert tree(store.path) == before


def test_checkpoints_take_a_twentieth_of_the_time_over_all_batches(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])

    def save(root, *_, **more):
        saved.append(now[0])
        now[0] += 10.0

    monkeypatch.setattr(unfinished.checkpoints, "save", save)
    monkeypatch.setattr(unfinished.evaluations, "pack", lambda *_: {})
    record = SimpleNamespace(env_step=[100], returns=np.zeros(1))
    history = [SimpleNamespace(record=record)]
    kept = unfinished.Unfinished(tmp_path, {"base": {}}, [1, 1], print, print)
    for seed in range(40):
        runs = (("base", seed),)
        assert kept.find(runs, {}, None) is None
        for _ in range(7):
            now[0] += 10.0
            kept.keep(runs, {}, None, history)
    assert len(saved) > 5
    assert min(np.diff(saved)) >= 200.0


def test_a_batch_whose_state_cannot_be_kept_goes_on_and_that_is_told_once(
    config, tmp_path, trained, monkeypatch, capfd
):
    def full(*_, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished.checkpoints, "save", full)
    assert run(study(config, {}, seeds=1), tmp_path / "out").height == 4
    told = capfd.readouterr().err
    assert told.count("cannot be written (No space left on device); the runs go on") == 1


def test_a_short_batch_keeps_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished.checkpoints, "save", lambda *_, **more: pytest.fail("it was kept"))
    assert run(study(config, {}, seeds=1), tmp_path / "out").height == 4


def test_a_study_run_piece_by_piece_has_the_same_records(config, tmp_path, whole):
    few = {"named": {k: VARIANTS["named"][k] for k in ("far", "big")}}
    run(study(config, few, seeds=1), tmp_path / "grown")
    run(study(config, few, seeds=3), tmp_path / "grown", resume=True)
    grown = run(study(config), tmp_path / "grown", resume=True)
    order = ["variant", "seed", "env_step"]
    assert_frame_equal(grown.sort(order), whole.sort(order))
    assert len(Store.open(tmp_path / "grown").facts["starts"]) == 3


def test_a_finished_study_that_is_resumed_trains_nothing_and_notes_no_start(config, tmp_path, whole, monkeypatch):
    def never(*_):
        raise AssertionError("it trains")

    monkeypatch.setattr(execution.Worker, "traced", never)
    starts = Store.open(tmp_path / "whole").facts["starts"]
    assert_frame_equal(run(study(config), tmp_path / "whole", resume=True), whole)
    assert Store.open(tmp_path / "whole").facts["starts"] == starts


@pytest.mark.parametrize("width", [1, 3])
def test_with_a_width_of_its_own_a_run_does_not_depend_on_what_else_is_in_its_batch(
    config, tmp_path, monkeypatch, width, one_device
):
    monkeypatch.setattr(execution, "layout", lambda *_: execution.BatchShape(1, width))
    several = run(study(config, {"named": {"far": {"gamma": 0.5}}}), tmp_path / "several")
    alone = run(study(config, {"named": {"far": {"gamma": 0.5}}}, seeds=[2]), tmp_path / "alone")
    assert_frame_equal(several.filter(seed=2), alone)


def test_a_variant_that_cannot_be_built_is_reported_and_the_rest_goes_on(config, tmp_path, capfd):
    variants = {"named": {"bad": {"buffer_size": 2}, "good": {"gamma": 0.5}}}
    store = start.run(study(config, variants, seeds=1), tmp_path / "out", quiet=True)
    assert set(store.records()["variant"]) == {"base", "good"}
    assert [failure.variant for failure in store.failures()] == ["bad"]
    assert "buffer_size: 2 cannot hold one step" in store.failures()[0].reason
    assert "warning: variant 'bad' cannot be run" in capfd.readouterr().err


def test_a_group_that_fails_on_the_way_is_reported_and_the_rest_goes_on(config, tmp_path, monkeypatch, capfd):
    traced = execution.Worker.traced

    def failing(worker, group):
        if "big" in group.agents:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return traced(worker, group)

    monkeypatch.setattr(execution.Worker, "traced", failing)
    store = start.run(study(config, seeds=1), tmp_path / "out", quiet=True)
    assert set(store.records()["variant"]) == {"base", "fast", "far"}
    assert [(f.variant, f.reason[:18]) for f in store.failures()] == [("big", "RESOURCE_EXHAUSTED")]
    monkeypatch.setattr(execution.Worker, "traced", traced)
    store = start.run(study(config, seeds=1), tmp_path / "out", quiet=True, resume=True)
    assert store.failures() == []
    assert set(store.records()["variant"]) == {"base", "fast", "far", "big"}


def test_a_run_that_breaks_has_no_return_from_there_on_and_ends_no_other(config, tmp_path):
    variants = {"named": {"broken": {"learning_rate": 1e38, "adam_eps": 1e-16}}}
    records = run(study(config, variants, seeds=2), tmp_path / "out")
    broken, base = records.filter(variant="broken"), records.filter(variant="base")
    assert base["finite"].all()
    assert base["return_mean"].is_finite().all()
    assert not broken.filter(env_step=300)["finite"].any()
    assert broken.filter(~pl.col("finite"))["return_mean"].is_nan().all()


def test_what_is_needed_to_repeat_a_study_stands_beside_its_records(config, tmp_path):
    asked = study(config, {"named": {"far": {"gamma": 0.5}}}, seeds=1)
    start.run(asked, tmp_path / "out", quiet=True)
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert facts["variants"]["far"]["gamma"] == 0.5
    assert facts["variants"]["far"]["batch_size"] == 16
    assert (facts["jobs"], facts["width"], facts["seeds"]) == (min(2, len(jax.local_devices())), 1, [0])
    assert {"command", "commit", "versions", "cores", "device", "date"} <= set(facts["starts"][0])
    assert definition.make(facts["asked"], "s").variants == asked.variants


def test_results_of_another_study_are_refused_and_kept(config, tmp_path, whole):
    out = tmp_path / "whole"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="holds results, and nothing is overwritten; continue with --resume"):
        run(study(config), out)
    with pytest.raises(ConfigError, match="results of another study: variant 'base' has batch_size=16 there and 8 in"):
        run(study(config, batch_size=8), out, resume=True)
    others = study(config)._replace(variants=(study(config).variants[0]._replace(name="new"),))
    with pytest.raises(ConfigError, match="results of another study, with no variant in common; choose another --out"):
        run(others, out, resume=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_hyperparameter_that_came_after_a_studys_begin_stood_at_its_default(config, tmp_path, whole):
    file = tmp_path / "whole" / "study.json"
    facts = json.loads(file.read_text())
    for variant in facts["variants"].values():
        del variant["n_step"], variant["prioritized"]  # as if the study had been begun before there were such
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="results of another study: variant 'base' has n_step=1 there and 2 in"):
        run(study(config, n_step=2), tmp_path / "whole", resume=True)
    assert_frame_equal(run(study(config), tmp_path / "whole", resume=True), whole)


def test_a_directory_with_other_things_is_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="is not empty, and nothing is overwritten; choose another --out"):
            run(study(config), tmp_path / "mine", resume=resume)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter"]


def test_a_directory_in_use_is_refused(config, tmp_path, whole):
    with Store.open(tmp_path / "whole").lock(), pytest.raises(ConfigError, match="is in use by process"):
        run(study(config), tmp_path / "whole", resume=True)


def test_a_damaged_part_of_the_records_is_named(config, tmp_path, whole):
    part = tmp_path / "whole" / "records.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(ConfigError, match=f"{part.name}: is damaged .*; move it elsewhere and continue with --resume"):
        run(study(config), tmp_path / "whole", resume=True)
    part.unlink()
    assert_frame_equal(run(study(config), tmp_path / "whole", resume=True), whole)


def test_a_file_among_the_records_that_is_none_of_them_is_told(config, tmp_path):
    made = store(tmp_path / "s", {"base": [GOOD] * 6})
    pl.DataFrame({"variant": ["base"], "seed": ["one"], "env_step": [0]}).write_parquet(
        made.path / "records/000007.parquet"
    )
    with pytest.raises(ConfigError, match="records: contains a file that does not belong there"):
        made.records()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{not json", '{"name": 1}'])
def test_a_damaged_study_json_is_named(config, tmp_path, whole, text):
    (tmp_path / "whole" / "study.json").write_text(text)
    with pytest.raises(ConfigError, match=r"study\.json: is damaged or not from a study"):
        run(study(config), tmp_path / "whole", resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("jobs", 0),
        ("width", -1),
        ("solved", "much"),
        ("starts", [1]),
        ("starts", [{}]),
        ("seeds", ["x"]),
        ("looks", {"base": 20}),
        ("changes", [{"field": "prediction", "before": 1, "after": "x", "runs": 3}]),
        ("seeds", []),
        ("variants", {"base": 1}),
        ("variants", {"base": {"algorithm": "dqn"}}),
        ("variants", {"base": {"env": "CartPole-v1"}}),
    ],
)
def test_a_damaged_fact_of_study_json_is_named(config, tmp_path, key, value):
    store = Store.create(tmp_path / "s", study(config), jobs=1, width=1, starts=[], status="finished")
    store.update(**{key: value})
    with pytest.raises(ConfigError, match=rf"study\.json: {key}: is damaged; restore"):
        Store.open(tmp_path / "s")


def test_a_study_killed_while_its_directory_was_made_begins_with_the_same_command(config, tmp_path):
    path = tmp_path / "out"
    (path / "records").mkdir(parents=True)
    (path / "study.json.partial").write_text("{")
    assert run(study(config, {}, seeds=1), path, resume=True).height == 4


@pytest.mark.parametrize("mine", ["notes.txt", "records/000000.parquet"])
def test_a_file_of_the_users_own_is_not_taken_for_a_directory_cut_short(config, tmp_path, mine):
    (tmp_path / "out" / mine).parent.mkdir(parents=True)
    (tmp_path / "out" / mine).write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        run(study(config, {}, seeds=1), tmp_path / "out")
    assert (tmp_path / "out" / mine).read_text() == "mine"


def test_a_failure_cut_short_is_no_traceback(config, tmp_path):
    store = Store.create(tmp_path / "s", study(config), jobs=1, width=1, starts=[], status="finished")
    store.failed(Failure("far", "out of memory"))
    with (tmp_path / "s" / "failures.jsonl").open("a") as stream:
        stream.write('{"variant": "big", "rea')
    assert store.failures() == [Failure("far", "out of memory")]


def test_what_another_process_finished_before_the_lock_was_taken_is_neither_repeated_nor_forgotten(
    config, tmp_path, whole
):
    path = tmp_path / "whole"
    planned, begun = start._prepare(study(config, seeds=4), path, None, True)
    start.run(study(config, seeds=[0, 1, 2, 7]), path, quiet=True, resume=True)
    before = tree(path)
    with pytest.raises(ConfigError, match="another process has changed it in the meantime; run the same command again"):
        start._carry_out(planned, begun, begun, True, lambda *_: pytest.fail("it trains"))
    assert {**tree(path), "lock": None} == {**before, "lock": None}


def test_a_finished_study_is_gone_on_with_on_any_number_of_devices(config, tmp_path, whole):
    store = Store.open(tmp_path / "whole")
    store.update(jobs=64)
    assert_frame_equal(run(study(config), tmp_path / "whole", resume=True), whole)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (pl.exceptions.ComputeError("No space left (os error 28)"), r"No space left \(os error 28\)"),
    ],
)
def test_a_full_disk_keeps_what_is_finished(config, tmp_path, monkeypatch, error, told):
    write = pl.DataFrame.write_parquet
    files = []

    def until_full(frame, file):
        if len(files) == 2:
            raise error
        files.append(file)
        write(frame, file)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", until_full)
    with pytest.raises(RunError, match=rf"cannot be written: {told}; make room, then continue with --resume"):
        run(study(config), tmp_path / "out")
    assert not list((tmp_path / "out" / "records").glob("*.partial"))
    monkeypatch.setattr(pl.DataFrame, "write_parquet", write)
    assert len(Store.open(tmp_path / "out").finished()) == 2 * Store.open(tmp_path / "out").facts["jobs"]
    assert run(study(config), tmp_path / "out", resume=True).height == 48


def test_more_jobs_than_devices_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"--jobs: 99 is more than the \d+ device"):
        run(study(config), tmp_path / "out", jobs=99)
    assert not (tmp_path / "out").exists()


def test_other_devices_than_a_study_was_begun_with_are_refused(config, tmp_path, whole):
    store = Store.open(tmp_path / "whole")
    store.update(jobs=64)
    with pytest.raises(ConfigError, match="was begun with 64 jobs, but this process has"):
        run(study(config, seeds=4), tmp_path / "whole", resume=True)


def test_states_that_do_not_fit_into_the_memory_are_refused_with_the_remedy(config, tmp_path):
    variants = {"named": {"huge": {"buffer_size": 2_000_000_000}}}
    with pytest.raises(
        ConfigError, match=r"variant 'huge': the state of .* GiB, but only .* are available; lower its buffer_size"
    ):
        run(study(config, variants), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_are_floats_also_where_a_variant_writes_them_as_whole_ones(config, tmp_path):
    records = run(study(config, {"named": {"one": {"gamma": 1}}}, seeds=1), tmp_path / "out")
    assert records.filter(variant="one")["return_mean"].is_finite().all()


def test_a_study_runs_from_python_and_its_results_are_frames(config, tmp_path, monkeypatch, whole):
    import quantilax

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: {{config: {config}, section: dqn}}\nvariants: {json.dumps(VARIANTS)}\nseeds: 3\nsolved: 0.5\n"
    )
    asked = quantilax.Study.load(str(file))
    made = quantilax.Study.make(
        {"base": {"config": config, "section": "dqn"}, "variants": VARIANTS, "seeds": 3}, "mine"
    )
    assert made.variants == asked.variants
    store = start.run(asked, quiet=True)
    assert store.path == Path("studies/mine")
    assert_frame_equal(without_time(store.records()), whole)
    assert store.outcomes().height == 12
    assert store.summary()["variant"].to_list() == ["base", "fast", "far", "big"]
    assert store.summary()["n"].to_list() == [3, 3, 3, 3]
    with pytest.raises(ConfigError, match="holds results, and nothing is overwritten; continue with --resume"):
        start.run(asked, quiet=True)
    assert_frame_equal(start.run(asked, resume=True, quiet=True).records(), store.records())


def test_a_study_gone_on_with_by_another_version_says_so(config, tmp_path, capsys):
    start.run(study(config, {}, seeds=1), tmp_path / "out", quiet=True)
    there = Store.open(tmp_path / "out")
    (first,) = there.facts["starts"]
    there.update(starts=[{**first, "versions": {**first["versions"], "jax": "0.1.0"}, "cores": 999}])
    start.run(study(config, {}, seeds=1), tmp_path / "out", resume=True, quiet=True)
    assert capsys.readouterr().err == ""  # nothing was left to run
    start.run(study(config, {}, seeds=2), tmp_path / "out", resume=True, quiet=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: the previous start has jax 0.1.0, this one ")
    assert lines[1].startswith("warning: the previous start has cores 999, this one ")
    start.run(study(config, {}, seeds=3), tmp_path / "out", resume=True, quiet=True)
    assert capsys.readouterr().err == ""


def test_an_algorithm_with_a_field_that_has_no_default_can_be_gone_on_with(config, tmp_path, monkeypatch):
    asked = study(config, {}, seeds=1, gamma=0.9)
    made = Store.create(tmp_path / "s", asked, jobs=1, width=1, starts=[], status="finished")
    monkeypatch.setattr("quantilax.pytree.dataclasses.fields", without_default("gamma", dataclasses.fields))
    made.check(asked)


def without_default(name, fields):
    """Let a field have no default."""

    def changed(cls):
        found = [copy.copy(field) for field in fields(cls)]
        for field in found:
            if field.name == name:
                field.default = dataclasses.MISSING
        return tuple(found)

    return changed


def test_what_a_variant_that_cannot_be_compiled_costs_is_not_foretold(config, monkeypatch):
    traced = devices.trace_fit

    def fail(algorithm, env, agent, *arguments, **options):
        if agent.batch_size == 24:
            raise TypeError("add got incompatible shapes")
        return traced(algorithm, env, agent, *arguments, **options)

    monkeypatch.setattr("quantilax.studies.execution.devices.trace_fit", fail)
    told = forecast.forecast(execution.plan(study(config, seeds=1)))
    assert [(list(group.agents), why) for group, why in told.broken] == [(["big"], "add got incompatible shapes")]
    assert (len(told.costs), told.groups) == (1, 1)
