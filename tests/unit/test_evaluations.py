"""Learning curves on the host: rows per seed and for all seeds, and the loggers that write them."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from quantilax import ConfigError, Metrics, Record
from quantilax.host.interrupts import Interrupted, Stop
from quantilax.runs import evaluations, loggers
from quantilax.runs.evaluations import Evaluation, entry
from quantilax.runs.loggers import Writer, waited_for

SEEDS = [3, 8]


def evaluation(step: int, **changes) -> Evaluation:
    """Two seeds, four episodes each: means 2.5 and 6.5."""
    numbers = [np.array([x, 2 * x], np.float32) for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
    record = Record(
        env_step=np.array([step, step]),
        lengths=np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
        returns=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
        finite=np.array([True, True]),
        metrics=Metrics(*numbers[:5], replay_fill=numbers[5], target_distance=numbers[6]),
    )
    return Evaluation(record._replace(**changes), seconds=step / 100)


def history(n: int = 3) -> list[evaluations.Entry]:
    return [entry(SEEDS, evaluation(100 * i), is_first=i == 0) for i in range(n)]


def test_rows_have_each_seeds_figures():
    told = entry(SEEDS, evaluation(200), is_first=False)
    assert list(told.seeds[0]) == list(evaluations.COLUMNS)
    first, second = told.seeds
    assert (first["seed"], second["seed"]) == (3, 8)
    assert (first["return_mean"], second["return_mean"]) == (2.5, 6.5)
    assert first["return_std"] == pytest.approx(np.sqrt(1.25))  # of 1, 2, 3, 4
    assert (second["return_min"], second["length_mean"]) == (5.0, 6.5)
    assert second["loss"] == pytest.approx(0.2)
    assert first["seconds"] == 2.0


def test_all_together_are_the_means_of_the_seeds_with_the_lowest_and_the_highest():
    told = entry(SEEDS, evaluation(200), is_first=False).all
    assert (told["return_mean"], told["return_lowest"], told["return_highest"]) == (4.5, 2.5, 6.5)
    assert told["num_seeds"] == 2
    assert told["gradient_norm"] == pytest.approx(0.3)  # of .2 and .4


def test_before_training_there_are_no_means_over_gradient_steps():
    told = entry(SEEDS, evaluation(0), is_first=True)
    for row in (*told.seeds, told.all):
        assert [row[name] for name in ("loss", "gradient_norm", "q", "td_error", "epsilon")] == [None] * 5
        assert row["replay_fill"] is not None


def test_without_metrics_and_without_a_replay_the_columns_stay_and_are_empty():
    metrics = evaluation(0).record.metrics._replace(replay_fill=None, target_distance=None)
    row = entry(SEEDS, evaluation(200, metrics=metrics), is_first=False).seeds[0]
    assert row["replay_fill"] is None
    assert row["td_error"] == pytest.approx(0.4)
    assert entry(SEEDS, evaluation(200, metrics=None), is_first=False).seeds[0]["loss"] is None


def test_numbers_of_a_callback_are_columns_and_arrays_are_not():
    callback = {"a": {"b": np.array([1.0, 2.0])}, "picture": np.zeros((2, 5))}
    row = entry(SEEDS, evaluation(200, callback=callback), is_first=False).seeds[1]
    assert row["callback/a/b"] == 2.0
    assert not any("picture" in name for name in row)
    assert list(row)[-1] == "seconds"


def test_stacked_evaluations_come_back():
    rows = [evaluation(100 * i) for i in range(3)]
    stacked = evaluations.stack(rows)
    assert stacked["record"].returns.shape == (3, 2, 4)
    for before, after in zip(rows, evaluations.unstack(stacked), strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


def test_the_three_files_hold_the_same_figures(tmp_path):
    for logger in loggers.own(tmp_path):
        logger.begin([])
        for told in history():
            logger.log(told)
        logger.close()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "evaluations.csv").read_text())))
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    table = pl.read_parquet(tmp_path / "evaluations.parquet")
    assert [(int(r["env_step"]), int(r["seed"])) for r in rows] == [(t, s) for t in (0, 100, 200) for s in SEEDS]
    assert table.select("env_step", "seed").rows() == [(t, s) for t in (0, 100, 200) for s in SEEDS]
    for i, (row, whole) in enumerate(zip(rows, table.to_dicts(), strict=True)):
        line = lines[i // 2]["seeds"][i % 2]
        for name in evaluations.COLUMNS:
            assert line[name] == whole[name] or line[name] == pytest.approx(whole[name])
            assert (row[name] == "") == (whole[name] is None)
            assert row[name] == "" or float(row[name]) == pytest.approx(whole[name], rel=1e-5)
        assert whole["returns"] == [1, 2, 3, 4] if i % 2 == 0 else [5, 6, 7, 8]
    assert [line["all"]["return_mean"] for line in lines] == [4.5] * 3


def test_a_logger_that_begins_with_a_history_writes_what_one_wrote_that_saw_it_come(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        for logger in loggers.own(tmp_path / name):
            logger.begin(history(3) if name == "whole" else [])
            for told in history(5)[3 if name == "whole" else 0 :]:
                logger.log(told)
            logger.close()
    for file in ("evaluations.csv", "evaluations.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    tables = [pl.read_parquet(tmp_path / name / "evaluations.parquet") for name in ("whole", "parts")]
    assert tables[0].equals(tables[1])


def test_a_loss_that_is_not_finite_is_written_and_the_json_stays_json(tmp_path):
    metrics = evaluation(0).record.metrics._replace(loss=np.array([np.nan, np.inf]))
    told = entry(SEEDS, evaluation(200, metrics=metrics), is_first=False)
    for logger in loggers.own(tmp_path):
        logger.begin([told])

    def refuse(constant: str):
        raise AssertionError(constant)

    line = json.loads((tmp_path / "evaluations.jsonl").read_text(), parse_constant=refuse)
    assert line["seeds"][0]["loss"] is None
    rows = csv.DictReader(io.StringIO((tmp_path / "evaluations.csv").read_text()))
    assert [row["loss"] for row in rows] == ["nan", "inf"]
    assert pl.read_parquet(tmp_path / "evaluations.parquet")["loss"].to_list()[1] == np.inf


class Failing:
    """Fails from the second evaluation on, as long as it is told to."""

    def __init__(self, name: str, can_begin_again: bool) -> None:
        self.name, self.can_begin_again = name, can_begin_again
        self.fails, self.steps, self.begun = False, [], 0

    def begin(self, history):
        if self.fails:
            raise OSError(28, "No space left on device")
        self.begun += 1
        self.steps = [told.env_step for told in history]

    def log(self, told):
        if self.fails:
            raise OSError(28, "No space left on device")
        self.steps.append(told.env_step)

    def close(self):
        pass


def test_a_logger_that_fails_is_told_once_and_the_others_go_on():
    warnings: list[str] = []
    own, other, well = Failing("own", True), Failing("other", False), Failing("well", True)
    writer = Writer([own, other, well], warnings.append)
    with writer.thread:
        writer.begin([])
        for i, told in enumerate(history(6)):
            writer.thread.finish()
            own.fails = other.fails = i in (2, 3)
            writer.log(told)
        writer.close()
    assert len(warnings) == 2
    assert all("No space left on device" in line and "the run goes on" in line for line in warnings)
    assert well.steps == [0, 100, 200, 300, 400, 500]
    assert own.steps == well.steps, "a file is made whole again"
    assert other.steps == [0, 100], "a service gets no steps twice or out of order"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Make the package of a logger one that is found, and raises on import."""

    def make(name: str, error: str) -> None:
        package = loggers.PACKAGES[name]
        (tmp_path / f"{package}.py").write_text(f"raise {error}('half of it is missing')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return make


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", "SystemExit"])
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_installed_and_cannot_be_imported_is_told_once_and_the_others_go_on(
    name, error, broken, tmp_path
):
    broken(name, error)
    loggers.check([name])
    warnings: list[str] = []
    writer = Writer([*loggers.own(tmp_path), *loggers.others([name], tmp_path, {})], warnings.append)
    with writer.thread:
        logged([writer])
    assert warnings == [f"{name} could not be written (half of it is missing); the run goes on"]
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 3


def test_an_unknown_or_missing_logger_is_refused_with_the_remedy(monkeypatch):
    with pytest.raises(ConfigError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        loggers.check(["tensorbord"])
    monkeypatch.setitem(loggers.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ConfigError, match=r"not installed; pip install 'quantilax\[wandb\]'"):
        loggers.check(["wandb"])


class Waiting(Failing):
    """Waits at a given place until it may continue."""

    def __init__(self, name: str, *places: str) -> None:
        super().__init__(name, can_begin_again=False)
        self.places, self.may_go_on, self.is_closed = places, threading.Event(), False

    def wait(self, place: str) -> None:
        if place in self.places:
            assert self.may_go_on.wait(60)

    def begin(self, history):
        self.wait("begin")
        super().begin(history)

    def log(self, told):
        self.wait("log")
        super().log(told)

    def close(self):
        self.wait("close")
        self.is_closed = True


class Told:
    """What a run's progress is given to say, and to warn of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.say, self.warn = self.said.append, self.warned.append


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(loggers, "PATIENCE", 0.3)
    monkeypatch.setattr(loggers, "SILENCE", 0.1)


def logged(writers: list[Writer]) -> None:
    for writer in writers:
        writer.begin([])
        for told in history(3):
            writer.log(told)
        writer.close()


def test_a_logger_beside_that_waits_keeps_neither_the_caller_nor_another_one_waiting():
    told, waits, well = Told(), Waiting("waits", "begin"), Waiting("well")
    writers = [Writer([logger], told.warn) for logger in (waits, well)]
    with waited_for(writers, told.say, Stop(print)):
        logged(writers)
        while not well.is_closed:
            time.sleep(0.001)
        assert (waits.begun, well.steps) == (0, [0, 100, 200])
        waits.may_go_on.set()
    assert waits.steps == well.steps, "what came meanwhile is not lost"
    assert waits.is_closed, "the end waits for it"
    assert (told.said, told.warned) == ([], [])
    assert not any(writer.thread.is_at_work for writer in writers)


@pytest.mark.parametrize("place", ["begin", "log", "close"])
def test_the_end_waits_for_a_logger_beside_no_longer_than_it_says(place, impatient):
    told, waits = Told(), Waiting("waits", place)
    start = time.monotonic()
    writers = [Writer([logger], told.warn) for logger in (waits, Waiting("well"))]
    with waited_for(writers, told.say, Stop(print)):
        logged(writers)
    assert 0.3 <= time.monotonic() - start < 5
    assert told.said == ["waiting for waits, at most 0.3 s; Ctrl-C stops waiting"]
    assert len(told.warned) == 1
    assert told.warned[0].startswith("waits has not finished and is no longer waited for")
    assert loggers.is_any_left()
    waits.fails = True
    waits.may_go_on.set()
    while loggers.is_any_left():
        time.sleep(0.001)
    assert len(told.warned) == 1, "how it ended is no second warning"


def test_a_logger_beside_that_failed_and_then_hangs_is_one_warning(impatient):
    told, waits = Told(), Waiting("waits", "close")
    waits.fails = True
    writers = [Writer([waits], told.warn)]
    with waited_for(writers, told.say, Stop(print)):
        logged(writers)
    assert told.warned == ["waits could not be written (No space left on device); the run goes on"]
    waits.may_go_on.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_for_loggers_and_nothing_else(number):
    told, waits = Told(), Waiting("waits", "close")
    start = time.monotonic()
    with Stop(print) as stop:
        sent = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, number))
        sent.start()
        writers = [Writer([waits], told.warn)]
        with waited_for(writers, told.say, stop):
            logged(writers)
    assert time.monotonic() - start < 10
    assert told.warned[0].startswith("waits has not finished and is no longer waited for")
    waits.may_go_on.set()


def test_an_end_at_once_waits_for_no_logger():
    told, waits = Told(), Waiting("waits", "close")
    start = time.monotonic()
    writers = [Writer([waits], told.warn)]
    with suppress(Interrupted), waited_for(writers, told.say, Stop(print)):
        logged(writers)
        raise Interrupted("ended at once", signal.SIGINT, at_once=True)
    assert time.monotonic() - start < 5
    assert told.warned == []
    waits.may_go_on.set()


def events(directory):
    """(tag, step, value) of every scalar in a directory's event files, read record by record."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:  # length (8), its crc (4), the event, its crc (4)
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_has_each_seed_and_all_and_a_resumed_run_leaves_no_step_twice(tmp_path):
    first = loggers.TensorBoard(tmp_path)
    first.begin([])
    for told in history(5):
        first.log(told)
    first.close()
    second = loggers.TensorBoard(tmp_path)  # resumed from step 200
    second.begin(history(3))
    second.log(history(4)[-1])
    second.close()
    assert {p.name for p in (tmp_path / "tensorboard").iterdir()} == {"seed-3", "seed-8", "all"}
    of_seed = events(tmp_path / "tensorboard" / "seed-8")
    assert [(s, v) for tag, s, v in of_seed if tag == "return_mean"] == [(t, 6.5) for t in (0, 100, 200, 300)]
    assert [s for tag, s, _ in of_seed if tag == "loss"] == [100, 200, 300]
    assert ("return_iqm", 300, 4.5) in events(tmp_path / "tensorboard" / "all")


OFFLINE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.unit.test_evaluations import history
from quantilax.runs import loggers
run = Path({run!r})
for n in (2, 4):  # the second one resumes
    logger = loggers.WandB(run, {{"learning_rate": 0.5}})
    logger.begin(history(n - 2))
    for told in history(n)[n - 2:]:
        logger.log(told)
    logger.close()
"""


def wandb_records(file):
    """Records of an offline run of wandb: a LevelDB log, blocks of 32 KiB after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, part = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def test_wandb_offline_has_each_seed_and_all_under_one_identity(tmp_path, pytestconfig):
    program = OFFLINE.format(tests=str(pytestconfig.rootpath), run=str(tmp_path))
    environment = os.environ | {"WANDB_MODE": "offline", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, timeout=120)
    identities, logged = set(), []
    for file in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                identities.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                logged.append((json.loads(items["_step"]), json.loads(items["return_mean/seed-8"])))
    assert sorted(logged) == [(0, 6.5), (100, 6.5), (200, 6.5), (300, 6.5)]
    assert identities == {(tmp_path / "wandb" / "id").read_text()}


def test_ints_of_jax_become_plain_numbers():
    told = entry([0], Evaluation(jax.tree.map(lambda x: jnp.asarray(x)[:1], evaluation(100).record), 1.0), False)
    assert json.dumps(told.seeds)


def test_wandb_that_could_not_be_begun_gets_the_whole_history_when_it_can(tmp_path, monkeypatch):
    sessions = []

    class Session:
        def __init__(self, identity):
            self.identity, self.steps = identity, []

        def log(self, values, step):
            self.steps.append(step)

        def finish(self):
            pass

    def init(**options):
        if not sessions:
            sessions.append(None)
            raise RuntimeError("no network")
        sessions.append(Session(options["id"]))
        return sessions[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **_: None))
    rows, warnings = history(3), []
    for number in (2, 3, 3):  # evaluations done when a session begins
        writer = Writer(loggers.others(["wandb"], tmp_path, {}), warnings.append)
        with writer.thread:
            writer.begin(rows[:number])
            writer.close()
    assert warnings == ["wandb could not be written (no network); the run goes on"]
    assert [session.steps for session in sessions[1:]] == [[row.env_step for row in rows], []]
    assert sessions[1].identity == sessions[2].identity != ""
