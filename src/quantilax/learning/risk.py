"""Distortions beta of fractions, for policies that avoid or seek risk, and measures of risk.

A distorted policy takes its mean over `Z_beta(tau)` with tau uniform (Dabney et al. 2018,
https://arxiv.org/abs/1806.06923). Only the acting policy is distorted. The loss and its choice of
a* are not, so Z stays that of the policy that maximises the mean. A distorted policy therefore
maximises neither the static nor the dynamic CVaR (Lim & Malik 2022). The objectives of
`risk_objective` in Q-learning do; see docs/risk.md.

`utility` and `cvar_of` are for equally likely numbers, such as quantiles at midpoints.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from quantilax.errors import ConfigError
from quantilax.pytree import in_program

Fractions = Float[Array, "*shape"]
Strength = Float[Array, ""] | float
MAX_CPW = 100
"""Beyond 126, `tau^eta` and `(1-tau)^eta` are both 0 in float32 at tau = 1/2, where `cpw` is then
0/0. The bound avoids that."""


def neutral(tau: Fractions, eta: Strength) -> Fractions:
    """Return the fractions unchanged: the policy maximises the mean."""
    return tau


def cvar(tau: Fractions, eta: Strength) -> Fractions:
    """Conditional value at risk, `eta tau`: the mean of the worst share `eta` in (0, 1]."""
    return eta * tau


def wang(tau: Fractions, eta: Strength) -> Fractions:
    """Wang (2000): `Phi(Phi^-1(tau) + eta)`. eta < 0 avoids risk, eta > 0 seeks it."""
    return norm.cdf(norm.ppf(tau) + eta)


def power(tau: Fractions, eta: Strength) -> Fractions:
    """Power: `tau^(1/(1+|eta|))` for eta >= 0, which seeks risk.

    For eta < 0, which avoids risk, it is `1 - (1-tau)^(1/(1+|eta|))`.
    """
    exponent = 1 / (1 + jnp.abs(eta))
    return jnp.where(jnp.asarray(eta) >= 0, tau**exponent, 1 - (1 - tau) ** exponent)


def cpw(tau: Fractions, eta: Strength) -> Fractions:
    """Cumulative probability weighting: `tau^eta / (tau^eta + (1-tau)^eta)^(1/eta)`.

    Its form is that of Tversky & Kahneman (1992), who estimated eta = .61 for gains and .69 for
    losses. The IQN paper uses .71, which it takes from Wu & Gonzalez (1996).
    """
    return tau**eta / (tau**eta + (1 - tau) ** eta) ** (1 / eta)


PREFER_MEAN = 1e-3
"""Weight of the mean in `utility`, for choices between actions that differ only above the stock."""


def utility(c: Float[Array, "k"], Z: Float[Array, "n A"], weights: Float[Array, "k"]) -> Float[Array, "A"]:
    """Return `sum_i weights_i E min(c_i + Z, 0) + PREFER_MEAN E Z` of each action.

    Args:
        c: stocks, in the units of Z.
        Z: equally likely returns of each action.
        weights: of the stocks.
    """
    lost = jnp.minimum(c[:, None, None] + Z, 0).mean(axis=1)  # (k, A)
    return weights @ lost + PREFER_MEAN * Z.mean(axis=0)


def cvar_of(z: Float[Array, "n *shape"], level: Strength) -> Float[Array, "*shape"]:
    """Return the mean of the worst share `level` of n equally likely numbers.

    The number on the border counts in part.
    """
    n = z.shape[0]
    share = jnp.clip(level * n - jnp.arange(n), 0, 1) / (level * n)
    return jnp.tensordot(share, jnp.sort(z, axis=0), axes=1)


def check(name: str, eta: Strength) -> None:
    """Raise `ConfigError` if a distortion is not defined at `eta`.

    Traced values and arrays pass unchecked.
    """
    if not isinstance(eta, float):
        return
    number = in_program(eta)
    if name == "cvar" and not 0 < number <= 1:
        raise ConfigError(f"risk_eta: must be > 0 and <= 1 for risk 'cvar', got {eta}")
    if name == "cpw" and not 0 < number <= MAX_CPW:
        raise ConfigError(f"risk_eta: must be > 0 and <= {MAX_CPW} for risk 'cpw', got {eta}")


DISTORTIONS: dict[str, Callable[[Fractions, Strength], Fractions]] = {
    "neutral": neutral,
    "cvar": cvar,
    "wang": wang,
    "power": power,
    "cpw": cpw,
}
