"""Print the table of this study from results.csv: medians, counts, and means with bootstrap intervals over seeds.

python investigations/0002-fractions/analyse.py
"""

from pathlib import Path

import numpy as np
import polars as pl

from quantilax.statistics import interval
from quantilax.studies.tables import outcomes

SOLVED, BUDGET = 475.0, 100_000


def main() -> None:
    """Print one row per variant."""
    records = pl.read_csv(Path(__file__).parent / "results.csv")
    seeds = outcomes(records, SOLVED)
    areas = records.group_by("variant", "seed").agg(
        area=pl.col("return_mean").mean()
    )  # each evaluation alike, unlike `auc`

    print(
        "| variant | seeds | first at 475, median step | solved for good, median step | fell below 475 after it"
        " | end below 475 | mean over the curve [95 %] | mean at the end [95 %] |\n|" + "---|" * 8
    )
    for part in seeds.join(areas, ["variant", "seed"], maintain_order="left").partition_by(
        "variant", maintain_order=True
    ):
        first, lasting = (min(BUDGET, part[name].median()) for name in ("first_solved", "solved_for_good"))
        ended = len(part) - part["solved_at_end"].sum()
        print(
            f"| {part['variant'][0]} | {len(part)} | {first:,.0f} | {lasting:,.0f} | {part['fell'].sum()} | {ended}"
            f" | {mean(part['area'])} | {mean(part['final'])} |"
        )


def mean(values: pl.Series) -> str:
    """Write a mean and its interval."""
    low, high = interval(lambda x: x.mean(axis=1), np.array(values))
    return f"{values.mean():.0f} [{low:.0f}, {high:.0f}]"


if __name__ == "__main__":
    main()
