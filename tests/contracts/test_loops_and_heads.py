"""Every loop with every head learns, is measured and evaluated; undefined pairs are refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import ALGORITHMS, ConfigError
from quantilax.agent import create
from quantilax.heads import HEADS
from tests.conftest import TINY, each
from tests.trees import raw

LOOPS = ("q_learning", "pqn")
SMALL = dict(num_atoms=7, v_min=-2.0, v_max=2.0, num_quantiles=5, num_fractions=4, num_cosines=8,
             num_tau_samples=4, num_tau_prime_samples=3, num_quantile_samples=5, fraction_learning_rate=1e-3)  # fmt: skip

RAINBOW = dict(double=True, dueling=True, noisy=True, prioritized=True, n_step=2)


def pair(loop, head, **changes):
    return create(ALGORITHMS[loop], "probe/corridor", {**TINY[loop], **SMALL, "head": head, **changes})


def measured(loop, head):
    """Whether `make test` has the signals of a pair: it has those of each head with PQN, and of two with replay."""
    return loop == "pqn" or head in ("scalar", "implicit_quantile")


PAIRS = [
    *((loop, head, measured(loop, head)) for head in HEADS for loop in LOOPS),
    *(
        pytest.param(loop, head, True, marks=pytest.mark.validation)
        for head in HEADS
        for loop in LOOPS
        if not measured(loop, head)
    ),
]


@pytest.mark.parametrize(("loop", "head", "signals"), PAIRS)
def test_every_loop_learns_with_every_head(loop, head, signals):
    algo = pair(loop, head, signals=signals, weight_averaging=0.9)
    state, record = algo.records(jax.random.key(0))
    assert int(state.gradient_steps) == algo.config.gradient_steps
    before, after = raw(state.average_params), raw(state.params)  # the average stays behind what moves
    assert all(np.isfinite(x).all() for x in after)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "each array is learned"
    for name in ("loss", "gradient_norm", "q", "td_error"):
        assert np.isfinite(getattr(record.metrics, name)[1:]).all(), name
    learns_distribution = HEADS[head].quantiles is not None
    if signals:
        for name in ("gradient_noise", "overshoot", "reference_q", "replay_error", "exploration", "bias"):
            assert np.isfinite(getattr(record.signals, name)[1:]).all(), name
        assert (record.signals.calibration is not None) == learns_distribution
        assert not learns_distribution or np.isfinite(record.signals.calibration).all()
        assert (record.signals.huber_share is not None) == HEADS[head].regresses_quantiles
    if not learns_distribution:
        with pytest.raises(ConfigError, match=f"head: {head} learns expected values, no quantiles; choose"):
            algo.quantiles(state, jnp.zeros(6), jnp.array([0.5]))
        return
    Z = algo.quantiles(state, jnp.zeros((2, 6)), jnp.array([0.1, 0.5, 0.9]))
    assert Z.shape == (2, 3, 2)
    assert np.isfinite(Z).all()


@pytest.mark.parametrize("head", each(HEADS, first=("proposed",)))
@pytest.mark.parametrize("changes", [dict(munchausen=True), RAINBOW], ids=["munchausen", "rainbow"])
def test_every_head_has_every_refinement_of_q_learning(head, changes):
    state, record = pair("q_learning", head, **changes).records(jax.random.key(0))
    assert all(np.isfinite(x).all() for x in raw(state.params))
    assert np.isfinite(record.metrics.loss[1:]).all()


@pytest.mark.parametrize("head", HEADS)
def test_munchausen_in_pqn_is_defined_for_means_and_refused_for_distributions(head):
    if HEADS[head].quantiles is None:
        state, _ = pair("pqn", head, munchausen=True).train(jax.random.key(0))
        assert all(np.isfinite(x).all() for x in raw(state.params))
        return
    with pytest.raises(ConfigError, match=f"munchausen: not defined here for the returns of head={head}; set head to"):
        pair("pqn", head, munchausen=True)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_head_that_a_loop_does_not_know_is_refused_with_a_suggestion(loop):
    with pytest.raises(ConfigError, match="head: unknown value 'quantiles'; did you mean 'quantile'"):
        pair(loop, "quantiles")


@pytest.mark.parametrize("name", ["dqn", "c51", "qrdqn", "iqn", "fqf"])
def test_a_named_pair_has_no_other_head(name):
    with pytest.raises(ConfigError, match="unknown field 'head'"):
        create(ALGORITHMS[name], "probe/corridor", {**TINY[name], "head": "scalar"})


@pytest.mark.parametrize(
    ("loop", "settings", "line"),
    [
        ("q_learning", dict(munchausen=True, double=True), "double: has no meaning with munchausen"),
        ("q_learning", dict(munchausen=True, n_step=3), "n_step: 3 with munchausen is not defined"),
        ("q_learning", dict(head="quantile", non_crossing=True, dueling=True), "dueling: quantiles of a sum of two"),
        ("q_learning", dict(head="categorical", v_min=3.0), "v_min: 3.0 is not below v_max=2.0"),
        ("q_learning", dict(kappa=math.inf), "kappa: must be finite with head=implicit_quantile, got inf"),
        ("pqn", dict(head="proposed", kappa=math.inf), "kappa: must be finite with head=proposed, got inf"),
        ("q_learning", dict(risk="cvar", risk_eta=2.0), "risk_eta: must be > 0 and <= 1 for risk 'cvar'"),
        ("pqn", dict(head="implicit_quantile", risk="cvar", risk_eta=2.0), "risk_eta: must be > 0 and <= 1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(loop, settings, line):
    with pytest.raises(ConfigError, match=line):
        pair(loop, **{"head": "implicit_quantile", **settings})
