"""`make validate`: a small part of every validation in docs/benchmarks.yaml, repeated with seeds of its own.

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

from quantilax.reports import validated
from quantilax.studies import tables
from quantilax.studies.store import Store

ROOT = Path(__file__).resolve().parents[1]
SEEDS, FIRST_SEED = 6, 90_000
CHANCE = 1e-3
"""That a section as good as its record says fails here."""


def recorded():
    """The records of all sections."""
    file = ROOT / "docs" / "benchmarks.yaml"
    return validated.parse(file.read_text(), file)


TOO_LONG = [("configs/gymnax/cartpole.yaml", "iqn_research")]
"""Of which a seed takes 40 minutes and more."""


def tonight(records, day):
    """All records but `TOO_LONG`, of those for MinAtar one, each in its turn."""
    records = [r for r in records if (r.config, r.section) not in TOO_LONG]
    long = [r for r in records if "MinAtar" in r.environment]
    turn = long[day.toordinal() % len(long)]
    return [r for r in records if r not in long or r is turn]


def share(figure):
    """Lower end of the interval of `96 of 100 (90% to 98%)`, and its upper end."""
    return [int(number) / 100 for number in re.search(r"\((\d+)% to (\d+)%\)", figure).groups()]


def chance_below_all(k, held_out):
    """That k or more of the seeds here lie below all held-out ones, if they are alike: every order is as likely."""
    return math.prod((SEEDS - i) / (held_out + SEEDS - i) for i in range(k))


def held_out_returns(record):
    """What the record's own seeds came to at the end, from those of its study."""
    return at_the_end(Store.open(ROOT / record.study / "validation").records().filter(variant=record.variant))


def at_the_end(records):
    """The mean return of each seed's last evaluation."""
    return records.filter(pl.col("env_step") == pl.col("env_step").max())["return_mean"].to_numpy()


def chance_of_so_low(here, record):
    """That a section as good as recorded ends as low as here: by ranks where so few seeds can tell, else by Student's t."""
    if chance_below_all(SEEDS, record.n) <= CHANCE:
        return chance_below_all(int((here < float(record.lowest_at_end)).sum()), record.n)
    there = held_out_returns(record)
    if np.ptp(here) == np.ptp(there) == 0:
        return float(here[0] >= there[0])
    sides = [number for side in (here, there) for number in (side.mean(), side.std(ddof=1), len(side))]
    return float(ttest_ind_from_stats(*sides, alternative="less").pvalue)


RECORDS = recorded() if os.environ.get("VALIDATE_ALL") else tonight(recorded(), datetime.date.today())


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.config} {r.section}")
def test_a_validated_section_still_comes_to_what_its_record_says(record, tmp_path):
    solved, base = record.solved, {"config": str(ROOT / record.config), "section": record.section}
    asked = {"base": base, "seeds": SEEDS, "first_seed": FIRST_SEED}
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
        assert chance_of_so_low(final, record) > CHANCE
        return
    runs = tables.outcomes(records, solved)
    print(runs)
    ended, fell = int(runs["solved_at_end"].sum()), int(runs["fell"].sum())
    assert runs.height == SEEDS
    assert binom.cdf(ended, SEEDS, share(record.ended_solved)[0]) > CHANCE
    assert binom.sf(fell - 1, SEEDS, share(record.fell)[1]) > CHANCE
