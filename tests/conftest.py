"""What all tests share: quick compiling, and a small config per registered algorithm."""

import gc
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from quantilax import ALGORITHMS, Agent, Box, Discrete
from quantilax.agent import create
from quantilax.host import limits

jax.config.update("jax_num_cpu_devices", min(2, limits.scheduled_cores()))  # as the command line has it with two seeds
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for processes that tests begin
jax.config.update("jax_enable_compilation_cache", False)  # writing a program takes longer than a second use saves


TESTS = itertools.count()
"""Counts the tests of this process."""
LOOP_PASSES = "while-loop-invariant-code-motion,while-loop-constant-sinking,simplify-while-loops"
QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_disable_hlo_passes": LOOP_PASSES,
}
"""With these XLA options a small program compiles in half the time; optimizations are off anyway."""
gc.set_threshold(50_000, 20, 50)  # tracing makes many objects that live; modules end with a collection anyway


@pytest.fixture(scope="session", autouse=True)
def quick_compiling() -> Iterator[None]:
    """Compile with `QUICK` where optimizations are switched off: here, and in processes of tests.

    A hundred programs are lowered in one MLIR context here. Making one takes 3 ms, as long as all
    else in the lowering of a small program.

    JAX has no public name for either. If its private names or XLA's names have changed, this
    fixture does nothing.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir

    get, make = getattr(compiler, "get_compile_options", None), getattr(mlir, "make_ir_context", None)
    try:
        jax.jit(lambda x: x).lower(0.0).compile(QUICK)  # XLA has read XLA_FLAGS of this process from here on
    except jax.errors.JaxRuntimeError:
        get = None
    if get is None or make is None:
        yield
        return

    lowerings, contexts = itertools.count(), [make()]

    def context() -> Any:
        if next(lowerings) % 100 == 99:
            contexts[:] = [make()]
        return contexts[0]

    def options(*args: Any, env_options_overrides: dict[str, Any] | None = None, **others: Any) -> Any:
        quick = QUICK if jax.config.read("jax_disable_most_optimizations") else {}
        return get(*args, env_options_overrides={**quick, **(env_options_overrides or {})} or None, **others)

    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiler, "get_compile_options", options)
        patched.setattr(mlir, "make_ir_context", context)
        patched.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip())
        yield


def forget_programs() -> None:
    """Free traced and compiled programs."""
    gc.unfreeze()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def quick_collecting() -> Iterator[None]:
    """Exclude what a module keeps, mostly traced programs, from garbage collection; it takes seconds."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def optimization(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switch XLA's optimizations on for modules marked `optimized`, whose claims need them.

    Elsewhere they are off, because they take a third of the suite's time.
    """
    if not request.node.get_closest_marker("optimized"):
        yield
        return
    for switched_off in (False, True):
        forget_programs()  # one compiled in one way is not compared with one compiled in another
        jax.config.update("jax_disable_most_optimizations", switched_off)
        if not switched_off:
            yield


@pytest.fixture(autouse=True)
def room_for_programs() -> Iterator[None]:
    """Free programs before there are too many.

    Linux gives a process 65,530 memory maps, of which a program takes some 30. One more is a
    segmentation fault within XLA. They are counted after every fourth test, which takes some
    milliseconds.
    """
    yield
    maps = Path("/proc/self/maps")
    if next(TESTS) % 4 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        forget_programs()


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are laid on one device."""
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


OFF_POLICY: dict[str, Any] = dict(
    total_timesteps=240,
    eval_freq=60,
    eval_episodes=4,
    num_envs=4,
    num_epochs=2,
    buffer_size=100,
    fill_buffer=40,
    batch_size=16,
    torso_sizes=(8,),
    head_sizes=(8,),
    learning_rate_end=0.5,
)
FIRST = ("iqn", "pqn")


def each(names: Iterable[str] = ALGORITHMS, first: Collection[str] = FIRST) -> list[Any]:
    """Parameters of a long test: `first` in `make test`, the others in `make validate` only."""
    return [pytest.param(name, marks=() if name in first else pytest.mark.validation) for name in names]


ON_POLICY: dict[str, Any] = dict(
    total_timesteps=256,
    eval_freq=64,
    eval_episodes=4,
    num_envs=4,
    num_steps=8,
    num_epochs=2,
    num_minibatches=2,
    torso_sizes=(8,),
)
ACTOR_CRITIC = {**OFF_POLICY, "torso_sizes": (8, 8), "head_sizes": (8,)}
TINY: dict[str, dict[str, Any]] = {
    "dqn": OFF_POLICY,
    "c51": OFF_POLICY | dict(num_atoms=7, v_min=-2.0, v_max=2.0),
    "qrdqn": OFF_POLICY | dict(num_quantiles=5),
    "iqn": OFF_POLICY | dict(num_tau_samples=4, num_tau_prime_samples=3, num_quantile_samples=5, num_cosines=8),
    "fqf": OFF_POLICY | dict(num_fractions=4, num_cosines=8, fraction_learning_rate=1e-3),
    "q_learning": OFF_POLICY | dict(head="hl_gauss", num_atoms=7, v_min=-2.0, v_max=2.0),
    "pqn": ON_POLICY,
    "ppo": ON_POLICY,
    "sac": ACTOR_CRITIC | dict(head="scalar"),
    "tqc": ACTOR_CRITIC | dict(num_critics=3, num_quantiles=5, top_quantiles_to_drop=1),
    "dsac": ACTOR_CRITIC | dict(num_tau_samples=4, num_tau_prime_samples=3, num_quantile_samples=5, num_cosines=8),
    "td3": ACTOR_CRITIC | dict(head="scalar"),
    "td3_c51": ACTOR_CRITIC | dict(num_atoms=7, v_min=-2.0, v_max=2.0),
    "d4pg": ACTOR_CRITIC | dict(num_atoms=7, v_min=-2.0, v_max=2.0),
}
"""A second of work; a new algorithm in the registry needs a line here."""


PROBE = {Discrete: "probe/corridor", Box: "probe/regulator"}
"""An environment for each kind of actions."""


def tiny(name: str, env: Any = None, **changes: Any) -> Agent:
    algorithm = ALGORITHMS[name]
    return create(algorithm, env or PROBE[algorithm.actions[0]], {**TINY[name], **changes})


@pytest.fixture(params=each())
def name(request: pytest.FixtureRequest) -> str:
    """Each registered algorithm's name; in `make test` one of each loop.

    tests/contracts/test_loops_and_heads.py has every pair.
    """
    return request.param


@pytest.fixture
def algo(name: str) -> Agent:
    """A tiny agent of each registered algorithm."""
    return tiny(name)
