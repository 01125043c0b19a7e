"""Print the tables of the screening from screening.parquet: `python investigations/0005-solved/screened.py`."""

from pathlib import Path

import polars as pl

from quantilax.studies import tables

records = pl.read_parquet(Path(__file__).with_name("screening.parquet"))
for (name,), part in records.group_by("round", maintain_order=True):
    print(f"\n{name}\n")
    print(
        "| variant | seeds | first at 475 | solved for good | fell | lowest after 475 | lowest at the end | over the curve |"
    )
    print("|---|---|---|---|---|---|---|---|")
    summary = tables.summary(part, 475)
    outcomes = tables.outcomes(part, 475)
    for row in summary.iter_rows(named=True):
        runs = outcomes.filter(variant=row["variant"])
        drop = runs["worst_drop"].drop_nulls().max() or 0.0
        lowest = f"{475 - drop:.0f}" if drop else "none below"
        print(
            f"| {row['variant']} | {row['n']} | {row['first_solved_median']:,.0f} | {row['solved_for_good_median']:,.0f}"
            f" | {row['fell']} of {row['reached']} | {lowest} | {runs['final'].min():.0f}"
            f" | {row['auc_mean']:.0f} [{row['auc_mean_low']:.0f}, {row['auc_mean_high']:.0f}] |"
        )
