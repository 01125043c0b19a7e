"""Rules of the diagnosis: which quantity gives a cause away, how far healthy runs go, and what to change.

`quantities` makes the figures that rules read from the columns of a run. A rule has a cause, the quantity that gives it away,
the side on which it leaves the range of healthy runs (`healthy.csv`, measured; its first lines say how), what it explains of
other causes, and the smallest change worth trying. Its score is in decades: the logarithm to base 10 of how far a run's median
lies beyond the healthy limit.
"""

import csv
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from quantilax.signals import PART, PARTS, Signals

Row = Mapping[str, float]
"""Medians over a run of its quantities and signals."""
Config = Mapping[str, Any]
"""A section with every field, as `config.yaml` has it."""


class Range(NamedTuple):
    """What a quantity is in healthy runs: least and largest median of a run."""

    low: float
    high: float


class Rule(NamedTuple):
    """How a cause shows."""

    cause: str
    says: str
    """What is wrong, in a sentence."""
    quantity: str
    side: int
    """1: too large, -1: too small."""
    margin: float
    """Decades beyond the healthy limit from which on the cause is named."""
    beside: tuple[str, ...]
    """Other quantities that are told with it."""
    fields: tuple[str, ...]
    """Hyperparameters that it points to: read from the config, told apart from what is measured."""
    change: Callable[[Config, Row], dict[str, Any]]
    """The smallest change worth trying."""
    explains: tuple[str, ...] = ()
    """Causes whose quantity leaves its range because of this one."""
    remark: str = ""
    """What a change of a field cannot do."""


WINDOW = 5
"""Evaluations over which the ways of the target are summed."""
SMALL = 1e-12


def quantities(run: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Return what the rules read of one seed: a row per evaluation after the first, which stands before training.

    | quantity | from |
    |---|---|
    | `noise_to_signal` | S / (B G2), noise over signal of a batch's gradient: sum of S so far over `largest_signal` |
    | `noise_to_signal_most` | the same, had there been no signal at all: the most that it could have been |
    | `return_size` | rms of the discounted returns seen so far at first steps, learned units |
    | `target_pace` | way of the target's values on R since the last evaluation, over their distance from Q then and now |
    | `explored` | mean `exploration` so far: whether it ever tried anything |
    | `return_range` | greatest less least return of all evaluations, the first too (mean +- std), over the greater magnitude |
    | `limit_surprise` | of the episodes so far that reached the time limit, the share that died there unexpectedly |

    and every signal as it is.
    """
    whole = run.sort("env_step")
    mean, std = whole["return_mean"].to_numpy().astype(float), whole["return_std"].to_numpy().astype(float)
    highest, lowest = (mean + std).max(), (mean - std).min()
    run = whole[1:]
    batch = config.get("batch_size") or minibatch(config)
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
        "target_pace": np.concatenate([[np.nan], summed(way) / (summed(distance) + SMALL)]),
    }
    return run.with_columns(**{name: pl.Series(x, dtype=pl.Float64) for name, x in derived.items()})


def largest_signal(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Sum of G2 so far, and twice its standard error: what is called noise should not be an estimate's failure.

    Where G2 is small that of one evaluation is sqrt(2 / d) S / n, with n transitions and d directions in which
    gradients vary evenly; d = 1 is the most that it can be.
    """
    error = np.sqrt(2) * noise / (PARTS * PART)
    return np.maximum(signal.cumsum(), 0) + 2 * np.sqrt((error**2).cumsum())


def summed(values: np.ndarray) -> np.ndarray:
    """Sums over the last `WINDOW` values, fewer at first."""
    return np.array([values[max(0, i + 1 - WINDOW) : i + 1].sum() for i in range(len(values))])


SURPRISE = 0.1
"""Of the returns' size: what a network that knows of the limit would be wrong by at most."""


def minibatch(config: Config) -> float:
    """Transitions in a gradient step of an algorithm that learns from minibatches of what it collects."""
    return float(config["num_envs"] * config["num_steps"] / config["num_minibatches"])


def _power_of_two(value: float) -> int:
    return int(2 ** round(math.log2(max(value, 1))))


def _change_noise(config: Config, row: Row) -> dict[str, Any]:
    beyond = max(2.0, row["noise_to_signal"] / healthy()["noise_to_signal"].high)
    if "batch_size" in config:
        return {"batch_size": max(32, min(1024, _power_of_two(config["batch_size"] * beyond)))}
    transitions, most = config["num_envs"] * config["num_steps"], max(1, int(config["num_minibatches"] / beyond))
    return {"num_minibatches": max(number for number in range(1, most + 1) if transitions % number == 0)}


def _change_learning_rate(config: Config, row: Row) -> dict[str, Any]:
    beyond = row["update_ratio"] / healthy()["update_ratio"].high
    return {"learning_rate": float(f"{config['learning_rate'] / max(3, 3 * beyond):.1g}")}


def _change_reward_scale(config: Config, row: Row) -> dict[str, Any]:
    # A fixed factor: over running moments the unit of all values moves while the policy improves (investigations/0005-solved).
    beyond = max(1.0, row["return_size"] / healthy()["return_size"].high)
    return {"reward_scale": float(f"{config['reward_scale'] / beyond / 2:.1g}")}


def _change_target(config: Config, row: Row) -> dict[str, Any]:
    if config["polyak"] > 0:
        return {"polyak": 0.0, "target_update_freq": 32}
    return {"target_update_freq": max(1, config["target_update_freq"] // 10)}


def _change_buffer(config: Config, row: Row) -> dict[str, Any]:
    return {"buffer_size": 10 * max(config["buffer_size"], 100)}


def _change_kappa(config: Config, row: Row) -> dict[str, Any]:
    return {"kappa": float(f"{config['kappa'] * row['huber_scale']:.1g}")}


def _change_adam_eps(config: Config, row: Row) -> dict[str, Any]:
    return {"adam_eps": float(f"{row['adam_scale'] / 10:.1g}")}


def _change_clipping(config: Config, row: Row) -> dict[str, Any]:
    return {"max_grad_norm": float(f"{config['max_grad_norm'] / max(row['clip_factor'], 1e-9):.1g}")}


def _change_time_limit(config: Config, row: Row) -> dict[str, Any]:
    return {} if config.get("bootstrap_truncated", True) else {"bootstrap_truncated": True}


def _change_exploration(config: Config, row: Row) -> dict[str, Any]:
    if config.get("exploration_repeats") == 1:
        return {"exploration_repeats": 100}
    return {"exploration_fraction": 0.5, "eps_end": 0.1}


RULES = (
    Rule(
        "sparse_reward",
        "the episodes of all evaluations came to the same return: nothing that the policy did in them made a difference",
        "return_range",
        -1,
        0.5,
        ("return_std", "exploration", "terminal_share"),
        ("exploration_repeats", "exploration_fraction", "eps_end"),
        _change_exploration,
        explains=(
            *("time_limit", "reward_scale", "clipping", "adam_eps", "target", "kappa"),
            *("exploration", "buffer", "learning_rate", "noise"),
        ),
    ),
    Rule(
        "time_limit",
        "episodes end as deaths at the time limit to the step, where the network expected more to come",
        "limit_surprise",
        1,
        0.3,
        ("limit_reached", "limit_deaths", "limit_error"),
        ("bootstrap_truncated",),
        _change_time_limit,
        remark="let the environment tell the limit as truncated, or show the time in the observation",
    ),
    Rule(
        "reward_scale",
        "returns are so large that the network's values take long to follow them",
        "return_size",
        1,
        0.5,
        ("replay_error", "huber_scale", "bias"),
        ("reward_scale",),
        _change_reward_scale,
        explains=("kappa", "noise", "learning_rate", "clipping", "buffer"),
    ),
    Rule(
        "clipping",
        "next to nothing is left of the gradients after clipping",
        "clip_factor",
        -1,
        0.5,
        ("clip_share", "update_ratio"),
        ("max_grad_norm",),
        _change_clipping,
        explains=("adam_eps", "target", "noise", "kappa"),
    ),
    Rule(
        "adam_eps",
        "Adam's epsilon is larger than its sqrt(v), so its steps are far smaller than the learning rate",
        "adam_damping",
        -1,
        0.5,
        ("adam_below_eps", "adam_scale", "update_ratio"),
        ("adam_eps",),
        _change_adam_eps,
    ),
    Rule(
        "target",
        "the target network does not follow the online one",
        "target_pace",
        -1,
        0.3,
        ("target_lag", "target_disagreement"),
        ("polyak", "target_update_freq"),
        _change_target,
    ),
    Rule(
        "kappa",
        "kappa is far from the size of the TD errors",
        "huber_scale",
        0,
        0.3,
        ("huber_share", "spread_predicted"),
        ("kappa",),
        _change_kappa,
        explains=("adam_eps",),
    ),
    Rule(
        "exploration",
        "hardly any actions but the greedy ones were taken",
        "explored",
        -1,
        0.3,
        ("exploration", "action_entropy"),
        ("eps_start", "eps_end", "exploration_fraction"),
        lambda config, row: {"eps_start": 1.0, "eps_end": 0.05},
    ),
    Rule(
        "buffer",
        "the replay holds very few episodes, so what is learned from is soon forgotten",
        "replay_episodes",
        -1,
        0.3,
        ("reference_error", "terminal_share"),
        ("buffer_size",),
        _change_buffer,
    ),
    Rule(
        "learning_rate",
        "single gradient steps change the values too much",
        "update_ratio",
        1,
        0.25,
        ("value_churn", "overshoot", "dormant"),
        ("learning_rate",),
        _change_learning_rate,
        explains=("noise", "adam_eps"),
    ),
    Rule(
        "noise",
        "the gradient of a batch is mostly noise",
        "noise_to_signal",
        1,
        0.3,
        ("gradient_noise", "gradient_signal", "policy_churn"),
        ("batch_size",),
        _change_noise,
    ),
)
"""What is known to go wrong, in the order in which it is told where nothing else decides."""


@cache
def healthy() -> dict[str, Range]:
    """Return the ranges of healthy runs, by quantity; `investigations/0003-diagnosis/fit.py` writes them, but for `EXACT`."""
    text = resources.files("quantilax.checks").joinpath("healthy.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["quantity"]: Range(float(row["low"]), float(row["high"])) for row in rows} | EXACT


EXACT = {"return_range": Range(1e-3, 2.0)}
"""Ranges that need no measuring: returns that differ by less than a thousandth do not differ, and 2 is the most there is."""


def score(rule: Rule, median: float) -> float:
    """Decades by which a median lies beyond the healthy range, on the rule's side (0: on either); negative within it."""
    if math.isnan(median):
        return -math.inf
    low, high = healthy()[rule.quantity]
    above = math.log10(max(median, SMALL) / max(high, FLOOR))
    below = math.log10(max(low, FLOOR) / max(median, SMALL))
    return max(above, below) if rule.side == 0 else above if rule.side > 0 else below


FLOOR = 1e-6
"""Healthy ranges that begin or end at 0 are taken to do so here: decades need a number."""
