"""Epsilon: its schedule and the choice it governs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax import exploration


@pytest.mark.parametrize(("step", "epsilon"), [(0, 1.0), (250, 0.55), (500, 0.1), (9999, 0.1)])
def test_the_schedule_is_linear_and_stays_at_its_end(step, epsilon):
    assert_allclose(exploration.linear_schedule(1.0, 0.1, 500.0, step), epsilon, rtol=1e-6)


def test_a_schedule_of_no_length_is_at_its_end_from_the_first_step():
    assert_allclose(exploration.linear_schedule(1.0, 0.1, 0.0, 0), 0.1, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_takes_the_best_action_with_its_probability(epsilon):
    q, n = jnp.array([0.0, 5.0, 1.0, -1.0]), 20_000
    actions = jax.vmap(lambda key: exploration.epsilon_greedy(key, q, epsilon))(jax.random.split(jax.random.key(0), n))
    share = np.bincount(actions, minlength=4) / n
    best = 1 - epsilon + epsilon / 4
    assert_allclose(share, [epsilon / 4, best, epsilon / 4, epsilon / 4], atol=5 * np.sqrt(0.25 / n))
