"""The MiniGrid tasks of XLand-MiniGrid compared with the library, with the same keys and actions."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("xminigrid", reason="xminigrid is not installed: pip install 'quantilax[xminigrid]'")

import xminigrid

from quantilax import Box, ConfigError, envs
from quantilax.envs import xminigrid as adapter

STEPS, ENVS, LIMIT = 250, 4, 30
TASKS = ("MiniGrid-EmptyRandom-5x5", "MiniGrid-DoorKey-5x5", "MiniGrid-MemoryS8")


@partial(jax.jit, static_argnums=(0, 1, 2))
@partial(jax.vmap, in_axes=(None, None, None, 0))
def beside(env, library, params, key):
    """STEPS of one environment: what the adapter reports, and what the library reports; the test resets the library."""

    def one(carry, key):
        state, theirs = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (), 0, 6)
        state, step = env.step(key_step, state, action)
        told = library.step(params, theirs, action)
        first = library.reset(params, key_step)
        strong = jax.tree.map(lambda a, old: jnp.asarray(a, old.dtype), told, theirs)
        theirs = jax.tree.map(lambda a, b: jnp.where(told.last(), a, b), first, strong)
        return (state, theirs), (step, told.replace(state=None), theirs.observation)

    key_reset, key_run = jax.random.split(key)
    first = jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype), library.reset(params, key_reset))
    return jax.lax.scan(one, (env.reset(key_reset)[0], first), jax.random.split(key_run, STEPS))[1]


@cache
def played(task):
    """(time steps of the adapter, those of the library, observations after its resets), leading axes (ENVS, STEPS)."""
    keys = jax.random.split(jax.random.key(0), ENVS)
    return jax.device_get(beside(adapter.make(task, max_episode_steps=LIMIT), *library(task), keys))


@cache
def library(task):
    return xminigrid.make(task, max_steps=LIMIT)


def encoded(tiles):
    """The default encoding, by rows of identity matrices."""
    return np.concatenate([np.eye(13, dtype=bool)[tiles[..., 0]], np.eye(12, dtype=bool)[tiles[..., 1]]], axis=-1)


@pytest.mark.parametrize("task", TASKS)
def test_rewards_ends_and_observations_are_the_librarys(task):
    step, told, obs = played(task)
    last = told.step_type == 2
    assert last.any()
    assert_array_equal(step.reward, told.reward)
    assert_array_equal(step.terminated, last & (told.discount == 0))
    assert_array_equal(step.truncated, last & (told.discount == 1))
    assert_array_equal(step.next_obs, encoded(told.observation))
    assert_array_equal(step.obs, encoded(obs))
    assert (step.obs[last] != step.next_obs[last]).any()  # the last observation is not that of the reset


def test_goals_terminate_and_pay_and_limits_truncate_and_do_not():
    step, _, _ = played("MiniGrid-EmptyRandom-5x5")
    assert step.terminated.any()
    assert step.truncated.any()
    assert_array_equal(step.reward > 0, step.terminated)
    lengths = [np.diff(np.flatnonzero(np.r_[True, row])) for row in step.terminated | step.truncated]
    assert max(map(max, lengths)) == LIMIT


def test_one_environment_is_as_among_many():
    task, keys = TASKS[0], jax.random.split(jax.random.key(0), ENVS)
    env = adapter.make(task, max_episode_steps=LIMIT)
    alone = jax.device_get(beside(env, *library(task), keys[2:3]))
    jax.tree.map(lambda one, many: assert_array_equal(one[0], many[2]), alone, played(task))


def test_ids_are_the_librarys_numbers_and_the_view_has_a_size():
    env = adapter.make("MiniGrid-DoorKey-5x5", encoding="ids", view_size=5)
    obs = env.reset(jax.random.key(3))[1]
    their, params = xminigrid.make("MiniGrid-DoorKey-5x5", view_size=5)
    assert_array_equal(obs, their.reset(params, jax.random.key(3)).observation)
    assert obs.dtype == jnp.float32
    assert env.observation_space == Box((5, 5, 2), jnp.float32, 0, 12)
    assert env.env_args == {"encoding": "ids", "view_size": 5}


def test_two_makes_share_an_object():
    one, other = adapter.make("MiniGrid-Unlock", view_size=5), adapter.make("MiniGrid-Unlock", view_size=5)
    assert one.env is other.env
    assert one == other
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    assert one.name == "xminigrid/MiniGrid-Unlock"


@pytest.mark.parametrize(
    ("task", "args", "words"),
    [
        (
            "MiniGrid-Empty-5x",
            {},
            "unknown environment 'xminigrid/MiniGrid-Empty-5x'; did you mean 'MiniGrid-Empty-5x5'",
        ),
        ("XLand-MiniGrid-R1-9x9", {}, "its goals come from a benchmark that has to be downloaded"),
        ("MiniGrid-Playground", {}, "it has no goal"),
        ("MiniGrid-Unlock", {"size": 3}, "unknown argument 'size'; .* takes encoding, max_episode_steps, view_size"),
        ("MiniGrid-Unlock", {"encoding": "rgb"}, "encoding: expected one_hot or ids, got 'rgb'"),
        ("MiniGrid-Unlock", {"view_size": 4}, "view_size: expected an odd number from 3 on, got 4"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(task, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        adapter.make(task, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", adapter.names())
def test_every_task_fits_the_contract(task):
    env = envs.as_environment(adapter.make(task))
    assert env.action_space.n == 6
    assert env.max_episode_steps >= 100
