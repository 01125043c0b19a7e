"""How often intervals cover and tests reject, by simulation with a fixed seed.

Every bound is the expected chance, plus or minus four standard errors of its estimate from STUDIES
studies.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from quantilax.statistics import improvement_interval, interval, iqm, median_interval, rank_test, share_interval

STUDIES = 500


def bounds(chance):
    """Four standard errors around a chance."""
    error = 4 * math.sqrt(chance * (1 - chance) / STUDIES)
    return chance - error, chance + error


def coverage(ends_of, draw, truth):
    """Share of studies whose interval holds the truth."""
    rng = np.random.default_rng(0)
    return np.mean([low <= truth <= high for low, high in (ends_of(draw(rng)) for _ in range(STUDIES))])


def pooled_mean(*strata):
    return np.concatenate(strata, axis=1).mean(axis=1)


def middle(x):
    return iqm(x, axis=1)


def test_the_means_interval_of_twenty_seeds_covers_as_often_as_a_bootstrap_can():
    # Resampled means of normal values lie around their mean with s sqrt(19/20) / sqrt(20), so the interval ends at 1.96
    # of these, which is 1.910 s / sqrt(20): Student's t with 19 degrees of freedom is within that with 92.9 %.
    chance = 1 - 2 * stats.t.sf(1.96 * math.sqrt(19 / 20), 19)
    low, high = bounds(chance)
    assert low < coverage(lambda x: interval(pooled_mean, x), lambda rng: rng.normal(size=20), 0) < high


@pytest.mark.parametrize(
    ("returns", "n", "measured"),
    [
        ("normal", 5, 0.839),
        ("exponential", 5, 0.794),
        *(
            pytest.param(*case, marks=pytest.mark.validation)
            for case in [("normal", 10, 0.908), ("exponential", 10, 0.875), ("exponential", 20, 0.915)]
        ),
    ],
)
def test_the_means_interval_of_few_seeds_covers_as_often_as_the_guide_says(returns, n, measured):
    low, high = bounds(measured)
    draw, truth = (np.random.Generator.normal, 0) if returns == "normal" else (np.random.Generator.exponential, 1)
    assert low < coverage(lambda x: interval(pooled_mean, x), lambda rng: draw(rng, size=n), truth) < high
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "statistics.md").read_text(encoding="utf-8")
    assert f"{measured:.1%}" in next(line for line in guide.splitlines() if line.startswith(f"| {returns}"))


def test_strata_cover_as_often_though_they_lie_far_apart():
    # Two environments of 20 seeds: the mean's variance is estimated with 38 degrees of freedom.
    chance = 1 - 2 * stats.t.sf(1.96 * math.sqrt(19 / 20), 38)
    low, high = bounds(chance)
    found = coverage(
        lambda x: interval(pooled_mean, *x), lambda rng: (rng.normal(0, 1, 20), rng.normal(1_000, 1, 20)), 500
    )
    assert low < found < high


def test_the_iqms_interval_covers_where_every_fourth_seed_collapses():
    # A quarter of the seeds is uniform on [100, 470], the others end at 500 - E with E ~ Exp(1). Of all, the middle half
    # are the lower two thirds of the others, E above its quantile 1/3, which is ln 1.5: the mean of those E is 1 + ln 1.5.
    truth = 500 - (1 + math.log(1.5))

    def draw(rng):
        return np.where(rng.random(40) < 0.25, rng.uniform(100, 470, 40), 500 - rng.exponential(size=40))

    sample = np.where(
        np.arange(400_000) < 100_000, 100, 500 - stats.expon.ppf((np.arange(400_000) + 0.5) / 3e5 - 1 / 3)
    )
    assert abs(iqm(sample) - truth) < 1e-3
    # A percentile bootstrap's error at n = 40 is of order 1 / n; 3 % less than 95 % is allowed for it.
    assert bounds(0.92)[0] < coverage(lambda x: interval(middle, x), draw, truth) <= 1


def test_the_medians_interval_covers_with_the_binomials_chance():
    # From the 6th to the 15th of 20: 1 - 2 P(X <= 5) = 95.9 %, whatever the distribution.
    chance = 1 - 2 * stats.binom.cdf(5, 20, 0.5)
    low, high = bounds(chance)
    found = coverage(median_interval, lambda rng: rng.exponential(size=20), math.log(2))
    assert low < found < high


def test_the_medians_interval_covers_with_seeds_that_never_solve():
    # 40 % never do: the median of the others' 0 to 100 at 5/6 of them, since 0.6 * 5/6 = 0.5
    found = coverage(
        median_interval, lambda rng: np.where(rng.random(20) < 0.4, np.inf, rng.uniform(0, 100, 20)), 100 * 5 / 6
    )
    assert found > bounds(1 - 2 * stats.binom.cdf(5, 20, 0.5))[0]


def test_wilsons_interval_covers_with_the_binomials_chance():
    n, share = 20, 0.1
    ks = np.arange(n + 1)
    holds = [low <= share <= high for low, high in (share_interval(k, n) for k in ks)]
    chance = stats.binom.pmf(ks, n, share)[holds].sum()  # no simulation: all there is
    assert 0.93 < chance < 0.98


def test_the_improvements_interval_covers():
    # x ~ N(1, 1), y ~ N(0, 1): P(x > y) = Phi(1 / sqrt 2)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    found = coverage(improvement_interval, lambda rng: [(rng.normal(1, 1, 20), rng.normal(0, 1, 20))], truth)
    assert found > bounds(0.93)[0]  # of two samples of twenty a bootstrap loses two in a hundred, as for the mean


def test_the_improvements_interval_is_no_certainty_where_one_side_mostly_wins():
    # N(3, 1) against N(0, 1) with five seeds each: all pairs are won in most studies, and the truth is 98.3 %
    truth = stats.norm.cdf(3 / math.sqrt(2))
    found = coverage(improvement_interval, lambda rng: [(rng.normal(3, 1, 5), rng.normal(0, 1, 5))], truth)
    assert found > bounds(0.93)[0]


def test_the_rank_test_rejects_a_true_hypothesis_no_oftener_than_its_level():
    rng = np.random.default_rng(0)

    def finals(n):  # with ties: half of the seeds end at 500
        return np.minimum(500, rng.normal(500, 50, n).round())

    for n, m in ((6, 9), (20, 20), (60, 60)):
        p = np.array([rank_test([(finals(n), finals(m))]) for _ in range(STUDIES)])
        for level in (0.05, 0.2):
            assert np.mean(p <= level) < bounds(level)[1]
        assert np.mean(p <= 0.2) > bounds(0.12)[0], "it rejects at all; ties make the exact test a little shy"
