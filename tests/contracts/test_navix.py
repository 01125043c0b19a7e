"""The tasks of navix compared with navix itself, driven with the same keys and actions."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("navix", reason="navix is not installed: pip install 'quantilax[navix]'")

import navix

from quantilax import PQN, ConfigError, Discrete, envs
from quantilax.envs import navix as adapter

STEPS, ENVS, LIMIT = 250, 4, 40
TASKS = ("Navix-Empty-5x5-v0", "Navix-Dynamic-Obstacles-5x5-v0")
LIMITS = {TASKS[1]: 6}  # random actions soon meet an obstacle


def made(task, **args):
    return adapter.make(task, **{"max_episode_steps": LIMITS.get(task, LIMIT), **args})


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0))
def beside(env, task, key):
    """STEPS of one environment: what the adapter reports, and what navix reports; the test resets navix."""
    library = navix.make(task, max_steps=env.max_episode_steps)

    def one(carry, key):
        state, theirs = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (), 0, 7)
        state, step = env.step(key_step, state, action)
        told = library.step(theirs, action)
        first = library.reset(key_step)
        begins = jnp.where(told.is_done(), first.observation, told.observation)
        kept = [(x.state, x.t, x.step_type) for x in (first, told)]
        inner, t, kind = jax.tree.map(lambda a, b: jnp.where(told.is_done(), a, b).astype(a.dtype), *kept)
        theirs = theirs.replace(state=inner, t=t, step_type=kind)
        return (state, theirs), (step, (begins, told.observation, told.reward, told.step_type))

    key_reset, key_run = jax.random.split(key)
    (state, obs), first = env.reset(key_reset), library.reset(key_reset)
    first = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.astype(x.dtype), first)
    return obs, first.observation, jax.lax.scan(one, (state, first), jax.random.split(key_run, STEPS))[1]


@cache
def played(task):
    return jax.device_get(beside(made(task), task, jax.random.split(jax.random.key(3), ENVS)))


def planes(seen):
    """The documented encoding, cell by cell."""
    things = {number: index for index, number in enumerate((2, 4, 5, 6, 7, 8, 9, 10))}
    encoded = np.zeros((*seen.shape[:-1], 18), bool)
    for cell in np.ndindex(seen.shape[:-1]):
        thing, colour, state = (int(x) for x in seen[cell])
        if thing in things:
            encoded[(*cell, things[thing])] = True
            encoded[(*cell, 14 + state)] = True
            if colour < 6:
                encoded[(*cell, 8 + colour)] = True
    return encoded


@pytest.mark.parametrize("task", TASKS)
def test_a_thousand_steps_are_those_of_navix(task):
    obs, seen, (step, (begins, ends, reward, kind)) = played(task)
    assert_array_equal(obs, planes(seen))
    assert_array_equal(step.reward, reward)
    assert_array_equal(step.terminated, kind == 2)
    assert_array_equal(step.truncated, kind == 1)
    assert_array_equal(step.next_obs, planes(ends))
    assert_array_equal(step.obs, planes(begins))
    assert step.truncated.any()
    assert step.terminated.any()


def test_the_last_observation_of_an_episode_shows_the_player_on_the_goal_and_the_next_one_at_the_start():
    _, _, (step, _) = played(TASKS[0])
    player = list(adapter.THINGS).index("player")
    assert step.next_obs[step.terminated][:, 3, 3, player].all()
    assert step.obs[step.terminated][:, 1, 1, player].all()
    assert (step.reward[step.terminated] == 1).all()


def test_no_step_is_ignored_after_the_end_of_an_episode():
    _, _, (step, _) = played(TASKS[0])
    done = step.terminated | step.truncated
    lengths = [np.diff(np.flatnonzero(lane), prepend=-1) for lane in done]
    cut = [np.flatnonzero(lane) for lane in step.truncated]
    for lane, ends, length in zip(done, cut, lengths, strict=True):
        assert (length[np.isin(np.flatnonzero(lane), ends)] == LIMIT).all()


def test_several_environments_are_those_that_play_alone():
    env = made(TASKS[1])
    keys = jax.random.split(jax.random.key(3), ENVS)
    alone = jax.device_get(beside(env, TASKS[1], keys[2:3]))
    many = jax.tree.map(lambda x: x[2:3], played(TASKS[1]))
    jax.tree.map(assert_array_equal, alone, many)


def test_one_object_serves_all_environments_of_a_name_and_its_arguments():
    assert jax.tree.structure(made(TASKS[0])) == jax.tree.structure(made(TASKS[0]))
    assert jax.tree.structure(made(TASKS[0])) != jax.tree.structure(made(TASKS[1]))
    assert made(TASKS[0]).name == f"navix/{TASKS[0]}"
    assert made(TASKS[0]).env_args == {"max_episode_steps": LIMIT}
    assert made(TASKS[0]).action_space == Discrete(7)


@pytest.mark.parametrize("seen", adapter.PLANES)
def test_every_observation_fulfils_the_contract(seen):
    envs.as_environment(made("Navix-DoorKey-5x5-v0", observation=seen))


@pytest.mark.validation
@pytest.mark.parametrize("task", adapter.names())
def test_every_task_fulfils_the_contract(task):
    envs.as_environment(adapter.make(task))


@pytest.mark.parametrize(
    ("task", "args", "told"),
    [
        ("Navix-Empty-9x8-v0", {}, "unknown environment 'navix/Navix-Empty-9x8-v0'; did you mean 'Navix-Empty-"),
        ("Navix-GoToDoor-5x5-v0", {}, "cannot be used: the door to go to"),
        (
            TASKS[0],
            {"max_steps": 9},
            "unknown argument 'max_steps'; navix/Navix-Empty-5x5-v0 takes max_episode_steps, obs",
        ),
        (TASKS[0], {"max_episode_steps": 0}, "max_episode_steps: expected a value such as 100, got 0"),
        (TASKS[0], {"observation": "symbolc"}, "observation: there is no 'symbolc'; did you mean 'symbolic'"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(task, args, told):
    with pytest.raises(ConfigError) as error:
        adapter.make(task, **args)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_pqn_learns_to_reach_the_goal_which_random_actions_seldom_do():
    _, _, (step, _) = played(TASKS[0])
    at_random = step.terminated.sum() / (step.terminated | step.truncated).sum()
    assert at_random < 0.4
    algo = PQN.create(
        env=made(TASKS[0]), total_timesteps=49_152, eval_freq=49_152, eval_episodes=32, num_envs=32, num_steps=16,
        num_epochs=2, num_minibatches=4, learning_rate=1e-3, gamma=0.95, exploration_fraction=0.5,
        torso="minatar", torso_sizes=[64], layer_norm=True,
    )  # fmt: skip
    _, records = algo.train(jax.random.key(0))
    assert np.asarray(records.returns)[-1].mean() > 0.9
