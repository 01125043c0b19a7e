"""Wrappers by name, around JAX environments and host environments alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import Box, ConfigError, Discrete, TimeStep, envs, pytree, replay
from quantilax.envs import wrappers
from quantilax.learning import rollout


@pytree.dataclass
class Count:
    """Counts its steps, ends after `last`, and pays the step's number."""

    last: int = 5
    name = "count"
    observation_space = Box((1, 2), jnp.int32, 0, 9)
    action_space = Discrete(2)

    @property
    def max_episode_steps(self):
        return self.last

    def reset(self, key):
        return jnp.zeros((), jnp.int32), self.seen(jnp.zeros((), jnp.int32))

    def seen(self, state):
        return jnp.stack([state, jnp.zeros((), jnp.int32)])[None]

    def step(self, key, state, action):
        state = state + 1
        done = state == self.last
        following = jnp.where(done, 0, state)
        step = TimeStep(self.seen(following), self.seen(state), state.astype(float), done, jnp.array(False))
        return following, step


def played(env, steps, key=0, num_envs=1):
    """(first observations, transitions, following observations) of random actions."""
    policy = rollout.random_action(env)

    def one(now, key):
        after, transition = rollout.step(env, policy, now, key)
        return after, (transition, after.obs)

    first = rollout.reset(env, jax.random.split(jax.random.key(key), num_envs))
    return first.obs, *jax.lax.scan(one, first, jax.random.split(jax.random.key(key + 1), steps))[1]


def wrapped(*entries, env=None):
    env = env or Count()
    for entry in entries:
        env = wrappers.wrap(env, entry)
    return env


def test_a_frame_stack_shows_the_last_observations_with_zeros_before_the_first():
    first, transitions, following = played(wrapped({"frame_stack": {"frames": 3}}), 6)
    assert first[0, 0].tolist() == [0, 0, 0, 0, 0, 0]
    newest = [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 0, 1]]
    assert transitions.next_obs[:, 0, 0, ::2].tolist() == newest
    assert following[4, 0, 0, ::2].tolist() == [0, 0, 0]  # a new episode
    assert following[:4, 0, 0, ::2].tolist() == newest[:4]


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_replay_reads_the_stacks_that_were_seen_also_at_ends_and_when_it_is_full(n_step):
    env = wrapped({"time_limit": {"steps": 4}}, {"frame_stack": {"frames": 3}}, env=Count(last=7))
    capacity, policy = 24, rollout.random_action(env)
    spec = rollout.transition_spec(env)

    def one(carry, key):
        now, ring = carry
        after, transition = rollout.step(env, policy, now, key)
        return (after, replay.add(ring, transition, after.obs)), transition

    now = rollout.reset(env, jax.random.split(jax.random.key(0), 2))
    ring = replay.init(spec, now.obs, capacity, n_step, frames=3)
    (_, ring), seen = jax.jit(partial(jax.lax.scan, one))((now, ring), jax.random.split(jax.random.key(1), 60))
    assert ring.observations.shape[2:] == (1, 2)
    assert ring.size >= capacity - 8
    for age in range((n_step - 1) * 2, int(ring.size)):
        iteration, of = replay.ring.place(ring, jnp.array([age]))
        read = replay.ring.read(ring, iteration, of, 1.0)
        t, e = int(iteration[0]), int(of[0])
        assert_array_equal(read.obs[0], seen.obs[t, e])
        if not read.terminated[0]:
            assert_array_equal(read.next_obs[0], seen.next_obs[t + int(read.steps[0]) - 1, e])


def test_a_time_limit_truncates_and_keeps_the_successor():
    env = wrapped({"time_limit": {"steps": 3}})
    _, transitions, following = played(env, 7)
    assert env.max_episode_steps == 3
    assert transitions.truncated[:, 0].tolist() == [False, False, True, False, False, True, False]
    assert not transitions.terminated.any()
    assert transitions.next_obs[2, 0, 0, 0] == 3
    assert following[2, 0, 0, 0] == 0


def test_a_time_limit_leaves_an_end_at_the_same_step_an_end():
    _, transitions, _ = played(wrapped({"time_limit": {"steps": 5}}), 5)
    assert transitions.terminated[4, 0]


def test_repeated_actions_add_rewards_and_stop_at_the_end_of_an_episode():
    env = wrapped({"action_repeat": {"times": 2}})
    _, transitions, following = played(env, 4)
    assert transitions.reward[:, 0].tolist() == [3, 7, 5, 3]  # 1 + 2, 3 + 4, 5 alone
    assert transitions.terminated[:, 0].tolist() == [False, False, True, False]
    assert following[:, 0, 0, 0].tolist() == [2, 4, 0, 2]
    assert env.max_episode_steps == 3


def test_rewards_are_changed_for_learning_and_curves_show_the_others():
    env = wrapped({"scale_reward": {"factor": 0.5}}, {"clip_reward": {"high": 1.5}})
    _, transitions, _ = played(env, 5)
    assert transitions.reward[:, 0].tolist() == [0.5, 1.0, 1.5, 1.5, 1.5]
    assert transitions.raw_reward[:, 0].tolist() == [1, 2, 3, 4, 5]
    policy = rollout.random_action(env)
    assert rollout.evaluate(env, policy, jax.random.key(0), 2)[1].tolist() == [15, 15]
    assert rollout.watch(env, policy, jax.random.key(0), 2, 1.0).discounted.tolist() == [6, 6]


def test_observations_are_flattened_encoded_and_mapped_to_their_bounds():
    flat = wrapped("flatten")
    assert flat.observation_space.shape == flat.reset(jax.random.key(0))[1].shape == (2,)
    _, hot, _ = played(wrapped("one_hot"), 3)
    assert hot.next_obs.shape == (3, 1, 1, 2, 10)
    assert jnp.argmax(hot.next_obs[:, 0, 0, 0], axis=-1).tolist() == [1, 2, 3]
    _, unit, _ = played(wrapped("normalize"), 3)
    assert_allclose(unit.next_obs[:, 0, 0, 0], np.array([1, 2, 3]) / 9, rtol=1e-6)


@pytest.mark.parametrize("entry", wrappers.WRAPPERS)
def test_every_wrapper_keeps_the_contract_and_is_made_again_from_its_fields(entry):
    env = Count() if entry in ("one_hot", "normalize") else envs.make("probe/corridor")
    made = envs.as_environment(wrapped(entry, env=env))
    told = wrappers.entry_of(made)
    assert wrapped(told, env=env) == made


def test_wrappers_go_around_environments_of_gymnasium_and_their_time_limit_is_the_simulators():
    pytest.importorskip("gymnasium", reason="the extra 'gymnasium' is not installed")
    entries = [{"frame_stack": {"frames": 2}}, {"action_repeat": {"times": 3}}]
    env = envs.make("gymnasium/CartPole-v1", None, [{"time_limit": {"steps": 12}}, *entries])
    fields = envs.fields_of(env)
    assert fields == {"env": "gymnasium/CartPole-v1", "env_args": {"max_episode_steps": 12}, "wrappers": entries}
    assert env.max_episode_steps == 4
    first, transitions, following = jax.jit(partial(played, env, 30, num_envs=2))()
    assert transitions.reward.max() == 3
    assert (transitions.terminated | transitions.truncated).sum() > 6
    assert_array_equal(following[:-1], transitions.obs[1:])
    assert_array_equal(first[:, :4], 0)


def test_a_time_limit_outside_of_other_wrappers_is_still_the_simulators():
    pytest.importorskip("gymnasium", reason="the extra 'gymnasium' is not installed")
    env = envs.make("gymnasium/CartPole-v1", None, ["frame_stack", {"time_limit": {"steps": 7}}])
    assert isinstance(env, wrappers.FrameStack)
    assert (env.max_episode_steps, env.env.simulation.max_episode_steps) == (7, 7)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["framestack"], "unknown wrapper 'framestack'; did you mean 'frame_stack'"),
        ([{"frame_stack": {"frame": 4}}], "frame_stack: unknown field 'frame'; did you mean 'frames'"),
        ([{"frame_stack": {"frames": 0}}], "frame_stack: frames: "),
        ([{"flatten": {"order": 1}}], "flatten: unknown field 'order'; it has none"),
        ([{"flatten": 3}], "flatten: expected fields such as"),
        ([{"a": 1, "b": 2}], "expected names, or entries such as"),
        (["frame_stack", "frame_stack"], "are stacked already; leave one out"),
        (["one_hot"], "are not whole numbers between bounds"),
        (["normalize"], "have no bounds; set normalize_observations: true instead"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_one_line(entries, message):
    with pytest.raises(ConfigError, match=message):
        envs.make("CartPole-v1", None, entries)
