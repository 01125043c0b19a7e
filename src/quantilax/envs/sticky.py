"""Sticky actions: with some probability the last action is taken again instead of the chosen one.

Source: Machado et al. (2018), https://arxiv.org/abs/1709.06009, section 5.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from quantilax import pytree
from quantilax.types import Box, Discrete, Environment, TimeStep, no_action


@pytree.dataclass
class StickyActions:
    """An environment that repeats the last action with `probability`, unseen in its observations.

    The action before the first is 0. As in MinAtar, the last action is kept over the end of an
    episode. If the environment has masks, a last action that is no longer legal is not repeated.
    """

    env: Environment
    probability: float = pytree.field(0.1, "probability that the last action is taken instead", ge=0, le=1)

    @property
    def name(self) -> str:
        """That of the wrapped environment."""
        return self.env.name

    @property
    def observation_space(self) -> Box:
        """That of the wrapped environment."""
        return self.env.observation_space

    @property
    def action_space(self) -> Discrete | Box:
        """That of the wrapped environment."""
        return self.env.action_space

    @property
    def max_episode_steps(self) -> Int[Array, ""] | int:
        """That of the wrapped environment."""
        return self.env.max_episode_steps

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        state, obs, *legal = self.env.reset(key)
        return ((state, no_action(self.env.action_space), *legal), obs, *legal)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step with the given action or the last one."""
        key, key_sticky = jax.random.split(key)
        inner, last, *legal = state
        repeats = jax.random.bernoulli(key_sticky, self.probability)
        if legal:
            repeats &= legal[0][last]
        action = jnp.where(repeats, last, action).astype(last.dtype)
        inner, time_step = self.env.step(key, inner, action)
        return (inner, action, *([time_step.legal] if legal else [])), time_step
