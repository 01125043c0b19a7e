"""Statistics over seeds: estimates and tables against numbers by hand, intervals and tests against independent oracles."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quantilax import ConfigError, statistics
from quantilax.statistics import (
    cvar,
    holm,
    improvement,
    improvement_interval,
    interval,
    iqm,
    median_interval,
    rank_test,
    share_interval,
    summarize,
)
from quantilax.studies.tables import learning_curves, outcomes, summary

NAN, INF = math.nan, math.inf


def mean(*strata):
    return np.concatenate(strata, axis=1).mean(axis=1)


def table(curves, steps=None, **columns):
    """Records of curves {variant: [a seed's returns, ...]}, by default at steps 0, 100, 200, ..."""
    rows = [
        {"variant": variant, "seed": seed, "env_step": steps[t] if steps else 100 * t, "return_mean": value, **columns}
        for variant, seeds in curves.items()
        for seed, curve in enumerate(seeds)
        for t, value in enumerate(curve)
    ]
    return pl.DataFrame(rows, schema_overrides={"return_mean": pl.Float64})


# Estimates


def test_the_iqm_is_scipys_trimmed_mean_as_rliable_has_it():
    for n in (1, 2, 3, 4, 5, 6, 7, 10, 101):
        values = np.random.default_rng(n).normal(size=(n, 3))
        assert iqm(values[:, 0]) == pytest.approx(stats.trim_mean(values[:, 0], 0.25))
        assert iqm(values, axis=0) == pytest.approx(stats.trim_mean(values, 0.25, axis=0))
        assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=None)), "without an axis: of all"


def test_the_iqm_drops_whole_values_only():
    assert iqm([0, 1, 2, 3, 4, 100]) == 2.5  # floor(6 / 4) = 1 of each end: (1 + 2 + 3 + 4) / 4
    assert iqm([0, 1, 100]) == pytest.approx(101 / 3)  # floor(3 / 4) = 0


def test_the_iqm_of_something_with_nan_is_nan_and_a_few_of_minus_infinity_are_cut_off():
    assert math.isnan(iqm([1.0, 2.0, 3.0, NAN]))  # sorted last, it would be cut off as if it were the best
    assert iqm([-INF, 2.0, 4.0, 6.0]) == 3
    assert iqm([-INF, -INF, 4.0, 6.0]) == -INF


def test_probability_of_improvement_counts_pairs_and_half_of_ties():
    x, y = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    # 1 > 0; 2 = 2 and 2 > 0, twice: (0 + 1 + .5 + 1 + .5 + 1) / 6
    assert improvement(x, y) == pytest.approx(4 / 6)
    assert improvement(x, y) + improvement(y, x) == pytest.approx(1)
    assert improvement(np.array([-INF]), np.array([-INF])) == 0.5


def test_probability_of_improvement_is_mann_whitneys_u_over_the_pairs_as_in_rliable():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 9).astype(float), rng.integers(1, 6, 7).astype(float)
    assert improvement(x, y) == pytest.approx(stats.mannwhitneyu(x, y, alternative="greater").statistic / 63)


# Intervals of bootstraps


def scipys(samples, statistic, resamples=999, method="BCa"):
    return stats.bootstrap(samples, statistic, n_resamples=resamples, method=method, rng=0, vectorized=True)


def assert_same_ends(ours, theirs):
    """Ours are scipy's or the next outer values of its resamples: it interpolates between two of them."""
    found, drawn = theirs.confidence_interval, theirs.bootstrap_distribution
    for own, other, sign in ((ours[0], found.low, 1), (ours[1], found.high, -1)):
        assert sign * own <= sign * other + 1e-9
        between = (sign * drawn > sign * own + 1e-9) & (sign * drawn < sign * other - 1e-9)
        assert between.sum() == 0


def assert_percentiles(drawn, low, high):
    """2.5 % of all resamples there are lie below, and 2.5 % above, up to four standard errors of the resamples drawn."""
    noise = 4 * math.sqrt(0.025 * 0.975 / statistics.RESAMPLES)
    assert np.mean(drawn < low) <= 0.025 + noise
    assert np.mean(drawn <= low) >= 0.025 - noise
    assert np.mean(drawn > high) <= 0.025 + noise
    assert np.mean(drawn >= high) >= 0.025 - noise


@pytest.mark.parametrize("n", [2, 5, 20, 101])
def test_the_interval_is_scipys_bca(n):
    x = np.random.default_rng(n).exponential(size=n)
    assert_same_ends(interval(mean, x, resamples=999), scipys((x,), np.mean))
    assert_same_ends(
        interval(lambda v: iqm(v, axis=1), x, resamples=999), scipys((x,), lambda v, axis: iqm(v, axis=axis))
    )


def test_strata_are_drawn_apart_as_scipy_draws_several_samples():
    rng = np.random.default_rng(1)
    x, y = rng.exponential(size=12), 100 + rng.exponential(size=7)
    low, high = interval(mean, x, y, resamples=999)
    assert_same_ends((low, high), scipys((x, y), lambda a, b, axis: np.concatenate([a, b], axis).mean(axis)))
    assert high - low < 3, "drawn together, the share of y would vary, and the mean by tens with it"


def test_a_statistic_with_several_numbers_gets_the_interval_of_each():
    values = np.random.default_rng(2).exponential(size=(9, 4))
    low, high = interval(lambda x: iqm(x, axis=1), values)
    for t in range(4):
        assert (low[t], high[t]) == interval(lambda x: iqm(x, axis=1), values[:, t])


def test_work_in_batches_changes_nothing(monkeypatch):
    values = np.random.default_rng(3).exponential(size=30)
    whole = interval(mean, values)
    monkeypatch.setattr(statistics, "BATCH", 100)
    assert interval(mean, values) == whole


def test_where_bca_is_not_defined_the_interval_is_that_of_all_resamples_percentiles():
    # Without any one of these five the middle of four is 500 and 500: the jackknife has no variance.
    # With the 100 twice in a resample its middle three are 100, 500, 500; with it thrice 100, 100, 500.
    values = np.array([100.0, 500, 500, 500, 500])
    low, high = interval(lambda x: iqm(x, axis=1), values)
    drawn = iqm(values[np.array(list(itertools.product(range(5), repeat=5)))], axis=1)
    assert_percentiles(drawn, low, high)
    # P(3 or more of five are the 100) = 5.8 %, P(4 or more) = 0.7 %
    assert (low, high) == (pytest.approx(700 / 3), 500)


def test_minus_infinity_is_never_interpolated_away():
    # A resample of four has no -inf with (3/4)^4 = 32 %: the lower end is -inf, the upper one a number.
    values = np.array([-INF, 1, 2, 3])
    low, high = interval(mean, values)
    assert_percentiles(values[np.array(list(itertools.product(range(4), repeat=4)))].mean(axis=1), low, high)
    assert low == -INF
    assert 2 < high < 3


def test_minus_infinity_below_what_is_cut_off_leaves_the_interval_as_it_was():
    # The IQM of twenty is that of the middle ten, and 99.97 % of resamples have the one lowest five times or less.
    values = np.sort(np.random.default_rng(14).exponential(size=20))
    broken = np.array([-INF, *values[1:]])
    assert interval(lambda x: iqm(x, axis=1), broken) == interval(lambda x: iqm(x, axis=1), values)


def test_values_that_are_all_equal_have_an_interval_of_no_width():
    assert interval(mean, np.full(5, 500.0)) == (500, 500)
    assert interval(mean, np.array([500.0])) == (500, 500)
    assert interval(mean, np.full(5, -INF)) == (-INF, -INF)


def test_many_rows_are_not_accelerated_and_change_little(monkeypatch):
    values = np.random.default_rng(4).exponential(size=200)
    accelerated = interval(mean, values)
    monkeypatch.setattr(statistics, "JACKKNIFE_UP_TO", 100)
    plain = interval(mean, values)
    assert_percentiles(scipys((values,), np.mean, 5000).bootstrap_distribution, *plain)
    assert plain != accelerated
    assert plain == pytest.approx(accelerated, abs=0.05)


# Intervals without resamples


def test_the_medians_interval_has_the_order_statistics_of_the_binomial():
    assert median_interval(np.arange(5.0)) == (-INF, INF)  # P(all on one side) = 2 / 32 > 5 %
    assert median_interval(np.array([5.0, 0, 1, 4, 3, INF])) == (0, INF)  # 2 / 64 < 5 %: the lowest and the highest
    # n = 20: P(X <= 5) = 2.07 %, P(X <= 6) = 5.77 %: from the 6th to the 15th
    assert median_interval(np.arange(1.0, 21)) == (6, 15)
    assert median_interval(np.arange(1.0, 101)) == (40, 61)  # P(X <= 39) = 1.76 %, P(X <= 40) = 2.84 %


def test_a_shares_interval_is_wilsons():
    for n in (1, 2, 7, 20, 100):
        for k in range(n + 1):
            theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
            assert share_interval(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    # none of twenty: z^2 / (n + z^2) with z^2 = 3.8415, no zero
    assert share_interval(0, 20) == pytest.approx((0, 3.8415 / 23.8415), abs=1e-5)


def test_the_interval_of_improvement_is_scipys_bca_of_pairs():
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 8, 15).astype(float), rng.integers(1, 9, 12).astype(float)

    def of_pairs(a, b, axis):
        first, second = a[..., :, None], b[..., None, :]
        return ((first > second) + 0.5 * (first == second)).mean(axis=(-2, -1))

    assert_same_ends(improvement_interval([(x, y)]), scipys((x, y), of_pairs, 5000))


def test_improvement_is_drawn_within_each_environment():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=8), rng.normal(size=9)
    u, v = rng.normal(size=5), rng.normal(1, 1, size=6)

    def of_pairs(a, b, c, d, axis):
        def share(p, q):
            return (p[..., :, None] > q[..., None, :]).mean(axis=(-2, -1))

        return (share(a, b) + share(c, d)) / 2

    assert_same_ends(improvement_interval([(x, y), (u, v)]), scipys((x, y, u, v), of_pairs, 5000))


def test_sides_wholly_apart_or_equal_are_no_certainty():
    x, y = np.arange(5.0), np.arange(10.0, 17)
    # five independent pairs, none won: 0 to z^2 / (5 + z^2)
    assert improvement_interval([(x, y)]) == pytest.approx((0, 3.8415 / 8.8415), abs=1e-5)
    assert improvement_interval([(y, x)]) == pytest.approx((5 / 8.8415, 1), abs=1e-5)
    low, high = improvement_interval([(np.full(10, 500.0), np.full(10, 500.0))])
    assert low == pytest.approx(1 - high)
    assert low < 0.3


def test_one_seed_against_many_is_one_pair():
    low, high = improvement_interval([(np.array([3.0]), np.arange(20.0))])
    assert (low, high) == pytest.approx(share_interval(3.5 / 20, 1))
    assert high > 0.5


# Tests


def enumerated(pairs):
    """Two-sided p-value of the summed midranks of the first sides, over all ways to deal the values within strata."""
    options = []
    for x, y in pairs:
        ranks = stats.rankdata(np.concatenate([x, y]))
        sums = [sum(c) for c in itertools.combinations(ranks, len(x))]
        options.append((np.array(sums) - np.mean(sums), ranks[: len(x)].sum() - np.mean(sums)))
    found = np.array([sum(c) for c in itertools.product(*(away for away, _ in options))])
    return np.mean(np.abs(found) >= abs(sum(own for _, own in options)) - 1e-9)


SIDE = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=5).map(np.array)


@settings(deadline=None, max_examples=60)
@given(SIDE, SIDE)
def test_the_rank_test_is_exact_with_ties(x, y):
    assert rank_test([(x, y)]) == pytest.approx(enumerated([(x, y)]))
    assert rank_test([(y, x)]) == pytest.approx(enumerated([(x, y)])), "either way around"


def test_the_rank_test_deals_within_strata():
    rng = np.random.default_rng(7)
    for shift in (0, 1, 3):
        pairs = [(rng.integers(0, 4, 3).astype(float), shift + rng.integers(0, 4, 4).astype(float)) for _ in range(2)]
        assert rank_test(pairs) == pytest.approx(enumerated(pairs))


def test_the_rank_test_without_ties_is_mann_whitneys_exact_one():
    rng = np.random.default_rng(8)
    for n, m in ((4, 4), (10, 12), (20, 20), (35, 35), (3, 100)):
        x, y = rng.normal(size=n), rng.normal(0.5, 1, size=m)
        for pair in ((x, y), (y, x)):
            assert rank_test([pair]) == pytest.approx(stats.mannwhitneyu(*pair, method="exact").pvalue)
    # 3 against 3, wholly apart: two of the 20 ways to deal
    assert rank_test([(np.arange(3.0), np.arange(5.0, 8))]) == pytest.approx(0.1)


def test_the_rank_test_of_many_is_mann_whitneys_approximation_with_ties():
    rng = np.random.default_rng(9)
    x, y = rng.integers(0, 20, 60).astype(float), rng.integers(2, 22, 50).astype(float)
    assert statistics.EXACT_UP_TO < 110 * 50
    assert rank_test([(x, y)]) == pytest.approx(stats.mannwhitneyu(x, y, method="asymptotic").pvalue)
    assert rank_test([(x, x)]) == 1
    assert rank_test([(np.full(80, 500.0), np.full(80, 500.0))]) == 1


def test_exact_and_approximate_rank_tests_agree_where_they_meet(monkeypatch):
    rng = np.random.default_rng(10)
    pairs = [(rng.integers(0, 9, 38).astype(float), rng.integers(1, 10, 38).astype(float)) for _ in range(2)]
    exact = rank_test(pairs)
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 0)
    assert 1e-4 < exact < 0.5
    assert rank_test(pairs) == pytest.approx(exact, rel=0.05)


def test_the_rank_test_takes_minus_infinity_as_the_lowest_rank():
    x, y = np.array([-INF, -INF, 1, 2]), np.array([3.0, 4, 5, 6])
    assert rank_test([(x, y)]) == rank_test([(np.array([0.0, 0, 1, 2]), y)]) == pytest.approx(2 / 70)


def test_holm_multiplies_by_what_is_left_and_stays_in_order():
    # .01 * 3; .03 * 2 = .06; .04 * 1 below it, so .06 too
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


# Episodes of a run


def test_a_summary_has_the_moments_and_quantiles_of_its_episodes():
    values = np.arange(101.0)
    told = summarize(values)
    assert told.mean == 50
    assert told.iqm == 50
    assert told.quantiles == {0.05: 5, 0.25: 25, 0.5: 50, 0.75: 75, 0.95: 95}
    half = 1.96 * values.std() / np.sqrt(101)  # of a mean of so many episodes
    assert told.mean_interval == pytest.approx((50 - half, 50 + half), abs=0.6)


def test_cvar_is_the_mean_of_the_worst_share():
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert cvar(values, 0.25) == 1
    assert cvar(values, 0.375) == pytest.approx((1 + 0.5 * 2) / 1.5)  # one and a half of four values
    assert cvar(values, 0.01) == 1
    assert cvar(values, 1) == 2.5
    assert cvar(np.stack([values, values + 1]), 0.5, axis=1).tolist() == [1.5, 2.5]
    rng = np.random.default_rng(0)
    for level in (0.05, 0.3):  # Rockafellar and Uryasev's form, whose maximum is at one of the values
        x = rng.normal(size=30)
        assert cvar(x, level) == pytest.approx(max(b - np.maximum(b - x, 0).mean() / level for b in x))
    with pytest.raises(ValueError, match="level: expected a share above 0 and at most 1, got 0"):
        cvar(values, 0)


def test_a_summary_has_the_mean_of_the_worst_episodes_with_an_interval_that_covers_it():
    rng = np.random.default_rng(0)
    told = [summarize(rng.normal(size=400)) for _ in range(40)]
    for level in (0.05, 0.1, 0.25):
        truth = -stats.norm.pdf(stats.norm.ppf(level)) / level
        assert np.mean([s.cvar[level] for s in told]) == pytest.approx(truth, abs=0.05)
        assert sum(s.cvar_interval[level][0] <= truth <= s.cvar_interval[level][1] for s in told) >= 33


def test_with_several_seeds_the_interval_is_that_of_seeds_and_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        values = rng.normal(size=(12, 1)) + 0.1 * rng.normal(size=(12, 50))  # seeds differ by 1, episodes by .1
        low, high = summarize(values).mean_interval
        assert high - low > 0.5, "600 episodes of 12 seeds are not 600 independent ones"
        covered += low <= 0 <= high
    assert covered >= 48  # a percentile bootstrap of 12 covers about 91%; below 48 of 60 has a chance of about 0.005


def test_equal_episodes_have_an_interval_of_no_width():
    assert summarize(np.full((3, 10), 500.0)).mean_interval == (500.0, 500.0)


# What became of each seed

HAND = {
    # first at 475: 100 on; falls to 400 at 200; for good from 300 on
    "falls and recovers": [0, 480, 400, 475, 500],
    "never": [0, 100, 200, 300, 474],
    "at once": [475, 476, 477, 478, 500],
    "falls at the end": [0, 500, 500, 500, 100],
}


def test_each_seeds_outcome_by_hand():
    told = outcomes(table({"a": list(HAND.values())}), 475)
    rows = dict(zip(HAND, told.iter_rows(named=True), strict=True))
    assert told["seed"].to_list() == [0, 1, 2, 3]
    assert told["final"].to_list() == [500, 474, 500, 100]
    assert told["first_solved"].to_list() == [100, INF, 0, 100]
    assert told["solved_for_good"].to_list() == [300, INF, 0, INF]
    assert told["solved_at_end"].to_list() == [True, False, True, False]
    assert told["fell"].to_list() == [True, False, False, True]
    assert told["worst_drop"].to_list() == [75, None, 0, 375]
    assert not told["broken"].any()
    # trapezoids of width 100 over a span of 400: (0/2 + 480 + 400 + 475 + 500/2) / 4
    assert rows["falls and recovers"]["auc"] == pytest.approx(1605 / 4)


def test_the_area_weighs_by_steps_and_has_the_unit_of_a_return():
    told = outcomes(table({"a": [[0, 100, 100]], "b": [[7, 7, 7]]}, steps=[1_000, 2_000, 11_000]), 475)
    # 50 over 1,000 steps and 100 over 9,000, by 10,000
    assert told["auc"].to_list() == [95, 7]
    assert outcomes(table({"a": [[42]]}), 475)["auc"].to_list() == [42], "a single evaluation is its own mean"


@pytest.mark.parametrize("gone", [NAN, None, INF])
def test_a_seed_that_breaks_is_lost_from_there_on(gone):
    records = table({"a": [[0, 480, gone, 500, 500], [0, gone, 500, 500, 500], [0, 480, 480, 480, 480]]})
    told = outcomes(records, 475)
    assert told["broken"].to_list() == [True, True, False]
    assert told["final"].to_list() == [-INF, -INF, 480]
    assert told["auc"].to_list()[:2] == [-INF, -INF]
    assert told["first_solved"].to_list() == [100, INF, 100]
    assert told["solved_for_good"].to_list() == [INF, INF, 100]
    assert told["solved_at_end"].to_list() == [False, False, True]
    assert told["fell"].to_list() == [True, False, False]
    assert told["worst_drop"].to_list() == [INF, None, 0]


def test_neither_the_order_of_rows_nor_other_columns_matter_but_variants_keep_theirs():
    records = table({"b": list(HAND.values()), "a": list(HAND.values())[:2]}, other="x")
    shuffled = records.sample(fraction=1, shuffle=True, seed=0)
    assert outcomes(records, 475)["variant"].to_list() == ["b"] * 4 + ["a"] * 2
    for told in (outcomes, lambda r, t: summary(r, t, "b")):
        assert told(records, 475).sort("variant").equals(told(shuffled, 475).sort("variant"))
    assert (
        learning_curves(records)
        .sort("variant", "env_step")
        .equals(learning_curves(shuffled).sort("variant", "env_step"))
    )


def test_each_environment_may_have_its_threshold():
    records = pl.concat([table({"a": [[0, 50]]}, env="low"), table({"a": [[0, 50]]}, env="high")])
    told = outcomes(records, {"low": 50, "high": 475})
    assert told.select("env", "solved_at_end").rows() == [("low", True), ("high", False)]


# A variant over its seeds


def test_a_variants_figures_by_hand():
    records = table({"a": list(HAND.values())})
    row = summary(records, 475).row(0, named=True)
    assert (row["n"], row["broken"], row["reached"], row["fell"]) == (4, 0, 3, 2)
    assert row["final_mean"] == (500 + 474 + 500 + 100) / 4
    assert row["final_median"] == 487
    assert row["final_iqm"] == 487  # of 100, 474, 500, 500 the middle two
    assert row["final_min"] == 100
    assert row["auc_mean"] == pytest.approx(outcomes(records, 475)["auc"].mean())
    assert row["first_solved_median"] == 100  # 0, 100, 100, inf
    assert row["solved_for_good_median"] == INF  # 0, 300, inf, inf: halfway is not a step that half of the seeds made
    assert (row["solved_for_good_median_low"], row["solved_for_good_median_high"]) == (0, INF)
    assert (row["final_median_low"], row["final_median_high"]) == (-INF, INF), "four seeds bound no median"
    assert row["fell_share"] == pytest.approx(2 / 3)
    assert (row["fell_share_low"], row["fell_share_high"]) == pytest.approx(share_interval(2, 3))
    assert row["solved_at_end_share"] == 0.5
    assert (row["worst_drop_median"], row["worst_drop_max"]) == (75, 375)  # 0, 75, 375
    low, high = interval(mean, np.array([500.0, 474, 500, 100]))
    assert (row["final_mean_low"], row["final_mean_high"]) == (low, high)
    assert row["final_improvement"] is row["final_p_holm"] is None


def test_a_variant_that_nobody_solved_says_nothing_on_falls():
    row = summary(table({"a": [[0, 1], [0, 2]]}), 475).row(0, named=True)
    assert row["reached"] == 0
    assert row["solved_at_end_share"] == 0
    assert [row[c] for c in row if c.startswith(("fell_share", "worst_drop"))] == [None] * 5


def test_a_single_seed_has_figures_and_no_bootstraps():
    row = summary(table({"a": [[0, 500]], "b": [[0, 400]]}), 475, "a").row(1, named=True)
    assert row["final_mean"] == 400
    assert row["final_mean_low"] is row["final_iqm_high"] is row["auc_mean_low"] is None
    assert row["final_improvement"] == 0
    assert row["final_improvement_high"] > 0.5
    assert row["final_p"] == 1


def test_comparisons_with_the_base_are_those_of_the_pairs_and_adjusted_over_the_variants():
    rng = np.random.default_rng(11)
    curves = {name: rng.normal(shift, 100, size=(8, 3)).tolist() for name, shift in (("a", 0), ("base", 0), ("b", 90))}
    told = {row["variant"]: row for row in summary(table(curves), 475, "base").iter_rows(named=True)}
    seeds = {
        variant: part for (variant,), part in outcomes(table(curves), 475).partition_by("variant", as_dict=True).items()
    }
    for name in ("final", "auc"):
        values = {variant: part[name].to_numpy() for variant, part in seeds.items()}
        raw = []
        for variant in ("a", "b"):
            row, pair = told[variant], (values[variant], values["base"])
            assert row[f"{name}_improvement"] == pytest.approx(improvement(*pair))
            ends = (row[f"{name}_improvement_low"], row[f"{name}_improvement_high"])
            assert ends == improvement_interval([pair])
            assert row[f"{name}_p"] == pytest.approx(stats.mannwhitneyu(*pair, method="exact").pvalue)
            raw.append(row[f"{name}_p"])
        assert [told[variant][f"{name}_p_holm"] for variant in ("a", "b")] == pytest.approx(holm(raw))
        assert [told["base"][c] for c in told["base"] if c.startswith((f"{name}_imp", f"{name}_p"))] == [None] * 5


def test_broken_seeds_count_as_the_lowest():
    curves = {"base": [[0, 10 * i] for i in range(1, 9)], "a": [[0, 10 * i + 5] for i in range(1, 8)] + [[0, NAN]]}
    row = summary(table(curves), 60, "base").row(1, named=True)
    assert (row["n"], row["broken"]) == (8, 1)
    assert row["final_mean"] == row["final_mean_low"] == -INF
    assert row["final_min"] == -INF
    assert row["final_median"] == 40  # -inf, 15, 25, 35, 45, ...
    assert row["final_iqm"] == 40  # 25, 35, 45, 55
    # the i-th of seven beats i of the base, the broken one none: (1 + ... + 7) / 64
    assert row["final_improvement"] == 28 / 64
    assert row["solved_at_end_share"] == 2 / 8


CURVES = st.lists(
    st.lists(st.sampled_from([0.0, 100.0, 474.0, 475.0, 500.0]), min_size=4, max_size=4), min_size=2, max_size=7
)


@settings(deadline=None, max_examples=25)
@given(CURVES, st.data())
def test_a_seed_that_breaks_never_flatters_its_variant(curves, data):
    seed, step = data.draw(st.integers(0, len(curves) - 1)), data.draw(st.integers(0, 3))
    lost = [list(curve) for curve in curves]
    lost[seed][step] = NAN
    base = [[0, 100, 475, 475.0], [0, 100, 475, 300], [0, 0, 0, 0]]
    before, after = (summary(table({"a": c, "b": base}), 475, "b").row(0, named=True) for c in (curves, lost))
    up = ("final_mean", "final_median", "final_min", "final_iqm", "auc_mean", "solved_at_end_share", "reached")
    for name in (*up, "final_improvement", "auc_improvement"):
        assert after[name] <= before[name]
    for name in ("first_solved_median", "solved_for_good_median", "broken"):
        assert after[name] >= before[name]


def test_environments_are_strata():
    rng = np.random.default_rng(12)
    near, far = rng.normal(0, 1, size=(2, 10)), rng.normal(1_000, 1, size=(2, 10))
    parts = [
        table({"base": values[0][:, None].tolist(), "a": values[1][:, None].tolist()}, env=env)
        for env, values in (("near", near), ("far", far))
    ]
    row = summary(pl.concat(parts), 475, "base").row(1, named=True)
    assert row["n"] == 20
    assert row["final_mean"] == pytest.approx((near[1].mean() + far[1].mean()) / 2)
    assert row["final_mean_high"] - row["final_mean_low"] < 2, "each environment keeps its share of the resamples"
    # pairs of one environment only, as in rliable; over all pairs one would win half of them by the environment alone
    each = [improvement(near[1], near[0]), improvement(far[1], far[0])]
    assert row["final_improvement"] == pytest.approx(np.mean(each))
    assert row["final_p"] == pytest.approx(rank_test([(far[1], far[0]), (near[1], near[0])]))
    swapped = pl.concat([parts[1].filter(variant="a"), parts[0], parts[1].filter(variant="base")])
    told = summary(swapped, 475, "base").row(0, named=True)
    assert told == row, "the order of the environments says nothing"


# Learning curves


def test_learning_curves_by_hand():
    told = learning_curves(table({"a": [[0, 10], [4, 20], [8, 30], [100, NAN]], "b": [[1, 2]]}))
    assert told["variant"].to_list() == ["a", "a", "b", "b"]
    assert told["env_step"].to_list() == [0, 100, 0, 100]
    assert told["n"].to_list() == [4, 4, 1, 1]
    assert told["broken"].to_list() == [0, 1, 0, 0]
    assert told["iqm"].to_list() == [6, 15, 1, 2]  # the middle two of 0, 4, 8, 100 and of -inf, 10, 20, 30
    assert told["returns"][0].to_list() == [0, 4, 8, 100]
    assert np.array_equal(told["returns"][1].to_numpy(), [10, 20, 30, NAN], equal_nan=True)
    assert told["iqm_low"][1] == -INF
    assert told["iqm_low"].to_list()[2:] == [None, None]


def test_a_learning_curves_intervals_are_those_of_each_step():
    returns = np.random.default_rng(13).normal(size=(12, 3))
    told = learning_curves(table({"a": returns.tolist()}))
    for t in range(3):
        low, high = interval(lambda x: iqm(x, axis=1), returns[:, t], resamples=statistics.QUICK_RESAMPLES)
        assert (told["iqm_low"][t], told["iqm_high"][t]) == (low, high)


# Refusals

GOOD = table({"a": [[0, 1], [2, 3]], "b": [[0, 1], [2, 3]]})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (GOOD.rename({"return_mean": "return_means"}), "no column 'return_mean'; did you mean 'return_means'?"),
        (GOOD.head(0), "records: no rows"),
        (GOOD.with_columns(seed=pl.col("seed").cast(pl.String)), "'seed' holds String; it must hold whole numbers"),
        (GOOD.with_columns(env_step=pl.col("env_step") / 1), "'env_step' holds Float64; it must hold whole numbers"),
        (GOOD.with_columns(variant=None), "column 'variant' holds Null; it must hold text"),
        (GOOD.with_columns(seed=pl.lit(None, pl.Int64)), "column 'seed' has a row without a value"),
        (pl.concat([GOOD, GOOD.tail(1)]), "variant 'b': seed 1 has step 100 twice; keep one of the rows"),
        (
            GOOD.head(7),
            r"variant 'b': seed 1 has different evaluation steps from seed 0 \(1 up to 0 against 2 up to 100\)",
        ),
        (
            pl.concat([GOOD.head(7).with_columns(env=pl.lit("e")), GOOD.tail(1).with_columns(env=pl.lit("f"))]),
            "variant 'b' in 'e': seed 1 has different evaluation steps",
        ),
    ],
)
def test_records_that_cannot_be_meant_are_refused(records, message):
    for function in (learning_curves, lambda r: outcomes(r, 475), lambda r: summary(r, 475)):
        with pytest.raises(ConfigError, match=message):
            function(records)


@pytest.mark.parametrize(
    ("threshold", "base", "message"),
    [
        (475, "c", "no variant 'c' to compare with; known variants: a, b"),
        (475, "bb", "no variant 'bb' to compare with; did you mean 'b'?"),
        (NAN, None, "threshold: must be a finite return, got nan"),
        ({"e": 475}, None, "threshold: one per environment was given, but the records have no column 'env'"),
    ],
)
def test_a_summary_that_cannot_be_meant_is_refused(threshold, base, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        summary(GOOD, threshold, base)


def test_environments_without_threshold_or_with_other_seeds_are_refused():
    both = [GOOD.with_columns(env=pl.lit(env)) for env in ("Acrobot-v1", "CartPole-v1")]
    assert len(summary(pl.concat(both), 475)) == 2
    with pytest.raises(ConfigError, match=r"threshold: none for 'CartPole-v1'; did you mean 'CartPole'\?"):
        summary(pl.concat(both), {"Acrobot-v1": -100, "CartPole": 475})
    with pytest.raises(
        ConfigError, match="variant 'b' has the environments Acrobot-v1, but variant 'a' has Acrobot-v1, CartPole"
    ):
        summary(pl.concat([both[0], both[1].filter(variant="a")]), 475)
    with pytest.raises(
        ConfigError, match="variant 'b' has unequal numbers of seeds: 2 in Acrobot-v1, 1 in CartPole-v1"
    ):
        summary(pl.concat([both[0], both[1].head(6)]), 475)


def test_a_study_read_from_csv_is_taken_as_it_is(tmp_path):
    (tmp_path / "results.csv").write_text("variant,seed,env_step,return_mean\na,0,0,1\na,0,100,\na,1,0,3\na,1,100,5\n")
    told = outcomes(pl.read_csv(tmp_path / "results.csv"), 4)
    assert told["broken"].to_list() == [True, False]


def test_one_episode_of_one_seed_has_no_interval():
    told = statistics.summarize(np.array([500.0]))
    assert (told.mean, told.iqm) == (500.0, 500.0)
    assert told.cvar == {0.05: 500.0, 0.1: 500.0, 0.25: 500.0}
    assert np.isnan([*told.mean_interval, *told.iqm_interval, *told.cvar_interval[0.05]]).all()
    assert not np.isnan([*statistics.summarize(np.array([[1.0], [2.0]])).mean_interval]).any()
