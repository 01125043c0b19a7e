"""Proposed fractions: FQF, the fully parameterized quantile function (Yang et al. 2019, https://arxiv.org/abs/1911.02140).

| symbol | here | meaning |
|---|---|---|
| p_i | `log_p` | N shares of [0, 1] that the proposal gives for psi(x): softmax of a linear layer |
| tau_i | `tau` | `p_0 + ... + p_{i-1}`, N + 1 fractions from 0 to 1 |
| tau^_i | `centres(tau)` | `(tau_i + tau_{i+1}) / 2`, N fractions |
| Z_{tau^_i}(x, a) | `Y` | quantiles there, of the implicit quantiles' layer; `Z_tau` those at tau_1, ..., tau_{N-1} |
| Q(x, a) | `mean` | `sum_i (tau_{i+1} - tau_i) Z_{tau^_i}(x, a)` |

IQN but for this: fractions are proposed instead of drawn, Q is the sum weighted by them, and the proposal has a loss and an
optimiser of its own. Neither loss has a gradient in what the other trains.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from quantilax import fractions, losses, packing
from quantilax.heads import implicit_quantile, quantile
from quantilax.heads.types import Features, Layer, Prediction, Taus
from quantilax.hyperparameters import Huber
from quantilax.networks import FractionProposal
from quantilax.pytree import dataclass, field
from quantilax.types import Config

RMS_DECAY, RMS_EPS = 0.95, 1e-5
"""Of the proposal's RMSProp, as published; epsilon is added to v."""


@dataclass
class Fractions(Huber):
    """The proposal, and kappa."""

    fraction_learning_rate: float = field(1e-5, "step size of the proposal's RMSProp, constant", ge=0)
    num_fractions: int = field(32, "N, fractions proposed for an observation", ge=2)
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", ge=1)
    fraction_entropy: float = field(
        0.001, "lambda, weight of the entropy of the shares in the proposal's loss, in units of return", ge=0
    )
    weigh_targets: bool = field(True, "a target counts by the width of its fractions; false: all alike")


class Proposal(NamedTuple):
    """Z at the centres of the proposed fractions, and what the proposal learns from."""

    Y: Float[Array, "*batch N A"]
    tau: Float[Array, "*batch N+1"]
    log_p: Float[Array, "*batch N"]
    Z_tau: Float[Array, "*batch N-1 A"]

    def taken(self, action: Any) -> "Proposal":
        """What is said of one action, of one observation."""
        return self._replace(Y=self.Y[:, action], Z_tau=self.Z_tau[:, action])


class Targets(NamedTuple):
    """Quantiles of the return, and the fractions between which each of them stands."""

    y: Float[Array, "N"]
    tau: Float[Array, "N+1"]


class ProposedQuantiles(nnx.Module):
    """Z and the proposal."""

    def __init__(self, features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.Z = implicit_quantile.layer(features, num_actions, config, rngs)
        self.proposal = FractionProposal(features, config.num_fractions, rngs=rngs)


def predict(layer: Layer, psi: Features, taus: Sequence[Taus], config: Config) -> list[Proposal]:
    """Z where the proposal has it: no gradient of Z reaches the proposal, and none of the proposal psi."""
    log_p = layer.proposal(jax.lax.stop_gradient(psi))
    tau = fractions.proposed(log_p)
    Z_hat = layer.Z(psi, jax.lax.stop_gradient(fractions.centres(tau)))
    Z_tau = jax.lax.stop_gradient(layer.Z(psi, tau[..., 1:-1]))  # XLA leaves it out where no loss reads it
    return [Proposal(Z_hat, tau, log_p, Z_tau)] * len(taus)


def mean(prediction: Proposal, config: Config) -> Float[Array, "*A"]:
    """Q."""
    return fractions.expectation(prediction.tau, prediction.Y)


def target(reward: Float[Array, ""], discount: Float[Array, ""], successor: Proposal, config: Config) -> Targets:
    """`y_j = reward + discount Z_j(x', a*)`."""
    return Targets(reward + discount * successor.Y, successor.tau)


def soft_target(
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    successor: Proposal,
    t_log_pi: Float[Array, "A"],
    pi: Float[Array, "A"],
    config: Config,
) -> Targets:
    """`y_j = reward + discount sum_a pi(a) (Z_j(x', a) - t ln pi(a))`; the fractions are those of all actions."""
    return Targets(reward + discount * ((successor.Y - t_log_pi) @ pi), successor.tau)


def loss(taken: Proposal, target: Targets, config: Config) -> Float[Array, ""]:
    """Algorithm 1 of the paper: the sum of the losses of the quantiles and of the proposal."""
    tau_hat = jax.lax.stop_gradient(fractions.centres(taken.tau))
    widths = jnp.diff(target.tau) if config.weigh_targets else None
    of_quantiles = losses.quantile_regression(taken.Y, tau_hat, target.y, config.kappa, widths)
    unevenness = math.log(config.num_fractions) - losses.entropy(
        taken.log_p
    )  # the constant: so that no loss is negative
    of_fractions = losses.fraction_proposal(taken.tau, taken.Z_tau, taken.Y) + config.fraction_entropy * unevenness
    return of_quantiles + of_fractions


def expected(target: Targets, config: Config) -> Float[Array, ""]:
    """Mean of the target's step function."""
    return fractions.expectation(target.tau, target.y)


def errors(taken: Proposal, target: Targets, config: Config) -> Float[Array, "N N_prime"]:
    """delta of each pair."""
    return target.y[None, :] - taken.Y[:, None]


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    successors: Proposal,
    trace: Float[Array, "T E"],
    config: Config,
) -> Targets:
    """Draws from the mixture of returns, from N draws of each successor's step function; all count alike."""
    key_steps, key_returns = jax.random.split(key)
    T, E, N = successors.Y.shape
    u = fractions.stratified(jax.random.uniform(key_steps, (T, E, N)))
    draws = jax.vmap(jax.vmap(step_function))(successors.tau, successors.Y, u)
    y = quantile.lambda_returns(key_returns, reward, discount, Prediction(draws), trace, config)
    return Targets(y, jnp.broadcast_to(jnp.linspace(0, 1, N + 1), (T, E, N + 1)))


def step_function(tau: Float[Array, "N+1"], Z: Float[Array, "N *A"], at: Float[Array, "M"]) -> Float[Array, "M *A"]:
    """Z_{tau^_i} where `at` lies in (tau_i, tau_{i+1}]."""
    return Z[jnp.searchsorted(tau[1:-1], at)]


def quantiles(layer: Layer, psi: Features, tau: Float[Array, "M"], config: Config) -> Float[Array, "M A"]:
    """The step function whose mean is Q."""
    (proposal,) = predict(layer, psi, [None], config)
    return step_function(proposal.tau, proposal.Y, tau)


def optimizer(inner: optax.GradientTransformation, config: Config) -> optax.GradientTransformation:
    """The loop's own for psi and Z; RMSProp for the proposal, whose gradient is not clipped."""
    rmsprop = optax.rmsprop(config.fraction_learning_rate, RMS_DECAY, RMS_EPS)
    return optax.partition({"Z": inner, "proposal": packing.packed(rmsprop)}, trained_by)


def trained_by(params: PyTree) -> PyTree:
    """For each array of the network, whose loss and optimiser it has: "Z" or "proposal"."""
    return jax.tree.map_with_path(lambda path, _: "proposal" if path[1].key == "proposal" else "Z", params)


HEAD = quantile.HEAD._replace(
    name="proposed",
    configs=(Fractions,),
    check=lambda config: None,
    layer=ProposedQuantiles,
    predict=predict,
    mean=mean,
    target=target,
    soft_target=soft_target,
    expected=expected,
    loss=loss,
    errors=errors,
    lambda_returns=lambda_returns,
    quantiles=quantiles,
    optimizer=optimizer,
)
