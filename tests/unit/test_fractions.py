"""Fractions compared with their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax import fractions


def drawn(sampler, seed=0, shape=(), numbers=(4, 3, 5)):
    return [np.asarray(tau) for tau in fractions.draw(jax.random.key(seed), sampler, shape, numbers)]


@pytest.mark.parametrize("sampler", fractions.SAMPLERS)
@pytest.mark.parametrize("shape", [(), (7,)])
def test_every_set_has_its_number_and_lies_in_the_unit_interval(sampler, shape):
    for tau, n in zip(drawn(sampler, shape=shape), (4, 3, 5), strict=True):
        assert np.broadcast_to(tau, (*shape, n)).shape == (*shape, n)
        assert tau.min() >= 0
        assert tau.max() <= 1


@pytest.mark.parametrize("sampler", ["uniform", "stratified"])
def test_fractions_are_uniform_and_sets_independent(sampler):
    tau, tau_prime, _ = drawn(sampler, shape=(20_000,), numbers=(4, 4, 1))
    pooled = np.sort(tau.ravel())
    assert np.abs(pooled - (np.arange(pooled.size) + 0.5) / pooled.size).max() < 0.01  # Kolmogorov-Smirnov
    for i in range(4):
        assert abs(np.corrcoef(tau[:, i], tau_prime[:, i])[0, 1]) < 0.03  # 4 standard errors


def test_a_stratified_set_has_one_fraction_in_each_stratum_uniform_within():
    (tau,) = drawn("stratified", shape=(5_000,), numbers=(8,))
    within = tau * 8 - np.arange(8)
    assert within.min() >= 0
    assert within.max() <= 1
    assert_allclose(within.mean(axis=0), 0.5, atol=0.02)
    assert_allclose(within.std(axis=0), 1 / np.sqrt(12), atol=0.01)


def test_means_over_stratified_fractions_vary_less():
    # The mean of a function linear in tau varies by 1/12N where fractions are independent and by 1/12N^3 where stratified.
    for sampler, expected in (("uniform", 1 / (12 * 8)), ("stratified", 1 / (12 * 8**3))):
        (tau,) = drawn(sampler, shape=(20_000,), numbers=(8,))
        assert_allclose(tau.mean(axis=1).var(), expected, rtol=0.05)


def test_midpoints_are_the_same_for_every_key():
    for seed in range(3):
        assert_allclose(drawn("midpoints", seed)[0], [0.125, 0.375, 0.625, 0.875])


def test_proposed_fractions_are_the_sums_of_their_shares():
    tau = fractions.proposed(jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])))
    assert_allclose(tau, [[0, 0.5, 0.75, 0.875, 1], [0, 0.1, 0.3, 0.6, 1]], rtol=1e-6)
    assert_allclose(fractions.centres(tau[0]), [0.25, 0.625, 0.8125, 0.9375], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_proposed_fractions_rise_from_0_to_1_whatever_the_shares(scale):
    logits = scale * jax.random.normal(jax.random.key(0), (5_000, 64))
    tau = np.asarray(fractions.proposed(jax.nn.log_softmax(logits)))
    assert tau.shape == (5_000, 65)
    assert (tau[:, 0] == 0).all()
    assert (tau[:, -1] == 1).all()
    assert (np.diff(tau) >= 0).all()


def test_an_expectation_is_the_mean_weighted_by_the_widths():
    # 0.5 * 2 + 0.25 * 4 + 0.25 * -8 = 0, where the plain mean is -2/3
    tau, z = jnp.array([0.0, 0.5, 0.75, 1.0]), jnp.array([2.0, 4.0, -8.0])
    assert float(fractions.expectation(tau, z)) == 0
    assert fractions.expectation(tau, jnp.stack([z, z + 3], axis=1)).tolist() == [0, 3]
