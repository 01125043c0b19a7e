"""Let `diagnose` judge the runs of `run.py`: by general ranges, and by those of the section's own healthy seeds.

python investigations/0023-diagnosis-elsewhere/judge.py --data runs/diagnosis-elsewhere

The own ranges are those of the runs without a fault with seeds from 100 on. What is named in runs
with seeds below 100 is written to `results.csv`, a row per run, and counted per setting. `own` does not
tell in which fields a run differs from the section, `own, changes known` does, as the command line
does. Rows of settings that are not in the data stay as they are.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import polars as pl
from faults import FAULTS, SETTINGS, Fault, Setting, agent, shipped

from quantilax import pytree
from quantilax.checks.bands import WITHOUT
from quantilax.checks.diagnosis import Diagnosis, diagnose
from quantilax.checks.ranges import ranges
from quantilax.checks.rules import Healthy, own_ranges

HERE = Path(__file__).parent
OWN_SEEDS = 100
"""Runs with larger seeds set the own ranges."""
NAMES = {
    "learning_rate+": ("learning_rate",),
    "learning_rate-": ("small_learning_rate", "learning_rate"),
    "target-": ("target", "polyak", "target_update_freq"),
    "target+": ("fast_target", "polyak", "target_update_freq"),
    "noise": ("noise", "batch_size"),
    "exploration-": ("exploration",),
    "exploration+": ("endless_exploration",),
    "buffer": ("buffer", "buffer_size"),
    "kappa+": ("kappa",),
    "kappa-": ("kappa",),
    "reward_scale+": ("reward_scale",),
    "reward_scale-": ("small_rewards",),
    "gamma-": ("horizon", "gamma"),
    "gamma+": ("horizon", "gamma"),
    "frozen": ("frozen_weights",),
    "observations": ("noisy_observations",),
}
"""Causes of `diagnose` that are right for a fault's, where they have other names; lint's are named after the field."""


def read(data: Path, setting: Setting, fault: Fault) -> pl.DataFrame | None:
    """All runs of a setting with a fault."""
    files = sorted((data / setting.name).glob(f"{fault.name.replace('/', 'over')}-[0-9]*-[0-9]*.parquet"))
    return pl.concat(map(pl.read_parquet, files)) if files else None


def is_right(cause: str, named: str) -> bool:
    """Whether a named cause is the one that was injected."""
    return named in NAMES.get(cause, (cause,))


def row(setting: Setting, fault: Fault, ranges_are: str, found: Diagnosis) -> dict[str, Any]:
    """What was named in a run."""
    named = [cause.cause for cause in found.causes]
    right = [next((i for i, name in enumerate(named, 1) if is_right(cause, name)), 0) for cause in fault.causes]
    return {
        "setting": setting.name,
        "kept_out": setting.kept_out,
        "fault": fault.name,
        "seed": found.seed,
        "ranges": ranges_are,
        "outcome": found.outcome.word,
        "named": " ".join(named),
        "place": " ".join(map(str, right)),  # of each cause that was injected; 0: not named
    }


def judged(data: Path) -> list[dict[str, Any]]:
    """A row for each run below `OWN_SEEDS`, and for each kind of ranges."""
    rows = []
    for setting in SETTINGS:
        base = pytree.to_dict(shipped(setting).config)
        healthy = read(data, setting, FAULTS[0])
        healthy = None if healthy is None else healthy.filter(pl.col("seed") >= OWN_SEEDS)
        own = own_ranges(healthy, base) if healthy is not None and healthy.height else None
        for fault in FAULTS:
            made, runs = agent(setting, fault, 1.0), read(data, setting, fault)
            if made is None or runs is None:
                continue
            config = pytree.to_dict(made.config)
            changed = {name: base[name] for name in base if base[name] != config[name] and name not in WITHOUT}
            runs = runs.filter(pl.col("seed") < OWN_SEEDS)
            with warnings.catch_warnings(action="ignore"):
                lint = list(ranges(made))
            rows += [row(setting, fault, "general", one) for one in diagnose(runs, config, lint)]
            for kind, differs in (("own", {}), ("own, changes known", changed)) if own is not None else ():
                known = Healthy(kind, own, differs)
                rows += [row(setting, fault, kind, one) for one in diagnose(runs, config, lint, known)]
    return rows


def counted(table: pl.DataFrame) -> pl.DataFrame:
    """Shares per setting and kind of ranges: single faults named first and among three, both of two, false alarms."""
    place = pl.col("place").str.split(" ")
    kinds = table.with_columns(
        causes=pl.when(pl.col("place") == "").then(0).otherwise(place.list.len()),
        first=pl.col("place") == "1",
        three=place.list.eval(pl.element().is_in(["1", "2", "3"])).list.all(),
        alarm=pl.col("named") != "",
    )

    def share(of: str, number: int) -> pl.Expr:
        return pl.col(of).filter(pl.col("causes") == number).mean().round(3)

    return kinds.group_by("kept_out", "setting", "ranges", maintain_order=True).agg(
        single=(pl.col("causes") == 1).sum(),
        first=share("first", 1),
        three=share("three", 1),
        both=share("three", 2),
        healthy=(pl.col("causes") == 0).sum(),
        alarms=share("alarm", 0),
    )


def main() -> None:
    """Judge, count, and print the faults that are not named first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/diagnosis-elsewhere"))
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    asked = parser.parse_args()
    table = pl.DataFrame(judged(asked.data))
    if asked.out.exists():
        old = pl.read_csv(asked.out, schema_overrides={"named": pl.String, "place": pl.String})
        old = old.with_columns(pl.col("named", "place").fill_null(""))
        table = pl.concat([old.filter(~pl.col("setting").is_in(table["setting"].unique().implode())), table])
    table = table.sort("kept_out", "setting", "ranges", maintain_order=True)
    table.write_csv(asked.out)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=140, tbl_hide_dataframe_shape=True):
        print(counted(table))
        missed = table.filter((pl.col("ranges") == "own, changes known") & ~pl.col("place").is_in(["1", ""]))
        print(missed.group_by("setting", "fault", "named", "place", maintain_order=True).len())


if __name__ == "__main__":
    main()
