"""The loop: where evaluations fall, and how they count."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from quantilax import IQN, PQN, Box, ConfigError, ConfigWarning, Discrete, TimeStep, devices, envs, train
from quantilax.learning import rollout
from quantilax.types import Policy
from tests.conftest import tiny


def iqn(**changes):
    return IQN.create(env="probe/terminal", **changes)


def test_the_rows_of_the_investigations_settings():
    steps = iqn(total_timesteps=100_000, eval_freq=5_000, fill_buffer=5_000, num_envs=10).evaluation_steps
    assert steps == tuple(range(5_000, 100_001, 5_000))  # row 0 before training, at the warm-up's end


def test_rows_inside_the_warm_up_are_left_out_and_multiples_of_the_period_kept():
    assert iqn(total_timesteps=20_000, eval_freq=5_000, fill_buffer=1_000).evaluation_steps == (
        1_000,
        5_000,
        10_000,
        15_000,
        20_000,
    )
    assert iqn(total_timesteps=20_000, eval_freq=5_000, fill_buffer=12_000).evaluation_steps == (12_000, 15_000, 20_000)


def test_a_period_that_does_not_divide_ends_with_a_shorter_one_and_never_exceeds_the_budget():
    with pytest.warns(ConfigWarning, match="does not divide"):
        algo = iqn(total_timesteps=10_005, eval_freq=4_000, fill_buffer=1_000, num_envs=10)
    assert algo.evaluation_steps == (1_000, 4_000, 8_000, 10_000)
    assert train.segment_iterations(algo.config) == [0, 300, 400, 200]
    assert train.segment_iterations(algo.config, since=1_000) == [300, 400, 200]
    assert train.segment_iterations(algo.config, since=8_000) == [200]
    assert train.segment_iterations(algo.config, since=10_000) == []


@pytest.mark.parametrize("fill_buffer", [5_000, 1_000, 995])  # of ten environments: 995 are a hundred steps of each
def test_a_run_that_is_all_warm_up_has_one_row(fill_buffer):
    with pytest.warns(ConfigWarning, match="no gradient step"):
        algo = iqn(total_timesteps=1_000, eval_freq=500, fill_buffer=fill_buffer)
    assert algo.evaluation_steps == (1_000,)


def test_the_defaults_of_pqn_are_whole_iterations():
    assert PQN.create(env="probe/terminal").evaluation_steps == tuple(range(0, 491_521, 24_576))


def test_more_evaluations_than_any_curve_needs_are_refused():
    with pytest.raises(ConfigError, match="eval_freq: 1 asks for over 100,000 evaluations"):
        iqn(total_timesteps=200_000, eval_freq=1)


def always(action):
    return Policy(lambda obs, carry, key, legal: (jnp.array(action), carry))


def test_an_evaluation_counts_each_episode_once_to_its_end():
    lengths, returns = rollout.evaluate(envs.make("probe/corridor"), always(1), jax.random.key(0), 7)
    assert_array_equal(lengths, np.full(7, 6))
    assert_array_equal(returns, np.ones(7))


def test_an_evaluation_ends_at_the_time_limit():
    lengths, returns = rollout.evaluate(envs.make("probe/corridor"), always(0), jax.random.key(0), 5)
    assert_array_equal(lengths, np.full(5, 24))
    assert_array_equal(returns, np.zeros(5))


def test_episodes_of_different_lengths_do_not_disturb_each_other():
    # Each step pays 1, so an episode's return is its length; geometric with p = .3: mean 1 / .3, variance .7 / .09.
    lengths, returns = rollout.evaluate(envs.make("probe/geometric"), always(0), jax.random.key(0), 4_000)
    assert_array_equal(lengths, returns)
    assert abs(float(lengths.mean()) - 1 / 0.3) < 5 * np.sqrt(0.7 / 0.09 / 4_000)


def test_the_state_takes_the_bytes_that_are_told():
    algo = iqn(buffer_size=1_000)
    told = train.state_bytes(*algo.arguments())
    state = algo.init(jax.random.key(0))
    assert told["replay"] == sum(x.nbytes for x in jax.tree.leaves(state.replay))
    assert told["params"] == sum(x.nbytes for x in jax.tree.leaves(state.params))
    rows = 1_000 * (4 + 4 + 1 + 1 + 1)  # action, reward, two flags, offset
    slots = 10 * (100 + 100 // 32 + 2 + 1) * 2 * 4  # of ten environments, 100 steps each; observations of two floats
    assert told["replay"] == rows + slots + 10 * (100 // 128 + 2) * 4 + 10 * 4 + 8  # anchors, cursors, two counters
    assert sum(size for name, size in told.items() if name != "total") == told["total"]


def test_the_check_of_the_memory_and_the_program_share_a_trace_of_init(one_device):
    algo = iqn(total_timesteps=400, eval_freq=200, fill_buffer=100, buffer_size=200)
    traced = []

    def init(*arguments):
        traced.append(arguments)
        return algo.algorithm.init(*arguments)

    def update(*_):
        raise KeyboardInterrupt  # of the program, only the trace of `init` is wanted

    algorithm, (_, env, config) = algo.algorithm._replace(init=init, update=update), algo.arguments()
    train.state_bytes(algorithm, env, config)
    with pytest.raises(KeyboardInterrupt):
        devices.compile_fit(algorithm, env, config, jax.random.split(jax.random.key(0), 1))
    assert len(traced) == 1


def test_what_is_to_be_done_while_compiling_begins_once_all_is_traced(one_device):
    algorithm, env, config = tiny("pqn").arguments()
    done, events = threading.Event(), []

    def update(*arguments):
        events.append("traced")
        return algorithm.update(*arguments)

    def beside():
        events.append("beside")
        done.set()

    keys = jax.random.split(jax.random.key(0), 1)
    devices.compile_fit(algorithm._replace(update=update), env, config, keys, while_compiling=beside)
    assert done.wait(10)
    assert events[-1] == "beside"
    assert set(events[:-1]) == {"traced"}


def test_programs_of_a_few_configs_are_kept_and_none_that_reads_a_callback():
    def compiled(callback=None, **changes):
        keys, arguments = jax.vmap(jax.random.key)(jnp.arange(1)), tiny("pqn", **changes).arguments()
        return devices.compile_fit(*arguments, keys, callback, with_init=False).segment.__wrapped__.runtime_executable()

    devices._jitted.cache_clear()
    first = compiled()
    assert compiled() is first
    assert compiled(gamma=0.5) is first
    assert compiled(num_epochs=3) is not first
    info = devices._jitted.cache_info()
    assert (info.hits, info.currsize, info.maxsize) == (2, 2, 8)
    watched = [compiled(lambda *_: jnp.zeros(())) for _ in range(2)]
    assert watched[0] is not watched[1]
    assert devices._jitted.cache_info().currsize == 2


def test_episodes_are_drawn_from_no_key_of_a_training_with_the_same_key():
    """The reward is the first number that `reset` draws, so a return tells the key of its episode."""

    class Draw:
        name, max_episode_steps = "draw", 1
        observation_space, action_space = Box((1,)), Discrete(2)

        def reset(self, key):
            obs = jax.random.uniform(key, (1,))
            return obs, obs

        def step(self, key, state, action):
            new, obs = self.reset(key)
            return new, TimeStep(obs, state, state[0], jnp.array(True), jnp.array(False))

    algo, key = tiny("dqn", Draw()), jax.random.key(3)
    _, returns = algo.evaluate(algo.init(key), key, 50)
    keys = [key[None]]  # of training: it splits `key` into a few, each of these again, and so on
    for parts in (8, 64, 64):
        keys.append(jax.vmap(lambda one, n=parts: jax.random.split(one, n))(keys[-1]).reshape(-1))
    drawn = jax.vmap(lambda one: jax.random.uniform(one, (1,))[0])(jnp.concatenate(keys))
    assert not np.isin(np.asarray(returns), np.asarray(drawn)).any()
    assert len(set(returns.tolist())) == 50
