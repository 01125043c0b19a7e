"""Tasks of MuJoCo Playground's Control Suite beside the library itself, driven with the same keys and actions."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip(
    "mujoco_playground", reason="MuJoCo Playground is not installed: pip install 'quantilax[playground]'"
)

from quantilax import Box, ConfigError, envs
from quantilax.envs import adapters
from quantilax.envs import playground as adapter
from tests.contracts.physics import ENVS, LIMIT, STEPS, beside

with adapters.quiet():
    from brax.envs.wrappers.training import EpisodeWrapper
    from mujoco_playground import dm_control_suite

TASKS = ("CartpoleBalance", "PendulumSwingup")
close = partial(assert_allclose, rtol=1e-4, atol=5e-5)
"""XLA fuses two sides, or other numbers of environments, in different ways, which changes the last bits."""


@cache
def library(task):
    """The library's environment with its own time limit, and without its resets."""
    with adapters.loading():
        return EpisodeWrapper(dm_control_suite.load(task, config_overrides={"impl": "jax"}), LIMIT, 1)


@cache
def played(task):
    """(first observations of both, (time steps of the adapter, what the library told)), leading axes (ENVS, STEPS)."""
    keys = jax.random.split(jax.random.key(0), ENVS)
    return jax.device_get(beside(adapter.make(task, episode_length=LIMIT), library(task), keys))


@pytest.mark.parametrize("task", TASKS)
def test_a_thousand_steps_are_those_of_the_library(task):
    first, their_first, (step, (begins, ends, reward, done, truncation)) = played(task)
    close(first, their_first)
    close(step.obs, begins)
    close(step.next_obs, ends)
    close(step.reward, reward)
    assert_array_equal(step.terminated | step.truncated, done > 0)
    assert_array_equal(step.truncated, truncation > 0)


def test_a_time_limit_truncates_and_the_last_observation_is_kept():
    _, _, (step, _) = played("PendulumSwingup")
    assert not step.terminated.any()
    assert_array_equal(step.truncated, np.tile(np.arange(1, STEPS + 1) % LIMIT == 0, (ENVS, 1)))
    begins, ends = step.obs[step.truncated], step.next_obs[step.truncated]
    assert (begins != ends).any(axis=-1).all()
    assert len(np.unique(begins, axis=0)) == len(begins)


def test_one_environment_is_as_among_many():
    keys, task = jax.random.split(jax.random.key(0), ENVS), TASKS[0]
    alone = jax.device_get(beside(adapter.make(task, episode_length=LIMIT), library(task), keys[2:3]))
    jax.tree.map(lambda one, many: close(one[0], many[2]), alone, played(task))
    assert_array_equal(alone[2][0].truncated[0], played(task)[2][0].truncated[2])


def test_two_makes_share_an_object():
    one, other = (adapter.make("CartpoleBalance", episode_length=7) for _ in range(2))
    assert one.env is other.env
    assert one == other
    assert (one.name, one.env_args, one.max_episode_steps) == (
        "playground/CartpoleBalance",
        {"episode_length": 7},
        7,
    )
    assert adapter.make("CartpoleBalance").max_episode_steps == 1_000
    assert one.action_space == Box((1,), jnp.float32, -1, 1)
    assert one.env.mjx_model.impl.value == "jax"


@pytest.mark.parametrize(
    ("task", "args", "words"),
    [
        ("CartpoleBalace", {}, "unknown environment 'playground/CartpoleBalace'; did you mean 'CartpoleBalance'"),
        ("Go1JoystickFlatTerrain", {}, "cannot be used: it clones a repository of robots when it is made"),
        ("PandaPickCube", {}, "cannot be used: it clones a repository of robots when it is made"),
        ("ReacherEasy", {}, "cannot be used: it calls a function that MuJoCo no longer has"),
        (
            "CartpoleBalance",
            {"impl": "warp"},
            "unknown argument 'impl'; playground/CartpoleBalance takes episode_length",
        ),
        ("CartpoleBalance", {"episode_length": 0}, "episode_length: expected a value such as 1000, got 0"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(task, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        adapter.make(task, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task in ("CheetahRun", "WalkerWalk") else pytest.mark.validation)
        for task in adapter.names()
    ],
)
def test_every_task_fits_the_contract_and_its_actions_are_bounded_by_one(task):
    env = envs.as_environment(adapter.make(task))
    bounds = env.env.mj_model.actuator_ctrlrange
    assert_array_equal(bounds, np.tile([-1.0, 1.0], (*env.action_space.shape, 1)))
