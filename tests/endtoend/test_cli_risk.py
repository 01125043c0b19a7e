"""`quantilax risk`: what it writes and prints, and what it refuses."""

import csv
from pathlib import Path

from tests.endtoend.conftest import Call, tree

TINY = """
shop:
  algorithm: qrdqn
  env: risk/inventory
  risk_objective: static_cvar
  return_min: -16.0
  return_max: 31.0
  total_timesteps: 240
  eval_freq: 120
  eval_episodes: 4
  num_envs: 4
  buffer_size: 240
  fill_buffer: 80
  num_quantiles: 5
  torso_sizes: [8]
  head_sizes: [8]
"""


def test_risk_writes_a_picture_and_a_table_and_refuses_in_one_line(call: Call, tmp_path: Path):
    (tmp_path / "shop.yaml").write_text(TINY)
    assert call("train", "shop.yaml", "--out", "run", "-q").status == 0
    done = call("risk", "run", "--levels", "2", "--episodes", "10", "--out", "shop.png")
    assert done.status == 0, done
    assert "50%" in done.stdout
    assert "100%" in done.stdout
    rows = list(csv.DictReader((tmp_path / "shop.csv").read_text().splitlines()))
    assert [(row["seed"], row["level"]) for row in rows] == [("0", "0.5"), ("0", "1.0")]
    assert all(float(row["mean_low"]) <= float(row["mean"]) <= float(row["mean_high"]) for row in rows)
    assert (tmp_path / "shop.png").read_bytes().startswith(b"\x89PNG")
    before = tree(tmp_path)
    for arguments, words in (
        (("risk", "run", "--out", "shop.txt"), "--out: shop.txt: expected a name that ends with"),
        (("risk", "nowhere"), "nowhere: no such run directory"),
        (("risk", "run", "--checkpoint", "first"), "--checkpoint: expected last, best or a number"),
        (("risk", "run", "--levels", "0"), "Invalid value for '--levels'"),
    ):
        refused = call(*arguments)
        assert refused.status == 2
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert tree(tmp_path) == before
