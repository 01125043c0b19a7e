"""Print the tables of the README: the factorial of three factors, and single changes around the section.

python investigations/0006-factors/table.py
"""

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.stats import mannwhitneyu

from quantilax.studies.store import Store

SOLVED, DEEP = 475, 300
HERE = Path(__file__).parent
VARIANTS = {
    ("soft", "times 0.04", "average 0.9998"): "munchausen=true, normalize_rewards=false, weight_averaging=0.9998",
    ("soft", "times 0.04", "last weights"): "base",
    ("soft", "running moments", "average 0.9998"): "munchausen=true, weight_averaging=0.9998",
    ("soft", "running moments", "last weights"): "base",
    ("hard", "times 0.04", "average 0.9998"): "munchausen=false, normalize_rewards=false, weight_averaging=0.9998",
    ("hard", "times 0.04", "last weights"): "munchausen=false, normalize_rewards=false, weight_averaging=0",
    ("hard", "running moments", "average 0.9998"): "munchausen=false, weight_averaging=0.9998",
    ("hard", "running moments", "last weights"): "munchausen=false, weight_averaging=0",
}
"""The factorial's variants: in `factorial` those of a fixed factor, in `factorial-unit` those over running moments."""


class Told(NamedTuple):
    """Figures of a variant, as the tables have them; shares are of the evaluations after a seed's first of 475 or more."""

    seeds: str
    first: str
    for_good: str
    fell: str
    below: str
    deep: str
    lowest: str
    end: str


def told(records: pl.DataFrame) -> Told:
    """Figures of the runs of one variant."""
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


def share_below(run: pl.DataFrame) -> float:
    """Share of a seed's evaluations below 475 from its first of 475 or more on."""
    returns = run.sort("env_step")["return_mean"].to_numpy()
    return float(np.mean(returns[np.argmax(returns >= SOLVED) :] < SOLVED)) if (returns >= SOLVED).any() else 1.0


def compare(variants: dict[tuple[str, ...], pl.DataFrame]) -> None:
    """Rank tests of the shares below 475 between variants that differ in one factor, adjusted by Holm for all of them."""
    shares = {name: [share_below(run) for _, run in records.group_by("seed")] for name, records in variants.items()}
    pairs = [
        (a, b) for a, b in itertools.combinations(shares, 2) if sum(x != y for x, y in zip(a, b, strict=True)) == 1
    ]
    found = sorted((float(mannwhitneyu(shares[a], shares[b]).pvalue), a, b) for a, b in pairs)
    adjusted = 0.0
    for i, (p, a, b) in enumerate(found):
        adjusted = max(adjusted, min(1.0, p * (len(found) - i)))
        means = " against ".join(f"{np.mean(shares[name]):.1%}" for name in (a, b))
        print(f"{', '.join(a)} / {', '.join(b)}: {means}, p = {p:.4f}, adjusted {adjusted:.3f}")


def main() -> None:
    """Print both tables, and the tests of the factorial."""
    studies = {name: Store.open(HERE / name).records() for name in ("factors", "factorial", "factorial-unit")}
    variants: dict[tuple[str, ...], pl.DataFrame] = {
        name: studies["factorial" if name[1] == "times 0.04" else "factorial-unit"].filter(variant=variant)
        for name, variant in VARIANTS.items()
    }
    for name, records in variants.items():
        print(f"| {' | '.join((*name, *told(records)))} |")
    print()
    compare(variants)
    print()
    factors = studies["factors"]
    for variant in factors["variant"].unique(maintain_order=True):
        print(f"| {variant} | {' | '.join(told(factors.filter(variant=variant)))} |")


if __name__ == "__main__":
    main()
