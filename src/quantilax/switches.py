"""JAX's own switches (`jax.config`, `JAX_*` and their contexts) and what they mean for runs.

Programs are traced under `standard`, in the caller's thread and contexts. The other switches
(precision of products, generator of keys, default device) are the caller's choice.
docs/guides/switches.md lists them.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import jax
import numpy as np

from quantilax.errors import ConfigError
from quantilax.host import failures

T = TypeVar("T")


@contextlib.contextmanager
def standard() -> Iterator[None]:
    """Set what programs are written for.

    Numbers have 32 bits, promotion follows NumPy, and transfers are allowed.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let NaN and infinity pass.

    NaN means "not measured" in records, and infinity means "no bound" in configs.
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def computing(program: Callable[..., T]) -> Callable[..., T]:
    """Wrap a compiled program so that it can be called under any switch, in any thread."""

    @wraps(program)
    def call(*arguments: Any) -> T:
        with standard(), unchecked():
            return _awaited(program, *arguments)

    return call


def _awaited(program: Callable[..., T], *arguments: Any) -> T:
    """Call a program. If callbacks may fail in it, wait for it, and raise what they left."""
    if not failures.are_expected():
        return program(*arguments)
    try:
        given = program(*arguments)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
            jax.block_until_ready(given)
    except jax.errors.JaxRuntimeError:
        failure = failures.take()
        if failure is None:
            raise
        raise failure from None
    return given


NOT_MEASURED = (".metrics", ".signals", ".learned_returns")
"""Fields of records in which NaN means that there was nothing to measure."""


def checked(function: Callable[..., T]) -> Callable[..., T]:
    """Wrap a jitted function so that it obeys `jax_debug_nans` and `jax_debug_infs`.

    Its results do not depend on them.

    Raises:
        FloatingPointError: one of the two is set, and a result that must be a number is NaN or
            infinite.
    """

    @wraps(function)
    def call(*arguments: Any) -> T:
        wanted = {"NaN": _set("debug_nans"), "inf": _set("debug_infs")}
        if _set("disable_jit"):  # JAX then checks each operation
            with standard():
                return function(*arguments)
        with standard(), unchecked():
            given = _awaited(function, *arguments)
        for what, is_bad in {"NaN": np.isnan, "inf": np.isinf}.items():
            if wanted[what]:
                _check(given, what, is_bad)
        return given

    return call


def _check(tree: Any, what: str, is_bad: Callable[[Any], Any]) -> None:
    for path, leaf in jax.tree.leaves_with_path(tree):
        where = jax.tree_util.keystr(path)
        if isinstance(leaf, jax.core.Tracer) or any(name in where for name in NOT_MEASURED):
            continue
        if jax.numpy.issubdtype(leaf.dtype, np.inexact) and is_bad(np.asarray(leaf, np.float32)).any():
            raise FloatingPointError(
                f"{what} in {where}; call the same with jax.disable_jit() and fewer steps to see the operation that made it"
            )


def devices() -> list[jax.Device]:
    """Return the devices for runs.

    This is `jax.default_device` if it is set, else all devices of this process.

    Raises:
        ConfigError: `JAX_PLATFORMS` or `JAX_DEFAULT_DEVICE` names a platform that does not exist
            here.
    """
    chosen = _set("default_device")
    try:
        if isinstance(chosen, str):
            return jax.local_devices(backend=chosen)[:1]
        return jax.local_devices() if chosen is None else [chosen]
    except (RuntimeError, AssertionError) as error:  # AssertionError without text: the platform's plugin is missing
        name, asked = (
            ("JAX_DEFAULT_DEVICE", chosen) if chosen else ("JAX_PLATFORMS", _set("platforms") or "any platform")
        )
        why = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ConfigError(
            f"{name}: JAX finds no device of {asked} here{why}; unset it, or name one that is here, such as cpu"
        ) from None


def check() -> None:
    """Check that runs can be compiled ahead of time.

    Raises:
        ConfigError: `jax_disable_jit` is set, or there is no device.
    """
    if _set("disable_jit"):
        raise ConfigError(
            "JAX_DISABLE_JIT: runs are compiled ahead of time; unset it, or train operation by operation from Python:"
            " with jax.disable_jit(): algo.train(key)"
        )
    devices()


def platform() -> str:
    """Return the platform that runs compute on: cpu, gpu or tpu."""
    return devices()[0].platform


def facts() -> dict[str, Any]:
    """Return the switches that affect a run's numbers, under their names in `jax.config`."""
    return {f"jax_{name}": _set(name) for name in DECIDING}


DECIDING = (
    "default_prng_impl",
    "threefry_partitionable",
    "high_dynamic_range_gumbel",
    "default_matmul_precision",
    "disable_most_optimizations",
)


def _set(name: str) -> Any:
    """Return the value of a switch in this thread; None if this version of JAX does not have it."""
    return getattr(jax.config, f"jax_{name}", None)
