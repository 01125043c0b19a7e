"""`quantilax diagnose` from outside: a run, a study, and what it refuses."""

import csv
import json
from pathlib import Path

import polars as pl
import pytest

from quantilax import ALGORITHMS
from quantilax.signals import Signals
from tests.endtoend.conftest import TINY_DQN, Call, tree
from tests.endtoend.processes import process

STUDY = """\
base: {config: tiny.yaml, section: iqn}
variants: {named: {clipped: {max_grad_norm: 1e-12}}}
seeds: 2
"""


@pytest.mark.validation
def test_a_run_with_a_fault_is_diagnosed_by_a_process_of_its_own(call: Call, tmp_path, tmp_path_factory):
    trained = call("train", "tiny.yaml", "signals=true", "max_grad_norm=1e-12", "--seeds", "2", "--out", "r", "-q")
    assert (trained.status, trained.lines) == (0, [])
    with open("r/evaluations.csv", newline="") as file:
        columns = next(csv.reader(file))
    assert set(Signals._fields) < set(columns)
    assert columns[-1] == "seconds"
    assert set(Signals._fields) < set(pl.read_parquet("r/evaluations.parquet").columns)
    assert set(Signals._fields) < set(json.loads(Path("r/evaluations.jsonl").read_text().splitlines()[0])["all"])

    before = tree(tmp_path)
    ended = process(tmp_path, tmp_path_factory.mktemp("cache"), "diagnose", "r")
    assert (ended.status, ended.lines) == (0, [])
    assert "seed 0: " in ended.stdout
    assert "1. clipping: clipping removes almost all of the gradients" in ended.stdout
    assert "in healthy runs" in ended.stdout
    assert "read from the config: max_grad_norm=1e-12" in ended.stdout
    assert "in total: clipping named first in 2 of 2 seeds" in ended.stdout
    assert tree(tmp_path) == before

    found = json.loads(call("diagnose", "r", "--json").stdout)
    assert [one["seed"] for one in found] == [0, 1]
    assert found[0]["causes"][0]["cause"] == "clipping"
    assert found[0]["causes"][0]["change"]["max_grad_norm"] > 1e-12


def test_a_study_is_diagnosed_variant_by_variant(call: Call, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY.replace("iqn}", "iqn, overrides: {signals: true}}"))
    assert call("study", "study.yaml", "--out", "all/s", "--quiet", "--jobs", "1").status == 0
    ended = call("diagnose", "all/s")
    assert ended.status == 0
    base, clipped = ended.stdout.split("variant clipped")
    assert base.startswith("variant base")
    assert "clipping" not in base
    assert "in total: clipping named first in 2 of 2 seeds" in clipped
    assert set(json.loads(call("diagnose", "all/s", "--json").stdout)) == {"base", "clipped"}

    assert call("study", "all", "--compact").status == 0
    assert not (tmp_path / "all" / "s").exists()
    assert call("diagnose", "all/s").stdout == ended.stdout


def test_a_run_of_an_actor_is_diagnosed_without_ranges_of_q_learning(call: Call, tmp_path, monkeypatch):
    ppo = ["total_timesteps=64", "eval_freq=16", "num_envs=2", "num_steps=8", "num_minibatches=2", "eval_episodes=2"]
    (tmp_path / "ppo.yaml").write_text("ppo:\n  env: probe/corridor\n")
    assert call("train", "ppo.yaml", *ppo, "signals=true", "--out", "actor", "-q").status == 0
    ended = call("diagnose", "actor")
    assert (ended.status, ended.lines) == (0, [])
    assert "figures without ranges, which were measured in Q-learning only: return_size" in ended.stdout
    assert not set(json.loads(call("diagnose", "actor", "--json").stdout)[0]["unranged"]) & {"return_range"}


def test_of_a_run_without_signals_what_curves_and_the_config_say_is_said(call: Call):
    assert call("train", "tiny.yaml", "learning_rate=0.1", "--out", "without", "-q").status == 0
    ended = call("diagnose", "without")
    assert (ended.status, ended.lines) == (0, [])
    assert ". learning_rate: learning_rate=0.1 is above 0.01" in ended.stdout
    assert "signals were not measured, so sparse_reward is the only cause that was judged by figures" in ended.stdout
    assert "nan" not in ended.stdout
    assert "every figure that the rules read" not in ended.stdout
    (told,) = json.loads(call("diagnose", "without", "--json").stdout)
    assert "learning_rate" in [cause["cause"] for cause in told["causes"]]


def test_a_run_is_judged_by_the_band_of_its_section_in_a_config_file_of_ones_own(call: Call, tmp_path):
    (tmp_path / "dqn.yaml").write_text(TINY_DQN)
    measured = "base: {config: dqn.yaml, section: dqn, overrides: {signals: true, eval_freq: 60}}\nseeds: 10\n"
    (tmp_path / "m.yaml").write_text(measured)
    assert call("study", "m.yaml", "--out", "m", "--quiet").status == 0
    written = call("band", "m", "--write", "dqn.yaml")
    assert (written.status, written.lines) == (0, [])
    assert "figures of signals" in written.stdout
    slow = ("signals=true", "eval_freq=60", "learning_rate=1e-6", "--seed", "20")
    assert call("train", "dqn.yaml", *slow, "--out", "slow", "--quiet").status == 0
    ended = call("diagnose", "slow", "--band", "dqn.yaml")
    assert (ended.status, ended.lines) == (0, [])
    assert "judged by the ranges of the 10 held-out seeds of dqn in dqn.yaml" in ended.stdout
    assert "  1. small_learning_rate: gradient steps change the weights too little" in ended.stdout
    assert f"     try: learning_rate={ALGORITHMS['dqn'].config().learning_rate}\n" in ended.stdout
    assert "judged by" not in call("diagnose", "slow").stdout
    refused = call("diagnose", "slow", "--band", "tiny_pqn.yaml")
    assert (refused.status, refused.stdout, len(refused.lines)) == (2, "", 1)
    assert "tiny_pqn.bands.json: has no ranges of signals for this run" in refused.lines[0]


def test_what_cannot_be_diagnosed_is_one_line_and_status_2(call: Call, tmp_path):
    assert call("train", "tiny.yaml", "eval_freq=300", "--out", "short", "-q").status == 0
    (tmp_path / "empty").mkdir()
    for path, message in {
        "short": "short: has 2 evaluations, but a diagnosis needs 4 or more; lower eval_freq, or wait",
        "empty": "empty: is not a run directory",
        "nowhere": "nowhere: no such run directory",
    }.items():
        ended = call("diagnose", path)
        assert (ended.status, ended.stdout, len(ended.lines)) == (2, "", 1)
        assert message in ended.lines[0]
