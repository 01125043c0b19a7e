"""The adapter for jumanji, beside the library's own steps."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from quantilax import ConfigError, envs

jumanji = pytest.importorskip("jumanji", reason="jumanji is not installed: pip install 'quantilax[jumanji]'")

from quantilax.envs import jumanji as adapter  # noqa: E402

LIMIT = 40


@cache
def library(name, limit):
    """The library's own object, with its own limit."""
    with jax.ensure_compile_time_eval():
        return jumanji.make(name, time_limit=limit)


def flat(observation, observe):
    """An observation as the adapter gives it, written by hand for the tasks below."""
    parts = {
        "Snake-v1": lambda o: [o.grid, o.step_count],
        "Maze-v0": lambda o: [
            o.agent_position.row, o.agent_position.col, o.target_position.row, o.target_position.col, o.walls, o.step_count
        ],
        "Tetris-v0": lambda o: [o.grid, o.tetromino, o.step_count],
    }  # fmt: skip
    name, field = observe
    if field:
        return jnp.asarray(getattr(observation, field))
    return jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for part in parts[name](observation)])


@partial(jax.jit, static_argnames=("name", "steps", "unravel"))
def both(env, name, key, steps, unravel=None):
    """1,000 steps of the adapter and of the library with the same keys and random legal actions."""
    theirs, observe = library(name, LIMIT), (name, env.observe)

    def one(carry, key):
        ours, inner, mask = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.categorical(key_action, jnp.where(mask, 0.0, -jnp.inf))
        ours, step = env.step(key_step, ours, action)
        inner, told = theirs.step(inner, jnp.stack(jnp.unravel_index(action, unravel)) if unravel else action)
        fresh, first = theirs.reset(key_step)
        inner, then = jax.tree.map(lambda a, b: jnp.where(told.last(), a, b), (fresh, first), (inner, told))
        observation, mask = then.observation, jnp.ravel(then.observation.action_mask)
        expected = (
            flat(observation, observe), flat(told.observation, observe), told.reward, told.last(), mask,
            jnp.ravel(told.observation.action_mask), told.observation.step_count,
        )  # fmt: skip
        return (ours, inner, mask), (step, expected)

    ours, _, mask = env.reset(key)
    inner, _ = theirs.reset(key)
    return jax.lax.scan(one, (ours, inner, mask), jax.random.split(jax.random.fold_in(key, 1), steps))[1]


@cache
def played(name, observe="", unravel=None):
    """The steps of both, as NumPy arrays."""
    env = adapter.make(name, max_episode_steps=LIMIT, observe=observe)
    return jax.tree.map(np.asarray, both(env, name, jax.random.key(0), 1000, unravel))


CASES = [("Snake-v1",), ("Snake-v1", "grid"), ("Maze-v0",), ("Tetris-v0", "", (4, 10))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_observations_rewards_ends_and_masks_are_the_librarys(case):
    step, (obs, next_obs, reward, last, legal, next_legal, _) = played(*case)
    assert_array_equal(step.obs, obs)
    assert_array_equal(step.next_obs, next_obs)
    assert_array_equal(step.reward, reward)
    assert_array_equal(step.terminated | step.truncated, last)
    assert_array_equal(step.legal, legal)
    assert_array_equal(step.next_legal, next_legal)
    assert last.sum() > 10


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_the_librarys_limit_is_told_as_truncation_and_other_ends_as_termination(case):
    step, (*_, last, _, _, count) = played(*case)
    assert not (step.terminated & step.truncated).any()
    assert_array_equal(step.truncated[count < LIMIT], False)
    assert step.truncated.any()
    assert (last & (count < LIMIT)).any() == step.terminated.any()
    assert (step.obs[last] != step.next_obs[last]).any()  # the last observation of an episode is kept


def test_masks_let_a_task_with_a_limit_of_its_own_end_by_termination():
    step, (*_, last, _, _, _) = played("Tetris-v0", "", (4, 10))
    assert step.terminated.any()
    assert_array_equal(step.terminated | step.truncated, last)


def test_many_at_once_are_each_as_alone():
    env = adapter.make("Snake-v1", max_episode_steps=LIMIT)
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    many, _ = jax.vmap(lambda key: both(env, "Snake-v1", key, 1000))(keys)
    alone, _ = played("Snake-v1")
    jax.tree.map(lambda ours, one: assert_array_equal(ours[0], one), many, alone)


def test_two_makes_share_the_librarys_object_and_the_compiled_program():
    one, other = adapter.make("Snake-v1"), adapter.make("Snake-v1", max_episode_steps=7)
    assert one.env is other.env
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert (int(one.max_episode_steps), int(other.max_episode_steps)) == (4_000, 7)


def test_an_observation_has_a_name_per_entry_and_observe_keeps_the_shape_of_a_field():
    env = adapter.make("Maze-v0")
    names = env.observation_names
    assert len(names) == env.observation_space.shape[0] == 105
    assert names[:5] == (
        "agent_position.row",
        "agent_position.col",
        "target_position.row",
        "target_position.col",
        "walls[0,0]",
    )
    assert names[-1] == "step_count"
    assert adapter.make("Snake-v1", observe="grid").observation_space.shape == (12, 12, 5)
    walls = adapter.make("Maze-v0", observe="walls").observation_space
    assert (walls.shape, walls.dtype) == ((10, 10), jnp.bool_)
    assert adapter.make("Maze-v0", observe="agent_position").observation_names == names[:2]
    assert adapter.make("Maze-v0", observe="step_count").observation_space.shape == (1,)


def test_limits_are_the_librarys_where_it_has_one_and_each_registered_task_is_taken_or_refused():
    registered = set(jumanji.registered_environments())
    assert set(adapter.TASKS) | set(adapter.REFUSED) == registered
    assert not set(adapter.TASKS) & set(adapter.REFUSED)
    assert adapter.names() == tuple(adapter.TASKS)
    for name, limit in adapter.TASKS.items():
        assert getattr(jumanji.make(name), "time_limit", limit) == limit


def test_what_cannot_be_made_is_refused_in_one_line():
    for name, arguments, words in (
        ("Snak-v1", {}, "unknown environment 'jumanji/Snak-v1'; did you mean 'Snake-v1'"),
        ("Sokoban-v0", {}, "downloaded"),
        ("FlatPack-v0", {}, "8,100"),
        ("Connector-v3", {}, "several agents"),
        ("Snake-v1", {"obsrve": "grid"}, "no argument 'obsrve'; did you mean 'observe'"),
        ("Snake-v1", {"observe": "gird"}, "its fields are grid, step_count"),
        ("Snake-v1", {"max_episode_steps": 0}, "max_episode_steps must be a whole number"),
        ("Snake-v1", {"max_episode_steps": True}, "max_episode_steps must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            adapter.make(name, **arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.validation
@pytest.mark.parametrize("name", adapter.names())
def test_every_task_fulfils_the_contract_and_ends_within_its_limit(name):
    env = envs.as_environment(adapter.make(name))
    assert env.name == f"jumanji/{name}"
    assert len(env.observation_names) == np.prod(env.observation_space.shape)
    masked = envs.masks(env)

    def one(carry, key):
        state, mask, longest = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.categorical(key_action, jnp.where(mask, 0.0, -jnp.inf))
        state, step = env.step(key_step, state, action)
        longest = jnp.where(step.terminated | step.truncated, 0, longest + 1)
        return (state, step.legal if masked else mask, longest), (longest, jnp.isfinite(step.obs).all(), step.reward)

    def run(key):
        state, _, *legal = env.reset(key)
        mask = legal[0] if masked else jnp.ones(env.action_space.n, bool)
        return jax.lax.scan(one, (state, mask, jnp.zeros((), jnp.int32)), jax.random.split(key, 600))[1]

    longest, finite, reward = jax.jit(run)(jax.random.key(0))
    assert int(longest.max()) <= int(env.max_episode_steps)
    assert bool(finite.all())
    assert bool(jnp.isfinite(reward).all())
