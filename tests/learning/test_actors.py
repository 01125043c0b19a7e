"""Actors on a bandit whose best action is known, and the distribution that a critic learns of a regulator's return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import ALGORITHMS, Box, pytree
from quantilax.agent import create
from quantilax.envs.probes import Regulator
from quantilax.types import TimeStep
from tests.conftest import each


@pytree.dataclass
class Bandit:
    """One step that pays 1 - ((a - best) / 3)^2, for actions from -2 to 4."""

    best: float = pytree.field(2.5, "the action that pays most")

    name = "bandit"
    observation_space = Box((1,))
    action_space = Box((1,), low=-2.0, high=4.0)
    max_episode_steps = 1

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(self, key, state, action):
        reward = 1 - (((action - self.best) / 3) ** 2).sum()
        return state, TimeStep(jnp.ones(1), jnp.ones(1), reward, jnp.array(True), jnp.array(False))


SHARED = dict(eval_episodes=1, learning_rate=5e-3, learning_rate_end=0.0, torso_sizes=(32, 32))
REPLAYED = SHARED | dict(
    total_timesteps=2_000, eval_freq=400, num_envs=8, num_epochs=4, buffer_size=2_000, fill_buffer=200, batch_size=64,
    polyak=0.98,
)  # fmt: skip
SETTINGS = {
    "td3": REPLAYED | dict(num_critics=1, num_epochs=8, exploration_noise=0.3),
    "sac": REPLAYED | dict(temperature=0.05),
    "ppo": SHARED | dict(
        learning_rate=1e-2, torso_sizes=(32,), total_timesteps=5_120, eval_freq=2_560, num_envs=16, num_steps=8,
        num_minibatches=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", each(SETTINGS, first=("sac",)))  # the others solve the regulator in `make test`
def test_the_best_action_of_a_bandit_is_found(name):
    """Within a fortieth of the box."""
    algo = create(ALGORITHMS[name], Bandit(), SETTINGS[name])
    state, record = algo.records(jax.random.key(0))
    np.testing.assert_allclose(algo.policy(state)(jnp.ones(1), jax.random.key(0)), 2.5, atol=0.15)
    np.testing.assert_allclose(record.returns[-1], 1, atol=0.0025)
    if name == "sac":  # the temperature steers the entropy to the target, -1 for one component
        np.testing.assert_allclose(record.metrics.entropy[-1], -1, atol=0.2)
    if name == "td3":  # its loss is -Q of the best action, which pays 1
        np.testing.assert_allclose(record.metrics.actor_loss[-1], -1, atol=0.1)


@pytest.mark.validation
@pytest.mark.optimized
def test_quantiles_of_a_critic_are_those_of_the_regulators_return():
    """N(-p x^2, s^2 / (1 - gamma^2)), whose standard deviation is 0.46; within a quarter of that on average."""
    env, gamma = Regulator(), 0.9
    algo = create(ALGORITHMS["td3"], env, dict(
        head="quantile", num_quantiles=16, kappa=0.01, num_critics=1, target_noise=0.0, total_timesteps=12_000,
        eval_freq=12_000, eval_episodes=8, num_envs=8, num_epochs=6, buffer_size=12_000, fill_buffer=500, batch_size=64,
        learning_rate=3e-3, learning_rate_end=0.0, polyak=0.98, gamma=gamma, torso_sizes=(32, 32), weight_averaging=0.99,
    ))  # fmt: skip
    state, _ = algo.train(jax.random.key(0))
    tau = (np.arange(16) + 0.5) / 16
    x = np.linspace(-0.9, 0.9, 13, dtype=np.float32)
    Z = np.asarray(algo.quantiles(state, x[:, None], tau))[..., 0]
    exact = np.stack([env.quantile_function(jnp.asarray(tau), gamma, x)[:, 0] for x in x])
    spread = 0.2 / (1 - gamma**2) ** 0.5
    assert np.abs(Z - exact).mean() < spread / 4
    np.testing.assert_allclose((Z[:, 12] - Z[:, 3]).mean(), (exact[:, 12] - exact[:, 3]).mean(), rtol=0.2)
