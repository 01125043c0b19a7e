"""Directory names either work with every reader and writer, or are refused before training."""

import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import quantilax
from quantilax import ConfigError
from quantilax.checks.diagnosis import diagnose_run
from quantilax.host import paths
from quantilax.reports.pages import report
from quantilax.runs import RunDirectory, directory
from quantilax.studies import start
from quantilax.studies.definition import Study
from quantilax.studies.store import Store
from tests.conftest import tiny

NAMES = [
    "torso_sizes=[4]",
    "w[1] {a,b} *?",
    "100% #1 ~ $HOME",
    "C:\\runs\\x",
    "Größe 学習 🎲",
    "a\nb",
    "%(asctime)s",
    "~",
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped half way."""
    run = tmp_path_factory.mktemp("begun") / "run"
    agent = tiny("dqn")
    quantilax.run(agent, run, quiet=True, log=["tensorboard"], callback=lambda state, record: record.env_step[0] > 100)
    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_run_below_any_name_is_written_and_read(name, begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path(name) / "run"  # relative: Polars would look for `~` in the user's home
    shutil.copytree(begun, run)
    assert quantilax.resume(run, quiet=True).status == "finished"
    assert quantilax.load(str(run)).state.env_steps == 240
    assert quantilax.runs.evaluate(run, episodes=3).returns.shape == (1, 3)
    assert len(diagnose_run(run)) == 1
    with (run / "evaluations.parquet").open("rb") as stream:
        assert pl.read_parquet(stream).height == 5
    assert (run / "learning_curve.png").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def a_study(folder: Path, **more: Any) -> Study:
    (folder / "c.yaml").write_text("dqn:\n  env: probe/terminal\n  total_timesteps: 40\n  eval_freq: 20\n")
    return Study.make({"base": {"config": str(folder / "c.yaml"), "section": "dqn"}, "seeds": 1}, **more)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_below_any_name_is_written_and_read(name, tmp_path, monkeypatch):
    study = a_study(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = Store.create(Path(name), study, jobs=1, width=1, starts=[], status="finished")
    row = {"variant": "base", "seed": 0, "seconds": 0.0, "finite": True, "return_mean": 1.0, "return_std": 0.0}
    store.write([{**row, "env_step": step} for step in (0, 20, 40)])
    assert Store.open(Path(name)).records().height == 3
    assert Store.open(Path(name)).finished() == {("base", 0)}
    report(Store.open(Path(name))).write(Path(name))
    assert [path.name for path in Path.cwd().iterdir()] == [name]


ADDRESSES = ["s3://bucket/x", Path("gs://bucket/x"), "https://a.b/c", "file:///tmp/x", "hdfs://x"]


@pytest.mark.parametrize("there", [*ADDRESSES, "a\0b", "a\udcff", b"runs", 3])
def test_what_names_nothing_on_this_machine_is_refused_by_every_reader_and_writer(there, tmp_path, monkeypatch):
    study = a_study(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    agent = tiny("dqn")
    for act in (
        lambda: quantilax.run(agent, there, quiet=True),
        lambda: quantilax.resume(there, quiet=True),
        lambda: quantilax.load(there),
        lambda: quantilax.runs.evaluate(there),
        lambda: RunDirectory.open(there),
        lambda: start.run(study, there, quiet=True),
        lambda: Store.open(there),
        lambda: Store.find(there),
    ):
        with pytest.raises(
            ConfigError, match=r"is an address; give a path on|expected a path|is not valid UTF-8|null byte"
        ) as told:
            act()
        assert "\n" not in str(told.value)
    assert list(Path.cwd().iterdir()) == []


def test_a_relative_path_is_refused_where_the_working_directory_is_gone_and_an_absolute_one_is_not(
    tmp_path, monkeypatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the working directory is gone; change to one that exists"):
        paths.check("runs/x")
    assert paths.check(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize(
    "section",
    ["mlp/small", "../../../escaped", "..", "s" * 300, "学" * 200, "a\nb", "C:\\x", "/etc", ".", " ", "\udcff"],
)
def test_a_run_without_a_place_lies_directly_below_runs_whatever_its_section_is_called(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    path = directory.default_path("probe/terminal", section)
    assert path.parent == Path("runs")
    path.mkdir(parents=True)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [path.name]
    assert directory.default_path("probe/terminal", section) == path.with_name(f"{path.name}-2")
    assert a_study(tmp_path, name=section).directory.parent == Path("studies")


def test_names_that_were_fine_stay_as_they_are():
    for name in ("iqn_research", "CartPole-v1", "0006-factors", "my study (2)", "größe=[4]"):
        assert paths.as_name(name) == name


def test_a_section_named_in_another_script_or_with_dollars_is_drawn_without_a_warning(tmp_path):
    run = tmp_path / "run"
    quantilax.run(tiny("dqn", total_timesteps=60), run, section="$\\x 学習", quiet=True)
    assert (run / "learning_curve.png").stat().st_size > 0


def test_a_part_of_the_records_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "s", a_study(tmp_path), jobs=1, width=1, starts=[], status="finished")
    store.write([{"variant": "base", "seed": 0, "env_step": 0}])

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("quantilax.studies.store.read_parquet", denied)
    with pytest.raises(ConfigError, match=r"000000\.parquet: cannot be read: Permission denied$"):
        store.records()
