"""Measure the ranges of healthy runs, and count what is named: the confusion matrix.

python investigations/0003-diagnosis/fit.py --data runs/diagnosis     # ranges from the first half of the first seeds

Seeds below 10 set the ranges ("fitted"), those from 10 to 99 were in view while rules and margins were chosen ("seen"), those
from 100 on were trained when all was decided ("held out"). `left_out` says what would have been named first had the
run's own setting been missing where the ranges were measured: the test of a setting that is new.
"""

import argparse
import csv
import sys
from pathlib import Path

import polars as pl
from faults import FAULTS, MILDER, VARIANTS, Variant

from quantilax import pytree
from quantilax.checks import diagnosis, figures, rules
from quantilax.runs.provenance import provenance

HERE = Path(__file__).parent
RANGES = Path(rules.__file__).with_name("healthy.csv")
FITTED, SEEN = 10, 100

Ranges = dict[str, tuple[float, float, int]]
"""Least, largest and number of runs, by quantity."""


def runs(data: Path) -> dict[str, pl.DataFrame]:
    """All evaluations, by variant."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for file in sorted(data.glob("*.parquet")):
        table = pl.read_parquet(file)
        parts.setdefault(table["variant"][0], []).append(table)
    return {variant: pl.concat(tables, how="diagonal").sort("seed", "env_step") for variant, tables in parts.items()}


def config_of(variant: Variant) -> dict:
    """Every hyperparameter of a variant, as `config.yaml` would have them."""
    return pytree.to_dict(variant.agent().config)


def medians(table: pl.DataFrame, config: dict) -> list[dict[str, float]]:
    """Of each seed's quantities."""
    found = []
    for _, rows in table.group_by("seed", maintain_order=True):
        found.append(figures.medians(figures.quantities(rows, config)))
    return found


def ranges(healthy: dict[str, list[dict[str, float]]]) -> Ranges:
    """Least and largest median over healthy runs."""
    every: dict[str, list[float]] = {}
    for rows in healthy.values():
        for row in rows:
            for name, value in row.items():
                if value == value and name != "seconds":
                    every.setdefault(name, []).append(value)
    return {name: (min(values), max(values), len(values)) for name, values in every.items()}


def write_ranges(found: Ranges, variants: list[str]) -> None:
    """Into the package."""
    made = provenance()
    with RANGES.open("w", newline="") as file:
        file.write("# Least and largest median of a run over healthy runs, by quantity (quantilax.checks.rules).\n")
        file.write(f"# investigations/0003-diagnosis/fit.py; commit {made['commit']}; jax {made['versions']['jax']}\n")
        file.write(f"# seeds 0 to {FITTED - 1} of each of: {'; '.join(variants)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["quantity", "low", "high", "runs"])
        for name, (low, high, count) in found.items():
            writer.writerow([name, f"{low:.4g}", f"{high:.4g}", count])


def use(found: Ranges) -> None:
    """Let the diagnosis judge by these."""
    made = {name: rules.Range(low, high) for name, (low, high, _) in found.items()}
    rules.healthy = lambda: made


def kind(variant: Variant) -> str:
    """What a variant is in the table."""
    return "fault" if variant in FAULTS else "milder fault" if variant in MILDER else "healthy"


def split(seed: int) -> str:
    """What a seed was used for."""
    return "fitted" if seed < FITTED else "seen" if seed < SEEN else "held out"


def first(one: diagnosis.Diagnosis) -> str:
    """Cause that is named first."""
    return one.causes[0].cause if one.causes else "none"


def main() -> None:
    """Set the ranges, count, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/diagnosis"))
    parser.add_argument("--keep-ranges", action="store_true", help="count only")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    parser.add_argument("--require", action="store_true", help="fail below 80 % of faults or above 5 % of false alarms")
    asked = parser.parse_args()
    tables = runs(asked.data)
    configs = {variant.name: config_of(variant) for variant in VARIANTS if variant.name in tables}
    healthy = {
        variant.name: medians(tables[variant.name].filter(pl.col("seed") < FITTED), configs[variant.name])
        for variant in VARIANTS
        if variant.cause is None and variant.name in tables
    }
    if not asked.keep_ranges:
        write_ranges(ranges(healthy), list(healthy))
        rules.healthy.cache_clear()
    rows = []
    shipped = {name: (low, high, 0) for name, (low, high) in rules.healthy().items()}
    for variant in (variant for variant in VARIANTS if variant.name in tables):
        use(shipped)
        found = diagnosis.diagnose(tables[variant.name], configs[variant.name])
        without = found
        if variant.cause is None and not asked.keep_ranges:
            use(ranges({name: some for name, some in healthy.items() if name != variant.name}))
            without = diagnosis.diagnose(tables[variant.name], configs[variant.name])
        for one, other in zip(found, without, strict=True):
            rows.append(
                {
                    "variant": variant.name,
                    "kind": kind(variant),
                    "cause": variant.cause or "none",
                    "seed": one.seed,
                    "split": split(one.seed),
                    "outcome": one.outcome.word,
                    "named_first": first(one),
                    "named": " ".join(f"{c.cause}:{c.score:.2f}" for c in one.causes),
                    "left_out": first(other),
                    "best": round(one.outcome.best, 3),
                    "last": round(one.outcome.last, 3),
                }
            )
    pl.DataFrame(rows).write_csv(asked.out)
    for part in ("fitted", "seen", "held out"):
        print(f"\n{part}")
        for name in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["variant"] == name and row["split"] == part]
            if mine:
                right = sum(row["named_first"] == row["cause"] for row in mine)
                alone = sum(row["left_out"] == row["cause"] for row in mine)
                wrong = sorted({row["named_first"] for row in mine} - {mine[0]["cause"]})
                print(f"{name:26} {right:3} of {len(mine):3}, left out {alone:3}  {' '.join(wrong)}")
    named = [row["named_first"] == row["cause"] for row in rows if (row["kind"], row["split"]) == ("fault", "held out")]
    alarms = [row["named_first"] != "none" for row in rows if (row["kind"], row["split"]) == ("healthy", "held out")]
    print(f"\nheld out: {sum(named)} of {len(named)} faults named first, {sum(alarms)} of {len(alarms)} false alarms")
    if asked.require and (sum(named) < 0.8 * len(named) or sum(alarms) > 0.05 * len(alarms)):
        sys.exit("below what docs/diagnosis.md says")


if __name__ == "__main__":
    main()
