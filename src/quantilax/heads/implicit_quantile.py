"""Implicit quantiles: IQN's Z_tau at any fraction tau (Dabney, Ostrovski, Silver & Munos 2018, https://arxiv.org/abs/1806.06923).

| symbol | here | meaning |
|---|---|---|
| psi(x), phi(tau) | `psi`, `layer.embedding` | features of the observation, embedding of a fraction |
| Z_tau(x, a) | `Y` | quantile of the return at fraction tau: `f(psi(x) * phi(tau))_a`, (N, A) |
| tau, tau', tau'' | `"tau"`, `"tau_prime"`, `"tau_action"` | N, N' and K fractions that `draw` gives |
| beta | `risk` | distortion of the fractions that a policy acts on |

Algorithm 1, of one transition (x, a, r, x') with discount g; mean, target and loss are those of `quantile`:

    a* = argmax_a 1/K sum_k Z_{tau''_k}(x', a)                                `mean`, at "tau_action"
    y_j = r + g Z_{tau'_j}(x', a*)                                            `target`, at "tau_prime"
    loss = sum_i 1/N' sum_j rho^kappa_{tau_i}(y_j - Z_{tau_i}(x, a))          `loss`, at "tau"
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, risk
from quantilax.heads import quantile
from quantilax.heads.types import Features, Layer, Prediction, Taus
from quantilax.hyperparameters import Huber
from quantilax.networks import ImplicitQuantileHead, in_one_pass
from quantilax.pytree import dataclass, field
from quantilax.types import Config


@dataclass
class ImplicitQuantiles(Huber):
    """Numbers of fractions, how they are drawn and embedded, and kappa."""

    num_tau_samples: int = field(8, "N, fractions in the loss", ge=1)
    num_tau_prime_samples: int = field(8, "N', fractions in the target", ge=1)
    num_quantile_samples: int = field(
        32, "K, fractions in the mean that chooses an action, in acting and in targets", ge=1
    )
    tau_sampling: str = field(
        "uniform", "how tau, tau' and tau'' are drawn in the loss", choices=tuple(fractions.SAMPLERS)
    )
    share_tau: bool = field(False, "the examples of a batch share one draw of fractions")
    acting_tau_sampling: str = field(
        "uniform", "how the K fractions of the acting policy are drawn", choices=tuple(fractions.SAMPLERS)
    )
    risk: str = field("neutral", "distortion of the acting policy's fractions", choices=tuple(risk.DISTORTIONS))
    risk_eta: float = field(
        1.0, "eta, strength of the distortion: cvar (0, 1], cpw (0, 100]; wang and power: < 0 averse, > 0 seeks risk"
    )
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", ge=1)


def layer(features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ImplicitQuantileHead:
    """Return f(psi(x) * phi(tau))."""
    return ImplicitQuantileHead(
        features,
        num_actions,
        config.head_sizes,
        config.num_cosines,
        config.activation,
        config.layer_norm,
        config.dueling,
        config.noisy,
        rngs=rngs,
    )


def draw(key: Key[Array, ""], shape: tuple[int, ...], config: Config, *uses: str) -> list[Taus]:
    """Fractions for each use, of every example its own or of all the same (`share_tau`)."""
    numbers = {
        "tau": config.num_tau_samples,
        "tau_prime": config.num_tau_prime_samples,
        "tau_action": config.num_quantile_samples,
    }
    shape = () if config.share_tau else shape
    return list(fractions.draw(key, config.tau_sampling, shape, tuple(numbers[use] for use in uses)))


def draw_acting(key: Key[Array, ""], config: Config) -> tuple[Float[Array, "K"], Key[Array, ""]]:
    """beta(tau), K of them: a policy maximises the mean over these."""
    key_tau, key = jax.random.split(key)
    (tau,) = fractions.draw(key_tau, config.acting_tau_sampling, (), (config.num_quantile_samples,))
    return risk.DISTORTIONS[config.risk](tau, config.risk_eta), key


def predict(layer: Layer, psi: Features, taus: Sequence[Float[Array, "*#batch N"]], config: Config) -> list[Prediction]:
    """Z at each of several sets of fractions, in one pass."""
    Z = in_one_pass(layer, psi, *taus) if len(taus) > 1 else [layer(psi, taus[0])]
    return [Prediction(z, jnp.broadcast_to(tau, z.shape[:-1])) for z, tau in zip(Z, taus, strict=True)]


def quantiles(layer: Layer, psi: Features, tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """Z at tau."""
    return predict(layer, psi, [tau], config)[0].Y


HEAD = quantile.HEAD._replace(
    name="implicit_quantile",
    configs=(ImplicitQuantiles,),
    check=lambda config: risk.check(config.risk, config.risk_eta),
    layer=layer,
    draw=draw,
    draw_acting=draw_acting,
    predict=predict,
    quantiles=quantiles,
    acting_draws=lambda config: config.num_quantile_samples,
)
