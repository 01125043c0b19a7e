"""What loops that learn from their newest steps share: figures, checks, passes over the steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from quantilax import signals
from quantilax.algorithms import base
from quantilax.errors import ConfigError


class Collected(base.Headed):
    """A config whose loop collects T steps in E environments, learns from them, and forgets them.

    It comes before the group `Loop` among the bases. `num_epochs` counts passes over the steps.
    """

    if TYPE_CHECKING:  # fields of the groups, for mypy; at run time these would replace their types
        total_timesteps: int
        num_envs: int
        num_steps: int
        num_epochs: int
        num_minibatches: int

    @property
    def warmup_steps(self) -> int:
        """Environment steps that `init` takes: none."""
        return 0

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration."""
        return self.num_envs * self.num_steps

    @property
    def batch_size(self) -> int:
        """Steps in a minibatch."""
        return self.steps_per_iteration // self.num_minibatches

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the whole run."""
        return self.total_timesteps // self.steps_per_iteration * self.num_epochs * self.num_minibatches

    def derived(self) -> dict[str, Any]:
        """Return figures that follow from the config, see docs/guides/derived.md."""
        return self.figures(
            self.num_epochs * self.num_minibatches / self.steps_per_iteration,
            minibatch_size=self.batch_size,
            samples_replayed_per_env_step=float(self.num_epochs),
        )

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        if self.steps_per_iteration % self.num_minibatches:
            raise ConfigError(
                f"num_minibatches: {self.num_minibatches} does not divide num_envs * num_steps ="
                f" {self.steps_per_iteration}; choose a divisor"
            )
        if self.total_timesteps < self.steps_per_iteration:
            raise ConfigError(
                f"total_timesteps: {self.total_timesteps} is less than one iteration of num_envs * num_steps ="
                f" {self.steps_per_iteration} steps; raise it"
            )


def passes(
    step: Callable[[Any, PyTree, Key[Array, ""]], tuple[Any, PyTree]],
    config: Any,
    state: Any,
    rows: PyTree,
    key: Key[Array, ""],
) -> tuple[Any, PyTree]:
    """Make `num_epochs` passes over `rows`, in `num_minibatches` shuffled minibatches each.

    Args:
        step: (state, minibatch of rows, key) -> (state, measured).
        config, state, key: of training.
        rows: what is learned from, with one leading axis T E.

    Returns:
        The state, and what was measured with the leading axes (passes, minibatches).
    """

    def minibatch(state: Any, drawn: tuple[Array, Array]) -> tuple[Any, PyTree]:
        index, key = drawn
        return step(state, jax.tree.map(lambda x: x[index], rows), key)

    def epoch(state: Any, keys: tuple[Array, Array]) -> tuple[Any, PyTree]:
        key_order, key_loss = keys
        order = jax.random.permutation(key_order, config.steps_per_iteration).reshape(config.num_minibatches, -1)
        return jax.lax.scan(minibatch, state, (order, jax.random.split(key_loss, config.num_minibatches)))

    keys = jax.random.split(key, (2, config.num_epochs))
    return jax.lax.scan(epoch, state, (keys[0], keys[1]))


def draw(config: Any, state: Any, key: Key[Array, ""], size: int) -> tuple[PyTree, Int[Array, "B"]]:
    """Draw `size` of the observed steps. Return their rows and indices."""
    index = jax.random.randint(key, (size,), 0, config.steps_per_iteration)
    return jax.tree.map(lambda x: x[index], state.rows), index


def experience(config: Any, state: Any) -> signals.Experience:
    """Return all observed steps."""
    seen = state.transitions
    is_there = jnp.ones_like(seen.terminated)
    return signals.Experience(seen.action, seen.reward, seen.terminated, seen.truncated, is_there)
