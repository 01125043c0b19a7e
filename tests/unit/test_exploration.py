"""Epsilon: its schedule and the choice it governs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax.envs.probes import TimeLimit
from quantilax.learning import exploration, rollout
from quantilax.types import Policy


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


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_of_the_legal_actions_the_best_is_taken_or_any_with_equal_chances(epsilon):
    q, legal, n = jnp.array([0.0, 5.0, 1.0, -1.0]), jnp.array([True, False, True, True]), 20_000
    actions = jax.vmap(lambda key: exploration.epsilon_greedy(key, q, epsilon, legal))(
        jax.random.split(jax.random.key(0), n)
    )
    share = np.bincount(actions, minlength=4) / n
    assert share[1] == 0
    assert_allclose(share, [epsilon / 3, 0, 1 - epsilon + epsilon / 3, epsilon / 3], atol=5 * np.sqrt(0.25 / n))


def test_values_are_masked_but_where_no_action_is_legal():
    legal = jnp.array([[True, False], [False, False]])
    assert exploration.masked(jnp.array([[1.0, 2.0], [3.0, 4.0]]), legal).tolist() == [[1, -np.inf], [3, 4]]


@pytest.mark.parametrize("u", [0.0, 0.49, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_a_legal_action_lies_at_its_share_of_them(u):
    legal = jnp.array([False, True, False, True, False])
    assert int(exploration.legal_action(jnp.float32(u), legal)) == (1 if u < 0.5 else 3)


LONGEST, ENVS, STEPS = 10, 20_000, 60
NOT_RANDOM = -1
ELSE = Policy(lambda obs, carry, key, legal: (jnp.full((), NOT_RANDOM), carry))
"""What is done where no random action goes on."""


def played(epsilon, longest=LONGEST, episode=STEPS + 1):
    """Where a random action was taken, and which, (steps, environments); epsilon by the step, episodes of one length."""
    env = TimeLimit(limit=episode)

    def step(envs, t):
        policy = exploration.repeating(ELSE, epsilon(t), 3, longest)
        return rollout.step(env, policy, envs, jax.random.fold_in(jax.random.key(0), t))

    envs = rollout.reset(
        env, jax.random.split(jax.random.key(1), ENVS), exploration.repeating(ELSE, 0.0, 3, longest).carry
    )
    action = np.asarray(jax.lax.scan(step, envs, jnp.arange(STEPS))[1].action)
    return action != NOT_RANDOM, action


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
    where, _ = played(at_first, episode=3)
    assert where[2].mean() > 0.1
    assert not where[3:].any()


def test_a_repeat_ends_where_its_action_is_not_legal_any_more():
    repeats = exploration.Repeats(jnp.array([0, 1, 1]), jnp.array([3, 3, 0]))
    legal = jnp.array([[True, False], [True, False], [True, False]])
    going, ended = (
        exploration.begin_repeats(repeats, jax.random.key(0), epsilon, 2, LONGEST, legal) for epsilon in (0.0, 1.0)
    )
    assert going.left.tolist() == [3, 0, 0]
    assert (ended.left[1:] > 0).all()
    assert ended.action.tolist() == [0, 0, 0]


def test_repeats_of_one_step_are_epsilon_greedy():
    where, _ = played(lambda t: 0.3, longest=1)
    assert_allclose(where.mean(axis=1), 0.3, atol=5 * np.sqrt(0.25 / ENVS))
    assert_allclose((where[1:] & where[:-1]).mean(), 0.09, atol=0.01)  # each step by itself
    assert exploration.share_of_repeats(0.3, 1) == 0.3
    assert exploration.mean_repeats(1) == 1.0
