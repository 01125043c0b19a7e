"""Implicit quantile head (IQN): quantiles Z_tau at any fraction tau.

| symbol | here | meaning |
|---|---|---|
| psi(x), phi(tau) | `psi`, `layer.embedding` | features of the observation, embedding of tau |
| Z_tau(x, a) | `Y` | quantile of the return at tau: `f(psi(x) * phi(tau))_a`, (N, A) |
| tau, tau', tau'' | `"tau"`, `"tau_prime"`, `"tau_action"` | N, N' and K fractions from `draw` |
| beta | `risk` | distortion of the fractions that a policy acts on |

Algorithm 1 for one transition (x, a, r, x') with discount g. `mean`, `target` and `loss` are those
of `quantile`:

    a* = argmax_a 1/K sum_k Z_{tau''_k}(x', a)                          `mean`, at "tau_action"
    y_j = r + g Z_{tau'_j}(x', a*)                                      `target`, at "tau_prime"
    loss = sum_i 1/N' sum_j rho^kappa_{tau_i}(y_j - Z_{tau_i}(x, a))    `loss`, at "tau"

Source: Dabney, Ostrovski, Silver & Munos (2018), https://arxiv.org/abs/1806.06923.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions
from quantilax.heads.base import Features, Layer, Prediction, Scalar, Taus
from quantilax.heads.quantile import OfQuantiles
from quantilax.hyperparameters import Huber
from quantilax.learning import risk
from quantilax.networks import ImplicitQuantileHead, in_one_pass
from quantilax.pytree import dataclass, field


@dataclass
class ImplicitQuantiles(Huber):
    """The numbers of fractions, how they are drawn and embedded, and kappa."""

    num_tau_samples: int = field(8, "N, fractions in the loss", ge=1)
    num_tau_prime_samples: int = field(8, "N', fractions in the target", ge=1)
    num_quantile_samples: int = field(32, "K, fractions in the mean that chooses an action", ge=1)
    tau_sampling: str = field("uniform", "how fractions are drawn in the loss", choices=fractions.SAMPLERS)
    share_tau: bool = field(False, "the examples of a batch share one draw of fractions")
    acting_tau_sampling: str = field(
        "uniform", "how the acting policy's fractions are drawn", choices=fractions.SAMPLERS
    )
    risk: str = field("neutral", "distortion of the acting policy's fractions", choices=risk.DISTORTIONS)
    risk_eta: float = field(
        1.0, "eta, strength of the distortion: cvar (0, 1], cpw (0, 100]; wang and power: < 0 averse, > 0 seeks risk"
    )
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", ge=1)


class ImplicitQuantilesHead(OfQuantiles):
    """Z at any fractions."""

    name, configs = "implicit_quantile", (ImplicitQuantiles,)

    @property
    def num_target_numbers(self) -> int:
        """N'."""
        n: int = self.config.num_tau_prime_samples
        return n

    def check(self) -> None:
        """Raise `ConfigError` if the risk measure is not defined at `risk_eta`."""
        risk.check(self.config.risk, self.config.risk_eta)

    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """Build f(psi(x) * phi(tau))."""
        c = self.config
        sizes, activation = (c.head_sizes, c.num_cosines), (c.activation, c.layer_norm)
        return ImplicitQuantileHead(features, num_actions, *sizes, *activation, c.dueling, c.noisy, rngs=rngs)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...], *uses: str) -> list[Taus]:
        """Draw fractions for each use.

        Each example gets fractions of its own, or all share one draw (`share_tau`).
        """
        c = self.config
        numbers = {
            "tau": c.num_tau_samples,
            "tau_prime": c.num_tau_prime_samples,
            "tau_action": c.num_quantile_samples,
        }
        shape = () if c.share_tau else shape
        return list(fractions.draw(key, c.tau_sampling, shape, tuple(numbers[use] for use in uses)))

    def draw_acting(self, key: Key[Array, ""]) -> tuple[Float[Array, "K"], Key[Array, ""]]:
        """Return K fractions beta(tau) for the mean that a policy acts on, and an unused key."""
        key_tau, key = jax.random.split(key)
        (tau,) = fractions.draw(key_tau, self.config.acting_tau_sampling, (), (self.config.num_quantile_samples,))
        return risk.DISTORTIONS[self.config.risk](tau, self.config.risk_eta), key

    def worst(self, share: Scalar, taus: Sequence[Taus]) -> list[Taus]:
        """Return `share tau` for each set of fractions."""
        return [share * tau for tau in taus]

    def predict(self, layer: Layer, psi: Features, taus: Sequence[Taus]) -> list[Prediction]:
        """Return Z at each of several sets of fractions, computed in one pass."""
        return [
            Prediction(Z, jnp.broadcast_to(tau, Z.shape[:-1]))
            for Z, tau in zip(in_one_pass(layer, psi, *taus), taus, strict=True)
        ]

    def quantiles(self, layer: Layer, psi: Features, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        """Return Z at tau."""
        return self.predict(layer, psi, [tau])[0].Y
