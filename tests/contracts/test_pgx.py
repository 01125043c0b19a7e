"""The games of pgx compared with pgx itself, with the same keys and actions; MinAtar with gymnax's."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("pgx", reason="pgx is not installed: pip install 'quantilax[pgx]'")

import pgx

from quantilax import PQN, ConfigError, envs
from quantilax.envs import pgx as adapter

STEPS, ENVS, LIMIT = 250, 4, 12  # which random play of Breakout outlives
GAMES = ("2048", "minatar-breakout", "minatar-freeway")


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0))
def beside(env, library, key):
    """STEPS of one environment: what the adapter reports, and pgx's states, which the test counts and resets itself."""

    def one(carry, key):
        state, theirs, t = carry
        key_action, key_any, key_step = jax.random.split(key, 3)
        legal = jax.random.categorical(key_action, jnp.where(theirs.legal_action_mask, 0.0, -jnp.inf))
        action = jnp.where(jax.random.bernoulli(key_any, 0.02), 0, legal)  # in 2048 now and then an illegal one
        state, step = env.step(key_step, state, action)
        key_step, key_reset = jax.random.split(key_step)
        told = library.step(theirs, action, key_step)
        first, last = library.init(key_reset), told.terminated | (t + 1 == LIMIT)
        theirs = jax.tree.map(lambda a, b, old: jnp.where(last, a, b).astype(old.dtype), first, told, theirs)
        return (state, theirs, jnp.where(last, 0, t + 1)), (step, told, theirs, t + 1)

    key_reset, key_run = jax.random.split(key)
    first = jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype), library.init(key_reset))
    start = env.reset(key_reset)[0], first, jnp.zeros((), jnp.int32)
    return jax.lax.scan(one, start, jax.random.split(key_run, STEPS))[1]


@cache
def library(game):
    return pgx.make(game)


@cache
def played(game):
    """(time steps of the adapter, pgx's states, those after resets, steps in the episode), axes (ENVS, STEPS)."""
    keys = jax.random.split(jax.random.key(0), ENVS)
    return jax.device_get(beside(adapter.make(game, max_episode_steps=LIMIT), library(game), keys))


@pytest.mark.parametrize("game", GAMES)
def test_rewards_ends_and_observations_are_pgxs(game):
    step, told, theirs, t = played(game)
    assert_array_equal(step.reward, told.rewards[..., 0])
    assert_array_equal(step.terminated, told.terminated)
    assert_array_equal(step.truncated, ~told.terminated & (t == LIMIT))
    assert_array_equal(step.next_obs, told.observation)
    assert_array_equal(step.obs, theirs.observation)
    last = step.terminated | step.truncated
    assert last.any()
    assert (step.obs[last] != step.next_obs[last]).any()  # the last observation is not that of the reset
    assert step.truncated.any()


@pytest.mark.parametrize("game", GAMES)
def test_masks_are_pgxs_and_none_where_all_is_legal(game):
    step, told, theirs, _ = played(game)
    if game == "2048":
        assert_array_equal(step.legal, theirs.legal_action_mask)
        assert_array_equal(step.next_legal, told.legal_action_mask)
        assert not step.legal.all()
        assert step.terminated.any()  # by an illegal action
        return
    assert step.legal is None
    assert told.legal_action_mask.all()


def test_the_end_of_freeways_timer_is_a_cut():
    env = adapter.make("minatar-freeway")
    assert env.max_episode_steps == 2_501
    state, _ = env.reset(jax.random.key(0))
    late = state.replace(_terminate_timer=jnp.zeros_like(state._terminate_timer), _step_count=jnp.int32(7))
    step = env.step(jax.random.key(1), late, jnp.array(0))[1]
    assert step.truncated
    assert not step.terminated
    assert env.env.step(late, jnp.array(0), jax.random.key(1)).terminated


def test_one_environment_is_as_among_many():
    keys = jax.random.split(jax.random.key(0), ENVS)
    env = adapter.make("minatar-breakout", max_episode_steps=LIMIT)
    alone = jax.device_get(beside(env, library("minatar-breakout"), keys[2:3]))
    jax.tree.map(lambda one, many: assert_array_equal(one[0], many[2]), alone, played("minatar-breakout"))


def test_two_makes_share_an_object_and_arguments_reach_pgx():
    one, other = (adapter.make("minatar-asterix", sticky_action_prob=0.25) for _ in range(2))
    assert one.env is other.env
    assert one == other
    assert one.env.sticky_action_prob == 0.25
    assert adapter.make("minatar-asterix").env.sticky_action_prob == 0.1
    assert adapter.make("minatar-asterix", use_minimal_action_set=False).action_space.n == 6
    assert one.env_args == {"sticky_action_prob": 0.25}


@pytest.mark.parametrize(
    ("game", "args", "words"),
    [
        ("minatar-break", {}, "unknown environment 'pgx/minatar-break'; did you mean 'minatar-breakout'"),
        ("go_9x9", {}, "pgx/go_9x9 cannot be used: it is for several players"),
        (
            "2048",
            {"sticky_action_prob": 0.1},
            "unknown argument 'sticky_action_prob'; pgx/2048 takes max_episode_steps",
        ),
        (
            "minatar-asterix",
            {"sticky_action_prob": 2.0},
            "sticky_action_prob: expected a probability from 0 to 1, got 2.0",
        ),
        (
            "minatar-asterix",
            {"use_minimal_action_set": 1},
            "use_minimal_action_set: expected a value such as True, got 1",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(game, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        adapter.make(game, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("game", adapter.names())
def test_every_game_fits_the_contract(game):
    assert envs.as_environment(adapter.make(game)).name == f"pgx/{game}"
    assert library(game).num_players == 1


@pytest.mark.validation
def test_every_game_of_one_player_is_there():
    with_one = {game for game in set(pgx.available_envs()) if pgx.make(game).num_players == 1}
    assert set(adapter.names()) == with_one


@partial(jax.jit, static_argnames=("steps", "num_envs"))
def random_play(env, key, steps, num_envs):
    """(return, whether it ended) of one episode of random actions in each of several environments."""

    def one(carry, key):
        state, alive, total = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (num_envs,), 0, env.action_space.n)
        state, step = jax.vmap(env.step)(jax.random.split(key_step, num_envs), state, action)
        total += alive * step.reward
        return (state, alive & ~(step.terminated | step.truncated), total), None

    key_reset, key_run = jax.random.split(key)
    state = jax.vmap(env.reset)(jax.random.split(key_reset, num_envs))[0]
    start = state, jnp.ones(num_envs, bool), jnp.zeros(num_envs)
    (_, alive, total), _ = jax.lax.scan(one, start, jax.random.split(key_run, steps))
    return total, ~alive


def differ_by(ours, theirs):
    """How many standard errors two means are apart."""
    error = np.sqrt(np.var(ours) / ours.size + np.var(theirs) / theirs.size)
    return abs(ours.mean() - theirs.mean()) / max(error, 1e-9)


@pytest.mark.parametrize(
    "game",
    ["breakout", "asterix", "space_invaders", "seaquest"],
)
@pytest.mark.validation
def test_random_play_of_minatar_collects_as_much_as_in_gymnax(game):
    name = {"breakout": "Breakout", "asterix": "Asterix", "space_invaders": "SpaceInvaders", "seaquest": "Seaquest"}[
        game
    ]
    returns = []
    for env in (adapter.make(f"minatar-{game}"), envs.make(f"{name}-MinAtar")):
        total, ended = jax.device_get(random_play(env, jax.random.key(0), 600, 1_024))
        assert ended.mean() > 0.95
        returns.append(total)
    assert differ_by(*returns) < 4


LEARNING = dict(
    total_timesteps=49_152,
    eval_freq=24_576,
    eval_episodes=64,
    num_envs=32,
    num_steps=16,
    learning_rate=1e-3,
    torso="minatar",
    torso_sizes=(64,),
)


@pytest.mark.validation  # most of a minute
@pytest.mark.optimized
def test_pqn_learns_breakout():
    algo = PQN.create(env=adapter.make("minatar-breakout", max_episode_steps=300), **LEARNING)
    returns = np.asarray(jax.jit(algo.train)(jax.random.key(0))[1].returns).mean(axis=1)
    assert returns[-1] > 2  # random play: 0.4
