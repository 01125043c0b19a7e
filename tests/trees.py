"""Comparing whole states, and a callback to look at them."""

from functools import reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.testing import assert_array_equal


def raw(tree):
    """Leaves as numpy arrays, keys as their data."""

    def data(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return [data(x) for x in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(raw(a), raw(b), strict=True):
        assert_array_equal(x, y)


def weights_norm(algo, state, key):
    """An `eval_callback`: what is computed from the state, and what is drawn."""
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(state.params)))
    return {"norm": norm, "drawn": jax.random.normal(key, (3,)), "action": algo.policy(state)(state.envs.obs[0], key)}


def filled(params, arrays, places):
    """Parameters with the `kernel` and `bias` of layers: name among the arrays -> where the network has it."""
    plain = nnx.to_pure_dict(params)
    for name, path in places.items():
        inner = reduce(getitem, path, plain)
        for part in ("kernel", "bias"):
            assert inner[part].shape == arrays[f"{name}.{part}"].shape
            inner[part] = jnp.asarray(arrays[f"{name}.{part}"])
    nnx.replace_by_pure_dict(params, plain)
    return params
