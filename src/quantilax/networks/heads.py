"""Heads: from features psi(x) to values of the actions."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from quantilax.networks.dense import dense
from quantilax.networks.torsos import MLP, linear

# sin(2 pi u) / u on |u| <= 1/4 as a polynomial in u^2, lowest power first; its minimax fit is remade by a test.
SINE = (6.283185160, -41.341655031, 81.601004061, -76.549781985, 39.536703599)


def cosines(tau: Float[Array, "*N"], n: int) -> Float[Array, "*N n"]:
    """`cos(pi i tau)` for i = 1, ..., n (the paper prints 0, ..., n - 1; i = 0 is a constant, which the bias already gives).

    By reduction to turns and a polynomial, about twice as fast on a CPU as XLA's cosine and closer to the true value,
    since the argument never leaves [-1/4, 1/4]: `x = i tau / 2` turns, `r = x - round(x)`, `cos = sin(2 pi (1/4 - |r|))`.
    """
    turns = tau[..., None] * (0.5 * jnp.arange(1, n + 1, dtype=jnp.float32))
    u = 0.25 - jnp.abs(turns - jnp.round(turns))
    square = u * u
    polynomial = jnp.float32(SINE[-1])
    for coefficient in SINE[-2::-1]:
        polynomial = polynomial * square + np.float32(coefficient)
    return u * polynomial


class QHead(nnx.Module):
    """Q(x, a) = W psi(x) + b."""

    def __init__(self, features: int, num_actions: int, *, rngs: nnx.Rngs) -> None:
        """Make the layer."""
        self.out = linear(features, num_actions, rngs)

    def __call__(self, psi: Float[Array, "features"]) -> Float[Array, "A"]:
        """Values of one observation."""
        return self.out(psi)


class CosineEmbedding(nnx.Module):
    """phi_j(tau) = ReLU(sum_i cos(pi i tau) w_ij + b_j), i = 1, ..., num_cosines. Dabney et al. (2018), section 3."""

    def __init__(self, num_cosines: int, features: int, *, rngs: nnx.Rngs) -> None:
        """Make the layer."""
        self.num_cosines = num_cosines
        self.linear = linear(num_cosines, features, rngs)

    def __call__(self, tau: Float[Array, "*shape"]) -> Float[Array, "*shape features"]:
        """phi(tau), all rows as one matrix."""
        phi = jax.nn.relu(dense(self.linear, cosines(tau.ravel(), self.num_cosines)))
        return phi.reshape(*tau.shape, phi.shape[-1])


class ImplicitQuantileHead(nnx.Module):
    """Z_tau(x, a) = f(psi(x) * phi(tau))_a, `*` elementwise, f an MLP. Dabney et al. (2018), section 3.1."""

    def __init__(
        self,
        features: int,
        num_actions: int,
        sizes: Sequence[int],
        num_cosines: int,
        activation: str,
        layer_norm: bool,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the embedding, the layers of `sizes` and the output."""
        self.embedding = CosineEmbedding(num_cosines, features, rngs=rngs)
        self.mlp = MLP(features, sizes, activation, layer_norm, rngs=rngs)
        self.out = linear(self.mlp.features, num_actions, rngs)

    def __call__(
        self, psi: Float[Array, "*batch features"], tau: Float[Array, "*#batch N"]
    ) -> Float[Array, "*batch N A"]:
        """Z at each fraction: psi is computed once, whatever the number of fractions, and phi once where a batch shares them.

        All rows go through the layers as one matrix: gradients of weights that contract over several axes are slow on a CPU.
        """
        product = psi[..., None, :] * self.embedding(tau)
        Z = dense(self.out, self.mlp.rows(product.reshape(-1, product.shape[-1])))
        return Z.reshape(*product.shape[:-1], Z.shape[-1])


def in_one_pass(
    head: Callable[[Float[Array, "*batch features"], Float[Array, "*#batch N"]], Float[Array, "*batch N A"]],
    psi: Float[Array, "*batch features"],
    *taus: Float[Array, "*#batch N"],
) -> list[Float[Array, "*batch N A"]]:
    """`[head(psi, tau) for tau in taus]`, as one call: fewer and larger products."""
    ends = np.cumsum([tau.shape[-1] for tau in taus])[:-1]
    return jnp.split(head(psi, jnp.concatenate(taus, axis=-1)), ends, axis=-2)
