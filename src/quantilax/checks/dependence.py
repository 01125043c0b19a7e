"""Find what a program's outputs can depend on, by JAX's dead-code elimination on its jaxpr.

Nothing is compiled or run. An input that `dependence` leaves out cannot influence the outputs; one
that it names may still cancel out, as in `0 * x`. Programs with equal fingerprints compute the
same. An unknown primitive mixes its inputs; what goes to references or the host always counts.
"""

import hashlib
import os
import sys
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core.primitives import closed_call_p
from jax.interpreters.partial_eval import dce_jaxpr  # not documented; the same in jax 0.10 and 0.11

Jaxpr: TypeAlias = core.Jaxpr | core.ClosedJaxpr  # the two are one class in jax 0.11
PRINTING = ("DebugEffect", "OrderedDebugEffect")  # effects that pass no value on
_SIMPLIFIED: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def dependence(jaxpr: Any, groups: Iterable[Collection[int]]) -> list[set[int]]:
    """Return for each group of outputs the inputs that may influence one of them, by position."""
    return [set(_live(jaxpr, outputs)[1]) for outputs in groups]


def fingerprint(jaxpr: Any, outputs: Collection[int]) -> bytes:
    """Hash how a closed jaxpr computes outputs, whatever its variables are called, in any order."""
    live, inputs = _live(jaxpr, outputs)
    return _hash(inputs, *_outputs(live))


def _live(jaxpr: Any, outputs: Collection[int]) -> tuple[Any, list[int]]:
    """Return the part of a closed jaxpr that some outputs need, and the positions of its inputs."""
    jaxpr = _simplified(jaxpr)
    live, used = dce_jaxpr(jaxpr.jaxpr, [i in outputs for i in range(len(jaxpr.outvars))])
    return jaxpr.replace(jaxpr=live), [i for i, is_used in enumerate(used) if is_used]


def _simplified(jaxpr: Any) -> Any:
    """Rewrite what JAX would keep whole, and remove printing.

    A `while` becomes a scan whose steps may do nothing, a barrier one barrier per value, and a
    function with custom derivatives a plain call.
    """
    if jaxpr in _SIMPLIFIED:
        return _SIMPLIFIED[jaxpr]
    eqns = []
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        effects = {effect for effect in eqn.effects if type(effect).__name__ not in PRINTING}
        if name in ("jit", "custom_jvp_call", "custom_vjp_call") or (name == "while" and not effects):
            called = _as_scan(eqn) if name == "while" else eqn.params["jaxpr" if name == "jit" else "call_jaxpr"]
            eqn = eqn.replace(primitive=closed_call_p, params={"call_jaxpr": called})
        params = jax.tree.map(lambda x: _simplified(x) if isinstance(x, Jaxpr) else x, eqn.params)
        eqn = eqn.replace(params=params, effects=effects)
        if name == "optimization_barrier":
            eqns += [eqn.replace(invars=[a], outvars=[b]) for a, b in zip(eqn.invars, eqn.outvars, strict=True)]
        elif name not in ("debug_callback", "debug_print"):
            eqns.append(eqn)
    opened = getattr(jaxpr, "jaxpr", jaxpr).replace(eqns=eqns)
    return _SIMPLIFIED.setdefault(jaxpr, jaxpr.replace(jaxpr=opened) if hasattr(jaxpr, "jaxpr") else opened)


def _as_scan(eqn: Any) -> Any:
    """Rewrite a `while` as a scan: each step runs the body if the condition holds, else nothing."""
    cond, body = (core.jaxpr_as_fun(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    first = eqn.params["cond_nconsts"]
    second = first + eqn.params["body_nconsts"]

    def loop(*inputs: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            goes_on = jnp.any(cond(*inputs[:first], *carry)[0])
            return jax.lax.cond(goes_on, lambda c: body(*inputs[first:second], *c), lambda c: c, carry), None

        return jax.lax.scan(step, [*inputs[second:]], length=2**31 - 1)[0]  # longer than any scan of a real program

    return jax.make_jaxpr(loop)(*(atom.aval for atom in eqn.invars))


def _outputs(jaxpr: Any, inputs: Sequence[bytes] | None = None, depth: int = 0) -> list[bytes]:
    """Hash how outputs are computed; `depth` tells the values that nested loops carry apart."""
    if inputs is None:
        inputs = [_hash("input", i, str(aval)) for i, aval in enumerate(jaxpr.in_avals)]
    hashes = dict(zip(jaxpr.invars, inputs, strict=True))
    hashes.update(zip(jaxpr.constvars, map(value_hash, getattr(jaxpr, "consts", ())), strict=False))

    def of(atom: Any) -> bytes:
        is_literal = isinstance(atom, core.Literal)
        return value_hash(atom.val, atom.aval.dtype) if is_literal else hashes.get(atom, os.urandom(16))

    for eqn in jaxpr.eqns:
        hashes.update(zip(eqn.outvars, _equation(eqn, [of(atom) for atom in eqn.invars], depth), strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[bytes], depth: int) -> list[bytes]:
    name, params = eqn.primitive.name, eqn.params
    if eqn.effects:  # values may enter or leave other than through the variables
        return [os.urandom(16) for _ in eqn.outvars]
    if eqn.primitive is closed_call_p:
        return _outputs(params["call_jaxpr"], inputs, depth)
    if name == "cond":
        branches = [_outputs(branch, inputs[1:], depth) for branch in params["branches"]]
        return [_hash(name, inputs[0], *found) for found in zip(*branches, strict=True)]
    if name == "scan":
        # jax 0.11 has the sizes of the parts of the inputs in one parameter
        parts = [len(part) for part in params["ft_in"].unpack()] if "ft_in" in params else None
        consts, carried = parts[:2] if parts else (params["num_consts"], params["num_carry"])
        end = consts + carried
        carry = [_hash("carry", depth, i) for i in range(carried)]
        steps = [_hash("of the step", x) for x in inputs[end:]]
        found = _outputs(params["jaxpr"], [*inputs[:consts], *carry, *steps], depth + 1)
        loop = _hash(name, params["length"], params["reverse"], params["unroll"], *inputs[consts:end], *found[:carried])
        return [_hash(loop, x) for x in (*range(carried), *found[carried:])]
    leaves, structure = jax.tree.flatten(params)
    computed = _hash(name, str(structure), *map(value_hash, leaves), *inputs)
    return [_hash(computed, i) for i in range(len(eqn.outvars))]


def value_hash(value: Any, dtype: Any = None) -> bytes:
    """Hash a constant or a parameter; at random if the value's text does not identify it."""
    if isinstance(value, Jaxpr):
        return _hash("jaxpr", *_outputs(value))
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _hash(str(value.dtype), value_hash(jax.random.key_data(value)))
    if dtype is not None or isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value, dtype)
        return _hash(str(array.dtype), array.shape, array.tobytes())
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if getattr(sys.modules.get(module or ""), name, None) is value:
        return _hash("global", module, name)
    text = repr(value)
    return os.urandom(16) if " at 0x" in text or "..." in text else _hash(type(value).__name__, text)


def _hash(*parts: Any) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
