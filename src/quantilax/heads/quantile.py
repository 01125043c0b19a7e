"""Quantile head (QR-DQN): N quantiles theta_i at the fixed fractions `tau_i = (2 i - 1) / 2 N`.

The loss is that of IQN at these fractions. With `non_crossing` the quantiles are monotone in tau,
see `networks.monotone`.

Source: Dabney, Rowland, Bellemare & Munos (2018), https://arxiv.org/abs/1710.10044.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, losses
from quantilax.errors import ConfigError
from quantilax.heads.base import Features, Head, Layer, Prediction, Scalar, Steps, Taus
from quantilax.hyperparameters import Huber
from quantilax.losses import SoftPolicy
from quantilax.networks import monotone
from quantilax.pytree import dataclass, field


@dataclass
class Quantiles(Huber):
    """The quantiles, and kappa."""

    num_quantiles: int = field(32, "N, quantiles of each action", ge=1)
    non_crossing: bool = field(False, "a head whose quantiles never cross (Zhou et al. 2020)")


class OfQuantiles(Head):
    """Base of the heads that learn by quantile regression.

    A target is a set of quantiles, or of draws.
    """

    regresses_quantiles = True

    def mean(self, prediction: Prediction) -> Float[Array, "*A"]:
        """Return the mean of the quantiles."""
        return prediction.Y.mean(axis=0)

    def target(self, reward: Scalar, discount: Scalar, successor: Prediction) -> Float[Array, "N_prime"]:
        """Return `y_j = reward + discount Z_j(x', a*)`."""
        return reward + discount * successor.Y

    def soft_target(
        self, reward: Scalar, discount: Scalar, successor: Prediction, policy: SoftPolicy
    ) -> Float[Array, "N_prime"]:
        """Return `y_j = reward + discount sum_a pi(a) (Z_j(x', a) - t ln pi(a))`."""
        return reward + discount * ((successor.Y - policy.t_log_pi) @ policy.pi)

    def least(self, critics: Prediction) -> Prediction:
        """Return the smallest of the critics' quantiles at each fraction."""
        return jax.tree.map(lambda tau: tau[0], critics)._replace(Y=critics.Y.min(axis=0))

    def pooled(self, critics: Prediction, dropped: int) -> Prediction:
        """Return the quantiles of all critics, without the largest `dropped` per critic.

        Source: Kuznetsov et al. (2020), https://arxiv.org/abs/2005.04269, equation 9.
        """
        return Prediction(losses.without_largest(critics.Y.ravel(), dropped * critics.Y.shape[0]))

    def expected(self, target: Float[Array, "N_prime"]) -> Scalar:
        """Return the mean of the y_j."""
        return target.mean(axis=-1)

    def loss(self, taken: Prediction, target: Float[Array, "N_prime"]) -> Scalar:
        """Return `sum_i 1/N' sum_j rho^kappa_{tau_i}(y_j - Z_i(x, a))`."""
        assert taken.tau is not None
        return losses.quantile_regression(taken.Y, taken.tau, target, self.config.kappa)

    def errors(self, taken: Prediction, target: Float[Array, "N_prime"]) -> Float[Array, "N N_prime"]:
        """Return delta of each pair."""
        return target[None, :] - taken.Y[:, None]

    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Prediction) -> Float[Array, "T E N_prime"]:
        """Return draws from the mixture of returns, made from the quantiles of each successor."""
        return mixture(key, steps, successors.Y)


def mixture(key: Key[Array, ""], steps: Steps, Z: Float[Array, "T E n"]) -> Float[Array, "T E n"]:
    """Return draws from the mixture of returns, made from draws of each successor's return."""
    u, of_column = jax.random.uniform(key, Z.shape), jax.vmap(losses.lambda_return_draws, in_axes=1, out_axes=1)
    G: Float[Array, "T E n"] = of_column(steps.reward, steps.discount, Z, steps.trace, u)
    return G


class Worst(NamedTuple):
    """A share of the worst returns, for `QuantileHead.predict`."""

    share: Scalar
    number: int = 128
    """Fractions at which the step function is read, evenly spaced below the share."""


class QuantileHead(OfQuantiles):
    """Theta at the midpoints."""

    name, configs = "quantile", (Quantiles,)

    @property
    def num_target_numbers(self) -> int:
        """N."""
        n: int = self.config.num_quantiles
        return n

    def check(self) -> None:
        """Raise `ConfigError` if both `dueling` and `non_crossing` are set.

        Quantiles of a sum of two streams may cross.
        """
        if self.config.non_crossing and self.config.dueling:
            raise ConfigError(
                "dueling: quantiles of a sum of two streams may cross, which non_crossing rules out; set one to false"
            )

    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """Build a layer of N numbers per action, or N + 2 with `non_crossing`."""
        return self.action_layer(self.config.num_quantiles + 2 * self.config.non_crossing, features, num_actions, rngs)

    def worst(self, share: Scalar, taus: Sequence[Taus]) -> list[Taus]:
        """Return the share itself for each use, because this head has fractions of its own."""
        return [Worst(share) for _ in taus]

    def predict(self, layer: Layer, psi: Features, taus: Sequence[Taus]) -> list[Prediction]:
        """Return theta at the midpoints, or the step function through theta below a `Worst`."""
        Y = self.outputs(layer, psi)
        if self.config.non_crossing:
            Y = monotone(Y) if psi.ndim == 1 else jax.vmap(monotone)(Y)
        at_midpoints = Prediction(Y, jnp.broadcast_to(fractions.midpoints(Y[..., 0]), Y.shape[:-1]))
        return [self._below(Y, tau) if isinstance(tau, Worst) else at_midpoints for tau in taus]

    def _below(self, Y: Float[Array, "*batch n A"], worst: Worst) -> Prediction:
        tau = worst.share * fractions.midpoints(jnp.zeros(worst.number))
        of_quantiles = fractions.of_quantiles if Y.ndim == 2 else jax.vmap(fractions.of_quantiles, in_axes=(0, None))
        Z = of_quantiles(Y, tau)
        return Prediction(Z, jnp.broadcast_to(tau, Z.shape[:-1]))

    def quantiles(self, layer: Layer, psi: Features, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        """Return the step function through the quantiles, at the fractions tau."""
        return fractions.of_quantiles(self.predict(layer, psi, [None])[0].Y, tau)
