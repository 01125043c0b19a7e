"""Agents learn the shortest way through the corridor; no claim depends on how it is compiled."""

import jax
import numpy as np
import pytest

from quantilax import IQN, PQN

REPEATED = pytest.mark.validation


@pytest.mark.parametrize(
    "variant",
    [{}, pytest.param({"n_step": 3}, marks=REPEATED), pytest.param({"munchausen": True}, marks=REPEATED)],
)
def test_iqn_solves_the_corridor(variant):
    algo = IQN.create(
        env="probe/corridor", total_timesteps=8_000, eval_freq=2_000, fill_buffer=500, eval_episodes=16, gamma=0.9,
        polyak=0.95, target_update_freq=1, torso_sizes=(32,), head_sizes=(32,), num_quantile_samples=8, num_cosines=16,
        **variant,
    )  # fmt: skip
    _, (lengths, returns) = algo.train(jax.random.key(0))
    assert (np.asarray(returns[-1]) == 1).all()
    assert (np.asarray(lengths[-1]) == 6).all()  # the shortest way


@pytest.mark.parametrize(
    "head",
    [{}, pytest.param({"head": "hl_gauss", "num_atoms": 21, "v_min": 0.0, "v_max": 1.0}, marks=REPEATED)],
)
def test_pqn_solves_the_corridor(head):
    algo = PQN.create(
        env="probe/corridor", total_timesteps=16_384, eval_freq=4_096, eval_episodes=16, num_envs=8, num_steps=32,
        num_minibatches=4, gamma=0.9, torso_sizes=(32,), **head,
    )  # fmt: skip
    _, (lengths, returns) = algo.train(jax.random.key(0))
    assert (np.asarray(returns[-1]) == 1).all()
    assert (np.asarray(lengths[-1]) == 6).all()
