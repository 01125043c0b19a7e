"""`quantilax plot`: learning curves of several runs and studies in one picture."""

import json
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest

from quantilax import statistics
from quantilax.runs import plots
from tests.endtoend.conftest import Call
from tests.studies import GOOD, NEVER, STEPS, store


def run(path: Path, returns: dict[int, list[float]]) -> Path:
    """Write the directory of a run that nobody trained, its returns by seed."""
    path.mkdir(parents=True)
    start = {"from_env_step": 0, "command": "quantilax train", "date": "2026-11-30T00:00:00+0000"}
    facts = {"section": "iqn", "seeds": list(returns), "status": "finished", "starts": [start]}
    (path / "run.json").write_text(json.dumps(facts))
    rows = [f"{seed},{100 * t},{x}" for seed, of_seed in returns.items() for t, x in enumerate(of_seed)]
    (path / "evaluations.csv").write_text("\n".join(["seed,env_step,return_mean", *rows]) + "\n")
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that are saved."""
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def saving(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saving)
    return figures


def test_runs_and_the_variants_of_a_study_are_drawn_with_their_means_intervals_and_names(call: Call, tmp_path, drawn):
    run(tmp_path / "runs" / "one", {0: [1, 2, 4]})
    run(tmp_path / "runs" / "two", {0: [1, 2, 4], 7: [3, 4, 5]})
    store(tmp_path / "s", {"base": [GOOD] * 3, "slow": [NEVER] * 3}, seeds=3)
    ended = call("plot", "runs/one", "runs/two", "s", "--out", "all.png")
    assert (ended.status, ended.stdout, ended.stderr) == (0, "all.png: 4 learning curves\n", "")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "one (1 seed)",
        "two (2 seeds)",
        "s: base (3 seeds)",
        "s: slow (3 seeds)",
    ]
    one, two, base, _ = axes.lines
    assert one.get_xydata().tolist() == [[0, 1], [100, 2], [200, 4]]
    assert two.get_ydata().tolist() == [2, 3, 4.5]
    assert base.get_xydata().tolist() == [list(point) for point in zip(STEPS, GOOD, strict=True)]
    assert len(axes.collections) == 3  # no interval of one seed


def test_the_band_is_the_interval_of_the_mean(tmp_path, drawn):
    returns = np.random.default_rng(0).normal(size=(8, 5))
    plots.together([plots.Curve("x", np.arange(5), returns)], tmp_path / "x.svg")
    (band,) = drawn[0].axes[0].collections
    corners = band.get_paths()[0].vertices
    low, high = statistics.interval(lambda x: x.mean(axis=1), returns, resamples=statistics.QUICK_RESAMPLES)
    assert corners[:, 1].min() == pytest.approx(low.min())
    assert corners[:, 1].max() == pytest.approx(high.max())


def test_a_step_that_a_seed_does_not_have_yet_is_left_out():
    curve = plots.curve("x", [(0, 0, 1.0), (0, 10, 2.0), (1, 0, 3.0)])
    assert (curve.steps.tolist(), curve.returns.tolist()) == ([0], [[1.0], [3.0]])


def test_directories_of_the_same_name_are_told_apart_by_their_paths(call: Call, tmp_path, drawn):
    run(tmp_path / "a" / "x_$1$", {0: [1, 2]})
    run(tmp_path / "b" / "x_$1$", {0: [2, 3]})
    assert call("plot", "a/x_$1$", "b/x_$1$").status == 0
    assert (tmp_path / "curves.png").exists()
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels == ["a/x_$1$ (1 seed)", "b/x_$1$ (1 seed)"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "error: nowhere: no such run directory"),
        (["empty"], "error: empty: has no evaluation yet"),
        (["damaged"], "error: damaged/evaluations.csv: cannot be read"),
        (["good", "--out", "x.txt"], "error: --out: x.txt: expected a name that ends with .png, .svg, .pdf"),
        (["good", "--out", "no/x.png"], "error: --out: no/x.png cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(call: Call, tmp_path, arguments, line):
    run(tmp_path / "good", {0: [1, 2]})
    run(tmp_path / "empty", {0: []})
    run(tmp_path / "damaged", {0: [1]}).joinpath("evaluations.csv").write_text("seed,env_step,return_mean\n0,x,1\n")
    ended = call("plot", *arguments)
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith(line)
