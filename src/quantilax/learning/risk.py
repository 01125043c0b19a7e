"""Distortions beta of fractions, for policies that avoid or seek risk.

A distorted policy takes its mean over `Z_beta(tau)` with tau uniform (Dabney et al. 2018,
https://arxiv.org/abs/1806.06923). Only the acting policy is distorted. The loss and its choice of
a* are not.
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
"""Beyond it, `tau^eta` and `(1-tau)^eta` are both 0 in float32."""


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

    Tversky & Kahneman (1992) found eta = .71.
    """
    return tau**eta / (tau**eta + (1 - tau) ** eta) ** (1 / eta)


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
