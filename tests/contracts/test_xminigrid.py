"""The adapter for xminigrid, beside the library's own steps."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import PQN, ConfigError, envs

xminigrid = pytest.importorskip("xminigrid", reason="xminigrid is not installed: pip install 'quantilax[xminigrid]'")

from quantilax.envs import xminigrid as adapter  # noqa: E402

NAME, CHEAP = "MiniGrid-EmptyRandom-5x5", "MiniGrid-MemoryS8"  # the second compiles faster
LIMIT = 30


@partial(jax.jit, static_argnames=("name", "steps"))
def both(env, name, key, steps):
    """Steps of the adapter and of the library with the same keys and random actions."""
    with jax.ensure_compile_time_eval():
        theirs, params = xminigrid.make(name, max_steps=LIMIT)

    def one(carry, key):
        ours, inner = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (), 0, 6)
        ours, step = env.step(key_step, ours, action)
        told = theirs.step(params, inner, action)
        then = jax.tree.map(lambda a, b: jnp.where(told.last(), a, b), theirs.reset(params, key_step), told)
        expected = then.observation, told.observation, told.reward, told.last(), told.discount, told.state.step_num
        return (ours, then), (step, expected)

    start = env.reset(key)[0], theirs.reset(params, key)
    return jax.lax.scan(one, start, jax.random.split(jax.random.fold_in(key, 1), steps))[1]


@cache
def played(name, encoding):
    """The steps of both, as NumPy arrays."""
    env = adapter.make(name, max_episode_steps=LIMIT, encoding=encoding)
    return jax.tree.map(np.asarray, both(env, name, jax.random.key(0), 1000))


def test_observations_rewards_and_ends_are_the_librarys():
    step, (obs, next_obs, reward, last, discount, count) = played(NAME, "ids")
    assert_array_equal(step.obs, obs)
    assert_array_equal(step.next_obs, next_obs)
    assert_array_equal(step.reward, reward)
    assert_array_equal(step.terminated, last & (discount == 0))
    assert_array_equal(step.truncated, last & (discount == 1))
    assert step.terminated.sum() > 5
    assert step.truncated.sum() > 5
    assert_array_equal(count[step.truncated], LIMIT)
    assert ((reward > 0) == step.terminated).all()
    assert_allclose(reward[step.terminated], 1 - 0.9 * count[step.terminated] / LIMIT, rtol=1e-6)
    assert (step.obs[last] != step.next_obs[last]).any()


def test_one_hot_is_the_tile_and_the_colour_of_each_cell():
    step, (obs, *_) = played(CHEAP, "one-hot")
    assert step.obs.shape[1:] == (3, 3, 25)
    assert (step.obs.sum(axis=-1) == 2).all()
    assert_array_equal(step.obs[..., :13].argmax(axis=-1), obs[..., 0])
    assert_array_equal(step.obs[..., 13:].argmax(axis=-1), obs[..., 1])


def test_many_at_once_are_each_as_alone():
    env = adapter.make(CHEAP, max_episode_steps=LIMIT)
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    many, _ = jax.vmap(lambda key: both(env, CHEAP, key, 1000))(keys)
    for name in ("obs", "next_obs", "reward", "terminated", "truncated"):
        assert_array_equal(getattr(many, name)[0], getattr(played(CHEAP, "one-hot")[0], name))


def test_two_makes_share_the_librarys_object_and_are_equal():
    one, other = adapter.make(NAME), adapter.make(NAME)
    assert one.env is other.env
    assert one == other
    assert one.max_episode_steps == 100


def test_each_registered_task_is_taken_or_refused():
    refused = {name for name in xminigrid.registered_environments() if name.startswith("XLand")}
    assert {*adapter.names(), *refused, adapter.WITHOUT_GOAL} == set(xminigrid.registered_environments())
    for name, arguments, words in (
        ("MiniGrid-Empty-5x6", {}, "unknown environment 'xminigrid/MiniGrid-Empty-5x6'; did you mean"),
        ("XLand-MiniGrid-R1-9x9", {}, "downloaded"),
        ("MiniGrid-Playground", {}, "no goal"),
        (NAME, {"encodin": "ids"}, "did you mean 'encoding'"),
        (NAME, {"encoding": "rgb"}, "encoding must be one of one-hot, ids, got 'rgb'"),
        (NAME, {"max_episode_steps": 0}, "max_episode_steps must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            adapter.make(name, **arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.validation
@pytest.mark.parametrize("name", adapter.names())
def test_every_task_fulfils_the_contract(name):
    env = envs.as_environment(adapter.make(name))
    assert env.name == f"xminigrid/{name}"


@pytest.mark.validation
def test_pqn_learns_to_reach_the_goal():
    env = adapter.make(NAME)
    algo = PQN.create(
        env=env, total_timesteps=49_152, eval_freq=49_152, eval_episodes=64, num_envs=64, num_steps=16, num_epochs=2,
        num_minibatches=4, learning_rate=1e-3, torso="minatar", torso_sizes=(32,), layer_norm=True,
        exploration_fraction=0.5, eps_end=0.05,
    )  # fmt: skip
    returns = np.asarray(jax.jit(algo.train)(jax.random.key(0))[1].returns).mean(axis=1)
    assert returns[-1] > 0.75  # random play reaches the goal in a part of the episodes, late
    assert returns[-1] > returns[0] + 0.2
