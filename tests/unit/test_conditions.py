"""What made a run's numbers is told by a digest of the source that computes them."""

import importlib.util
import sys

import pytest

from quantilax.agent import create
from quantilax.runs import conditions
from tests.conftest import TINY, tiny


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of quantilax."""
    for name in ("losses.py", "runs/directory.py", "studies/report.py", "cli.py"):
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text("x = 1\n")
    monkeypatch.setattr(conditions, "PACKAGE", tmp_path / "package")
    return tmp_path / "package"


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("losses.py", True),
        ("new.py", True),
        ("runs/directory.py", False),
        ("studies/report.py", False),
        ("cli.py", False),
    ],
)
def test_source_that_computes_counts_and_source_that_handles_runs_does_not(package, changed, counts):
    algo = tiny("iqn")
    before = conditions.code(algo)
    assert conditions.code(algo) == before
    (package / changed).write_text("x = 2\n")
    assert (conditions.code(algo) != before) == counts


def test_the_file_of_an_algorithm_of_ones_own_counts(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("def step(env, config, state): ...\n")
    spec = importlib.util.spec_from_file_location("mine_for_a_digest", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    algo = tiny("iqn")
    mine = create(algo.algorithm._replace(step=module.step), algo.env, TINY["iqn"])
    without, before = conditions.code(algo), conditions.code(mine)
    file.write_text("def step(env, config, state): return state\n")
    assert before not in (without, conditions.code(mine))
    assert conditions.code(algo) == without
