"""What all loops with a head share: checks of the head, the optimiser, a gradient step."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from quantilax import heads
from quantilax.errors import ConfigError
from quantilax.learning import averaging, exploration, normalize, packing, rollout
from quantilax.pytree import MAX_INT32, dataclass


class Headed:
    """A config with a head: what the configs of all loops share besides their fields."""

    head: ClassVar[str]
    squared_error: ClassVar[bool] = False
    """Whether a mean is learned by the squared error, whatever kappa is."""
    risk_objective = "mean"
    """What is maximised. An annotation would hide the type of Q-learning's field of this name."""
    steps_per_iteration: ClassVar[Any]
    """A property of each loop's config, like `gradient_steps`."""
    gradient_steps: ClassVar[Any]

    @property
    def support(self) -> tuple[float, float] | None:
        """Bounds of the returns that the head can learn; None if there are none."""
        return heads.of(self).support

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        for head in heads.HEADS.values():
            missing = [group.__name__ for group in head.configs if not isinstance(self, group)]
            if not missing:
                head(self).check()
            elif head.name == self.head:
                raise ConfigError(
                    f"head: {head.name} needs hyperparameters that this algorithm lacks ({', '.join(missing)}); choose"
                    " an algorithm whose config class extends them"
                )
        kappa = getattr(self, "kappa", 1.0)
        if heads.of(self).regresses_quantiles and not isinstance(kappa, jax.core.Tracer) and np.isinf(kappa).any():
            raise ConfigError(f"kappa: must be finite with head={self.head}, got {kappa}")
        if (steps := self.gradient_steps) > MAX_INT32:
            raise ConfigError(f"num_epochs: {steps} gradient steps are more than {MAX_INT32}; lower it")

    def figures(self, updates_per_step: float, **own: Any) -> dict[str, Any]:
        """Return the figures of every loop's `derived`, together with a loop's own."""
        config: Any = self
        return {
            "gradient_steps": self.gradient_steps,
            "updates_per_env_step": updates_per_step,
            **own,
            "average_age_env_steps": averaging.mean_age(config.weight_averaging, self.gradient_steps)
            / updates_per_step,
        }

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        config: Any = self
        lines = normalize.advice(config.normalize_rewards, config.reward_scale)
        return lines if config.bootstrap_truncated else [*lines, rollout.ADVICE_ON_TRUNCATION]

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's.

        These are differences from the discounted returns of the policy that evaluation runs.
        `quantilax calibrate` shows them beside what it measures.
        """
        config: Any = self
        lines = []
        if heads.of(self).regresses_quantiles:
            lines.append(
                f"kappa={config.kappa:g}: errors below kappa (in learned units) are squared, which draws quantiles"
                " towards the mean"
            )
        if config.eval_epsilon:
            lines.append(
                f"eval_epsilon={config.eval_epsilon:g}: the policy takes random actions; the learned returns are those"
                " without them"
            )
        return lines


@dataclass
class State(rollout.State):
    """The network, the EMA of its weights, and the state of the optimiser."""

    network: Any
    """The structure of the network, without leaves. It is the same for every seed."""
    average_params: PyTree
    """The weights that evaluation uses, see `quantilax.learning.averaging`."""
    optimizer_state: PyTree


def optimizer(config: Any, rule: Callable[..., optax.GradientTransformation]) -> optax.GradientTransformation:
    """Return `scheduled`, with what the head adds to it."""
    return heads.of(config).optimizer(scheduled(config, rule))


def scheduled(
    config: Any, rule: Callable[..., optax.GradientTransformation], steps: int | None = None
) -> optax.GradientTransformation:
    """Return `rule` with the config's schedule of step sizes, after clipping by the global norm.

    The run takes `steps` steps by it, or `config.gradient_steps`.
    Small arrays are packed into one vector, see `quantilax.learning.packing`.
    """
    end = config.learning_rate * config.learning_rate_end
    duration = config.learning_rate_fraction * (config.gradient_steps if steps is None else steps)
    schedule = partial(exploration.linear_schedule, config.learning_rate, end, duration)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return packing.packed(optax.chain(clip, rule(schedule)))


def gradient_step(
    config: Any, state: Any, optimizer: optax.GradientTransformation, loss: Callable[..., Any], *arguments: Any
) -> tuple[Any, tuple[Array, Array], Any]:
    """Take one step on `loss(params, *arguments) -> (value, measured)`.

    Returns:
        The state, (value, gradient norm), and measured.
    """
    params, optimizer_state, of_step, measured = descend(
        optimizer, state.params, state.optimizer_state, loss, *arguments
    )
    state = replace(
        state,
        params=params,
        average_params=averaging.update(state.average_params, params, config.weight_averaging, config.gradient_steps),
        optimizer_state=optimizer_state,
        gradient_steps=state.gradient_steps + 1,
    )
    return state, of_step, measured


def descend(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    optimizer_state: PyTree,
    loss: Callable[..., Any],
    *arguments: Any,
) -> tuple[PyTree, PyTree, tuple[Array, Array], Any]:
    """Return parameters and optimiser state after a step, (value, gradient norm), and measured."""
    (value, measured), gradient = jax.value_and_grad(loss, has_aux=True)(params, *arguments)
    updates, optimizer_state = optimizer.update(gradient, optimizer_state)
    return optax.apply_updates(params, updates), optimizer_state, (value, optax.tree.norm(gradient)), measured


def quantiles_of(config: Any) -> Any:
    """Return the head's function of quantiles.

    Raises:
        ConfigError: if the head learns no distribution.
    """
    quantiles = heads.of(config).quantiles
    if quantiles is None:
        *others, last = (name for name, head in heads.HEADS.items() if head.quantiles is not None)
        raise ConfigError(
            f"head: {config.head} learns expected values, no quantiles; choose {', '.join(others)} or {last}"
        )
    return quantiles
