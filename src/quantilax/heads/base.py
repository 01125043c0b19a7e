"""What a head is: what is learned of the return, and how."""

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
"""The module that a head's `layer` made."""
Features: TypeAlias = Float[Array, "*batch features"]
"""psi of one observation, or of a batch."""
Taus: TypeAlias = Any
"""Fractions for each observation, or the same for a batch; None for heads that have none of their choice."""
Scalar: TypeAlias = Float[Array, ""]


class Prediction(NamedTuple):
    """What a network says of the returns from an observation; a head may have a class of its own instead."""

    Y: Float[Array, "*batch n A"]
    """n numbers per action; without the axis of actions once one is `taken`."""
    tau: Float[Array, "*batch n"] | None = None
    """The fractions that rows of Y stand for, where they stand for some."""

    def taken(self, action: Int[Array, ""]) -> "Prediction":
        """What is said of one action, of one observation."""
        return self._replace(Y=self.Y[:, action])


class Steps(NamedTuple):
    """T steps in E environments."""

    reward: Float[Array, "T E"]
    discount: Float[Array, "T E"]
    """gamma (1 - terminated)."""
    trace: Float[Array, "T E"]
    """lambda; 0 where an episode ends."""


class Head(ABC):
    """What is learned of the return, with the hyperparameters of a config; functions are of one example.

    A head of one's own has `layer`, `mean`, `target`, `expected`, `loss` and `lambda_returns`. The rest
    has the form here unless it says otherwise: a layer of numbers that stand for something fixed, of which nothing is
    drawn. Symbols in shapes: `A` actions, `n` numbers per action, `N` fractions.
    """

    name: ClassVar[str]
    configs: ClassVar[tuple[type, ...]] = ()
    """Groups of its own hyperparameters; the configs that know it are composed of them."""
    regresses_quantiles: ClassVar[bool] = False
    """Its loss is the quantile Huber loss, with the config's kappa."""
    quantiles: Any = None
    """(layer, psi, tau) -> quantiles at any fractions, (N, A); None: only the mean is learned."""
    soft_target: Any = None
    """(reward, discount, prediction of all actions at x', soft policy) -> what is learned of
    `reward + discount sum_a pi(a) (Z(x', a) - t ln pi(a))`; None: not defined."""
    soft_lambda_returns: Any = None
    """(steps, q_next, q_before, action, masked) -> `lambda_returns` of the soft policy; None: not defined."""

    def __init__(self, config: Config) -> None:
        """Bind it to a config."""
        self.config = config

    def check(self) -> None:  # noqa: B027 most heads have nothing to check
        """Raise `ConfigError` where its own hyperparameters contradict each other."""

    @property
    def support(self) -> tuple[Any, Any] | None:
        """Bounds of what can be learned; None: there are none."""
        return None

    @abstractmethod
    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """The layer after psi."""

    def action_layer(self, n: int, features: int, num_actions: int, rngs: nnx.Rngs) -> ActionHead:
        """A layer of n numbers per action."""
        c = self.config
        return ActionHead(
            features, num_actions, n, c.head_sizes, c.activation, c.layer_norm, c.dueling, c.noisy, rngs=rngs
        )

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser of the whole network, given the loop's."""
        return inner

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...], *uses: str) -> list[Taus]:
        """Fractions for each use, with leading axes: "tau" (what is learned), "tau_prime" (targets), "tau_action"."""
        return [None for _ in uses]

    def draw_acting(self, key: Key[Array, ""]) -> tuple[Taus, Key[Array, ""]]:
        """Fractions for the mean that a policy acts on, and a key that is still unused."""
        return None, key

    def outputs(self, layer: Layer, psi: Features) -> Float[Array, "*batch n A"]:
        """Y of one observation or of a batch."""
        return layer(psi) if psi.ndim == 1 else jax.vmap(layer)(psi)

    def predict(self, layer: Layer, psi: Features, taus: Sequence[Taus]) -> list[Any]:
        """A prediction at each of several sets of fractions, of one observation or of a batch."""
        return [Prediction(self.outputs(layer, psi))] * len(taus)

    @abstractmethod
    def mean(self, prediction: Any) -> Float[Array, "*A"]:
        """Q."""

    @abstractmethod
    def target(self, reward: Scalar, discount: Scalar, successor: Any) -> Any:
        """What is learned, `reward + discount Z(x', a*)`, of the prediction of a* at x'."""

    @abstractmethod
    def expected(self, target: Any) -> Scalar:
        """Mean of a target."""

    @abstractmethod
    def loss(self, taken: Any, target: Any) -> Scalar:
        """The loss of what is predicted of an action."""

    @abstractmethod
    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Any) -> Any:
        """Targets of T steps in E environments, of the predictions of a* at their successors."""

    def errors(self, taken: Any, target: Any) -> Float[Array, "N N_prime"]:
        """Target less estimate, of each pair that the loss compares; of the means where it compares no pairs."""
        return (self.expected(target) - self.mean(taken))[None, None]

    def priority(self, taken: Any, target: Any) -> Scalar:
        """Priority in the replay."""
        return jnp.abs(self.expected(target) - self.mean(taken))

    def measures(self, taken: Any, target: Any) -> tuple[Scalar, Scalar, Scalar]:
        """(Q, |expected target - Q|, priority)."""
        q = self.mean(taken)
        return q, jnp.abs(self.expected(target) - q), self.priority(taken, target)
