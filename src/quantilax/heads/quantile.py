"""Quantile: N quantiles at fixed fractions, the midpoints (Dabney et al. 2018, https://arxiv.org/abs/1710.10044)."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, losses
from quantilax.heads import fixed
from quantilax.heads.types import Head, Network
from quantilax.hyperparameters import Huber
from quantilax.networks import ActionHead
from quantilax.pytree import dataclass, field
from quantilax.types import Config, Observation


@dataclass
class Quantiles(Huber):
    """The quantiles, and kappa."""

    num_quantiles: int = field(32, "N, quantiles of each action", ge=1)


def layer(features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ActionHead:
    """Return a layer of N quantiles per action."""
    return fixed.layer(config.num_quantiles, features, num_actions, config, rngs)


def mean(Y: Float[Array, "N A"], config: Config) -> Float[Array, "A"]:
    """Mean of the quantiles."""
    return Y.mean(axis=0)


def loss(
    y: Float[Array, "N"], q: Float[Array, ""], tau: Float[Array, "N"], target: Float[Array, "N_prime"], config: Config
) -> Float[Array, ""]:
    """`sum_i 1/N' sum_j rho^kappa_{tau_i}(target_j - y_i)`."""
    return losses.quantile_regression(y, tau, target, config.kappa)


def expected(target: Float[Array, "*batch N_prime"], config: Config) -> Float[Array, "*batch"]:
    """Mean of the draws."""
    return target.mean(axis=-1)


def errors(
    y: Float[Array, "B N"], q: Float[Array, "B"], target: Float[Array, "B N_prime"], config: Config
) -> Float[Array, "B N N_prime"]:
    """delta of each pair."""
    return target[:, None, :] - y[:, :, None]


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    Z: Float[Array, "T E N_prime"],
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E N_prime"]:
    """Draws from the mixture of returns."""
    of_column = jax.vmap(losses.lambda_return_draws, in_axes=1, out_axes=1)
    G: Float[Array, "T E N_prime"] = of_column(reward, discount, Z, trace, jax.random.uniform(key, Z.shape))
    return G


def quantiles(network: Network, x: Observation, tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """The step function through the quantiles."""
    return fractions.of_quantiles(fixed.outputs(network, x[None])[0], tau)


HEAD = Head(
    name="quantile",
    configs=(Quantiles,),
    layer=layer,
    mean=mean,
    learned=fixed.learned,
    successor=fixed.successor(mean),
    acting=fixed.acting(mean),
    values=fixed.values(mean),
    loss=loss,
    expected=expected,
    errors=errors,
    lambda_returns=lambda_returns,
    quantiles=quantiles,
    kappa=lambda config: config.kappa,
)
