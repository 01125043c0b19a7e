"""Heads: modules that turn features psi(x) into values of the actions."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from quantilax.networks.dense import dense
from quantilax.networks.torsos import MLP, linear

# sin(2 pi u) / u on |u| <= 1/4 as a polynomial in u^2, lowest power first. A test recomputes this
# minimax fit.
SINE = (6.283185160, -41.341655031, 81.601004061, -76.549781985, 39.536703599)


def cosines(tau: Float[Array, "*N"], n: int) -> Float[Array, "*N n"]:
    """Return `cos(pi i tau)` for i = 1, ..., n.

    The paper prints i = 0, ..., n - 1, but i = 0 gives a constant, which the bias already provides.

    The cosine is a polynomial of the reduced argument: `x = i tau / 2` turns, `r = x - round(x)`,
    `cos = sin(2 pi (1/4 - |r|))`. The argument `1/4 - |r|` never leaves [-1/4, 1/4], so the result
    is closer to the true value than XLA's cosine. It is also about twice as fast on a CPU.
    """
    turns = tau[..., None] * (0.5 * jnp.arange(1, n + 1, dtype=jnp.float32))
    u = 0.25 - jnp.abs(turns - jnp.round(turns))
    square = u * u
    polynomial = jnp.float32(SINE[-1])
    for coefficient in SINE[-2::-1]:
        polynomial = polynomial * square + np.float32(coefficient)
    return u * polynomial


class ActionHead(nnx.Module):
    """Hidden layers and an output layer that give n numbers per action.

    With `dueling` there are two such streams, combined as `V + A(., a) - mean_a A`: Wang et al.
    (2016), https://arxiv.org/abs/1511.06581, equation 9. For distributions this applies to each of
    the n numbers separately, as in Hessel et al. (2018), https://arxiv.org/abs/1710.02298.
    """

    def __init__(
        self,
        features: int,
        num_actions: int,
        n: int = 1,
        sizes: Sequence[int] = (),
        activation: str = "relu",
        layer_norm: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the layers, twice if `dueling`, with noise if `noisy`."""
        self.shape = (n, num_actions)
        self.mlp = MLP(features, sizes, activation, layer_norm, noisy, rngs=rngs)
        self.out = linear(self.mlp.features, n * num_actions, rngs, noisy, dtype=jnp.float32)
        if dueling:
            self.value_mlp = MLP(features, sizes, activation, layer_norm, noisy, rngs=rngs)
            self.value_out = linear(self.value_mlp.features, n, rngs, noisy, dtype=jnp.float32)
        self.dueling = dueling

    def __call__(self, x: Float[Array, "*rows features"]) -> Float[Array, "*rows n A"]:
        """Return n numbers per action for each row of features."""
        y = dense(self.out, self.mlp.rows(x)).reshape(*x.shape[:-1], *self.shape)
        if not self.dueling:
            return y
        value = dense(self.value_out, self.value_mlp.rows(x))
        return value[..., None] + y - y.mean(axis=-1, keepdims=True)


class CosineEmbedding(nnx.Module):
    """Embedding of fractions: phi_j(tau) = ReLU(sum_i cos(pi i tau) w_ij + b_j), i = 1, ..., n.

    n is `num_cosines`. Source: Dabney et al. (2018), https://arxiv.org/abs/1806.06923, section 3.
    """

    def __init__(self, num_cosines: int, features: int, *, rngs: nnx.Rngs) -> None:
        """Build the layer."""
        self.num_cosines = num_cosines
        self.linear = linear(num_cosines, features, rngs)

    def __call__(self, tau: Float[Array, "*shape"]) -> Float[Array, "*shape features"]:
        """Return phi(tau). All fractions go through the layer as one matrix."""
        phi = jax.nn.relu(dense(self.linear, cosines(tau.ravel(), self.num_cosines)))
        return phi.reshape(*tau.shape, phi.shape[-1])


class ImplicitQuantileHead(nnx.Module):
    """Quantiles Z_tau(x, a) = f(psi(x) * phi(tau))_a, with `*` elementwise and f an MLP.

    Source: Dabney et al. (2018), https://arxiv.org/abs/1806.06923, section 3.1.
    """

    def __init__(
        self,
        features: int,
        num_actions: int,
        sizes: Sequence[int],
        num_cosines: int,
        activation: str,
        layer_norm: bool,
        dueling: bool = False,
        noisy: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the embedding, and f with hidden layers of `sizes`."""
        self.embedding = CosineEmbedding(num_cosines, features, rngs=rngs)
        self.f = ActionHead(features, num_actions, 1, sizes, activation, layer_norm, dueling, noisy, rngs=rngs)

    def __call__(
        self, psi: Float[Array, "*batch features"], tau: Float[Array, "*#batch N"]
    ) -> Float[Array, "*batch N A"]:
        """Return Z at each fraction.

        psi is computed once, whatever the number of fractions. phi is computed once if a batch
        shares its fractions. All rows go through the layers as one matrix, because gradients of
        weights that contract over several axes are slow on a CPU.
        """
        product = psi[..., None, :] * self.embedding(tau)
        Z = self.f(product.reshape(-1, product.shape[-1]))
        return Z.reshape(*product.shape[:-1], Z.shape[-1])


class FractionProposal(nnx.Module):
    """Logarithms of N shares of [0, 1], computed from features: p = softmax(W psi + b).

    Source: Yang et al. (2019), https://arxiv.org/abs/1911.02140, section 3.2.
    """

    def __init__(self, features: int, n: int, *, rngs: nnx.Rngs) -> None:
        """Build the layer with zero weights, so that all shares start equal."""
        zeros = jax.nn.initializers.zeros
        # float32 even if other layers compute in bfloat16: logarithms need the precision.
        self.linear = nnx.Linear(features, n, kernel_init=zeros, dtype=jnp.float32, rngs=rngs)

    def __call__(self, psi: Float[Array, "*batch features"]) -> Float[Array, "*batch N"]:
        """Return ln p."""
        return jax.nn.log_softmax(dense(self.linear, psi))


def monotone(raw: Float[Array, "N+2 A"]) -> Float[Array, "N A"]:
    """Return N quantiles per action that never cross, made from N + 2 numbers.

        theta_i = softplus(s) sum_{j <= i} softmax(l)_j + b

    The first N numbers are l, the last two s and b. The paper uses relu(s), which dies: where
    `s <= 0`, the gradients of s and of all l are exactly 0. That happens for half of the
    observations at first, and wherever a return had no spread for a while.

    Source: Zhou, Wang & Feng (2020), Non-crossing quantile regression for deep reinforcement
    learning, NeurIPS 33.
    """
    logits, scale, offset = raw[:-2], jax.nn.softplus(raw[-2]), raw[-1]
    return scale * jnp.cumsum(jax.nn.softmax(logits, axis=0), axis=0) + offset


def in_one_pass(
    head: Callable[[Float[Array, "*batch features"], Float[Array, "*#batch N"]], Float[Array, "*batch N A"]],
    psi: Float[Array, "*batch features"],
    *taus: Float[Array, "*#batch N"],
) -> list[Float[Array, "*batch N A"]]:
    """Return `[head(psi, tau) for tau in taus]`, in one call: fewer and larger products."""
    ends = np.cumsum([tau.shape[-1] for tau in taus])[:-1]
    return jnp.split(head(psi, jnp.concatenate(taus, axis=-1)), ends, axis=-2)
