"""Host environments take gymnasium's own steps, also when batched or replayed; failures are one line."""

import os
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

gymnasium = pytest.importorskip("gymnasium", reason="the extra 'gymnasium' is not installed")

from quantilax import IQN, TD3, Box, ConfigError, Discrete, envs, switches  # noqa: E402
from quantilax.devices import over_seeds  # noqa: E402
from quantilax.errors import LostEpisodesWarning  # noqa: E402
from quantilax.learning import rollout  # noqa: E402

STEPS, ENVS = 250, 4
LIMIT = 30  # random actions reach it about as often as they drop the pole


class Own(gymnasium.Env):
    """Random walks that misbehave from some step on."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=1)
    drawn = 0

    def __init__(self, how: str = "", after: int = 5) -> None:
        self.how, self.after = how, after

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, Own.drawn = 0, Own.drawn + 1
        first = Own.drawn if self.how == "indeterminate" else 0
        return np.full(3, first, np.float32), {}

    def step(self, action):
        assert action in self.action_space
        self.t += 1
        bad, obs, reward = self.t >= self.after, self.np_random.uniform(-1, 1, 3), 1.0
        if bad and self.how == "raise":
            raise RuntimeError("the motor is stuck\nand more")
        if bad and self.how == "exit":
            raise SystemExit(3)
        if bad and self.how == "nan":
            obs[0] = np.nan
        if bad and self.how == "reward":
            reward = float("inf")
        return obs[:2] if bad and self.how == "shape" else obs, reward, False, False, {}


def make_own(**arguments):
    return Own(**arguments)


OWN = f"{__name__}:make_own"


def played(env, key, steps=STEPS, num_envs=ENVS):
    """(states acted on, observations, transitions) of random actions, leading axes (steps, num_envs)."""
    policy = rollout.random_action(env)

    def one(now, key):
        after, transition = rollout.step(env, policy, now, key)
        return after, (now.state, transition, after.obs)

    key, key_reset = jax.random.split(key)
    return jax.lax.scan(one, rollout.reset(env, jax.random.split(key_reset, num_envs)), jax.random.split(key, steps))[1]


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("gymnasium/CartPole-v1", {"max_episode_steps": LIMIT})


@pytest.fixture(scope="module")
def alone(cartpole):
    return jax.jit(partial(played, cartpole))(jax.random.key(3))


def test_observations_rewards_and_flags_are_those_of_the_library_over_a_thousand_steps(alone):
    states, transitions, following = jax.tree.map(np.asarray, alone)
    seen = {"terminated": 0, "truncated": 0}
    for i in range(ENVS):
        env = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
        obs, _ = env.reset(seed=int(states.seed[0, i]))
        for t in range(STEPS):
            told = jax.tree.map(lambda x, t=t, i=i: x[t, i], transitions)
            assert_array_equal(told.obs, obs)
            obs, reward, terminated, truncated, _ = env.step(int(told.action))
            assert_array_equal(told.next_obs, obs)  # the true successor, also at an end
            assert (told.reward, told.terminated, told.truncated) == (reward, terminated, truncated)
            if terminated or truncated:
                seen["terminated"] += terminated
                seen["truncated"] += truncated and not terminated
                if t + 1 == STEPS:
                    break
                obs, _ = env.reset(seed=int(states.seed[t + 1, i]))
            assert_array_equal(following[t, i], obs)
    assert min(seen.values()) > 5


@pytest.mark.parametrize("fold", [jax.vmap, lambda f: partial(over_seeds, f)], ids=["vmap", "devices"])
def test_a_seed_among_others_equals_that_seed_alone_bit_for_bit(fold, cartpole, alone):
    _, of_many, _ = jax.jit(fold(partial(played, cartpole)))(jax.vmap(jax.random.key)(jnp.arange(2, 5)))
    jax.tree.map(lambda x, y: assert_array_equal(x[1], y), of_many, alone[1])


def test_processes_step_as_this_one_does(alone):
    env = envs.make("gymnasium/CartPole-v1", dict(max_episode_steps=LIMIT, vectorization_mode="async", num_workers=2))
    _, of_workers, _ = jax.jit(partial(played, env))(jax.random.key(3))
    jax.tree.map(assert_array_equal, of_workers, alone[1])
    env.simulation.close()


def test_an_environment_is_a_function_of_its_state_whatever_its_simulator_did_meanwhile(cartpole):
    step = jax.jit(cartpole.step)
    states = [cartpole.reset(jax.random.key(0))[0]]
    for t in range(3):
        states.append(step(jax.random.key(t), states[-1], 1)[0])
    ahead = step(jax.random.key(9), states[3], 0)
    back = step(jax.random.key(1), states[1], 1)  # from an older state
    assert_array_equal(back[0].obs, states[2].obs)
    jax.tree.map(assert_array_equal, step(jax.random.key(9), states[3], 0), ahead)
    cartpole.simulation.close()  # as in a process that resumes a run
    jax.tree.map(assert_array_equal, step(jax.random.key(9), states[3], 0), ahead)


ON_ONE_CORE = """
import jax, jax.numpy as jnp
from quantilax import envs
env = envs.make("gymnasium/CartPole-v1", env_args={"max_episode_steps": 200_000})
keys = jax.random.split(jax.random.key(1), 3)
steps = jax.jit(lambda state: jax.lax.scan(lambda state, key: env.step(key, state, 1), state, keys)[1].obs)

@jax.jit
def elsewhere(state, m):  # slow, so that the steps after it run in the only thread of the pool
    zero = jax.lax.fori_loop(0, 20, lambda _, m: jnp.tanh(m @ m), m)[0, 0] * 0
    return state._replace(handle=state.handle + 1000 + zero.astype(jnp.uint32))

state, _ = env.reset(jax.random.key(0))
assert (steps(state) == steps(elsewhere(state, jnp.ones((900, 900))))).all()
"""


def test_actions_of_a_long_episode_are_replayed_on_one_core():
    environment = os.environ | {"XLA_FLAGS": "", "PJRT_NPROC": "1"}
    command = [sys.executable, "-c", ON_ONE_CORE]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_simulators_are_used_again_and_those_in_use_are_kept(cartpole):
    cartpole.simulation.close()
    bench = cartpole.simulation.bench()
    training = rollout.reset(cartpole, jax.random.split(jax.random.key(0), 2))
    for i in range(5):
        rollout.reset(cartpole, jax.random.split(jax.random.key(i), 8))  # of an evaluation
        training, _ = rollout.step(cartpole, rollout.random_action(cartpole), training, jax.random.key(i))
    assert len(bench._places) + len(bench._spare) <= 2 * 8


def test_episodes_that_cannot_be_replayed_are_cut_off_with_a_warning():
    env = envs.make(OWN, {"how": "indeterminate", "max_episode_steps": 10})
    state, seen = env.reset(jax.random.key(0))
    env.simulation.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, told = jax.block_until_ready(env.step(jax.random.key(2), state, 0))
    assert [one.category for one in caught] == [LostEpisodesWarning]
    assert told.truncated
    assert not told.terminated
    assert_array_equal(told.next_obs, seen)
    assert (state.clock, told.reward) == (0, 0)


def test_masks_are_those_of_the_library_and_illegal_actions_are_not_taken():
    env = envs.make("gymnasium/Taxi-v4")
    assert envs.masks(env)
    states, transitions, _ = jax.jit(partial(played, env, steps=60, num_envs=2))(jax.random.key(0))
    taxi = gymnasium.make("Taxi-v4")
    _, info = taxi.reset(seed=int(states.seed[0, 0]))
    for t in range(60):
        action = int(transitions.action[t, 0])
        assert_array_equal(transitions.legal[t, 0], info["action_mask"].astype(bool))
        assert transitions.legal[t, 0, action]
        _, _, terminated, _, info = taxi.step(action)
        assert_array_equal(transitions.next_legal[t, 0], info["action_mask"].astype(bool))
        if terminated:
            break


class Parts(Own):
    observation_space = gymnasium.spaces.Dict(
        {
            "room": gymnasium.spaces.Discrete(3, start=1),
            "sensors": gymnasium.spaces.Tuple(
                (gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.MultiBinary(2), gymnasium.spaces.Box(0, 9, ()))
            ),
        }
    )

    def reset(self, *, seed=None, options=None):
        return {"room": 2, "sensors": (np.array([0.5, -0.5]), np.array([0, 1]), np.array(7.0))}, {}


def test_observations_of_several_parts_become_a_vector_whose_numbers_have_names():
    env = envs.make(f"{__name__}:Parts", {"max_episode_steps": 3})
    _, obs = env.reset(jax.random.key(0))
    assert dict(zip(env.observation_names, obs.tolist(), strict=True)) == {
        "room=1": 0,
        "room=2": 1,
        "room=3": 0,
        "sensors.0[0]": 0.5,
        "sensors.0[1]": -0.5,
        "sensors.1[0]": 0,
        "sensors.1[1]": 1,
        "sensors.2": 7,
    }
    assert env.observation_space.shape == (8,)


FAILURES = {
    "raise": "raised RuntimeError: the motor is stuck",
    "nan": "step returned an observation with NaN or infinity; it must hold numbers",
    "shape": "step returned an observation of shape (2,); its space has (3,)",
    "reward": "step returned a reward of inf; it must be a number",
}


@pytest.mark.parametrize("how", FAILURES)
def test_what_fails_in_an_environment_ends_the_program_with_its_own_message_in_one_line(how):
    env = envs.make(OWN, {"how": how, "max_episode_steps": 20})
    with pytest.raises(ConfigError) as caught:
        switches.checked(jax.jit(partial(played, env, steps=9, num_envs=2)))(jax.random.key(0))
    assert str(caught.value) == f"env: {OWN}: {FAILURES[how]}"


def test_a_process_that_dies_ends_the_program_in_one_line():
    env = envs.make(OWN, dict(how="exit", max_episode_steps=20, vectorization_mode="async", num_workers=1))
    with pytest.raises(ConfigError, match=r"env: .*make_own: a process of it ended with status 3"):
        switches.checked(jax.jit(partial(played, env, steps=9, num_envs=2)))(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "gymnasium/CartPol-v1",
            {},
            "unknown environment 'gymnasium/CartPol-v1'; did you mean 'gymnasium/CartPole-v1'",
        ),
        ("gymnasum/CartPole-v1", {}, "unknown library 'gymnasum'; did you mean 'gymnasium'"),
        ("gymnasium/CartPole-v1", {"how": 1}, "gymnasium/CartPole-v1 cannot be made: TypeError"),
        ("gymnasium/CartPole-v1", {"vectorization_mode": "fast"}, "vectorization_mode: expected sync or async"),
        ("gymnasium/CartPole-v1", {"num_workers": 2}, "num_workers: .* unless vectorization_mode is async"),
        ("gymnasium/CartPole-v1", {"max_episode_steps": 0}, "max_episode_steps: expected a whole number of 1 or more"),
        ("gymnasium/Blackjack-v1", {}, "has no time limit.* add env_args: {max_episode_steps: 1000}"),
        (OWN, {}, "has no time limit"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        envs.make(name, arguments)


def test_a_library_that_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch):
    missing = envs.Library("a_package_that_is_not_there", "")
    monkeypatch.setitem(envs.LIBRARIES, "pgx", missing)
    with pytest.raises(ConfigError, match=r"pgx is not installed; install it with: pip install 'quantilax\[pgx\]'"):
        envs.make("pgx/2048")


def test_actions_of_unknown_kind_are_refused():
    class Odd(Own):
        action_space = gymnasium.spaces.MultiBinary(2)

    with pytest.raises(
        ConfigError, match="actions of the kind MultiBinary; wrap it so that they become Discrete or Box"
    ):
        envs.as_environment(Odd)


def test_a_function_that_makes_an_environment_is_enough_and_one_environment_is_refused():
    def make():
        return gymnasium.make("CartPole-v1")

    env = envs.as_environment(make)
    assert (env.observation_space.shape, env.action_space, env.max_episode_steps) == ((4,), Discrete(2), 500)
    with pytest.raises(ConfigError, match="training needs several; give its name"):
        envs.as_environment(make())


class Strict(Own):
    """Refuses actions outside of its box, whose bounds of 64 bits lie within those of 32."""

    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)


def test_an_actor_at_its_bounds_keeps_within_a_box_of_64_bits():
    assert float(np.float32(0.1)) > 0.1
    size = dict(total_timesteps=60, eval_freq=60, eval_episodes=2, num_envs=2, buffer_size=60, fill_buffer=20)
    algo = TD3.create(lambda: gymnasium.wrappers.TimeLimit(Strict(), 4), torso_sizes=(8,), batch_size=20, **size)
    greedy = algo.replace(exploration_noise=100.0)  # each action is a bound
    state, (lengths, _) = greedy.train(jax.random.key(0))
    assert (lengths == 4).all()
    assert set(np.unique(np.asarray(state.replay.rows.action)[12:30])) == {np.float32(-0.1), np.float32(0.1)}


def test_continuous_actions_have_their_bounds():
    env = envs.make("gymnasium/Pendulum-v1")
    assert env.action_space == Box((1,), np.dtype("float32"), -2.0, 2.0)
    transitions = jax.jit(partial(played, env, steps=3, num_envs=2))(jax.random.key(0))[1]
    assert np.abs(transitions.action).max() > 0


@pytest.mark.parametrize("name", ["gymnasium/CartPole-v1", OWN])
def test_the_fields_of_a_section_make_the_environment_again(name):
    arguments = {"max_episode_steps": 50} if name == OWN else {"sutton_barto_reward": True}
    env = envs.make(name, arguments, ["flatten", {"clip_reward": {"low": -2, "high": 2}}])
    fields = envs.fields_of(env)
    assert fields["env"] == name
    assert fields["env_args"] == arguments
    assert envs.make(**{"name": fields.pop("env"), **fields}) == env


def test_iqn_learns_in_an_environment_of_gymnasium():
    algo = IQN.create(
        env="gymnasium/CartPole-v1",
        total_timesteps=6_000,
        eval_freq=3_000,
        eval_episodes=8,
        num_envs=10,
        num_epochs=5,
        fill_buffer=500,
        buffer_size=6_000,
        batch_size=32,
        learning_rate=2e-3,
        target_update_freq=32,
        reward_scale=0.04,
        exploration_fraction=0.3,
        num_tau_samples=8,
        num_tau_prime_samples=8,
        num_quantile_samples=8,
        share_tau=True,
        torso_sizes=(32,),
        head_sizes=(32,),
    )
    _, curve = algo.train(jax.random.key(0))
    assert curve.returns[0].mean() < 40
    assert curve.returns[-1].mean() > 80
