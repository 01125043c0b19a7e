"""Bands of held-out learning curves: what they hold, where they lie, and what a run is told beside one."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from quantilax.checks import bands
from quantilax.checks.findings import Finding
from quantilax.checks.rules import Range
from quantilax.checks.rules import healthy as general
from quantilax.checks.watch import Watch
from quantilax.errors import ConfigError
from quantilax.reports import recommend
from quantilax.runs import load_section, provenance
from quantilax.runs.configs import read_yaml
from quantilax.runs.evaluations import Entry
from quantilax.signals import Signals
from quantilax.studies.definition import plain
from tests.studies import GOOD, STEPS, store
from tests.unit.test_diagnosis import HEALTHY, frame
from tests.unit.test_study_recommend import validated_by

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RISING = [(10.0, 100.0 + i, 300.0 + i, 480.0 + i) for i in range(20)]


@pytest.fixture
def band(tmp_path):
    return bands.of_study(store(tmp_path / "s", {"base": RISING}, seeds=20, first_seed=7000).path)


def entry(step, rows):
    """An evaluation of which only the rows of seeds are read."""
    nothing = np.zeros((len(rows), 1))
    return Entry(step, 0.0, rows, {}, nothing, nothing)


def entries(*returns, seeds=(0,), steps=STEPS):
    """Evaluations at the steps of the made-up studies, each with one return for all seeds or one for each."""
    found = []
    for step, values in zip(steps, returns, strict=False):
        by_seed = zip(seeds, np.broadcast_to(values, len(seeds)), strict=True)
        found.append(entry(step, [{"seed": seed, "env_step": step, "return_mean": x} for seed, x in by_seed]))
    return found


def told(watch, rows):
    """What is said after each evaluation."""
    return [watch(rows[: i + 1]) for i in range(len(rows))]


# The band


def test_a_band_holds_quantiles_over_the_seeds_at_each_evaluation(band):
    curves = np.array(RISING)
    assert band.env_step == list(STEPS)
    assert (band.first_seed, band.seeds, band.commit) == (7000, 20, "0123456789abcdef")
    assert band.low == curves.min(axis=0).tolist()  # the lowest of 20 is the 1 % quantile
    assert band.high == curves.max(axis=0).tolist()
    assert band.middle == np.quantile(curves, 0.5, axis=0, method="inverted_cdf").tolist()
    assert band.at(150) == (200.0, 209.0, 219.0)  # between evaluations
    assert band.section["env"] == "probe/corridor"
    assert [line.split(":")[0] for line in bands.lines(band)] == [
        " 10% (step 30)",
        " 20% (step 60)",
        " 50% (step 150)",
        "100% (step 300)",
        "no ranges of signals",
    ]


def test_a_run_that_broke_is_at_the_bottom(tmp_path):
    broken = store(tmp_path / "s", {"base": [*RISING[:9], (10.0, float("nan"), float("nan"), float("nan"))]}, seeds=10)
    band = bands.of_study(broken.path)
    assert band.low == [10.0, -np.inf, -np.inf, -np.inf]
    early = band._replace(low=[10.0, 100.0, -np.inf, -np.inf])  # what broke later widens nothing before
    assert told(Watch(early, "iqn", band.section), entries(10.0, 20.0))[1][1] is False
    bands.write(tmp_path / "x.yaml", "iqn", band)
    assert bands.read(tmp_path / "x.yaml", "iqn") == band


@pytest.mark.parametrize(
    ("curves", "variant", "words"),
    [
        ({"base": RISING[:9]}, None, "has 9 finished runs of variant 'base', and a band needs 10; run more seeds"),
        ({"base": RISING, "x": RISING}, None, "has several variants; choose one with --variant: base, x"),
        ({"base": RISING}, "y", "no variant 'y'; it has base"),
    ],
)
def test_what_gives_no_band_is_refused(tmp_path, curves, variant, words):
    with pytest.raises(ConfigError, match=words):
        bands.of_study(store(tmp_path / "s", curves, seeds=20).path, variant)


def test_a_band_is_kept_beside_its_config_file_with_those_of_other_sections(band, tmp_path):
    config = tmp_path / "tiny.yaml"
    assert bands.read(config, "iqn") is None
    path = bands.write(config, "iqn", band)
    bands.write(config, "other", band._replace(seeds=30))
    assert path == tmp_path / "tiny.bands.json"
    assert bands.read(config, "iqn") == band
    assert bands.read(config, "other").seeds == 30
    assert bands.read(config, "third") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "tiny.bands.json: cannot be read .*; make it again with quantilax band"),
        ('{"format": 2, "bands": {}}', "tiny.bands.json: has format 2, not 1; make it again with quantilax band"),
        ('{"format": 1, "bands": {"iqn": {}}}', "tiny.bands.json: cannot be read"),
        ("[]", "tiny.bands.json: cannot be read"),
    ],
)
def test_a_file_that_holds_no_bands_is_refused(tmp_path, text, words):
    (tmp_path / "tiny.bands.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        bands.read(tmp_path / "tiny.yaml", "iqn")


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.bands.json")), ids=lambda file: file.name)
def test_the_bands_that_are_shipped_are_those_of_the_sections_beside_them(file):
    config = file.with_name(file.name.replace(".bands.json", ".yaml"))
    there = json.loads(file.read_text())["bands"]
    assert set(there) <= set(read_yaml(config))
    for name in there:
        assert bands.read(config, name).changes(plain(load_section(config, name))) == {}, name


def test_recommend_writes_the_band_of_the_held_out_seeds_if_there_are_ten(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    found = store(tmp_path / "s", {"base": [GOOD] * 6}, seeds=6)
    validated_by(monkeypatch, {"base": GOOD})
    recommend.recommend(found, write=tmp_path / "x.yaml", seeds=9)
    assert bands.read(tmp_path / "x.yaml", "iqn") is None
    recommend.recommend(found, write=tmp_path / "x.yaml", seeds=12)
    written = bands.read(tmp_path / "x.yaml", "iqn")
    assert (written.first_seed, written.seeds, written.low) == (6, 12, list(GOOD))
    assert written.changes(plain(load_section(tmp_path / "x.yaml", "iqn"))) == {}


# Ranges of signals


@pytest.fixture
def measured(tmp_path) -> bands.Band:
    """Of ten seeds with signals, whose huber_scale rises from 0.1 to 1 in the first half of the run, less in later seeds."""
    made = store(tmp_path / "m", {"base": [GOOD] * 10}, seeds=10)
    for file in (made.path / "records").iterdir():
        file.unlink()
    for seed in range(10):
        rising = np.minimum(0.1 + 0.18 * np.arange(11), 1.0) * (1 - 0.01 * seed)
        rows = frame(seed=seed, huber_scale=rising, **HEALTHY).with_columns(env_step=pl.col("env_step") * 3 // 100)
        made.write(rows.with_columns(variant=pl.lit("base"), finite=True).rows(named=True))
    return bands.of_study(made.path)


def test_a_band_of_runs_with_signals_holds_the_ranges_of_medians_up_to_each_share(measured):
    assert (measured.figures.first_seed, measured.figures.seeds) == (0, 10)
    assert list(bands.lines(measured))[-1] == f"ranges of {len(measured.figures.ranges['1.0'])} figures of signals"
    assert list(measured.figures.ranges) == ["0.1", "0.2", "0.5", "1.0"]
    assert measured.figures.ranges["0.1"]["huber_scale"] == [
        0.2548,
        0.28,
    ]  # one evaluation, of the last and the first seed
    assert measured.figures.ranges["1.0"]["huber_scale"] == [0.91, 1.0]
    assert measured.figures.at(0.09) == {}
    assert measured.figures.at(0.15)["huber_scale"] == Range(0.2548, 0.28)
    assert measured.figures.at(1.0)["huber_scale"] == Range(0.91, 1.0)


def test_a_band_without_signals_has_no_figures(band):
    assert band.figures is None


def test_a_band_with_figures_is_kept_and_adds_them_to_the_curves_of_more_seeds(band, measured, tmp_path):
    config = tmp_path / "tiny.yaml"
    bands.write(config, "iqn", measured)
    assert bands.read(config, "iqn") == measured
    bands.write(config, "iqn", band)  # of 20 seeds, without signals
    assert bands.read(config, "iqn") == band._replace(figures=measured.figures)
    newer = measured._replace(figures=measured.figures._replace(commit="newer"))
    bands.write(config, "iqn", newer)
    assert bands.read(config, "iqn") == band._replace(figures=newer.figures)
    other = measured._replace(section={**measured.section, "gamma": 0.5})
    bands.write(config, "iqn", other)
    assert bands.read(config, "iqn") == other


def test_a_run_is_judged_by_the_nearest_section_with_figures(measured, tmp_path):
    config = tmp_path / "tiny.yaml"
    other = {**measured.section, "gamma": 0.5, "learning_rate": 0.1}
    bands.write(config, "far", measured._replace(section=other))
    bands.write(config, "near", measured)
    found = bands.healthy({**measured.section, "gamma": 0.9}, 60, config)
    assert (found.of, found.changed) == ("the 10 held-out seeds of near in tiny.yaml", {"gamma": 0.99})
    assert found.ranges == measured.figures.at(0.2)
    assert bands.healthy(measured.section, 20, config) is None  # too early
    assert bands.healthy({**measured.section, "env": "probe/bandit"}, 60, config) is None
    much = {"gamma": 0.9, "num_epochs": 2, "num_envs": 8, "kappa": 2.0, "batch_size": 32}
    assert bands.healthy({**measured.section, **much}, 60, config) is None
    assert bands.healthy({**measured.section, "total_timesteps": 600}, 60, config) is None  # schedules follow it
    assert bands.healthy(measured.section, 60) is None  # none that is shipped is like it


def test_a_run_below_its_band_is_judged_by_its_figures(measured):
    run = frame([0.0] * 11, huber_scale=1.0, update_ratio=3 * general()["update_ratio"].high, **HEALTHY)
    columns = run.select("seed", "env_step", "return_mean", "return_std", *Signals._fields)
    rows = [entry(row["env_step"] * 3 // 100, [row]) for row in columns.iter_rows(named=True)]
    section = {**measured.section, "learning_rate": 0.1}
    said = [one for one in told(Watch(measured, "iqn", section), rows) if one is not None]
    assert "; diagnose names learning_rate; changed: learning_rate=0.1 instead of " in said[-1][0]
    alone = [one for one in told(Watch(measured._replace(figures=None), "iqn", section), rows) if one is not None]
    assert "; diagnose names kappa; changed: learning_rate=0.1 instead of " in alone[-1][0]


# A run beside it


def test_a_run_inside_is_told_so_once_for_each_share_that_is_reached(band):
    watch = Watch(band, "iqn", band.section)
    # of 300 steps: an evaluation at 100 is beyond 10 and 20 %, one at 200 beyond 50 %
    first, second, third, last = told(watch, entries(10.0, 105.0, 310.0, 490.0))
    assert first is None
    assert second == ("33% of the budget: return 105, as expected; the 20 held-out seeds of iqn had 100 to 119", True)
    assert third == ("67% of the budget: return 310, as expected; the 20 held-out seeds of iqn had 300 to 319", True)
    assert last is None


def test_a_better_run_is_no_alarm_and_neither_is_one_that_is_hardly_below(band):
    # slack: 5 % of 499 - 10
    assert told(Watch(band, "iqn", band.section), entries(10.0, 500.0))[1][1]
    assert told(Watch(band, "iqn", band.section), entries(10.0, 76.0))[1][1]
    assert not told(Watch(band, "iqn", band.section), entries(10.0, 75.0))[1][1]


def test_a_run_below_is_told_with_its_seeds_and_the_fields_that_were_changed(band):
    section = {**band.section, "learning_rate": 0.1, "gamma": 0.5, "signals": True, "eval_freq": 7}
    large = Finding("warning", "learning_rate", "", "", "", {"learning_rate": 0.01})
    rows = entries(10.0, (10.0, 110.0, 12.0), seeds=(3, 4, 5))
    line, is_well = told(Watch(band, "iqn", section, [large]), rows)[1]
    assert not is_well
    assert line == (
        "33% of the budget: return 10 to 110, below the band (2 of 3 below: seeds 3, 5); the 20 held-out seeds of iqn had"
        f" 100 to 119; changed: learning_rate=0.1 instead of {band.section['learning_rate']}, gamma=0.5"
        f" instead of {band.section['gamma']}"
    )
    (line, _) = told(Watch(band, "iqn", band.section), entries(10.0, float("nan")))[1]
    assert line.endswith("; no field differs from the section")


def test_what_signals_name_is_told_and_its_field_comes_first(band):
    run = frame([10] * 11, update_ratio=0.1)
    columns = run.select("seed", "env_step", "return_mean", "return_std", *Signals._fields)
    rows = [entry(row["env_step"], [row]) for row in columns.iter_rows(named=True)]
    steps = [one.env_step for one in rows]
    wide = band._replace(env_step=steps, low=[100.0] * 11, middle=[200.0] * 11, high=[300.0] * 11)
    section = {**wide.section, "total_timesteps": steps[-1], "gamma": 0.5, "learning_rate": 0.1}
    said = [one for one in told(Watch(wide, "iqn", section), rows) if one is not None]
    assert "; diagnose names learning_rate; changed: learning_rate=0.1 instead of " in said[-1][0]
    assert ", gamma=0.5 instead of " in said[-1][0]


def test_another_environment_or_algorithm_has_no_changes_that_could_be_told(band):
    assert band.changes(band.section) == {}
    assert band.changes({**band.section, "env": "probe/bandit"}) is None
    assert band.changes({**band.section, "algorithm": "dqn"}) is None
    newer = {name: value for name, value in band.section.items() if name != "gamma"}
    assert band._replace(section=newer).changes(band.section) == {}


def test_beyond_the_bands_budget_nothing_is_said(band):
    watch = Watch(band, "iqn", {**band.section, "total_timesteps": 4_000})
    assert told(watch, entries(10.0, 10.0, steps=(0, 400))) == [None, None]


def test_the_evaluation_before_training_is_not_compared(band):
    said = told(Watch(band, "iqn", band.section), entries(10.0, 110.0, steps=(60, 100)))
    assert [one is None for one in said] == [True, False]
