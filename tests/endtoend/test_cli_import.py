"""Users' Python files: the algorithm and the head of the guides as written, and files that are refused."""

import runpy
from collections.abc import Iterator
from functools import partial

import numpy as np
import polars as pl
import pytest

from tests import guides
from tests.endtoend.conftest import Call
from tests.endtoend.processes import process


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Forget what the files of a test registered in this process."""
    with guides.unregistering():
        yield


@pytest.mark.validation
def test_the_guide_to_an_algorithm_of_ones_own_works_as_written_and_the_algorithm_solves_cartpole(call: Call, tmp_path):
    command = partial(process, tmp_path, tmp_path / "cache")
    for name, text in guides.files("custom-algorithm.md").items():
        (tmp_path / name).write_text(text)
    commands = guides.commands("custom-algorithm.md")
    assert [c[2] for c in commands] == ["train", "resume", "evaluate"]
    for arguments in commands:
        ended = command(*arguments)
        assert ended.status == 0, ended.stderr
    curves = pl.read_parquet(tmp_path / "runs" / "awr" / "evaluations.parquet")
    for seed in (0, 1):
        curve = curves.filter(seed=seed)
        assert curve["env_step"].to_list() == list(range(0, 122_881, 10_240))
        assert curve["return_mean"][0] < 100
        assert curve["return_mean"][-3] > 450  # where the first command ended
        assert curve["return_mean"][-1] > 450

    ended = call("evaluate", "runs/awr")
    assert ended.status == 2
    assert "unknown algorithm 'awr'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.validation
def test_the_guide_to_a_head_of_ones_own_works_as_written_and_the_head_learns_mean_and_deviation_in_both_loops(
    call: Call, tmp_path, capsys, forgotten
):
    for name, text in guides.files("custom-head.md").items():
        (tmp_path / name).write_text(text)
    *of_the_head, of_its_own = guides.commands("custom-head.md")
    assert [c[2:] for c in of_the_head] == [
        ["train", "gaussian.yaml", loop, "--out", f"runs/{loop}"] for loop in ("q_learning", "pqn")
    ]
    for arguments in of_the_head:
        ended = call(*arguments)
        assert ended.status == 0, ended.stderr
    runpy.run_path(str(tmp_path / "moments.py"))
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [loop for loop, *_ in printed] == ["q_learning", "pqn"]

    L = np.arange(1, 1_000)
    p, returns = 0.3 * 0.7 ** (L - 1), (1 - 0.9**L) / (1 - 0.9)
    mean = p @ returns
    deviation = np.sqrt(p @ (returns - mean) ** 2)
    for _, *learned in printed:
        np.testing.assert_allclose(np.array(learned, float), (mean, deviation), rtol=0.06)

    ended = call(*of_its_own)
    assert ended.status == 0, ended.stderr


def test_a_run_with_a_head_of_ones_own_is_refused_without_its_file(call: Call, tmp_path):
    (tmp_path / "gaussian.py").write_text(guides.files("custom-head.md")["gaussian.py"])
    settings = ("head=gaussian", "num_tau_samples=2")
    with guides.unregistering():
        ended = call("--import", "gaussian.py", "train", "tiny.yaml", "algorithm=q_learning", *settings, "--out", "run")
        assert ended.status == 0, ended.stderr
    ended = call("evaluate", "run")
    assert ended.status == 2
    assert "head: unknown value 'gaussian'; did you mean 'hl_gauss'?" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("none.py", None, "error: --import: none.py: no such file"),
        ("mine.txt", "x = 1", "error: --import: mine.txt is not a Python file; its name must end with .py"),
        ("json.py", "x = 1", "error: --import: json.py has the same name as the module json; rename the file"),
        ("broken.py", "x = 1\nx(\n", "error: broken.py: line 2: SyntaxError: '(' was never closed"),
        (
            "fails.py",
            "def f():\n    return 1 / 0\n\nf()\n",
            "error: fails.py: line 2: ZeroDivisionError: division",
        ),
        (
            "v2.mine.py",
            "x = 1",
            "error: --import: v2.mine.py is not a Python file; its name must end with .py and have",
        ),
        (".", None, "error: --import: . is not a Python file; its name must end with .py"),
        (".py", "x = 1", "error: --import: .py is not a Python file; its name"),
        ("ends.py", "import sys\n\nsys.exit('no')\n", "error: ends.py: line 3: SystemExit: no; fix the file"),
        ("ends_well.py", "import sys\nsys.exit()\n", "error: ends_well.py: line 2: SystemExit: SystemExit; fix"),
        (
            "twice.py",
            "import quantilax\nquantilax.register(quantilax.ALGORITHMS['iqn'])",
            "error: twice.py: algorithm 'iqn' is",
        ),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_with_its_line(call, tmp_path, monkeypatch, name, text, line):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    ended = call("--import", name, "list")
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith(line)
