"""Fractions tau in [0, 1]: where quantile functions are evaluated, and what fixed quantiles and atoms give there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Fractions = Float[Array, "*shape N"]


def uniform(u: Fractions) -> Fractions:
    """Independent and uniform, as the paper has them."""
    return u


def stratified(u: Fractions) -> Fractions:
    """One in each of N equal strata, uniform within: `tau_i = (i + u_i) / N`; means over them vary less."""
    n = u.shape[-1]
    return (jnp.arange(n, dtype=u.dtype) + u) / n


def midpoints(u: Fractions) -> Fractions:
    """The middles of N equal strata, `tau_i = (i + 1/2) / N`: nothing is drawn."""
    return stratified(jnp.full(u.shape[-1:], 0.5, u.dtype))


SAMPLERS: dict[str, Callable[[Fractions], Fractions]] = {
    "uniform": uniform,
    "stratified": stratified,
    "midpoints": midpoints,
}


def proposed(log_p: Float[Array, "*shape N"]) -> Float[Array, "*shape N+1"]:
    """`0 = tau_0 <= ... <= tau_N = 1` from the logarithms of N shares of [0, 1]: `tau_i = p_0 + ... + p_{i-1}`."""
    inner = jnp.minimum(jnp.cumsum(jnp.exp(log_p[..., :-1]), axis=-1), 1.0)  # rounding can carry a sum beyond 1
    zero = jnp.zeros_like(log_p[..., :1])
    return jnp.concatenate([zero, inner, zero + 1], axis=-1)


def centres(tau: Float[Array, "*shape N+1"]) -> Float[Array, "*shape N"]:
    """`(tau_i + tau_{i+1}) / 2`."""
    return (tau[..., :-1] + tau[..., 1:]) / 2


def expectation(tau: Float[Array, "N+1"], z: Float[Array, "N *A"]) -> Float[Array, "*A"]:
    """`sum_i (tau_{i+1} - tau_i) z_i`: the mean of what has the quantile z_i from tau_i to tau_{i+1}."""
    return jnp.diff(tau) @ z


def draw(
    key: Key[Array, ""], sampler: str, shape: tuple[int, ...], numbers: tuple[int, ...]
) -> list[Float[Array, "*shape N"]]:
    """Draw sets of `numbers` fractions, each set with the leading axes `shape`; all from one call of the generator.

    Args:
        key: consumed.
        sampler: a name in `SAMPLERS`; every set is stratified by itself.
        shape: () where one draw serves a whole batch.
        numbers: N of each set.
    """
    u = jax.random.uniform(key, (*shape, sum(numbers)))
    ends = [sum(numbers[: i + 1]) for i in range(len(numbers) - 1)]
    return [SAMPLERS[sampler](part) for part in jnp.split(u, ends, axis=-1)]


def of_quantiles(Z: Float[Array, "n A"], tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """The step function through n quantiles at the midpoints: Z_i where tau lies in ((i - 1) / n, i / n]."""
    n = Z.shape[0]
    return Z[jnp.clip(jnp.ceil(tau * n).astype(jnp.int32) - 1, 0, n - 1)]


def of_atoms(
    probabilities: Float[Array, "M A"], support: Float[Array, "M"], tau: Float[Array, "N"]
) -> Float[Array, "N A"]:
    """The least z_i with p_1 + ... + p_i >= tau."""
    below = jnp.cumsum(probabilities, axis=0)[None] < tau[:, None, None]  # (N, M, A)
    return support[jnp.minimum(below.sum(axis=1), support.shape[0] - 1)]
