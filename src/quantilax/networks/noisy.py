"""Noisy dense layers: weights with learned noise, which explores in place of epsilon.

    w = mu + sigma * f(e_in) f(e_out)^T,    b = mu_b + sigma_b * f(e_out)
    f(e) = sign(e) sqrt(|e|),    e normal

A layer stores mu as `kernel` and `bias`, and sigma as `kernel_sigma` and `bias_sigma`. Without
`with_noise` it is a plain dense layer with weights mu.

Source: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295, section 3, factorised noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

SIGMA = 0.5
"""Initial sigma, times sqrt(fan_in)."""


class NoisyLinear(nnx.Linear):
    """A dense layer with mu and sigma. Calling it uses mu only."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel_init: nnx.Initializer, dtype: Any = None, rngs: nnx.Rngs
    ) -> None:
        """Build the layer, with mu initialised as in `nnx.Linear`."""
        super().__init__(inputs, outputs, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.kernel_sigma = nnx.Param(jnp.full((inputs, outputs), SIGMA / inputs**0.5))
        self.bias_sigma = nnx.Param(jnp.full(outputs, SIGMA / inputs**0.5))


def with_noise(params: PyTree, key: Key[Array, ""]) -> PyTree:
    """Return the parameters of a network with one draw of noise in all its noisy layers.

    Gradients reach both mu and sigma.
    """
    flat = dict(nnx.to_flat_state(params))
    layers = [path[:-1] for path in flat if path[-1] == "kernel_sigma"]
    for layer, key_layer in zip(layers, jax.random.split(key, len(layers)), strict=True):
        mu, sigma = (*layer, "kernel"), (*layer, "kernel_sigma")
        bias, bias_sigma = (*layer, "bias"), (*layer, "bias_sigma")
        inputs, outputs = flat[mu][...].shape
        e_in, e_out = jnp.split(f(jax.random.normal(key_layer, (inputs + outputs,))), [inputs])
        flat[mu] = flat[mu].replace(flat[mu][...] + flat[sigma][...] * jnp.outer(e_in, e_out))
        flat[bias] = flat[bias].replace(flat[bias][...] + flat[bias_sigma][...] * e_out)
    return nnx.from_flat_state(flat)


def f(e: Float[Array, "n"]) -> Float[Array, "n"]:
    """Return sign(e) sqrt(|e|)."""
    return jnp.sign(e) * jnp.sqrt(jnp.abs(e))
