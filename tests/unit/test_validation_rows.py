"""The checks of `make validate`, one per record of docs/benchmarks.yaml: a collapse fails, an equal passes."""

import datetime
from types import SimpleNamespace

import numpy as np
import pytest

from tests import validate_sections
from tests.validate_sections import CHANCE, SEEDS, TOO_LONG, chance_of_so_low, held_out_returns, recorded, tonight

WITHOUT_A_LEVEL = [r for r in recorded() if r.ended_solved is None]


@pytest.mark.parametrize("record", WITHOUT_A_LEVEL, ids=lambda r: f"{r.config} {r.section}")
def test_a_section_that_learns_nothing_fails_and_one_as_good_passes(record):
    there = held_out_returns(record)
    assert len(there) == record.n
    lowest = record.lowest_at_end
    assert f"{there.min():.{len(lowest.partition('.')[2])}f}" == lowest
    assert chance_of_so_low(np.zeros(SEEDS), record) <= CHANCE
    assert chance_of_so_low(np.resize(there, SEEDS), record) > CHANCE


def test_few_held_out_seeds_are_compared_by_their_mean(monkeypatch):
    record = SimpleNamespace(n=3, lowest_at_end="9.00")
    monkeypatch.setattr(validate_sections, "held_out_returns", lambda _: np.array([9.0, 10.0, 11.0]))
    assert chance_of_so_low(np.full(SEEDS, 5.0), record) <= CHANCE
    assert chance_of_so_low(np.full(SEEDS, 9.0), record) > CHANCE
    monkeypatch.setattr(validate_sections, "held_out_returns", lambda _: np.zeros(3))
    assert chance_of_so_low(np.zeros(SEEDS), record) == 1.0


def test_in_as_many_days_as_there_are_records_for_minatar_each_has_its_turn_once():
    every = recorded()
    long = [(r.config, r.section) for r in every if "MinAtar" in r.environment]
    first = datetime.date(2026, 11, 26)
    nights = [tonight(every, first + datetime.timedelta(days=i)) for i in range(len(long))]
    turns = [(r.config, r.section) for night in nights for r in night if "MinAtar" in r.environment]
    assert sorted(turns) == sorted(long)
    assert all(len(night) == len(every) - len(long) - len(TOO_LONG) + 1 for night in nights)
