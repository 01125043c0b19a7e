"""HL-Gauss head: the mean of the return, learned as a histogram smoothed by a Gaussian.

Y holds the logits of M bins around the atoms z_1, ..., z_M of the categorical head, and
`Q = sum_i z_i softmax(Y)_i`. A target is a number, as with the scalar head. Its histogram gives
each bin the mass of a Gaussian centred at the target. The loss is the cross-entropy with that
histogram. The bins extend half an atom beyond the support, while the paper's bins end with it.

Source: Farebrother et al. (2024), https://arxiv.org/abs/2403.03950.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from quantilax.heads.base import Prediction, Scalar
from quantilax.heads.categorical import Categorical, OfAtoms
from quantilax.heads.scalar import OfMeans
from quantilax.hyperparameters import LEAST
from quantilax.pytree import dataclass, field


@dataclass
class HLGauss:
    """The Gaussian."""

    hl_gauss_sigma: float = field(
        0.75, "sigma of HL-Gauss, the Gaussian around a target, in steps of the support", ge=LEAST
    )


class HLGaussHead(OfMeans, OfAtoms):
    """Q, learned through the histogram of the target."""

    name, configs = "hl_gauss", (Categorical, HLGauss)

    def histogram(self, target: Scalar) -> Float[Array, "M"]:
        """Return `p_i = Phi((i + 1/2 - b) / sigma) - Phi((i - 1/2 - b) / sigma)`, over their sum.

        Phi is the normal CDF. i and b count steps of the support from its lower end; b is the
        position of the target. A target beyond the support counts as the nearer end.
        """
        z = self.atoms
        n = z.shape[0]
        b = (jnp.clip(target, z[0], z[-1]) - z[0]) / (z[-1] - z[0]) * (n - 1)
        below = norm.cdf((jnp.arange(n + 1) - 0.5 - b) / self.config.hl_gauss_sigma)
        return jnp.diff(below) / (below[-1] - below[0])

    def loss(self, taken: Prediction, target: Scalar) -> Scalar:
        """Return the cross-entropy with the target's histogram."""
        return -(self.histogram(target) @ jax.nn.log_softmax(taken.Y))
