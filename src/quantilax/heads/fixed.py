"""What heads share whose numbers stand for something fixed: a layer of n numbers per action, and nothing is drawn."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from quantilax.heads.types import Features, Layer, Prediction, Taus
from quantilax.networks import ActionHead
from quantilax.types import Config


def layer(n: int, features: int, num_actions: int, config: Config, rngs: nnx.Rngs) -> ActionHead:
    """Return a layer of n numbers per action."""
    sizes, activation = config.head_sizes, config.activation
    return ActionHead(
        features, num_actions, n, sizes, activation, config.layer_norm, config.dueling, config.noisy, rngs=rngs
    )


def outputs(layer: Layer, psi: Features) -> Float[Array, "*batch n A"]:
    """Y of one observation or of a batch."""
    return layer(psi) if psi.ndim == 1 else jax.vmap(layer)(psi)


def predict(layer: Layer, psi: Features, taus: Sequence[Taus], config: Config) -> list[Prediction]:
    """Y, the same whatever the fractions."""
    return [Prediction(outputs(layer, psi))] * len(taus)
