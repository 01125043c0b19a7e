"""What a head is: what is learned of the return, and how."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax.types import Config, Observation

Network: TypeAlias = Any
"""A module with `psi`, features of one normalised observation, and `head`, the layer that its head made."""


class Head(NamedTuple):
    """A record of functions; Y are the numbers that its layer gives for each action, (n, A).

    Symbols in shapes: `B` observations, `A` actions, `n` and `n_prime` numbers per action, `T` steps, `E` environments.
    """

    name: str
    configs: tuple[type, ...]
    """Groups of its own hyperparameters; a loop's config is composed of those of all heads."""
    layer: Callable[..., nnx.Module]
    """(features, num_actions, config, rngs=) -> the layer that makes Y of psi."""
    mean: Callable[[Float[Array, "n A"], Config], Float[Array, "A"]]
    """(Y, config) -> Q."""
    learned: Callable[[Network, Observation, Key[Array, ""], Config], tuple[Float[Array, "B n A"], Float[Array, "B n"]]]
    """(network, observations, key, config) -> (Y, the fractions that its rows stand for), as a loss takes them."""
    successor: Callable[
        [Network, Observation, Key[Array, ""], Config], tuple[Float[Array, "B n_prime A"], Float[Array, "B A"]]
    ]
    """(network, observations, key, config) -> (Y, Q that chooses an action), as targets take them."""
    acting: Callable[[Network, Observation, Key[Array, ""], Config], tuple[Float[Array, "A"], Key[Array, ""]]]
    """(network, one observation, key, config) -> (Q that a policy acts on, a key that is still unused)."""
    values: Callable[[Network, Observation, Float[Array, "N"], Config], Float[Array, "A"]]
    """(network, one observation, tau, config) -> Q; where Q is a mean over fractions, over tau."""
    loss: Callable[
        [Float[Array, "n"], Float[Array, ""], Float[Array, "n"], Float[Array, "*n_prime"], Config], Float[Array, ""]
    ]
    """(y = Y of the action, q = its mean, tau, target, config) -> the loss of one example."""
    expected: Callable[[Float[Array, "*batch_n_prime"], Config], Float[Array, "*batch"]]
    """(targets, config) -> their means."""
    errors: Callable[
        [Float[Array, "B n"], Float[Array, "B"], Float[Array, "B *n_prime"], Config], Float[Array, "B N N_prime"]
    ]
    """(y, q, target, config) -> target less estimate, of each pair that the loss compares."""
    lambda_returns: Callable[..., Float[Array, "T E *n_prime"]]
    """(key, reward, discount, Z, trace, config) -> targets of T steps in E environments, see `losses.lambda_returns`."""
    quantiles: Callable[[Network, Observation, Float[Array, "N"], Config], Float[Array, "N A"]] | None = None
    """(network, one observation, tau, config) -> quantiles at any fractions; None: only the mean is learned."""
    soft_lambda_returns: Callable[..., Float[Array, "T E"]] | None = None
    """(reward, discount, q_next, q_before, action, trace, config), see `losses`; None: not defined."""
    check: Callable[[Any], None] = lambda config: None
    """config -> raises `ConfigError` where its own hyperparameters contradict each other."""
    support: Callable[[Config], tuple[Any, Any] | None] = lambda config: None
    """config -> bounds of what can be learned; None: there are none."""
    kappa: Callable[[Config], Any] = lambda config: None
    """config -> kappa of its Huber loss; None: it has none."""
    acting_draws: Callable[[Config], int | None] = lambda config: None
    """config -> fractions that a policy draws for an action; None: it draws none."""
