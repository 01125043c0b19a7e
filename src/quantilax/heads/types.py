"""What a head is: what is learned of the return, and how."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax.types import Config

Layer: TypeAlias = Any
"""The module that a head's `layer` made."""
Features: TypeAlias = Float[Array, "*batch features"]
"""psi of one observation, or of a batch."""
Taus: TypeAlias = Float[Array, "*batch N"] | None
"""Fractions for each observation, or the same for all of a batch; None for heads that have none, or fixed ones."""


class Prediction(NamedTuple):
    """What a network says of the returns from an observation; a head may have a class of its own instead."""

    Y: Float[Array, "*batch n A"]
    """n numbers per action; without the axis of actions once one is `taken`."""
    tau: Float[Array, "*batch n"] | None = None
    """The fractions that rows of Y stand for, where they stand for some."""

    def taken(self, action: Any) -> "Prediction":
        """What is said of one action, of one observation."""
        return self._replace(Y=self.Y[:, action])


class Head(NamedTuple):
    """A record of functions, each on one example unless it says otherwise.

    Symbols in shapes: `A` actions, `n` numbers per action, `N` fractions, `T` steps, `E` environments.
    """

    name: str
    layer: Callable[..., nnx.Module]
    """(features, num_actions, config, rngs=) -> the layer after psi."""
    predict: Callable[..., list[Any]]
    """(layer, psi, taus, config) -> a prediction for each of several `Taus`, of one observation or a batch."""
    mean: Callable[[Any, Config], Float[Array, "*A"]]
    """(prediction, config) -> Q."""
    target: Callable[[Float[Array, ""], Float[Array, ""], Any, Config], Any]
    """(reward, discount, prediction at x' of a*, config) -> what is learned: `reward + discount Z(x', a*)`."""
    expected: Callable[[Any, Config], Float[Array, ""]]
    """(target, config) -> its mean."""
    loss: Callable[[Any, Any, Config], Float[Array, ""]]
    """(prediction of the action, target, config) -> the loss."""
    lambda_returns: Callable[..., Any]
    """(key, reward, discount, predictions at x' of a*, trace, config) -> targets of T steps in E environments."""
    configs: tuple[type, ...] = ()
    """Groups of its own hyperparameters; the configs that know it are composed of them."""
    soft_target: Callable[..., Any] | None = None
    """(reward, discount, prediction at x', t ln pi, pi, config) -> what is learned with `munchausen`:
    `reward + discount sum_a pi(a) (Z(x', a) - t ln pi(a))`; None: not defined."""
    soft_lambda_returns: Callable[..., Any] | None = None
    """(reward, discount, q_next, q_before, action, trace, config) -> the same, of T steps in E environments with the soft
    policy; None: not defined."""
    quantiles: Callable[[Layer, Features, Float[Array, "N"], Config], Float[Array, "N A"]] | None = None
    """(layer, psi, tau, config) -> quantiles at any fractions; None: only the mean is learned."""
    draw: Callable[..., list[Taus]] = lambda key, shape, config, *uses: [None for _ in uses]
    """(key, leading axes, config, *uses) -> fractions for each use: "tau" (learned), "tau_prime" (target), "tau_action"."""
    draw_acting: Callable[[Key[Array, ""], Config], tuple[Taus, Key[Array, ""]]] = lambda key, config: (None, key)
    """(key, config) -> (fractions for the mean that a policy acts on, a key that is still unused)."""
    priority: Callable[[Any, Any, Config], Float[Array, ""]] | None = None
    """(prediction of the action, target, config) -> priority in the replay; None: |expected target - Q|."""
    errors: Callable[[Any, Any, Config], Float[Array, "N N_prime"]] | None = None
    """(prediction of the action, target, config) -> target less estimate of each pair that the loss compares; None: of Q."""
    check: Callable[[Any], None] = lambda config: None
    """config -> raises `ConfigError` where its own hyperparameters contradict each other."""
    support: Callable[[Config], tuple[Any, Any] | None] = lambda config: None
    """config -> bounds of what can be learned; None: there are none."""
    kappa: Callable[[Config], Any] = lambda config: None
    """config -> kappa of its quantile Huber loss; None: it has none."""
    acting_draws: Callable[[Config], int | None] = lambda config: None
    """config -> number of fractions of `draw_acting`; None: it draws none."""
    optimizer: Callable[[optax.GradientTransformation, Config], optax.GradientTransformation] = lambda inner, config: (
        inner
    )
    """(the loop's optimiser, config) -> the optimiser of the whole network."""

    def measures(self, taken: Any, target: Any, config: Config) -> tuple[Float[Array, ""], ...]:
        """(Q, |expected target - Q|, priority) of one example."""
        q = self.mean(taken, config)
        td_error = jnp.abs(self.expected(target, config) - q)
        return q, td_error, td_error if self.priority is None else self.priority(taken, target, config)

    def differences(self, taken: Any, target: Any, config: Config) -> Float[Array, "N N_prime"]:
        """`errors`, or the one of the means."""
        if self.errors is not None:
            return self.errors(taken, target, config)
        return (self.expected(target, config) - self.mean(taken, config))[None, None]
