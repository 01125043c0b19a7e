"""The type of number in which the layers of a network compute.

Parameters, Adam's moments, losses and targets are float32 whatever it is. With `bfloat16` the layers round their inputs,
weights and results to it, eight bits of precision, and their gradients are rounded on the way back. Layers that name a type of
their own keep it: those that give values and those that propose fractions, float32. LayerNorm's moments and the cosines of
fractions are float32 too.
"""

import jax.numpy as jnp
from flax import nnx

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def computing_in(network: nnx.Module, name: str) -> nnx.Module:
    """Return the network, told to compute in the type of that name; with `float32` it is left as it is."""
    if name != "float32":
        for _, layer in nnx.iter_modules(network):
            if getattr(layer, "dtype", 0) is None:
                setattr(layer, "dtype", COMPUTE_DTYPES[name])  # noqa: B010 - only layers have one
    return network
