"""`quantilax train`, from a YAML file to the files of a run, as real processes."""

import csv
import json
import math
import re
import shlex
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml

from quantilax import pytree, runs
from quantilax.runs import checkpoints
from tests.endtoend.conftest import Call
from tests.studies import store

COLUMNS = [
    *("seed", "env_step", "return_mean", "return_std", "return_min", "length_mean"),
    *(
        "loss",
        "gradient_norm",
        "q",
        "td_error",
        "epsilon",
        "actor_loss",
        "entropy",
        "temperature",
        "approx_kl",
        "clip_fraction",
        "replay_fill",
        "target_distance",
        "seconds",
    ),
]
PROJECT = Path(__file__).resolve().parents[2]


def evaluations(directory: Path) -> list[dict[str, str]]:
    with (directory / "evaluations.csv").open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def checkpoint(directory: Path) -> dict[str, np.ndarray]:
    """Arrays of a run's last checkpoint."""
    return checkpoints.find(directory / "checkpoints").arrays


def params(directory: Path) -> dict[str, np.ndarray]:
    return {name: array for name, array in checkpoint(directory).items() if name.startswith("state/params/")}


def test_a_run_ends_with_status_0_and_leaves_exactly_its_files(session):
    assert (session.iqn.status, session.pqn.status) == (0, 0), session.iqn.stderr + session.pqn.stderr
    for name in ("iqn", "pqn", "again"):
        assert {p.name for p in (session.root / name).iterdir()} == {
            "checkpoints",
            "config.yaml",
            "evaluations.csv",
            "evaluations.jsonl",
            "evaluations.parquet",
            "learning_curve.png",
            "run.json",
        }


def test_evaluations_have_a_row_per_seed_and_evaluation_at_exact_steps(session):
    rows = evaluations(session.root / "iqn")
    # Warm-up: fill_buffer = 40 steps; then the multiples of eval_freq = 100 up to total_timesteps = 300.
    steps = [40, 100, 200, 300]
    assert [(int(r["env_step"]), int(r["seed"])) for r in rows] == [(t, seed) for t in steps for seed in (0, 1)]
    assert runs.load_section(session.root / "iqn" / "config.yaml").create().evaluation_steps == tuple(steps)
    # PQN has no warm-up: 0, then every eval_freq = 128 steps up to 256.
    rows = evaluations(session.root / "pqn")
    assert [(int(r["env_step"]), int(r["seed"])) for r in rows] == [(0, 7), (128, 7), (256, 7)]


def test_figures_of_evaluations_are_possible_in_the_corridor(session):
    for row in evaluations(session.root / "iqn") + evaluations(session.root / "pqn"):
        mean, std, least = (float(row[name]) for name in ("return_mean", "return_std", "return_min"))
        # Four episodes return 0 or 1 each: a mean of n/4, and the std of a coin of that mean.
        assert mean in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert std == pytest.approx(math.sqrt(mean * (1 - mean)), abs=1e-5)
        assert least == (1.0 if mean == 1 else 0.0)
        # Six cells take six steps at least, and an episode is cut off after 24.
        assert 6 <= float(row["length_mean"]) <= 24
        assert (float(row["length_mean"]) == 24) <= (mean == 0)


def test_seconds_grow_and_leave_out_compiling(session):
    rows = evaluations(session.root / "iqn")
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    facts = json.loads((session.root / "iqn" / "run.json").read_text())
    assert seconds[-1] == pytest.approx(facts["seconds"], abs=2e-3)
    assert facts["compile_seconds"] > 0


def test_config_yaml_holds_every_field_resolved(session):
    for name, overrides in (("iqn", {"learning_rate": 1e-3}), ("pqn", {"layer_norm": False})):
        source = session.root / ("tiny.yaml" if name == "iqn" else "tiny_pqn.yaml")
        section = yaml.safe_load((session.root / name / "config.yaml").read_text())
        assert list(section) == [name]
        fields = section[name]
        assert (fields.pop("algorithm"), fields.pop("env")) == (name, "probe/corridor")
        asked = runs.load_section(source, name, overrides)
        config = pytree.from_dict(asked.algorithm.config, asked.hyperparameters)
        assert fields == pytree.to_dict(config)
        assert pytree.from_dict(asked.algorithm.config, fields) == config


def test_a_run_of_its_own_config_yaml_gives_the_same_evaluations(session):
    assert session.again.status == 0, session.again.stderr
    first, second = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in evaluations(session.root / name)]
        for name in ("iqn", "again")
    )
    assert first == second
    texts = [(session.root / name / "config.yaml").read_bytes() for name in ("iqn", "again")]
    assert texts[0] == texts[1]
    first, second = checkpoint(session.root / "iqn"), checkpoint(session.root / "again")
    assert list(first) == list(second)
    for name in first.keys() - {"history/seconds"}:
        np.testing.assert_array_equal(first[name], second[name])


def test_the_learning_curve_is_a_small_png_with_something_drawn(session):
    for name in ("iqn", "pqn"):
        file = session.root / name / "learning_curve.png"
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert file.stat().st_size < 200_000
        pixels = matplotlib.image.imread(file)
        assert min(pixels.shape[:2]) >= 200
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_parameters_are_finite_with_leading_axis_seeds(session):
    for name, seeds in (("iqn", 2), ("pqn", 1)):
        parameters = params(session.root / name)
        assert any(key.startswith("state/params/psi/") for key in parameters)
        for key, array in parameters.items():
            assert array.shape[:1] == (seeds,), key
            assert np.isfinite(array).all(), key
    kernels = [array for key, array in parameters.items() if "kernel" in key]
    assert {kernel.shape for kernel in kernels} == {(1, 6, 8), (1, 8, 2)}  # 6 cells, 8 units, 2 actions


def test_seeds_of_one_run_differ(session):
    kernels = [array for key, array in params(session.root / "iqn").items() if "kernel" in key]
    assert kernels
    assert all((kernel[0] != kernel[1]).any() for kernel in kernels)


def test_run_json_holds_what_is_needed_to_get_the_run_again(session):
    for ended, name, seeds in ((session.iqn, "iqn", [0, 1]), (session.pqn, "pqn", [7])):
        facts = json.loads((session.root / name / "run.json").read_text())
        assert facts["status"] == "finished"
        assert facts["seeds"] == seeds
        (start,) = facts["starts"]
        assert start["from_env_step"] == 0
        assert shlex.split(start["command"])[1:] == list(ended.arguments)
        assert {"quantilax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy"} <= set(start["versions"])
        assert start["versions"]["numpy"] == np.__version__
        if (PROJECT / ".git").exists():
            assert re.fullmatch(r"[0-9a-f]{40}\+?", start["commit"])
        else:
            assert start["commit"] is None


def test_the_command_in_run_json_begins_with_the_command_that_users_type(session):
    facts = json.loads((session.root / "iqn" / "run.json").read_text())
    assert shlex.split(facts["starts"][0]["command"])[0] == "quantilax"  # not cli.py, which no shell finds


def test_the_last_line_says_return_seconds_and_where_the_run_lies(session):
    for ended, name, seeds in ((session.iqn, "iqn", "2 seeds"), (session.pqn, "pqn", "1 seed")):
        (line,) = ended.stdout.splitlines()
        found = re.fullmatch(
            r"final mean return (-?[\d.]+) over (\d+ seeds?), ([\d.]+) s \(\+ ([\d.]+) s compiling\), in (\S+)", line
        )
        assert found, line
        assert found[2] == seeds
        assert session.root / found[5] == session.root / name
        last = [float(r["return_mean"]) for r in evaluations(session.root / name)][-int(seeds[0]) :]
        assert float(found[1]) == pytest.approx(np.mean(last), abs=0.051)
        facts = json.loads((session.root / name / "run.json").read_text())
        assert float(found[3]) == pytest.approx(facts["seconds"], abs=0.051)
        assert float(found[4]) == pytest.approx(facts["compile_seconds"], abs=0.051)


def test_progress_goes_to_stderr_with_compiling_apart_from_training(session):
    compiling, compiled, first, *_, last = session.iqn.lines
    time = r"\d\d:\d\d:\d\d "
    assert re.fullmatch(time + "compiling", compiling)
    assert re.fullmatch(time + r"compiled in [\d.]+ s \([\d.]+ s of it tracing\)", compiled)
    # Before training there is nothing to measure a speed by.
    assert re.match(time + r"step 40 of 300 · return [\d.]+ \(", first), first
    assert re.match(time + r"step 300 of 300 · [\d,]+ steps/s · 0 s left · return [\d.]+ \(", last), last


def test_a_misleading_setting_gives_one_warning_and_training_goes_on_quietly(session):
    (line,) = session.pqn.lines
    assert line.startswith("warning: tiny_pqn.yaml: pqn: layer_norm=false: ")
    assert line.endswith("set it to true")


def test_a_run_again_and_another_learning_rate_compile_nothing_new(session):
    assert len(session.compiled) > 2
    now = {p.name for p in (session.cache / "quantilax" / "xla").glob("*-cache")}
    assert now == session.compiled


def test_a_loss_that_is_not_finite_ends_the_run_with_one_error_line(session):
    assert session.diverging.status == 2
    assert session.diverging.stdout == ""
    warning, line = session.diverging.lines
    assert "learning_rate=1e+30 is above 0.01" in warning
    assert re.match(r"error: the loss is (nan|-?inf) at environment step \d+ \(seed 0, 1\); ", line), line
    assert "learning_rate" in line
    assert line.endswith("diverging")  # where the run lies


def test_a_failed_run_keeps_what_was_written(session):
    directory = session.root / "diverging"
    rows = evaluations(directory)
    assert [int(row["seed"]) for row in rows] == [0, 1] * (len(rows) // 2)
    assert int(rows[0]["env_step"]) == 40
    assert len(rows) >= 4  # before training, and the evaluation after the segment that failed
    config = yaml.safe_load((directory / "config.yaml").read_text())
    assert config["iqn"]["learning_rate"] == 1e30
    facts = json.loads((directory / "run.json").read_text())
    assert facts["status"].startswith("failed")
    assert facts["seeds"] == [0, 1]
    assert checkpoints.steps(directory / "checkpoints") == [40]
    assert all(np.isfinite(array).all() for array in params(directory).values())


def test_a_run_into_the_directory_of_another_is_refused_and_leaves_it_untouched(session):
    assert session.into_iqn.status == 2
    assert session.into_iqn.stdout == ""
    (line,) = session.into_iqn.lines
    assert line == "error: --out: iqn is not empty, and nothing is overwritten; choose another directory"
    assert {k: v for k, v in session.after.items() if k in session.before} == session.before


def test_a_misspelt_field_is_refused_by_the_real_process(session):
    assert session.misspelt.status == 2
    assert session.misspelt.stdout == ""
    assert session.misspelt.stderr == (
        "error: command line: unknown field 'learning_rat'; did you mean 'learning_rate'?\n"
    )


def test_refusals_leave_nothing_on_disk(session):
    new = {Path(name).parts[0] for name in session.after if name not in session.before}
    assert new == {"again", "diverging"}


def test_a_run_is_compared_with_the_band_beside_its_config(call: Call, tmp_path):
    impossible = {"base": [(0.0, 2.0 + i / 100, 3.0, 3.0) for i in range(10)]}  # returns of the corridor are 1 at most
    store(tmp_path / "s", impossible, seeds=10, first_seed=50)
    ended = call("band", "s", "--write", "tiny.yaml")
    assert (ended.status, ended.lines) == (0, [])
    assert ended.stdout.splitlines()[-3:] == [
        "100% (step 300): return 3 to 3, median 3",
        "no ranges of signals: they need signals: true",
        "written: band of section iqn in tiny.bands.json",
    ]
    ended = call("train", "tiny.yaml", "learning_rate=1e-4", "--out", "below", "-q")
    assert ended.status == 0
    first, second = (line for line in ended.lines if "of the budget" in line)
    assert first.startswith("warning: 33% of the budget: return ")
    assert (
        "below the band; the 10 held-out seeds of iqn had 2 to 2.09; changed: learning_rate=0.0001 instead of 0.001"
        in first
    )
    assert second.startswith("warning: 67% of the budget")
    ended = call("train", "tiny.yaml", "--out", "without", "-q", "--no-band")
    assert (ended.status, ended.lines) == (0, [])

    assert call("band", "s", "--write", "tiny.yaml", "--section", "iqm").lines == [
        "error: tiny.yaml: no section 'iqm'; did you mean 'iqn'?; choose one with --section"
    ]
    (tmp_path / "tiny.bands.json").write_text('{"format": 9}')
    refused = call("train", "tiny.yaml", "--out", "refused")
    assert (refused.status, refused.lines) == (
        2,
        ["error: tiny.bands.json: has format 9, not 1; make it again with quantilax band, or train with --no-band"],
    )
    assert not (tmp_path / "refused").exists()
