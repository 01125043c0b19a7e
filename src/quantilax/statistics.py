"""Statistics over seeds and episodes: estimates, 95% intervals and tests.

Everything here takes numbers and knows nothing of agents. docs/guides/statistics.md explains what
each figure means and when it misleads.

| symbol | meaning |
|---|---|
| R | resamples of a bootstrap |
| B | resamples in one batch |
| n, m | seeds of a variant, of the base (in one environment) |
| x, y | values of a variant's seeds, of the base's |
| z_0, a | bias correction and acceleration of a BCa interval |

A *variant* is one setting of a study; its seeds are independent runs. If a study has several
environments, they are *strata*: seeds are resampled, ranked and paired only within an environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
FEW_SEEDS = 10
"""With fewer seeds, a 95% bootstrap interval covers 90% or less; see docs/guides/statistics.md."""
RESAMPLES = 5_000
QUICK_RESAMPLES = 2_000
"""Resamples for curves and for episodes, of which there are many."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CVAR_LEVELS = (0.05, 0.1, 0.25)
"""Shares of the worst episodes whose mean is reported."""
BATCH = 2**20
"""Upper bound on the numbers in a batch of resamples."""
JACKKNIFE_UP_TO = 1_000
"""Number of rows above which an interval is not accelerated. The correction vanishes as rows are
added, and costs the square of their number."""
EXACT_UP_TO = 3_000
"""Number of all seeds times that of the smaller side, above which a rank test uses the normal
approximation."""

Statistic = Callable[..., np.ndarray]
"""(*strata), each (B, n, ...), -> (B, ...)."""


# Estimates


def iqm(values: Any, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and the highest quarter; NaN if a value is.

    A quarter is floor(n / 4) values. So the middle four of 6 values count, and all of fewer than 4.
    This is `scipy.stats.trim_mean(values, 0.25)`, as in rliable (https://arxiv.org/abs/2108.13264,
    section 4).
    """
    ordered = np.sort(values, axis=axis)
    ordered = ordered if axis is None else np.moveaxis(ordered, axis, -1)
    cut = ordered.shape[-1] // 4
    middle = ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)
    result = np.where(np.isnan(ordered[..., -1]), np.nan, middle)  # sorting puts NaN last, where it would be cut off
    return float(result) if result.ndim == 0 else result


def cvar(values: Any, level: float, axis: int = -1) -> Any:
    """Conditional value at risk: the mean of the worst (smallest) share `level` of the values.

    If the share is not a whole number of values, the last one counts in part. This is
    `max_b (b - mean(max(b - x, 0)) / level)` (Rockafellar & Uryasev 2000). A level of 1 gives the
    mean.

    Raises:
        ValueError: the level is not above 0 and at most 1.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level: expected a share above 0 and at most 1, got {level:g}")
    ordered = np.sort(np.moveaxis(np.asarray(values, float), axis, -1), axis=-1)
    counted = np.clip(level * ordered.shape[-1] - np.arange(ordered.shape[-1]), 0, 1)
    kept = counted > 0  # an infinity beyond the share does not count
    result = (ordered[..., kept] @ counted[kept]) / counted.sum()
    return float(result) if result.ndim == 0 else result


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Probability of improvement.

    This is the mean over all pairs of 1 if x > y, 1/2 if they are equal, and 0 otherwise.
    """
    return float(_wins(x, y).mean())


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Matrix (n, m): 1 if x > y, 1/2 if they are equal, 0 otherwise."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


# Intervals


def interval(statistic: Statistic, *strata: np.ndarray, resamples: int = RESAMPLES) -> tuple[Any, Any]:
    """Bootstrap a 95% interval of a statistic; the same call gives the same interval.

    The level is nominal. With few rows the interval covers less: for a mean of 5 rows about 80%, of
    20 rows 92% (docs/guides/statistics.md). Rows are drawn with replacement within each stratum.

    The interval is BCa (Efron 1987; for strata Davison and Hinkley 1997, section 5.3.2), as
    `scipy.stats.bootstrap` computes it for several samples. Percentiles are used if BCa is not
    defined: for a stratum of one row, if no resample is below or above the statistic, or if the
    jackknife has no variance or a value that is not finite. They are also used for more than 1,000
    rows. The ends are values of resamples, rounded outwards: nothing is interpolated.

    Args:
        statistic: takes the strata with a leading axis of resamples, (B, n, ...), and returns (B,
            ...).
        strata: (n, ...) each, with one row per independent unit.
        resamples: R.

    Returns:
        low and high, with the shape of the statistic without B.
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
    """An interval that covers the median in at least 95% of samples, for any distribution.

    The ends are order statistics x_(k) and x_(n + 1 - k) with the largest k for which P(Binomial(n,
    1/2) < k) <= 2.5%. For fewer than 6 values there is no such k, and the ends are infinite. Values
    may be infinite, but not NaN. For strata of equal size the interval is conservative (Hoeffding
    1956).
    """
    from scipy import stats

    ordered = np.sort(values)
    k = int(stats.binom.ppf(_tails()[0], len(ordered), 0.5))
    return (float(ordered[k - 1]), float(ordered[len(ordered) - k])) if k > 0 else (-math.inf, math.inf)


def share_interval(count: float, of: int) -> tuple[float, float]:
    """Wilson's interval of the share `count` / `of`; `of` must be positive.

    Source: Wilson (1927); Brown, Cai and DasGupta (2001).
    """
    from scipy.special import ndtri

    z2, share = ndtri(_tails()[1]) ** 2, count / of
    center = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = math.sqrt(z2 * (share * (1 - share) / of + z2 / (4 * of**2))) / (1 + z2 / of)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def improvement_interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Bootstrap an interval of the mean of `improvement` over strata.

    Seeds of variant and base are drawn separately. A bootstrap says nothing if the resamples do not
    differ (one side lies entirely above the other, or all values are equal), or if a side has a
    single seed. Then the interval is Wilson's, for the number of independent pairs: the sum of
    min(n, m) over strata.

    Args:
        pairs: (x, y) of each stratum.
    """
    wins = [_wins(x, y) for x, y in pairs]

    def statistic(*drawn: np.ndarray) -> np.ndarray:
        shares = []
        for w, i, j in zip(wins, drawn[::2], drawn[1::2], strict=True):
            beaten = _counts(i, len(w)) @ w  # (B, m): wins of the drawn x over each y
            shares.append(np.take_along_axis(beaten, j, axis=1).sum(axis=1) / (i.shape[1] * j.shape[1]))
        return np.mean(shares, axis=0)

    low, high = interval(statistic, *(np.arange(size) for w in wins for size in w.shape))
    if low < high and min(map(min, (w.shape for w in wins))) > 1:
        return float(low), float(high)
    independent = sum(min(w.shape) for w in wins)
    return share_interval(float(np.mean([w.mean() for w in wins])) * independent, independent)


def ratio_interval(sums: np.ndarray, resamples: int = QUICK_RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap intervals of weighted means whose terms come in independent units.

    The means are `ratios(sums)`. A unit is, for example, an episode with several states: its terms
    may depend on each other (a cluster bootstrap).

    Args:
        sums: (n, Q + 1), each unit's weighted sums of Q quantities, then the sum of its weights.
        resamples: R.

    Returns:
        low and high, (Q,); NaN for a single unit.
    """
    if len(sums) == 1:
        nothing = np.full(sums.shape[1] - 1, np.nan)
        return nothing, nothing
    low, high = interval(
        lambda drawn: ratios(_counts(drawn, len(sums)) @ sums), np.arange(len(sums)), resamples=resamples
    )
    return low, high


def ratios(sums: np.ndarray) -> np.ndarray:
    """Divide sums by the last of them, (..., Q + 1) -> (..., Q); NaN where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: np.ndarray = sums[..., :-1] / sums[..., -1:]
    return shares


def _counts(drawn: np.ndarray, size: int) -> np.ndarray:
    """Turn indices (B, n) into counts (B, size): how often each index was drawn."""
    batch = len(drawn)
    flat = (drawn + size * np.arange(batch)[:, None]).ravel()
    return np.bincount(flat, minlength=batch * size).reshape(batch, size).astype(float)


def _acceleration(statistic: Statistic, strata: Sequence[np.ndarray]) -> Any:
    """Estimate a with the jackknife within each stratum.

    NaN if it is not defined, or if a stratum has more than `JACKKNIFE_UP_TO` rows.
    """
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
    """Split `total` resamples of `size` numbers each into batches."""
    most = max(1, BATCH // max(1, size))
    for start in range(0, total, most):
        yield min(most, total - start)


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def pooled(statistic: Statistic) -> Statistic:
    """Turn a statistic of one sample into a statistic of strata, pooled."""
    return lambda *strata: statistic(np.concatenate(strata, axis=1), axis=1)


# Tests


def rank_test(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Two-sided test of whether both sides have the same distribution: return the p-value.

    The test is Mann-Whitney's, summed over strata (van Elteren). The p-value is that of the
    permutation distribution given the ties, P(|W - E W| >= |w - E W|) with W the sum of one side's
    midranks. It is exact if (n + m) min(n, m) <= 3,000 in each stratum. Otherwise it is the normal
    approximation with corrections for ties and continuity, as in `scipy.stats.mannwhitneyu`.

    Args:
        pairs: (x, y) of each stratum; each side has the same size in all of them. Values may be
            infinite.
    """
    from scipy import special, stats

    pairs = [(x, y) if len(x) <= len(y) else (y, x) for x, y in pairs]
    ranks = [np.rint(2 * stats.rankdata(np.concatenate(pair))).astype(int) for pair in pairs]  # midranks times 2
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
    """Probabilities of each sum of n of these integers, if all choices are equally likely."""
    table = np.zeros((n + 1, int(np.sort(ranks)[-n:].sum()) + 1))  # ways to choose k of the ranks so far with sum s
    table[0, 0] = 1
    for rank in ranks:
        table[1:, rank:] += table[:-1, :-rank]
    return table[n] / table[n].sum()


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests (Holm 1979).

    The probability of any false rejection then stays below the level.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


# Episodes of a run


class Summary(NamedTuple):
    """Statistics of the returns or lengths of episodes."""

    mean: float
    mean_interval: tuple[float, float]
    iqm: float
    """Mean of the middle half of the episodes."""
    iqm_interval: tuple[float, float]
    quantiles: dict[float, float]
    cvar: dict[float, float]
    """Mean of the worst share of the episodes, for each share in `CVAR_LEVELS`."""
    cvar_interval: dict[float, tuple[float, float]]


def summarize(values: np.ndarray) -> Summary:
    """Summarise episodes of one seed (E,) or of several (S, E).

    The intervals are 95% bootstraps. With several seeds whole seeds are drawn, so the intervals
    hold for training with another seed. With one seed only its episodes are drawn, so they say
    nothing about other seeds. A single episode of a single seed has no interval: NaN.
    """
    values = np.atleast_2d(values)
    units = values.T if len(values) == 1 else values  # one row per unit that is resampled

    measures: list[Statistic] = [np.mean, iqm, *(partial(cvar, level=level) for level in CVAR_LEVELS)]

    def told(drawn: np.ndarray) -> np.ndarray:
        episodes = drawn.reshape(len(drawn), -1)
        return np.stack([measure(episodes, axis=1) for measure in measures], axis=-1)

    if len(units) == 1:
        ends = [(math.nan, math.nan)] * len(measures)
    else:
        low, high = interval(told, units, resamples=QUICK_RESAMPLES)
        ends = list(zip(low.tolist(), high.tolist(), strict=True))
    of_mean, of_iqm, *of_tails = ends
    return Summary(
        mean=float(values.mean()),
        mean_interval=of_mean,
        iqm=iqm(values),
        iqm_interval=of_iqm,
        quantiles={q: float(np.quantile(values, q)) for q in QUANTILES},
        cvar={level: cvar(values.ravel(), level) for level in CVAR_LEVELS},
        cvar_interval=dict(zip(CVAR_LEVELS, of_tails, strict=True)),
    )
