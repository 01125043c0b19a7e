"""Distortions of fractions against numbers derived by hand."""

import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose

from quantilax.learning.risk import DISTORTIONS

TAU = jnp.array([0.1, 0.5, 0.9])


@pytest.mark.parametrize(
    ("name", "eta", "expected"),
    [
        ("neutral", 1.0, [0.1, 0.5, 0.9]),
        ("cpw", 0.71, [0.165612, 0.460588, 0.788143]),
        ("wang", -0.75, [0.021100, 0.226627, 0.702482]),
        ("wang", 1.5, [0.586460, 0.933193, 0.997295]),
        ("power", -2.0, [0.034511, 0.206299, 0.535841]),
        ("power", 2.0, [0.464159, 0.793701, 0.965489]),
        ("cvar", 0.25, [0.025, 0.125, 0.225]),
    ],
)
def test_distortion_gives_the_numbers_derived_by_hand(name, eta, expected):
    assert_allclose(DISTORTIONS[name](TAU, eta), expected, atol=2e-6)


@pytest.mark.parametrize("name", list(DISTORTIONS))
def test_distortion_keeps_the_order_and_the_range_of_fractions(name):
    tau = jnp.linspace(0.0, 1.0, 101)[1:-1]
    beta = DISTORTIONS[name](tau, 0.7)
    assert bool((jnp.diff(beta) > 0).all())
    assert bool(((beta >= 0) & (beta <= 1)).all())
