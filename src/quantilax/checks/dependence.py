"""What a program's outputs can depend on, read from its jaxpr; nothing is compiled or run.

| function | gives |
|---|---|
| `dependence` | for each output the inputs that may reach it |
| `fingerprint` | a hash of the part of a program that some outputs need: equal where that part is the same |

Both err on one side only. An input that `dependence` leaves out cannot influence the output, and programs with equal
fingerprints compute the same from the same inputs; an input that it names may still cancel out (`0 * x` counts as x), and
programs with different fingerprints may still agree. Values flow along the jaxpr's variables: into and out of calls, branches
(the predicate reaches all that the branches give), loops (to a fixpoint over what is carried; the condition of a `while`
reaches all that the loop changes). An unknown primitive is taken to mix all its inputs into all its outputs; so is a jaxpr
that writes to references or calls the host with effects, where values flow along other ways too.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Jaxpr: TypeAlias = Any
"""A `jax.extend.core.Jaxpr` or `ClosedJaxpr`; jax 0.11 has one class for both."""
Row: TypeAlias = int
"""A set of positions, as the bits of a whole number."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "shard_map": "jaxpr",
}
"""Primitives that apply one jaxpr to their inputs, and the parameter that holds it."""

INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
"""Those that are nothing but what they call."""

IDENTITIES = ("optimization_barrier", "stop_gradient", "copy", "copy_p")
"""Primitives whose output i is input i."""

HARMLESS_EFFECTS = ("DebugEffect", "OrderedDebugEffect", "NamedAxisEffect", "InternalMutableArrayEffect")
"""Effects that carry no value to another place: printing, names of axes, references that live and die within a call."""

_UNLIKE = itertools.count()


def dependence(jaxpr: Jaxpr) -> list[frozenset[int]]:
    """For each output of a closed jaxpr, the positions of the inputs that may influence it."""
    return [frozenset(_positions(row)) for row in _Rows().of(jaxpr)]


def fingerprint(jaxpr: Jaxpr, outputs: Iterable[int]) -> bytes:
    """Hash what a closed jaxpr does to compute the outputs at these positions.

    Names, the order of independent steps, steps done twice and what other outputs need play no part; constants enter by value.
    """
    hashing = _Hashing()
    inputs = [_hash("input", i, _aval(v)) for i, v in enumerate(_open(jaxpr).invars)]
    return _hash(*hashing.outputs(jaxpr, sorted(outputs), inputs, depth=0))


class _Rows:
    """Dependence of a jaxpr's outputs on its inputs, each jaxpr analysed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Jaxpr, list[Row]]] = {}  # the jaxpr is kept, so that its id stays its own

    def of(self, jaxpr: Jaxpr) -> list[Row]:
        """A row over the inputs for each output."""
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = jaxpr, self._analyse(_open(jaxpr))
        return self._known[id(jaxpr)][1]

    def _analyse(self, jaxpr: Jaxpr) -> list[Row]:
        if any(_flows_elsewhere(eqn) for eqn in jaxpr.eqns):
            return [_all(len(jaxpr.invars))] * len(jaxpr.outvars)
        rows: dict[Any, Row] = {v: 1 << i for i, v in enumerate(jaxpr.invars)}

        def row(atom: Any) -> Row:
            return 0 if isinstance(atom, core.Literal) else rows.get(atom, 0)  # 0: a constant

        for eqn in jaxpr.eqns:
            inputs = [row(atom) for atom in eqn.invars]
            for var, local in zip(eqn.outvars, self.of_equation(eqn), strict=True):
                rows[var] = _union(inputs[i] for i in _positions(local))
        return [row(atom) for atom in jaxpr.outvars]

    def of_equation(self, eqn: Any) -> list[Row]:
        """A row over the equation's inputs for each of its outputs."""
        name, numbers = eqn.primitive.name, (len(eqn.invars), len(eqn.outvars))
        if name in IDENTITIES:
            return [1 << i for i in range(numbers[1])]
        if name == "scan":
            return self._scan(eqn)
        if name == "while":
            return self._while(eqn)
        if name == "cond":
            return self._cond(eqn)
        if name in CALLS:
            called = eqn.params[CALLS[name]]
            if _is_closed(called) and (len(_open(called).invars), len(_open(called).outvars)) == numbers:
                return self.of(called)
        return [_all(numbers[0])] * numbers[1]

    def _scan(self, eqn: Any) -> list[Row]:
        body, num_consts, num_carry = scan_parts(eqn)
        rows = self.of(body)
        reach = [1 << (num_consts + j) for j in range(num_carry)]

        def outside(row: Row) -> Row:
            """What a row over the body's inputs comes to outside the loop."""
            return _union(
                reach[i - num_consts] if num_consts <= i < num_consts + num_carry else 1 << i for i in _positions(row)
            )

        _to_fixpoint(reach, lambda j: outside(rows[j]))
        return [*reach, *(outside(row) for row in rows[num_carry:])]

    def _while(self, eqn: Any) -> list[Row]:
        cond, num_cond = eqn.params["cond_jaxpr"], eqn.params["cond_nconsts"]
        body, num_body = eqn.params["body_jaxpr"], eqn.params["body_nconsts"]
        (predicate,), rows = self.of(cond), self.of(body)
        first = num_cond + num_body
        reach = [1 << (first + j) for j in range(len(rows))]

        def outside(row: Row, consts: int, offset: int) -> Row:
            return _union(reach[i - consts] if i >= consts else 1 << (offset + i) for i in _positions(row))

        def step(j: int) -> Row:
            if j in unchanged(body, num_body):
                return 0
            return outside(rows[j], num_body, num_cond) | outside(predicate, num_cond, 0)

        _to_fixpoint(reach, step)
        return reach

    def _cond(self, eqn: Any) -> list[Row]:
        branches = [self.of(branch) for branch in eqn.params["branches"]]
        return [1 | _union(row << 1 for row in rows) for rows in zip(*branches, strict=True)]


class _Hashing:
    """Hashes of values by how they are computed: equal hashes, equal values."""

    def __init__(self) -> None:
        self._rows = _Rows()

    def outputs(self, jaxpr: Jaxpr, wanted: Sequence[int], inputs: Sequence[bytes], depth: int) -> list[bytes]:
        """Hashes of the wanted outputs.

        Args:
            jaxpr: closed.
            wanted: positions of outputs.
            inputs: a hash for each input.
            depth: number of loops around it, which tells what their bodies carry apart.
        """
        opened = _open(jaxpr)
        hashes: dict[Any, bytes] = dict(zip(opened.invars, inputs, strict=True))
        hashes |= {v: self._value(c) for v, c in zip(opened.constvars, getattr(jaxpr, "consts", ()), strict=True)}

        def of(atom: Any) -> bytes:
            return self._value(atom.val, atom.aval) if isinstance(atom, core.Literal) else hashes[atom]

        for eqn, positions in self._needed(opened, wanted):
            for position, found in zip(positions, self._equation(eqn, positions, of, depth), strict=True):
                hashes[eqn.outvars[position]] = found
        return [of(opened.outvars[i]) for i in wanted]

    def _needed(self, jaxpr: Jaxpr, wanted: Iterable[int]) -> list[tuple[Any, list[int]]]:
        """Equations that the outputs need, in order, each with the positions of its outputs that are needed."""
        needed = {jaxpr.outvars[i] for i in wanted if not isinstance(jaxpr.outvars[i], core.Literal)}
        everything = any(_flows_elsewhere(eqn) for eqn in jaxpr.eqns)
        equations = []
        for eqn in reversed(jaxpr.eqns):
            positions = [i for i, v in enumerate(eqn.outvars) if v in needed or everything]
            if positions or everything:
                rows = self._rows.of_equation(eqn)
                inputs = range(len(eqn.invars)) if everything else _positions(_union(rows[i] for i in positions))
                needed |= {eqn.invars[i] for i in inputs if not isinstance(eqn.invars[i], core.Literal)}
                equations.append((eqn, positions))
        return equations[::-1]

    def _equation(self, eqn: Any, wanted: list[int], of: Callable[[Any], bytes], depth: int) -> list[bytes]:
        name = eqn.primitive.name
        if _flows_elsewhere(eqn):
            return [self._unique() for _ in wanted]
        if name in IDENTITIES:
            return [of(eqn.invars[i]) for i in wanted]
        if name == "scan":
            return self._scan(eqn, wanted, of, depth)
        if name == "while":
            return self._while(eqn, wanted, of, depth)

        rows = self._rows.of_equation(eqn)
        used = set(_positions(_union(rows[i] for i in wanted)))
        # What is not needed may not have been hashed.
        inputs = [of(atom) if i in used else b"" for i, atom in enumerate(eqn.invars)]
        if name == "cond":
            branches = [self.outputs(b, wanted, inputs[1:], depth) for b in eqn.params["branches"]]
            return [_hash("cond", inputs[0], *found) for found in zip(*branches, strict=True)]
        if name in CALLS and _is_closed(eqn.params[CALLS[name]]):
            found = self.outputs(eqn.params[CALLS[name]], wanted, inputs, depth)
            if name in INLINED:
                return found
            told = self._parameters({k: v for k, v in eqn.params.items() if k != CALLS[name]})
            return [_hash(name, told, one) for one in found]
        computed = _hash(name, self._parameters(eqn.params), *inputs)
        return [_hash(computed, i) for i in wanted]

    def _scan(self, eqn: Any, wanted: list[int], of: Callable[[Any], bytes], depth: int) -> list[bytes]:
        body, num_consts, num_carry = scan_parts(eqn)
        rows = self._rows.of(body)
        carried = self._carried(rows, num_consts, num_carry, wanted)
        used = set(_positions(_union(rows[i] for i in {*carried, *wanted})))
        inputs = [of(atom) if i in used else b"" for i, atom in enumerate(eqn.invars)]
        for rank, j in enumerate(carried):
            inputs[num_consts + j] = _hash("carry", depth, rank)
        for i in range(num_consts + num_carry, len(inputs)):
            inputs[i] = _hash("of the step", inputs[i])
        needed = [*carried, *(i for i in wanted if i >= num_carry)]
        found = dict(zip(needed, self.outputs(body, needed, inputs, depth + 1), strict=True))
        start = [of(eqn.invars[num_consts + j]) for j in carried]
        told = [eqn.params[name] for name in ("length", "reverse", "unroll")]
        loop = _hash("scan", *told, *start, *(found[j] for j in carried))
        last = {j: _hash(loop, "last", rank) for rank, j in enumerate(carried)}
        return [_hash(loop, "stacked", found[i]) if i >= num_carry else last[i] for i in wanted]

    def _while(self, eqn: Any, wanted: list[int], of: Callable[[Any], bytes], depth: int) -> list[bytes]:
        cond, num_cond = eqn.params["cond_jaxpr"], eqn.params["cond_nconsts"]
        body, num_body = eqn.params["body_jaxpr"], eqn.params["body_nconsts"]
        same = unchanged(body, num_body)
        first = num_cond + num_body
        if all(i in same for i in wanted):
            return [of(eqn.invars[first + i]) for i in wanted]
        (predicate,), rows = self._rows.of(cond), self._rows.of(body)
        asked = {*wanted, *(i - num_cond for i in _positions(predicate) if i >= num_cond)}
        carried = self._carried(rows, num_body, len(rows), asked)
        used = set(_positions(_union(rows[j] for j in carried)))
        names = {j: _hash("carry", depth, rank) for rank, j in enumerate(carried)}
        symbols = [names.get(j, b"") for j in range(len(rows))]
        of_cond = [of(a) if (predicate >> i) & 1 else b"" for i, a in enumerate(eqn.invars[:num_cond])]
        of_body = [of(a) if i in used else b"" for i, a in enumerate(eqn.invars[num_cond:first])]
        tested = self.outputs(cond, [0], [*of_cond, *symbols], depth + 1)
        found = self.outputs(body, carried, [*of_body, *symbols], depth + 1)
        loop = _hash("while", *tested, *found, *(of(eqn.invars[first + j]) for j in carried))
        return [_hash(loop, "last", carried.index(i)) for i in wanted]

    def _carried(self, rows: list[Row], num_consts: int, num_carry: int, wanted: Iterable[int]) -> list[int]:
        """What a loop must carry for the wanted outputs of its body, in order."""
        carried: set[int] = set()
        asked = set(wanted)
        while asked:
            carried |= {i for i in asked if i < num_carry}
            inputs = _positions(_union(rows[i] for i in asked))
            asked = {i - num_consts for i in inputs if num_consts <= i < num_consts + num_carry} - carried
        return sorted(carried)

    def _parameters(self, value: Any) -> bytes:
        """Hash a parameter of a primitive; what cannot be told from its text is like nothing else."""
        if isinstance(value, dict):
            return _hash("dict", *(part for k in sorted(value) for part in (k, self._parameters(value[k]))))
        if isinstance(value, tuple | list):
            return _hash(type(value).__name__, *(self._parameters(part) for part in value))
        if isinstance(value, np.ndarray | jax.Array):
            return self._value(value)
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            if not _is_closed(value):
                return self._unique()
            opened = _open(value)
            inputs = [_hash("argument", i, _aval(v)) for i, v in enumerate(opened.invars)]
            return _hash("jaxpr", *self.outputs(value, range(len(opened.outvars)), inputs, depth=0))
        if callable(value) and _is_global(value):
            return _hash("global", value.__module__, value.__qualname__)
        text = repr(value)
        return self._unique() if " at 0x" in text or "..." in text else _hash(type(value).__name__, text)

    def _value(self, value: Any, aval: Any = None) -> bytes:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return _hash("key", str(value.dtype), self._value(jax.random.key_data(value)))
        array = np.asarray(value)
        if array.dtype == object:
            return self._unique()
        if aval is not None:  # of a literal, which may be a Python number
            array = array.astype(aval.dtype)
        return _hash("value", str(array.dtype), array.shape, array.tobytes())

    def _unique(self) -> bytes:
        return _hash("unlike", next(_UNLIKE))


def scan_parts(eqn: Any) -> tuple[Jaxpr, int, int]:
    """Body of a scan, number of its constants, number of what it carries."""
    if "num_carry" in eqn.params:
        return eqn.params["jaxpr"], eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # from jax 0.11
    return eqn.params["jaxpr"], len(consts), len(carry)


def unchanged(body: Jaxpr, num_consts: int) -> set[int]:
    """Positions of what a loop's body hands on as it got it."""
    opened = _open(body)
    return {j for j, (a, b) in enumerate(zip(opened.invars[num_consts:], opened.outvars, strict=False)) if a is b}


def _to_fixpoint(reach: list[Row], step: Callable[[int], Row]) -> None:
    """Add to each row what `step` finds for it, until nothing is added."""
    growing = True
    while growing:
        growing = False
        for j in range(len(reach)):
            grown = reach[j] | step(j)
            growing |= grown != reach[j]
            reach[j] = grown


def _flows_elsewhere(eqn: Any) -> bool:
    """Say whether values may leave or enter an equation by another way than its variables."""
    if any(type(effect).__name__ not in HARMLESS_EFFECTS for effect in eqn.effects):
        return True
    return any(type(getattr(atom, "aval", None)).__name__ == "AbstractRef" for atom in (*eqn.invars, *eqn.outvars))


def _open(jaxpr: Jaxpr) -> Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _is_global(function: Any) -> bool:
    """Say whether a function is the one that its module has under its name, so that the name tells it."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, getattr(function, "__qualname__", ""), None) is function


def _is_closed(jaxpr: Jaxpr) -> bool:
    """Say whether a jaxpr's constants have values, so that its inputs are all that varies."""
    return len(_open(jaxpr).constvars) == len(getattr(jaxpr, "consts", ()))


def _aval(var: Any) -> str:
    return str(var.aval)


def _all(number: int) -> Row:
    return (1 << number) - 1


def _union(rows: Iterable[Row]) -> Row:
    union = 0
    for row in rows:
        union |= row
    return union


def _positions(row: Row) -> Iterator[int]:
    while row:
        low = row & -row
        yield low.bit_length() - 1
        row ^= low


def _hash(*parts: Any) -> bytes:
    """Hash of parts, each with its length, so that no two lists of parts run into each other."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        hashed.update(len(data).to_bytes(8, "big") + (b"b" if isinstance(part, bytes) else b"r") + data)
    return hashed.digest()
