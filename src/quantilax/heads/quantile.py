"""Quantile: N quantiles theta_i at the fixed fractions `tau_i = (2 i - 1) / 2 N` (QR-DQN).

The loss is IQN's at these fractions. With `non_crossing` the quantiles are monotone in tau, see `networks.monotone`.

Source: Dabney, Rowland, Bellemare & Munos (2018), https://arxiv.org/abs/1710.10044.
"""

from collections.abc import Sequence

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
    """A target is a set of quantiles, or of draws: what heads share that learn by quantile regression."""

    regresses_quantiles = True

    def mean(self, prediction: Prediction) -> Float[Array, "*A"]:
        """Mean of the quantiles."""
        return prediction.Y.mean(axis=0)

    def target(self, reward: Scalar, discount: Scalar, successor: Prediction) -> Float[Array, "N_prime"]:
        """`y_j = reward + discount Z_j(x', a*)`."""
        return reward + discount * successor.Y

    def soft_target(
        self, reward: Scalar, discount: Scalar, successor: Prediction, policy: SoftPolicy
    ) -> Float[Array, "N_prime"]:
        """`y_j = reward + discount sum_a pi(a) (Z_j(x', a) - t ln pi(a))`."""
        return reward + discount * ((successor.Y - policy.t_log_pi) @ policy.pi)

    def expected(self, target: Float[Array, "N_prime"]) -> Scalar:
        """Mean of the y_j."""
        return target.mean(axis=-1)

    def loss(self, taken: Prediction, target: Float[Array, "N_prime"]) -> Scalar:
        """`sum_i 1/N' sum_j rho^kappa_{tau_i}(y_j - Z_i(x, a))`."""
        assert taken.tau is not None
        return losses.quantile_regression(taken.Y, taken.tau, target, self.config.kappa)

    def errors(self, taken: Prediction, target: Float[Array, "N_prime"]) -> Float[Array, "N N_prime"]:
        """delta of each pair."""
        return target[None, :] - taken.Y[:, None]

    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Prediction) -> Float[Array, "T E N_prime"]:
        """Draws from the mixture of returns, from the quantiles of each successor."""
        return mixture(key, steps, successors.Y)


def mixture(key: Key[Array, ""], steps: Steps, Z: Float[Array, "T E n"]) -> Float[Array, "T E n"]:
    """Draws from the mixture of returns, from draws of each successor's."""
    u, of_column = jax.random.uniform(key, Z.shape), jax.vmap(losses.lambda_return_draws, in_axes=1, out_axes=1)
    G: Float[Array, "T E n"] = of_column(steps.reward, steps.discount, Z, steps.trace, u)
    return G


class QuantileHead(OfQuantiles):
    """Theta, at the midpoints."""

    name, configs = "quantile", (Quantiles,)

    def check(self) -> None:
        """Raise `ConfigError` for dueling streams of quantiles that may not cross."""
        if self.config.non_crossing and self.config.dueling:
            raise ConfigError(
                "dueling: quantiles of a sum of two streams may cross, which non_crossing rules out; set one to false"
            )

    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """A layer of N quantiles per action, or of what makes N monotone ones."""
        return self.action_layer(self.config.num_quantiles + 2 * self.config.non_crossing, features, num_actions, rngs)

    def predict(self, layer: Layer, psi: Features, taus: Sequence[Taus]) -> list[Prediction]:
        """Theta, at the midpoints."""
        Y = self.outputs(layer, psi)
        if self.config.non_crossing:
            Y = monotone(Y) if psi.ndim == 1 else jax.vmap(monotone)(Y)
        return [Prediction(Y, jnp.broadcast_to(fractions.midpoints(Y[..., 0]), Y.shape[:-1]))] * len(taus)

    def quantiles(self, layer: Layer, psi: Features, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        """The step function through the quantiles."""
        return fractions.of_quantiles(self.predict(layer, psi, [None])[0].Y, tau)
