"""What a diagnosis may read of a run: its config, its signals' medians, last and extreme values, and ratios of them.

python investigations/0023-diagnosis-elsewhere/features.py --data runs/diagnosis-elsewhere

writes `features.parquet`, a row per run, with thousandths of logarithms. `fit.py` reads it. Rows of
runs that are not in the data stay as they are, so the settings can be trained one after another.
`curve:N` is the return at the N-th evaluation, which no diagnosis reads here.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from faults import FAULTS, HEADS, SETTINGS, agent, shipped

from quantilax import Agent, pytree
from quantilax.checks import figures
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
    trained = figures.quantities(rows, config)
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


def configured(made: Agent) -> dict[str, float]:
    """What a config says in units that mean the same in every section."""
    config, said = made.config, made.config.derived()
    c = pytree.to_dict(config)
    episode = float(np.asarray(made.env.max_episode_steps))
    steps = said.get("gradient_steps") or math.nan
    constant = said.get("target_time_constant_updates") or 0.0
    known = {
        "target_updates": constant if "polyak" in c else math.nan,
        "target_share": constant / steps if "polyak" in c else math.nan,
        "batch": c["batch_size"] if "batch_size" in c else figures.minibatch(c) if "num_minibatches" in c else math.nan,
        "samples": said.get("samples_replayed_per_env_step", math.nan),
        "buffer_share": c.get("buffer_size", math.nan) / c["total_timesteps"],
        "buffer_episodes": c.get("buffer_size", math.nan) / episode,
        "horizon_share": 1 / (1 - c["gamma"]) / episode,
        "horizon": 1 / (1 - c["gamma"]),
    }
    for name in ("learning_rate", "adam_eps", "max_grad_norm", "kappa", *EXPLORING):
        known[name] = c.get(name, math.nan)
    return {f"config:{name}": float(value) for name, value in known.items()}


EXPLORING = ("eps_start", "eps_end", "exploration_fraction", "target_entropy", "exploration_noise")

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
    old = pl.read_parquet(asked.out if asked.out.exists() else HERE / "features.parquet")
    found, configs = [], []
    for setting in SETTINGS:
        head = HEADS.get(shipped(setting).algorithm.name)
        for fault in FAULTS:
            files = sorted((asked.data / setting.name).glob(f"{fault.name.replace('/', 'over')}-[0-9]*-[0-9]*.parquet"))
            is_old = old.filter(setting=setting.name, fault=fault.name).height > 0
            if not (files or is_old):
                continue
            made = agent(setting, fault, 1.0)
            if made is None:
                continue
            configs.append({"setting": setting.name, "fault": fault.name, **configured(made)})
            config = {"head": head, **pytree.to_dict(made.config)}
            for (seed,), rows in pl.concat(map(pl.read_parquet, files)).group_by("seed") if files else ():
                run = {"setting": setting.name, "fault": fault.name, "seed": seed}
                found.append({**run, **features(rows, config), **curve(rows)})
    table = whole(found, KEYS, logarithm) if found else old
    table = pl.concat([old.select(pl.exclude("^config:.*$")).join(table, on=KEYS, how="anti"), table], how="diagonal")
    table = table.select(pl.exclude("^config:.*$")).join(
        whole(configs, KEYS[:2], plain), on=KEYS[:2], maintain_order="left"
    )
    table = table.sort(KEYS)
    table.write_parquet(asked.out, compression="zstd", compression_level=19)
    print(f"{table.height} runs, {table.width - 3} features, {asked.out.stat().st_size / 1e6:.1f} MB")


KEYS = ["setting", "fault", "seed"]


def curve(rows: pl.DataFrame) -> dict[str, float]:
    """The returns of a run's evaluations."""
    return {f"curve:{i}": float(x) for i, x in enumerate(rows.sort("env_step")["return_mean"])}


def plain(x: pl.Expr) -> pl.Expr:
    """Log of a number of a config, which may be as small as Adam's epsilon."""
    return x.clip(1e-20, 1e12).log10()


def whole(found: list[dict[str, Any]], keys: list[str], log: Callable[[pl.Expr], pl.Expr]) -> pl.DataFrame:
    """A table with thousandths of logarithms."""
    table = pl.DataFrame(found, infer_schema_length=None)
    names = [name for name in table.columns if name not in keys]
    return table.with_columns((log(pl.col(names).cast(pl.Float64).fill_nan(None)) * 1000).round().cast(pl.Int16))


if __name__ == "__main__":
    main()
