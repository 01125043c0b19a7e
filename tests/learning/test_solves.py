"""Each algorithm solves its task in one run with the shipped settings."""

from pathlib import Path

import jax
import pytest

from quantilax.runs import load_section
from tests.conftest import each

pytestmark = pytest.mark.optimized

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("section", each(first=()))
def test_the_shipped_settings_solve_cartpole(section):
    algo = load_section(CONFIGS / "gymnax" / "cartpole.yaml", section).create()
    _, (_, returns) = algo.train(jax.random.key(0))
    assert returns.shape[1] == 128
    assert float(returns[-1].mean()) >= 475
