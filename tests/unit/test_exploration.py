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


LONGEST, ENVS, STEPS = 10, 20_000, 60


def played(epsilon, longest=LONGEST, done=None):
    """Where a random action was taken, and which, (steps, environments); epsilon and done by the step."""

    def step(repeats, t):
        key = jax.random.fold_in(jax.random.key(0), t)
        repeats = exploration.begin_repeats(key, repeats, epsilon(t), 3, longest)
        ended = jnp.full(ENVS, False if done is None else done(t))
        return exploration.end_step(repeats, ended), (repeats.left > 0, repeats.action)

    _, (where, action) = jax.lax.scan(step, exploration.no_repeats(ENVS), jnp.arange(STEPS))
    return np.asarray(where), np.asarray(action)


def at_first(t):
    return jnp.where(t == 0, 1.0, 0.0)


def test_a_random_action_is_repeated_n_times_with_chances_in_proportion_to_one_over_n_squared():
    where, action = played(at_first)
    n = where.sum(axis=0)
    assert (where == (np.arange(STEPS)[:, None] < n)).all()  # in a row, from the first step on
    assert (action[where] == np.broadcast_to(action[0], action.shape)[where]).all()
    chances = 1 / np.arange(1, LONGEST + 1) ** 2
    chances /= chances.sum()
    assert_allclose(np.bincount(n, minlength=LONGEST + 1)[1:] / ENVS, chances, atol=5 * np.sqrt(0.25 / ENVS))
    assert_allclose(np.bincount(action[0]) / ENVS, 1 / 3, atol=5 * np.sqrt(0.25 / ENVS))
    assert exploration.mean_repeats(LONGEST) == pytest.approx(np.arange(1, LONGEST + 1) @ chances)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_repeated_steps_is_the_one_that_is_told(epsilon):
    where, _ = played(lambda t: epsilon)
    share = exploration.share_of_repeats(epsilon, LONGEST)
    assert_allclose(where[STEPS // 2 :].mean(), share, atol=0.01)
    assert share >= epsilon


def test_a_repeat_ends_with_its_episode():
    where, _ = played(at_first, done=lambda t: t == 2)
    assert where[2].mean() > 0.1
    assert not where[3:].any()


def test_repeats_of_one_step_are_epsilon_greedy():
    where, _ = played(lambda t: 0.3, longest=1)
    assert_allclose(where.mean(axis=1), 0.3, atol=5 * np.sqrt(0.25 / ENVS))
    assert_allclose((where[1:] & where[:-1]).mean(), 0.09, atol=0.01)  # each step by itself
    assert exploration.share_of_repeats(0.3, 1) == 0.3
    assert exploration.mean_repeats(1) == 1.0
