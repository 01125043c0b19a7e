"""Prioritized replay against a plain Python model of it: what can be drawn, how often, with which weight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax.replay import add, init, priorities, sample, tree
from quantilax.types import Transition

E = 3


def steps(n, seed=0, cut=0.2):
    """`n` steps of E environments, observations numbered; some end, some are cut off."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        ends = rng.uniform(size=E)
        obs = np.full((E, 1), i, np.float32)
        yield (
            Transition(
                obs, np.arange(E), np.full(E, i, np.float32), obs + 0.5, ends < 0.1, (ends > 0.1) & (ends < cut)
            ),
            obs + 1,
        )


@jax.jit
def both(ring, kept, transition, obs):
    ring = add(ring, transition, obs)
    return ring, priorities.add(kept, ring)


write, drawn_by_priority = jax.jit(priorities.write), jax.jit(priorities.sample, static_argnums=3)


def filled(n, capacity, n_step=1, batch=8, cut=0.2):
    transitions = list(steps(n, cut=cut))
    ring = init(jax.tree.map(lambda x: jnp.asarray(x[0]), transitions[0][0]), jnp.zeros((E, 1)), capacity, n_step)
    kept = priorities.init(ring, batch)
    for t, obs in transitions:
        ring, kept = both(ring, kept, t, obs)
    return ring, kept


def drawable(ring):
    """(iteration, env) of the steps that `sample` of the ring may begin at."""
    size, n = int(ring.size), int(ring.iterations)
    ages = range((ring.n_step - 1) * E, size)
    return {(n - 1 - age // E, E - 1 - age % E) for age in ages}


def with_weight(ring, kept):
    rows = ring.rows.offset.shape[0]
    weights = np.asarray(tree.weights(kept.weights, jnp.arange(rows * E))).reshape(rows, E)
    n = int(ring.iterations)
    return {(i, e) for i in range(max(n - rows, 0), n) for e in range(E) if weights[i % rows, e] > 0}


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(("n", "capacity"), [(3, 60), (20, 60), (45, 60), (200, 60), (200, 61)])
@pytest.mark.parametrize("cut", [0.1, 0.2, 0.9])  # none, some, so many that the ring gives rows up
def test_exactly_the_steps_that_the_ring_may_draw_have_a_weight(n, capacity, n_step, cut):
    ring, kept = filled(n, capacity, n_step, cut=cut)
    assert with_weight(ring, kept) == drawable(ring)


def test_steps_are_drawn_by_priority_and_weighted_for_it():
    ring, kept = filled(30, 60)
    there = sorted(drawable(ring))
    drawn = tuple(jnp.array(x) for x in zip(*there, strict=True))
    given = np.random.default_rng(1).uniform(0.1, 5, size=len(there)).astype(np.float32)
    kept = write(priorities.remember(kept, drawn, jnp.asarray(given), 0.5), ring)
    p = np.sqrt(given + 1e-6) / np.sqrt(given + 1e-6).sum()

    batch, (iteration, env) = drawn_by_priority(kept, ring, jax.random.key(0), 40_000, 0.9, 0.7)
    places = {step: i for i, step in enumerate(there)}
    index = np.array([places[step] for step in zip(iteration.tolist(), env.tolist(), strict=True)])
    # One of each stratum: within one of the expected number.
    assert np.abs(np.bincount(index, minlength=len(there)) - 40_000 * p).max() < 1.5
    weight = (len(there) * p[index]) ** -0.7
    assert_allclose(batch.weight, weight / weight.max(), rtol=1e-4)
    assert_allclose(batch.obs[:, 0], iteration)
    assert_allclose(batch.action, env)


def test_with_alpha_0_all_are_alike_and_weigh_1():
    ring, kept = filled(30, 60)
    drawn = jnp.array([29, 28]), jnp.array([0, 1])
    kept = write(priorities.remember(kept, drawn, jnp.array([5.0, 0.0]), 0.0), ring)
    batch, (iteration, _) = drawn_by_priority(kept, ring, jax.random.key(0), 6_000, 0.9, 1.0)
    assert_allclose(batch.weight, 1, rtol=1e-5)
    uniform = jax.jit(sample, static_argnums=2)(ring, jax.random.key(0), 6_000, 0.9)
    assert_allclose(np.mean(batch.reward), np.mean(uniform.reward), rtol=0.03)
    assert len(set(iteration.tolist())) == 20


def test_new_steps_have_the_largest_priority_so_far():
    ring, kept = filled(5, 60)
    kept = write(priorities.remember(kept, (jnp.array([2]), jnp.array([1])), jnp.array([16.0]), 0.5), ring)
    (t, obs), *_ = steps(1)
    ring, kept = both(ring, kept, t, obs)
    newest = tree.weights(kept.weights, 5 * E + jnp.arange(E))
    assert_allclose(newest, 4, rtol=1e-4)
    assert_allclose(tree.total(kept.weights), (5 * E - 1) + 4 + 3 * 4, rtol=1e-4)


def test_what_was_drawn_and_overwritten_since_leaves_the_new_step_alone():
    ring, kept = filled(20, 60)  # full: iteration 20 takes the place of iteration 0
    kept = priorities.remember(kept, (jnp.array([0, 19]), jnp.array([1, 2])), jnp.array([1e-9, 1e-9]), 1.0)
    (t, obs), *_ = steps(1)
    ring, kept = both(ring, kept, t, obs)
    kept = write(kept, ring)
    assert_allclose(tree.weights(kept.weights, jnp.array([1])), 1)
    assert_allclose(tree.weights(kept.weights, jnp.array([19 * E + 2])), 1e-6, rtol=1e-2)


def test_nothing_is_written_before_the_first_draw():
    ring, kept = filled(7, 60)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), write(kept, ring).weights, kept.weights))


@pytest.mark.parametrize("seeds", [None, 3])
def test_drawing_and_writing_in_a_loop_copies_no_tree(seeds):
    from tests.hlo import copies_in_loops

    ring, kept = jax.eval_shape(partial(filled_once, capacity=200_000))

    def step(carry, key):
        ring, kept = carry
        kept = priorities.write(kept, ring)
        batch, drawn = priorities.sample(kept, ring, key, 8, 0.9, 0.4)
        return (ring, priorities.remember(kept, drawn, jnp.abs(batch.reward), 0.5)), None

    def run(ring, kept, keys):
        return jax.lax.scan(step, (ring, kept), keys)[0]

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5))
    arguments = (ring, kept, keys)
    if seeds:
        run = jax.vmap(run)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), arguments)
    program = jax.jit(run, donate_argnums=(0, 1)).lower(*arguments).compile()
    assert copies_in_loops(program, kept.weights[0].shape[0]) == 0


def filled_once(capacity):
    (t, obs), *_ = steps(1)
    ring = add(init(jax.tree.map(lambda x: jnp.asarray(x[0]), t), jnp.zeros((E, 1)), capacity), t, obs)
    return ring, priorities.add(priorities.init(ring, 8), ring)
