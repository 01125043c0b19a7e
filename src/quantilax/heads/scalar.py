"""Scalar: the mean of the return, Q (Mnih et al. 2015, https://doi.org/10.1038/nature14236)."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int, Key

from quantilax import losses
from quantilax.heads import fixed
from quantilax.heads.types import Head, Prediction
from quantilax.hyperparameters import Huber
from quantilax.types import Config


def mean(prediction: Prediction, config: Config) -> Float[Array, "*A"]:
    """Q."""
    return prediction.Y.mean(axis=0)


def target(
    reward: Float[Array, ""], discount: Float[Array, ""], successor: Prediction, config: Config
) -> Float[Array, ""]:
    """`y = reward + discount Q(x', a*)`."""
    return reward + discount * mean(successor, config)


def soft_target(
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    successor: Prediction,
    t_log_pi: Float[Array, "A"],
    pi: Float[Array, "A"],
    config: Config,
) -> Float[Array, ""]:
    """`y = reward + discount sum_a pi(a) (Q(x', a) - t ln pi(a))`."""
    return reward + discount * ((successor.Y - t_log_pi) @ pi)[0]


def loss(taken: Prediction, target: Float[Array, ""], config: Config) -> Float[Array, ""]:
    """Huber loss of y - Q(x, a); `(y - Q)^2 / 2` where the loop has it so."""
    delta = target - mean(taken, config)
    return 0.5 * delta**2 if config.squared_error else losses.huber(delta, config.kappa)


def expected(target: Float[Array, ""], config: Config) -> Float[Array, ""]:
    """A target is a mean."""
    return target


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    successors: Prediction,
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E"]:
    """G of every step."""
    return jax.vmap(losses.lambda_returns, in_axes=1, out_axes=1)(reward, discount, successors.Y[..., 0], trace)


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
    configs=(Huber,),
    layer=partial(fixed.layer, 1),
    predict=fixed.predict,
    mean=mean,
    target=target,
    soft_target=soft_target,
    expected=expected,
    loss=loss,
    lambda_returns=lambda_returns,
    soft_lambda_returns=soft_lambda_returns,
)
