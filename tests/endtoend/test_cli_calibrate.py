"""`quantilax calibrate`: what it prints and writes, and what it refuses."""

import json

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import quantilax
from quantilax.errors import ConfigError
from quantilax.runs import checkpoints

COMMON = ("--episodes", "200", "--states", "2", "--no-cache")


def test_a_run_is_calibrated_corrected_and_loaded(call, tmp_path):
    assert call("train", "tiny.yaml", "iqn", "env=probe/bimodal", "--seeds", "2", "--out", "run", "-q").status == 0
    ended = call("calibrate", "run", *COMMON, "--recalibrate", "--csv", "table.csv")
    assert (ended.status, ended.lines) == (0, [])
    assert "converted: gamma=0.99" in ended.stdout
    assert "not converted: kappa=1" in ended.stdout
    assert "wrote run/checkpoints/000000000300.recalibration.json" in ended.stdout

    evaluated = call("evaluate", "run", "--episodes", "20", "--no-cache")
    assert "mean return of the worst episodes (CVaR)\nseed  worst 5%" in evaluated.stdout
    told = json.loads(call("evaluate", "run", "--episodes", "20", "--no-cache", "--json").stdout)["seeds"]["all"][
        "return"
    ]
    assert told["cvar"]["0.05"] <= told["cvar"]["0.25"] <= told["mean"]
    assert len(told["cvar_interval"]["0.05"]) == 2

    table = pl.read_csv(tmp_path / "table.csv", infer_schema_length=None)
    assert set(table["seed"]) == {"0", "1", "all"}
    assert set(table["distribution"]) == {"raw", "recalibrated"}
    assert set(table["states"]) == {"first", "all"}  # an episode has one step
    coverage = table.filter((pl.col("quantity") == "coverage") & (pl.col("seed") == "0") & (pl.col("states") == "all"))
    assert coverage["at"].to_list() == [0.5, 0.8, 0.95] * 2

    algo, state, _ = quantilax.load("run", seed=1)
    taus, obs = jnp.linspace(0, 1, 11), jnp.ones(1)
    corrected = algo.quantiles(state, obs, taus, calibrated=True)
    expected = algo.recalibration.quantiles(lambda levels: algo.quantiles(state, obs, levels), taus)
    np.testing.assert_allclose(corrected, expected, rtol=1e-5)
    assert not np.allclose(corrected, algo.quantiles(state, obs, taus), atol=0.02)  # an untrained head is far off

    told = json.loads(call("calibrate", "run", *COMMON, "--json").stdout)
    assert told["left_out"] == 0
    assert {"within", "between"} == set(told["spread"])
    assert {row["quantity"] for row in told["rows"]} == {"coverage", "pit", "below", "crps", "beyond", "reference_crps"}

    file = tmp_path / "run" / "checkpoints" / "000000000300.recalibration.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(ConfigError, match=r"000000000300\.recalibration.json: is damaged; delete it, or fit it again"):
        quantilax.load("run")
    path = checkpoints.path_of(file.parent, 300)
    checkpoint = checkpoints.read(path)
    checkpoints.save(file.parent, 300, checkpoints.Packed(checkpoint.arrays), checkpoint.facts)
    assert not file.exists()  # it does not outlive the weights that it was fitted to


def test_a_run_without_quantiles_is_refused_in_one_line(call):
    call("train", "tiny_pqn.yaml", "--out", "means", "-q")
    ended = call("calibrate", "means", *COMMON)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "head: scalar learns expected values, no quantiles" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--levels", "0.5,1"], "levels: expected levels of coverage above 0 and at most 0.99, got 1"),
        (["--levels", "many"], "--levels: expected numbers such as 0.5,0.8,0.95, got 'many'"),
        (["--episodes", "20"], "episodes: 20 are too few for coverage at 0.95"),
        (["--checkpoint", "first"], "--checkpoint: expected last, best or a number of environment steps, got 'first'"),
        ([], "nowhere: no such run directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(call, arguments, line):
    ended = call("calibrate", "nowhere", *arguments)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert line in ended.stderr
