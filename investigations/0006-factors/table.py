"""Print the table of single changes around the section, of `factors`.

python investigations/0006-factors/table.py
"""

import math
from pathlib import Path

import numpy as np

from quantilax.studies.store import Store

SOLVED, DEEP = 475, 300


def main() -> None:
    """Shares are of the evaluations after a seed's first of 475 or more."""
    records = Store.open(Path(__file__).parent / "factors").records().sort("env_step")
    for cell in records["cell"].unique(maintain_order=True):
        first, for_good, ends, after = [], [], [], []
        for _, run in records.filter(records["cell"] == cell).group_by("seed"):
            returns, steps = run["return_mean"].to_numpy(), run["env_step"].to_numpy()
            solved, below = np.flatnonzero(returns >= SOLVED), np.flatnonzero(returns < SOLVED)
            first.append(steps[solved[0]] if len(solved) else math.inf)
            for_good.append(steps[below[-1] + 1] if below[-1] + 1 < len(steps) else math.inf)
            ends.append(returns[-1])
            after.append(returns[solved[0] :] if len(solved) else np.array([]))
        fell = sum((returns < SOLVED).any() for returns in after)
        pooled = np.concatenate(after) if sum(map(len, after)) else np.array([SOLVED])
        lowest = f"{pooled.min():.0f}" if pooled.min() < SOLVED else "none below"
        shares = [f"{np.mean(pooled < limit):.1%}".replace("%", " %") for limit in (SOLVED, DEEP)]
        medians = ["never" if math.isinf(m) else f"{m:,.0f}" for m in map(np.median, (first, for_good))]
        row = [cell, str(len(ends)), *medians, f"{fell} of {len(ends)}", *shares, lowest, f"{min(ends):.0f}"]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
