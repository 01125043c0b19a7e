"""Two programs of a loop agree bit for bit, compiled as for users: the replay loop (IQN) and PQN's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax import ALGORITHMS, devices
from tests.conftest import TINY, each, tiny
from tests.trees import assert_same_bits, raw, weights_norm

pytestmark = pytest.mark.optimized


@pytest.fixture(params=["iqn", "pqn"])
def name(request):
    """One algorithm per loop; those that share a loop differ only in the loss."""
    return request.param


@pytest.fixture
def algo(name):
    return tiny(name)


def once(first):
    """For claims on code that algorithms share: in `make test` with `first`, in `make validate` with the others."""
    return pytest.mark.parametrize("name", each(dict.fromkeys([first, "iqn", "pqn"]), [first]))


def test_every_algorithm_has_one_of_these_loops():
    loops = {name: (one.act, one.observe, one.update) for name, one in ALGORITHMS.items()}
    different = {loops[name] for name in ("iqn", "pqn", "ppo", "sac", "td3")}
    assert len(different) == 5
    assert set(loops.values()) == different


def test_a_run_repeats_bit_for_bit(algo):
    assert_same_bits(algo.records(jax.random.key(3)), algo.records(jax.random.key(3)))


def test_the_whole_is_its_segments_bit_for_bit_and_each_seed_of_several_is_that_seed_alone(algo, one_device):
    algorithm, env, config = algo.arguments()
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    program = devices.compile_fit(algorithm, env, config, keys)
    records = []
    for state, record in devices.fit(env, config, program, program.init(env, config, keys)):  # noqa: B007 the last one counts
        records.append(jax.device_get(record))
    curves = jax.tree.map(lambda *rows: np.stack(rows, axis=1), *records)
    for seed in range(2):
        alone = algo.records(jax.random.key(seed))
        assert_same_bits(alone, jax.tree.map(lambda x, seed=seed: x[seed], (state, curves)))


def test_a_segment_is_its_parts_bit_for_bit(algo, one_device):
    algorithm, env, config = algo.arguments()
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    program = devices.compile_fit(algorithm, env, config, keys)  # that of the whole and its segments

    def after(*parts):
        state = program.init(env, config, keys)
        for iterations in parts:
            state, _ = program.segment(env, config, state, np.int32(iterations))
        return state

    assert_same_bits(after(5), after(2, 3))


@once("pqn")
def test_evaluation_is_a_pure_observer(name):
    often, seldom = tiny(name), tiny(name, eval_freq=TINY[name]["total_timesteps"], eval_episodes=7)
    assert_same_bits(often.train(jax.random.key(2))[0], seldom.train(jax.random.key(2))[0])


MAY_BE_UNKNOWN = {
    "adam_below_eps", "adam_damping", "adam_scale", "doomed_q", "end_error", "limit_deaths", "limit_error", "truncation_share",
}  # fmt: skip
"""Signals of which an evaluation may have nothing: no gradient step yet, no end of an episode."""


def watched(name, **changes):
    """An agent that measures signals and has a callback: one program for the three tests that follow."""
    return tiny(name, signals=True, **changes).replace(eval_callback=weights_norm)


@once("pqn")
def test_signals_are_measured_and_change_nothing_else(name):
    on, off = watched(name), tiny(name)
    state, record = on.records(jax.random.key(0))
    unmeasured = off.records(jax.random.key(0))
    assert unmeasured[1].signals is None
    assert_same_bits((state, record._replace(signals=None, callback=None)), unmeasured)
    for signal, values in record.signals._asdict().items():
        assert values is None or values.shape == (len(on.evaluation_steps),)
        assert values is None or signal in MAY_BE_UNKNOWN or np.isfinite(values).all(), signal


@once("pqn")
def test_the_reference_batch_is_the_same_at_each_evaluation(name):
    # Nothing learned: what is measured on the reference batch alone stands still to the bit.
    _, record = watched(name, learning_rate=0.0).records(jax.random.key(0))
    for signal in ("reference_q", "action_gap", "effective_rank"):
        assert len(set(getattr(record.signals, signal).tolist())) == 1


@once("pqn")
def test_an_eval_callback_is_stacked_into_the_curve_and_changes_nothing_else(name, algo):
    state, record = algo.records(jax.random.key(0))
    watched_state, seen = watched(name).records(jax.random.key(0))
    assert_same_bits((state, record), (watched_state, seen._replace(signals=None, callback=None)))
    rows = len(algo.evaluation_steps)
    assert seen.callback["drawn"].shape == (rows, 3)
    assert len(np.unique(seen.callback["drawn"])) == 3 * rows, "each row has a key of its own"
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in raw(state.params)))
    assert_allclose(seen.callback["norm"][-1], norm, rtol=1e-5)
    assert seen.callback["action"].dtype == jnp.int32
