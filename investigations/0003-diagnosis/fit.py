"""Measure the ranges of healthy runs, and count what is named: the confusion matrix.

python investigations/0003-diagnosis/fit.py --data runs/diagnosis            # ranges from the first half of the seeds
"""

import argparse
import csv
from pathlib import Path

import polars as pl
from faults import CELLS, Cell

from quantilax import pytree
from quantilax.runs.directory import provenance
from quantilax.studies import diagnosis

HERE = Path(__file__).parent
RANGES = Path(diagnosis.__file__).with_name("healthy.csv")


def runs(data: Path) -> dict[str, pl.DataFrame]:
    """All evaluations, by cell."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for file in sorted(data.glob("*.parquet")):
        table = pl.read_parquet(file)
        parts.setdefault(table["cell"][0], []).append(table)
    return {cell: pl.concat(tables, how="diagonal").sort("seed", "env_step") for cell, tables in parts.items()}


def config_of(cell: Cell) -> dict:
    """Every hyperparameter of a cell, as `config.yaml` would have them."""
    return pytree.to_dict(cell.agent().config)


def medians(table: pl.DataFrame, config: dict) -> list[dict[str, float]]:
    """Of each seed's quantities."""
    found = []
    for _, rows in table.group_by("seed", maintain_order=True):
        made = diagnosis.quantities(rows, config)
        found.append({n: diagnosis._median(made[n]) for n in made.columns if made[n].dtype == pl.Float64})
    return found


def write_ranges(tables: dict[str, pl.DataFrame], split: int) -> None:
    """Least and largest median over the healthy runs with seeds below the split."""
    every: dict[str, list[float]] = {}
    cells = [cell for cell in CELLS if cell.cause is None and cell.name in tables]
    for cell in cells:
        for row in medians(tables[cell.name].filter(pl.col("seed") < split), config_of(cell)):
            for name, value in row.items():
                if value == value:
                    every.setdefault(name, []).append(value)
    made = provenance()
    with RANGES.open("w", newline="") as file:
        file.write(
            "# Least and largest median of a run over healthy runs, by quantity (quantilax.studies.diagnosis).\n"
        )
        file.write(f"# {made['command']}; commit {made['commit']}; jax {made['versions']['jax']}\n")
        file.write(f"# seeds 0 to {split - 1} of each of: {'; '.join(cell.name for cell in cells)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["quantity", "low", "high", "runs"])
        for name, values in every.items():
            if name not in ("seed", "env_step", "seconds"):
                writer.writerow([name, f"{min(values):.4g}", f"{max(values):.4g}", len(values)])


def main() -> None:
    """Fit on seeds below the split, count on the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/diagnosis"))
    parser.add_argument("--split", type=int, default=10)
    parser.add_argument("--keep-ranges", action="store_true", help="count only")
    asked = parser.parse_args()
    tables = runs(asked.data)
    if not asked.keep_ranges:
        write_ranges(tables, asked.split)
        diagnosis.healthy.cache_clear()
    rows = []
    for cell in (cell for cell in CELLS if cell.name in tables):
        for one in diagnosis.diagnose(tables[cell.name], config_of(cell)):
            rows.append(
                {
                    "cell": cell.name,
                    "cause": cell.cause or "none",
                    "seed": one.seed,
                    "split": "fitted" if one.seed < asked.split else "held out",
                    "outcome": one.outcome.word,
                    "named_first": one.causes[0].cause if one.causes else "none",
                    "named": " ".join(f"{c.cause}:{c.score:.2f}" for c in one.causes),
                    "best": round(one.outcome.best, 3),
                    "last": round(one.outcome.last, 3),
                }
            )
    pl.DataFrame(rows).write_csv(HERE / "results.csv")
    for split in ("fitted", "held out"):
        print(f"\n{split}")
        for cell in dict.fromkeys(row["cell"] for row in rows):
            mine = [row for row in rows if row["cell"] == cell and row["split"] == split]
            if mine:
                counts: dict[str, int] = {}
                for row in mine:
                    counts[row["named_first"]] = counts.get(row["named_first"], 0) + 1
                right = counts.get(mine[0]["cause"], 0)
                print(f"{cell:26} {right:3} of {len(mine):3}  {counts}")


if __name__ == "__main__":
    main()
