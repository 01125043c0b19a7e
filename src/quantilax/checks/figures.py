"""The figures that a diagnosis reads, computed from the columns of a run's evaluations."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from quantilax.signals import PART, PARTS, Signals

Row = Mapping[str, float]
"""Medians over a run of its figures and signals."""
Config = Mapping[str, Any]
"""A section with every field, as in `config.yaml`."""

WINDOW = 5
"""Evaluations over which the movements of the target network's values are summed."""
SMALL = 1e-12


def quantities(run: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Return what the rules read of one seed, one row per evaluation except the first.

    The first evaluation is made before training. The rows hold every signal as it is, and these
    figures:

    - `noise_to_signal`: noise of a batch's gradient over its signal, S / (B G2), over all
      evaluations so far: the sum of S divided by B times `largest_signal`.
    - `noise_to_signal_most`: the same if there were no signal at all, which is the upper limit of
      `noise_to_signal`.
    - `return_size`: the largest absolute `start_return` so far, in learned units.
    - `target_pace`: how far the target network's values on R (`reference_q_target`) moved since the
      evaluation before, over how far they were then from the online network's values now
      (`reference_q`). Both are summed over `WINDOW` evaluations.
    - `explored`: mean of `exploration` so far, which tells whether the run ever tried anything.
    - `return_range`: largest less smallest return of all evaluations, including the first (mean
      plus and minus standard deviation), over the larger magnitude of the two.
    - `first_step`: `update_ratio` of the first evaluation.
    - `first_return`: the absolute `start_return` of the first evaluation, in learned units.
    - `target_steps`: gradient steps that the target network is behind: how far its values are from
      the online network's, over how far one gradient step moves them.
    - `horizon`: 1 / (1 - gamma).
    - `epsilon_room`: typical size of a weight's gradient over Adam's epsilon.
    - `first_dormant`: `dormant` of the first evaluation.
    - `roughness`: `value_change` times `effective_rank`.
    - `frozen`: share of weights without a gradient times the share of units that are active.
    - `last_exploration`: `exploration` of the last evaluation.
    - `limit_surprise`: of the episodes so far that reached the time limit, the share that
      terminated there although the network expected more.
    """
    whole = run.sort("env_step")
    mean, std = whole["return_mean"].to_numpy().astype(float), whole["return_std"].to_numpy().astype(float)
    highest, lowest = (mean + std).max(), (mean - std).min()
    run = whole[1:]
    batch = config.get("batch_size") or minibatch(config)
    run = run.with_columns(pl.lit(None, pl.Float64).alias(name) for name in Signals._fields if name not in run.columns)
    column = {name: run[name].to_numpy().astype(float) for name in Signals._fields}
    noise, signal = column["gradient_noise"], column["gradient_signal"]
    reached = column["limit_reached"]
    unexpected = np.where(column["limit_error"] > SURPRISE, np.nan_to_num(column["limit_deaths"]), 0.0)
    q, target = column["reference_q"], column["reference_q_target"]
    way, distance = np.abs(np.diff(target)), np.abs(q[1:] - target[:-1])
    derived = {
        "noise_to_signal": noise.cumsum() / batch / (largest_signal(signal, noise) + SMALL),
        "noise_to_signal_most": noise.cumsum() / batch / (largest_signal(np.zeros_like(noise), noise) + SMALL),
        "return_size": np.maximum.accumulate(np.abs(column["start_return"])),
        "return_range": np.full(len(run), (highest - lowest) / max(abs(highest), abs(lowest), SMALL)),
        "explored": np.cumsum(column["exploration"]) / np.arange(1, len(reached) + 1),
        "limit_surprise": np.where(
            reached.cumsum() > 0, (reached * unexpected).cumsum() / (reached.cumsum() + SMALL), np.nan
        ),
        "first_step": np.full(len(run), first(whole, "update_ratio")),
        "first_return": np.full(len(run), abs(first(whole, "start_return"))),
        "target_steps": column["target_lag"] / np.maximum(column["value_churn"], SMALL),
        "horizon": np.full(len(run), 1 / max(1 - config.get("gamma", 0.0), SMALL)),
        "epsilon_room": column["adam_scale"] / max(config.get("adam_eps", math.nan), SMALL),
        "first_dormant": np.full(len(run), first(whole, "dormant")),
        "roughness": column["value_change"] * column["effective_rank"],
        "frozen": column["without_gradient"] * (1 - column["dormant"]),
        "last_exploration": np.full(len(run), column["exploration"][-1] if len(run) else math.nan),
        "target_pace": np.concatenate([[np.nan], summed(way) / (summed(distance) + SMALL)]),
    }
    return run.with_columns(**{name: pl.Series(x, dtype=pl.Float64) for name, x in derived.items()})


def first(run: pl.DataFrame, name: str) -> float:
    """Return a signal before training; NaN if it was not measured."""
    value = run[name][0] if name in run.columns else None
    return math.nan if value is None else float(value)


def largest_signal(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A cautious estimate of the signal: the sum of G2 so far plus twice its standard error.

    So what may only be a bad estimate is not called noise. If G2 is small, the standard error of
    one evaluation is sqrt(2 / d) S / n, with n transitions and d directions in which gradients vary
    evenly. d = 1 gives the largest value.
    """
    error = np.sqrt(2) * noise / (PARTS * PART)
    return np.maximum(signal.cumsum(), 0) + 2 * np.sqrt((error**2).cumsum())


def summed(values: np.ndarray) -> np.ndarray:
    """Sums over the last `WINDOW` values, or over fewer at the beginning."""
    return np.array([values[max(0, i + 1 - WINDOW) : i + 1].sum() for i in range(len(values))])


SURPRISE = 0.1
"""Largest `limit_error`, as a share of the returns' size, of a network that knows of the limit."""


def minibatch(config: Config) -> float:
    """Transitions in a gradient step of an algorithm that learns from minibatches, such as PQN."""
    return float(config["num_envs"] * config["num_steps"] / config["num_minibatches"])


def has_signals(run: pl.DataFrame) -> bool:
    """Return whether signals were measured in these evaluations.

    If other variants of a study have signals, the columns exist but hold only nulls.
    """
    there = [name for name in Signals._fields if name in run.columns]  # older runs have fewer
    return bool(there) and run.select(pl.any_horizontal(pl.col(name).is_not_null() for name in there).any()).item()


def medians(figures: pl.DataFrame) -> dict[str, float]:
    """Return the median of each figure in rows of `quantities`; NaN if there is none."""
    names = [name for name in figures.columns if figures[name].dtype == pl.Float64]
    return {name: math.nan if (x := figures[name].fill_nan(None).median()) is None else float(x) for name in names}  # type: ignore[arg-type]
