"""Actions of both kinds, discrete and real-valued, go through collecting, the replay, evaluation and wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import IQN, Box, ConfigError, Discrete, TimeStep, envs, pytree, replay
from quantilax.envs.wrappers import StickyActions
from quantilax.learning import rollout
from quantilax.types import Policy, no_action


@pytree.dataclass
class Aim:
    """Real-valued actions: each step pays -|action - obs|^2; three steps make an episode."""

    name = "aim"
    observation_space = Box((2,), low=-1.0, high=1.0)
    action_space = Box((2,), low=np.array([-1.0, 0.0]), high=2.0)
    max_episode_steps = 3

    def reset(self, key):
        obs = jax.random.uniform(key, (2,), minval=-1.0)
        return (obs, jnp.zeros((), jnp.int32)), obs

    def step(self, key, state, action):
        obs, t = state
        cut = t == 2
        new = jax.random.uniform(key, (2,), minval=-1.0)
        reward = -jnp.sum((action - obs) ** 2)
        return (new, jnp.where(cut, 0, t + 1)), TimeStep(new, new / 2, reward, jnp.array(False), cut)


@pytree.dataclass
class Count(Aim):
    """Discrete actions, of which each pays its own number."""

    name = "count"
    action_space = Discrete(5)

    def step(self, key, state, action):
        state, time_step = super().step(key, state, jnp.zeros(2))
        return state, time_step._replace(reward=action.astype(jnp.float32))


BOTH = [Aim(), Count()]


def paid(env, transition):
    """Rewards, recomputed from the stored actions and observations."""
    if isinstance(env.action_space, Discrete):
        return np.asarray(transition.action, np.float32)
    return -np.sum((np.asarray(transition.action) - np.asarray(transition.obs)) ** 2, axis=-1)


def collected(env, steps, num_envs=4, capacity=40):
    """The transitions of random actions, leading axes (steps, num_envs), and a ring with the newest of them."""
    start = rollout.reset(env, jax.random.split(jax.random.key(0), num_envs))
    spec = rollout.transition_spec(env)

    def one(carry, key):
        at, ring = carry
        at, transition = rollout.step(env, rollout.random_action(env), at, key)
        return (at, replay.add(ring, transition, at.obs)), transition

    keys, carry = jax.random.split(jax.random.key(1), steps), (start, replay.init(spec, start.obs, capacity))
    (_, ring), transitions = jax.jit(lambda carry: jax.lax.scan(one, carry, keys))(carry)
    return transitions, ring, spec


@pytest.mark.parametrize("env", BOTH, ids=lambda env: env.name)
def test_random_actions_are_of_the_space_and_fill_it(env):
    transitions, _, spec = collected(envs.as_environment(env), 100)
    action = np.asarray(transitions.action)
    assert (action.shape[2:], action.dtype) == (spec.action.shape, spec.action.dtype)
    assert (spec.action.shape, spec.action.dtype) == (
        no_action(env.action_space).shape,
        no_action(env.action_space).dtype,
    )
    np.testing.assert_allclose(paid(env, transitions), transitions.reward, rtol=1e-6)
    if isinstance(env.action_space, Discrete):
        assert set(action.ravel()) == set(range(5))
    else:
        low, high = action.min(axis=(0, 1)), action.max(axis=(0, 1))
        assert (low >= [-1, 0]).all() and (low < [-0.9, 0.1]).all()  # noqa: PT018
        assert (high <= 2).all() and (high > 1.9).all()  # noqa: PT018


@pytest.mark.parametrize("env", BOTH, ids=lambda env: env.name)
def test_the_replay_gives_each_action_with_its_own_observation_and_reward(env):
    _, ring, spec = collected(env, 100)
    drawn = replay.sample(ring, jax.random.key(2), 64, 0.9)
    assert drawn.action.shape == (64, *spec.action.shape)
    np.testing.assert_allclose(paid(env, drawn), drawn.reward, rtol=1e-6)
    assert len(np.unique(drawn.reward)) > 4


@pytest.mark.parametrize("env", BOTH, ids=lambda env: env.name)
def test_evaluation_plays_whole_episodes(env):
    def best(obs, carry, key, legal):
        return (jnp.clip(obs, -1, 2) if isinstance(env.action_space, Box) else jnp.int32(4)), carry

    lengths, returns = rollout.evaluate(env, Policy(best), jax.random.key(0), 20)
    assert lengths.tolist() == [3] * 20
    if isinstance(env.action_space, Discrete):
        assert returns.tolist() == [12.0] * 20
    else:
        np.testing.assert_allclose(returns, 0.0, atol=1e-6)


@pytest.mark.parametrize("env", BOTH, ids=lambda env: env.name)
def test_sticky_actions_repeat_the_action_before_or_at_first_that_of_zeros(env):
    sticky = StickyActions(env=envs.as_environment(env), probability=1.0)
    state, obs = sticky.reset(jax.random.key(0))
    action = no_action(env.action_space) + 1
    _, time_step = sticky.step(jax.random.key(1), state, action)
    expected = 0.0 if isinstance(env.action_space, Discrete) else -float(jnp.sum(obs**2))
    np.testing.assert_allclose(time_step.reward, expected, rtol=1e-6)
    (_, last), _ = StickyActions(env=env, probability=0.0).step(jax.random.key(1), state, action)
    assert last.dtype == no_action(env.action_space).dtype
    np.testing.assert_array_equal(last, action)


def test_what_a_policy_remembers_begins_anew_with_each_episode():
    def count(obs, carry, key, legal):
        return carry, carry + 1

    policy = Policy(count, carry=jnp.zeros((), jnp.int32))
    _, returns = rollout.evaluate(Count(), policy, jax.random.key(0), 4)
    assert returns.tolist() == [0.0 + 1 + 2] * 4  # each action pays its own number
    start = rollout.reset(Count(), jax.random.split(jax.random.key(0), 4), policy.carry)
    keys = jax.random.split(jax.random.key(1), 7)
    end, seen = jax.lax.scan(lambda at, key: rollout.step(Count(), policy, at, key), start, keys)
    np.testing.assert_array_equal(seen.action[:, 0], [0, 1, 2, 0, 1, 2, 0])
    assert end.carry.tolist() == [1] * 4


def test_boxes_of_gymnax_have_its_bounds():
    env = envs.make("Pendulum-v1")
    assert (env.action_space.low, env.action_space.high) == (-2.0, 2.0)
    high = envs.make("CartPole-v1").observation_space.high
    assert high[0] == pytest.approx(4.8)


def test_actions_without_bounds_are_not_drawn_at_random():
    @pytree.dataclass
    class Unbounded(Aim):
        action_space = Box((2,))

    with pytest.raises(ConfigError, match="aim's actions have no bounds; give its action_space a low and a high"):
        rollout.random_action(envs.as_environment(Unbounded()))


def test_an_algorithm_that_needs_discrete_actions_refuses_real_valued_ones():
    with pytest.raises(ConfigError, match="aim has continuous actions and iqn needs discrete ones"):
        IQN.create(env=Aim())
