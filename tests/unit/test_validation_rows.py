"""What `make validate` compares: each row of docs/benchmarks.md by a check that a collapse fails and an equal does not."""

import datetime

import numpy as np
import pytest

from tests import validate_sections
from tests.validate_sections import CHANCE, SEEDS, TOO_LONG, chance_of_so_low, held_out_returns, rows, tonight

WITHOUT_A_LEVEL = [row for row in rows() if row["ended solved"] == "-"]


@pytest.mark.parametrize("row", WITHOUT_A_LEVEL, ids=lambda row: row["section"].replace("`", ""))
def test_a_section_that_learns_nothing_fails_and_one_as_good_passes(row):
    there = held_out_returns(row)
    assert len(there) == int(row["held-out seeds"].split(":")[0])
    lowest = row["lowest run at the end"]
    assert f"{there.min():.{len(lowest.partition('.')[2])}f}" == lowest
    assert chance_of_so_low(np.zeros(SEEDS), row) <= CHANCE
    assert chance_of_so_low(np.resize(there, SEEDS), row) > CHANCE


def test_few_held_out_seeds_are_compared_by_their_mean(monkeypatch):
    row = {"held-out seeds": "3: 1 to 3", "lowest run at the end": "9.00"}
    monkeypatch.setattr(validate_sections, "held_out_returns", lambda _: np.array([9.0, 10.0, 11.0]))
    assert chance_of_so_low(np.full(SEEDS, 5.0), row) <= CHANCE
    assert chance_of_so_low(np.full(SEEDS, 9.0), row) > CHANCE
    monkeypatch.setattr(validate_sections, "held_out_returns", lambda _: np.zeros(3))
    assert chance_of_so_low(np.zeros(SEEDS), row) == 1.0


def test_in_as_many_days_as_there_are_rows_for_minatar_each_has_its_turn_once():
    every = list(rows())
    long = [row["section"] for row in every if "MinAtar" in row["environment"]]
    first = datetime.date(2026, 11, 26)
    nights = [tonight(every, first + datetime.timedelta(days=i)) for i in range(len(long))]
    turns = [row["section"] for night in nights for row in night if "MinAtar" in row["environment"]]
    assert sorted(turns) == sorted(long)
    assert all(len(night) == len(every) - len(long) - len(TOO_LONG) + 1 for night in nights)
