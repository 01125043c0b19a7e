"""`make validate`: a small part of every validation that docs/benchmarks.md tells of, repeated with seeds of its own.

Not collected with the suite: it trains whole runs.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from scipy.stats import binom

from quantilax import statistics
from quantilax.studies.benchmarks import HEADER, TITLES
from quantilax.studies.store import Store

ROOT = Path(__file__).resolve().parents[1]
SEEDS, FIRST_SEED = 6, 90_000
CHANCE = 1e-3
"""That a section as good as its row says fails here."""


def rows():
    """The rows of the page, by column."""
    lines = (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
    for line in lines[lines.index(HEADER) + 2 :]:
        if not line.startswith("|"):
            break
        yield dict(zip(TITLES, (cell.strip() for cell in line.strip("| ").split(" | ")), strict=True))


def share(cell):
    """Lower end of the interval of `96 of 100 (90% to 98%) ...`, and its upper end."""
    return [int(number) / 100 for number in re.search(r"\((\d+)% to (\d+)%\)", cell).groups()]


def chance_below_all(k, held_out):
    """That k or more of the seeds here lie below all held-out ones, if they are alike: every order is as likely."""
    return math.prod((SEEDS - i) / (held_out + SEEDS - i) for i in range(k))


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row["section"].replace("`", ""))
def test_a_validated_section_still_comes_to_what_its_row_says(row, tmp_path):
    file, section = row["section"].strip("`").rsplit(" ", 1)
    level = re.search(r" at (\S+) or more", row["ended solved"])
    solved = float(level[1]) if level else None
    asked = {"base": {"config": str(ROOT / file), "section": section}, "seeds": SEEDS, "first_seed": FIRST_SEED}
    study, out = tmp_path / "validate.yaml", tmp_path / "runs"
    study.write_text(json.dumps(asked if solved is None else {**asked, "solved": solved}))
    # As a user has it: all cores, and XLA's optimizations, which conftest has switched off.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    command = [sys.executable, "-m", "quantilax.cli", "study", str(study), "--out", str(out)]
    subprocess.run(command, env=environment, check=True)
    records = Store.open(out).records()
    if solved is None:
        final = records.filter(pl.col("env_step") == pl.col("env_step").max())["return_mean"]
        print(final)
        lower = int((final < float(row["lowest run at the end"])).sum())
        assert final.len() == SEEDS
        assert chance_below_all(lower, int(row["held-out seeds"].split(":")[0])) > CHANCE
        return
    runs = statistics.outcomes(records, solved)
    print(runs)
    ended, fell = int(runs["solved_at_end"].sum()), int(runs["fell"].sum())
    assert runs.height == SEEDS
    assert binom.cdf(ended, SEEDS, share(row["ended solved"])[0]) > CHANCE
    assert binom.sf(fell - 1, SEEDS, share(row["fell after solving"])[1]) > CHANCE
