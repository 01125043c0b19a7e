"""Probes: tiny environments with known return distributions, to test algorithms on.

| name | what an algorithm must do to pass |
|---|---|
| `probe/bimodal` | learn the distribution, not only its mean |
| `probe/geometric` | bootstrap: the return's distribution only results from many steps |
| `probe/time_limit` | not treat a time limit as death: the value is 1 / (1 - gamma) |
| `probe/terminal` | not bootstrap over the end of an episode, nor from the reset after it |
| `probe/corridor` | assign credit over several steps, explore, control |
| `probe/regulator` | control by real-valued actions, and learn the distribution of their returns |

Each probe is a pytree whose floats are leaves. `quantile_function(tau, gamma)` is the true quantile
function of the return from a first observation; for `probe/regulator` that of the optimal policy
from x = 1. You can test your own algorithms with them too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from quantilax import pytree
from quantilax.types import Box, Discrete, Environment, TimeStep


def _time_step(
    obs: Float[Array, "D"],
    next_obs: Float[Array, "D"],
    reward: Array | float,
    terminated: Array | bool,
    truncated: Array | bool,
) -> TimeStep:
    return TimeStep(
        obs=obs,
        next_obs=next_obs,
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.asarray(truncated, bool),
    )


@pytree.dataclass
class Bimodal:
    """One step: action 0 pays `low` or `high` with equal probability, action 1 pays `safe`."""

    low: float = pytree.field(-1.0, "reward of the bad outcome of action 0")
    high: float = pytree.field(2.0, "reward of the good outcome of action 0")
    safe: float = pytree.field(0.25, "reward of action 1")

    name = "probe/bimodal"
    observation_space = Box((1,))
    action_space = Discrete(2)
    max_episode_steps = 1

    def quantile_function(self, tau: Float[Array, "N"], gamma: float) -> Float[Array, "N A"]:
        """True quantiles of the return of each action."""
        risky = jnp.where(tau <= 0.5, jnp.minimum(self.low, self.high), jnp.maximum(self.low, self.high))
        return jnp.stack([risky, jnp.full_like(tau, self.safe)], axis=-1)

    def reset(self, key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "1"]]:
        """Begin an episode."""
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(
        self, key: Key[Array, ""], state: Int[Array, ""], action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], TimeStep]:
        """Pay, and end the episode."""
        risky = jnp.where(jax.random.bernoulli(key), self.high, self.low)
        reward = jnp.where(action == 0, risky, self.safe)
        return state, _time_step(jnp.ones(1), jnp.ones(1), reward, True, False)


@pytree.dataclass
class Geometric:
    """Each step pays 1, and ends the episode with probability `p`.

    The return is (1 - gamma^L) / (1 - gamma), with L geometric.
    """

    p: float = pytree.field(0.3, "probability that a step is the last", ge=0.01, le=1)

    name = "probe/geometric"
    observation_space = Box((1,))
    action_space = Discrete(1)
    max_episode_steps = 10_000

    def quantile_function(self, tau: Float[Array, "N"], gamma: float) -> Float[Array, "N A"]:
        """True quantiles of the return of the only action: P(L <= n) = 1 - (1 - p)^n."""
        length = jnp.maximum(jnp.ceil(jnp.log1p(-tau) / jnp.log1p(-jnp.asarray(self.p)) - 1e-4), 1)
        return ((1 - gamma**length) / (1 - gamma))[:, None]

    def reset(self, key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "1"]]:
        """Begin an episode."""
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(
        self, key: Key[Array, ""], state: Int[Array, ""], action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], TimeStep]:
        """Pay 1; end with probability p."""
        return state, _time_step(jnp.ones(1), jnp.ones(1), 1.0, jax.random.bernoulli(key, self.p), False)


@pytree.dataclass
class TimeLimit:
    """Each step pays 1, forever; episodes are cut off every `limit` steps.

    Time is not observed.
    """

    limit: int = pytree.field(4, "steps before an episode is cut off", ge=1)

    name = "probe/time_limit"
    observation_space = Box((1,))
    action_space = Discrete(2)

    @property
    def max_episode_steps(self) -> int:
        """The time limit."""
        return self.limit

    def quantile_function(self, tau: Float[Array, "N"], gamma: float) -> Float[Array, "N A"]:
        """1 / (1 - gamma) for every action."""
        return jnp.full((len(tau), 2), 1 / (1 - gamma))

    def reset(self, key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "1"]]:
        """Begin an episode."""
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(
        self, key: Key[Array, ""], state: Int[Array, ""], action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], TimeStep]:
        """Pay 1; cut off at the limit."""
        truncated = state + 1 >= self.limit
        return jnp.where(truncated, 0, state + 1), _time_step(jnp.ones(1), jnp.ones(1), 1.0, False, truncated)


@pytree.dataclass
class Terminal:
    """Two steps: the first pays 0, the second pays `reward`, then the episode ends.

    They are observed as (1, 0) and (0, 1), and the end as (0, 0).
    """

    reward: float = pytree.field(1.0, "what the second step pays")

    name = "probe/terminal"
    observation_space = Box((2,))
    action_space = Discrete(1)
    max_episode_steps = 2

    def quantile_function(self, tau: Float[Array, "N"], gamma: float) -> Float[Array, "N A"]:
        """`gamma` times the reward."""
        return jnp.full((len(tau), 1), gamma * self.reward)

    def reset(self, key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "2"]]:
        """Begin an episode."""
        return jnp.zeros((), jnp.int32), jax.nn.one_hot(0, 2)

    def step(
        self, key: Key[Array, ""], state: Int[Array, ""], action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], TimeStep]:
        """Go on; pay at the end."""
        last = state == 1
        next_obs = jax.nn.one_hot(state + 1, 2)  # zeros at the end
        obs = jnp.where(last, jax.nn.one_hot(0, 2), next_obs)
        return jnp.where(last, 0, 1), _time_step(obs, next_obs, jnp.where(last, self.reward, 0.0), last, False)


@pytree.dataclass
class Corridor:
    """A row of `cells` cells. Action 1 goes right, action 0 left; leaving at the right end pays 1.

    An episode begins in the leftmost cell. The optimal return is 1 and takes `cells` steps; an
    episode is cut off after 4 `cells` steps.
    """

    cells: int = pytree.field(6, "length of the corridor", ge=2)

    name = "probe/corridor"
    action_space = Discrete(2)

    @property
    def observation_space(self) -> Box:
        """One-hot position."""
        return Box((self.cells,))

    @property
    def max_episode_steps(self) -> int:
        """The time limit."""
        return 4 * self.cells

    def quantile_function(self, tau: Float[Array, "N"], gamma: float) -> Float[Array, "N A"]:
        """Of the optimal policy: gamma^(cells - 1) to the right, one step later to the left.

        The first step to the left leaves the position as it is.
        """
        right = jnp.full_like(tau, gamma ** (self.cells - 1))
        return jnp.stack([gamma * right, right], axis=-1)

    def reset(self, key: Key[Array, ""]) -> tuple[tuple[Array, Array], Float[Array, "cells"]]:
        """Begin an episode in the leftmost cell."""
        return (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), jax.nn.one_hot(0, self.cells)

    def step(
        self, key: Key[Array, ""], state: tuple[Array, Array], action: Int[Array, ""]
    ) -> tuple[tuple[Array, Array], TimeStep]:
        """Go one cell; leave at the right end."""
        cell, t = state
        cell = jnp.maximum(cell + jnp.where(action == 1, 1, -1), 0)
        terminated = cell == self.cells
        truncated = (t + 1 >= self.max_episode_steps) & ~terminated
        done = terminated | truncated
        next_obs = jax.nn.one_hot(cell, self.cells)
        obs = jnp.where(done, jax.nn.one_hot(0, self.cells), next_obs)
        reward = jnp.where(terminated, 1.0, 0.0)
        return (jnp.where(done, 0, cell), jnp.where(done, 0, t + 1)), _time_step(
            obs, next_obs, reward, terminated, truncated
        )


@pytree.dataclass
class Regulator:
    """A linear-quadratic regulator: `x' = x + b u`, with the reward `-(x^2 + c u^2) + s N(0, 1)`.

    Episodes begin at x ~ U(-1, 1) and are cut off every `limit` steps. The optimal action is
    `u = -k x`, which by default lies within the bounds of -1 and 1. Its return has the
    distribution `N(-p x^2, s^2 / (1 - gamma^2))`; `solution` gives p and k.
    """

    b: float = pytree.field(1.0, "effect of the action")
    c: float = pytree.field(1.0, "cost of the action", gt=0)
    noise: float = pytree.field(0.2, "s, standard deviation of the reward", ge=0)
    limit: int = pytree.field(5, "steps before an episode is cut off", ge=1)

    name = "probe/regulator"
    observation_space = Box((1,))
    action_space = Box((1,), low=-1.0, high=1.0)

    @property
    def max_episode_steps(self) -> int:
        """The time limit."""
        return self.limit

    def solution(self, gamma: float) -> tuple[float, float]:
        """Return p and k of the optimal value -p x^2 and action -k x.

        p solves the Riccati equation `p = 1 + g p - (g p b)^2 / (c + g p b^2)`, a quadratic one.
        """
        b, c, g = self.b, self.c, gamma
        half = (g * b**2 - c * (1 - g)) / 2
        p = (half + (half**2 + g * b**2 * c) ** 0.5) / (g * b**2)
        return p, g * p * b / (c + g * p * b**2)

    def quantile_function(self, tau: Float[Array, "N"], gamma: float, x: float = 1.0) -> Float[Array, "N A"]:
        """True quantiles of the optimal policy's return from x."""
        spread = self.noise / (1 - gamma**2) ** 0.5
        return (-self.solution(gamma)[0] * x**2 + spread * jax.scipy.stats.norm.ppf(tau))[:, None]

    def reset(self, key: Key[Array, ""]) -> tuple[tuple[Array, Array], Float[Array, "1"]]:
        """Begin an episode."""
        x = jax.random.uniform(key, (1,), minval=-1.0)
        return (x, jnp.zeros((), jnp.int32)), x

    def step(
        self, key: Key[Array, ""], state: tuple[Array, Array], action: Float[Array, "1"]
    ) -> tuple[tuple[Array, Array], TimeStep]:
        """Move and pay; cut off at the limit."""
        (x, t), (key_noise, key_reset) = state, jax.random.split(key)
        reward = -(x**2 + self.c * action**2).sum() + self.noise * jax.random.normal(key_noise)
        successor, cut = x + self.b * action, t + 1 >= self.limit
        (first, _), _ = self.reset(key_reset)
        obs = jnp.where(cut, first, successor)
        return (obs, jnp.where(cut, 0, t + 1)), _time_step(obs, successor, reward, False, cut)


PROBES: dict[str, type[Environment]] = {
    env.name: env for env in (Bimodal, Geometric, TimeLimit, Terminal, Corridor, Regulator)
}


def arguments(probe: Any) -> dict[str, Any]:
    """Return the fields of a probe that differ from their defaults."""
    values = {f.name: (f.default, getattr(probe, f.name)) for f in dataclasses.fields(probe)}
    changed = {name: value for name, (default, value) in values.items() if value != default}
    return {name: value if isinstance(value, int) else float(f"{float(value):.7g}") for name, value in changed.items()}
