"""Dataclasses that are pytrees: leaves may vary, and each treedef is one compiled program.

A class decorated with `dataclass` is a frozen, keyword-only dataclass and a JAX pytree. The
annotation of a field decides what it is:

- `int`, `bool`, `str` and `tuple[...]` are *static*: part of the treedef. A new value compiles a
  new program.
- Everything else (`float`, arrays, other pytrees) is a *leaf* or a subtree. A new value runs in the
  same program, and `jax.vmap` can map over it.

    @dataclass
    class Config:
        # a leaf: vmap sweeps it
        learning_rate: float = field(1e-3, "step size of Adam", gt=0)
        # static: one program per value
        batch_size: int = field(64, "transitions per gradient step", ge=1)

Everything passed to `quantilax.train` follows this rule. `from_dict` and `replace` build instances
from user input, and refuse values that cannot be meant.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from quantilax.errors import ConfigError, did_you_mean

T = TypeVar("T")

STATIC_TYPES = (int, bool, str, tuple)
LIST = "quantilax list ALGORITHM"
"""The command that lists fields with their meanings."""
MAX_INT32 = 2**31 - 1
"""The largest number that the counters in programs hold."""


def field(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Collection[str] | None = None,
    finite: bool = True,
    static: bool | None = None,
) -> Any:
    """Declare a field: its default, its meaning with its unit, and the values it may take.

    Args:
        default: the default; a field without one is required.
        doc: meaning and unit, in one sentence.
        gt, ge, lt, le: bounds on every number in the field.
        choices: allowed strings. They are read at each check, because a registry may grow.
        finite: whether infinities are refused.
        static: overrides the annotation, for example to put an opaque object into the treedef.
    """
    bounds = {name: b for name, b in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if b is not None}
    metadata = {"doc": doc, "bounds": bounds, "choices": choices, "finite": finite, "static": static}
    return dataclasses.field(default=default, metadata=metadata)


@typing.dataclass_transform(field_specifiers=(field,), frozen_default=True, kw_only_default=True)
def dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass and a pytree, as this module describes."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    # Order the fields as the bases are written, first base first, without class variables.
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    names = [name for base in cls.__bases__ for name in getattr(base, "__dataclass_fields__", ())]
    cls.__dataclass_fields__ = {name: fields[name] for name in dict.fromkeys([*names, *fields])}  # type: ignore[attr-defined]
    hints = typing.get_type_hints(cls)
    static: list[str] = []
    leaves: list[str] = []
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        told = f.metadata.get("static")
        (static if (is_static(hints[f.name]) if told is None else told) else leaves).append(f.name)
    jax.tree_util.register_dataclass(cls, data_fields=leaves, meta_fields=static)
    return cls


def is_static(annotation: Any) -> bool:
    """Return whether a field with this annotation is static, rather than a leaf or subtree.

    Raises:
        TypeError: the annotation is a union with a static type, which is ambiguous.
    """
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType) and any(is_static(a) for a in typing.get_args(annotation)):
        raise TypeError(f"a field is static or a leaf, not {annotation}")
    return (origin or annotation) in STATIC_TYPES


def float_fields(cls: type) -> tuple[str, ...]:
    """Names of the fields of `cls` that are numbers and leaves, so `jax.vmap` can sweep them."""
    hints = typing.get_type_hints(cls)
    return tuple(f.name for f in dataclasses.fields(cls) if hints[f.name] is float)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build `cls` from a mapping such as a YAML section.

    Numbers written as text are converted (YAML reads `1e-3` as a string), and so are whole floats
    for integer fields (`1e5`).

    Raises:
        ConfigError: a field of another type, out of range, unknown or missing; prefixed with
            `where`.
    """
    converted = convert(cls, values, where)
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    for name in required:
        if name not in converted:
            raise ConfigError(f"{_prefix(where)}missing field '{name}'; add it")
    return cls(**converted)


def convert(cls: type, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Convert and check the given fields as `from_dict` does, without requiring the others."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    converted = {}
    for name, value in values.items():
        if name not in fields:
            hint = did_you_mean(name, fields, "fields", LIST)
            raise ConfigError(f"{_prefix(where)}unknown field '{name}'{hint}")
        f = fields[name]
        try:
            converted[name] = _as(hints[name], value)
        except (ValueError, TypeError, OverflowError) as error:
            reason = str(error) if isinstance(error, _MismatchError) else f"expected {_noun(hints[name])}"
            raise ConfigError(f"{_prefix(where)}{name}: {reason}, got {shown(value)}") from None
        _check(f, converted[name], where)
    return converted


def replace(obj: T, **changes: Any) -> T:
    """Return `obj` with some fields changed, checked as in `from_dict`.

    Arrays and tracers are not converted.
    """
    return dataclasses.replace(obj, **convert(type(obj), changes))  # type: ignore[type-var]


def check(obj: Any, where: str = "") -> None:
    """Raise `ConfigError` if a field of `obj`, or of an object in its fields, is out of bounds.

    Constructors do not check this.
    """
    for f in dataclasses.fields(obj) if dataclasses.is_dataclass(obj) else ():
        value = getattr(obj, f.name)
        if "bounds" in f.metadata:
            _check(f, value, where)
        check(value, where)


def to_dict(obj: Any) -> dict[str, Any]:
    """Return the fields as plain Python values for YAML; `from_dict` reads them back."""
    return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}


def defaults(cls: type) -> dict[str, Any]:
    """Return the default of each field that has one, as plain Python values."""
    fields: Any = dataclasses.fields(cls)
    return {f.name: _plain(f.default) for f in fields if f.default is not dataclasses.MISSING}


def number(text: str) -> int | float:
    """Read a number as written in YAML 1.2 or Python.

    A leading zero is refused, because it means octal in YAML 1.1 and decimal in YAML 1.2.

    Raises:
        ValueError: the text is not a number, or an ambiguous one.
    """
    try:
        return int(text, 0)
    except ValueError:
        found = re.fullmatch(r"\s*([-+]?)0[0_]*([1-9][0-9_]*)\s*", text)
    if found is None:
        return float(text)
    sign, digits = found.groups()
    is_octal = not set(digits) & {"8", "9"}
    octal = f", or {sign}0o{digits} for the octal number {sign}{int(digits, 8)}" if is_octal else ""
    raise _MismatchError(f"expected {sign}{digits}{octal}")


class _MismatchError(ValueError):
    """A failed conversion; the message says what was expected."""


def _as(annotation: Any, value: Any) -> Any:
    """Convert `value` to the type of `annotation`, or raise `_MismatchError`."""
    converters: dict[Any, Callable[[Any], Any]] = {
        bool: _as_bool,
        int: _as_int,
        float: _as_float,
        str: _as_str,
    }
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in converters:
        return converters[annotation](value)
    if origin is tuple:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise _MismatchError(f"expected {_noun(annotation)}")
        return tuple(_as(arguments[0], v) for v in value)
    return value


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _MismatchError("expected true or false")


def _as_int(value: Any) -> int:
    if isinstance(value, jax.core.Tracer):
        raise _MismatchError("is static, one compiled program per value, so it cannot be traced or mapped over")
    if isinstance(value, str):
        value = number(value)
    kind = np.asarray(value).dtype.kind
    if kind not in "iuf" or np.ndim(value) or int(value) != value:
        raise _MismatchError("expected a whole number")
    if abs(int(value)) > MAX_INT32:
        raise _MismatchError(f"must be at most {MAX_INT32}")
    return int(value)


def _as_float(value: Any) -> Any:
    if isinstance(value, str):
        value = number(value)
    kind = (value if isinstance(value, jax.Array) else np.asarray(value)).dtype.kind
    if kind not in "iuf":
        raise _MismatchError("expected a number")
    if isinstance(value, jax.core.Tracer):
        return value
    if np.isnan(np.asarray(value)).any():
        raise _MismatchError("expected a number")
    return value if isinstance(value, jax.Array | np.ndarray) else float(value)


def _as_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _MismatchError("expected text")


def _check(f: dataclasses.Field, value: Any, where: str) -> None:
    """Raise `ConfigError` if `value` is outside of the field's bounds or choices."""
    choices = f.metadata.get("choices")
    if choices and value not in choices:
        hint = did_you_mean(value, choices, "values", LIST)
        raise ConfigError(f"{_prefix(where)}{f.name}: unknown value '{value}'{hint}")
    tests: dict[str, tuple[str, Callable[[Any, float], Any]]] = {
        "gt": (">", lambda v, b: v > b),
        "ge": (">=", lambda v, b: v >= b),
        "lt": ("<", lambda v, b: v < b),
        "le": ("<=", lambda v, b: v <= b),
    }
    if isinstance(value, jax.core.Tracer):
        return
    is_numeric = isinstance(value, bool | int | float | tuple | jax.Array | np.ndarray)
    numbers = [in_program(v) for v in np.ravel(np.asarray(value)).tolist()] if is_numeric else []
    if f.metadata.get("finite", True) and not all(math.isfinite(v) for v in numbers):
        raise ConfigError(f"{_prefix(where)}{f.name}: must be finite, got {shown(value)}")
    for name, bound in f.metadata.get("bounds", {}).items():
        wrong = [v for v in numbers if not tests[name][1](v, in_program(bound))]
        if wrong:
            wanted = " and ".join(f"{tests[n][0]} {b}" for n, b in f.metadata["bounds"].items())
            rounded = isinstance(value, float) and tests[name][1](value, bound)
            means = f", which is {wrong[0]:g} in the 32 bits of a program's floats" if rounded else ""
            raise ConfigError(f"{_prefix(where)}{f.name}: must be {wanted}, got {shown(value)}{means}")


def in_program(value: Any) -> Any:
    """Return a number as programs represent it: as a 32-bit float.

    1e-50 becomes 0 and 0.99999999 becomes 1. XLA treats subnormal numbers, those below 1.18e-38, as
    0.
    """
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        number = float(np.float32(value))
    return number if abs(number) >= np.finfo(np.float32).tiny else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    return value


def _noun(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        return f"a list of {'whole ' if typing.get_args(annotation)[0] is int else ''}numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(
        annotation, str(annotation)
    )


def shown(value: Any) -> str:
    """Return a value as shown in messages, in at most 60 characters."""
    try:
        text = "a tracer" if isinstance(value, jax.core.Tracer) else repr(value)
    except ValueError:  # Python refuses to print integers with thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""
