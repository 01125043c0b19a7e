"""A run that ends because a number is not finite says whether the environment gave one, and when."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import Box, Discrete, RunError, TimeStep, replay
from quantilax.runs import finite
from quantilax.types import Record, Transition
from tests.conftest import tiny

EXAMPLE = Transition(
    jnp.zeros(2), jnp.zeros((), jnp.int32), jnp.float32(0), jnp.zeros(2), jnp.array(False), jnp.array(False)
)
E = 3


def ring_of(steps, capacity, rewards=(), observations=(), cuts=()):
    """A ring after `steps` iterations of three environments; bad numbers by (iteration, environment)."""

    def observed(i):  # what the step of iteration i gives to act on next; the reset's is that of iteration -1
        return jnp.array([[jnp.nan if (i, e) in observations else 0.0, e] for e in range(E)])

    ring = replay.init(EXAMPLE, observed(-1), capacity)
    add = jax.jit(replay.add)
    for i in range(steps):
        reward = jnp.array([-jnp.inf if (i, e) in rewards else float(e) for e in range(E)])
        cut = jnp.array([(i, e) in cuts for e in range(E)])
        step = Transition(observed(i - 1), jnp.zeros(E, jnp.int32), reward, jnp.zeros((E, 2)), jnp.zeros(E, bool), cut)
        ring = add(ring, step, observed(i))
    return jax.tree.map(lambda x: np.asarray(x)[None], ring)


def fault(ring=None, **state):
    state = {"normalizer": SimpleNamespace(observation=None, reward=None), "replay": ring} | state
    record = SimpleNamespace(returns=state.pop("returns", np.zeros((1, 4))))
    return finite.fault_of_environment(None, SimpleNamespace(**state), record, 0)


@pytest.mark.parametrize("capacity", [300, 30])  # with room to spare, and written over ten times
@pytest.mark.parametrize("cuts", [(), [(i, e) for i in range(0, 90, 7) for e in range(E)]])
def test_a_bad_reward_or_observation_is_found_in_the_replay_at_the_step_that_gave_it(capacity, cuts):
    reward = ring_of(90, capacity, rewards=[(85, 1), (87, 0)], cuts=cuts)
    assert fault(reward) == f"a reward that is -inf, the first in the replay at environment step {86 * E}"
    seen = ring_of(90, capacity, observations=[(86, 2), (88, 0)], cuts=cuts)
    assert fault(seen) == f"an observation that holds nan, the first in the replay at environment step {87 * E}"
    both = ring_of(90, capacity, rewards=[(87, 0)], observations=[(86, 2)], cuts=cuts)
    assert fault(both).endswith(f"environment step {87 * E}")
    assert fault(ring_of(90, capacity, cuts=cuts)) is None


def test_the_observation_of_a_reset_and_the_newest_are_looked_at_too():
    assert fault(ring_of(4, 30, observations=[(-1, 1)])).endswith("environment step 0")
    assert fault(ring_of(4, 30, observations=[(3, 1)])).endswith(f"environment step {4 * E}")


def test_a_bad_number_that_was_written_over_is_known_by_the_running_moments():
    ring = ring_of(90, 30, rewards=[(5, 0)], observations=[(5, 0)])
    assert fault(ring) is None
    moments = (np.array([7]), np.array([[np.nan]]), np.array([[1.0]]))
    for normalizer, name in (
        (SimpleNamespace(observation=moments, reward=None), "an observation"),
        (SimpleNamespace(observation=None, reward=SimpleNamespace(moments=moments)), "a reward"),
    ):
        assert fault(ring, normalizer=normalizer).startswith(f"{name} that is NaN, infinite or too large")


def test_an_evaluation_that_is_not_finite_speaks_of_the_rewards():
    assert fault(ring_of(2, 30), returns=np.array([[1.0, np.nan]])).startswith("a reward that made an episode")


class Broken:
    """An environment whose rewards, or successors at the end of an episode, are NaN."""

    name, max_episode_steps = "broken", 3
    observation_space, action_space = Box((2,)), Discrete(2)

    def __init__(self, what):
        self.what = what

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(2)

    def step(self, key, state, action):
        done = state == 2
        reward = jnp.where((self.what == "reward") & done, jnp.nan, 1.0)
        successor = jnp.where((self.what == "observation") & done, jnp.nan, jnp.zeros(2))
        return jnp.where(done, 0, state + 1), TimeStep(jnp.zeros(2), successor, reward, done, jnp.array(False))


@pytest.mark.parametrize("what", ["reward", "observation", "nothing"])
def test_without_a_replay_the_environment_is_played_on(what, tmp_path):
    agent = tiny("pqn", Broken(what))
    state = jax.tree.map(lambda x: x[None], agent.init(jax.random.key(0)))
    record = Record(jnp.array([200]), jnp.ones((1, 2)), jnp.ones((1, 2)), finite=jnp.array([False]), metrics=None)
    directory = SimpleNamespace(facts={"seeds": [7]}, path=tmp_path)
    words = {
        "nothing": r"^the parameters hold NaN or inf at environment step 2,000 \(seed 7\); no non-finite .* learning_rate",
    }.get(
        what,
        rf"^the environment gave an? {what} that is NaN .* after 3 steps \(seed 7\); the parameters .* step 2,000; fix",
    )
    with pytest.raises(RunError, match=words) as error:
        finite.check(agent, record, 2_000, state, directory)
    assert ("learning_rate" in str(error.value)) == (what == "nothing")
    assert "\n" not in str(error.value)
