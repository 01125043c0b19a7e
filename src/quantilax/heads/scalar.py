"""Scalar: the mean of the return, Q, by the squared error."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int, Key

from quantilax import losses
from quantilax.heads import fixed
from quantilax.heads.types import Head
from quantilax.types import Config


def mean(Y: Float[Array, "1 A"], config: Config) -> Float[Array, "A"]:
    """Q."""
    return Y.mean(axis=0)


def loss(
    y: Float[Array, "1"], q: Float[Array, ""], tau: Float[Array, "1"], target: Float[Array, ""], config: Config
) -> Float[Array, ""]:
    """`(q - target)^2 / 2`."""
    return 0.5 * (q - target) ** 2


def expected(target: Float[Array, "*batch"], config: Config) -> Float[Array, "*batch"]:
    """A target is a mean."""
    return target


def errors(
    y: Float[Array, "B 1"], q: Float[Array, "B"], target: Float[Array, "B"], config: Config
) -> Float[Array, "B 1 1"]:
    """Target less q."""
    return (target - q)[:, None, None]


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    Z: Float[Array, "T E 1"],
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E"]:
    """G of every step."""
    return jax.vmap(losses.lambda_returns, in_axes=1, out_axes=1)(reward, discount, Z[..., 0], trace)


def soft_lambda_returns(
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    q_next: Float[Array, "T E A"],
    q_before: Float[Array, "T E A"],
    action: Int[Array, "T E"],
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E"]:
    """G of the softmax policy."""
    fixed_numbers = config.munchausen_temperature, config.munchausen_alpha, config.munchausen_clip
    of_column = jax.vmap(losses.munchausen_lambda_returns, in_axes=(*[1] * 6, *[None] * 3), out_axes=1)
    G: Float[Array, "T E"] = of_column(reward, discount, q_next, q_before, action, trace, *fixed_numbers)
    return G


HEAD = Head(
    name="scalar",
    configs=(),
    layer=partial(fixed.layer, 1),
    mean=mean,
    learned=fixed.learned,
    successor=fixed.successor(mean),
    acting=fixed.acting(mean),
    values=fixed.values(mean),
    loss=loss,
    expected=expected,
    errors=errors,
    lambda_returns=lambda_returns,
    soft_lambda_returns=soft_lambda_returns,
)
