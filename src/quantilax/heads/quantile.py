"""Quantile: N quantiles theta_i at the fixed fractions `tau_i = (2 i - 1) / 2 N` (QR-DQN).

Source: Dabney, Rowland, Bellemare & Munos (2018), https://arxiv.org/abs/1710.10044. The loss is IQN's at these fractions. With
`non_crossing` the quantiles are monotone in tau, see `networks.monotone`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, losses
from quantilax.heads import fixed
from quantilax.heads.types import Features, Head, Layer, Prediction, Taus
from quantilax.hyperparameters import Huber
from quantilax.networks import ActionHead, monotone
from quantilax.pytree import ConfigError, dataclass, field
from quantilax.types import Config


@dataclass
class Quantiles(Huber):
    """The quantiles, and kappa."""

    num_quantiles: int = field(32, "N, quantiles of each action", ge=1)
    non_crossing: bool = field(False, "a head whose quantiles never cross (Zhou et al. 2020)")

    def check_non_crossing(self) -> None:
        """Raise `ConfigError` for dueling streams of quantiles that may not cross."""
        if self.non_crossing and self.dueling:  # type: ignore[attr-defined]
            raise ConfigError(
                "dueling: quantiles of a sum of two streams may cross, which non_crossing rules out; set one to false"
            )


def layer(features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ActionHead:
    """Return a layer of N quantiles per action, or of what makes N monotone ones."""
    return fixed.layer(config.num_quantiles + 2 * config.non_crossing, features, num_actions, config, rngs)


def predict(layer: Layer, psi: Features, taus: Sequence[Taus], config: Config) -> list[Prediction]:
    """Theta, at the midpoints."""
    Y = fixed.outputs(layer, psi)
    if config.non_crossing:
        Y = monotone(Y) if psi.ndim == 1 else jax.vmap(monotone)(Y)
    tau = jnp.broadcast_to(fractions.midpoints(Y[..., 0]), Y.shape[:-1])
    return [Prediction(Y, tau)] * len(taus)


def mean(prediction: Prediction, config: Config) -> Float[Array, "*A"]:
    """Mean of the quantiles."""
    return prediction.Y.mean(axis=0)


def target(
    reward: Float[Array, ""], discount: Float[Array, ""], successor: Prediction, config: Config
) -> Float[Array, "N_prime"]:
    """`y_j = reward + discount Z_j(x', a*)`."""
    return reward + discount * successor.Y


def soft_target(
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    successor: Prediction,
    t_log_pi: Float[Array, "A"],
    pi: Float[Array, "A"],
    config: Config,
) -> Float[Array, "N_prime"]:
    """`y_j = reward + discount sum_a pi(a) (Z_j(x', a) - t ln pi(a))`."""
    return reward + discount * ((successor.Y - t_log_pi) @ pi)


def loss(taken: Prediction, target: Float[Array, "N_prime"], config: Config) -> Float[Array, ""]:
    """`sum_i 1/N' sum_j rho^kappa_{tau_i}(y_j - Z_i(x, a))`."""
    assert taken.tau is not None
    return losses.quantile_regression(taken.Y, taken.tau, target, config.kappa)


def expected(target: Float[Array, "N_prime"], config: Config) -> Float[Array, ""]:
    """Mean of the y_j."""
    return target.mean(axis=-1)


def errors(taken: Prediction, target: Float[Array, "N_prime"], config: Config) -> Float[Array, "N N_prime"]:
    """delta of each pair."""
    return target[None, :] - taken.Y[:, None]


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    successors: Prediction,
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E N_prime"]:
    """Draws from the mixture of returns."""
    Z = successors.Y  # (T, E, N')
    of_column = jax.vmap(losses.lambda_return_draws, in_axes=1, out_axes=1)
    G: Float[Array, "T E N_prime"] = of_column(reward, discount, Z, trace, jax.random.uniform(key, Z.shape))
    return G


def quantiles(layer: Layer, psi: Features, tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """The step function through the quantiles."""
    return fractions.of_quantiles(predict(layer, psi, [None], config)[0].Y, tau)


HEAD = Head(
    name="quantile",
    configs=(Quantiles,),
    check=Quantiles.check_non_crossing,
    layer=layer,
    predict=predict,
    mean=mean,
    target=target,
    soft_target=soft_target,
    expected=expected,
    loss=loss,
    errors=errors,
    lambda_returns=lambda_returns,
    quantiles=quantiles,
    kappa=lambda config: config.kappa,
)
