"""What heads share whose numbers stand for something fixed: nothing is drawn."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions
from quantilax.heads.types import Network
from quantilax.networks import ActionHead
from quantilax.types import Config, Observation

Mean = Callable[[Float[Array, "n A"], Config], Float[Array, "A"]]


def layer(n: int, features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ActionHead:
    """Return a layer of n numbers per action."""
    return ActionHead(features, num_actions, n, config.head_sizes, config.activation, config.layer_norm, rngs=rngs)


def outputs(network: Network, obs: Observation) -> Float[Array, "B n A"]:
    """Y of a batch of observations."""
    return jax.vmap(lambda x: network.head(network.psi(x)))(obs)


def learned(
    network: Network, obs: Observation, key: Key[Array, ""], config: Config
) -> tuple[Float[Array, "B n A"], Float[Array, "n"]]:
    """Y, and midpoints."""
    Y = outputs(network, obs)
    return Y, fractions.midpoints(Y[..., 0])


def successor(mean: Mean) -> Callable[..., Any]:
    """Return `Head.successor`, given the head's mean."""

    def function(
        network: Network, obs: Observation, key: Key[Array, ""], config: Config
    ) -> tuple[Float[Array, "B n A"], Float[Array, "B A"]]:
        Y = outputs(network, obs)
        return Y, jax.vmap(lambda y: mean(y, config))(Y)

    return function


def values(mean: Mean) -> Callable[..., Any]:
    """Return `Head.values`, given the head's mean."""

    def function(network: Network, x: Observation, tau: Float[Array, "N"], config: Config) -> Float[Array, "A"]:
        return mean(outputs(network, x[None])[0], config)

    return function


def acting(mean: Mean) -> Callable[..., Any]:
    """Return `Head.acting`, given the head's mean."""

    def function(
        network: Network, x: Observation, key: Key[Array, ""], config: Config
    ) -> tuple[Float[Array, "A"], Key[Array, ""]]:
        return mean(network.head(network.psi(x)), config), key

    return function
