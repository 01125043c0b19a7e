"""Calibration against predictions that are known to be right or wrong."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, stats

from quantilax.envs.probes import Corridor
from quantilax.envs.wrappers import wrap
from quantilax.errors import ConfigError
from quantilax.fractions import Recalibration
from quantilax.returns import calibration, episodes
from quantilax.returns.calibration import TAUS, compare, fit, parts_of, verdict
from tests.conftest import each, tiny

NORMAL = stats.norm.ppf(TAUS)


def synthetic(spread=1.0, bias=0.0, episodes=1_500, states=4, seed=0):
    """Returns from N(center, 1), their quantiles predicted as those of N(center + bias, spread^2).

    The returns of one episode depend on each other. Centers are the same for each seed.
    """
    rng, center = np.random.default_rng(seed), np.random.default_rng(99).normal(0, 3, (episodes, states))
    common, own = rng.normal(size=(episodes, 1)), rng.normal(size=(episodes, states))
    G = center + np.sqrt(0.7) * common + np.sqrt(0.3) * own
    time = np.tile(np.arange(states), (episodes, 1))
    return G, (center + bias)[..., None] + spread * NORMAL, time


def part(spread=1.0, bias=0.0, **options):
    G, Z, time = synthetic(spread, bias, **options)
    return parts_of([compare(Z, G, np.ones_like(G), time)])[1]


def test_the_true_distribution_passes():
    found = part()
    assert verdict(found) == []
    assert found.coverage_error < 0.02
    assert_allclose(found.pit.value, 0.1, atol=0.02)
    assert_allclose(found.below.value, calibration.BELOW, atol=0.025)


def test_half_the_spread_is_flagged_as_too_narrow_and_double_as_too_wide():
    (narrow, outside), (wide,) = verdict(part(spread=0.5)), verdict(part(spread=2.0))
    assert narrow.startswith("too narrow: 80% intervals hold 4")  # P(|N(0, 1)| <= .641) = .478
    assert "lie outside of all quantiles" in outside
    assert wide.startswith("too wide: 50% intervals hold 8")  # P(|N(0, 1)| <= 1.349) = .823


def test_a_shift_is_flagged_in_its_direction():
    assert any(line.startswith("too high: ") for line in verdict(part(bias=0.5)))
    assert any(line.startswith("too low: ") for line in verdict(part(bias=-0.5)))
    assert_allclose(part(bias=0.5).below.value, stats.norm.cdf(NORMAL[9::10] + 0.5), atol=0.03)


def test_shares_of_a_distribution_half_as_wide_are_those_of_theory():
    found = part(spread=0.5, episodes=4_000)
    assert_allclose(found.coverage.value, 2 * stats.norm.cdf(stats.norm.ppf((1 + found.levels) / 2) / 2) - 1, atol=0.02)
    taus = np.asarray(calibration.BELOW)
    assert_allclose(found.below.value, stats.norm.cdf(stats.norm.ppf(taus) / 2), atol=0.02)


def test_the_crps_of_a_normal_distribution_is_that_of_its_closed_form():
    """Gneiting & Raftery (2007), equation 21; and the integral of the definition."""
    G = np.array([[-1.3], [0.0], [0.4], [2.5]])
    found = compare(np.broadcast_to(NORMAL, (4, 1, len(TAUS))), G, np.ones_like(G), np.zeros_like(G))
    closed = G * (2 * stats.norm.cdf(G) - 1) + 2 * stats.norm.pdf(G) - 1 / np.sqrt(np.pi)
    assert_allclose(found.crps, closed, atol=0.01)
    low = integrate.quad(lambda z: stats.norm.cdf(z) ** 2, -9, 0.4)[0]
    high = integrate.quad(lambda z: stats.norm.sf(z) ** 2, 0.4, 9)[0]
    assert_allclose(closed[2, 0], low + high, rtol=1e-6)


def test_the_reference_is_the_crps_of_the_returns_themselves():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=50), rng.integers(1, 4, 50).astype(float)
    pairs = [(w[i] * w[j], abs(x[i] - x[j]) / 2) for i in range(50) for j in range(50) if i != j]
    chances, differences = np.array(pairs).T
    assert_allclose(calibration.reference_crps(x, w), np.average(differences, weights=chances))
    assert_allclose(calibration.reference_crps(rng.normal(size=20_000), np.ones(20_000)), 1 / np.sqrt(np.pi), rtol=0.02)
    assert np.isnan(calibration.reference_crps(np.ones(1), np.ones(1)))


def test_the_pit_of_atoms_and_of_a_constant_is_uniform():
    rng = np.random.default_rng(1)
    G = np.where(rng.random((1_500, 1)) < 0.3, -1.0, 2.0)
    atoms, constant = np.where(TAUS <= 0.3, -1.0, 2.0), np.full_like(TAUS, 5.0)
    ones = np.ones_like(G)
    for returns, Z in ((G, atoms), (5 * ones, constant)):
        found = compare(np.broadcast_to(Z, (*G.shape, len(TAUS))), returns, ones, np.zeros_like(G))
        assert stats.kstest(found.u.ravel(), "uniform").pvalue > 0.01
        assert verdict(parts_of([found])[1]) == []


def test_a_network_need_not_meet_a_constant_or_an_atom_exactly():
    rng = np.random.default_rng(1)
    G = np.full((1_000, 1), 50.0)
    around = 50 + 0.01 * np.broadcast_to(NORMAL, (1_000, 1, len(TAUS)))
    assert verdict(parts_of([compare(around, G, np.ones_like(G), np.zeros_like(G))])[1]) == []
    G = np.where(rng.random((1_000, 1)) < 0.3, -1.0, 2.0)
    near = np.broadcast_to(np.where(TAUS <= 0.3, -1.0, 2.0) + 0.02 * NORMAL, (1_000, 1, len(TAUS)))
    assert verdict(parts_of([compare(near, G, np.ones_like(G), np.zeros_like(G))])[1]) == []
    wide = 50 + 0.2 * np.broadcast_to(NORMAL, (1_000, 1, len(TAUS)))
    told = verdict(parts_of([compare(wide, np.full_like(G, 50.0), np.ones_like(G), np.zeros_like(G))])[1])
    assert told[0].startswith("too wide: ")
    assert told[-1] == "all of this is small: the CRPS is 0.1% of the size of the returns"
    exact = compare(near, G, np.ones_like(G), np.zeros_like(G), share=0.0, least=0.0)
    assert verdict(parts_of([exact])[1]) != []


def test_intervals_allow_for_the_dependence_of_returns_within_an_episode():
    """If episodes were 16 independent states each, intervals would be too narrow by a factor of 3."""
    covered = 0
    for seed in range(15):
        measured = part(episodes=200, states=16, seed=seed).below
        middle = calibration.BELOW.index(0.5)
        covered += measured.low[middle] <= 0.5 <= measured.high[middle]
    assert covered >= 12  # of 15, at 95%


@pytest.mark.parametrize(("spread", "bias"), [(1.5, 0.6), (0.4, -0.2)], ids=["wide, too high", "narrow, too low"])
def test_recalibration_brings_the_coverage_of_a_wrong_head_to_within_two_points(spread, bias):
    """It is fitted to some episodes and checked on others. A narrow head needs more than other levels."""
    G, Z, time = synthetic(spread, bias, seed=1)
    assert part(spread, bias).coverage_error > 0.1
    fitted = fit(compare(Z, G, np.ones_like(G), time))
    assert (np.diff(fitted.levels) >= 0).all()
    assert (np.diff(fitted.excess) >= 0).all()
    G, Z, time = synthetic(spread, bias, seed=2)
    middle = Z.mean(axis=-1).ravel()  # (states,)
    corrected = fitted.quantiles(
        lambda taus: middle + spread * jax.scipy.stats.norm.ppf(taus)[:, None], jnp.asarray(TAUS)
    )
    Z = np.asarray(corrected).T.reshape(Z.shape)
    found = parts_of([compare(Z, G, np.ones_like(G), time)])[1]
    assert found.coverage_error <= 0.02
    assert_allclose(found.below.value, calibration.BELOW, atol=0.03)


def test_recalibration_of_the_true_distribution_changes_little():
    G, Z, time = synthetic()
    fitted = fit(compare(Z, G, np.ones_like(G), time))
    assert_allclose(fitted.levels, np.clip(np.linspace(0, 1, calibration.KNOTS), TAUS[0], TAUS[-1]), atol=0.03)
    assert (np.asarray(fitted.excess)[1:-1] == 0).all()


def test_seeds_are_the_units_of_a_run_with_several():
    """Each seed is shifted by as much as its returns vary: episodes alone would not show that."""
    each = []
    for seed, bias in enumerate(np.random.default_rng(0).normal(size=10)):
        G, Z, time = synthetic(bias=bias, episodes=400, seed=seed)
        each.append(compare(Z, G, np.ones_like(G), time))
    middle = calibration.BELOW.index(0.5)
    one, together = parts_of(each[:1])[1].below, parts_of(each)[1].below
    assert together.high[middle] - together.low[middle] > 2 * (one.high[middle] - one.low[middle])
    assert together.low[middle] <= 0.5 <= together.high[middle]


def test_the_spread_between_seeds_is_that_of_their_means_at_the_same_states():
    means = np.random.default_rng(0).normal(0, 3, 200) + np.random.default_rng(1).normal(0, 0.5, (10, 200))
    found = calibration.spread_of(means[..., None] + 2 * NORMAL)
    assert_allclose(found, (2, 0.5), rtol=0.05)


def test_periods_have_equally_many_visited_states():
    time = np.tile(np.arange(40), (100, 1))
    G = np.zeros((100, 40))
    found = compare(np.zeros((100, 40, len(TAUS))), G, np.ones_like(G), time)
    assert calibration.periods_of([found]) == [(0, 9), (10, 19), (20, 29), (30, 39)]
    assert [one.name for one in parts_of([found], periods=[(0, 9), (10, 39)])] == ["first", "all", "0-9", "10-39"]
    assert calibration.periods_of([found._replace(time=0 * time)]) == []


@pytest.mark.parametrize(
    ("levels", "episodes", "line"),
    [
        ([0.5, 1.0], 1_000, "levels: expected levels of coverage above 0 and at most 0.99, got 1"),
        ([0.0], 1_000, "levels: expected levels of coverage above 0 and at most 0.99, got 0"),
        ([0.5, 0.95], 99, "episodes: 99 are too few for coverage at 0.95"),
        ([], 1_000, "levels: expected at least one level of coverage"),
    ],
)
def test_levels_out_of_range_and_too_few_episodes_are_refused_in_one_line(levels, episodes, line):
    with pytest.raises(ConfigError, match=line):
        calibration.check(levels, episodes)
    calibration.check([0.95], 100)


# Exact distributions of the probes


def with_quantiles(agent, Z):
    """The agent with another function in place of its learned quantiles."""
    return dataclasses.replace(agent, algorithm=agent.algorithm._replace(quantiles=Z))


def truth(config, state, obs, tau, *, env, spread=1.0):
    """True quantiles of a probe, drawn together around their median by `spread`."""
    Z = env.quantile_function(tau, config.gamma)
    middle = env.quantile_function(jnp.array([0.5]), config.gamma)
    return middle + spread * (Z - middle)


@pytest.mark.parametrize("name", each(["probe/geometric", "probe/bimodal"], ["probe/geometric"]))
def test_a_head_with_the_exact_distribution_passes_and_half_its_spread_is_flagged(name):
    agent = tiny("iqn", name, gamma=0.9)
    state = agent.init(jax.random.key(0))
    spreads = {}
    for spread in (1.0, 0.5):
        told = with_quantiles(agent, partial(truth, env=agent.env, spread=spread))
        spreads[spread] = calibration.calibrate(
            told, state, jax.random.key(3), 1_000, states=4, recalibrate=spread == 1
        )
    right, wrong = (parts_of([spreads[s].raw])[1] for s in (1.0, 0.5))
    assert verdict(right) == []
    assert right.coverage_error <= 0.03
    after = parts_of([spreads[1.0].recalibrated])[1]
    assert after.coverage_error <= 0.04  # nothing to correct, and nothing is made worse
    if name == "probe/geometric":
        assert any("too narrow" in line for line in verdict(wrong))


def test_quantiles_are_compared_in_blocks_of_episodes(monkeypatch):
    agent = tiny("iqn", "probe/geometric", gamma=0.9)
    state = agent.init(jax.random.key(0))
    whole = calibration.calibrate(agent, state, jax.random.key(3), 1_000, states=4).raw
    monkeypatch.setattr(calibration, "BLOCK", 300 * 4 * len(TAUS))
    blocks = calibration.calibrate(agent, state, jax.random.key(3), 1_000, states=4).raw
    assert_allclose(blocks.crps, whole.crps, rtol=1e-5)
    assert_allclose(blocks.excess, whole.excess, rtol=1e-4, atol=1e-5)
    assert len(set(blocks.u.ravel().tolist())) > 3_000  # the blocks do not share their draws


def test_quantiles_calibrated_are_those_at_the_corrected_levels():
    agent = tiny("iqn", "probe/bimodal")
    state = agent.init(jax.random.key(0))
    levels, excess = jnp.linspace(0, 1, 5) ** 2, jnp.array([-1.0, 0, 0, 0, 2])
    corrected = dataclasses.replace(agent, recalibration=Recalibration(levels, excess, 0.0))
    asked, at, obs = jnp.array([0.25, 0.6, 1.0]), jnp.linspace(0, 1, 5), jnp.ones(1)
    spread = agent.quantiles(state, obs, jnp.asarray(TAUS)).std(axis=0)
    expected = agent.quantiles(state, obs, jnp.interp(asked, at, levels)) + jnp.array([[0.0], [0.0], [2.0]]) * spread
    assert_allclose(corrected.quantiles(state, obs, asked, calibrated=True), expected, rtol=1e-5)
    assert_allclose(corrected.quantiles(state, obs, asked), agent.quantiles(state, obs, asked))
    told = episodes.predicted(corrected, state, obs, jnp.int32(1), asked, calibrated=True)
    assert_allclose(told, expected[:, 1], rtol=1e-5)
    with pytest.raises(ConfigError, match="calibrated: there is no recalibration; run quantilax calibrate"):
        agent.quantiles(state, jnp.ones(1), asked, calibrated=True)


def test_what_is_not_converted_is_said_for_each_loop():
    said = {
        ("iqn", "n_step"): "n_step=3",
        ("iqn", "munchausen"): "munchausen: ",
        ("iqn", "risk"): "risk=cvar",
        ("iqn", "eval_epsilon"): "eval_epsilon=0.05",
        ("iqn", "prioritized"): "prioritized: ",
        ("pqn", "lambda_"): "lambda_=0.9",
    }
    values = {
        "n_step": 3,
        "munchausen": True,
        "risk": "cvar",
        "eval_epsilon": 0.05,
        "prioritized": True,
        "lambda_": 0.9,
    }
    for (name, field), line in said.items():
        given = {field: values[field]} | ({"risk_eta": 0.5} if field == "risk" else {})
        assert any(told.startswith(line) for told in calibration.caveats(tiny(name, **given)))
    assert calibration.caveats(tiny("iqn")) == [next(iter(tiny("iqn").config.caveats()))]  # kappa alone
    for name, line in (("sac", "temperature: "), ("td3", "target_noise=0.2"), ("tqc", "top_quantiles_to_drop=1")):
        assert any(told.startswith(line) for told in calibration.caveats(tiny(name)))
    assert any("evaluation takes the likeliest action" in told for told in calibration.caveats(tiny("ppo")))
    assert any(told.startswith("v_min, v_max: ") for told in calibration.caveats(tiny("c51")))


def test_what_is_converted_is_said():
    env = wrap(Corridor(), {"clip_reward": {"low": 0.0, "high": 0.5}})
    changed = tiny("iqn", env).replace(reward_scale=0.1, bootstrap_truncated=False)
    told = "\n".join(calibration.conversions(changed))
    for word in (
        "gamma=0.99",
        "reward_scale=0.1: undone",
        "bootstrap_truncated=false",
        "wrappers: returns are of the rewards",
    ):
        assert word in told
    assert calibration.conversions(tiny("iqn")) == ["gamma=0.99: returns are discounted, as the learned ones"]
