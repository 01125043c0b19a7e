"""The type of number in which the layers of a network compute.

Parameters, gradients, Adam's moments, features and values are float32 whatever it is; with `bfloat16` the layers round their
inputs and weights to it, and so are their gradients rounded before Adam sees them as float32. LayerNorm's mean and variance,
the cosines of fractions, losses and targets are computed in float32.
"""

import jax.numpy as jnp
from flax import nnx

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def computing_in(network: nnx.Module, name: str) -> nnx.Module:
    """Return the network, told to compute in the type of that name; layers with a type of their own keep it."""
    if name != "float32":
        for _, layer in nnx.iter_modules(network):
            if getattr(layer, "dtype", 0) is None:
                setattr(layer, "dtype", COMPUTE_DTYPES[name])  # noqa: B010 - only layers have one
    return network
