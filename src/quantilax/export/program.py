"""A traced function as a list of steps: calls inlined, constants computed, dead steps dropped.

`flatten` takes what `jax.make_jaxpr` returns. A step whose inputs are all known is computed here
instead of being kept. So reshaped weights and fractions drawn from a known key become
constants, and a branch with probability 0 disappears.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
"""Primitives that call a function, which is in one of the parameters `BODIES`."""
BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")

Shape = tuple[int | str, ...]
"""Sizes of axes. Those that are known only when the program runs are names."""


class Value:
    """An array of the program that depends on its inputs. Two values are never equal."""

    def __init__(self, aval: Any) -> None:
        """Note shape and dtype."""
        self.shape = sizes(aval.shape)
        self.dtype = aval.dtype


Operand = Value | np.ndarray


class Step(NamedTuple):
    """One primitive of JAX, applied."""

    primitive: str
    params: dict[str, Any]
    inputs: list[Operand]
    outputs: list[Value]


class Program(NamedTuple):
    """A function of `inputs`."""

    inputs: list[Value]
    steps: list[Step]
    outputs: list[Operand]


def sizes(shape: Any) -> Shape:
    """Return a shape of JAX, with symbolic sizes as their names."""
    return tuple(int(size) if isinstance(size, int | np.integer) else str(size) for size in shape)


def flatten(traced: ClosedJaxpr) -> Program:
    """Return the program of a traced function."""
    inputs = [Value(variable.aval) for variable in traced.jaxpr.invars]
    steps: list[Step] = []
    outputs = _inline(traced, inputs, steps)
    return Program(inputs, _live(steps, outputs), outputs)


def depends_on(program: Program, output: int, input: int) -> bool:
    """Return whether an output of the program is a function of an input."""
    needed = {id(program.outputs[output])}
    for step in _live(program.steps, [program.outputs[output]]):
        needed |= {id(value) for value in step.inputs}
    return id(program.inputs[input]) in needed


def _inline(traced: ClosedJaxpr, arguments: Sequence[Operand], steps: list[Step]) -> list[Operand]:
    """Append the steps of a function that is called with `arguments`, and return its results."""
    jaxpr, known = traced.jaxpr, dict(zip(traced.jaxpr.constvars, map(_concrete, traced.consts), strict=True))
    of: dict[Any, Operand] = known | dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Operand:
        if isinstance(atom, Literal):
            return np.asarray(atom.val, atom.aval.dtype)  # type: ignore[attr-defined]
        return of[atom]

    for equation in jaxpr.eqns:
        name, params, inputs = equation.primitive.name, equation.params, [read(atom) for atom in equation.invars]
        if name in CALLS:
            body = next(params[key] for key in BODIES if key in params)
            results = _inline(body if hasattr(body, "consts") else ClosedJaxpr(body, ()), inputs, steps)
        elif all(not isinstance(x, Value) for x in inputs) and _is_static(equation):
            results = _computed(equation, inputs)
        elif name == "select_n" and not isinstance(inputs[0], Value) and np.unique(inputs[0]).size == 1:
            results = [inputs[1 + int(np.ravel(inputs[0])[0])]]
        else:
            values = [Value(variable.aval) for variable in equation.outvars]
            steps.append(Step(name, params, inputs, values))
            results = list[Operand](values)
        of |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_static(equation: Any) -> bool:
    return all(isinstance(size, int) for variable in equation.outvars for size in sizes(variable.aval.shape))


def _computed(equation: Any, inputs: list[Any]) -> list[Operand]:
    """Apply a primitive to known numbers."""
    results = equation.primitive.bind(*inputs, **equation.params)
    return [_concrete(result) for result in (results if equation.primitive.multiple_results else [results])]


def _concrete(value: Any) -> Any:
    """Return known numbers as NumPy's, except keys, which only JAX can hold."""
    if jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.extended):
        return value
    return np.asarray(value)


def _live(steps: list[Step], outputs: list[Operand]) -> list[Step]:
    """Return the steps that some output depends on."""
    needed, kept = {id(value) for value in outputs}, []
    for step in reversed(steps):
        if any(id(value) in needed for value in step.outputs):
            needed |= {id(value) for value in step.inputs}
            kept.append(step)
    return kept[::-1]
