"""The algorithms solve what they should, in one run each, with the settings that ship."""

from pathlib import Path

import jax
import numpy as np
import pytest

from quantilax import IQN, PQN
from quantilax.runs import load_section

pytestmark = pytest.mark.optimized

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("variant", [{}, {"n_step": 3}, {"munchausen": True}])
def test_iqn_solves_the_corridor(variant):
    algo = IQN.create(
        env="probe/corridor", total_timesteps=8_000, eval_freq=2_000, fill_buffer=500, eval_episodes=16, gamma=0.9,
        polyak=0.95, target_update_freq=1, torso_sizes=(32,), head_sizes=(32,), **variant,
    )  # fmt: skip
    _, (lengths, returns) = algo.train(jax.random.key(0))
    assert (np.asarray(returns[-1]) == 1).all()
    assert (np.asarray(lengths[-1]) == 6).all()  # the shortest way


def test_pqn_solves_the_corridor():
    algo = PQN.create(
        env="probe/corridor", total_timesteps=16_384, eval_freq=4_096, eval_episodes=16, num_envs=8, num_steps=32,
        num_minibatches=4, gamma=0.9,
    )  # fmt: skip
    _, (lengths, returns) = algo.train(jax.random.key(0))
    assert (np.asarray(returns[-1]) == 1).all()
    assert (np.asarray(lengths[-1]) == 6).all()


@pytest.mark.parametrize("section", ["dqn", "c51", "qrdqn", "iqn", "fqf", "pqn"])
def test_the_shipped_settings_solve_cartpole(section):
    algo = load_section(CONFIGS / "gymnax" / "cartpole.yaml", section).create()
    _, (_, returns) = algo.train(jax.random.key(0))
    assert returns.shape[1] == 128
    assert float(returns[-1].mean()) >= 475
