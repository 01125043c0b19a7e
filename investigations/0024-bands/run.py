"""Count how many healthy runs the band of their section calls low.

python investigations/0024-bands/run.py
"""

from pathlib import Path

import numpy as np

from quantilax.checks import bands
from quantilax.checks.watch import Watch
from quantilax.runs.evaluations import Entry
from quantilax.studies.store import Store

ROOT = Path(__file__).parents[2]
PAIRS = (
    ("cartpole", "iqn", "0005-solved/iqn-6/validation"),
    ("cartpole", "pqn", "0005-solved/pqn/validation"),
    ("cartpole", "pqn", "0005-solved/pqn"),
    ("acrobot", "iqn", "0007-three-tasks/acrobot-section/validation"),
    ("mountain_car", "iqn", "0007-three-tasks/mountain-car-section/validation"),
)
"""Sections, and studies of the same settings with other seeds than those that made the band."""


def main() -> None:
    """Print the counts."""
    for config, section, study in PAIRS:
        band = bands.read(ROOT / "configs" / "gymnax" / f"{config}.yaml", section)
        runs = Store.open(ROOT / "investigations" / study).records().filter(variant="base")
        called = {0.2: 0, 0.5: 0}
        seeds = runs.partition_by("seed")
        for run in seeds:
            watch, entries, low = Watch(band, section, band.section), [], []
            for row in run.sort("env_step").iter_rows(named=True):
                row = {name: row[name] for name in ("seed", "env_step", "return_mean")}
                entries.append(Entry(row["env_step"], 0.0, [row], {}, np.zeros((1, 1)), np.zeros((1, 1))))
                said = watch(entries)
                if said is not None and not said[1]:
                    low.append(row["env_step"] / watch.total)
            for share in called:
                called[share] += any(at < share + 0.05 for at in low)
        counts = ", ".join(f"{n} by {share:.0%}" for share, n in called.items())
        print(f"{config} {section}, {study}: of {len(seeds)} runs {counts}")


if __name__ == "__main__":
    main()
