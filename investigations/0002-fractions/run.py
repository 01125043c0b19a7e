"""Train every cell of this study and write one row per evaluation into results.csv; cells that are there are left out.

python investigations/0002-fractions/run.py            # both groups, about half an hour on two cores
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
CONFIG = HERE.parents[1] / "configs" / "gymnax" / "cartpole.yaml"
BASE = {"tau_sampling": "uniform", "share_tau": False, "acting_tau_sampling": "uniform"}
FRACTIONS: dict[str, dict[str, object]] = {
    "own, uniform": {},
    "shared, uniform": {"share_tau": True},
    "own, stratified": {"tau_sampling": "stratified"},
    "shared, stratified": {"share_tau": True, "tau_sampling": "stratified"},
    "shared, stratified, acting at midpoints": {
        "share_tau": True,
        "tau_sampling": "stratified",
        "acting_tau_sampling": "midpoints",
    },
}
CHEAP = FRACTIONS["shared, stratified, acting at midpoints"]
STABILITY: dict[str, dict[str, object]] = {
    "double": {**CHEAP, "double": True},
    "layer_norm": {**CHEAP, "layer_norm": True},
    "N = 16": {**CHEAP, "num_tau_samples": 16, "num_tau_prime_samples": 16},
    "rate 5e-4": {**CHEAP, "learning_rate": 5e-4},
    "soft target 0.98": {**CHEAP, "polyak": 0.98, "target_update_freq": 1},
    "target every 64": {**CHEAP, "target_update_freq": 64},
    "gradient clipped at 1": {**CHEAP, "max_grad_norm": 1.0},
    "eps_end 0.1": {**CHEAP, "eps_end": 0.1},
    "buffer 10,000": {**CHEAP, "buffer_size": 10_000},
    "gamma 0.98": {**CHEAP, "gamma": 0.98},
    "widths 128": {**CHEAP, "torso_sizes": [128, 128], "head_sizes": [128]},
}


def train(settings: dict[str, object], first: int, seeds: int) -> list[dict[str, str]]:
    """Run the command line, and return the rows of evaluations.csv."""
    overrides = [f"{field}={str(value).lower()}" for field, value in {**BASE, **settings}.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", str(CONFIG), "iqn", *overrides, "--seed", str(first), "--seeds", str(seeds)]
        subprocess.run(
            [sys.executable, "-m", "quantilax.cli", *command, "--out", f"{folder}/run", "--quiet"], check=True
        )
        with open(f"{folder}/run/evaluations.csv", newline="") as file:
            return list(csv.DictReader(file))


def main() -> None:
    """Train what is not there yet."""
    done = set()
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            done = {row["cell"] for row in csv.DictReader(file)}
    cells = [(c, s, 200, 20) for c, s in FRACTIONS.items()] + [(c, s, 300, 10) for c, s in STABILITY.items()]
    for cell, settings, first, seeds in cells:
        if cell in done:
            continue
        rows = train(settings, first, seeds)
        is_new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["cell", "seed", "env_step", "return_mean"])
            for row in rows:
                writer.writerow([cell, row["seed"], row["env_step"], f"{float(row['return_mean']):.2f}"])
        print(f"{cell}: done", flush=True)


if __name__ == "__main__":
    main()
