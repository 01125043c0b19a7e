"""JAX's own switches: each works, is refused with a line, or changes what docs/guides/switches.md says."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import quantilax
from quantilax import ConfigError, devices, switches, train
from quantilax.checks.lint import lint
from quantilax.host.interrupts import Interrupted, Stop
from quantilax.runs import RunDirectory, identity, load_section
from quantilax.studies import cluster, definition, start
from tests.conftest import tiny
from tests.endtoend.conftest import TINY_PQN
from tests.endtoend.processes import heard
from tests.trees import assert_same_bits


@contextlib.contextmanager
def set_to(name, value):
    """A switch of `jax.config`, for a while; without effect where this JAX has no such one."""
    before = getattr(jax.config, f"jax_{name}", None)
    if before is not None:
        jax.config.update(f"jax_{name}", value)
    try:
        yield
    finally:
        if before is not None:
            jax.config.update(f"jax_{name}", before)


NO_CHANGE = {
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "enable_x64": lambda: jax.enable_x64(True),
    "numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "numpy_rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "transfer_guard": lambda: jax.transfer_guard("disallow_explicit"),
    "check_tracer_leaks": jax.checking_leaks,
    "log_compiles": lambda: jax.log_compiles(True),
    "explain_cache_misses": lambda: jax.explain_cache_misses(True),
    "enable_custom_prng": lambda: jax.enable_custom_prng(True),
    "explicit_x64_dtypes": lambda: set_to("explicit_x64_dtypes", "allow"),
}
"""Contexts under which a run gives the same bits."""


@pytest.fixture(scope="module")
def algo():
    return tiny("dqn", normalize_rewards=True, signals=True)


@pytest.fixture(scope="module")
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def trained(algo, key):
    return algo.records(key)


@pytest.mark.parametrize("switch", NO_CHANGE)
def test_a_switch_that_is_meant_for_other_code_changes_nothing(switch, algo, key, trained):
    with NO_CHANGE[switch]():
        assert_same_bits(algo.records(key), trained)


@pytest.mark.parametrize(
    ("switch", "context"),
    [
        ("threefry_partitionable", lambda: set_to("threefry_partitionable", not jax.config.jax_threefry_partitionable)),
        ("high_dynamic_range_gumbel", lambda: set_to("high_dynamic_range_gumbel", True)),
        ("default_matmul_precision", lambda: jax.default_matmul_precision("highest")),
        ("default_prng_impl", lambda: jax.default_prng_impl("rbg")),
    ],
)
def test_a_switch_that_changes_the_numbers_works_and_is_among_the_facts_of_a_run(switch, context, trained):
    before = switches.facts()
    with context():
        _, curve = tiny("pqn", total_timesteps=64).train(jax.random.key(0))
        assert np.isfinite(curve.returns).all()
        differing = {name for name, value in switches.facts().items() if value != before[name]}
    assert differing == {f"jax_{switch}"}
    assert switches.facts() == before


@pytest.mark.validation
def test_nor_do_all_of_them_together_where_the_trace_is_the_users(algo, key, trained):
    keys = key[None]
    with contextlib.ExitStack() as stack:
        for switch in NO_CHANGE:
            stack.enter_context(NO_CHANGE[switch]())
        state, curve = jax.jit(jax.vmap(algo.train))(keys)
    assert curve.returns.dtype == jnp.float32
    np.testing.assert_array_equal(curve.returns[0], trained[1].returns)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, trained[0])


def test_hyperparameters_of_64_bits_are_taken_as_32(key):
    algo = tiny("pqn")
    with jax.enable_x64(True):
        rates = jnp.array([1e-3, 1e-2])
        assert rates.dtype == jnp.float64
        _, curve = jax.vmap(lambda rate: algo.replace(learning_rate=rate).train(key))(rates)
    assert curve.returns.dtype == jnp.float32


def test_a_nan_that_is_none_of_the_intended_is_found(key):
    algo = tiny("dqn", learning_rate=1e30)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"NaN in .*params.* jax.disable_jit\(\)"):
        algo.train(key)


def test_operation_by_operation_no_intended_nan_is_in_the_way(trained):
    state, _ = trained
    mean = train.Metrics(*jnp.zeros(5))
    with jax.debug_nans(True), jax.disable_jit():
        assert np.isnan(train.measured(mean, state, jnp.int32(0)).loss)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind_are_taken_typed_and_raw(impl):
    algo = tiny("pqn", total_timesteps=64)
    state, curve = algo.train(typed := jax.random.key(1, impl=impl))
    assert jax.random.key_impl(state.evaluation_key) == jax.random.key_impl(typed)
    with jax.default_prng_impl(impl):
        assert_same_bits(algo.train(jax.random.key_data(typed)), (state, curve))


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        jax.jit(tiny("dqn", "CartPole-v1").train).trace(jax.random.key(0))  # raises where one is


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled for runs from here on."""
    found, computing = [], switches.computing

    def watched(program):
        found.append(program)
        return computing(program)

    monkeypatch.setattr(switches, "computing", watched)
    return found


@pytest.fixture
def traced_by(monkeypatch):
    """The threads that trace segments."""
    found, all_finite = set(), train.all_finite

    def watched(params):
        found.add(threading.current_thread())
        return all_finite(params)

    monkeypatch.setattr(train, "all_finite", watched)
    return found


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_runs_resumed_runs_and_studies_have_the_callers_precision_and_device(tmp_path, compiled, traced_by):
    device = jax.devices()[1]
    seen = set()

    def stop(state, record):
        seen.update(device for leaf in jax.tree.leaves(state) for device in leaf.devices())
        return True

    devices._jitted.cache_clear()  # what was traced before is not traced again
    (tmp_path / "tiny.yaml").write_text(TINY_PQN)
    asked = {"base": {"config": str(tmp_path / "tiny.yaml"), "section": "pqn"}, "seeds": 2}
    with jax.default_matmul_precision("highest"), jax.default_device(device):
        quantilax.run(tiny("pqn"), tmp_path / "run", [0, 1], callback=stop, quiet=True)
        quantilax.resume(tmp_path / "run", callback=stop, quiet=True)
        store = start.run(definition.make(asked, "s"), tmp_path / "study", quiet=True)
    assert seen == {device}
    assert RunDirectory.open(tmp_path / "run").facts["devices"] == store.facts["jobs"] == 1
    assert traced_by == {threading.main_thread()}
    assert len(compiled) == 5  # `init` and `segment`, and of what is resumed the latter
    for program in compiled:
        shardings = jax.tree.leaves((program.input_shardings, program.output_shardings))
        assert set().union(*(sharding.device_set for sharding in shardings)) == {device}
    for program in (compiled[1], compiled[2], compiled[4]):
        assert set(re.findall(r" dot\(.*operand_precision={(\w+)", program.as_text())) == {"highest"}


def test_workers_of_ray_get_what_a_context_sets(monkeypatch):
    monkeypatch.setenv(cluster.PREALLOCATE, "false")
    with jax.default_matmul_precision("highest"):
        assert cluster.environment()["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"


def test_the_name_of_a_platform_as_default_device_means_its_first_device():
    with jax.default_device("cpu"):
        assert switches.devices() == jax.devices("cpu")[:1]


def test_op_by_op_is_refused_where_programs_are_compiled_ahead_of_time(tmp_path):
    algo = tiny("pqn")
    with jax.disable_jit():
        for refused in (lambda: quantilax.run(algo, tmp_path / "run"), lambda: lint(algo)):
            with pytest.raises(ConfigError, match=r"^JAX_DISABLE_JIT: .*unset it, or .*algo.train\(key\)$"):
                refused()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu':\nno libtpu.so"), AssertionError()])
def test_a_platform_that_is_not_there_is_told_in_one_line(error, tmp_path, monkeypatch):
    def missing(backend=None):
        raise error

    algo = tiny("pqn")
    monkeypatch.setattr(jax, "local_devices", missing)
    for refused in (
        lambda: quantilax.run(algo, tmp_path / "run"),
        lambda: algo.train(jax.random.key(0)),
        algo.arguments,
    ):
        with pytest.raises(ConfigError, match=r"^JAX_PLATFORMS: JAX finds no device of .*; unset it, or") as told:
            refused()
        assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.validation
def test_what_the_environment_says_at_the_start_of_a_process(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_PQN)
    checks = {"JAX_DEBUG_NANS": "1", "JAX_DEBUG_INFS": "1", "JAX_CHECK_TRACER_LEAKS": "1", "JAX_DEBUG_KEY_REUSE": "1"}
    rules = {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_ENABLE_X64": "1"}
    more = {"JAX_TRANSFER_GUARD": "disallow_explicit", "JAX_TRACEBACK_FILTERING": "off", "JAX_NUM_CPU_DEVICES": "1"}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"

    def train_with(out="there", warnings="error", **variables):
        options = ("-q", "--no-cache", "--seeds", "2", "--out", out)
        command = [sys.executable, "-W", warnings, "-m", "quantilax.cli", "train", "tiny.yaml", *options]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    absent = train_with(JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES="")
    (line,) = heard(absent.communicate(timeout=100)[1]).splitlines()
    assert line.startswith("error: JAX_PLATFORMS: JAX finds no device of cuda")
    assert absent.returncode == 2
    nowhere = {"JAX_COMPILATION_CACHE_DIR": "/proc/nowhere", "CUDA_VISIBLE_DEVICES": ""}
    uncached = train_with("uncached", "ignore", **nowhere)  # JAX warns for each program
    there = train_with(**checks, **rules, **more, XLA_FLAGS=flags)
    quantilax.run(load_section(tmp_path / "tiny.yaml").create(), tmp_path / "here", [0, 1], quiet=True)
    assert (heard(there.communicate(timeout=200)[1]), there.returncode) == ("", 0)
    curves = [pl.read_parquet(tmp_path / name / "evaluations.parquet").drop("seconds") for name in ("here", "there")]
    assert_frame_equal(*curves, check_exact=True)
    assert (heard(uncached.communicate(timeout=200)[1]), uncached.returncode) == ("", 0)


def test_a_checkpoint_with_keys_of_another_kind_says_how_to_go_on():
    algo = tiny("pqn")
    facts = {"seeds": [0], "config": identity.described(algo), "jax_default_prng_impl": "rbg"}
    checkpoint = SimpleNamespace(facts=facts, path=Path("run/checkpoints/000000000064"))
    with pytest.raises(ConfigError, match=r"^run: .* 'rbg', .*; set JAX_DEFAULT_PRNG_IMPL=rbg$"):
        identity.check_config(checkpoint, algo, [0])


def test_a_signal_while_tracing_is_acted_on_right_after():
    done = []

    def function():
        signal.raise_signal(signal.SIGINT)
        done.append(True)

    with Stop(print) as stop:
        stop.release()
        with pytest.raises(Interrupted) as told:
            stop.finish_first(function)
    assert (done, told.value.exit_status, told.value.at_once) == ([True], 130, True)


def test_where_a_trace_fails_no_thread_still_compiles():
    algorithm, env, config = tiny("pqn").arguments()

    def update(*_):
        raise TypeError("shapes")

    before = threading.active_count()
    with pytest.raises(TypeError, match="shapes"):
        devices.trace_fit(algorithm._replace(update=update), env, config, devices.run_keys([0]))
    assert threading.active_count() == before
