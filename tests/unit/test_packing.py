"""Optimisers on packed arrays: the same steps, and which arrays are packed."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax.learning.packing import PACKED, pack, packed, unpack
from quantilax.runs.configs import load_section, read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "gymnax"
CLASSIC = [
    (file, name) for file in ("cartpole", "acrobot", "mountain_car") for name in read_yaml(CONFIGS / f"{file}.yaml")
]

SMALL = {"bias": (3,), "kernel": (4, 3), "scale": ()}
SHAPES = {
    "small": SMALL,
    "large beside small": {**SMALL, "embedding": (PACKED + 1,), "matrix": (300, 200)},
    "large alone": {"matrix": (300, 200)},
    "too many small": {f"layer_{i}": (96, 96) for i in range(8)},
}


def arrays(name: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in SHAPES[name].items()}


@pytest.mark.parametrize("name", list(SHAPES))
def test_unpacking_gives_back_what_was_packed(name):
    tree = arrays(name)
    there = unpack(pack(tree), tree)
    assert jax.tree.structure(there) == jax.tree.structure(tree)
    jax.tree.map(assert_array_equal, there, tree)


def test_small_arrays_alone_are_one_vector_in_the_trees_order():
    assert_array_equal(pack({"b": jnp.array([[1.0, 2.0]]), "a": jnp.array(0.0)}), [0.0, 1.0, 2.0])


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_vector_takes_the_smallest_first_and_is_never_larger_than_the_bound(name):
    arrays_packed = pack(arrays(name))
    vector, large = arrays_packed if isinstance(arrays_packed, tuple) else (arrays_packed, [])
    assert vector.size <= PACKED
    assert all(vector.size + x.size > PACKED for x in large)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("clip", [0.5, jnp.inf])
def test_packed_clipping_and_adam_take_the_steps_that_they_take_unpacked(name, clip):
    plain = optax.chain(optax.clip_by_global_norm(clip), optax.adam(1e-2))
    packing = packed(plain)

    def run(optimizer):
        @jax.jit
        def step(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        carry = arrays(name), optimizer.init(arrays(name))
        for seed in range(1, 4):
            carry = step(carry, arrays(name, seed))
        return carry[0]

    jax.tree.map(partial(assert_allclose, rtol=2e-6, atol=1e-7), run(packing), run(plain))


@pytest.mark.parametrize(("file", "name"), CLASSIC)
def test_a_shipped_network_for_classic_control_is_one_vector(file, name):
    algo = load_section(CONFIGS / f"{file}.yaml", name).create()
    params = jax.eval_shape(algo.init, jax.random.key(0)).params
    assert not isinstance(jax.eval_shape(pack, params), tuple)
