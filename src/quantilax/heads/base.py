"""The interface of heads, which decide what is learned of the return, and how."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from quantilax.networks import ActionHead
from quantilax.types import Config

Layer: TypeAlias = Any
"""The module that a head's `layer` builds."""
Features: TypeAlias = Float[Array, "*batch features"]
"""psi of one observation, or of a batch."""
Taus: TypeAlias = Any
"""Fractions for each observation, or shared by a batch. None for heads that draw no fractions."""
Scalar: TypeAlias = Float[Array, ""]


class Prediction(NamedTuple):
    """What a network predicts of the returns from an observation.

    A head may use a class of its own instead.
    """

    Y: Float[Array, "*batch n A"]
    """n numbers per action. `taken` removes the axis of actions."""
    tau: Float[Array, "*batch n"] | None = None
    """The fractions that the rows of Y stand for, if any."""

    def taken(self, action: Int[Array, ""]) -> "Prediction":
        """Return the prediction for one action, given that for one observation."""
        return self._replace(Y=self.Y[:, action])


class Steps(NamedTuple):
    """T steps in E environments."""

    reward: Float[Array, "T E"]
    discount: Float[Array, "T E"]
    """gamma (1 - terminated)."""
    trace: Float[Array, "T E"]
    """lambda; 0 where an episode ends."""


class Head(ABC):
    """What is learned of the return, bound to the hyperparameters of a config.

    Functions work on one example. A head of your own defines `layer`, `mean`, `target`, `expected`,
    `loss` and `lambda_returns`. The other methods have defaults, which suit a layer whose outputs
    stand for something fixed, so that no fractions are drawn.

    Symbols in shapes: `A` actions, `n` numbers per action, `N` fractions.
    """

    name: ClassVar[str]
    configs: ClassVar[tuple[type, ...]] = ()
    """Groups of its own hyperparameters. A config that supports the head inherits from them."""
    regresses_quantiles: ClassVar[bool] = False
    """Whether the loss is the quantile Huber loss, with the config's kappa."""
    quantiles: Any = None
    """(layer, psi, tau) -> quantiles at any fractions, (N, A). None if only the mean is learned."""
    soft_target: Any = None
    """(reward, discount, prediction of all actions at x', soft policy) -> the target for
    `reward + discount sum_a pi(a) (Z(x', a) - t ln pi(a))`. None if this is not defined.
    """
    soft_lambda_returns: Any = None
    """(steps, q_next, q_before, action, masked) -> `lambda_returns` of the soft policy. None if
    these are not defined.
    """

    worst: Any = None
    """(share, fractions) -> the fractions of the worst share of the returns, for `predict`. None if
    predictions are not equally likely numbers, which measures of risk need."""
    pooled: Any = None
    """(predictions of several critics, d) -> one prediction of all their numbers without the
    largest d per critic. None if this is not defined.
    """

    def __init__(self, config: Config) -> None:
        """Bind the head to a config."""
        self.config = config

    def check(self) -> None:  # noqa: B027 most heads have nothing to check
        """Raise `ConfigError` if the head's own hyperparameters contradict each other."""

    @property
    def support(self) -> tuple[Any, Any] | None:
        """Bounds of the returns that can be learned; None if there are none."""
        return None

    @abstractmethod
    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """Build the layer after psi."""

    def action_layer(self, n: int, features: int, num_actions: int, rngs: nnx.Rngs) -> ActionHead:
        """Build a layer of n numbers per action."""
        c = self.config
        return ActionHead(
            features, num_actions, n, c.head_sizes, c.activation, c.layer_norm, c.dueling, c.noisy, rngs=rngs
        )

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """Return the optimiser of the whole network, given that of the training loop."""
        return inner

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...], *uses: str) -> list[Taus]:
        """Draw fractions for each use, with leading axes `shape`.

        The uses are "tau" (predictions in the loss), "tau_prime" (targets) and "tau_action" (the
        mean that chooses an action).
        """
        return [None for _ in uses]

    def draw_acting(self, key: Key[Array, ""]) -> tuple[Taus, Key[Array, ""]]:
        """Return fractions for the mean that a policy acts on, and an unused key."""
        return None, key

    def outputs(self, layer: Layer, psi: Features) -> Float[Array, "*batch n A"]:
        """Return Y of one observation or of a batch."""
        return layer(psi) if psi.ndim == 1 else jax.vmap(layer)(psi)

    def predict(self, layer: Layer, psi: Features, taus: Sequence[Taus]) -> list[Any]:
        """Return predictions at several sets of fractions, of one observation or a batch."""
        return [Prediction(self.outputs(layer, psi))] * len(taus)

    @abstractmethod
    def mean(self, prediction: Any) -> Float[Array, "*A"]:
        """Return Q, the mean of the predicted return."""

    @abstractmethod
    def target(self, reward: Scalar, discount: Scalar, successor: Any) -> Any:
        """Return the target `reward + discount Z(x', a*)`, given the prediction of a* at x'."""

    @abstractmethod
    def expected(self, target: Any) -> Scalar:
        """Return the mean of a target."""

    @abstractmethod
    def loss(self, taken: Any, target: Any) -> Scalar:
        """Return the loss of the prediction for one action."""

    @abstractmethod
    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Any) -> Any:
        """Return the targets of T steps in E environments.

        `successors` are the predictions of a* at the true successor of each step.
        """

    def least(self, critics: Any) -> Any:
        """Return the least of several critics' predictions for one action, as a target.

        Here it is the prediction with the smallest mean.
        """
        i = jnp.argmin(jax.vmap(self.mean)(critics))
        return jax.tree.map(lambda x: x[i], critics)

    @property
    def num_target_numbers(self) -> int:
        """Numbers per critic that `pooled` pools."""
        return 0

    def errors(self, taken: Any, target: Any) -> Float[Array, "N N_prime"]:
        """Return target minus estimate for each pair that the loss compares.

        If the loss compares no pairs, this is the error of the mean.
        """
        return (self.expected(target) - self.mean(taken))[None, None]

    def priority(self, taken: Any, target: Any) -> Scalar:
        """Return the priority in the replay; by default |expected target - Q|."""
        return jnp.abs(self.expected(target) - self.mean(taken))

    def measures(self, taken: Any, target: Any) -> tuple[Scalar, Scalar, Scalar]:
        """Return (Q, |expected target - Q|, priority)."""
        q = self.mean(taken)
        return q, jnp.abs(self.expected(target) - q), self.priority(taken, target)
