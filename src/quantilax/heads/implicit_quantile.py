"""Implicit quantiles: Z_tau at any fraction tau (Dabney et al. 2018, https://arxiv.org/abs/1806.06923).

Each example of a loss has N fractions of its own, its target N' and the choice of an action K, all uniform.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions
from quantilax.heads import quantile
from quantilax.heads.types import Network
from quantilax.hyperparameters import Huber
from quantilax.networks import ImplicitQuantileHead, in_one_pass
from quantilax.pytree import dataclass, field
from quantilax.types import Config, Observation


@dataclass
class ImplicitQuantiles(Huber):
    """Numbers of fractions, their embedding, and kappa."""

    num_tau_samples: int = field(8, "N, fractions in the loss", ge=1)
    num_tau_prime_samples: int = field(8, "N', fractions in the target", ge=1)
    num_quantile_samples: int = field(
        32, "K, fractions in the mean that chooses an action, in acting and in targets", ge=1
    )
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", ge=1)


def layer(features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ImplicitQuantileHead:
    """Return f(psi(x) * phi(tau))."""
    sizes, cosines = config.head_sizes, config.num_cosines
    return ImplicitQuantileHead(features, num_actions, sizes, cosines, config.activation, config.layer_norm, rngs=rngs)


def outputs(network: Network, obs: Observation, *taus: Float[Array, "B N"]) -> list[Float[Array, "B N A"]]:
    """Z of a batch at each of the given sets of fractions."""
    return in_one_pass(network.head, jax.vmap(network.psi)(obs), *taus)


def learned(
    network: Network, obs: Observation, key: Key[Array, ""], config: Config
) -> tuple[Float[Array, "B N A"], Float[Array, "B N"]]:
    """Z at N fractions."""
    (tau,) = fractions.draw(key, "uniform", obs.shape[:1], (config.num_tau_samples,))
    (Z,) = outputs(network, obs, tau)
    return Z, tau


def successor(
    network: Network, obs: Observation, key: Key[Array, ""], config: Config
) -> tuple[Float[Array, "B N_prime A"], Float[Array, "B A"]]:
    """Z at N' fractions, and the mean over K others."""
    numbers = config.num_tau_prime_samples, config.num_quantile_samples
    Z, Z_action = outputs(network, obs, *fractions.draw(key, "uniform", obs.shape[:1], numbers))
    return Z, jax.vmap(lambda z: quantile.mean(z, config))(Z_action)


def acting(
    network: Network, x: Observation, key: Key[Array, ""], config: Config
) -> tuple[Float[Array, "A"], Key[Array, ""]]:
    """Mean over K fractions."""
    key_tau, key = jax.random.split(key)
    (tau,) = fractions.draw(key_tau, "uniform", (), (config.num_quantile_samples,))
    return quantile.mean(network.head(network.psi(x), tau), config), key


def quantiles(network: Network, x: Observation, tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """Z at tau."""
    (Z,) = outputs(network, x[None], tau[None])
    return Z[0]


def values(network: Network, x: Observation, tau: Float[Array, "N"], config: Config) -> Float[Array, "A"]:
    """Mean over tau."""
    return quantile.mean(quantiles(network, x, tau, config), config)


HEAD = quantile.HEAD._replace(
    name="implicit_quantile",
    configs=(ImplicitQuantiles,),
    layer=layer,
    learned=learned,
    successor=successor,
    acting=acting,
    values=values,
    quantiles=quantiles,
    acting_draws=lambda config: config.num_quantile_samples,
)
