"""Fractions tau in [0, 1], at which quantile functions are evaluated.

This includes the quantile functions of fixed quantiles and of atoms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Fractions = Float[Array, "*shape N"]


def uniform(u: Fractions) -> Fractions:
    """Independent and uniform, as in the IQN paper."""
    return u


def stratified(u: Fractions) -> Fractions:
    """One fraction in each of N equal strata, uniform within it: `tau_i = (i + u_i) / N`.

    Means over such fractions vary less.
    """
    n = u.shape[-1]
    return (jnp.arange(n, dtype=u.dtype) + u) / n


def midpoints(u: Fractions) -> Fractions:
    """The midpoints of N equal strata, `tau_i = (i + 1/2) / N`; nothing is drawn."""
    return stratified(jnp.full(u.shape[-1:], 0.5, u.dtype))


SAMPLERS: dict[str, Callable[[Fractions], Fractions]] = {
    "uniform": uniform,
    "stratified": stratified,
    "midpoints": midpoints,
}


def proposed(log_p: Float[Array, "*shape N"]) -> Float[Array, "*shape N+1"]:
    """Fractions `0 = tau_0 <= ... <= tau_N = 1` with `tau_i = p_0 + ... + p_{i-1}`.

    Args:
        log_p: logarithms of N shares of [0, 1].
    """
    inner = jnp.minimum(jnp.cumsum(jnp.exp(log_p[..., :-1]), axis=-1), 1.0)  # rounding can make a sum larger than 1
    zero = jnp.zeros_like(log_p[..., :1])
    return jnp.concatenate([zero, inner, zero + 1], axis=-1)


def centres(tau: Float[Array, "*shape N+1"]) -> Float[Array, "*shape N"]:
    """`(tau_i + tau_{i+1}) / 2`."""
    return (tau[..., :-1] + tau[..., 1:]) / 2


def expectation(tau: Float[Array, "N+1"], z: Float[Array, "N *A"]) -> Float[Array, "*A"]:
    """`sum_i (tau_{i+1} - tau_i) z_i`.

    This is the mean of the distribution whose quantile is z_i between tau_i and tau_{i+1}.
    """
    return jnp.diff(tau) @ z


def draw(
    key: Key[Array, ""], sampler: str, shape: tuple[int, ...], numbers: tuple[int, ...]
) -> list[Float[Array, "*shape N"]]:
    """Draw sets of fractions, all from one call of the generator.

    Args:
        key: consumed.
        sampler: a name in `SAMPLERS`; each set is stratified separately.
        shape: leading axes of each set; () if one draw serves a whole batch.
        numbers: N of each set.
    """
    u = jax.random.uniform(key, (*shape, sum(numbers)))
    ends = [sum(numbers[: i + 1]) for i in range(len(numbers) - 1)]
    return [SAMPLERS[sampler](part) for part in jnp.split(u, ends, axis=-1)]


def of_quantiles(Z: Float[Array, "n A"], tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """The step function through n quantiles at the midpoints.

    It is Z_i for tau in ((i - 1) / n, i / n].
    """
    n = Z.shape[0]
    return Z[jnp.clip(jnp.ceil(tau * n).astype(jnp.int32) - 1, 0, n - 1)]


def of_atoms(
    probabilities: Float[Array, "M A"], support: Float[Array, "M"], tau: Float[Array, "N"]
) -> Float[Array, "N A"]:
    """The smallest z_i with p_1 + ... + p_i >= tau."""
    below = jnp.cumsum(probabilities, axis=0)[None] < tau[:, None, None]  # (N, M, A)
    return support[jnp.minimum(below.sum(axis=1), support.shape[0] - 1)]


GRID = np.arange(1, 200, dtype=np.float32) / 200
"""Levels at which the whole of a learned distribution is read."""


class Recalibration(NamedTuple):
    """A correction of learned quantiles, for L equidistant tau from 0 to 1 and linear in between.

    The corrected quantile is `Z_level(tau) + excess(tau) s`, where s is the standard deviation of Z
    over `GRID`, and at least `least`. The excess is 0 except in tails that no learned quantile
    reaches.
    """

    levels: Float[Array, "L"]
    excess: Float[Array, "L"]
    least: Float[Array, ""] | float

    def quantiles(
        self, Z: Callable[[Float[Array, "n"]], Float[Array, "n *A"]], tau: Float[Array, "N"]
    ) -> Float[Array, "N *A"]:
        """Return corrected quantiles.

        Args:
            Z: levels -> learned quantiles.
            tau: fractions.
        """
        at = jnp.linspace(0, 1, self.levels.shape[0])
        s = jnp.maximum(Z(jnp.asarray(GRID)).std(axis=0), self.least)
        excess = jnp.interp(tau, at, self.excess)
        return Z(jnp.interp(tau, at, self.levels)) + excess.reshape(-1, *(1 for _ in s.shape)) * s
