"""The sum tree: exact sums, chances in proportion to weights, no drift, weight 0 is never drawn."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from quantilax.replay import tree


def leaves(t, n):
    return np.asarray(tree.weights(t, jnp.arange(n)))


@pytest.mark.parametrize(("n", "levels"), [(1, 1), (32, 1), (33, 2), (1024, 2), (1025, 3), (1_000_000, 4)])
def test_there_are_as_many_levels_as_needed(n, levels):
    made = tree.init(n)
    assert len(made) == levels
    assert made[-1].shape == (1, 32)
    assert made[0].size >= n


put = jax.jit(tree.put)
WEIGHTS = st.floats(0, 1e6, width=32, allow_subnormal=False)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 40, 1500]),
    st.lists(st.lists(st.tuples(st.integers(0, 1600), WEIGHTS), min_size=8, max_size=8), min_size=1, max_size=3),
)
def test_weights_are_those_last_put_of_one_call_the_greatest_and_every_node_is_the_sum_of_its_children(n, puts):
    t, expected = tree.init(n), np.zeros(2000, np.float32)
    for one in puts:
        positions, values = np.array([x for x, _ in one], np.int32), np.array([x for _, x in one], np.float32)
        t = put(t, positions, values)
        for position in set(positions.tolist()):
            expected[position] = values[positions == position].max()
    assert_array_equal(np.ravel(t[0]), expected[: t[0].size])
    for lower, upper in pairwise(t):
        sums = np.asarray(lower.sum(axis=1))
        assert_allclose(np.ravel(upper)[: len(sums)], sums, rtol=1e-6)
        assert_array_equal(np.ravel(upper)[len(sums) :], 0)


def test_positions_are_drawn_in_proportion_to_their_weights_and_none_of_weight_0_is():
    weights = np.random.default_rng(0).uniform(size=3000).astype(np.float32) * (np.arange(3000) % 3 > 0)
    t = tree.put(tree.init(3000), jnp.arange(3000), jnp.asarray(weights))
    assert_allclose(tree.total(t), weights.sum(), rtol=1e-5)
    n = 600_000
    drawn = np.bincount(tree.find(t, jax.random.uniform(jax.random.key(0), (n,))), minlength=3000)
    assert drawn[weights == 0].sum() == 0
    expected = n * weights / weights.sum()
    chi2 = ((drawn - expected) ** 2 / np.maximum(expected, 1e-9))[weights > 0].sum()
    assert abs(chi2 - 2000) < 5 * np.sqrt(2 * 2000)


def test_the_ends_of_the_range_lead_to_positions_with_a_weight():
    for positions in ([5], [0, 1999], [31, 32, 1023, 1024]):
        t = tree.put(tree.init(2000), jnp.array(positions), jnp.linspace(0.1, 1e6, len(positions)))
        for u in (0.0, 1e-7, 0.5, 1 - 2**-24):
            assert int(tree.find(t, jnp.array([u]))[0]) in positions


def test_a_sum_does_not_drift_over_a_million_changes():  # bug 13
    def change(t, key):
        key_position, key_weight = jax.random.split(key)
        position = jax.random.randint(key_position, (64,), 0, 5000)
        return tree.put(t, position, 10 ** jax.random.uniform(key_weight, (64,), minval=-6, maxval=6)), None

    t, _ = jax.jit(lambda t, keys: jax.lax.scan(change, t, keys))(
        tree.init(5000), jax.random.split(jax.random.key(0), 16_000)
    )
    t = tree.put(t, jnp.arange(4999), jnp.zeros(4999))  # all but one: what was large is gone without a trace
    assert float(tree.total(t)) == float(tree.weights(t, jnp.array([4999]))[0])
    assert tree.find(t, jnp.linspace(0, 0.99, 7)).tolist() == [4999] * 7


def test_neither_drawing_nor_putting_reads_more_than_a_row_per_level():
    t = jax.eval_shape(lambda: tree.init(1_000_000))
    position, number = jax.ShapeDtypeStruct((64,), jnp.int32), jax.ShapeDtypeStruct((64,), jnp.float32)
    for function, arguments, donated in ((tree.find, (t, number), ()), (tree.put, (t, position, number), 0)):
        compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        assert compiled.cost_analysis()["flops"] < 1_000_000 / 2
