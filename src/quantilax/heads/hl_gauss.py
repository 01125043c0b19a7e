"""HL-Gauss: the mean of the return as a histogram smoothed by a Gaussian (Farebrother et al. 2024, https://arxiv.org/abs/2403.03950).

Y are logits of M bins around the atoms z_1, ..., z_M of the categorical head; `Q = sum_i z_i softmax(Y)_i`. A target is a
number, as with the scalar head. Its histogram has the mass that a Gaussian around it leaves to each bin, and the loss is the
cross-entropy with that histogram. The bins reach half an atom beyond the support, where the paper's end at it.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key

from quantilax.heads import categorical, scalar
from quantilax.heads.types import Prediction
from quantilax.hyperparameters import LEAST
from quantilax.pytree import dataclass, field
from quantilax.types import Config


@dataclass
class HLGauss:
    """The Gaussian."""

    hl_gauss_sigma: float = field(
        0.75, "sigma of HL-Gauss, the Gaussian around a target, in steps of the support", ge=LEAST
    )


def histogram(target: Float[Array, ""], config: Config) -> Float[Array, "M"]:
    """`p_i = Phi((i + 1/2 - b) / sigma) - Phi((i - 1/2 - b) / sigma)`, over their sum; b is the target's place in the support.

    Args:
        target: beyond the support it counts as the support's end.
        config: support and sigma.
    """
    z = categorical.support(config)
    n = z.shape[0]
    b = (jnp.clip(target, z[0], z[-1]) - z[0]) / (z[-1] - z[0]) * (n - 1)
    below = norm.cdf((jnp.arange(n + 1) - 0.5 - b) / config.hl_gauss_sigma)
    return jnp.diff(below) / (below[-1] - below[0])


def target(
    reward: Float[Array, ""], discount: Float[Array, ""], successor: Prediction, config: Config
) -> Float[Array, ""]:
    """`y = reward + discount Q(x', a*)`."""
    return reward + discount * categorical.mean(successor, config)


def soft_target(
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    successor: Prediction,
    t_log_pi: Float[Array, "A"],
    pi: Float[Array, "A"],
    config: Config,
) -> Float[Array, ""]:
    """`y = reward + discount sum_a pi(a) (Q(x', a) - t ln pi(a))`."""
    return reward + discount * ((categorical.mean(successor, config) - t_log_pi) @ pi)


def loss(taken: Prediction, target: Float[Array, ""], config: Config) -> Float[Array, ""]:
    """Cross-entropy with the target's histogram."""
    return -(histogram(target, config) @ jax.nn.log_softmax(taken.Y))


def lambda_returns(
    key: Key[Array, ""],
    reward: Float[Array, "T E"],
    discount: Float[Array, "T E"],
    successors: Prediction,
    trace: Float[Array, "T E"],
    config: Config,
) -> Float[Array, "T E"]:
    """G of every step, from the means of the successors."""
    v = categorical.expected(jax.nn.softmax(successors.Y, axis=-1), config)
    return scalar.lambda_returns(key, reward, discount, Prediction(v[..., None]), trace, config)


HEAD = categorical.HEAD._replace(
    name="hl_gauss",
    configs=(categorical.Categorical, HLGauss),
    target=target,
    soft_target=soft_target,
    expected=scalar.expected,
    loss=loss,
    priority=None,
    lambda_returns=lambda_returns,
    soft_lambda_returns=scalar.soft_lambda_returns,
    quantiles=None,
)
