"""Several runs on several devices; CPU devices are simulated, in a process of their own."""

import os
import subprocess
import sys

import jax
import pytest

from quantilax import devices

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from quantilax import devices
from tests.conftest import tiny

jax.config.update("jax_num_cpu_devices", 8)
local = jax.local_devices()
assert len(local) == 8


def trained(algo, runs, count):
    jax.local_devices = lambda: local[:count]
    keys = jax.vmap(jax.random.key)(jnp.arange(runs, dtype=jnp.uint32))
    algorithm, env, config = algo.arguments()
    program = devices.compile_fit(algorithm, env, config, keys)
    state = program.init(env, config, keys)
    records = []
    for state, record in devices.fit(env, config, program, state):
        records.append(jax.device_get(record))
    used = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state.params))
    leaves = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(state)]
    return used, [np.asarray(leaf).tobytes() for leaf in (*leaves, *jax.tree.leaves(records))]


def assert_same(a, b):
    assert [x == y for x, y in zip(a, b, strict=True)] == [True] * len(a)


iqn, pqn = tiny("iqn"), tiny("pqn")
used, alone = trained(iqn, 5, 1)
assert used == 1
for count in (2, 4, 8):  # 3 and 2 runs (and a copy), 2 of each of three devices, one of each of five
    used, together = trained(iqn, 5, count)
    assert_same(alone, together)
    print("iqn", count, used)

# Where XLA partitions a program its low bits may be others than where it does not; how far it does makes no difference.
used, on_two = trained(pqn, 4, 2)
for count in (4, 8):
    used, together = trained(pqn, 4, count)
    assert_same(on_two, together)
    print("pqn", count, used)
"""


@pytest.mark.validation
def test_two_four_and_eight_devices_give_the_same_results_bit_for_bit(pytestconfig):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # the claim is about bits, of programs as users have them
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(pytestconfig.cache.mkdir("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(
        command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, timeout=400
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == ["iqn 2 2", "iqn 4 3", "iqn 8 5", "pqn 4 4", "pqn 8 4"]


@pytest.mark.parametrize(
    ("number", "runs", "rounds", "used", "padded"),
    [(1, 5, 5, 1, 5), (2, 5, 3, 2, 6), (2, 4, 2, 2, 4), (4, 5, 2, 3, 6), (8, 5, 1, 5, 5), (8, 20, 3, 7, 21)],
)
def test_runs_are_laid_on_as_few_devices_as_give_the_least_number_of_rounds(
    number, runs, rounds, used, padded, monkeypatch
):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1] * number)
    monkeypatch.setattr(devices, "Mesh", lambda laid, axes: type("Mesh", (), {"size": len(laid)})())
    laid = devices.layout(runs)
    assert (laid.rounds, laid.mesh.size, laid.padded, laid.is_even) == (rounds, used, padded, padded == runs)
