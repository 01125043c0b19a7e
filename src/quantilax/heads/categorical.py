"""Categorical: probabilities of M atoms, by cross-entropy (Bellemare, Dabney & Munos 2017, https://arxiv.org/abs/1707.06887).

Y are logits; z_1, ..., z_M, the support, go from `v_min` to `v_max`.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, losses
from quantilax.heads import fixed
from quantilax.heads.types import Head, Network
from quantilax.hyperparameters import LEAST, MOST
from quantilax.networks import ActionHead
from quantilax.pytree import ConfigError, dataclass, field
from quantilax.types import Config, Observation


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


def mean(Y: Float[Array, "M A"], config: Config) -> Float[Array, "A"]:
    """`sum_i z_i p_i`."""
    return support(config) @ jax.nn.softmax(Y, axis=0)


def loss(
    y: Float[Array, "M"], q: Float[Array, ""], tau: Float[Array, "M"], target: Float[Array, "M"], config: Config
) -> Float[Array, ""]:
    """Cross-entropy with the target's probabilities."""
    return -(target @ jax.nn.log_softmax(y))


def expected(target: Float[Array, "*batch M"], config: Config) -> Float[Array, "*batch"]:
    """`sum_i z_i p_i` of the target."""
    return target @ support(config)


def errors(
    y: Float[Array, "B M"], q: Float[Array, "B"], target: Float[Array, "B M"], config: Config
) -> Float[Array, "B 1 1"]:
    """Mean of the target less q."""
    return (expected(target, config) - q)[:, None, None]


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    Z: Float[Array, "T E M"],
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E M"]:
    """Probabilities of the mixture of returns, projected at each step."""
    of_column = jax.vmap(losses.categorical_lambda_returns, in_axes=(1, 1, 1, 1, None), out_axes=1)
    G: Float[Array, "T E M"] = of_column(reward, discount, jax.nn.softmax(Z, axis=-1), trace, support(config))
    return G


def quantiles(network: Network, x: Observation, tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """The least atom whose P(Z <= z) is tau."""
    Y = fixed.outputs(network, x[None])[0]
    return fractions.of_atoms(jax.nn.softmax(Y, axis=0), support(config), tau)


def bounds(config: Config) -> tuple[Any, Any]:
    """`v_min` and `v_max`."""
    return config.v_min, config.v_max


HEAD = Head(
    name="categorical",
    configs=(Categorical,),
    check=Categorical.check_support,
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
    support=bounds,
)
