"""Scalar head: the mean of the return, Q.

Source: Mnih et al. (2015), https://doi.org/10.1038/nature14236.
"""

from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from quantilax import losses
from quantilax.heads.base import Head, Prediction, Scalar, Steps
from quantilax.hyperparameters import Huber
from quantilax.losses import SoftPolicy


class OfMeans(Head):
    """Base of the heads that learn only the mean. A target is a number."""

    def target(self, reward: Scalar, discount: Scalar, successor: Prediction) -> Scalar:
        """Return `y = reward + discount Q(x', a*)`."""
        return reward + discount * self.mean(successor)

    def soft_target(self, reward: Scalar, discount: Scalar, successor: Prediction, policy: SoftPolicy) -> Scalar:
        """Return `y = reward + discount sum_a pi(a) (Q(x', a) - t ln pi(a))`."""
        return reward + discount * ((self.mean(successor) - policy.t_log_pi) @ policy.pi)

    def expected(self, target: Scalar) -> Scalar:
        """Return y."""
        return target

    def lambda_returns(self, key: Key[Array, ""], steps: Steps, successors: Prediction) -> Float[Array, "T E"]:
        """Return G of every step."""
        v = jax.vmap(jax.vmap(self.mean))(successors)
        of_column = jax.vmap(losses.lambda_returns, in_axes=1, out_axes=1)
        G: Float[Array, "T E"] = of_column(steps.reward, steps.discount, v, steps.trace)
        return G

    def soft_lambda_returns(
        self,
        steps: Steps,
        q_next: Float[Array, "T E A"],
        q_before: Float[Array, "T E A"],
        action: Int[Array, "T E"],
        masked: bool,
    ) -> Float[Array, "T E"]:
        """Return G of every step, for the softmax policy."""
        c, soft = self.config, partial(losses.munchausen_lambda_returns, masked=masked)
        of_column = jax.vmap(soft, (*[1] * 6, *[None] * 3), 1)
        numbers = c.munchausen_temperature, c.munchausen_alpha, c.munchausen_clip
        G: Float[Array, "T E"] = of_column(
            steps.reward, steps.discount, q_next, q_before, action, steps.trace, *numbers
        )
        return G


class ScalarHead(OfMeans):
    """Q, learned by the Huber loss, or by the squared error if the training loop asks for it."""

    name, configs = "scalar", (Huber,)

    def layer(self, features: int, num_actions: int, rngs: nnx.Rngs) -> nnx.Module:
        """Build a layer of one number per action."""
        return self.action_layer(1, features, num_actions, rngs)

    def mean(self, prediction: Prediction) -> Float[Array, "*A"]:
        """Return Q."""
        return prediction.Y.mean(axis=0)

    def loss(self, taken: Prediction, target: Scalar) -> Scalar:
        """Return the loss of `delta = y - Q(x, a)`."""
        delta = target - self.mean(taken)
        return 0.5 * delta**2 if self.config.squared_error else losses.huber(delta, self.config.kappa)
