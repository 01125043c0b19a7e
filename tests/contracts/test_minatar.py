"""MinAtar through gymnax: layout, sticky actions, frames and time limits as the original's, and what the replay keeps."""

from dataclasses import replace

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from quantilax import IQN, Box, ConfigWarning, envs
from quantilax.envs.gymnax import MINATAR, Gymnax
from quantilax.envs.probes import Corridor
from quantilax.envs.wrappers import StickyActions
from tests.conftest import TINY
from tests.contracts.test_environments import rollout

CHANNELS_AND_ACTIONS = {  # of Young & Tian (2019): the minimal action sets
    "Asterix-MinAtar": (4, 5),
    "Breakout-MinAtar": (4, 3),
    "Freeway-MinAtar": (7, 3),
    "Seaquest-MinAtar": (10, 6),
    "SpaceInvaders-MinAtar": (6, 4),
}


def with_limit(env: StickyActions, limit: int) -> StickyActions:
    return replace(env, env=replace(env.env, params=env.env.params.replace(max_steps_in_episode=jnp.array(limit))))


def test_these_are_all_of_gymnaxs():
    assert set(MINATAR) == {name for name in gymnax.registered_envs if name.endswith("-MinAtar")}
    assert set(MINATAR) == set(CHANNELS_AND_ACTIONS)


@pytest.mark.parametrize("name", list(MINATAR))
def test_a_game_has_the_originals_channels_actions_stickiness_and_limit(name):
    env = envs.make(name)
    channels, actions = CHANNELS_AND_ACTIONS[name]
    assert env.observation_space == Box((10, 10, channels), jnp.bool_, 0, 1)
    assert env.action_space.n == actions
    assert env.name == name
    assert env.probability == 0.1
    assert int(env.max_episode_steps) == (2_501 if name == "Freeway-MinAtar" else 5_000)
    envs.as_environment(env)  # the contract


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar"])
def test_an_observation_is_gymnaxs_as_bools(name):
    env = replace(envs.make(name), probability=0.0)
    theirs, params = gymnax.make(name)
    state, obs = env.reset(jax.random.key(3))
    their_obs, _ = theirs.reset(jax.random.key(3), params)
    assert obs.dtype == jnp.bool_
    assert_array_equal(obs, their_obs)
    step, observe = jax.jit(env.step), jax.jit(theirs.get_obs)
    for t in range(5):
        state, told = step(jax.random.key(t), state, jnp.array(1))
        assert_array_equal(told.next_obs, observe(state[0], params) == 1)  # no episode ends so soon


def test_breakout_begins_as_the_original():
    _, obs = envs.make("Breakout-MinAtar").reset(jax.random.key(0))
    paddle, ball, trail, brick = np.moveaxis(np.asarray(obs), -1, 0)
    assert np.argwhere(paddle).tolist() == [[9, 4]]
    assert np.argwhere(ball).tolist() in ([[3, 0]], [[3, 9]])
    assert_array_equal(trail, ball)
    assert_array_equal(np.flatnonzero(brick.all(axis=1)), [1, 2, 3])
    assert brick.sum() == 30


def test_a_step_is_a_frame():
    env = envs.make("Breakout-MinAtar")
    obs, _, step = rollout(env, 3, num_envs=4)  # the ball falls from row 3, a row and a column per frame
    row, column = ([np.argwhere(x)[0][i] for x in np.asarray(obs)[:, 0, :, :, 1]] for i in (0, 1))
    assert row == [3, 4, 5]
    assert np.abs(np.diff(column)).tolist() == [1, 1]
    assert not step.terminated.any()


def test_freeway_takes_2501_frames_and_is_cut_off():
    env = envs.make("Freeway-MinAtar")
    step = rollout(env, 2_501, num_envs=1)[2]
    assert np.flatnonzero(step.truncated[:, 0]).tolist() == [2_500]
    assert not step.terminated.any()


@pytest.mark.parametrize("name", ["Asterix-MinAtar", "Breakout-MinAtar"])
def test_a_limit_is_a_leaf_and_cuts_off(name):
    limited = with_limit(envs.make(name), 7)
    assert int(limited.max_episode_steps) == 7
    _, _, step = rollout(limited, 7)
    alive = ~np.asarray(step.terminated).any(axis=0)
    assert alive.any()
    assert np.asarray(step.truncated)[6][alive].all()
    assert jax.tree.structure(limited) == jax.tree.structure(envs.make(name))  # no program of its own


def test_an_object_of_gymnax_is_taken_as_it_is():
    env = envs.as_environment(gymnax.make("Breakout-MinAtar")[0])
    assert isinstance(env, Gymnax)  # no sticky actions
    assert int(env.max_episode_steps) == 1_000


def executed(probability: float, actions, key=0):
    """The actions that a long corridor executed, inferred from its moves."""
    env = StickyActions(env=Corridor(cells=len(actions) + 2), probability=probability)
    state, _ = env.reset(jax.random.key(key))

    def one(state, inputs):
        key, action = inputs
        state, _ = env.step(key, state, action)
        return state, (state[0][0], state[1])

    keys = jax.random.split(jax.random.key(key + 1), len(actions))
    return jax.lax.scan(one, state, (keys, jnp.asarray(actions)))[1]


def test_an_action_sticks_with_the_probability_given_and_the_one_before_the_first_is_0():
    actions = np.ones(4_000, int)
    cells, taken = executed(0.0, actions)
    assert_array_equal(taken, actions)
    assert_array_equal(cells, np.arange(1, 4_001))
    _, taken = executed(1.0, actions)
    assert_array_equal(taken, 0 * actions)
    _, taken = executed(0.1, np.arange(4_000) % 2)
    stuck = np.mean(np.asarray(taken)[1:] == np.asarray(taken)[:-1])
    # A step's action is that of the one before where it sticks, or where that one had stuck and this one does not: as the
    # chosen actions alternate, p + (1 - p) s, s the chance that the action of the step before was not the one chosen. s is
    # p (1 - s): stuck, to an action that had itself been the chosen one; so s = p / (1 + p) and the share is 2 p / (1 + p).
    assert abs(stuck - 0.2 / 1.1) < 4 * np.sqrt(0.18 * 0.82 * 2 / 4_000)


def test_a_sticking_action_is_the_one_that_was_taken_and_outlives_an_episode():
    env = StickyActions(env=Corridor(cells=2), probability=1.0)
    state, _ = env.reset(jax.random.key(0))
    state = state[0], jnp.array(1)
    ends = []
    for t in range(4):  # leaves at the right end every second step, though 0 is chosen
        state, told = env.step(jax.random.key(t), state, jnp.array(0))
        ends.append(bool(told.terminated))
    assert ends == [False, True, False, True]


def test_the_replay_keeps_a_byte_per_cell_and_channel():
    settings = TINY["iqn"] | dict(buffer_size=10_000, num_envs=10, torso="minatar")
    algo = IQN.create(env="Breakout-MinAtar", **settings)
    ring = jax.eval_shape(algo.init, jax.random.key(0)).replay
    assert ring.observations.dtype == jnp.bool_
    # 1,000 iterations; a 32nd and three more slots of 400 bytes; action and reward of 4, two flags and an offset.
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((ring.rows, ring.observations)))
    assert stored == 10_000 * 11 + (1_000 + 31 + 3) * 10 * 400
    assert stored / 10_000 < 425  # float32: some 1,665


def test_a_game_is_learned_from_and_an_mlp_advised_against():
    env = with_limit(envs.make("Breakout-MinAtar"), 20)
    state, record = IQN.create(env=env, **TINY["iqn"] | dict(torso="minatar")).records(jax.random.key(0))
    assert bool(record.finite.all())
    assert state.replay.observations.dtype == jnp.bool_
    assert int(record.lengths.max()) <= 20
    with pytest.warns(ConfigWarning, match="torso=mlp flattens .*; set torso to minatar"):
        IQN.create(env=env, **TINY["iqn"])
