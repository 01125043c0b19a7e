"""Diagnosis: why a run goes wrong, named from the signals in its files.

A cause is named where a quantity made of signals leaves the range that healthy runs keep (`healthy.csv`, measured; its first
lines say how). The reasoning is three steps, all in this file:

1. `quantities`: from the columns of a run to the figures that rules read, a row per evaluation.
2. `RULES`: a cause, the quantity that gives it away, the side on which it leaves, what it explains of other causes, and the
   smallest change worth trying. The score is in decades: the logarithm to base 10 of how far the run's median lies beyond
   the healthy limit, times `SIDE`.
3. `diagnose`: causes that score above their rule's margin, those that explain others first. Where there is none and the run
   failed, the evidence does not decide, and the study is proposed that would.

Every range comes from runs, and every rule was validated on other runs than those that set it: docs/diagnosis.md.
"""

import csv
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from quantilax.pytree import ConfigError
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
    | `return_size` | rms of the discounted returns seen so far at first steps, learned units |
    | `target_pace` | way of the target's values on R since the last evaluation, over their distance from Q then and now |
    | `explored` | mean `exploration` so far: whether it ever tried anything |
    | `limit_surprise` | of the episodes so far that reached the time limit, the share that died there unexpectedly |

    and every signal as it is.
    """
    run = run.sort("env_step")[1:]
    batch = config.get("batch_size") or minibatch(config)
    column = {name: run[name].to_numpy().astype(float) for name in Signals._fields}
    noise, signal = column["gradient_noise"], column["gradient_signal"]
    reached = column["limit_reached"]
    unexpected = np.where(column["limit_error"] > SURPRISE, np.nan_to_num(column["limit_deaths"]), 0.0)
    q, target = column["reference_q"], column["reference_q_target"]
    way, distance = np.abs(np.diff(target)), np.abs(q[1:] - target[:-1])
    derived = {
        "noise_to_signal": noise.cumsum() / batch / (largest_signal(signal, noise) + SMALL),
        "return_size": np.maximum.accumulate(np.abs(column["start_return"])),
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
    beyond = row["noise_to_signal"] / healthy()["noise_to_signal"].high
    if "batch_size" in config:
        return {"batch_size": max(32, min(1024, _power_of_two(config["batch_size"] * beyond)))}
    return {"num_minibatches": max(1, int(config["num_minibatches"] / beyond))}


def _change_learning_rate(config: Config, row: Row) -> dict[str, Any]:
    beyond = row["update_ratio"] / healthy()["update_ratio"].high
    return {"learning_rate": float(f"{config['learning_rate'] / max(3, 3 * beyond):.1g}")}


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


RULES = (
    Rule(
        "time_limit",
        "episodes end as deaths at the time limit to the step, where the network expected more to come",
        "limit_surprise",
        1,
        0.3,
        ("limit_reached", "limit_deaths", "limit_error"),
        (),
        lambda config, row: {},
        remark="let the environment tell the limit as truncated, or show the time in the observation",
    ),
    Rule(
        "reward_scale",
        "returns are so large that the network's values take long to follow them",
        "return_size",
        1,
        0.5,
        ("replay_error", "huber_scale", "bias"),
        ("normalize_rewards",),
        lambda config, row: {"normalize_rewards": True},
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
        "nothing but greedy actions was ever taken",
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
    """Return the ranges of healthy runs, by quantity; `investigations/0003-diagnosis/fit.py` writes them."""
    text = resources.files("quantilax.studies").joinpath("healthy.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["quantity"]: Range(float(row["low"]), float(row["high"])) for row in rows}


class Outcome(NamedTuple):
    """How a run went, by its mean returns."""

    word: str
    """`learned`, `fell` (and did not come back), `fell and came back` or `did not learn`."""
    first: float
    best: float
    last: float
    fall: int | None
    """Environment step of the first evaluation more than half of the way back down from the best so far."""


class Evidence(NamedTuple):
    """A figure that speaks for a cause."""

    quantity: str
    median: float
    low: float
    high: float
    """Of healthy runs."""
    since: int | None
    """Environment step from which on it is outside; None: only for a while, or not outside."""


class Cause(NamedTuple):
    """A cause that is named."""

    cause: str
    says: str
    score: float
    """Decades beyond the healthy limit."""
    evidence: tuple[Evidence, ...]
    """Measured; the first is what named the cause."""
    config: dict[str, Any]
    """The fields that it points to, as the run had them: read, not measured."""
    change: dict[str, Any]
    """The smallest change worth trying."""
    remark: str


class Diagnosis(NamedTuple):
    """What there is to say of one seed."""

    seed: int
    outcome: Outcome
    causes: tuple[Cause, ...]
    study: dict[str, Any] | None
    """Fields and the values to try, one at a time, where the run failed and nothing is out of its range."""


def diagnose(run: pl.DataFrame, config: Config) -> list[Diagnosis]:
    """Name the causes in the evaluations of a run, for each of its seeds.

    Args:
        run: rows as in `evaluations.parquet`, with the columns of the signals; of a study, those of one cell.
        config: the section that was run, every field.

    Raises:
        ConfigError: no signals in it, or too few evaluations.
    """
    if not set(Signals._fields) <= set(run.columns):
        raise ConfigError("has no signals; train it again with signals=true on the command line (or in the config)")
    found = []
    for (seed,), rows in run.sort("seed", "env_step").group_by("seed", maintain_order=True):
        if rows.height < MIN_ROWS:
            raise ConfigError(
                f"has {rows.height} evaluations and a diagnosis takes {MIN_ROWS} or more; lower eval_freq, or wait"
            )
        found.append(_diagnose(int(seed), rows, config))
    return found


MIN_ROWS = 4


def _diagnose(seed: int, run: pl.DataFrame, config: Config) -> Diagnosis:
    outcome, rows = judge(run), quantities(run, config)
    medians = {name: _median(rows[name]) for name in rows.columns if rows[name].dtype == pl.Float64}
    scores = {rule.cause: score(rule, medians[rule.quantity]) for rule in RULES if rule.quantity in medians}
    above = [rule for rule in RULES if scores.get(rule.cause, -math.inf) > rule.margin]
    named = sorted(above, key=lambda rule: (_depth(rule, above), -scores[rule.cause]))
    causes = tuple(
        Cause(
            rule.cause,
            rule.says,
            scores[rule.cause],
            tuple(evidence(name, rows, medians) for name in (rule.quantity, *rule.beside) if name in medians),
            {field: config[field] for field in rule.fields if field in config},
            {k: v for k, v in rule.change(config, medians).items() if k in config},
            rule.remark,
        )
        for rule in named
    )
    failed = outcome.word in ("fell", "did not learn")
    return Diagnosis(seed, outcome, causes, None if causes or not failed else proposal(config, medians, scores))


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


def _depth(rule: Rule, named: list[Rule]) -> int:
    """Length of the longest chain of named causes that explain this one."""
    return max((1 + _depth(other, named) for other in named if rule.cause in other.explains), default=0)


def judge(run: pl.DataFrame) -> Outcome:
    """Say how a run went."""
    returns = run["return_mean"].to_numpy()
    spread = float(run["return_std"][0] or 0.0)
    first, best, last = (float(x) for x in (returns[0], returns.max(), returns[-1]))
    if best - first <= max(2 * spread, 0.05 * abs(first), SMALL) or best == first:
        return Outcome("did not learn", first, best, last, None)
    peaks = np.maximum.accumulate(returns)
    counts = peaks - first > (best - first) / 2
    falls = np.flatnonzero(counts & (returns < (first + peaks) / 2))
    if not len(falls):
        return Outcome("learned", first, best, last, None)
    fall = int(run["env_step"][int(falls[0])])
    return Outcome("fell" if last < (first + best) / 2 else "fell and came back", first, best, last, fall)


def evidence(name: str, rows: pl.DataFrame, medians: Row) -> Evidence:
    """Put a quantity beside its healthy range, with the step from which on it is outside of it for most of the run."""
    low, high = healthy().get(name, Range(math.nan, math.nan))
    values = rows[name].to_numpy().astype(float)
    outside = (values < low) | (values > high)
    since = None
    for i in range(len(values)):
        if outside[i] and outside[i:].mean() >= MOST:
            since = int(rows["env_step"][i])
            break
    return Evidence(name, medians[name], low, high, since)


MOST = 0.75
"""Share of the evaluations from one on that must be outside for a departure to begin there."""


def proposal(config: Config, medians: Row, scores: Mapping[str, float]) -> dict[str, Any]:
    """Return what a study should vary, one factor at a time: the fields of the causes that come nearest to their margins."""
    nearest = sorted((rule for rule in RULES if rule.fields), key=lambda rule: -scores.get(rule.cause, -math.inf))
    vary: dict[str, list[Any]] = {}
    for rule in nearest:
        for field, value in rule.change(config, medians).items():
            if field in config and config[field] != value and len(vary) < PROPOSED:
                vary.setdefault(field, []).append(value)
    return {"one_at_a_time": vary}


PROPOSED = 4
"""Fields of a proposed study: with ten seeds each it stays small."""


def _median(values: pl.Series) -> float:
    middle = values.fill_nan(None).drop_nulls().median()
    return math.nan if middle is None else float(middle)  # type: ignore[arg-type]


def diagnose_run(path: Path) -> list[Diagnosis]:
    """Diagnose the run in a directory, from its files alone.

    Raises:
        ConfigError: no run directory, no evaluations yet, no signals in them.
    """
    from quantilax.runs import RunDirectory, load_section

    RunDirectory.open(path)
    section = load_section(path / "config.yaml")
    try:
        run = pl.read_parquet(path / "evaluations.parquet")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path / 'evaluations.parquet'}: cannot be read ({str(error).splitlines()[0]})") from None
    return _of(path, run, section.hyperparameters)


def diagnose_study(path: Path) -> dict[str, list[Diagnosis]]:
    """Diagnose every finished run of a study, by cell.

    Raises:
        ConfigError: no study's directory, no finished runs yet, no signals in them.
    """
    from quantilax.studies.store import Store

    store = Store.open(path)
    records = store.records()
    if not records.height:
        raise ConfigError(f"{path}: has no finished run yet; go on with quantilax study --resume")
    cells = store.facts["cells"]
    return {str(cell): _of(path, rows, cells[cell]) for (cell,), rows in records.group_by("cell", maintain_order=True)}


def can_diagnose(records: pl.DataFrame) -> bool:
    """Say whether these evaluations have signals, and enough of them."""
    if not set(Signals._fields) <= set(records.columns) or records.is_empty():
        return False
    return bool((records.group_by("cell", "seed").len()["len"] >= MIN_ROWS).all())


def summary(found: Mapping[str, list[Diagnosis]]) -> pl.DataFrame:
    """A row per cell and first cause, the most frequent first: seeds, how they went, evidence, the change worth trying.

    The evidence is the figure that named the cause: least and largest median of those seeds, and the healthy range.
    """
    rows: list[dict[str, str]] = []
    for cell, seeds in found.items():
        groups: dict[str, list[Diagnosis]] = {}
        for one in seeds:
            groups.setdefault(one.causes[0].cause if one.causes else "", []).append(one)
        for cause, those in sorted(groups.items(), key=lambda group: -len(group[1])):
            words = [one.outcome.word for one in those]
            counts = sorted({word: words.count(word) for word in words}.items(), key=lambda x: -x[1])
            rows.append(
                {
                    "cell": cell,
                    "named first": cause or "no cause",
                    "seeds": f"{len(those)} of {len(seeds)}",
                    "how they went": ", ".join(f"{count} {word}" for word, count in counts),
                    "evidence": _span(those) if cause else "",
                    "try": _try(those[0].causes[0]) if cause else "",
                }
            )
    return pl.DataFrame(rows)


def _span(those: list[Diagnosis]) -> str:
    shown = [one.causes[0].evidence[0] for one in those]
    medians = [e.median for e in shown]
    own = f"{min(medians):.3g}" + (f" to {max(medians):.3g}" if len(medians) > 1 else "")
    return f"{shown[0].quantity} {own}; in healthy runs {shown[0].low:.3g} to {shown[0].high:.3g}"


def _try(cause: Cause) -> str:
    return " ".join(f"{k}={v}" for k, v in cause.change.items()) or cause.remark


def _of(path: Path, run: pl.DataFrame, config: Config) -> list[Diagnosis]:
    try:
        return diagnose(run, config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def told(found: list[Diagnosis]) -> list[str]:
    """Lines for people: each seed, then all of them together."""
    lines: list[str] = []
    for one in found:
        lines += [f"seed {one.seed}: {_outcome(one.outcome)}", *(f"  {line}" for line in _causes(one))]
    if len(found) > 1:
        lines.append("in sum: " + "; ".join(sums(found)))
    return lines


def sums(found: list[Diagnosis]) -> list[str]:
    """For each first cause the number of seeds, the most frequent first."""
    first = [one.causes[0].cause if one.causes else "none" for one in found]
    counts = sorted({cause: first.count(cause) for cause in first}.items(), key=lambda x: -x[1])
    words = {"none": "no cause"}
    return [f"{words.get(cause, cause)} named first in {n} of {len(found)} seeds" for cause, n in counts]


def as_json(one: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain values; NaN becomes null."""

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return {name: plain(x) for name, x in value._asdict().items()}
        if isinstance(value, tuple | list):
            return [plain(x) for x in value]
        if isinstance(value, dict):
            return {name: plain(x) for name, x in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    made: dict[str, Any] = plain(one)
    return made


def _outcome(outcome: Outcome) -> str:
    figures = f"return {outcome.first:.4g} before training, {outcome.best:.4g} at best, {outcome.last:.4g} at the end"
    return f"{outcome.word}{'' if outcome.fall is None else f' (at step {outcome.fall:,})'}: {figures}"


def _causes(one: Diagnosis) -> list[str]:
    lines: list[str] = []
    for number, cause in enumerate(one.causes, 1):
        lines.append(f"{number}. {cause.cause}: {cause.says}")
        lines += [f"   {_evidence(e, one.outcome.fall)}" for e in cause.evidence]
        if cause.config:
            lines.append("   read from the config: " + ", ".join(f"{k}={v}" for k, v in cause.config.items()))
        lines.append(f"   try: {_try(cause)}")
    if not one.causes:
        lines.append("nothing measured is outside of what healthy runs show")
    if one.study:
        vary = "; ".join(f"{field}: {values}" for field, values in one.study["one_at_a_time"].items())
        lines.append(
            f"the evidence does not decide; a study that would: cells: {{one_at_a_time: {{{vary}}}}}, seeds: 10"
        )
    return lines


def _evidence(e: Evidence, fall: int | None) -> str:
    text = f"{e.quantity} {e.median:.3g}"
    if not math.isnan(e.low):
        text += f", in healthy runs {e.low:.3g} to {e.high:.3g}"
    if e.since is not None:
        text += f"; outside from step {e.since:,} on"
        if fall is not None:
            text += f", {fall - e.since:,} steps before the fall" if e.since <= fall else ", after the fall"
    return text
