"""The number format in which the layers of a network compute.

Parameters, Adam's moments, losses and targets are float32 in any case. With `bfloat16`, layers
round their inputs, weights and results to eight bits of precision, and their gradients are rounded
on the way back.

Layers that set a dtype of their own keep it. The layers that output values and those that propose
fractions set float32. LayerNorm's moments and the cosines of fractions are float32 too.
"""

import jax.numpy as jnp
from flax import nnx

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def computing_in(network: nnx.Module, name: str) -> nnx.Module:
    """Make the network compute in the format of this name, and return it.

    `float32` leaves the network unchanged.
    """
    if name != "float32":
        for _, layer in nnx.iter_modules(network):
            if getattr(layer, "dtype", 0) is None:
                setattr(layer, "dtype", COMPUTE_DTYPES[name])  # noqa: B010 - only layers have one
    return network
