"""Tables of a study's records: outcomes per run, a summary per variant, and learning curves."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from quantilax.errors import ConfigError, did_you_mean
from quantilax.statistics import (
    QUICK_RESAMPLES,
    holm,
    improvement,
    improvement_interval,
    interval,
    iqm,
    median_interval,
    pooled,
    rank_test,
    share_interval,
)

OUTCOMES = {
    "variant": str, "env": str, "seed": int, "broken": bool, "final": float, "auc": float, "first_solved": float,
    "solved_for_good": float, "solved_at_end": bool, "fell": bool, "worst_drop": float,
}  # fmt: skip
COMPARISONS = ("improvement", "improvement_low", "improvement_high", "p", "p_holm")


class _Group(NamedTuple):
    """The learning curves of a variant in an environment."""

    variant: str
    env: str | None
    seeds: np.ndarray
    """(n,), ascending"""
    steps: np.ndarray
    """(T,), ascending"""
    returns: np.ndarray
    """(n, T); -inf from a seed's first non-finite evaluation on"""

    @property
    def broken(self) -> np.ndarray:
        return np.isneginf(self.returns[:, -1])


def outcomes(records: pl.DataFrame, threshold: float | Mapping[str, float]) -> pl.DataFrame:
    """Return the outcome of each seed: a row per variant, environment and seed.

    Variants are in the order of the records, seeds ascend. Returns and thresholds are in the
    environment's unit, steps are environment steps.

    | column | |
    |---|---|
    | `variant`, `env`, `seed` | the run; `env` is null if the records have none |
    | `broken` | whether the seed broke |
    | `final` | return of the last evaluation |
    | `auc` | mean return over the curve: trapezoidal area divided by the range of env_step |
    | `first_solved` | first step at or above the threshold; inf if there is none |
    | `solved_for_good` | first step from which on no evaluation is below it; inf if there is none |
    | `solved_at_end` | whether the last evaluation is at or above the threshold |
    | `fell` | whether an evaluation after `first_solved` is below the threshold |
    | `worst_drop` | threshold minus the lowest return from `first_solved` on, at least 0, or null |

    `worst_drop` is null if the threshold was never reached.

    Args:
        records: a row per evaluation of a seed, in any order, with the columns `variant` (str),
            `seed` (int), `env_step` (int), `return_mean` (float) and, if the study has several
            environments, `env` (str); other columns are ignored. All seeds of a variant have the
            same steps in an environment. A missing or non-finite return means that the seed broke:
            from there on its returns count as -inf.
        threshold: the return at which the task counts as solved, or one per environment.

    Raises:
        ConfigError: a column is missing or has another type, an evaluation is duplicated, or steps
            differ between seeds.
    """
    rows: list[tuple[Any, ...]] = []
    for g in _groups(records):
        level = _threshold(threshold, g.env)
        first, drops = _first(g.returns >= level, g.steps), []
        for curve, since in zip(g.returns, first, strict=True):
            after = curve[g.steps >= since]
            drops.append(max(0.0, level - float(after.min())) if len(after) else None)
        lasting = _first(np.logical_and.accumulate((g.returns >= level)[:, ::-1], axis=1)[:, ::-1], g.steps)
        columns: tuple[Any, ...] = (g.seeds, g.broken, g.returns[:, -1], _area(g), first, lasting)
        solved, fell = np.isfinite(lasting), np.isfinite(first) & (lasting != first)
        columns = tuple(column.tolist() for column in (*columns, solved, fell))
        rows += [(g.variant, g.env, *row) for row in zip(*columns, drops, strict=True)]
    return pl.DataFrame(rows, schema=OUTCOMES, orient="row")


def summary(records: pl.DataFrame, threshold: float | Mapping[str, float], base: str | None = None) -> pl.DataFrame:
    """Summarise each variant over its seeds, and compare it with a base.

    Return a row per variant, in the order of the records. A figure with an interval is followed by
    the interval's ends, `<name>_low` and `<name>_high` (95%, nominal, see `interval`).

    | column | unit and meaning | interval |
    |---|---|---|
    | `variant` | the variant | |
    | `n` | runs: seeds, times environments | |
    | `broken` | broken runs; each counts as return -inf, never solved and lowest rank | |
    | `final_mean`, `final_iqm` | return | bootstrap |
    | `auc_mean` | return | bootstrap |
    | `final_median` | return | order statistics; infinite below 6 runs |
    | `final_min` | return of the lowest run | |
    | `first_solved_median` | environment steps; runs that never did are inf | order statistics |
    | `solved_for_good_median` | as `first_solved_median` | order statistics |
    | `reached` | runs that reached the threshold | |
    | `fell` | of these, runs that were below it later | |
    | `fell_share` | fell / reached; null if none reached it | Wilson |
    | `solved_at_end_share` | share of all runs | Wilson |
    | `worst_drop_median`, `worst_drop_max` | return, over runs that reached the threshold | |
    | `final_improvement` | probability of improvement over the base | bootstrap |
    | `auc_improvement` | the same for `auc` | bootstrap |
    | `final_p`, `auc_p` | p-value of `rank_test` against the base | |
    | `final_p_holm`, `auc_p_holm` | the same, adjusted for the number of variants compared | |

    The worst drops are null if no run reached the threshold. The comparisons are null in the row of
    the base, and everywhere without a base. Bootstraps of returns are null if a variant has a
    single seed in an environment.

    Args:
        records, threshold: as for `outcomes`. With several environments, every variant needs seeds
            in each of them, the same number in each. Their returns are pooled, so bring them to
            one scale first.
        base: the variant to compare the others with; None: no comparison.

    Raises:
        ConfigError: as for `outcomes`; or the base is not among the variants, or the numbers of
            seeds differ between environments.
    """
    told = outcomes(records, threshold)
    variants: dict[str, list[pl.DataFrame]] = {}
    for part in told.partition_by("variant", "env", maintain_order=True):
        variants.setdefault(part["variant"][0], []).append(part.sort("seed"))
    variants = {variant: sorted(parts, key=lambda part: part["env"][0] or "") for variant, parts in variants.items()}
    _check_balance(variants)
    if base is not None and base not in variants:
        raise ConfigError(f"no variant '{base}' to compare with{did_you_mean(base, variants, 'variants')}")
    rows = [_variant_row(variant, parts) for variant, parts in variants.items()]
    compared = [row for row in rows if base is not None and row["variant"] != base]
    for name in ("final", "auc"):
        for row in rows:
            row.update(dict.fromkeys(f"{name}_{c}" for c in COMPARISONS))
        for row in compared:
            sides = zip(variants[row["variant"]], variants[base], strict=True)  # type: ignore[index]
            pairs = [(x[name].to_numpy(), y[name].to_numpy()) for x, y in sides]
            ends = improvement_interval(pairs)
            row.update(_with_interval(f"{name}_improvement", float(np.mean([improvement(*p) for p in pairs])), ends))
            row[f"{name}_p"] = rank_test(pairs)
        for row, p in zip(compared, holm([row[f"{name}_p"] for row in compared]), strict=True):
            row[f"{name}_p_holm"] = p
    whole = {"n", "broken", "reached", "fell"}
    types = {c: str if c == "variant" else int if c in whole else float for c in rows[0]}
    return pl.DataFrame(rows, schema=types, orient="row")


def learning_curves(records: pl.DataFrame) -> pl.DataFrame:
    """Return each variant's learning curve with all its seeds.

    There is a row per variant, environment and step. The intervals are pointwise: 95% of them cover
    at each single step, not 95% of whole curves. The bootstrap draws whole seeds.

    | column | |
    |---|---|
    | `variant`, `env`, `env_step` | variants in the order of the records, steps ascending |
    | `n` | seeds |
    | `broken` | seeds that broke at this step or before |
    | `iqm` | interquartile mean of the seeds' returns; broken ones count as -inf |
    | `iqm_low`, `iqm_high` | its interval; null for a single seed |
    | `returns` | list of each seed's return, seeds ascending; NaN from where it broke |

    Args:
        records: as for `outcomes`.
    """
    frames = []
    for g in _groups(records):
        low, high = interval(lambda x: iqm(x, axis=1), g.returns, resamples=QUICK_RESAMPLES)
        n, has_interval, broken = len(g.seeds), len(g.seeds) > 1, np.isneginf(g.returns)
        length = len(g.steps)
        columns = {
            "variant": pl.Series([g.variant] * length, dtype=pl.String),
            "env": pl.Series([g.env] * length, dtype=pl.String),
            "env_step": g.steps,
            "n": pl.Series([n] * length, dtype=pl.Int64),
            "broken": broken.sum(axis=0),
            "iqm": iqm(g.returns, axis=0),
            "iqm_low": pl.Series(low if has_interval else [None] * length, dtype=pl.Float64),
            "iqm_high": pl.Series(high if has_interval else [None] * length, dtype=pl.Float64),
            "returns": np.where(broken, np.nan, g.returns).T.tolist(),
        }
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def _groups(records: pl.DataFrame) -> list[_Group]:
    """Check records; return each variant's curves in each environment, in the records' order."""
    needed = {"variant": "text", "seed": "whole numbers", "env_step": "whole numbers", "return_mean": "numbers"}
    kinds = needed | ({"env": "text"} if "env" in records.columns else {})
    for name, kind in kinds.items():
        if name not in records.columns:
            raise ConfigError(f"records: no column '{name}'{did_you_mean(name, records.columns, 'columns')}")
        found = records.schema[name]
        is_text = found in (pl.String, pl.Categorical, pl.Enum)
        fits = {"text": is_text, "whole numbers": found.is_integer(), "numbers": found.is_numeric()}
        if not fits[kind] and not (name == "return_mean" and found == pl.Null):
            raise ConfigError(f"records: column '{name}' holds {found}; it must hold {kind}")
        if name != "return_mean" and records[name].null_count():
            raise ConfigError(f"records: column '{name}' has a row without a value; fill it in or leave the row out")
    if records.is_empty():
        raise ConfigError("records: no rows; give one per evaluation of a seed")
    types = {"text": pl.String, "whole numbers": pl.Int64, "numbers": pl.Float64}
    keys = ["variant", "env", "seed", "env_step"]
    frame = records.select(pl.col(name).cast(types[kind]) for name, kind in kinds.items())
    frame = frame if "env" in kinds else frame.with_columns(env=pl.lit(None, pl.String))
    twice = frame.filter(frame.select(keys).is_duplicated())
    if len(twice):
        variant, env, seed, step = twice.select(keys).row(0)
        raise ConfigError(f"{_where(variant, env)}: seed {seed} has step {step:,} twice; keep one of the rows")
    return [_group(part.sort("seed", "env_step")) for part in frame.partition_by("variant", "env", maintain_order=True)]


def _group(part: pl.DataFrame) -> _Group:
    variant, env = part["variant"][0], part["env"][0]
    seeds, starts = np.unique(part["seed"].to_numpy(), return_index=True)
    steps = np.split(part["env_step"].to_numpy(), starts[1:])
    for seed, own in zip(seeds, steps, strict=True):
        if not np.array_equal(own, steps[0]):
            raise ConfigError(
                f"{_where(variant, env)}: seed {seed} has different evaluation steps from seed {seeds[0]}"
                f" ({len(own)} up to {own[-1]:,} against {len(steps[0])} up to {steps[0][-1]:,});"
                " give every seed the same steps, with NaN where it broke"
            )
    returns = part["return_mean"].fill_null(math.nan).to_numpy().reshape(len(seeds), -1)
    is_well = np.logical_and.accumulate(np.isfinite(returns), axis=1)
    return _Group(variant, env, seeds, steps[0], np.where(is_well, returns, -np.inf))


def _where(variant: str, env: str | None) -> str:
    return f"variant '{variant}'" + (f" in '{env}'" if env is not None else "")


def _threshold(threshold: float | Mapping[str, float], env: str | None) -> float:
    if isinstance(threshold, Mapping):
        if env is None:
            raise ConfigError("threshold: one per environment was given, but the records have no column 'env'")
        if env not in threshold:
            raise ConfigError(f"threshold: none for '{env}'{did_you_mean(env, threshold, 'environments')}")
        threshold = threshold[env]
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold: must be a finite return, got {threshold}")
    return float(threshold)


def _first(flags: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(n, T) flags -> (n,): the step of each row's first true flag; inf if there is none."""
    return np.where(flags.any(axis=1), steps[flags.argmax(axis=1)], np.inf)


def _area(g: _Group) -> np.ndarray:
    if len(g.steps) == 1:
        return g.returns[:, 0]
    return np.trapezoid(g.returns, g.steps, axis=1) / (g.steps[-1] - g.steps[0])


def _check_balance(variants: Mapping[str, list[pl.DataFrame]]) -> None:
    """Refuse variants that cannot be pooled: more seeds in easy environments would flatter one."""
    first, parts = next(iter(variants.items()))
    known = [part["env"][0] for part in parts]
    for variant, parts in variants.items():
        sizes = {part["env"][0]: len(part) for part in parts}
        if list(sizes) != known:
            raise ConfigError(
                f"variant '{variant}' has the environments {', '.join(sizes)}, but variant '{first}' has {', '.join(known)};"
                " give every variant the same ones"
            )
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{size} in {env}" for env, size in sizes.items())
            raise ConfigError(
                f"variant '{variant}' has unequal numbers of seeds: {told}; give it as many in each environment"
            )


def _variant_row(variant: str, parts: list[pl.DataFrame]) -> dict[str, Any]:
    """Return the columns of a variant that need no other variant."""
    whole = pl.concat(parts)
    n, reached, fell = len(whole), int(whole["first_solved"].is_finite().sum()), int(whole["fell"].sum())
    row: dict[str, Any] = {"variant": variant, "n": n, "broken": int(whole["broken"].sum())}
    for name, estimate in (("final_mean", np.mean), ("final_iqm", iqm), ("auc_mean", np.mean)):
        values = [part[name.split("_")[0]].to_numpy() for part in parts]
        ends = interval(pooled(estimate), *values) if min(map(len, values)) > 1 else (None, None)
        row.update(_with_interval(name, estimate(np.concatenate(values)), ends))
    for name in ("final", "first_solved", "solved_for_good"):
        column = whole[name].to_numpy()
        low, high = median_interval(column)
        least = -math.inf if name == "final" else 0.0  # steps are not negative
        row.update(_with_interval(f"{name}_median", float(np.median(column)), (max(low, least), high)))
    row["final_min"] = float(whole["final"].to_numpy().min())
    row.update(reached=reached, fell=fell)
    for name, count, of in (("fell", fell, reached), ("solved_at_end", int(whole["solved_at_end"].sum()), n)):
        ends = share_interval(count, of) if of else (None, None)
        row.update(_with_interval(f"{name}_share", count / of if of else None, ends))
    drops = whole["worst_drop"].drop_nulls().to_numpy()
    row["worst_drop_median"] = float(np.median(drops)) if len(drops) else None
    row["worst_drop_max"] = float(drops.max()) if len(drops) else None
    return row


def _with_interval(name: str, value: Any, ends: tuple[Any, Any]) -> dict[str, float | None]:
    told = zip((name, f"{name}_low", f"{name}_high"), (value, *ends), strict=True)
    return {key: None if number is None else float(number) for key, number in told}
