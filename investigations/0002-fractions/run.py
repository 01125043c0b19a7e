"""Train every variant of this study and write a row per evaluation into results.csv; variants that are there are left out.

python investigations/0002-fractions/run.py            # some 20 minutes on two idle cores
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
            done = {row["variant"] for row in csv.DictReader(file)}
    for variant, settings in FRACTIONS.items():
        if variant in done:
            continue
        rows = train(settings, first=200, seeds=20)
        is_new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["variant", "seed", "env_step", "return_mean"])
            for row in rows:
                writer.writerow([variant, row["seed"], row["env_step"], f"{float(row['return_mean']):.2f}"])
        print(f"{variant}: done", flush=True)


if __name__ == "__main__":
    main()
