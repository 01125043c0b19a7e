"""The ring buffer against a plain deque."""

from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import replay
from tests.hlo import copies_in_loops


def rows(start: int, n: int) -> dict[str, jax.Array]:
    numbers = jnp.arange(start, start + n)
    return {"obs": (numbers[:, None] * jnp.ones(2)).astype(jnp.float32), "id": numbers, "done": numbers % 3 == 0}


def empty(capacity: int) -> replay.Ring:
    return replay.init(jax.tree.map(lambda x: x[0], rows(0, 1)), capacity)


@pytest.mark.parametrize(("capacity", "n"), [(10, 1), (10, 3), (7, 7), (12, 4)])
def test_the_newest_rows_replace_the_oldest(capacity, n):
    ring, expected = empty(capacity), deque(maxlen=capacity)
    for i in range(9):
        ring = replay.add(ring, rows(i * n, n))
        expected.extend(range(i * n, i * n + n))
        assert int(ring.size) == len(expected)
        assert set(np.asarray(ring.rows["id"])[: int(ring.size)].tolist()) == set(expected)


def test_sampling_never_returns_a_row_that_was_not_written():
    ring = replay.add(empty(1000), rows(5, 3))
    ids = replay.sample(ring, jax.random.key(0), 500)["id"]
    assert set(ids.tolist()) == {5, 6, 7}


def test_sampling_gives_each_row_the_same_chance():
    ring = replay.add(empty(10), rows(0, 10))
    counts = np.bincount(replay.sample(ring, jax.random.key(0), 100_000)["id"], minlength=10)
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 27.9  # 99.9% quantile of chi-square with 9 degrees of freedom


def test_the_fields_of_a_sampled_row_belong_together():
    ring = replay.add(empty(50), rows(0, 40))
    batch = replay.sample(ring, jax.random.key(1), 64)
    assert_allclose(batch["obs"][:, 0], batch["id"])
    assert_array_equal(batch["done"], batch["id"] % 3 == 0)


def test_rows_keep_their_dtypes_and_take_no_more_bytes_than_what_they_store():
    example = {"frame": jax.ShapeDtypeStruct((10, 10, 4), jnp.uint8), "reward": jax.ShapeDtypeStruct((), jnp.float32)}
    ring = replay.init(example, 1000)
    assert ring.rows["frame"].dtype == jnp.uint8
    assert sum(x.nbytes for x in jax.tree.leaves(ring.rows)) == 1000 * 404


def loop(read_first: bool, ring: replay.Ring, key: jax.Array):
    def body(ring, key):
        before = replay.sample(ring, key, 8)["obs"].sum() if read_first else 0
        ring = replay.add(ring, rows(0, 4))
        return ring, before if read_first else replay.sample(ring, key, 8)["obs"].sum()

    return jax.lax.scan(body, ring, jax.random.split(key, 10))


@pytest.mark.parametrize("seeds", [None, 3])
def test_writing_before_reading_copies_no_buffer_in_a_loop_and_reading_first_does(seeds):
    def copies(read_first: bool) -> int:
        run, ring, key = partial(loop, read_first), empty(12_345), jax.random.key(0)
        if seeds:
            run, key = jax.vmap(run), jax.random.split(key, seeds)
            ring = jax.tree.map(lambda x: jnp.stack([x] * seeds), ring)
        return copies_in_loops(jax.jit(run, donate_argnums=0).lower(ring, key).compile(), 12_345)

    assert copies(read_first=False) == 0
    assert copies(read_first=True) > 0  # so that the count above can fail
