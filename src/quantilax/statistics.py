"""Statistics over seeds and episodes: estimates, 95% intervals and tests; records of a study in, tables out.

Everything here reads numbers and knows no agent. What a figure means and when it misleads: `docs/guides/statistics.md`.

    R                        resamples of a bootstrap
    B                        those of them that are worked on at once
    n, m                     seeds of a cell, of the base (in one environment)
    T                        evaluations of a seed
    x, y                     values of a cell's seeds, of the base's
    z_0, a                   bias correction and acceleration of a BCa interval

A *cell* is one setting of a study; its seeds are independent runs. Where a study holds several environments they are
*strata*: seeds are drawn anew, ranked and paired within an environment only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantilax.pytree import ConfigError, did_you_mean

if TYPE_CHECKING:  # polars and scipy.stats take a good part of a second each
    import polars as pl

CONFIDENCE = 0.95
FEW_SEEDS = 10
"""With fewer, the interval of 95% of a bootstrap covers 90% or less, see docs/guides/statistics.md."""
RESAMPLES = 5_000
QUICK_RESAMPLES = 2_000
"""For curves and for episodes, of which there are many."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BATCH = 2**20
"""Numbers that a batch of resamples may hold."""
JACKKNIFE_UP_TO = 1_000
"""Rows, beyond which an interval is not accelerated: the correction vanishes with their number and costs its square."""
OUTCOMES = {
    "cell": str, "env": str, "seed": int, "broken": bool, "final": float, "auc": float, "first_solved": float,
    "solved_for_good": float, "solved_at_end": bool, "fell": bool, "worst_drop": float,
}  # fmt: skip
COMPARISONS = ("improvement", "improvement_low", "improvement_high", "p", "p_holm")
EXACT_UP_TO = 3_000
"""Number of seeds times that of the smaller side, beyond which a rank test is the normal approximation."""

Statistic = Callable[..., np.ndarray]
"""(*strata), each (B, n, ...) -> (B, ...)"""


# Estimates


def iqm(values: Any, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and the highest quarter; NaN where one of them is.

    A quarter is floor(n / 4) values, so of 6 the middle four count, and of less than 4 all: this is
    `scipy.stats.trim_mean(values, 0.25)`, as in rliable (https://arxiv.org/abs/2108.13264, section 4).
    """
    ordered = np.sort(values, axis=axis)
    ordered = ordered if axis is None else np.moveaxis(ordered, axis, -1)
    cut = ordered.shape[-1] // 4
    middle = ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)
    result = np.where(np.isnan(ordered[..., -1]), np.nan, middle)  # sorting lays NaN where it would be cut off
    return float(result) if result.ndim == 0 else result


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Probability of improvement: the mean over all pairs of 1 where x > y, 1/2 where they are equal, and 0."""
    return float(_wins(x, y).mean())


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, m) of 1, 1/2 and 0."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


# Intervals


def interval(statistic: Statistic, *strata: np.ndarray, resamples: int = RESAMPLES) -> tuple[Any, Any]:
    """Bootstrap an interval of 95% of a statistic; the same call gives the same interval.

    The level is nominal: of few rows it covers less, a mean of 5 in about 80%, of 20 in 92% (docs/guides/statistics.md).
    Rows are drawn with replacement within each stratum. The interval is BCa (Efron 1987; for strata Davison and Hinkley
    1997, section 5.3.2), as `scipy.stats.bootstrap` has it for several samples. Percentiles are taken where it is not
    defined: a stratum of one row, no resample below or above the statistic, a jackknife without variance or with a value
    that is not finite; and with more than 1,000 rows. Ends are resamples' values, the outer ones: nothing is interpolated.

    Args:
        statistic: takes the strata with a leading axis of resamples, (B, n, ...), and gives (B, ...).
        strata: (n, ...) each, a row per independent unit.
        resamples: R.

    Returns:
        low and high, shaped as the statistic without B.
    """
    from scipy.special import ndtr, ndtri

    rng = np.random.default_rng(0)
    sizes = _batches(resamples, sum(x.size for x in strata))
    batches = ([rng.integers(0, len(x), (b, len(x))) for x in strata] for b in sizes)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = statistic(*(x[None] for x in strata))
        drawn = np.concatenate([statistic(*(x[i] for x, i in zip(strata, rows, strict=True))) for rows in batches])
        z_0 = ndtri(((drawn < value).mean(axis=0) + (drawn <= value).mean(axis=0)) / 2)
        a = _acceleration(statistic, strata)
        z = z_0 + ndtri(_tails()[0]) * np.array([1, -1]).reshape(2, *[1] * z_0.ndim)
        stretch = 1 - a * z
        levels = ndtr(z_0 + z / stretch)
        has_bca = np.isfinite(levels).all(axis=0) & (stretch > 0).all(axis=0)
    low, high = (np.where(has_bca, levels[i], plain) for i, plain in enumerate(_tails()))
    ordered = np.sort(drawn, axis=0)
    ranks = np.floor(low * (resamples - 1)), np.ceil(high * (resamples - 1))
    ends = (np.take_along_axis(ordered, rank[None].astype(int), axis=0)[0] for rank in ranks)
    return next(ends)[()], next(ends)[()]


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """Give an interval of the median that covers it in 95% of samples or more, whatever the distribution.

    The ends are order statistics x_(k) and x_(n + 1 - k) with the largest k for which P(Binomial(n, 1/2) < k) <= 2.5%.
    Below 6 values there is none: the ends are infinite. Values may be infinite; none may be NaN. For strata of equal
    size the interval is conservative (Hoeffding 1956).
    """
    from scipy import stats

    ordered = np.sort(values)
    k = int(stats.binom.ppf(_tails()[0], len(ordered), 0.5))
    return (float(ordered[k - 1]), float(ordered[len(ordered) - k])) if k > 0 else (-math.inf, math.inf)


def share_interval(count: float, of: int) -> tuple[float, float]:
    """Wilson's interval of a share: `count` out of `of`, which is positive (Wilson 1927; Brown, Cai and DasGupta 2001)."""
    from scipy.special import ndtri

    z2, share = ndtri(_tails()[1]) ** 2, count / of
    center = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = math.sqrt(z2 * (share * (1 - share) / of + z2 / (4 * of**2))) / (1 + z2 / of)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def improvement_interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Bootstrap an interval of the mean over strata of `improvement`; cells and base are drawn apart.

    Where resamples do not differ (one side lies wholly above the other, or all is equal) a bootstrap says nothing, and of
    a single seed neither. Then the interval is Wilson's for the independent pairs there are, min(n, m) of each stratum.

    Args:
        pairs: (x, y) of each stratum.
    """
    wins = [_wins(x, y) for x, y in pairs]

    def statistic(*drawn: np.ndarray) -> np.ndarray:
        shares = []
        for w, i, j in zip(wins, drawn[::2], drawn[1::2], strict=True):
            beaten = _counts(i, len(w)) @ w  # (B, m): wins of what was drawn of x over each of y
            shares.append(np.take_along_axis(beaten, j, axis=1).sum(axis=1) / (i.shape[1] * j.shape[1]))
        return np.mean(shares, axis=0)

    low, high = interval(statistic, *(np.arange(size) for w in wins for size in w.shape))
    if low < high and min(map(min, (w.shape for w in wins))) > 1:
        return float(low), float(high)
    independent = sum(min(w.shape) for w in wins)
    return share_interval(float(np.mean([w.mean() for w in wins])) * independent, independent)


def _counts(drawn: np.ndarray, size: int) -> np.ndarray:
    """(B, n) indices -> (B, size): how often each was drawn."""
    batch = len(drawn)
    flat = (drawn + size * np.arange(batch)[:, None]).ravel()
    return np.bincount(flat, minlength=batch * size).reshape(batch, size).astype(float)


def _acceleration(statistic: Statistic, strata: Sequence[np.ndarray]) -> Any:
    """Estimate a, from the jackknife within each stratum; NaN where it is not defined."""
    if not all(2 <= len(x) <= JACKKNIFE_UP_TO for x in strata):
        return math.nan
    cubes: Any = 0.0
    squares: Any = 0.0
    for s, x in enumerate(strata):
        n, done, parts = len(x), 0, []
        for b in _batches(n, sum(x.size for x in strata)):
            left_out = np.arange(done, done + b)[:, None]
            others = np.arange(n - 1) + (np.arange(n - 1) >= left_out)
            whole = [np.broadcast_to(other, (b, *other.shape)) for other in strata]
            parts.append(statistic(*whole[:s], x[others], *whole[s + 1 :]))
            done += b
        without = np.concatenate(parts)
        influence = (n - 1) * (without.mean(axis=0) - without)
        cubes = cubes + (influence**3).sum(axis=0) / n**3
        squares = squares + (influence**2).sum(axis=0) / n**2
    return cubes / (6 * squares**1.5)


def _batches(total: int, size: int) -> Iterator[int]:
    """Cut a number of resamples of `size` numbers each into batches."""
    most = max(1, BATCH // max(1, size))
    for start in range(0, total, most):
        yield min(most, total - start)


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def _pooled(statistic: Statistic) -> Statistic:
    """Make a statistic of one sample one of strata."""
    return lambda *strata: statistic(np.concatenate(strata, axis=1), axis=1)


# Tests


def rank_test(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Test, two-sided, whether both sides have one distribution: Mann-Whitney, summed over strata (van Elteren).

    The p-value is that of the permutation distribution given the ties: P(|W - E W| >= |w - E W|) with W the sum of one
    side's midranks. It is exact while (n + m) min(n, m) <= 3,000 in each stratum, and beyond it the normal
    approximation with correction for ties and continuity, as `scipy.stats.mannwhitneyu` has it.

    Args:
        pairs: (x, y) of each stratum, each side of one size in all of them; values may be infinite.
    """
    from scipy import special, stats

    pairs = [(x, y) if len(x) <= len(y) else (y, x) for x, y in pairs]
    ranks = [np.rint(2 * stats.rankdata(np.concatenate(pair))).astype(int) for pair in pairs]  # midranks, in halves
    sides = [(len(x), len(y)) for x, y in pairs]
    apart = abs(sum(int(r[:n].sum()) - n * (n + m + 1) for r, (n, m) in zip(ranks, sides, strict=True)))
    if all((n + m) * n <= EXACT_UP_TO for n, m in sides):
        chances = np.ones(1)
        for r, (n, _) in zip(ranks, sides, strict=True):
            chances = np.convolve(chances, _rank_sums(r, n))
        sums = np.arange(len(chances)) - sum(n * (n + m + 1) for n, m in sides)
        return min(1.0, float(chances[np.abs(sums) >= apart].sum()))
    variance = 0.0
    for r, (n, m) in zip(ranks, sides, strict=True):
        ties = np.unique(r, return_counts=True)[1].astype(float)
        variance += n * m / 12 * (n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    z = (apart / 2 - 0.5) / math.sqrt(variance) if variance else 0.0
    return min(1.0, 2 * float(special.ndtr(-z)))


def _rank_sums(ranks: np.ndarray, n: int) -> np.ndarray:
    """Chances of each sum of n of these whole numbers, all choices of n alike."""
    table = np.zeros((n + 1, int(np.sort(ranks)[-n:].sum()) + 1))  # ways to choose k of those seen, with sum s
    table[0, 0] = 1
    for rank in ranks:
        table[1:, rank:] += table[:-1, :-rank]
    return table[n] / table[n].sum()


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection among them stays below the level (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


# Episodes of a run


class Summary(NamedTuple):
    """Statistics of episodes' returns or lengths."""

    mean: float
    mean_interval: tuple[float, float]
    iqm: float
    """Mean of the middle half of the episodes."""
    iqm_interval: tuple[float, float]
    quantiles: dict[float, float]


def summarize(values: np.ndarray) -> Summary:
    """Summarise episodes of one seed (E,) or of several (S, E).

    The intervals are bootstraps of 95%. With several seeds whole seeds are drawn, so they hold for what training with
    another seed would give; with one seed only the episodes are drawn, and they say nothing on other seeds. Of a single
    episode of a single seed there is no interval: NaN.
    """
    values = np.atleast_2d(values)
    units = values.T if len(values) == 1 else values  # what is drawn, in rows

    def told(statistic: Statistic) -> tuple[float, float]:
        if len(units) == 1:
            return math.nan, math.nan
        low, high = interval(
            lambda drawn: statistic(drawn.reshape(len(drawn), -1), axis=1), units, resamples=QUICK_RESAMPLES
        )
        return float(low), float(high)

    return Summary(
        mean=float(values.mean()),
        mean_interval=told(np.mean),
        iqm=iqm(values),
        iqm_interval=told(iqm),
        quantiles={q: float(np.quantile(values, q)) for q in QUANTILES},
    )


# Records of a study


class _Group(NamedTuple):
    """The curves of a cell in an environment."""

    cell: str
    env: str | None
    seeds: np.ndarray
    """(n,), ascending"""
    steps: np.ndarray
    """(T,), ascending"""
    returns: np.ndarray
    """(n, T); -inf from a seed's first evaluation on that is no finite number"""

    @property
    def broken(self) -> np.ndarray:
        return np.isneginf(self.returns[:, -1])


def outcomes(records: pl.DataFrame, threshold: float | Mapping[str, float]) -> pl.DataFrame:
    """Say what became of each seed: a row per cell, environment and seed.

    Cells stand in the order of the records, seeds ascend. Returns and thresholds have the environment's unit, steps are
    environment steps.

    | column | |
    |---|---|
    | `cell`, `env`, `seed` | whose row this is; `env` is null where the records have none |
    | `broken` | whether the seed broke |
    | `final` | return of the last evaluation |
    | `auc` | return, averaged over the curve: trapezoidal rule over env_step, divided by the last step minus the first |
    | `first_solved` | first step at or above the threshold; inf if there is none |
    | `solved_for_good` | first step from which on no evaluation is below the threshold; inf if there is none |
    | `solved_at_end` | whether the last evaluation is at or above the threshold |
    | `fell` | whether an evaluation after `first_solved` is below the threshold |
    | `worst_drop` | threshold minus the lowest return after `first_solved`, at least 0; null where it was never reached |

    Args:
        records: a row per evaluation of a seed, in any order, with the columns `cell` (str), `seed` (int), `env_step`
            (int), `return_mean` (float) and, for a study of several environments, `env` (str); others are ignored. All
            seeds of a cell have the same steps in an environment. A return that is missing or no finite number says that
            the seed broke: from there on its returns count as -inf.
        threshold: the return from which on the task counts as solved; or one for each environment.

    Raises:
        ConfigError: a column is missing or of another type, an evaluation stands twice, steps differ between seeds.
    """
    import polars as pl

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
        rows += [(g.cell, g.env, *row) for row in zip(*columns, drops, strict=True)]
    return pl.DataFrame(rows, schema=OUTCOMES, orient="row")


def summary(records: pl.DataFrame, threshold: float | Mapping[str, float], base: str | None = None) -> pl.DataFrame:
    """Summarise each cell over its seeds, and compare it with a base: a row per cell, in the order of the records.

    A figure is followed by its interval of 95% (nominal, see `interval`) as `<name>_low` and `<name>_high`, where it has one.

    | column | unit and meaning | interval |
    |---|---|---|
    | `cell` | whose row this is | |
    | `n` | runs: seeds, times environments | |
    | `broken` | runs that broke; each counts as a return of -inf, as never solved and as the lowest rank | |
    | `final_mean`, `final_iqm` | return | bootstrap |
    | `auc_mean` | return | bootstrap |
    | `final_median` | return | order statistics; infinite below 6 runs |
    | `final_min` | return of the lowest run | |
    | `first_solved_median`, `solved_for_good_median` | environment steps; runs that never did count as inf | order statistics |
    | `reached`, `fell` | runs that reached the threshold, and those of them that were below it later | |
    | `fell_share` | fell / reached; null where none reached it | Wilson |
    | `solved_at_end_share` | share of all runs | Wilson |
    | `worst_drop_median`, `worst_drop_max` | return, of the runs that reached the threshold; null where none did | |
    | `final_improvement`, `auc_improvement` | probability of improvement over the base | bootstrap |
    | `final_p`, `auc_p` | p-value of `rank_test` against the base | |
    | `final_p_holm`, `auc_p_holm` | the same, adjusted for the number of cells compared | |

    The comparisons are null in the row of the base, and everywhere without one. Bootstraps of returns are null where a
    cell has a single seed in an environment.

    Args:
        records, threshold: as for `outcomes`. With several environments every cell has seeds in each of them, the same
            number in each; returns are then pooled, so bring them to one scale before.
        base: the cell that the others are compared with; None: no comparison.

    Raises:
        ConfigError: as for `outcomes`; the base is not among the cells; an environment has other numbers of seeds.
    """
    import polars as pl

    told = outcomes(records, threshold)
    cells: dict[str, list[pl.DataFrame]] = {}
    for part in told.partition_by("cell", "env", maintain_order=True):
        cells.setdefault(part["cell"][0], []).append(part.sort("seed"))
    cells = {cell: sorted(parts, key=lambda part: part["env"][0] or "") for cell, parts in cells.items()}
    _check_balance(cells)
    if base is not None and base not in cells:
        raise ConfigError(f"no cell '{base}' to compare with{did_you_mean(base, cells, 'cells')}")
    rows = [_cell_row(cell, parts) for cell, parts in cells.items()]
    compared = [row for row in rows if base is not None and row["cell"] != base]
    for name in ("final", "auc"):
        for row in rows:
            row.update(dict.fromkeys(f"{name}_{c}" for c in COMPARISONS))
        for row in compared:
            sides = zip(cells[row["cell"]], cells[base], strict=True)  # type: ignore[index]
            pairs = [(x[name].to_numpy(), y[name].to_numpy()) for x, y in sides]
            ends = improvement_interval(pairs)
            row.update(_with_interval(f"{name}_improvement", float(np.mean([improvement(*p) for p in pairs])), ends))
            row[f"{name}_p"] = rank_test(pairs)
        for row, p in zip(compared, holm([row[f"{name}_p"] for row in compared]), strict=True):
            row[f"{name}_p_holm"] = p
    whole = {"n", "broken", "reached", "fell"}
    types = {c: str if c == "cell" else int if c in whole else float for c in rows[0]}
    return pl.DataFrame(rows, schema=types, orient="row")


def learning_curves(records: pl.DataFrame) -> pl.DataFrame:
    """Give each cell's learning curve, with all of its seeds: a row per cell, environment and step.

    The intervals are pointwise: at each step alone 95% of them cover, not 95% of whole curves. Whole seeds are drawn.

    | column | |
    |---|---|
    | `cell`, `env`, `env_step` | whose row this is; cells in the order of the records, steps ascending |
    | `n` | seeds |
    | `broken` | those of them that broke at this step or before |
    | `iqm` | interquartile mean of the seeds' returns; broken ones count as -inf |
    | `iqm_low`, `iqm_high` | its interval; null for a single seed |
    | `returns` | list: each seed's return, seeds ascending; NaN from where it broke |

    Args:
        records: as for `outcomes`.
    """
    import polars as pl

    frames = []
    for g in _groups(records):
        low, high = interval(lambda x: iqm(x, axis=1), g.returns, resamples=QUICK_RESAMPLES)
        n, has_interval, broken = len(g.seeds), len(g.seeds) > 1, np.isneginf(g.returns)
        length = len(g.steps)
        columns = {
            "cell": pl.Series([g.cell] * length, dtype=pl.String),
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
    """Check records and put each cell's curves in an environment into a matrix, in the order of the records."""
    import polars as pl

    needed = {"cell": "text", "seed": "whole numbers", "env_step": "whole numbers", "return_mean": "numbers"}
    kinds = needed | ({"env": "text"} if "env" in records.columns else {})
    for name, kind in kinds.items():
        if name not in records.columns:
            raise ConfigError(f"records: no column '{name}'{did_you_mean(name, records.columns, 'columns')}")
        found = records.schema[name]
        is_text = found in (pl.String, pl.Categorical, pl.Enum)
        fits = {"text": is_text, "whole numbers": found.is_integer(), "numbers": found.is_numeric()}
        if not fits[kind] and not (name == "return_mean" and found == pl.Null):
            raise ConfigError(f"records: column '{name}' holds {found}; it has to hold {kind}")
        if name != "return_mean" and records[name].null_count():
            raise ConfigError(f"records: column '{name}' has a row without a value; fill it in or leave the row out")
    if records.is_empty():
        raise ConfigError("records: no rows; give one per evaluation of a seed")
    types = {"text": pl.String, "whole numbers": pl.Int64, "numbers": pl.Float64}
    keys = ["cell", "env", "seed", "env_step"]
    frame = records.select(pl.col(name).cast(types[kind]) for name, kind in kinds.items())
    frame = frame if "env" in kinds else frame.with_columns(env=pl.lit(None, pl.String))
    twice = frame.filter(frame.select(keys).is_duplicated())
    if len(twice):
        cell, env, seed, step = twice.select(keys).row(0)
        raise ConfigError(f"{_where(cell, env)}: seed {seed} has step {step:,} twice; keep one of the rows")
    return [_group(part.sort("seed", "env_step")) for part in frame.partition_by("cell", "env", maintain_order=True)]


def _group(part: pl.DataFrame) -> _Group:
    cell, env = part["cell"][0], part["env"][0]
    seeds, starts = np.unique(part["seed"].to_numpy(), return_index=True)
    steps = np.split(part["env_step"].to_numpy(), starts[1:])
    for seed, own in zip(seeds, steps, strict=True):
        if not np.array_equal(own, steps[0]):
            raise ConfigError(
                f"{_where(cell, env)}: seed {seed} has other evaluation steps than seed {seeds[0]}"
                f" ({len(own)} up to {own[-1]:,} against {len(steps[0])} up to {steps[0][-1]:,});"
                " give every seed the same steps, with NaN where it broke"
            )
    returns = part["return_mean"].fill_null(math.nan).to_numpy().reshape(len(seeds), -1)
    is_well = np.logical_and.accumulate(np.isfinite(returns), axis=1)
    return _Group(cell, env, seeds, steps[0], np.where(is_well, returns, -np.inf))


def _where(cell: str, env: str | None) -> str:
    return f"cell '{cell}'" + (f" in '{env}'" if env is not None else "")


def _threshold(threshold: float | Mapping[str, float], env: str | None) -> float:
    if isinstance(threshold, Mapping):
        if env is None:
            raise ConfigError("threshold: one per environment was given, and the records have no column 'env'")
        if env not in threshold:
            raise ConfigError(f"threshold: none for '{env}'{did_you_mean(env, threshold, 'environments')}")
        threshold = threshold[env]
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold: has to be a finite return, got {threshold}")
    return float(threshold)


def _first(flags: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(n, T) flags -> (n,): the step of each row's first one; inf where there is none."""
    return np.where(flags.any(axis=1), steps[flags.argmax(axis=1)], np.inf)


def _area(g: _Group) -> np.ndarray:
    if len(g.steps) == 1:
        return g.returns[:, 0]
    return np.trapezoid(g.returns, g.steps, axis=1) / (g.steps[-1] - g.steps[0])


def _check_balance(cells: Mapping[str, list[pl.DataFrame]]) -> None:
    """Refuse cells that cannot be pooled over environments: one with more of the easy ones would look better."""
    first, parts = next(iter(cells.items()))
    known = [part["env"][0] for part in parts]
    for cell, parts in cells.items():
        sizes = {part["env"][0]: len(part) for part in parts}
        if list(sizes) != known:
            raise ConfigError(
                f"cell '{cell}' has the environments {', '.join(sizes)} and cell '{first}' {', '.join(known)};"
                " give every cell the same ones"
            )
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{size} in {env}" for env, size in sizes.items())
            raise ConfigError(
                f"cell '{cell}' has unequal numbers of seeds: {told}; give it as many in each environment"
            )


def _cell_row(cell: str, parts: list[pl.DataFrame]) -> dict[str, Any]:
    """Everything of a cell that needs no other."""
    import polars as pl

    whole = pl.concat(parts)
    n, reached, fell = len(whole), int(whole["first_solved"].is_finite().sum()), int(whole["fell"].sum())
    row: dict[str, Any] = {"cell": cell, "n": n, "broken": int(whole["broken"].sum())}
    for name, estimate in (("final_mean", np.mean), ("final_iqm", iqm), ("auc_mean", np.mean)):
        values = [part[name.split("_")[0]].to_numpy() for part in parts]
        ends = interval(_pooled(estimate), *values) if min(map(len, values)) > 1 else (None, None)
        row.update(_with_interval(name, estimate(np.concatenate(values)), ends))
    for name in ("final", "first_solved", "solved_for_good"):
        column = whole[name].to_numpy()
        low, high = median_interval(column)
        least = -math.inf if name == "final" else 0.0  # no step is below it
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
