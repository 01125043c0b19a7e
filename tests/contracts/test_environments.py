"""The environments under the contract of `quantilax.types.Environment`."""

import dataclasses
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import IQN, Box, ConfigError, Discrete, TimeStep, envs, pytree
from quantilax.envs.probes import PROBES
from quantilax.learning.rollout import random_action

DISCRETE = [*PROBES, "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Breakout-MinAtar", "Asterix-MinAtar"]


@partial(jax.jit, static_argnames=("steps", "num_envs"))
def rollout(env, steps, key=0, num_envs=16):
    """(states, observations acted on, actions, time steps) of random actions, leading axes (steps, num_envs)."""

    def one(carry, key):
        state, obs = carry
        key_action, key_step = jax.random.split(key)
        keys = jax.random.split(key_action, num_envs)
        action, _ = jax.vmap(lambda key: random_action(env).act(None, (), key, None))(keys)
        state, step = jax.vmap(env.step)(jax.random.split(key_step, num_envs), state, action)
        return (state, step.obs), (obs, action, step)

    key_reset, key_run = jax.random.split(jax.random.key(key))
    start = jax.vmap(env.reset)(jax.random.split(key_reset, num_envs))
    return jax.lax.scan(one, start, jax.random.split(key_run, steps))[1]


@cache
def played(name):
    """600 steps of an environment."""
    return rollout(envs.make(name), 600)


@pytest.mark.parametrize("name", DISCRETE)
def test_shapes_and_dtypes_are_those_of_the_spaces(name):
    env = envs.make(name)
    assert isinstance(env.observation_space, Box)
    assert isinstance(env.action_space, Box if name == "probe/regulator" else Discrete)
    assert env.name == name
    obs, _, step = played(name)
    assert obs.shape[2:] == step.next_obs.shape[2:] == env.observation_space.shape
    assert step.reward.dtype == jnp.float32
    assert step.terminated.dtype == step.truncated.dtype == jnp.bool_


@pytest.mark.parametrize("name", DISCRETE)
def test_the_next_observation_is_the_true_successor_and_the_next_to_act_on_after_a_reset_another(name):
    obs, _, step = played(name)
    done = np.asarray(step.terminated | step.truncated)
    assert done.any()
    assert_array_equal(step.obs[:-1], obs[1:])  # what is acted on next
    assert_array_equal(np.asarray(step.obs)[~done], np.asarray(step.next_obs)[~done])


@pytest.mark.parametrize("name", ["probe/terminal", "CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
def test_after_a_last_step_the_successor_is_not_the_first_observation_of_the_next_episode(name):
    _, _, step = played(name)
    done = np.asarray(step.terminated | step.truncated)
    assert (np.abs(np.asarray(step.obs)[done] - np.asarray(step.next_obs)[done]).max(axis=-1) > 0).all()


def with_limit(env, limit):
    """The environment with another time limit, where it has one to be set."""
    if hasattr(env, "env") and hasattr(env, "probability"):  # sticky actions around another
        return dataclasses.replace(env, env=with_limit(env.env, limit))
    if hasattr(env, "params"):
        return dataclasses.replace(env, params=env.params.replace(max_steps_in_episode=jnp.array(limit)))
    return dataclasses.replace(env, limit=limit) if hasattr(env, "limit") else env


@pytest.mark.parametrize("name", DISCRETE)
def test_no_episode_is_longer_than_its_limit(name):
    env = with_limit(envs.make(name), 8)  # which random actions outlive
    _, _, step = rollout(env, 600)  # the program of `played`, where the limit is a leaf
    done = np.asarray(step.terminated | step.truncated)
    longest = max(int(np.diff(np.flatnonzero(np.r_[True, column])).max(initial=0)) for column in done.T)
    assert 0 < longest <= int(env.max_episode_steps)
    if name not in PROBES:
        assert longest == 8
        assert step.truncated.any()


def test_a_time_limit_truncates_and_does_not_terminate():
    _, _, step = rollout(envs.make("MountainCar-v0"), 200)  # random actions never reach the top
    assert not step.terminated.any()
    assert step.truncated[199].all()
    assert not step.truncated[:199].any()


def test_cartpole_is_gymnasiums():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium

        oracle = gymnasium.make("CartPole-v1").unwrapped
    obs, action, step = rollout(envs.make("CartPole-v1"), 120, num_envs=4)
    ends = 0
    for e in range(4):
        for t in range(120):
            oracle.reset()
            oracle.state = np.asarray(obs[t, e], np.float64)
            successor, reward, terminated, _, _ = oracle.step(int(action[t, e]))
            assert_allclose(step.next_obs[t, e], successor, rtol=1e-4, atol=1e-6)
            assert bool(step.terminated[t, e]) == terminated
            assert float(step.reward[t, e]) == reward
            ends += terminated
    assert ends > 5


def test_the_regulators_optimal_return_has_the_distribution_that_it_says():
    env, gamma, x = envs.make("probe/regulator", {"limit": 200}), 0.8, 1.0
    p, k = env.solution(gamma)

    def episode(key):
        def one(carry, key):
            (state, x), factor, total = carry
            state, step = env.step(key, state, -k * x)
            return ((state, step.obs), factor * gamma, total + factor * step.reward), None

        start = ((jnp.full(1, x), jnp.zeros((), jnp.int32)), jnp.full(1, x))
        return jax.lax.scan(one, (start, 1.0, 0.0), jax.random.split(key, 60))[0][2]

    returns = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 20_000))
    taus = jnp.array([0.05, 0.25, 0.5, 0.75, 0.95])
    assert_allclose(jnp.quantile(returns, taus), env.quantile_function(taus, gamma)[:, 0], atol=0.02)
    assert_allclose(returns.mean(), -p, atol=0.01)


@pytest.mark.parametrize("name", [name for name in PROBES if name != "probe/regulator"])
def test_a_probes_quantile_function_is_that_of_its_returns(name):
    # Monte-Carlo returns under the policy that the quantile function is of (always the last action).
    env, gamma, n = envs.make(name), 0.8, 4000
    taus = jnp.array([0.15, 0.35, 0.65, 0.85])
    last = env.action_space.n - 1

    def episode(key):
        key_reset, key = jax.random.split(key)
        state, _ = env.reset(key_reset)

        def one(carry, key):
            state, factor, total = carry
            state, step = env.step(key, state, jnp.array(last))
            total = total + factor * step.reward
            return (state, factor * gamma * (1 - step.terminated), total), None

        return jax.lax.scan(one, (state, 1.0, 0.0), jax.random.split(key, 60))[0][2]

    returns = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), n))
    assert_allclose(jnp.quantile(returns, taus), env.quantile_function(taus, gamma)[:, last], rtol=1e-4)


def test_the_risky_action_of_the_bimodal_probe_has_two_outcomes():
    env = envs.make("probe/bimodal")
    rewards = jax.vmap(lambda k: env.step(k, jnp.zeros((), jnp.int32), jnp.array(0))[1].reward)(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert set(np.unique(rewards)) == {-1.0, 2.0}
    assert abs(float((rewards > 0).mean()) - 0.5) < 0.04


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'"):
        envs.make("CartPol-v1")
    with pytest.raises(ConfigError, match="unknown environment 'probe/bimodel'; did you mean 'probe/bimodal'"):
        envs.make("probe/bimodel")


def test_environments_with_continuous_actions_are_known_and_never_suggested():
    import gymnax

    from quantilax.envs.gymnax import CONTINUOUS, names

    downloads = {"MNISTBandit-bsuite"}
    found = {name for name in set(names()) - downloads if isinstance(envs.make(name).action_space, Box)}
    assert found == set(CONTINUOUS)
    assert set(names()) >= found
    for name in ("Pendulum-v2", "swimmer", "reacher-misc"):
        with pytest.raises(ConfigError) as caught:
            envs.make(name)
        assert not any(one in str(caught.value) for one in CONTINUOUS)
    assert gymnax.registered_envs


class Own:
    """A user's environment: a plain class, no pytree."""

    name = "own"
    observation_space = Box((2,))
    action_space = Discrete(3)
    max_episode_steps = 5

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(2)

    def step(self, key, state, action):
        done = state == 4
        obs = jnp.zeros(2)
        return jnp.where(done, 0, state + 1), TimeStep(obs, obs, jnp.float32(action == 2), done, jnp.array(False))


SMALL = dict(total_timesteps=400, eval_freq=200, fill_buffer=64, buffer_size=500, eval_episodes=4, torso_sizes=(8,))


def test_a_users_own_object_trains():
    lengths = IQN.create(env=Own(), **SMALL).train(jax.random.key(0))[1].lengths
    assert set(np.unique(lengths)) == {5}


def test_a_gymnax_environment_object_trains():
    import gymnax

    env, _ = gymnax.make("CartPole-v1")
    state, _ = IQN.create(env=env, **SMALL).train(jax.random.key(0))
    assert state.envs.obs.shape == (10, 4)


class WithoutStep:
    name = "own"
    observation_space = Box((2,))
    action_space = Discrete(3)
    max_episode_steps = 5

    def reset(self, key):
        return 0, jnp.zeros(2)


class WrongShape(Own):
    observation_space = Box((3,))


class FiveValues(Own):
    def step(self, key, state, action):
        return state, jnp.zeros(2), 0.0, False, {}


class FloatFlags(Own):
    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        return state, step._replace(terminated=jnp.float32(0))


def with_members(**members):
    return type("Other", (Own,), members)()


@jax.tree_util.register_pytree_node_class
class State:
    """A state that is printed as an address."""

    def __init__(self, *parts):
        self.parts = parts

    def tree_flatten(self):
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


class Registered(Own):
    """An environment whose state consists of two `State`s."""

    def __init__(self, other_dtype=False):
        self.other_dtype = other_dtype

    def reset(self, key):
        t, obs = super().reset(key)
        return (State(jnp.zeros(2)), State(t)), obs

    def step(self, key, state, action):
        t, step = super().step(key, state[1].parts[0], action)
        return (State(jnp.zeros(2)), State(t.astype(jnp.float32) if self.other_dtype else t)), step


@pytree.dataclass
class Deciding:
    """An environment that branches in Python on its parameter, which fails inside a program."""

    p: float = pytree.field(0.5, "decides", ge=0, le=1)
    name = "own"
    observation_space, action_space, max_episode_steps = Own.observation_space, Own.action_space, Own.max_episode_steps
    reset = Own.reset

    def step(self, key, state, action):
        return Own.step(self, key, state, action if self.p > 0.5 else 0)


@pytree.dataclass
class LeafOfActions:
    """An environment whose number of actions is a leaf, although shapes depend on it."""

    n: float = 2
    name, observation_space, max_episode_steps = Own.name, Own.observation_space, Own.max_episode_steps
    reset, step = Own.reset, Own.step

    @property
    def action_space(self):
        return Discrete(self.n)


def test_sizes_of_numpy_scalars_python_types_and_whole_float_limits_are_taken():
    env = with_members(action_space=Discrete(np.int64(3)), observation_space=Box((np.int64(2),), float))
    assert IQN.create(env=env).env.observation_space.number == jnp.float32
    for limit in (500.0, np.int32(5), jnp.array(5.0), 2**31 - 1):
        IQN.create(env=with_members(max_episode_steps=limit))


@pytest.mark.parametrize("limit", [10**12, 2**31, 0, "x", jnp.array([3, 4]), None])
def test_a_limit_among_the_parameters_of_gymnax_is_checked_by_object_and_by_name(monkeypatch, limit):
    import gymnax

    class Limited(type(gymnax.make("CartPole-v1")[0])):
        @property
        def default_params(self):
            return super().default_params.replace(max_steps_in_episode=limit)

    monkeypatch.setattr("quantilax.envs.gymnax._environment", lambda name: Limited())
    monkeypatch.setattr("quantilax.envs.gymnax.names", lambda: ("Limited-v0",))
    for env in (Limited(), "Limited-v0"):
        with pytest.raises(
            ConfigError, match=r"max_episode_steps must be a whole number|a parameter is no number"
        ) as error:
            IQN.create(env=env)
        assert "\n" not in str(error.value)


def test_a_state_of_classes_that_are_printed_as_addresses_is_accepted():
    assert envs.as_environment(Registered()).name == "own"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (WithoutStep(), "WithoutStep has no 'step'"),
        (
            with_members(action_space=3),
            "own's observation_space must be a quantilax.types.Box and its action_space a D",
        ),
        (WrongShape(), r"reset's observation must have shape \(3,\), got \(2,\)"),
        (FiveValues(), "does not fit the contract|must return"),
        (FloatFlags(), "TimeStep.terminated must be of type bool, got float32"),
        (42, "int has no 'name'"),
        (with_members(observation_space=Box(2)), r"the shape of a Box must be a tuple such as \(4,\), got 2"),
        (with_members(observation_space=Box([2])), r"the shape of a Box must be a tuple such as \(4,\), got \[2\]"),
        (with_members(action_space=Box([2])), "the shape of a Box must be a tuple"),
        (
            with_members(max_episode_steps=None),
            "own's max_episode_steps must be a whole number from 1 to 2147483647.* got None",
        ),
        *(
            (with_members(max_episode_steps=limit), f"max_episode_steps must be a whole number .* got {shown}")
            for limit, shown in (
                (float("inf"), "inf"),
                (float("nan"), "nan"),
                (0, "0"),
                (2.5, "2.5"),
                (True, "True"),
                ("5", "'5'"),
                (2**31, "2147483648"),
                (10**12, "1000000000000"),
                (10**400, "1000"),
                (1e12, "1000000000000.0"),
                (np.int64(2**40), "np.int64"),
                (jnp.float32(3e9), "Array"),
                (jnp.array([5, 6]), "Array"),
                ([1, [2]], r"\[1, \[2\]\]"),
                (jax.random.key(0), "Array"),
            )
        ),
        *(
            (
                with_members(action_space=Discrete(n)),
                f"the n of a Discrete must be an int from 1 to 16777216, got {shown}",
            )
            for n, shown in (
                (0, "0"),
                (-2, "-2"),
                (2.0, "2.0"),
                ("2", "'2'"),
                (True, "True"),
                (None, "None"),
                (float("nan"), "nan"),
                (10**9, "1000000000"),
                (np.array([2]), "array"),
                (jnp.int32(2), "Array"),
            )
        ),
        *(
            (
                with_members(observation_space=Box(shape)),
                "the shape of a Box must be a tuple .* sizes are ints of 1 or more",
            )
            for shape in ((0,), (2, 0), (-1,), (2.0,), ("2",), (True,), (None,), ((2,),), (jnp.int32(2),))
        ),
        *(
            (
                with_members(observation_space=Box((2,), dtype)),
                "the dtype of a Box must be that of real numbers or bools",
            )
            for dtype in ("U5", object, complex, "nope", None, 3, jax.random.key(0).dtype)
        ),
        *(
            (
                with_members(observation_space=Box((2,), low=low, high=high)),
                "the bounds of a Box must be numbers, or arrays of its shape, with low <= high",
            )
            for low, high in (
                (1.0, 0.0),
                (np.array([0.0, 2.0]), 1.0),
                (float("nan"), 1.0),
                (None, 1.0),
                ("0", 1.0),
                (np.zeros(3), 1.0),
            )
        ),
        (with_members(name=None), "an environment's name must be text, got None"),
        (LeafOfActions(), "the n of a Discrete must be an int from 1 to 16777216, got a tracer"),
        (envs.probes.TimeLimit(limit=10**12), "probe/time_limit's max_episode_steps must be a whole number"),
        (envs.probes.TimeLimit(limit=2.5), "probe/time_limit's max_episode_steps must be a whole number"),
        (
            envs.probes.Corridor(cells=10**10),
            "probe/corridor's max_episode_steps must be a whole number .* got 40000000000",
        ),
        (envs.probes.Corridor(cells=2.5), "probe/corridor: the shape of a Box must be a tuple"),
        (envs.probes.Bimodal(low=10**12), "probe/bimodal's reset or step does not fit the contract: .*1000000000000"),
        (Registered(other_dtype=True), "own's state changes its structure, shapes or dtypes"),
        (Deciding(p=0.3), "own's reset or step does not fit the contract: Attempted boolean conversion"),
        (Deciding(p=1.5), "env: own: p: must be >= 0 and <= 1, got 1.5"),
        (Deciding(p="a half"), "own's reset or step does not fit the contract"),
    ],
)
def test_an_object_that_breaks_the_contract_is_refused_in_one_line(env, words):
    with pytest.raises(ConfigError, match=words) as error:
        IQN.create(env=env)
    assert "\n" not in str(error.value)


def test_observations_of_several_parts_are_refused_in_one_line(monkeypatch):
    from gymnax.environments import spaces

    class Parts(type(envs.make("CartPole-v1").env)):
        def observation_space(self, params):
            return spaces.Dict({"one": super().observation_space(params)})

    monkeypatch.setattr("quantilax.envs.gymnax._environment", lambda name: Parts())
    monkeypatch.setattr("quantilax.envs.gymnax.names", lambda: ("Parts-v0",))
    for env in (Parts(), "Parts-v0"):
        with pytest.raises(ConfigError, match=r"^env: .* has observations of several parts \(Dict\)"):
            IQN.create(env=env)


def test_every_environment_of_gymnax_is_called_by_the_name_that_makes_it(monkeypatch):
    from gymnax.registration import registered_envs

    class Mine(type(envs.make("CartPole-v1").env)):
        """One that a user registers without a `name` of its own."""

        name = "Mine"

    for name in set(registered_envs) - {"MNISTBandit-bsuite"}:  # which downloads its images
        assert envs.make(name).name == name
    monkeypatch.setattr("quantilax.envs.gymnax._environment", lambda name: Mine())
    monkeypatch.setattr("quantilax.envs.gymnax.names", lambda: ("My-v0",))
    assert envs.make("My-v0").name == "My-v0"
    assert envs.as_environment(Mine()).name == "Mine"


def test_an_environment_that_fails_without_a_word_is_refused_in_one_line():
    class Silent(Own):
        def reset(self, key):
            raise ValueError

    with pytest.raises(ConfigError, match="'s reset or step does not fit the contract: ValueError"):
        envs.as_environment(Silent())
