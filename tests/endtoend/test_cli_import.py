"""An algorithm of a user in a file of their own: the guide as written, and files that cannot serve."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.endtoend.conftest import Call, process

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "custom-algorithm.md"


@pytest.fixture(scope="module")
def guide() -> dict[str, str]:
    """The files that the guide asks for, and its commands."""
    text = GUIDE.read_text()
    files = {m[1]: m[2] for m in re.finditer(r"```\w+ title=\"([\w.]+)\"\n(.*?)```", text, re.DOTALL)}
    return files | {"commands": re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]}


def test_the_guide_to_an_algorithm_of_ones_own_works_as_written(guide, call: Call, tmp_path):
    command = partial(process, tmp_path, tmp_path / "cache")
    for name in ("double_dqn.py", "mine.yaml"):
        (tmp_path / name).write_text(guide[name])
    commands = [line.split()[1:] for line in guide["commands"].splitlines()]
    assert [c[2] for c in commands] == ["train", "resume", "evaluate"]
    for arguments in commands:
        ended = command(*arguments)
        assert ended.status == 0, ended.stderr
    curve = pl.read_parquet(tmp_path / "runs" / "double" / "evaluations.parquet").filter(seed=0)
    assert curve["env_step"].to_list() == [1000, 2000, 4000, 6000]

    ours = call("train", "mine.yaml", "double_dqn", "algorithm=dqn", "double=true", "--out", "runs/ours")
    assert ours.status == 0, ours.stderr
    ours = pl.read_parquet(tmp_path / "runs" / "ours" / "evaluations.parquet")
    np.testing.assert_allclose(curve["q"][:3], ours["q"], rtol=1e-4)  # the same target, written by other hands

    ended = call("evaluate", "runs/double")
    assert ended.status == 2
    assert "unknown algorithm 'double_dqn'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("none.py", None, "error: --import: none.py is no Python file; name one that ends with .py"),
        ("mine.txt", "x = 1", "error: --import: mine.txt is no Python file; name one that ends with .py"),
        ("json.py", "x = 1", "error: --import: json.py has the name of another module, json; rename the file"),
        ("broken.py", "x = 1\nx(\n", "error: broken.py: line 2: SyntaxError: '(' was never closed"),
        (
            "fails.py",
            "def f():\n    return 1 / 0\n\nf()\n",
            "error: fails.py: line 2: ZeroDivisionError: division",
        ),
        ("v2.mine.py", "x = 1", "error: --import: v2.mine.py is no Python file; name one that ends with .py and has"),
        (".py", "x = 1", "error: --import: .py is no Python file; name one"),
        ("ends.py", "import sys\n\nsys.exit('no')\n", "error: ends.py: line 3: SystemExit: no; mend the file"),
        ("ends_well.py", "import sys\nsys.exit()\n", "error: ends_well.py: line 2: SystemExit: SystemExit; mend"),
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
