"""The games of craftax beside craftax itself, driven with the same keys and actions.

Programs with craftax compile for a minute and more, so most tests are for `make validate`.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("craftax", reason="craftax is not installed: pip install 'quantilax[craftax]'")

from craftax.craftax_env import make_craftax_env_from_name

from quantilax import Box, ConfigError, envs
from quantilax.envs import craftax as adapter

STEPS, ENVS, LIMIT = 250, 4, 40
CLASSIC, FULL = adapter.GAMES


@cache
def library(game):
    return make_craftax_env_from_name(game, auto_reset=False)


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0))
def beside(env, library, key):
    """STEPS of one environment: what the adapter tells, and what craftax tells, which the test resets itself.

    In one of fifty steps the player loses all health, so that some episodes end by the rules.
    """
    params = library.default_params.replace(max_timesteps=LIMIT)

    def weakened(state, key):
        is_weak = jax.random.bernoulli(key, 0.02)
        return state.replace(player_health=jnp.where(is_weak, 0, state.player_health).astype(state.player_health.dtype))

    def one(carry, key):
        state, theirs = carry
        key_action, key_weak, key_step = jax.random.split(key, 3)
        action = jax.random.randint(key_action, (), 0, env.action_space.n)
        state, step = env.step(key_step, weakened(state, key_weak), action)
        key_step, key_reset = jax.random.split(key_step)
        obs, told, reward, done, _ = library.step(key_step, weakened(theirs, key_weak), action, params)
        first_obs, first = library.reset(key_reset, params)
        begins, kept = jax.tree.map(lambda a, b: jnp.where(done, a, b).astype(b.dtype), (first_obs, first), (obs, told))
        kept = jax.tree.map(lambda a, old: a.astype(old.dtype), kept, theirs)
        return (state, kept), (step, (begins, obs, reward, done, told.timestep, told.player_health))

    key_reset, key_run = jax.random.split(key)
    (state, obs), (their_obs, first) = env.reset(key_reset), library.reset(key_reset, params)
    return obs, their_obs, jax.lax.scan(one, (state, first), jax.random.split(key_run, STEPS))[1]


@cache
def played(game):
    """(first observations of both, (time steps of the adapter, what craftax told)), leading axes (ENVS, STEPS)."""
    keys = jax.random.split(jax.random.key(0), ENVS)
    return jax.device_get(beside(adapter.make(game, max_episode_steps=LIMIT), library(game), keys))


@pytest.mark.validation
@pytest.mark.parametrize("game", adapter.GAMES)
def test_a_thousand_steps_are_those_of_craftax(game):
    first, their_first, (step, (begins, ends, reward, done, t, health)) = played(game)
    close = partial(assert_allclose, rtol=1e-5, atol=1e-6)  # XLA fuses the two sides in different ways
    close(first, their_first)
    close(step.obs, begins)
    close(step.next_obs, ends)
    close(step.reward, reward)
    assert_array_equal(step.terminated | step.truncated, done)
    assert_array_equal(step.truncated, (t == LIMIT) & (health > 0))
    assert step.terminated.any()
    assert step.truncated.any()
    assert (reward > 0).any()
    assert step.next_obs.min() >= 0
    assert step.next_obs.max() <= 1


@pytest.mark.validation
def test_the_last_observation_is_kept_and_every_world_is_another():
    _, _, (step, _) = played(CLASSIC)
    done = step.terminated | step.truncated
    assert (step.obs[done] != step.next_obs[done]).any(axis=-1).all()
    assert len(np.unique(step.obs[done], axis=0)) == done.sum()
    assert_array_equal(step.obs[~done], step.next_obs[~done])


@pytest.mark.validation
def test_one_environment_is_as_among_many():
    keys = jax.random.split(jax.random.key(0), ENVS)
    alone = jax.device_get(beside(adapter.make(CLASSIC, max_episode_steps=LIMIT), library(CLASSIC), keys[2:3]))
    jax.tree.map(lambda one, many: assert_array_equal(one[0], many[2]), alone, played(CLASSIC))


def test_two_makes_are_equal_and_arguments_reach_craftax():
    one, other = (adapter.make(CLASSIC, day_length=200, max_episode_steps=9) for _ in range(2))
    assert one.env is other.env
    assert one == other
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    assert one.params.day_length == 200
    assert one.name == f"craftax/{CLASSIC}"
    assert one.env_args == {"day_length": 200, "max_episode_steps": 9}
    assert [adapter.make(game).max_episode_steps for game in adapter.GAMES] == [10_000, 100_000]


@pytest.mark.parametrize(
    ("game", "args", "words"),
    [
        (
            "Craftax-Symbolic-v2",
            {},
            "unknown environment 'craftax/Craftax-Symbolic-v2'; did you mean 'Craftax-Symbolic-v1'",
        ),
        ("Craftax-Pixels-v1", {}, "cannot be used: it writes its textures into the installed package"),
        (
            FULL,
            {"max_timesteps": 9},
            "unknown argument 'max_timesteps'; craftax/Craftax-Symbolic-v1 takes always_diamond",
        ),
        (FULL, {"god_mode": 1}, "god_mode: expected a value such as False, got 1"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(game, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        adapter.make(game, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("game", "size", "actions"), [(CLASSIC, 1_345, 17), (FULL, 8_268, 43)])
def test_every_game_fits_the_contract(game, size, actions):
    env = envs.as_environment(adapter.make(game))
    assert env.observation_space == Box((size,), jnp.float32, 0, 1)
    assert env.action_space.n == actions
