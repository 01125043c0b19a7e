"""Print the table of this study from results.csv: medians, counts, and means with percentile-bootstrap intervals over seeds.

python investigations/0002-fractions/analyse.py
"""

import csv
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

SOLVED, BUDGET = 475.0, 100_000


def main() -> None:
    """Print one row per cell."""
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    with (Path(__file__).parent / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault(row["cell"], {}).setdefault(int(row["seed"]), [])
            curve.append((int(row["env_step"]), float(row["return_mean"])))

    print(
        "| cell | seeds | first at 475, median step | solved for good, median step | fell below 475 after it"
        " | end below 475 | mean over the curve [95 %] | mean at the end [95 %] |\n|" + "---|" * 8
    )
    for cell, seeds in curves.items():
        first, lasting, fell, final, area = [], [], 0, [], []
        for curve in map(sorted, seeds.values()):
            steps, returns = (np.array(x) for x in zip(*curve, strict=True))
            solved = returns >= SOLVED
            first.append(steps[solved.argmax()] if solved.any() else BUDGET)
            tail = len(solved) - np.argmin(solved[::-1]) if not solved.all() else 0  # rows up to the last one below
            lasting.append(steps[tail] if tail < len(steps) else BUDGET)
            fell += not solved[solved.argmax() :].all() and bool(solved.any())
            final.append(returns[-1])
            area.append(returns.mean())

        def interval(values: list[float]) -> str:
            ends = bootstrap((values,), np.mean, n_resamples=10_000, rng=0, method="percentile").confidence_interval
            return f"{np.mean(values):.0f} [{ends.low:.0f}, {ends.high:.0f}]"

        ended = sum(x < SOLVED for x in final)
        print(
            f"| {cell} | {len(seeds)} | {np.median(first):,.0f} | {np.median(lasting):,.0f} | {fell} | {ended}"
            f" | {interval(area)} | {interval(final)} |"
        )


if __name__ == "__main__":
    main()
