"""Torsos: from an observation to features psi(x)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from quantilax.networks.dense import dense
from quantilax.networks.noisy import NoisyLinear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "swish": jax.nn.swish,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
}

uniform_fan_in = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as DQN and its descendants initialise."""


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, noisy: bool = False) -> nnx.Linear:
    """Return a dense layer with `uniform_fan_in` weights and zero biases, with noise if `noisy`."""
    return (NoisyLinear if noisy else nnx.Linear)(inputs, outputs, kernel_init=uniform_fan_in, rngs=rngs)


class MLP(nnx.Module):
    """Dense layers, each followed by LayerNorm (where asked for) and the activation; the input is flattened."""

    def __init__(
        self,
        inputs: int,
        sizes: Sequence[int],
        activation: str,
        layer_norm: bool,
        noisy: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make a layer for each of `sizes`; `activation` is a name in `ACTIVATIONS`."""
        widths = [inputs, *sizes]
        self.layers = nnx.List([linear(i, o, rngs, noisy) for i, o in pairwise(widths)])
        self.norms = nnx.List([nnx.LayerNorm(o, rngs=rngs) for o in sizes] if layer_norm else [])
        self.activation = activation
        self.features = widths[-1]

    def __call__(self, obs: Shaped[Array, "*obs"]) -> Float[Array, "features"]:
        """psi(x) of one observation."""
        return self.rows(jnp.ravel(obs))

    def rows(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows features"]:
        """The same over the last axis, for any number of leading axes."""
        x = jnp.asarray(x, jnp.float32)
        for i, layer in enumerate(self.layers):
            x = dense(layer, x)
            if self.norms:
                x = self.norms[i](x)
            x = ACTIVATIONS[self.activation](x)
        return x
