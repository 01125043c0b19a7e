"""Print the tables of the README: the factorial of three factors, and single changes around the section.

python investigations/0006-factors/table.py
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from quantilax.studies.store import Store

SOLVED, DEEP = 475, 300
HERE = Path(__file__).parent
CELLS = {
    ("soft", "times 0.04", "average 0.9998"): "munchausen=true, normalize_rewards=false, weight_averaging=0.9998",
    ("soft", "times 0.04", "last weights"): "base",
    ("soft", "running moments", "average 0.9998"): "munchausen=true, weight_averaging=0.9998",
    ("soft", "running moments", "last weights"): "base",
    ("hard", "times 0.04", "average 0.9998"): "munchausen=false, normalize_rewards=false, weight_averaging=0.9998",
    ("hard", "times 0.04", "last weights"): "munchausen=false, normalize_rewards=false, weight_averaging=0",
    ("hard", "running moments", "average 0.9998"): "munchausen=false, weight_averaging=0.9998",
    ("hard", "running moments", "last weights"): "munchausen=false, weight_averaging=0",
}
"""The factorial's cells: in `factorial` those of a fixed factor, in `factorial-unit` those over running moments."""


class Told(NamedTuple):
    """Figures of a cell, as the tables have them; shares are of the evaluations after a seed's first of 475 or more."""

    seeds: str
    first: str
    for_good: str
    fell: str
    below: str
    deep: str
    lowest: str
    end: str


def told(records: pl.DataFrame) -> Told:
    """Figures of the runs of one cell."""
    first, for_good, ends, after = [], [], [], []
    for _, run in records.sort("env_step").group_by("seed"):
        returns, steps = run["return_mean"].to_numpy(), run["env_step"].to_numpy()
        solved, below = np.flatnonzero(returns >= SOLVED), np.flatnonzero(returns < SOLVED)
        first.append(steps[solved[0]] if len(solved) else math.inf)
        for_good.append(steps[below[-1] + 1] if below[-1] + 1 < len(steps) else math.inf)
        ends.append(returns[-1])
        after.append(returns[solved[0] :] if len(solved) else np.array([]))
    fell = sum((returns < SOLVED).any() for returns in after)
    pooled = np.concatenate(after) if sum(map(len, after)) else np.array([SOLVED])
    lowest = f"{pooled.min():.0f}" if pooled.min() < SOLVED else "none below"
    below, deep = (f"{np.mean(pooled < limit):.1%}".replace("%", " %") for limit in (SOLVED, DEEP))
    medians = ["never" if math.isinf(m) else f"{m:,.0f}" for m in map(np.median, (first, for_good))]
    return Told(str(len(ends)), *medians, f"{fell} of {len(ends)}", below, deep, lowest, f"{min(ends):.0f}")


def main() -> None:
    """Print both tables."""
    studies = {name: Store.open(HERE / name).records() for name in ("factors", "factorial", "factorial-unit")}
    for (targets, rewards, evaluated), cell in CELLS.items():
        records = studies["factorial" if rewards == "times 0.04" else "factorial-unit"]
        print(f"| {targets} | {rewards} | {evaluated} | {' | '.join(told(records.filter(cell=cell)))} |")
    print()
    factors = studies["factors"]
    for cell in factors["cell"].unique(maintain_order=True):
        print(f"| {cell} | {' | '.join(told(factors.filter(cell=cell)))} |")


if __name__ == "__main__":
    main()
