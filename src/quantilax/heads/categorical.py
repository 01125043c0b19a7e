"""Categorical head (C51): probabilities p_i of M atoms z_i.

Y holds logits. The atoms z_1, ..., z_M form the support, which runs from `v_min` to `v_max`. The
target is `Phi(r + g z)` with the probabilities p(x', a*), where Phi is the projection onto the
support. The loss is the cross-entropy of p(x, a) with it.

Source: Bellemare, Dabney & Munos (2017), https://arxiv.org/abs/1707.06887.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from quantilax import fractions, losses
from quantilax.errors import ConfigError
from quantilax.heads.base import Features, Head, Layer, Prediction, Scalar, Steps
from quantilax.hyperparameters import LEAST, MOST
from quantilax.losses import SoftPolicy
from quantilax.pytree import dataclass, field


@dataclass
class Categorical:
    """The support."""

    num_atoms: int = field(51, "M, atoms of the support", ge=2)
    v_min: float = field(-10.0, "lowest return in the support, in learned units")
    v_max: float = field(10.0, "highest return in the support, in learned units")


class OfAtoms(Head):
    """Base of the heads that learn a histogram, as logits of the atoms."""

    def check(self) -> None:
        """Raise `ConfigError` if the support is empty, too wide, or too fine for float32."""
        c = self.config
        if any(isinstance(v, jax.core.Tracer) or np.ndim(v) for v in (c.v_min, c.v_max)):  # in a sweep
            return
        if c.v_min >= c.v_max:
            raise ConfigError(f"v_min: {c.v_min} is not below v_max={c.v_max}; lower it")
        for name, v in (("v_min", c.v_min), ("v_max", c.v_max)):
            if abs(v) > MOST:
                raise ConfigError(f"{name}: must be >= {-MOST} and <= {MOST}, got {v}; change reward_scale")
        low, high = np.float32(c.v_min), np.float32(c.v_max)
        atoms = low + (high - low) * np.linspace(0, 1, c.num_atoms, dtype=np.float32)
        if not (np.diff(atoms) >= LEAST).all():
            raise ConfigError(
                f"v_min: {c.num_atoms} atoms from {c.v_min} to {c.v_max} are too close for floats of 32 bits to"
                " tell them apart; lower num_atoms or widen the support"
            )

    @property
    def support(self) -> tuple[Any, Any]:
        """`v_min` and `v_max`."""
        return self.config.v_min, self.config.v_max

    @property
    def atoms(self) -> Float[Array, "M"]:
        """z_1, ..., z_M."""
        return losses.support(self.config.v_min, self.config.v_max, self.config.num_atoms)

    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """Build a layer of M logits per action."""
        return self.action_layer(self.config.num_atoms, features, num_actions, rngs)

    def mean(self, prediction: Prediction) -> Float[Array, "*A"]:
        """Return `sum_i z_i p_i`."""
        return self.atoms @ jax.nn.softmax(prediction.Y, axis=0)


class CategoricalHead(OfAtoms):
    """Probabilities of the atoms, learned by cross-entropy."""

    name, configs = "categorical", (Categorical,)

    def target(self, reward: Scalar, discount: Scalar, successor: Prediction) -> Float[Array, "M"]:
        """Return the probabilities of `Phi(reward + discount z)`, those of z being p(x', a*)."""
        p = jax.nn.softmax(successor.Y)
        return losses.categorical_projection(reward + discount * self.atoms, p, self.atoms)

    def soft_target(
        self, reward: Scalar, discount: Scalar, successor: Prediction, policy: SoftPolicy
    ) -> Float[Array, "M"]:
        """Return the probabilities of `Phi(reward + discount (z - t ln pi(a)))` for a ~ pi.

        Given a, z has the probabilities p(x', a).
        """
        atoms = reward + discount * (self.atoms[:, None] - policy.t_log_pi)  # (M, A)
        p = policy.pi * jax.nn.softmax(successor.Y, axis=0)
        return losses.categorical_projection(atoms.ravel(), p.ravel(), self.atoms)

    def expected(self, target: Float[Array, "M"]) -> Scalar:
        """Return `sum_i z_i p_i` of the target."""
        return target @ self.atoms

    def loss(self, taken: Prediction, target: Float[Array, "M"]) -> Scalar:
        """Return the cross-entropy with the target's probabilities."""
        return -(target @ jax.nn.log_softmax(taken.Y))

    def priority(self, taken: Prediction, target: Float[Array, "M"]) -> Scalar:
        """Return the Kullback-Leibler divergence of the target from p(x, a).

        This is the priority of Hessel et al. (2018), https://arxiv.org/abs/1710.02298.
        """
        return losses.kl_divergence(target, jax.nn.log_softmax(taken.Y))

    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Prediction) -> Float[Array, "T E M"]:
        """Return the probabilities of the mixture of returns, projected at each step."""
        of_column = jax.vmap(losses.categorical_lambda_returns, in_axes=(1, 1, 1, 1, None), out_axes=1)
        p = jax.nn.softmax(successors.Y, axis=-1)
        G: Float[Array, "T E M"] = of_column(steps.reward, steps.discount, p, steps.trace, self.atoms)
        return G

    def quantiles(self, layer: Layer, psi: Features, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        """Return the least atom z with P(Z <= z) >= tau."""
        return fractions.of_atoms(jax.nn.softmax(self.outputs(layer, psi), axis=0), self.atoms, tau)
