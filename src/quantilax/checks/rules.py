"""Rules of the diagnosis: which figure reveals a cause, how healthy runs look, what to change.

A rule names a cause, the figure (`quantilax.checks.figures`) that decides about it, the side on
which it leaves the range of healthy runs, the other causes that it explains, and the smallest
change worth trying. The ranges are measured: those of `healthy.csv`, whose first lines say how, or
those of a section's own held-out seeds (`quantilax.checks.bands`). A rule's score is in decades:
the base-10 logarithm of how far a run's median lies beyond the healthy limit.
"""

import csv
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from quantilax.checks.figures import SMALL, Config, Row, medians, quantities
from quantilax.signals import OF_CHOICES


class Range(NamedTuple):
    """The smallest and the largest median of the healthy runs."""

    low: float
    high: float


Ranges = Mapping[str, Range]
"""By figure."""


class Healthy(NamedTuple):
    """What is known of healthy runs of the section that was run, or of one like it."""

    of: str
    """Which runs these are."""
    ranges: Ranges
    changed: Mapping[str, Any]
    """Fields in which the run differs from them, with their values there."""


class Rule(NamedTuple):
    """How a cause shows."""

    cause: str
    says: str
    """What is wrong, in a sentence."""
    quantity: str
    side: int
    """1: too large, -1: too small, 0: either."""
    margin: float
    """Decades beyond the healthy limit above which the cause is named."""
    beside: tuple[str, ...]
    """Other figures that are reported with it."""
    fields: tuple[str, ...] = ()
    """Hyperparameters to look at. They are read from the config, and reported apart from what is
    measured."""
    change: Callable[[Config, Row, Ranges], dict[str, Any]] = lambda config, row, ranges: {}
    """The smallest change worth trying."""
    explains: tuple[str, ...] = ()
    """Causes whose figures leave their range because of this one."""
    remark: str = ""
    """Advice that a change of a field cannot express."""
    is_own: bool = False
    """Whether only ranges of the section's own healthy runs can judge, because healthy runs of
    other sections differ too much."""
    least: float = 1e-6
    """Smaller ends of a range and smaller medians count as this."""


def _power_of_two(value: float) -> int:
    return int(2 ** round(math.log2(max(value, 1))))


def _change_noise(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    beyond = max(2.0, row["noise_to_signal"] / ranges["noise_to_signal"].high)
    if "batch_size" in config:
        return {"batch_size": max(32, min(1024, _power_of_two(config["batch_size"] * beyond)))}
    transitions, most = config["num_envs"] * config["num_steps"], max(1, int(config["num_minibatches"] / beyond))
    return {"num_minibatches": max(number for number in range(1, most + 1) if transitions % number == 0)}


def _change_learning_rate(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    if "first_step" in ranges:  # which the learning rate multiplies, whatever else happens
        smaller = max(2.0, row["first_step"] / ranges["first_step"].high)
    else:
        smaller = max(3, 3 * row["update_ratio"] / ranges["update_ratio"].high)
    return {"learning_rate": float(f"{config['learning_rate'] / smaller:.1g}")}


def _change_small_learning_rate(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    beyond = ranges["first_step"].low / max(row["first_step"], SMALL)
    return {"learning_rate": float(f"{config['learning_rate'] * beyond:.1g}")}


def _change_small_rewards(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    beyond = ranges["first_return"].low / max(row["first_return"], SMALL)
    return {"reward_scale": float(f"{config['reward_scale'] * beyond:.1g}")}


def _change_fast_target(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    if config["polyak"] > 0:
        return {"polyak": 0.99}
    return {"target_update_freq": max(32, 10 * config["target_update_freq"])}


def _change_horizon(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    return {"gamma": float(f"{1 - 1 / math.sqrt(ranges['horizon'].low * ranges['horizon'].high):.6g}")}


def _change_reward_scale(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    # A fixed factor, because with running moments the unit of all values moves while the policy
    # improves (investigations/0005-solved).
    name = "first_return" if "first_return" in ranges else "return_size"
    beyond = max(1.0, row[name] / ranges[name].high)
    return {"reward_scale": float(f"{config['reward_scale'] / beyond / 2:.1g}")}


def _change_target(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    if config["polyak"] > 0:
        return {"polyak": 0.0, "target_update_freq": 32}
    return {"target_update_freq": max(1, config["target_update_freq"] // 10)}


def _change_buffer(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    return {"buffer_size": 10 * max(config["buffer_size"], 100)}


def _change_kappa(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    return {"kappa": float(f"{config['kappa'] * row['huber_scale']:.1g}")}


def _change_adam_eps(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    return {"adam_eps": float(f"{row['adam_scale'] / 10:.1g}")}


def _change_clipping(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    return {"max_grad_norm": float(f"{config['max_grad_norm'] / max(row['clip_factor'], 1e-9):.1g}")}


EXPLORING = {"exploration_noise": 0.5, "target_entropy": 0.0, "entropy_coefficient": 0.01}
"""Values with which actors explore more: of TD3, SAC and PPO."""


def _change_time_limit(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    return {} if config.get("bootstrap_truncated", True) else {"bootstrap_truncated": True}


def _change_exploration(config: Config, row: Row, ranges: Ranges) -> dict[str, Any]:
    more = {name: value for name, value in EXPLORING.items() if config.get(name, value) < value}
    if more:
        return more
    if config.get("exploration_repeats") == 1:
        return {"exploration_repeats": 100}
    return {"exploration_fraction": 0.5, "eps_end": 0.1}


RULES = (
    Rule(
        "sparse_reward",
        "all evaluation episodes have the same return: nothing the policy did made a difference",
        "return_range",
        -1,
        0.5,
        ("return_std", "exploration", "terminal_share"),
        ("exploration_repeats", "exploration_fraction", "eps_end", *EXPLORING),
        _change_exploration,
        explains=(
            *("time_limit", "reward_scale", "clipping", "adam_eps", "target", "kappa"),
            *("exploration", "buffer", "learning_rate", "noise"),
        ),
        remark="more exploration, or rewards on the way to the goal",
    ),
    Rule(
        "time_limit",
        "episodes terminate exactly at the time limit, where the network expected more to come",
        "limit_surprise",
        1,
        0.3,
        ("limit_reached", "limit_deaths", "limit_error"),
        ("bootstrap_truncated",),
        _change_time_limit,
        remark="let the environment report the limit as truncated, or show the time in the observation",
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
        explains=("kappa", "noise", "learning_rate", "clipping", "buffer", "adam_eps", "exploration"),
    ),
    Rule(
        "clipping",
        "clipping removes almost all of the gradients",
        "clip_factor",
        -1,
        0.5,
        ("clip_share", "update_ratio"),
        ("max_grad_norm",),
        _change_clipping,
        explains=("adam_eps", "target", "noise", "kappa", "small_learning_rate", "noisy_observations"),
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
        explains=("small_learning_rate", "noisy_observations"),
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
        explains=("noisy_observations",),
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
        explains=("adam_eps", "noisy_observations"),
    ),
    Rule(
        "exploration",
        "almost all actions were greedy",
        "explored",
        -1,
        0.3,
        ("exploration", "action_entropy"),
        ("eps_start", "eps_end", "exploration_fraction"),
        lambda config, row, ranges: {"eps_start": 1.0, "eps_end": 0.05},
    ),
    Rule(
        "buffer",
        "the replay holds very few episodes, so experience is soon forgotten",
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
    Rule(
        "learning_rate",
        "the first gradient steps already change the weights too much",
        "first_step",
        1,
        0.3,
        ("overshoot", "loss_ratio", "dormant"),
        ("learning_rate",),
        _change_learning_rate,
        explains=(
            *("noise", "adam_eps", "target", "dead_units", "kappa", "noisy_observations", "buffer"),
            *("exploration", "fast_target"),
        ),
        is_own=True,
    ),
    Rule(
        "small_learning_rate",
        "gradient steps change the weights too little",
        "first_step",
        -1,
        0.5,
        ("update_ratio", "overshoot"),
        ("learning_rate",),
        _change_small_learning_rate,
        explains=("noise", "target", "noisy_observations"),
        is_own=True,
    ),
    Rule(
        "adam_eps",
        "Adam's epsilon is far below the gradients, so that rare small ones count as much as large ones",
        "epsilon_room",
        1,
        1.0,
        ("adam_below_eps", "adam_damping"),
        ("adam_eps",),
        _change_adam_eps,
        is_own=True,
    ),
    Rule(
        "fast_target",
        "the target network follows so fast that it hardly stabilises learning",
        "target_steps",
        -1,
        0.5,
        ("target_lag", "bias"),
        ("polyak", "target_update_freq"),
        _change_fast_target,
        explains=("kappa", "noise"),
        is_own=True,
    ),
    Rule(
        "endless_exploration",
        "training still acts at random far more often than the healthy runs at this point",
        "last_exploration",
        1,
        0.15,
        ("explored", "action_entropy"),
        ("eps_end", "exploration_fraction"),
        lambda config, row, ranges: {"eps_end": 0.05, "exploration_fraction": 0.1},
        is_own=True,
        least=0.2,
    ),
    Rule(
        "exploration",
        "training acts at random far less often than the healthy runs at this point",
        "last_exploration",
        -1,
        0.2,
        ("explored", "action_entropy"),
        ("exploration_repeats", "exploration_fraction", "eps_end", *EXPLORING),
        _change_exploration,
        is_own=True,
        least=0.01,
    ),
    Rule(
        "time_limit",
        "episodes terminate at the time limit, which the healthy runs report as truncated",
        "limit_deaths",
        1,
        0.3,
        ("limit_reached", "limit_error"),
        ("bootstrap_truncated",),
        _change_time_limit,
        remark="let the environment report the limit as truncated, or show the time in the observation",
        is_own=True,
        least=0.1,
    ),
    Rule(
        "small_rewards",
        "returns are so small that kappa and Adam's epsilon are large beside them",
        "first_return",
        -1,
        0.5,
        ("return_size", "huber_scale", "adam_damping"),
        ("reward_scale",),
        _change_small_rewards,
        explains=("kappa", "adam_eps", "noise", "learning_rate", "small_learning_rate", "noisy_observations"),
        is_own=True,
    ),
    Rule(
        "reward_scale",
        "returns are large before any training, so kappa and clipping are small beside them",
        "first_return",
        1,
        0.5,
        ("return_size", "huber_scale", "clip_factor"),
        ("reward_scale",),
        _change_reward_scale,
        explains=(
            *("kappa", "adam_eps", "noise", "learning_rate", "clipping", "buffer"),
            *("exploration", "noisy_observations"),
        ),
        is_own=True,
    ),
    Rule(
        "horizon",
        "gamma looks further ahead than the healthy section's, or less far",
        "horizon",
        0,
        0.3,
        ("start_return", "value_bound"),
        ("gamma",),
        _change_horizon,
        explains=("kappa", "noise", "noisy_observations"),
        is_own=True,
    ),
    Rule(
        "dead_units",
        "many units of the network are dead from the beginning",
        "first_dormant",
        1,
        0.3,
        ("dormant", "without_gradient", "effective_rank"),
        explains=("small_learning_rate", "noise", "kappa"),
        remark="look at initial weights and biases, and at what enters the network",
        is_own=True,
        least=0.3,
    ),
    Rule(
        "frozen_weights",
        "a part of the network gets no gradient, although its units are active",
        "frozen",
        1,
        0.3,
        ("without_gradient", "dormant"),
        explains=("noise", "kappa", "small_learning_rate"),
        remark="look for a stop_gradient, or for parameters that the optimiser leaves out",
        is_own=True,
        least=0.1,
    ),
    Rule(
        "noisy_observations",
        "values of neighbouring states are unrelated, and features have many directions",
        "roughness",
        1,
        0.4,
        ("value_change", "effective_rank", "replay_error"),
        remark="look at what the environment shows: noise, a wrong scale, or parts of the state that are missing",
        is_own=True,
    ),
)
"""Known causes, in the order in which they are reported if nothing else decides."""


@cache
def healthy() -> dict[str, Range]:
    """Return the ranges of healthy runs, by figure.

    `investigations/0003-diagnosis/fit.py` writes them, except those in `EXACT`.
    """
    text = resources.files("quantilax.checks").joinpath("healthy.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["quantity"]: Range(float(row["low"]), float(row["high"])) for row in rows} | EXACT


EXACT = {"return_range": Range(1e-3, 2.0)}
"""Ranges that need no measuring: returns that differ by less than a thousandth are the same, and 2
is the maximum."""


ANYWHERE = ("return_range", "limit_surprise")
"""Figures whose ranges hold in every loop. Those of the others were measured in Q-learning."""


def ranges(run: pl.DataFrame) -> dict[str, Range]:
    """Return the ranges that hold for a run: all of them if it chose among values of actions."""
    if any(run[name].is_not_null().any() for name in OF_CHOICES if name in run.columns):
        return healthy()
    return {name: healthy()[name] for name in ANYWHERE}


def own_ranges(run: pl.DataFrame, config: Config) -> dict[str, Range]:
    """Return the ranges of figures over the seeds of a section's healthy runs.

    Those in `ANYWHERE` are left out, and so are those that a seed did not measure.
    """
    seeds = [medians(quantities(rows, config)) for _, rows in run.group_by("seed")]
    read = {name for rule in RULES for name in (rule.quantity, *rule.beside)} - set(ANYWHERE)
    values = {name: [seed.get(name, math.nan) for seed in seeds] for name in sorted(read)}
    return {name: Range(min(x), max(x)) for name, x in values.items() if np.isfinite(x).all()}


def score(rule: Rule, median: float, ranges: Ranges) -> float:
    """Decades by which a median lies beyond the healthy range on the rule's side.

    Negative within the range; -inf if the median is NaN.
    """
    if math.isnan(median):
        return -math.inf
    low, high = (max(end, rule.least) for end in ranges[rule.quantity])
    above, below = math.log10(max(median, rule.least) / high), math.log10(low / max(median, rule.least))
    return max(above, below) if rule.side == 0 else above if rule.side > 0 else below
