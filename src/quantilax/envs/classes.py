"""Find environments of your own by name.

`mypackage.envs:GridWorld` is the class `GridWorld` of the module `mypackage.envs`. It may also be a
function that returns an environment.
"""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantilax.errors import ConfigError, did_you_mean, reason

EXAMPLE = "mypackage.envs:GridWorld"


def find(name: str) -> Callable[..., Any]:
    """Return the class or function with a name such as `mypackage.envs:GridWorld`.

    The module is searched for in the working directory first, then on Python's path.

    Raises:
        ConfigError: there is no such module or class, or importing the module fails.
    """
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ConfigError(f"env: '{name}' is not the name of a class; write module:Class, such as {EXAMPLE}")
    found: Any = _import(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            classes = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise ConfigError(f"env: {module_name} has no class '{path}'{did_you_mean(part, classes, 'classes')}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"env: {name} is not a class or function; name one that fulfils the contract (docs/guides/environments.md)"
        )
    return found


def construct(cls: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    """Construct an object of a class, or call a function.

    Raises:
        ConfigError: it fails, or needs other arguments.
    """
    try:
        with jax.ensure_compile_time_eval():  # the object may outlive a program that is being traced
            return cls(**arguments)
    except Exception as error:  # a user's class may raise anything
        told = f"with env_args {dict(arguments)}" if arguments else "without arguments"
        raise ConfigError(
            f"env: {name} cannot be constructed {told} ({type(error).__name__}: {reason(error)}); give what it needs in"
            " env_args, or pass an object from Python: env=..."
        ) from None


def name_of(cls: type) -> str | None:
    """Return the name under which `find` finds a class.

    None if there is no such name, as for a class that is defined in a script or in a function.
    """
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__":
        return None
    try:
        found = attrgetter(cls.__qualname__)(module)
    except AttributeError:  # a class that is defined in a function
        return None
    return f"{cls.__module__}:{cls.__qualname__}" if found is cls else None


def are_equal(one: Any, other: Any) -> bool:
    """Return whether two objects hold the same values; False if they cannot be compared."""
    try:
        return _are_equal(one, other)
    except (RecursionError, TypeError, ValueError):
        return False


def _import(name: str) -> ModuleType:
    try:
        with _working_directory_first():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"env: there is no module '{missing}'; run in the directory where it lies, install its package, or give its"
                " file with --import"
            ) from None
        raise ConfigError(
            f"env: the module {name} cannot be imported: {type(error).__name__}: {reason(error)}; fix it"
        ) from None


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """Let Python search the working directory for modules before it searches elsewhere."""
    try:
        here = os.getcwd()
    except OSError:  # the working directory was deleted
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


NUMBERS = (bool, int, float, np.generic, np.ndarray, jax.Array)


def _are_equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, NUMBERS) and isinstance(other, NUMBERS):
        return _are_equal_numbers(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if hasattr(one, "__dict__") and not callable(one):
        if not dataclasses.is_dataclass(one) and bool(one == other):
            return True
        return _are_equal(vars(one), vars(other))
    return bool(one == other)


def _are_equal_numbers(one: Any, other: Any) -> bool:
    """Compare numbers and arrays as a program sees them, with floats of 32 bits."""
    keys = [isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in (one, other)]
    if any(keys):
        return all(keys) and _are_equal_numbers(jax.random.key_data(one), jax.random.key_data(other))
    a, b = (np.asarray(x) for x in (one, other))
    a, b = (x.astype(np.float32) if np.issubdtype(x.dtype, np.floating) else x for x in (a, b))
    return a.shape == b.shape and bool((a == b).all())
