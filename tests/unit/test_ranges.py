"""Both sides of each rule's threshold; healthy configs are within all of them."""

import warnings
from pathlib import Path

import pytest

from quantilax import ALGORITHMS, Discrete, runs
from quantilax.agent import ConfigWarning, create
from quantilax.checks.ranges import ranges
from tests.conftest import tiny

SOUND = dict(
    total_timesteps=100_000,
    eval_freq=5_000,
    eval_episodes=10,
    num_envs=10,
    num_epochs=2,
    buffer_size=20_000,
    fill_buffer=1_000,
    batch_size=64,
    target_update_freq=32,
)
"""Fields of IQN; everything that the rules look at is well within its range."""


@pytest.mark.parametrize(
    ("changes", "field", "severity", "words"),
    [
        # 2 / 10 * 320 = 64
        (dict(batch_size=320), None, None, ""),
        (dict(batch_size=321), "samples_replayed_per_env_step", "warning", "64.2 samples are replayed per environment step"),
        (dict(batch_size=16, num_envs=32, total_timesteps=102_400), None, None, ""),  # 2 / 32 * 16 = 1
        (dict(batch_size=16, num_envs=33), "samples_replayed_per_env_step", "warning", "0.969697 samples"),
        # 99,000 steps of learning, 5 of them per gradient step
        (dict(target_update_freq=1_980), None, None, ""),
        (dict(target_update_freq=1_981), "target_time_constant_env_steps", "warning", "fits 10.0 times"),
        (dict(target_update_freq=19_799), "target_time_constant_env_steps", "warning", "fits 1.0 times"),
        (dict(target_update_freq=19_800), "target_time_constant_env_steps", "error", "stays near its initial weights"),
        (dict(target_update_freq=1, polyak=1.0), "target_time_constant_env_steps", "error", "of inf environment steps"),
        (dict(target_update_freq=5), None, None, ""),
        (dict(target_update_freq=4), "target_time_constant_updates", "warning", "within 4 gradient steps"),
        (dict(exploration_fraction=0.5), None, None, ""),
        (dict(exploration_fraction=0.51), "epsilon_end_at_env_step", "warning", "at step 51,000 of 100,000"),
        (dict(exploration_fraction=0.51, eps_start=0.1, eps_end=0.1), None, None, ""),
        (dict(exploration_fraction=0.01), "epsilon_end_at_env_step", "warning", "within the warm-up of 1,000 steps"),
        (dict(exploration_fraction=0.011), None, None, ""),
        (dict(eval_episodes=9), "eval_episodes", "warning", "a mean over 9 episodes"),
        (dict(fill_buffer=20_000, exploration_fraction=0.3), None, None, ""),
        (dict(fill_buffer=20_001, exploration_fraction=0.3), "warmup_steps", "warning", "20,010 of 100,000 steps, 20%"),
        (dict(buffer_size=5_000), None, None, ""),  # 500 steps of each of ten environments
        (dict(buffer_size=4_999), "buffer_size", "warning", "cannot hold one episode of the maximum length, 500 steps, of"),
        (dict(buffer_size=99_999), None, None, ""),
        (dict(buffer_size=100_000), "buffer_size", "note", "the buffer never drops"),
        (dict(learning_rate=0.0), "learning_rate", "error", "nothing is learned"),
        (dict(learning_rate=0.01), None, None, ""),
        (dict(learning_rate=0.011), "learning_rate", "warning", "above 0.01"),
        (dict(learning_rate=3e-5), None, None, ""),  # 3e-5 * 19,800 = 0.594
        (dict(learning_rate=3e-5, learning_rate_end=0.5), "learning_rate", "warning", "about 0.45 in all"),
        (dict(gamma=1.0), "gamma", "warning", "has no bound"),
        (dict(gamma=0.9997), None, None, ""),  # 3,333 steps of at most 500
        (dict(gamma=0.9999), "gamma", "note", "looks 10,000 steps ahead and no episode is longer than 500"),
        (dict(gamma=0.961), None, None, ""),  # 25.6 steps of at most 500
        (dict(gamma=0.95), "gamma", "note", "looks 20 steps ahead and episodes may take 500"),
    ],
    ids=lambda x: " ".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)  # fmt: skip
def test_each_rule_speaks_beyond_its_border_and_not_before_and_its_change_mends_what_it_found(
    changes, field, severity, words
):
    def found(**more):
        with warnings.catch_warnings(action="ignore", category=ConfigWarning):
            return list(ranges(create(ALGORITHMS["iqn"], "CartPole-v1", {**SOUND, **changes, **more})))

    told = found()
    assert [(f.field, f.severity, f.evidence) for f in told] == ([(field, severity, "by arithmetic")] if field else [])
    assert all(words in f.finding and f.remedy for f in told)
    for change in (f.change for f in told if f.change):
        assert found(**change) == []
    without = {"eval_episodes", "warmup_steps"} | ({"buffer_size", "gamma"} if severity == "note" else set())
    assert all(f.change or f.field in without for f in told)


@pytest.mark.parametrize("polyak", [0.3, 0.9999, 1.0])
def test_a_soft_target_that_is_too_fast_or_too_slow_gets_another_polyak(polyak):
    agent = create(ALGORITHMS["iqn"], "CartPole-v1", {**SOUND, "target_update_freq": 1, "polyak": polyak})
    (told,) = ranges(agent)
    assert list(told.change) == ["polyak"]
    assert list(ranges(agent.replace(**told.change))) == []


def test_the_shipped_sections_and_the_defaults_are_within_every_range():
    path = Path(__file__).parents[2] / "configs" / "gymnax" / "cartpole.yaml"
    for section in ("iqn", "iqn_research", "pqn"):
        assert list(ranges(runs.load_section(path, section).create())) == []
    for algorithm in ALGORITHMS.values():
        env = "CartPole-v1" if Discrete in algorithm.actions else "Pendulum-v1"
        assert all(f.severity == "note" for f in ranges(create(algorithm, env, {})))


def test_a_config_without_the_names_that_rules_look_for_is_left_alone():
    assert [f.field for f in ranges(tiny("pqn", eval_episodes=10, total_timesteps=25_600, eval_freq=12_800))] == []
