"""Proposed fractions head (FQF): quantiles at fractions that the network proposes.

| symbol | here | meaning |
|---|---|---|
| p_i | `log_p` | N shares of [0, 1], proposed for psi(x): softmax of a linear layer |
| tau_i | `tau` | `p_0 + ... + p_{i-1}`, N + 1 fractions from 0 to 1 |
| tau^_i | `centres(tau)` | `(tau_i + tau_{i+1}) / 2`, N fractions |
| Z_{tau^_i}(x, a) | `Y` | quantiles at tau^_i, from the layer of implicit quantiles |
| Z_{tau_i}(x, a) | `Z_tau` | quantiles at tau_1, ..., tau_{N-1} |
| Q(x, a) | `mean` | `sum_i (tau_{i+1} - tau_i) Z_{tau^_i}(x, a)` |

FQF, the fully parameterized quantile function, differs from IQN in three ways: fractions are
proposed instead of drawn, Q is the sum weighted by their widths, and the proposal has its own loss
and optimiser. Neither loss has a gradient in the parameters that the other trains.

Source: Yang et al. (2019), https://arxiv.org/abs/1911.02140.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import fractions, losses
from quantilax.heads.base import Features, Head, Layer, Scalar, Steps, Taus
from quantilax.heads.quantile import mixture
from quantilax.hyperparameters import Huber
from quantilax.learning import packing
from quantilax.losses import SoftPolicy
from quantilax.networks import FractionProposal, ImplicitQuantileHead
from quantilax.pytree import dataclass, field

RMS_DECAY, RMS_EPS = 0.95, 1e-5
"""Decay and epsilon of the proposal's RMSProp, as published. Epsilon is added to v."""


@dataclass
class Fractions(Huber):
    """The proposal, and kappa."""

    fraction_learning_rate: float = field(1e-5, "step size of the proposal's RMSProp, constant", ge=0)
    num_fractions: int = field(32, "N, fractions proposed for an observation", ge=2)
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", ge=1)
    fraction_entropy: float = field(
        0.001, "lambda, weight of the entropy of the shares in the proposal's loss, in units of return", ge=0
    )
    weigh_targets: bool = field(True, "weight each target by the width of its fractions; false: equally")


class Proposal(NamedTuple):
    """Z at the centres of the proposed fractions, and what the proposal's loss needs."""

    Y: Float[Array, "*batch N A"]
    tau: Float[Array, "*batch N+1"]
    log_p: Float[Array, "*batch N"]
    Z_tau: Float[Array, "*batch N-1 A"]

    def taken(self, action: Int[Array, ""]) -> "Proposal":
        """Return the prediction for one action, given that for one observation."""
        return self._replace(Y=self.Y[:, action], Z_tau=self.Z_tau[:, action])


class Targets(NamedTuple):
    """Quantiles of the return, and the fractions around them.

    y_j stands for the fractions from tau_j to tau_{j+1}.
    """

    y: Float[Array, "N"]
    tau: Float[Array, "N+1"]


class ProposedQuantiles(nnx.Module):
    """The layer of Z and the proposal."""

    def __init__(self, Z: ImplicitQuantileHead, proposal: FractionProposal) -> None:
        """Hold both."""
        self.Z, self.proposal = Z, proposal


class ProposedHead(Head):
    """Z at proposed fractions."""

    name, configs = "proposed", (Fractions,)
    regresses_quantiles = True

    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """Build f(psi(x) * phi(tau)) as in IQN, and the proposal."""
        c = self.config
        sizes, activation = (c.head_sizes, c.num_cosines), (c.activation, c.layer_norm)
        Z = ImplicitQuantileHead(features, num_actions, *sizes, *activation, c.dueling, c.noisy, rngs=rngs)
        return ProposedQuantiles(Z, FractionProposal(features, c.num_fractions, rngs=rngs))

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """Return the loop's optimiser for psi and Z, and RMSProp for the proposal.

        The gradient of the proposal is not clipped.
        """
        rmsprop = optax.rmsprop(self.config.fraction_learning_rate, RMS_DECAY, RMS_EPS)
        return optax.partition({"Z": inner, "proposal": packing.packed(rmsprop)}, trained_by)

    def predict(self, layer: Layer, psi: Features, taus: Sequence[Taus]) -> list[Proposal]:
        """Return Z at the proposed fractions.

        No gradient of Z reaches the proposal, and no gradient of the proposal reaches psi.
        """
        log_p = layer.proposal(jax.lax.stop_gradient(psi))
        tau = fractions.proposed(log_p)
        Z_hat = layer.Z(psi, jax.lax.stop_gradient(fractions.centres(tau)))
        # XLA drops this where no loss reads it.
        Z_tau = jax.lax.stop_gradient(layer.Z(psi, tau[..., 1:-1]))
        return [Proposal(Z_hat, tau, log_p, Z_tau)] * len(taus)

    def mean(self, prediction: Proposal) -> Float[Array, "*A"]:
        """Return Q."""
        return fractions.expectation(prediction.tau, prediction.Y)

    def target(self, reward: Scalar, discount: Scalar, successor: Proposal) -> Targets:
        """Return `y_j = reward + discount Z_j(x', a*)`."""
        return Targets(reward + discount * successor.Y, successor.tau)

    def soft_target(self, reward: Scalar, discount: Scalar, successor: Proposal, policy: SoftPolicy) -> Targets:
        """Return `y_j = reward + discount sum_a pi(a) (Z_j(x', a) - t ln pi(a))`.

        All actions share the fractions, so their quantiles can be averaged.
        """
        return Targets(reward + discount * ((successor.Y - policy.t_log_pi) @ policy.pi), successor.tau)

    def expected(self, target: Targets) -> Scalar:
        """Return the mean of the target's step function."""
        return fractions.expectation(target.tau, target.y)

    def loss(self, taken: Proposal, target: Targets) -> Scalar:
        """Return the loss of the quantiles plus that of the proposal (algorithm 1 of the paper)."""
        c, tau_hat = self.config, jax.lax.stop_gradient(fractions.centres(taken.tau))
        widths = jnp.diff(target.tau) if c.weigh_targets else None
        of_quantiles = losses.quantile_regression(taken.Y, tau_hat, target.y, c.kappa, widths)
        # The constant ln N keeps the loss from being negative.
        unevenness = math.log(c.num_fractions) - losses.entropy(taken.log_p)
        of_fractions = losses.fraction_proposal(taken.tau, taken.Z_tau, taken.Y) + c.fraction_entropy * unevenness
        return of_quantiles + of_fractions

    def errors(self, taken: Proposal, target: Targets) -> Float[Array, "N N_prime"]:
        """Return delta of each pair."""
        return target.y[None, :] - taken.Y[:, None]

    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Proposal) -> Targets:
        """Return draws from the mixture of returns, all with the same weight.

        The mixture is made from N draws of each successor's step function.
        """
        key_steps, key_returns = jax.random.split(key)
        u = fractions.stratified(jax.random.uniform(key_steps, successors.Y.shape))
        draws = jax.vmap(jax.vmap(step_function))(successors.tau, successors.Y, u)
        y = mixture(key_returns, steps, draws)
        even = jnp.linspace(0, 1, u.shape[-1] + 1)
        return Targets(y, jnp.broadcast_to(even, (*u.shape[:-1], u.shape[-1] + 1)))

    def quantiles(self, layer: Layer, psi: Features, tau: Float[Array, "M"]) -> Float[Array, "M A"]:
        """Return the step function whose mean is Q, at the fractions tau."""
        (proposal,) = self.predict(layer, psi, [None])
        return step_function(proposal.tau, proposal.Y, tau)


def step_function(tau: Float[Array, "N+1"], Z: Float[Array, "N *A"], at: Float[Array, "M"]) -> Float[Array, "M *A"]:
    """Return Z_{tau^_i} where `at` lies in (tau_i, tau_{i+1}]."""
    return Z[(tau[1:-1] < at[:, None]).sum(axis=1)]


def trained_by(params: PyTree) -> PyTree:
    """Label each array of the network with the loss and optimiser that train it.

    The labels are "Z" and "proposal".
    """

    def label(path: tuple[Any, ...], _: Array) -> str:
        return "proposal" if any(getattr(key, "key", None) == "proposal" for key in path) else "Z"

    return jax.tree.map_with_path(label, params)
