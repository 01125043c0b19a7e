"""The stock: what an episode has earned so far beyond a threshold, as part of the observation.

With the threshold b for the discounted return, the stock is `c_0 = -b` before the first step, and
`c_{t+1} = (c_t + r_t) / gamma` after each. Then `gamma^t (c_t + G_t)`, with G_t the return from
step t on, is the episode's return minus b. A policy that sees c_t can hence maximise the
expectation of `min(return - b, 0)`, which static CVaR needs.

`risk_objective` of Q-learning puts this wrapper around its environment; it has no name for YAML.
Source: Baeuerle & Ott (2011), https://doi.org/10.1007/s00186-011-0367-0, and Pires et al. (2025),
https://arxiv.org/abs/2501.13028, where the stock has its name.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from quantilax import pytree
from quantilax.envs.wrappers import Wrapper
from quantilax.errors import ConfigError
from quantilax.types import Box, Observation, TimeStep


@pytree.dataclass
class Stock(Wrapper):
    """Appends k stocks to the last axis of each observation: to a vector, or as channels.

    Stocks from `low` to `high` are shown as numbers from -1 to 1, and others are clipped. That
    loses nothing if no return from any state lies outside of -high .. -low. The first stocks of an
    episode are drawn uniformly; several are sorted, the largest first.
    """

    gamma: float = pytree.field(0.99, "discount per step", gt=0, le=1)
    low: float = pytree.field(-1.0, "smallest stock, minus the largest return")
    high: float = pytree.field(1.0, "largest stock, minus the smallest return")
    number: int = pytree.field(1, "k, number of stocks", ge=1)

    @property
    def observation_space(self) -> Box:
        """Numbers in float32, k more along the last axis."""
        space = self.env.observation_space
        if not space.shape:
            raise ConfigError(f"risk_objective: {self.name} observes one number; add the wrapper flatten")
        if jnp.issubdtype(space.number, jnp.integer):
            raise ConfigError(
                f"risk_objective: the observations of {self.name} are whole numbers, to which a stock cannot be"
                " appended; add the wrapper normalize or one_hot"
            )
        low, high = (
            np.concatenate(
                [np.broadcast_to(bound, space.shape), np.full((*space.shape[:-1], self.number), end)], axis=-1
            ).astype(np.float32)
            for bound, end in ((space.low, -1), (space.high, 1))
        )
        return Box((*space.shape[:-1], space.shape[-1] + self.number), jnp.float32, low, high)

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode with random stocks."""
        key, key_stock = jax.random.split(key)
        state, obs, *legal = self.env.reset(key)
        c = self.draw(key_stock)
        return ((state, c), self.shown(obs, c), *legal)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        key, key_stock = jax.random.split(key)
        inner, c = state
        inner, told = self.env.step(key, inner, action)
        after = self.after(c, told.reward)
        following = jnp.where(told.terminated | told.truncated, self.draw(key_stock), after)
        told = told._replace(obs=self.shown(told.obs, following), next_obs=self.shown(told.next_obs, after))
        return (inner, following), told

    def begin(self, state: Any, obs: Observation, c: Float[Array, "k"]) -> tuple[Any, Observation]:
        """Return a state and its observation with these stocks instead."""
        return (state[0], c), self.shown(obs[..., : -self.number], c)

    def draw(self, key: Key[Array, ""], *shape: int) -> Float[Array, "*shape k"]:
        """Draw stocks, the largest first."""
        u = jax.random.uniform(key, (*shape, self.number))
        return self.low + (self.high - self.low) * -jnp.sort(-u, axis=-1)

    def after(
        self, c: Float[Array, "*batch k"], reward: Float[Array, "*#batch"], steps: Any = 1
    ) -> Float[Array, "*batch k"]:
        """Return the stocks after steps with a discounted sum of rewards."""
        return jnp.clip((c + reward) / self.gamma**steps, self.low, self.high)

    def shown(self, obs: Observation, c: Float[Array, "k"]) -> Float[Array, "*obs"]:
        """Return an observation with these stocks appended."""
        entries = (2 * c - (self.low + self.high)) / (self.high - self.low)
        entries = jnp.broadcast_to(entries, (*obs.shape[:-1], self.number))
        return jnp.concatenate([jnp.asarray(obs, jnp.float32), jnp.asarray(entries, jnp.float32)], axis=-1)

    def of(self, obs: Observation) -> Float[Array, "k"]:
        """Return the stocks that an observation shows."""
        entries = obs.reshape(-1, obs.shape[-1])[0, -self.number :]
        return (entries * (self.high - self.low) + (self.low + self.high)) / 2
