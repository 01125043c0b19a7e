"""The adapter for pgx, beside the library's own steps and beside gymnax's MinAtar."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from quantilax import ConfigError, envs

pgx = pytest.importorskip("pgx", reason="pgx is not installed: pip install 'quantilax[pgx]'")

from quantilax.envs import pgx as adapter  # noqa: E402

LIMIT = 60


@partial(jax.jit, static_argnames=("name", "steps"))
def both(env, name, key, steps):
    """Steps of the adapter and of the library with the same keys and random legal actions."""
    with jax.ensure_compile_time_eval():
        theirs = pgx.make(name)

    def one(carry, key):
        ours, inner, count = carry
        key_action, key_own = jax.random.split(key)
        action = jax.random.categorical(key_action, jnp.where(inner.legal_action_mask, 0.0, -jnp.inf))
        ours, step = env.step(key_own, ours, action)
        key_step, key_reset = jax.random.split(key_own)
        inner = theirs.step(inner, action, key_step)
        cut = (count == LIMIT) & ~inner.terminated
        then = jax.tree.map(lambda a, b: jnp.where(inner.terminated | cut, a, b), theirs.init(key_reset), inner)
        expected = (
            then.observation, inner.observation, inner.rewards[0], inner.terminated, cut, then.legal_action_mask,
            inner.legal_action_mask,
        )  # fmt: skip
        return (ours, then, jnp.where(inner.terminated | cut, 1, count + 1)), (step, expected)

    ours = env.reset(key)[0]
    return jax.lax.scan(one, (ours, theirs.init(key), 1), jax.random.split(jax.random.fold_in(key, 1), steps))[1]


@cache
def played(name):
    """The steps of both, as NumPy arrays."""
    env = adapter.make(name, max_episode_steps=LIMIT)
    return jax.tree.map(np.asarray, both(env, name, jax.random.key(0), 1000))


@pytest.mark.parametrize("name", ["2048", "minatar-breakout", "minatar-asterix"])
def test_observations_rewards_ends_and_masks_are_the_librarys(name):
    step, (obs, next_obs, reward, terminated, cut, legal, next_legal) = played(name)
    assert_array_equal(step.obs, obs)
    assert_array_equal(step.next_obs, next_obs)
    assert_array_equal(step.reward, reward)
    assert_array_equal(step.terminated, terminated)
    assert_array_equal(step.truncated, cut)
    assert (terminated | cut).sum() > 5
    if name == "2048":
        assert_array_equal(step.legal, legal)
        assert_array_equal(step.next_legal, next_legal)
        assert cut.any()
        assert not legal.all()
    else:
        assert step.legal is None
        assert legal.all()
        assert terminated.any()
    assert (step.obs[terminated | cut] != step.next_obs[terminated | cut]).any()


def test_freeways_timer_truncates():
    env = adapter.make("minatar-freeway")
    assert int(env.max_episode_steps) == 2_501

    @jax.jit
    def run(key):
        state, _ = env.reset(key)
        keys = jax.random.split(key, 2_502)
        return jax.lax.scan(lambda state, key: env.step(key, state, jnp.array(1)), state, keys)[1]

    step = run(jax.random.key(0))
    assert not step.terminated.any()
    assert_array_equal(np.flatnonzero(step.truncated), [2_500])


def test_many_at_once_are_each_as_alone():
    env = adapter.make("minatar-breakout", max_episode_steps=LIMIT)
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    many, _ = jax.vmap(lambda key: both(env, "minatar-breakout", key, 1000))(keys)
    alone, _ = played("minatar-breakout")
    for name in ("obs", "next_obs", "reward", "terminated", "truncated"):
        assert_array_equal(getattr(many, name)[0], getattr(alone, name))


@partial(jax.jit, static_argnames="steps")
def episodes(env, key, steps=400, num_envs=128):
    """(returns, lengths, ends) of random play, (steps, num_envs)."""

    def one(carry, key):
        state, total, length = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (num_envs,), 0, env.action_space.n)
        state, step = jax.vmap(env.step)(jax.random.split(key_step, num_envs), state, action)
        total, length, done = total + step.reward, length + 1, step.terminated | step.truncated
        return (state, jnp.where(done, 0, total), jnp.where(done, 0, length)), (total, length, done)

    state, _ = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    zero = jnp.zeros(num_envs)
    return jax.lax.scan(one, (state, zero, zero), jax.random.split(jax.random.fold_in(key, 1), steps))[1]


def test_random_play_of_breakout_has_the_returns_and_lengths_of_gymnaxs():
    # The last action outlives an episode in the adapter for gymnax and not in pgx, which random play does not show.
    measured = []
    for env in (adapter.make("minatar-breakout"), envs.make("Breakout-MinAtar")):
        total, length, done = (np.asarray(part) for part in episodes(env, jax.random.key(0)))
        measured.append((total[done], length[done]))
    for ours, theirs in zip(*measured, strict=True):
        error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        assert len(ours) > 4_000
        assert abs(ours.mean() - theirs.mean()) < 4 * error
        assert error < 0.05 * ours.mean()


def test_sticky_actions_are_an_argument():
    env = adapter.make("minatar-breakout", sticky_action_prob=1.0)
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    for action in (1, 2, 1, 2):
        state, told = step(jax.random.key(action), state, jnp.array(action))
        assert told.obs[9, 4, 0]  # the paddle stays: its first "last action" is to do nothing


def test_two_makes_share_the_librarys_object():
    assert adapter.make("2048").env is adapter.make("2048", max_episode_steps=5).env
    assert adapter.make("minatar-asterix").env is adapter.make("minatar-asterix", sticky_action_prob=0.1).env


def test_each_game_of_pgx_is_taken_or_refused():
    assert set(adapter.names()) | set(adapter.SEVERAL_PLAYERS) == {*pgx.available_envs(), "bridge_bidding"}
    for name, arguments, words in (
        ("minatar-breakou", {}, "unknown environment 'pgx/minatar-breakou'; did you mean 'minatar-breakout'"),
        ("chess", {}, "several players"),
        ("2048", {"sticky_action_prob": 0.1}, "no argument 'sticky_action_prob'"),
        ("minatar-breakout", {"sticky_action_prob": 2}, "must be a number from 0 to 1, got 2"),
        ("minatar-freeway", {"max_episode_steps": 2_502}, "from 1 to 2501, got 2502"),
        ("2048", {"max_episode_steps": 1.5}, "must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            adapter.make(name, **arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", adapter.names())
def test_every_game_fulfils_the_contract(name):
    env = envs.as_environment(adapter.make(name))
    assert env.name == f"pgx/{name}"
    assert envs.masks(env) == (name == "2048")
