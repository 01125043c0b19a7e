"""Games of the Arcade Learning Environment: frames and rewards of the library, protocols, lives, stacks stored once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("ale_py", reason="the extra 'atari' is not installed")
pytest.importorskip("cv2", reason="the extra 'atari' is not installed")

from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from quantilax import IQN, ConfigError, Discrete, envs, train
from quantilax.learning import rollout
from quantilax.simulators import atari

PLAIN = dict(sticky=0.0, idle_frames=0, fire_first=False, life_loss=False, frame_skip=4, full_action_space=False)


def test_frames_and_rewards_are_those_of_the_library_over_a_thousand_steps():
    theirs = AtariVectorEnv(
        "breakout", 1, autoreset_mode=AutoresetMode.NEXT_STEP, noop_max=0, use_fire_reset=False, reward_clipping=False
    )
    ours = atari.make("breakout", **PLAIN)
    obs, _ = ours.reset(0)
    their_obs, _ = theirs.reset(seed=0)
    assert_array_equal(obs[..., 0], their_obs[0, -1])
    actions, rewards = np.random.default_rng(0).integers(4, size=1000), 0.0
    for action in actions:
        told = ours.step(action)
        their_obs, reward, terminated, _, _ = theirs.step(np.array([action]))
        if not told.terminated:  # there the library mixes in an older frame
            assert_array_equal(told.obs[..., 0], their_obs[0, -1])
        assert (told.reward, told.terminated) == (reward[0], terminated[0])
        rewards += told.reward
        if told.terminated:
            ours.reset(0)
            theirs.reset(seed=np.array([0]))  # else the library ignores the next action
    assert rewards > 3


@pytest.mark.parametrize("beginning", [{}, {"fire_first": True}, {"idle_frames": 30, "fire_first": True}])
def test_an_episode_is_determined_by_its_seed_and_its_actions_whatever_was_played_before(beginning):
    game = atari.make("breakout", **{**PLAIN, "sticky": 0.25, **beginning})
    actions = np.random.default_rng(0).integers(4, size=60)

    def frames(seed):
        return np.stack([game.reset(seed)[0], *(game.step(action).obs for action in actions)])

    first = frames(5)
    other = frames(6)
    assert (first != other).any()
    assert_array_equal(frames(5), first)
    game.reset(5)
    opening = game.picture()
    game.step(1)
    game.reset(5)
    assert_array_equal(game.picture(), opening)


def test_sticky_actions_repeat_a_quarter_of_the_frames():
    game = atari.make("pong", **{**PLAIN, "sticky": 0.25})
    game.reset(0)
    taken = []
    act = game._ale.act

    class Watched:
        def __getattr__(self, name):
            return getattr(ale, name)

        def act(self, action):
            taken.append(action)
            return act(action)

    ale, game._ale = game._ale, Watched()
    for i in range(500):
        game.step(2 + i % 2)
    wanted = np.repeat([game.actions[2 + i % 2] for i in range(500)], 4)
    repeats = np.mean([one != other for one, other in zip(taken, wanted, strict=True)])
    # An action lasts from the frame before its own with probability 1/4, from two frames before with 1/16, ...
    assert abs(repeats - np.mean([0.25**k for k in range(1, 5)])) < 0.03


def test_the_preset_dopamine_plays_whole_games_and_envpool_ends_episodes_at_lost_lives():
    assert envs.make("atari/Breakout").action_space == Discrete(4)
    assert envs.make("atari/Breakout", {"full_action_space": True}).action_space == Discrete(18)
    env = envs.make("atari/Breakout", {"preset": "envpool"})
    policy = rollout.random_action(env)
    lengths, _ = jax.jit(lambda key: rollout.evaluate(env, policy, key, 4))(jax.random.key(0))
    assert lengths.min() > 100  # five lives, where one lasts for some 30 actions

    def one(now, key):
        after, transition = rollout.step(env, policy, now, key)
        return after, (transition, after.state[0].clock)

    now = rollout.reset(env, jax.random.split(jax.random.key(0), 2))
    _, (transitions, clock) = jax.jit(lambda now: jax.lax.scan(one, now, jax.random.split(jax.random.key(1), 300)))(now)
    ended = np.asarray(transitions.terminated)
    assert ended.sum() > 8
    assert (np.asarray(clock)[ended] > 0).sum() > (np.asarray(clock)[ended] == 0).sum()  # most games go on


def test_curves_show_scores_and_learning_sees_clipped_rewards():
    env = envs.make("atari/SpaceInvaders", {"sticky": 0})  # an invader is worth 5 to 30
    policy = rollout.random_action(env)
    episodes = jax.jit(lambda key: rollout.watch(env, policy, key, 2, 1.0))(jax.random.key(0))
    assert (np.asarray(episodes.returns) >= 5 * np.asarray(episodes.discounted)).all()
    assert episodes.discounted.min() > 0


def test_the_replay_stores_each_frame_once_within_a_tenth():
    env = envs.make("atari/Pong")
    settings = dict(num_envs=1, fill_buffer=100, total_timesteps=1000, eval_freq=500, torso="nature", torso_sizes=())
    algo = IQN.create(env=env, buffer_size=1_000_000, **settings)
    size = train.state_bytes(*algo.arguments())["replay"]
    assert 84 * 84 * 1e6 < size < 1.1 * 84 * 84 * 1e6


def test_iqn_trains_on_a_game_and_its_evaluations_end():
    algo = IQN.create(
        env="atari/Boxing",
        env_args={"max_episode_steps": 40},
        torso="nature",
        torso_sizes=(),
        head_sizes=(16,),
        total_timesteps=48,
        eval_freq=48,
        eval_episodes=2,
        num_envs=2,
        fill_buffer=40,
        buffer_size=200,
        batch_size=16,
        num_cosines=4,
        num_tau_samples=2,
        num_tau_prime_samples=2,
        num_quantile_samples=2,
    )
    state, (lengths, _) = algo.train(jax.random.key(0))
    assert (lengths == 40).all()
    assert state.replay.observations.shape[2:] == (84, 84, 1)
    assert jnp.unique(state.replay.observations).size > 4


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("atari/Pongg", {}, "unknown environment 'atari/Pongg'; did you mean 'atari/Pong'"),
        ("atari/Pong", {"preset": "dqn"}, "preset: unknown preset 'dqn'; known presets: dopamine, envpool"),
        ("atari/Pong", {"stickyness": 0.1}, "env_args: unknown field 'stickyness'; did you mean 'sticky'"),
        ("atari/Pong", {"sticky": 2}, "env_args: sticky: "),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        envs.make(name, arguments)


def test_a_rom_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(atari.roms, "get_rom_path", lambda game: None)
    with pytest.raises(ConfigError, match="there is no ROM of tennis; install ale-py again"):
        envs.make("atari/Tennis")
