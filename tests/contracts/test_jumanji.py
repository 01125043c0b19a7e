"""The tasks of jumanji compared with jumanji itself, driven with the same keys and actions."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("jumanji", reason="jumanji is not installed: pip install 'quantilax[jumanji]'")

import jumanji

from quantilax import PQN, Box, ConfigError, Discrete, envs
from quantilax.envs import jumanji as adapter

STEPS, ENVS, LIMIT = 250, 4, 9
RUBIK = "RubiksCube-partly-scrambled-v0"
TASKS = {  # time limits where jumanji takes one
    "Snake-v1": {"time_limit": LIMIT},
    RUBIK: {"time_limit": LIMIT},
    "Minesweeper-v0": {},
    "Knapsack-v1": {},
}
EACH = [pytest.param(task, marks=pytest.mark.validation if task == RUBIK else ()) for task in TASKS]


def flat(observation):
    """All parts but the mask, one after another."""
    parts = [getattr(observation, name) for name in observation._fields if name != "action_mask"]
    return jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for part in parts])


def chosen(key, mask, n):
    """A random action, in nine of ten cases a legal one."""
    key_legal, key_any, key_which = jax.random.split(key, 3)
    legal = jax.random.categorical(key_legal, jnp.where(mask, 0.0, -jnp.inf))
    return jnp.where(jax.random.bernoulli(key_which, 0.9), legal, jax.random.randint(key_any, (), 0, n))


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0))
def beside(env, library, key):
    """STEPS of one environment: what the adapter reports, and what jumanji reports; the test resets jumanji."""

    def one(carry, key):
        state, legal, theirs = carry
        key_action, key_step = jax.random.split(key)
        action = chosen(key_action, legal, env.action_space.n)
        sizes = np.atleast_1d(np.asarray(library.action_spec.num_values))
        their_action = action if sizes.size == 1 else jnp.stack(jnp.unravel_index(action, sizes))
        state, step = env.step(key_step, state, action)
        theirs, told = library.step(theirs, their_action)
        first, first_told = library.reset(key_step)
        last = told.last()
        mask = getattr(told.observation, "action_mask", jnp.ones(env.action_space.n, bool)).ravel()
        theirs, begins = jax.tree.map(
            lambda a, b: jnp.where(last, a, b), (first, flat(first_told.observation)), (theirs, flat(told.observation))
        )
        legal = legal if step.legal is None else step.legal
        return (state, legal, theirs), (step, (begins, flat(told.observation), told.reward, last, mask))

    key_reset, key_run = jax.random.split(key)
    state, _, *legal = env.reset(key_reset)
    start = state, legal[0] if legal else jnp.ones(env.action_space.n, bool), library.reset(key_reset)[0]
    return jax.lax.scan(one, start, jax.random.split(key_run, STEPS))[1]


@cache
def played(task):
    """(time steps of the adapter, what jumanji told), leading axes (ENVS, STEPS)."""
    limit = {"max_episode_steps": LIMIT} if TASKS[task] else {}
    keys = jax.random.split(jax.random.key(0), ENVS)
    return jax.device_get(beside(adapter.make(task, **limit), library(task), keys))


@cache
def library(task):
    return jumanji.make(task, **TASKS[task])


@pytest.mark.parametrize("task", EACH)
def test_rewards_ends_and_observations_are_jumanjis(task):
    step, (obs, next_obs, reward, last, _) = played(task)
    assert last.any()
    assert_array_equal(step.reward, reward)
    assert_array_equal(step.terminated | step.truncated, last)
    assert_array_equal(step.obs, obs)
    assert_array_equal(step.next_obs, next_obs)
    assert (step.obs[last] != step.next_obs[last]).any()  # the last observation is not that of the reset


@pytest.mark.parametrize("task", EACH)
def test_masks_are_jumanjis(task):
    step, (*_, last, mask) = played(task)
    if "Rubiks" in task:
        assert step.legal is None
        assert step.next_legal is None
        return
    assert_array_equal(step.next_legal, mask | ~mask.any(axis=-1, keepdims=True))
    assert_array_equal(step.legal[~last], step.next_legal[~last])
    assert step.legal.any(axis=-1).all()


@pytest.mark.parametrize("task", [task for task in EACH if TASKS[task.values[0]]])
def test_a_time_limit_truncates_where_jumanji_terminates(task):
    step, _ = played(task)
    done = step.terminated | step.truncated
    lengths = [np.diff(np.flatnonzero(np.r_[True, row])) for row in done]
    assert max(map(max, lengths)) == LIMIT
    assert step.truncated.any()
    assert not (step.terminated & step.truncated).any()
    for row, length in enumerate(lengths):
        ends = np.flatnonzero(done[row])
        assert all(length[step.truncated[row][ends][: len(length)]] == LIMIT)


def test_a_mask_without_a_legal_action_allows_all():
    env = adapter.make("Snake-v1")
    told = env.env.reset(jax.random.key(0))[1]
    shut_in = told.replace(observation=told.observation._replace(action_mask=jnp.zeros(4, bool)))
    assert env._legal(shut_in)[0].all()


def test_one_environment_is_as_among_many():
    env, keys = adapter.make("Snake-v1", max_episode_steps=LIMIT), jax.random.split(jax.random.key(0), ENVS)
    alone = jax.device_get(beside(env, library("Snake-v1"), keys[2:3]))
    jax.tree.map(lambda one, many: assert_array_equal(one[0], many[2]), alone, played("Snake-v1"))


def test_one_part_is_observed_with_its_shape_and_entries_have_names():
    env = adapter.make("Snake-v1", observe="grid")
    assert env.observation_space == Box((12, 12, 5))
    assert env.reset(jax.random.key(0))[1].shape == (12, 12, 5)
    assert adapter.make("Snake-v1", observe="step_count").observation_space.shape == (1,)
    assert adapter.make("Snake-v1").observation_names[-2:] == ("grid[11,11,4]", "step_count")
    names = adapter.make("Maze-v0").observation_names
    assert names[:3] == ("agent_position.row", "agent_position.col", "target_position.row")
    assert len(names) == adapter.make("Maze-v0").observation_space.shape[0]


def test_two_makes_share_an_object_and_a_name_with_arguments_makes_the_same():
    one, other = adapter.make("Snake-v1", num_rows=6), adapter.make("Snake-v1", num_rows=6)
    assert one.env is other.env
    assert one == other
    assert one.name == "jumanji/Snake-v1"
    assert one.env_args == {"num_rows": 6}
    assert adapter.make("Snake-v1").env_args == {}
    assert adapter.make("Snake-v1").max_episode_steps == 4_000


@pytest.mark.parametrize(
    ("task", "args", "words"),
    [
        ("Snake-v2", {}, "unknown environment 'jumanji/Snake-v2'; did you mean 'Snake-v1'"),
        ("Sokoban-v0", {}, "jumanji/Sokoban-v0 cannot be used: it downloads its levels"),
        ("Connector-v3", {}, "several agents act at once"),
        (
            "Snake-v1",
            {"rows": 6},
            "unknown argument 'rows'; jumanji/Snake-v1 takes max_episode_steps, num_cols, num_rows",
        ),
        ("Snake-v1", {"num_rows": "six"}, "num_rows: expected a value such as 12, got 'six'"),
        ("Snake-v1", {"max_episode_steps": 0}, "max_episode_steps: expected a value such as 4000, got 0"),
        ("Snake-v1", {"observe": "board"}, "observe: jumanji/Snake-v1 has no 'board', but grid, step_count"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(task, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        adapter.make(task, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", adapter.names())
def test_every_task_fits_the_contract(task):
    env = envs.as_environment(adapter.make(task))
    assert isinstance(env.action_space, Discrete)
    assert len(env.observation_names) == env.observation_space.shape[0]


def test_every_task_of_jumanji_is_usable_or_refused_with_a_reason():
    assert set(adapter.names()) | set(adapter.REFUSED) == set(jumanji.registered_environments())


LEARNING = dict(
    total_timesteps=49_152,
    eval_freq=24_576,
    eval_episodes=64,
    num_envs=32,
    num_steps=16,
    learning_rate=1e-3,
    torso_sizes=(64,),
)


@pytest.mark.validation
@pytest.mark.optimized
def test_pqn_learns_snake_on_a_small_board():
    env = adapter.make("Snake-v1", num_rows=4, num_cols=4, max_episode_steps=100)
    algo = PQN.create(env=env, **LEARNING)
    returns = np.asarray(jax.jit(algo.train)(jax.random.key(0))[1].returns).mean(axis=1)
    assert returns[0] < 2  # fruits before training
    assert returns[-1] > 6
