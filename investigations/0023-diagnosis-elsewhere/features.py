"""What a diagnosis may read of a run: medians, last and extreme values of its signals, and ratios of them.

python investigations/0023-diagnosis-elsewhere/features.py --data runs/diagnosis-elsewhere

writes `features.parquet`, a row per run, with thousandths of `logarithm`. `fit.py` reads it.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from faults import FAULTS, HEADS, SETTINGS, agent, shipped

from quantilax import pytree
from quantilax.checks import rules
from quantilax.signals import Signals

HERE = Path(__file__).parent
FIRST = ("overshoot", "loss_ratio", "update_ratio", "value_churn", "dormant", "gradient_noise", "value_change")
"""Signals whose value before training counts as well."""


def derived(rows: pl.DataFrame, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Ratios that mean the same in every task."""
    column = {name: rows[name].cast(pl.Float64).to_numpy().astype(float) for name in READ}
    steps, nothing = column["env_step"], np.full(rows.height, math.nan)
    has_kappa = config["head"] not in ("categorical", "hl_gauss") and 0 < config["kappa"] < math.inf
    with np.errstate(all="ignore"):
        return {
            "errors_over_kappa": column["td_error"] / config["kappa"] if has_kappa else nothing,
            "replay_share": column["replay_fill"] * config["buffer_size"] / steps
            if "buffer_size" in config
            else nothing,
            "horizon": 1 / (1 - config["gamma"]) / np.maximum.accumulate(column["length_mean"]),
            "gradient_over_eps": column["adam_scale"] / config.get("adam_eps", 1e-8),
            "old_actions": column["off_policy"] - np.cumsum(column["exploration"]) / np.arange(1, rows.height + 1),
            "lag_in_steps": column["target_lag"] / column["value_churn"],
            "noise_over_signal": column["gradient_noise"] / np.abs(column["gradient_signal"]),
            "errors_over_value": column["td_error"] / np.abs(column["q"]),
        }


READ = (
    *(
        "env_step",
        "length_mean",
        "q",
        "td_error",
        "replay_fill",
        "off_policy",
        "exploration",
        "target_lag",
        "value_churn",
    ),
    *("adam_scale", "gradient_noise", "gradient_signal"),
)


def features(rows: pl.DataFrame, config: dict[str, Any]) -> dict[str, float]:
    """The features of one run."""
    rows = rows.sort("env_step")
    trained = rules.quantities(rows, config)
    table = {name: trained[name].cast(pl.Float64).to_numpy().astype(float) for name in trained.columns if name in NAMES}
    table |= derived(rows[1:], config)
    found = {}
    for name, values in table.items():
        values = values[np.isfinite(values)]
        some = len(values) > 0
        found[f"{name}:median"] = float(np.median(values)) if some else math.nan
        found[f"{name}:last"] = float(np.median(values[-2:])) if some else math.nan
        found[f"{name}:max"] = float(values.max()) if some else math.nan
        found[f"{name}:min"] = float(values.min()) if some else math.nan
    for name in FIRST:
        value = rows[name][0]
        found[f"{name}:first"] = math.nan if value is None else float(value)
    returns = rows["return_mean"].to_numpy()
    found["return:gain"] = float(
        (returns[1:].max() - returns[0]) / max(abs(returns[0]), float(rows["return_std"][0]), 1e-9)
    )
    found["return:fall"] = float((returns.max() - returns[-1]) / max(returns.max() - returns.min(), 1e-9))
    return found


NAMES = {
    *Signals._fields,
    *("gradient_norm", "loss", "target_distance"),
    *("noise_to_signal", "return_size", "target_pace", "explored", "return_range", "limit_surprise"),
}


SMALL = 1e-4


def logarithm(x: pl.Expr) -> pl.Expr:
    """Log of the magnitude with the sign, linear below `SMALL`: from -16 to 16."""
    return x.sign() * (x.abs().clip(upper_bound=1e12) / SMALL + 1).log10()


def main() -> None:
    """Read every run, and write its features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/diagnosis-elsewhere"))
    parser.add_argument("--out", type=Path, default=HERE / "features.parquet")
    asked = parser.parse_args()
    found = []
    for setting in SETTINGS:
        for fault in FAULTS:
            files = sorted((asked.data / setting.name).glob(f"{fault.name.replace('/', 'over')}-[0-9]*-[0-9]*.parquet"))
            if not files:
                continue
            made = agent(setting, fault, 1.0)
            config = {"head": HEADS.get(shipped(setting).algorithm.name), **pytree.to_dict(made.config)}
            for (seed,), rows in pl.concat(map(pl.read_parquet, files)).group_by("seed", maintain_order=True):
                found.append({"setting": setting.name, "fault": fault.name, "seed": seed, **features(rows, config)})
    names = list(found[0])[3:]
    table = pl.DataFrame(found, infer_schema_length=None).with_columns(
        (logarithm(pl.col(names).cast(pl.Float64).fill_nan(None)) * 1000).round().cast(pl.Int16)
    )
    table.write_parquet(asked.out, compression="zstd", compression_level=19)
    print(f"{table.height} runs, {len(names)} features, {asked.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
