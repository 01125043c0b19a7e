"""The tasks of brax beside brax itself, driven with the same keys and actions."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("brax", reason="brax is not installed: pip install 'quantilax[brax]'")

from quantilax import Box, ConfigError, envs
from quantilax.envs import adapters
from quantilax.envs import brax as adapter
from tests.contracts.physics import ENVS, LIMIT, STEPS, beside

with adapters.quiet():
    import brax.envs
    from brax.envs.wrappers.training import EpisodeWrapper

TASKS = ("inverted_pendulum", "reacher")


@cache
def library(task):
    """brax's environment with its own time limit, and without its resets."""
    with adapters.loading():
        return EpisodeWrapper(brax.envs.get_environment(task, backend="spring"), LIMIT, 1)


@cache
def played(task):
    """(first observations of both, (time steps of the adapter, what brax told)), leading axes (ENVS, STEPS)."""
    keys = jax.random.split(jax.random.key(0), ENVS)
    return jax.device_get(beside(adapter.make(task, episode_length=LIMIT), library(task), keys))


@pytest.mark.parametrize("task", TASKS)
def test_a_thousand_steps_are_those_of_brax(task):
    first, their_first, (step, (begins, ends, reward, done, truncation)) = played(task)
    close = partial(assert_allclose, rtol=1e-4, atol=5e-5)  # XLA fuses the two sides in different ways
    close(first, their_first)
    close(step.obs, begins)
    close(step.next_obs, ends)
    close(step.reward, reward)
    assert_array_equal(step.terminated | step.truncated, done > 0)
    assert_array_equal(step.truncated, truncation > 0)
    assert step.truncated.any()


def test_a_fallen_pole_terminates_and_its_observation_is_kept():
    _, _, (step, _) = played("inverted_pendulum")
    assert step.terminated.any()
    assert (np.abs(step.next_obs[step.terminated][:, 1]) > 0.2).all()
    assert (np.abs(step.obs[step.terminated]) <= 0.01).all()
    assert (np.abs(step.next_obs[~step.terminated][:, 1]) <= 0.2).all()


def test_a_time_limit_truncates_at_its_last_step():
    _, _, (step, _) = played("reacher")
    assert not step.terminated.any()
    assert_array_equal(step.truncated, np.tile(np.arange(1, STEPS + 1) % LIMIT == 0, (ENVS, 1)))


def test_every_episode_begins_elsewhere():
    _, _, (step, _) = played("reacher")
    begins = step.obs[step.truncated]
    assert len(np.unique(begins, axis=0)) == len(begins)


def test_one_environment_is_as_among_many():
    keys, task = jax.random.split(jax.random.key(0), ENVS), "inverted_pendulum"
    alone = jax.device_get(beside(adapter.make(task, episode_length=LIMIT), library(task), keys[2:3]))
    jax.tree.map(lambda one, many: assert_array_equal(one[0], many[2]), alone, played(task))


def test_two_makes_share_an_object_and_arguments_reach_brax():
    one, other = (adapter.make("ant", ctrl_cost_weight=0.25, backend="mjx") for _ in range(2))
    assert one.env is other.env
    assert one == other
    assert (one.env.backend, one.env._ctrl_cost_weight) == ("mjx", 0.25)
    assert adapter.make("ant").env.backend == "spring"
    assert one.name == "brax/ant"
    assert one.env_args == {"backend": "mjx", "ctrl_cost_weight": 0.25}
    assert one.action_space == Box((8,), jnp.float32, -1, 1)
    assert (one.max_episode_steps, adapter.make("ant", episode_length=7).max_episode_steps) == (1_000, 7)


def test_a_step_leaves_the_state_that_it_gets_as_it_was():
    env = adapter.make("reacher")
    state, _ = env.reset(jax.random.key(0))
    before = jax.device_get(state)
    jax.eval_shape(lambda: env.step(jax.random.key(1), state, jnp.ones(2)))  # brax would leave tracers there
    jax.tree.map(assert_array_equal, before, jax.device_get(state))


@pytest.mark.parametrize(("obs", "reward"), [(np.nan, 1.0), (np.inf, 1.0), (2.0, np.nan)])
def test_a_simulation_that_fails_ends_the_episode_without_numbers_that_spoil_learning(obs, reward):
    def state(obs, reward):
        return brax.envs.State(None, jnp.full(2, obs), jnp.float32(reward), jnp.zeros(()))

    failing = SimpleNamespace(
        action_size=1, reset=lambda key: state(0.5, 0), step=lambda before, action: state(obs, reward)
    )
    env = adapters.Physics(library="brax", env=failing, task="failing", episode_length=9)
    first, _ = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(1), first, jnp.zeros(1))
    assert step.terminated
    assert not step.truncated
    assert_array_equal(step.next_obs, np.zeros(2))
    assert_array_equal(step.obs, [0.5, 0.5])
    assert step.reward == 0


@pytest.mark.parametrize(
    ("task", "args", "words"),
    [
        ("an", {}, "unknown environment 'brax/an'; did you mean 'ant'"),
        ("fast", {}, "brax/fast cannot be used: it is a stand-in for brax's own tests"),
        ("ant", {"backend": "mujoco"}, "backend: expected spring, positional, generalized, mjx, got 'mujoco'"),
        ("swimmer", {}, "brax/swimmer cannot be used: its simulation of water calls JAX"),
        ("ant", {"episode_length": 0}, "episode_length: expected a value such as 1000, got 0"),
        ("ant", {"use_contact_forces": True}, "unknown argument 'use_contact_forces'; brax/ant takes backend, "),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(task, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        adapter.make(task, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", adapter.names())
def test_every_task_fits_the_contract(task):
    env = envs.as_environment(adapter.make(task))
    assert env.action_space.shape == (env.env.action_size,)


def test_loading_a_model_writes_no_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # MuJoCo warns of halfcheetah, and writes MUJOCO_LOG.TXT
    adapter._environment.__wrapped__("halfcheetah", ())
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
