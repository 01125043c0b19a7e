"""Distortions beta of fractions, for a policy that acts averse to risk or fond of it.

A distorted policy takes its mean over `Z_beta(tau)` with tau uniform (Dabney et al. 2018, https://arxiv.org/abs/1806.06923).
Only the acting policy is distorted, never the loss, nor the choice of a* in it.
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
"""Beyond it, `tau^eta` and `(1-tau)^eta` are both 0 in floats of 32 bits."""


def neutral(tau: Fractions, eta: Strength) -> Fractions:
    """Leave the fractions as they are: the policy maximises the mean."""
    return tau


def cvar(tau: Fractions, eta: Strength) -> Fractions:
    """Conditional value at risk: `eta tau`, the mean of the worst `eta` of outcomes; eta in (0, 1]."""
    return eta * tau


def wang(tau: Fractions, eta: Strength) -> Fractions:
    """Wang: `Phi(Phi^-1(tau) + eta)`; eta < 0 is averse, eta > 0 seeks risk. Wang (2000)."""
    return norm.cdf(norm.ppf(tau) + eta)


def power(tau: Fractions, eta: Strength) -> Fractions:
    """Power: `tau^(1/(1+|eta|))` for eta >= 0 (seeks risk), else `1 - (1-tau)^(1/(1+|eta|))` (averse)."""
    exponent = 1 / (1 + jnp.abs(eta))
    return jnp.where(jnp.asarray(eta) >= 0, tau**exponent, 1 - (1 - tau) ** exponent)


def cpw(tau: Fractions, eta: Strength) -> Fractions:
    """Cumulative probability weighting: `tau^eta / (tau^eta + (1-tau)^eta)^(1/eta)`. Tversky & Kahneman (1992): .71."""
    return tau**eta / (tau**eta + (1 - tau) ** eta) ** (1 / eta)


def check(name: str, eta: Strength) -> None:
    """Raise `ConfigError` where a distortion is not defined at `eta`; what is traced or an array passes."""
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
