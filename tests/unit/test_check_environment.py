"""`check-env` finds what types cannot show, and reports nothing for environments that keep the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import Box, Discrete, TimeStep, envs, pytree
from quantilax.checks import environment
from quantilax.runs import pictures, playing


@pytree.dataclass
class Walk:
    """A walk of random length around 0, with one fault."""

    fault: str = ""
    name = "walk"
    action_space = Discrete(2)

    @property
    def observation_space(self):
        return Box((1,), jnp.float32, -2 if self.fault == "bounds" else -100, 100)

    @property
    def max_episode_steps(self):
        return 4 if self.fault == "too long" else 30

    def reset(self, key):
        x = 0.5 if self.fault == "constant" else jax.random.uniform(key)
        state = (jnp.zeros((), jnp.int32), jnp.float32(x)[None])
        return (*((state, state[1])), *([self.mask()] if self.fault == "mask" else []))

    def mask(self):
        return jnp.zeros(2, bool)

    def step(self, key, state, action):
        key, key_reset = jax.random.split(key)
        t, x = state
        t, x = t + 1, x + 2.0 * action - 1
        ended, cut = jax.random.bernoulli(key, 0.1), t >= 30
        if self.fault == "death":
            ended, cut = (jnp.abs(x) > 4).any() | (t >= 8), jnp.array(False)
        reward = jnp.float32(jnp.nan if self.fault == "nan" else self.fault != "silent")
        done = ended | cut
        (t0, x0), *_ = self.reset(key_reset)
        following = x if self.fault == "no reset" else jnp.where(done, x0, x)
        state = jnp.where(done, t0, t), following
        obs = following + (0.5 if self.fault == "obs" else 0)
        mask = self.mask() if self.fault == "mask" else None
        return state, TimeStep(obs, x, reward, ended, cut, mask, mask)


FAULTS = {
    "bounds": "of the numbers in observations lie outside of observation_space",
    "too long": "steps, and max_episode_steps is 4",
    "constant": "every episode begins with the same observation",
    "mask": "a mask has no legal action",
    "death": "looks like a time limit told as an end",
    "nan": "rewards hold NaN or infinity",
    "silent": "no reward was seen",
    "no reset": "obs equals next_obs where episodes end",
    "obs": "obs differs from next_obs within an episode",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(fault):
    _, found = environment.check(Walk(fault=fault), steps=600)
    assert any(FAULTS[fault] in one.finding for one in found), found


def test_nothing_is_said_of_environments_that_keep_their_promises():
    facts, found = environment.check(Walk(), steps=600)
    assert found == []
    assert (facts.steps, facts.terminated + facts.truncated) == (600, facts.lengths.size)
    for name in ("CartPole-v1", "probe/corridor"):
        _, found = environment.check(envs.make(name), steps=400)
        assert not [one for one in found if one.severity != "note"]


def test_an_environment_that_draws_past_its_seed_is_found():
    gymnasium = pytest.importorskip("gymnasium", reason="the extra 'gymnasium' is not installed")
    random = np.random.default_rng(0)

    class Free(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return random.uniform(size=1), {}

        def step(self, action):
            return random.uniform(size=1), 1.0, bool(random.uniform() < 0.1), False, {}

    _, found = environment.check(envs.as_environment(Free, {"max_episode_steps": 20}), steps=200)
    assert "the same key leads to another course" in [one.finding for one in found]


def test_an_episode_is_played_and_its_pictures_are_written(tmp_path):
    env = envs.make("Breakout-MinAtar")
    first, second = playing.play(env, None, 2, seed=0)
    assert len(first.observations) == len(first.actions) + 1
    assert np.stack(first.actions).tolist() != np.stack(second.actions).tolist()
    frames = list(playing.pictures(env, first))
    assert len(frames) == len(first.observations)
    assert frames[0].shape == (10, 10, 3)
    pictures.write_video(tmp_path / "x.gif", iter(frames), "--video")
    from PIL import Image

    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames > 1


@pytest.mark.parametrize("name", ["gymnasium/CartPole-v1", "atari/Breakout"])
def test_pictures_of_simulators_are_of_the_episode_that_was_played(name):
    pytest.importorskip("gymnasium" if "gymnasium" in name else "ale_py", reason=f"{name} is not installed")
    env = envs.make(name, {"max_episode_steps": 12}, [{"frame_stack": {"frames": 2}}] if "Cart" in name else None)
    (episode,) = playing.play(env, None, 1, seed=3)
    frames = list(playing.pictures(env, episode))
    assert len(frames) == len(episode.actions) + 1
    assert frames[0].shape[2] == 3
    assert (frames[0] != frames[-1]).any()
