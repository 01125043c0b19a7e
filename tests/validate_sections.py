"""`make validate`: a small part of every validation that docs/benchmarks.md tells of, repeated with seeds of its own.

Not collected with the suite: it trains whole runs. Sections for MinAtar take their turns, one a day, so that a nightly run
comes to each of them, and `TOO_LONG` are left out; `VALIDATE_ALL=1` asks for all at once, which takes hours.
"""

import datetime
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom, ttest_ind_from_stats

from quantilax.reports.benchmark_table import HEADER, TITLES
from quantilax.studies import tables
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


TOO_LONG = ["`configs/gymnax/cartpole.yaml iqn_research`"]
"""Of which a seed takes 40 minutes and more."""


def tonight(all_rows, day):
    """All rows but `TOO_LONG`, of those for MinAtar one, each in its turn."""
    all_rows = [row for row in all_rows if row["section"] not in TOO_LONG]
    long = [row for row in all_rows if "MinAtar" in row["environment"]]
    turn = long[day.toordinal() % len(long)]
    return [row for row in all_rows if row not in long or row is turn]


def share(cell):
    """Lower end of the interval of `96 of 100 (90% to 98%) ...`, and its upper end."""
    return [int(number) / 100 for number in re.search(r"\((\d+)% to (\d+)%\)", cell).groups()]


def chance_below_all(k, held_out):
    """That k or more of the seeds here lie below all held-out ones, if they are alike: every order is as likely."""
    return math.prod((SEEDS - i) / (held_out + SEEDS - i) for i in range(k))


def held_out_returns(row):
    """What the row's own seeds came to at the end, from the study's records."""
    command = row["command"].strip("`").split()
    variant = command[command.index("--variant") + 1] if "--variant" in command else None
    directory = command[command.index("--out") + 1] if "--out" in command else command[2]
    records = Store.open(ROOT / directory / "validation").records()
    names = records["variant"].unique().to_list()
    variant = variant or next(name for name in names if name != "base" or len(names) == 1)
    return at_the_end(records.filter(variant=variant))


def at_the_end(records):
    """The mean return of each seed's last evaluation."""
    return records.filter(pl.col("env_step") == pl.col("env_step").max())["return_mean"].to_numpy()


def chance_of_so_low(here, row):
    """That a section as good as its row says ends as low as here: by ranks where so few seeds can tell, else by Student's t."""
    held_out = int(row["held-out seeds"].split(":")[0])
    if chance_below_all(SEEDS, held_out) <= CHANCE:
        return chance_below_all(int((here < float(row["lowest run at the end"])).sum()), held_out)
    there = held_out_returns(row)
    if np.ptp(here) == np.ptp(there) == 0:
        return float(here[0] >= there[0])
    sides = [number for side in (here, there) for number in (side.mean(), side.std(ddof=1), len(side))]
    return float(ttest_ind_from_stats(*sides, alternative="less").pvalue)


ROWS = list(rows()) if os.environ.get("VALIDATE_ALL") else tonight(list(rows()), datetime.date.today())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["section"].replace("`", ""))
def test_a_validated_section_still_comes_to_what_its_row_says(row, tmp_path):
    file, section = row["section"].strip("`").rsplit(" ", 1)
    level = re.search(r" at (\S+) or more", row["ended solved"])
    solved = float(level[1]) if level else None
    asked = {"base": {"config": str(ROOT / file), "section": section}, "seeds": SEEDS, "first_seed": FIRST_SEED}
    study, out = tmp_path / "validate.yaml", tmp_path / "runs"
    study.write_text(json.dumps(asked if solved is None else {**asked, "solved": solved}))
    # As a user has it: all cores, and XLA's optimizations, which conftest has switched off.
    without = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    command = [sys.executable, "-m", "quantilax.cli", "study", str(study), "--out", str(out)]
    subprocess.run(command, env=environment, check=True)
    records = Store.open(out).records()
    if solved is None:
        final = at_the_end(records)
        print(final)
        assert len(final) == SEEDS
        assert chance_of_so_low(final, row) > CHANCE
        return
    runs = tables.outcomes(records, solved)
    print(runs)
    ended, fell = int(runs["solved_at_end"].sum()), int(runs["fell"].sum())
    assert runs.height == SEEDS
    assert binom.cdf(ended, SEEDS, share(row["ended solved"])[0]) > CHANCE
    assert binom.sf(fell - 1, SEEDS, share(row["fell after solving"])[1]) > CHANCE
