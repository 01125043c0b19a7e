"""Print the table of exploration.csv: python investigations/0004-munchausen/explored.py"""

from pathlib import Path

import polars as pl

from quantilax.studies.tables import outcomes, summary

records = pl.read_csv(Path(__file__).parent / "exploration.csv")
order = records["variant"].unique(maintain_order=True).to_list()
variants = {row["variant"]: row for row in summary(records, threshold=475).iter_rows(named=True)}
lowest = dict(outcomes(records, threshold=475).group_by("variant").agg(pl.col("final").min()).iter_rows())
print("| variant | first at 475 | solved for good | fell | deepest fall | lowest end | mean over the curve |")
print("|---|---|---|---|---|---|---|")
for name in order:
    row = variants[name]
    print(
        f"| {name} | {row['first_solved_median']:,.0f} | {row['solved_for_good_median']:,.0f} | {row['fell']} of"
        f" {row['reached']} | {475 - (row['worst_drop_max'] or 0):.0f} | {lowest[name]:.0f} | {row['auc_mean']:.0f}"
        f" [{row['auc_mean_low']:.0f}, {row['auc_mean_high']:.0f}] |"
    )
