"""Looking inside a run: the recording of an episode, its rollouts, the page and the video."""

import base64
import json
import re

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import envs
from quantilax.errors import ConfigError
from quantilax.reports import filmed, inside
from quantilax.returns import recording
from quantilax.runs import pictures
from tests.conftest import tiny
from tests.contracts.test_legal_actions import Doors

GAMMA = 0.9
NAMED = {"run": "x", "seed": 0, "env_step": 1_000, "episode_seed": 0}


def recorded(env, stops=50, rollouts=16, rollout_stops=50, algorithm="iqn", **changes):
    """A recording of an agent that has learned nothing."""
    agent = tiny(algorithm, env, gamma=GAMMA).replace(**changes)
    found = recording.of_agent(agent, agent.init(jax.random.key(0)), 0, stops, rollouts, rollout_stops)
    return found._replace(facts=NAMED | found.facts)


@pytest.fixture(scope="module")
def bimodal():
    return recorded("probe/bimodal", rollouts=64)


@pytest.fixture(scope="module")
def limited():
    return recorded(envs.make("probe/time_limit", {"limit": 9}), stops=4)


@pytest.fixture(scope="module")
def doors():
    return recorded(Doors())


def test_rollouts_take_each_action_first(bimodal):
    ((risky, safe),) = bimodal.rollouts.returns
    assert_array_equal(safe, np.full(64, 0.25, np.float32))
    assert set(risky.tolist()) == {-1.0, 2.0}  # 64 draws are all alike with a probability of 1e-19
    assert (bimodal.rollouts.weight == 0).all()


def test_rollouts_go_on_from_the_state_of_the_stop():
    found = recorded("probe/terminal")
    assert_array_equal(found.steps, [0, 1])
    assert_allclose(found.rollouts.returns[:, 0], [[GAMMA] * 16, [1.0] * 16], rtol=1e-6)
    assert_allclose(found.earned, [GAMMA, 1.0])
    assert_array_equal(found.rewards, [0.0, 1.0])


def test_what_follows_a_time_limit_is_drawn_from_the_prediction(limited):
    assert_array_equal(limited.steps, [0, 4, 8])  # of nine steps every fourth, so that there are at most four
    left = 9 - limited.steps
    assert_allclose(limited.rollouts.weight, np.broadcast_to(GAMMA ** left[:, None, None], (3, 2, 16)), rtol=1e-5)
    rest = (limited.rollouts.returns - (1 - GAMMA ** left[:, None, None]) / (1 - GAMMA)) / GAMMA ** left[:, None, None]
    z = limited.quantiles[0]  # all observations are equal
    margin = z[..., -1].max() - z[..., 0].min()
    assert (rest > z.min() - margin).all()
    assert (rest < z.max() + margin).all()
    assert_allclose(limited.earned[-1], 1 + GAMMA * limited.means[0].max(), rtol=0.05)
    assert any("time limit cut this episode off" in line for line in limited.meaning)


def test_without_bootstrapping_a_time_limit_is_the_end():
    found = recorded(envs.make("probe/time_limit", {"limit": 3}), bootstrap_truncated=False)
    left = 3 - found.steps[:, None, None]
    assert_allclose(found.rollouts.returns, np.broadcast_to((1 - GAMMA**left) / (1 - GAMMA), (3, 2, 16)), rtol=1e-5)


def test_actions_that_are_not_legal_have_no_rollouts(doors):
    assert_array_equal(np.isnan(doors.rollouts.returns).all(axis=2), ~doors.legal)
    assert (doors.rollouts.returns[doors.legal] > -50).all()  # a closed door pays -100
    assert doors.legal[np.arange(len(doors.steps)), doors.taken].all()


def test_quantiles_ascend_and_give_mean_and_cvar(bimodal):
    assert bimodal.quantiles.shape == (1, 2, 50)
    assert (np.diff(bimodal.quantiles) >= 0).all()
    assert_allclose(bimodal.cvars[0], bimodal.quantiles[0, :, :5].mean(axis=1))
    assert_allclose(bimodal.means[0], bimodal.quantiles[0].mean(axis=1), rtol=1e-6)


@pytest.mark.validation
def test_a_policy_with_real_valued_actions_has_one_row():
    found = recorded("probe/regulator", algorithm="dsac", rollouts=4)
    assert found.rows == ["the policy's action"]
    assert found.rollouts.returns.shape == (5, 1, 4)
    assert any("entropy" in line for line in found.caveats)


def test_algorithms_without_quantiles_are_refused():
    with pytest.raises(ConfigError, match=r"^dqn learns expected values, no quantiles; use iqn"):
        recorded("probe/bimodal", algorithm="dqn")


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1"]
)
def test_states_of_classic_control_are_drawn(name):
    env = envs.make(name, None, [{"frame_stack": {"frames": 2}}])
    draw = pictures.classic(env)
    one, other = (draw(env.reset(jax.random.key(seed))[0]) for seed in (0, 5))
    assert (one.shape, one.dtype) == ((260, 400, 3), np.uint8)
    assert (one != other).any()
    assert pictures.classic(envs.make("probe/bimodal")) is None


def test_actions_have_names():
    names = {name: pictures.action_names(envs.make(name)) for name in ("Breakout-MinAtar", "CartPole-v1")}
    assert names == {"Breakout-MinAtar": ["nothing", "left", "right"], "CartPole-v1": ["left", "right"]}
    assert pictures.action_names(envs.make("Pendulum-v1")) is None
    assert pictures.action_names(envs.make("probe/terminal")) == ["action 0"]


# The page


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def unpacked(packed: dict) -> np.ndarray:
    words = np.frombuffer(base64.b64decode(packed["data"]), "<u2").astype(float)
    return np.where(words == inside.NONE, np.nan, packed["low"] + words * (packed["high"] - packed["low"]) / 65_534)


def test_the_page_needs_nothing_but_itself_and_has_the_numbers(doors):
    page = inside.page(doors)
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert 'lang="en"' in page
    data = data_of(page)
    span = float(np.ptp(doors.quantiles))
    assert_allclose(unpacked(data["quantiles"]), doors.quantiles.ravel(), atol=span / 65_000)
    assert_array_equal(data["legal"], doors.legal.astype(int))
    assert_array_equal(np.isnan(unpacked(data["rollouts"]["returns"])), np.isnan(doors.rollouts.returns.ravel()))
    assert data["frames"] is None
    assert "doors draws no pictures, so its observation is shown" in page
    assert_allclose(unpacked(data["observations"]), doors.observations.ravel(), atol=1e-4)
    assert "discounted sum of rewards from this step on, r₀ + 0.9 r₁" in page


def test_the_page_says_how_many_rollouts_were_cut_and_with_which_weight(limited, bimodal):
    cut = data_of(inside.page(limited))["rollouts"]
    assert_array_equal(cut["cut"], np.full((3, 2), 16))
    assert_allclose(cut["weight"], np.broadcast_to(GAMMA ** (9 - limited.steps)[:, None], (3, 2)), atol=1e-3)
    assert data_of(inside.page(bimodal))["rollouts"]["cut"] == [[0, 0]]


def test_pictures_are_kept_once_and_made_smaller_until_they_fit(bimodal, monkeypatch):
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (200, 300, 3), np.uint8) for _ in range(2)]
    found = bimodal._replace(pictures=[noise[0], noise[1], noise[0]])
    frames = data_of(inside.page(found))["frames"]
    assert frames["order"] == [0, 1, 0]
    assert (frames["width"], frames["height"], frames["small"], len(frames["images"])) == (300, 200, False, 2)
    monkeypatch.setattr(inside, "MAX_BYTES", 20_000)
    smaller = data_of(inside.page(found))["frames"]
    assert sum(map(len, smaller["images"])) < 21_000 < sum(map(len, frames["images"]))
    assert data_of(inside.page(bimodal._replace(pictures=[noise[0][:10, :10]])))["frames"]["small"]


def test_a_page_that_cannot_be_written_is_one_line(bimodal, tmp_path):
    with pytest.raises(ConfigError, match=r"^--out: .* cannot be written: .*; choose another file$"):
        inside.write(bimodal, tmp_path / "gone" / "x.html")


# The video


def test_a_video_has_a_frame_for_each_stop(doors, limited, tmp_path):
    from PIL import Image

    for found in (doors, limited):
        drawn = [np.full((10, 10, 3), 20 * t, np.uint8) for t in range(len(found.steps))]
        frames = list(filmed.frames(found._replace(pictures=drawn)))
        assert [frame.shape for frame in frames] == [(540, 900, 3)] * len(found.steps)
    assert (frames[0] != frames[1]).any()
    pictures.write_video(tmp_path / "x.gif", iter(frames), "--out")
    with Image.open(tmp_path / "x.gif") as image:
        assert (image.n_frames, image.size) == (len(frames), (900, 540))


def test_mp4_is_written_by_ffmpeg(tmp_path, monkeypatch):
    frames = [np.zeros((51, 301, 3), np.uint8)] * 3
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"x\.mp4: MP4 needs the program ffmpeg; install it, or name a \.gif$"):
        pictures.write_video(tmp_path / "x.mp4", iter(frames), "--out")
    given = tmp_path / "given"
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\necho "$@" > {given}\ncat > {given}.raw\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(pictures.shutil, "which", lambda name: "ffmpeg")
    pictures.write_video(tmp_path / "x.mp4", iter(frames), "--out")
    assert "-s 300x50" in given.read_text()
    assert (tmp_path / "given.raw").stat().st_size == 3 * 300 * 50 * 3


@pytest.mark.parametrize(
    ("name", "words"), [("x.avi", "must end with .gif or .mp4"), ("gone/x.gif", "its directory does not exist")]
)
def test_names_of_videos_are_checked_before_anything_is_played(name, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        pictures.check_video(tmp_path / name, "--out")
