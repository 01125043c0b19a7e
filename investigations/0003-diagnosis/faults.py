"""What is trained: healthy settings, and the faults put into them one at a time."""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from quantilax import IQN, Agent, pytree
from quantilax.envs import make
from quantilax.types import Box, Discrete, Environment, TimeStep


@pytree.dataclass
class Altered:
    """An environment with its rewards scaled and, where `limit_is_death` is 1, its time limit told as an end."""

    env: Any
    reward_scale: float = pytree.field(1.0, "factor of each reward")
    limit_is_death: float = pytree.field(0.0, "1: what is cut off is called terminated")

    @property
    def name(self) -> str:
        """That of the environment."""
        return str(self.env.name)

    @property
    def observation_space(self) -> Box:
        """That of the environment."""
        space: Box = self.env.observation_space
        return space

    @property
    def action_space(self) -> Discrete:
        """That of the environment."""
        space: Discrete = self.env.action_space
        return space

    @property
    def max_episode_steps(self) -> Int[Array, ""] | int:
        """That of the environment."""
        limit: Int[Array, ""] | int = self.env.max_episode_steps
        return limit

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Begin an episode."""
        begun: tuple[PyTree, PyTree] = self.env.reset(key)
        return begun

    def step(self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]) -> tuple[PyTree, TimeStep]:
        """Take one step."""
        state, told = self.env.step(key, state, action)
        dies = told.truncated & (jnp.asarray(self.limit_is_death) > 0)
        return state, told._replace(
            reward=told.reward * self.reward_scale,
            terminated=told.terminated | dies,
            truncated=told.truncated & ~dies,
        )


BASE: dict[str, Any] = dict(
    signals=True,
    total_timesteps=12_000,
    eval_freq=1_000,
    eval_episodes=32,
    num_envs=10,
    num_epochs=2,
    buffer_size=10_000,
    fill_buffer=500,
    batch_size=64,
    learning_rate=1e-3,
    max_grad_norm=10.0,
    num_tau_samples=8,
    num_tau_prime_samples=8,
    num_quantile_samples=8,
    target_update_freq=32,
    eps_end=0.04,
    exploration_fraction=0.2,
    gamma=0.98,
    torso_sizes=(32, 32),
    head_sizes=(32,),
    num_cosines=32,
)
"""IQN on CartPole-v1 cut off after 200 steps, rewards of 0.05: about a second a run, and a return near 2.4 to learn."""
REWARD_SCALE = 0.05


def cartpole(limit: int = 200, **altered: float) -> Environment:
    """CartPole-v1 with another time limit."""
    env = make("CartPole-v1")
    params = env.params.replace(max_steps_in_episode=jnp.int32(limit))
    return Altered(**{"env": pytree.replace(env, params=params), "reward_scale": REWARD_SCALE, **altered})


class Variant(NamedTuple):
    """Settings that are trained with several seeds."""

    name: str
    cause: str | None
    """What `quantilax diagnose` should name; None: nothing is wrong."""
    hyperparameters: dict[str, Any]
    altered: dict[str, float] = {}  # noqa: RUF012
    """Of the environment; see `Altered`."""
    env: str = "CartPole-v1"
    limit: int = 200

    def agent(self) -> Agent:
        """Build the agent."""
        env = cartpole(self.limit, **self.altered) if self.env == "CartPole-v1" else self.env
        with warnings.catch_warnings(action="ignore"):  # some are meant to mislead
            return IQN.create(env, **{**BASE, **self.hyperparameters})


FAULTS = [
    Variant("learning rate x30", "learning_rate", {"learning_rate": 3e-2}),
    Variant("target never updated", "target", {"polyak": 1.0}),
    Variant("time limit as death", "time_limit", {}, {"limit_is_death": 1.0}),
    Variant("no exploration", "exploration", {"eps_start": 0.0, "eps_end": 0.0}),
    Variant("kappa / 1000", "kappa", {"kappa": 1e-3}),
    Variant("kappa x100", "kappa", {"kappa": 100.0}),
    Variant("Adam eps 1", "adam_eps", {"adam_eps": 1.0}),
    Variant("rewards x100", "reward_scale", {}, {"reward_scale": 100 * REWARD_SCALE}),
    Variant("rewards x20", "reward_scale", {}, {"reward_scale": 20 * REWARD_SCALE}),
    Variant("clipping to nothing", "clipping", {"max_grad_norm": 1e-5}),
    Variant("batch of 1", "noise", {"batch_size": 1}),
    Variant("tiny buffer", "buffer", {"buffer_size": 100}),
]
"""One fault each."""

MILDER = [
    Variant("learning rate x10", "learning_rate", {"learning_rate": 1e-2}),
    Variant("target every 3,000 steps", "target", {"target_update_freq": 3_000}),
    Variant("epsilon 0.005", "exploration", {"eps_start": 0.005, "eps_end": 0.005}),
    Variant("kappa / 30", "kappa", {"kappa": 0.03}),
    Variant("kappa x10", "kappa", {"kappa": 10.0}),
    Variant("Adam eps 0.03", "adam_eps", {"adam_eps": 0.03}),
    Variant("rewards x10", "reward_scale", {}, {"reward_scale": 10 * REWARD_SCALE}),
    Variant("clipping to 0.001", "clipping", {"max_grad_norm": 1e-3}),
    Variant("batch of 4", "noise", {"batch_size": 4}),
    Variant("buffer of 1,000", "buffer", {"buffer_size": 1_000}),
]
"""The same faults, less of them: how far out a setting must be."""

HEALTHY = [
    Variant("base", None, {}),
    Variant("learning rate / 2", None, {"learning_rate": 5e-4}),
    Variant("learning rate falls", None, {"learning_rate_end": 0.0}),
    Variant("epsilon stays at 0.1", None, {"eps_start": 0.1, "eps_end": 0.1}),
    Variant("kappa 0.3", None, {"kappa": 0.3}),
    Variant("clipping at 0.1", None, {"max_grad_norm": 0.1}),
    Variant("Adam eps 1e-5", None, {"adam_eps": 1e-5}),
    Variant("gamma 0.97", None, {"gamma": 0.97}),
    Variant("rewards x3", None, {}, {"reward_scale": 3 * REWARD_SCALE}),
    Variant("batch of 32", None, {"batch_size": 32}),
    Variant("batch of 128", None, {"batch_size": 128}),
    Variant("soft target", None, {"target_update_freq": 1, "polyak": 0.97}),
    Variant("own rewards, normalised", None, {"normalize_rewards": True}, {"reward_scale": 1.0}),
    Variant("LayerNorm", None, {"layer_norm": True}),
    Variant("16 fractions, double", None, {"num_tau_samples": 16, "num_tau_prime_samples": 16, "double": True}),
    Variant("buffer of 3,000", None, {"buffer_size": 3_000}),
    Variant("corridor", None, {"total_timesteps": 4_000, "eval_freq": 500}, env="probe/corridor"),
    Variant("Catch", None, {"total_timesteps": 6_000, "eval_freq": 500}, env="Catch-bsuite"),
]
"""Settings of which each learns."""

VARIANTS = [*FAULTS, *MILDER, *HEALTHY]
