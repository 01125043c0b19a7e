"""Runs from Python: callbacks, loading, evaluating, extending, and what is refused; the command line has its own tests."""

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import quantilax
from quantilax import ConfigError, RunError
from quantilax.learning import rollout
from quantilax.runs import Interrupted, RunDirectory, checkpoints, loggers, session
from quantilax.runs import directory as directories
from quantilax.runs import evaluate as evaluate_run
from tests.conftest import TINY, each, tiny
from tests.contracts.test_environments import Own


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The last checkpoint's arrays, but for the clock's."""
    found = checkpoints.find(path / "checkpoints").arrays
    return {name: array for name, array in found.items() if name != "history/seconds"}


def assert_same_end(a: Path, b: Path) -> None:
    first, second = arrays(a), arrays(b)
    assert list(first) == list(second)
    assert [name for name in first if first[name].tobytes() != second[name].tobytes()] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Seeds 3 and 5 of a tiny DQN, to the end."""
    path = tmp_path_factory.mktemp("finished") / "run"
    result = quantilax.run(tiny("dqn"), path, seeds=[3, 5], quiet=True)
    assert (result.path, result.status, result.env_step) == (path, "finished", 240)
    return path


class KilledError(BaseException):
    """Stands for the death of the process: nothing that handles errors may handle it."""


def survives(agent, path: Path, fault: int) -> bool:
    """Start or resume a run in a process that dies at a given rename or flush; true if it never came."""
    calls, dead = itertools.count(), threading.Event()

    def mortal(real):
        def call(*args, **kwargs):
            if dead.is_set() or next(calls) == fault:
                dead.set()
                raise KilledError
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("fsync", "replace", "rename"):
            patched.setattr(os, name, mortal(getattr(os, name)))
        patched.setattr(threading, "excepthook", lambda *_: None)
        try:
            if (path / "run.json").exists():
                quantilax.resume(path, quiet=True)
            else:
                quantilax.run(agent, path, seeds=[3, 5], quiet=True)
        except (KilledError, RunError):
            assert dead.is_set()
    return not dead.is_set()


@pytest.mark.parametrize("every", each([11, 1], first=[11]))
def test_a_run_that_dies_at_any_rename_or_flush_is_gone_on_with_to_the_same_end(every, finished, tmp_path):
    agent, faults = tiny("dqn"), 0
    for fault in itertools.count(2 if every > 1 else 0, every):  # 2: config.yaml is there, run.json is not
        path = tmp_path / str(fault)
        if survives(agent, path, fault):
            break
        faults += 1
        assert survives(agent, path, -1)
        assert_same_end(path, finished)
        assert RunDirectory.open(path).status == "finished"
    assert faults >= 40 // every


def test_what_two_threads_note_in_run_json_at_once_is_all_there(tmp_path, monkeypatch):
    directory = RunDirectory.create(tmp_path / "run")
    is_writing, may_write, write = threading.Event(), threading.Event(), directories.write_whole

    def slow(path: Path, text: str) -> None:
        if "status" not in text:  # the first of the two
            is_writing.set()
            may_write.wait()
        write(path, text)

    monkeypatch.setattr(directories, "write_whole", slow)
    first = threading.Thread(target=partial(directory.update, saved=100))
    second = threading.Thread(target=partial(directory.update, status="interrupted"))
    first.start()
    is_writing.wait()
    second.start()
    second.join(0.2)  # it ends where nothing holds it up
    may_write.set()
    for thread in (first, second):
        thread.join()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts == directory.facts == {"saved": 100, "status": "interrupted"}


@pytest.mark.parametrize("name", each(TINY))
def test_a_run_stopped_by_a_callback_after_each_evaluation_ends_as_one_that_was_not(name, tmp_path):
    quantilax.run(tiny(name), tmp_path / "whole", seeds=[0, 1], quiet=True)
    result = quantilax.run(tiny(name), tmp_path / "parts", [0, 1], callback=lambda state, record: True, quiet=True)
    stops = 0
    while result.status == "stopped":
        assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "stopped"
        stops += 1
        result = quantilax.resume(tmp_path / "parts", callback=lambda state, record: True, quiet=True)
    assert stops == len(tiny(name).evaluation_steps) - 1
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    tables = [pl.read_parquet(tmp_path / p / "evaluations.parquet").drop("seconds") for p in ("whole", "parts")]
    assert tables[0].equals(tables[1])


def test_a_run_on_disk_is_the_run_in_memory(finished):
    for seed in (3, 5):
        state, record = tiny("dqn").records(jax.random.key(seed))
        loaded = quantilax.load(finished, seed=seed)
        for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(loaded.state.params), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        table = pl.read_parquet(finished / "evaluations.parquet").filter(pl.col("seed") == seed)
        np.testing.assert_array_equal(np.array(table["returns"].to_list()), record.returns)
        np.testing.assert_allclose(table["loss"][1:].to_numpy(), record.metrics.loss[1:], rtol=1e-6)


def test_a_callback_sees_every_evaluation_with_states_and_records_of_all_seeds(tmp_path):
    seen = []

    def callback(state, record):
        assert isinstance(record.returns, np.ndarray)
        assert record.returns.shape == (2, 4)
        seen.append((int(record.env_step[0]), int(state.gradient_steps[1])))

    quantilax.run(tiny("dqn"), tmp_path / "run", [0, 1], callback=callback, quiet=True)
    assert seen == [
        (40, 0),
        (60, 10),
        (120, 40),
        (180, 70),
        (240, 100),
    ]  # two gradient steps per four environment steps


def test_a_callback_that_raises_ends_the_run_which_can_go_on(tmp_path, finished):
    def callback(state, record):
        if record.env_step[0] == 120:
            raise ZeroDivisionError("by the user")

    with pytest.raises(ZeroDivisionError):
        quantilax.run(tiny("dqn"), tmp_path / "run", [3, 5], callback=callback, quiet=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed: by the user"
    assert quantilax.resume(tmp_path / "run", quiet=True).status == "finished"
    assert_same_end(tmp_path / "run", finished)


def test_a_loaded_agent_acts_and_evaluates_as_the_run_did(finished):
    algo, state, policy = quantilax.load(finished)  # the first seed
    _, record = tiny("dqn").records(jax.random.key(3))
    key = jax.random.fold_in(state.evaluation_key, state.env_steps)
    of_run = algo.algorithm.policy(algo.env, algo.config, state)
    lengths, returns = jax.jit(lambda key: rollout.evaluate(algo.env, of_run, key, 4))(key)
    np.testing.assert_array_equal(returns, record.returns[-1])
    np.testing.assert_array_equal(lengths, record.lengths[-1])
    assert int(policy(jnp.zeros(6).at[2].set(1), jax.random.key(0))) in (0, 1)


def test_a_loaded_state_trains_on(finished):
    algo, state, _ = quantilax.load(finished, 120)
    assert int(state.env_steps) == 120
    state, _ = jax.jit(algo.step)(state)
    assert int(state.env_steps) == 124


def test_what_was_not_trained_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="has no seed 4; it has 3, 5"):
        quantilax.load(finished, seed=4)
    with pytest.raises(RunError, match="no checkpoint at step 7; there are"):
        quantilax.load(finished, 7)
    with pytest.raises(ConfigError, match="no such run directory"):
        quantilax.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is not a run directory"):
        quantilax.load(tmp_path)


FACTS = {
    "section": "iqn",
    "seeds": [3, 5],
    "status": "stopped",
    "checkpoint_every": 1,
    "log": ["wandb"],
    "devices": 2,
    "starts": [{"from_env_step": 0, "command": "quantilax train", "date": "2026-07-01T10:00:00+0200"}],
    "seconds": 12,
}
"""The keys of `run.json` that are read back."""


def test_a_run_json_with_what_is_read_is_enough(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(FACTS))
    assert RunDirectory.open(tmp_path).facts == FACTS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"section": None}, "section: is missing"),
        ({"section": ["iqn"]}, r"section: expected a name, got \['iqn'\]"),
        ({"seeds": None}, "seeds: is missing"),
        ({"seeds": []}, "seeds: expected different whole numbers from 0 to"),
        ({"seeds": {"3": 5}}, "seeds: expected different whole numbers from 0 to"),
        ({"seeds": [3, 3]}, "seeds: expected different whole numbers from 0 to"),
        ({"seeds": [True]}, "seeds: expected different whole numbers from 0 to"),
        ({"seeds": [2**32]}, "seeds: expected different whole numbers from 0 to"),
        ({"status": 5}, "status: expected text, got 5"),
        ({"checkpoint_every": -1}, "checkpoint_every: expected a whole number, 0 or more, got -1"),
        ({"checkpoint_every": 1.5}, "checkpoint_every: expected a whole number, 0 or more, got 1.5"),
        ({"checkpoint_every": True}, "checkpoint_every: expected a whole number, 0 or more, got True"),
        ({"log": "wandb"}, "log: expected a list of names"),
        ({"log": [5]}, "log: expected a list of names"),
        ({"log": [["wandb"]]}, "log: expected a list of names"),
        ({"devices": 0}, "devices: expected a whole number, 1 or more, got 0"),
        ({"devices": "two"}, "devices: expected a whole number, 1 or more, got 'two'"),
        ({"seconds": "long"}, "seconds: expected a number, 0 or more, got 'long'"),
        ({"seconds": 10**400}, "seconds: expected a number, 0 or more, got 1000"),
        ({"starts": None}, "starts: is missing"),
        ({"starts": []}, "starts: expected a list of starts"),
        ({"starts": {"0": {}}}, "starts: expected a list of starts"),
        ({"starts": [5]}, r"starts\[0\]: expected a start"),
        ({"starts": [*FACTS["starts"], {}]}, r"starts\[1\].from_env_step: is missing"),
        ({"starts": [{**FACTS["starts"][0], "from_env_step": "none"}]}, r"starts\[0\].from_env_step: expected a whole"),
        ({"starts": [{**FACTS["starts"][0], "command": ["x"]}]}, r"starts\[0\].command: expected text, got \['x'\]"),
        ({"starts": [{**FACTS["starts"][0], "date": 2026}]}, r"starts\[0\].date: expected text, got 2026"),
    ],
)
def test_a_run_json_that_lacks_or_has_something_else_than_what_is_read_is_refused_by_file_and_field(
    changes, words, tmp_path
):
    facts = {name: value for name, value in {**FACTS, **changes}.items() if value is not None}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=f"^{tmp_path}/run.json: {words}") as refused:
        RunDirectory.open(tmp_path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": []}, "seeds: expected different"),
        ({"seeds": [1, 1]}, "seeds: expected different"),
        ({"seeds": [-1]}, "seeds: expected different"),
        ({"checkpoint_every": -1}, "checkpoint_every: expected"),
        ({"checkpoint_every": True}, "checkpoint_every: expected"),
        ({"log": ["tensorbord"]}, "did you mean 'tensorboard'"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_made(arguments, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        quantilax.run(tiny("dqn"), tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_left_as_it_is(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    result = quantilax.resume(finished, quiet=True)
    assert (result.status, result.env_step) == ("finished", 240)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_an_extended_run_goes_on_with_the_schedules_of_the_longer_one(tmp_path):
    path = tmp_path / "run"
    agent = tiny("dqn", exploration_fraction=0.9, eps_start=1.0, eps_end=0.0)
    quantilax.run(agent, path, [3], quiet=True)
    result = quantilax.resume(path, total_timesteps=480, quiet=True)
    assert (result.status, result.env_step) == ("finished", 480)
    rows = pl.read_parquet(path / "evaluations.parquet")
    assert rows["env_step"].to_list() == [40, 60, 120, 180, 240, 300, 360, 420, 480]
    # Falling over 0.9 of the run: the means over steps 120..176 of one of 240, over steps 240..296 of one of 480.
    assert rows["epsilon"][3] == pytest.approx(1 - 148 / 216, rel=1e-4)
    assert rows["epsilon"][5] == pytest.approx(1 - 268 / 432, rel=1e-4)
    assert quantilax.load(path).algo.config.total_timesteps == 480
    starts = json.loads((path / "run.json").read_text())["starts"]
    assert [start["from_env_step"] for start in starts] == [0, 240]


def test_a_shorter_total_and_one_that_changes_the_warm_up_are_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="--total-timesteps: 200 is less than the run's 240"):
        quantilax.resume(finished, total_timesteps=200, quiet=True)
    with pytest.warns(quantilax.ConfigWarning):
        agent = tiny("dqn", fill_buffer=500)
    quantilax.run(agent, tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="ended within its warm-up"):
        quantilax.resume(tmp_path / "run", total_timesteps=1_000, quiet=True)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("raise RuntimeError('half of it is missing')", "wandb could not be written (half of it is missing); the run"),
        (
            "import time\nSettings = dict\ndef init(**_): time.sleep(60)",
            "wandb has not finished and is no longer waited for; some",
        ),
    ],
)
def test_a_logger_that_is_broken_or_hangs_is_one_warning_and_the_run_is_whole(
    lines, words, finished, tmp_path, monkeypatch, capsys
):
    (tmp_path / "wandb.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(loggers, "PATIENCE", 0.3)
    saved = []
    result = quantilax.run(
        tiny("dqn"),
        tmp_path / "run",
        [3, 5],
        log=["wandb"],
        quiet=True,
        callback=lambda s, r: saved.extend(checkpoints.steps(tmp_path / "run" / "checkpoints")),
    )
    sys.modules.pop("wandb", None)  # monkeypatch would put it back
    assert result.status == "finished"
    assert_same_end(tmp_path / "run", finished)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {words}")
    assert saved, "checkpoints are written while it hangs"
    loggers.LEFT.clear()  # it sleeps still


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def signalled(request, monkeypatch):
    """Send a signal right after (or before) `run.json` is written with a status."""
    number = request.param
    handler = signal.signal(number, signal.default_int_handler)  # what SIGTERM does else would end the tests

    def when(written: str, before: bool = False) -> int:
        update = RunDirectory.update

        def updated(self, **facts):
            is_it = facts["status"] == written
            if is_it and before:
                signal.raise_signal(number)
            update(self, **facts)
            if is_it and not before:
                signal.raise_signal(number)

        monkeypatch.setattr(RunDirectory, "update", updated)
        return 128 + number

    yield when
    signal.signal(number, handler)


@pytest.mark.parametrize("before", [False, True])
def test_a_signal_while_run_json_is_written_at_the_beginning_leaves_an_interrupted_run(signalled, before, tmp_path):
    exit_status = signalled("running", before)
    with pytest.raises(Interrupted, match="continue from the beginning with: quantilax resume") as ended:
        quantilax.run(tiny("dqn"), tmp_path / "run", quiet=True)
    assert ended.value.exit_status == exit_status
    assert RunDirectory.open(tmp_path / "run").status == "interrupted"


def test_a_signal_while_run_json_is_written_at_a_resume_leaves_an_interrupted_run(signalled, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    exit_status = signalled("running")
    with pytest.raises(Interrupted, match="continue from step 240 with: quantilax resume") as ended:
        quantilax.resume(path, total_timesteps=480, quiet=True)
    assert ended.value.exit_status == exit_status
    assert RunDirectory.open(path).status == "interrupted"


def test_a_signal_while_run_json_is_written_at_the_end_changes_nothing(signalled, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    RunDirectory.open(path).update(status="running")  # killed before it could say that it was finished
    signalled("finished", before=True)
    assert quantilax.resume(path, quiet=True).status == "finished"
    assert RunDirectory.open(path).status == "finished"


def norm(algo, state, key):
    """An `eval_callback`."""
    return {"norm": jnp.linalg.norm(jax.tree.leaves(state.params)[0]), "draws": jax.random.normal(key, (3,))}


def test_what_an_eval_callback_returns_stands_in_the_tables_and_the_checkpoints(tmp_path):
    agent = tiny("dqn").replace(eval_callback=norm)
    quantilax.run(agent, tmp_path / "whole", [0, 1], quiet=True)
    _, record = agent.records(jax.random.key(1))
    table = pl.read_parquet(tmp_path / "whole" / "evaluations.parquet").filter(pl.col("seed") == 1)
    np.testing.assert_allclose(table["callback/norm"].to_numpy(), record.callback["norm"], rtol=1e-6)
    drawn = arrays(tmp_path / "whole")["history/record/callback/draws"]  # (rows, seeds, 3)
    np.testing.assert_array_equal(drawn[:, 1], record.callback["draws"])

    quantilax.run(agent, tmp_path / "parts", [0, 1], callback=lambda s, r: r.env_step[0] == 120, quiet=True)
    with pytest.raises(RunError, match=r"history/record/callback/.* is unknown here"):
        quantilax.resume(tmp_path / "parts", quiet=True)
    quantilax.resume(tmp_path / "parts", eval_callback=norm, quiet=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert quantilax.load(tmp_path / "parts").algo.eval_callback is None


def test_an_environment_of_ones_own_is_given_again(tmp_path):
    class Local(Own):
        """An environment that cannot be made from a name."""

    agent = tiny("pqn", env=Local())
    quantilax.run(agent, tmp_path / "run", callback=lambda s, r: True, quiet=True)
    with pytest.raises(
        ConfigError, match="was trained in 'own', which cannot be made from its name here; pass env= from Python"
    ):
        quantilax.resume(tmp_path / "run", quiet=True)
    assert quantilax.resume(tmp_path / "run", env=Local(), quiet=True).status == "finished"
    algo, state, _ = quantilax.load(tmp_path / "run", env=Local())
    assert algo.evaluate(state, jax.random.key(0), 3)[0].tolist() == [5, 5, 5]


@pytest.mark.parametrize(("every", "kept"), [(0, [240]), (2, [60, 180, 240]), (3, [120, 240])])
def test_checkpoints_come_as_often_as_asked_and_always_at_the_end(every, kept, tmp_path):
    quantilax.run(tiny("dqn"), tmp_path / "run", checkpoint_every=every, quiet=True)
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == kept


def test_evaluating_a_run_meets_other_episodes_with_another_seed(tmp_path):
    run = quantilax.run(tiny("dqn", "probe/geometric"), tmp_path / "run", (3, 5), quiet=True).path  # of random lengths
    first, again, other = (evaluate_run(run, episodes=50, seed=seed) for seed in (0, 0, 1))
    assert first.returns.shape == first.lengths.shape == (2, 50)
    assert (first.seeds, first.env_step) == ([3, 5], 240)
    np.testing.assert_array_equal(first.lengths, again.lengths)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert first.lengths.tolist() != other.lengths.tolist()


def test_the_best_checkpoint_is_that_of_the_highest_mean_return(finished):
    there = {
        step: checkpoints.manifest(checkpoints.path_of(finished / "checkpoints", step))["return_mean"]
        for step in checkpoints.steps(finished / "checkpoints")
    }
    best = max(there, key=lambda step: (there[step], step))
    assert evaluate_run(finished, "best", episodes=2).env_step == best


def test_metrics_switched_off_leave_their_columns_empty_and_a_broken_run_is_still_noticed(tmp_path):
    quantilax.run(tiny("dqn", metrics=False), tmp_path / "run", quiet=True)
    assert pl.read_parquet(tmp_path / "run" / "evaluations.parquet")["loss"].null_count() == 5
    with pytest.raises(RunError, match=r"the parameters hold NaN or inf at environment step \d+ \(seed 0\)"):
        quantilax.run(tiny("dqn", metrics=False, learning_rate=1e30), tmp_path / "broken", quiet=True)
    assert quantilax.load(tmp_path / "broken").state.env_steps == 40
    told = [len((tmp_path / "broken" / f"evaluations.{kind}").read_text().splitlines()) for kind in ("csv", "jsonl")]
    rows = pl.read_parquet(tmp_path / "broken" / "evaluations.parquet").height
    assert told == [rows + 1, rows], "the tables of a failed run are whole"


def test_a_module_that_cannot_be_imported_ahead_is_left_to_those_who_need_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)  # import raises
    session._import_ahead()


def test_a_signal_before_the_first_evaluation_ends_in_a_line(tmp_path, monkeypatch):
    class Early(session.Stop):
        """Gets a signal as soon as training begins."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "is_training" and value:
                self.requested = signal.SIGTERM

    monkeypatch.setattr(session, "Stop", Early)
    with pytest.raises(Interrupted, match="ended at once; continue from the beginning with: quantilax resume") as ended:
        session.run(tiny("dqn"), tmp_path / "run", [0], quiet=True)
    assert ended.value.exit_status == 143
