"""Categorical: probabilities p_i of M atoms z_i (C51; Bellemare, Dabney & Munos 2017, https://arxiv.org/abs/1707.06887).

Y are logits; z_1, ..., z_M, the support, go from `v_min` to `v_max`. The target is `Phi(r + g z)` with the probabilities
p(x', a*), Phi the projection onto the support, and the loss its cross-entropy with p(x, a).
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, losses
from quantilax.heads import fixed
from quantilax.heads.types import Features, Head, Layer, Prediction
from quantilax.hyperparameters import LEAST, MOST
from quantilax.networks import ActionHead
from quantilax.pytree import ConfigError, dataclass, field
from quantilax.types import Config


@dataclass
class Categorical:
    """The support."""

    num_atoms: int = field(51, "M, atoms of the support", ge=2)
    v_min: float = field(-10.0, "least return that the support has, in the units that are learned")
    v_max: float = field(10.0, "greatest return that the support has, in the units that are learned")

    def check_support(self) -> None:
        """Raise `ConfigError` for a support that is empty, or whose atoms floats of 32 bits do not tell apart."""
        if any(isinstance(v, jax.core.Tracer) or np.ndim(v) for v in (self.v_min, self.v_max)):  # in a sweep
            return
        if self.v_min >= self.v_max:
            raise ConfigError(f"v_min: {self.v_min} is not below v_max={self.v_max}; lower it")
        for name, v in (("v_min", self.v_min), ("v_max", self.v_max)):
            if abs(v) > MOST:
                raise ConfigError(f"{name}: must be >= {-MOST} and <= {MOST}, got {v}; change reward_scale")
        low, high = np.float32(self.v_min), np.float32(self.v_max)
        atoms = low + (high - low) * np.linspace(0, 1, self.num_atoms, dtype=np.float32)
        if not (np.diff(atoms) >= LEAST).all():
            raise ConfigError(
                f"v_min: {self.num_atoms} atoms from {self.v_min} to {self.v_max} are too close for floats of 32 bits to"
                " tell them apart; lower num_atoms or widen the support"
            )


def layer(features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ActionHead:
    """Return a layer of M logits per action."""
    return fixed.layer(config.num_atoms, features, num_actions, config, rngs)


def support(config: Config) -> Float[Array, "M"]:
    """z_1, ..., z_M."""
    return losses.support(config.v_min, config.v_max, config.num_atoms)


def mean(prediction: Prediction, config: Config) -> Float[Array, "*A"]:
    """`sum_i z_i p_i`."""
    return support(config) @ jax.nn.softmax(prediction.Y, axis=0)


def target(
    reward: Float[Array, ""], discount: Float[Array, ""], successor: Prediction, config: Config
) -> Float[Array, "M"]:
    """Probabilities of `Phi(reward + discount z)`, those of z being p(x', a*)."""
    z = support(config)
    return losses.categorical_projection(reward + discount * z, jax.nn.softmax(successor.Y), z)


def soft_target(
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    successor: Prediction,
    t_log_pi: Float[Array, "A"],
    pi: Float[Array, "A"],
    config: Config,
) -> Float[Array, "M"]:
    """Of the mixture over a ~ pi: probabilities of `Phi(reward + discount (z - t ln pi(a)))`, those of z being p(x', a)."""
    z = support(config)
    atoms = reward + discount * (z[:, None] - t_log_pi)  # (M, A)
    p = pi * jax.nn.softmax(successor.Y, axis=0)
    return losses.categorical_projection(atoms.ravel(), p.ravel(), z)


def loss(taken: Prediction, target: Float[Array, "M"], config: Config) -> Float[Array, ""]:
    """Cross-entropy with the target's probabilities."""
    return -(target @ jax.nn.log_softmax(taken.Y))


def priority(taken: Prediction, target: Float[Array, "M"], config: Config) -> Float[Array, ""]:
    """The target's Kullback-Leibler divergence from p(x, a), as Hessel et al. (2018) have it."""
    return losses.kl_divergence(target, jax.nn.log_softmax(taken.Y))


def expected(target: Float[Array, "M"], config: Config) -> Float[Array, ""]:
    """`sum_i z_i p_i` of the target."""
    return target @ support(config)


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    successors: Prediction,
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E M"]:
    """Probabilities of the mixture of returns, projected at each step."""
    of_column = jax.vmap(losses.categorical_lambda_returns, in_axes=(1, 1, 1, 1, None), out_axes=1)
    p = jax.nn.softmax(successors.Y, axis=-1)
    G: Float[Array, "T E M"] = of_column(reward, discount, p, trace, support(config))
    return G


def quantiles(layer: Layer, psi: Features, tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """The least atom whose P(Z <= z) is tau."""
    return fractions.of_atoms(jax.nn.softmax(fixed.outputs(layer, psi), axis=0), support(config), tau)


def bounds(config: Config) -> tuple[Any, Any]:
    """`v_min` and `v_max`."""
    return config.v_min, config.v_max


HEAD = Head(
    name="categorical",
    configs=(Categorical,),
    check=Categorical.check_support,
    layer=layer,
    predict=fixed.predict,
    mean=mean,
    target=target,
    soft_target=soft_target,
    expected=expected,
    loss=loss,
    priority=priority,
    lambda_returns=lambda_returns,
    quantiles=quantiles,
    support=bounds,
)
