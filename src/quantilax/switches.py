"""JAX's own switches (`jax.config`, `JAX_*`, and their contexts): what they mean for runs. docs/guides/switches.md lists them.

Programs are traced under `standard`, in the thread and under the contexts of the caller. The others of its switches
(precision of products, generator of keys, default device) are the caller's choice.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import jax
import numpy as np

from quantilax.errors import ConfigError

T = TypeVar("T")


@contextlib.contextmanager
def standard() -> Iterator[None]:
    """Set what programs are written for: numbers of 32 bits, NumPy's promotions, transfers as they come."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let NaN and inf pass: they say 'not measured' in records, and 'no bound' in configs."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def computing(program: Callable[..., T]) -> Callable[..., T]:
    """Return a compiled program that can be called under any switch, in any thread."""

    @wraps(program)
    def call(*arguments: Any) -> T:
        with standard(), unchecked():
            return program(*arguments)

    return call


NOT_MEASURED = (".metrics", ".signals", ".learned_returns")
"""Fields of records in which NaN says that there was nothing to measure."""


def checked(function: Callable[..., T]) -> Callable[..., T]:
    """Return a jitted function that gives what it always gives, and looks for NaN and inf where JAX is asked to.

    Raises:
        FloatingPointError: `jax_debug_nans` or `jax_debug_infs` is set, and a result that must be a number is none.
    """

    @wraps(function)
    def call(*arguments: Any) -> T:
        wanted = {"NaN": _set("debug_nans"), "inf": _set("debug_infs")}
        if _set("disable_jit"):  # each operation is checked
            with standard():
                return function(*arguments)
        with standard(), unchecked():
            given = function(*arguments)
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
    """Return the devices that runs are laid over: that of `jax.default_device` where it is set, else all of this process.

    Raises:
        ConfigError: `JAX_PLATFORMS` or `JAX_DEFAULT_DEVICE` names a platform that is not there.
    """
    chosen = _set("default_device")
    try:
        if isinstance(chosen, str):
            return jax.local_devices(backend=chosen)[:1]
        return jax.local_devices() if chosen is None else [chosen]
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where JAX lacks the platform's plugin
        name, asked = (
            ("JAX_DEFAULT_DEVICE", chosen) if chosen else ("JAX_PLATFORMS", _set("platforms") or "any platform")
        )
        why = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ConfigError(
            f"{name}: JAX finds no device of {asked} here{why}; unset it, or name a platform that is here, as cpu"
        ) from None


def check() -> None:
    """Check that runs can be compiled here, ahead of time.

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
    """Return the platform that computes: cpu, gpu, tpu."""
    return devices()[0].platform


def facts() -> dict[str, Any]:
    """Return the switches that decide a run's numbers, by the name that `jax.config` has for them."""
    return {f"jax_{name}": _set(name) for name in DECIDING}


DECIDING = (
    "default_prng_impl",
    "threefry_partitionable",
    "high_dynamic_range_gumbel",
    "default_matmul_precision",
    "disable_most_optimizations",
)


def _set(name: str) -> Any:
    """Return what a switch is set to, in this thread; None: this JAX has no such switch."""
    return getattr(jax.config, f"jax_{name}", None)
