"""Checkpoints: everything a run needs to continue, saved at the end of a segment.

    RUN/checkpoints/
        000000060000.safetensors   named after the environment steps done. Holds all arrays of the
                                   state except the replay's. Its metadata hold, as JSON, what the
                                   checkpoint contains, what wrote it, and the SHA-256 of every part
        blocks/<SHA-256>           the replay's large arrays, cut into compressed blocks. A block
                                   that did not change is stored once and shared by all checkpoints
        000000060000.recalibration.json   what `calibrate --recalibrate` fitted, if it was run
        evaluations.bin            the evaluations as records of fixed size; each checkpoint appends
                                   its new ones

A checkpoint is either complete or invisible. `save` writes under another name, flushes to disk,
reads everything back and only then renames the file. So a crash at any moment leaves the earlier
checkpoints intact. `read` verifies every byte. Nothing in a checkpoint is pickled, so reading a
stranger's checkpoint executes no code. See docs/decisions/0028-checkpoints-in-safetensors.md.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialized

from quantilax import replay
from quantilax.errors import CheckpointError, reason
from quantilax.host.files import flush

FORMAT = 3
"""The format's version; it rises when older programs cannot read what newer ones write."""
KEEP = 3
"""Number of latest checkpoints to keep, besides the best."""
SUFFIX, PARTIAL = ".safetensors", ".partial"
BLOCKS, EVALUATIONS = "blocks", "evaluations.bin"
BLOCK = 2**16, 2**22
"""Smallest and largest size of a replay block, in bytes."""
SHA256 = re.compile("[0-9a-f]{64}")
MANIFEST = "quantilax"
"""Key of the manifest in a file's metadata."""

REQUIRED = {
    "env_step": int, "return_mean": float, "config": dict, "rows": int, "leaves": dict, "blocks": dict, "evaluations": dict,
}  # fmt: skip
"""Entries that every manifest must have, and their types."""

Arrays = dict[str, np.ndarray]


class Packed(NamedTuple):
    """The content of a checkpoint before it is written, on the host.

    Each array is named by its path in the tree.
    """

    arrays: Arrays
    """Arrays that every checkpoint writes in full."""
    blocks: Mapping[str, np.ndarray] = MappingProxyType({})
    """Large arrays of which little changes between checkpoints: the replay. Leading axis: seeds."""
    evaluations: Mapping[str, np.ndarray] = MappingProxyType({})
    """Arrays that only grow along their first axis, the rows."""


class Checkpoint(NamedTuple):
    """The content of a checkpoint, verified."""

    path: Path
    facts: dict[str, Any]
    """`env_step`, `return_mean`, `config`, `seeds`, `versions` and other facts given to `save`."""
    arrays: Arrays
    """All arrays of the `Packed` that was saved."""


def save(root: Path, env_step: int, packed: Packed, facts: dict[str, Any], keep: int = KEEP) -> Path:
    """Write a checkpoint, verify it, make it visible and delete the checkpoints not worth keeping.

    Args:
        root: the run's directory of checkpoints.
        env_step: environment steps done; an existing checkpoint of the same step is replaced.
        packed: the content, from `pack`.
        facts: more entries for the manifest, as JSON; they can be read without the arrays.
            `return_mean` decides which checkpoint is the best.
        keep: how many of the latest checkpoints to keep, besides the best; 1 keeps only this one.

    Raises:
        OSError: for example, the disk is full; earlier checkpoints are untouched.
        CheckpointError: the files read back differ from what was written; earlier checkpoints are
            untouched.
    """
    root.mkdir(exist_ok=True)
    path = path_of(root, env_step)
    aside = path.with_name(path.name + PARTIAL)
    with contextlib.ExitStack() as undo:  # on any failure
        undo.callback(aside.unlink, missing_ok=True)
        content = {
            "format": FORMAT,
            "env_step": env_step,
            **facts,
            "leaves": {name: [*_spec(array), _sha256(_bytes(array))] for name, array in packed.arrays.items()},
            "blocks": {
                name: [*_spec(array), *_write_blocks(root / BLOCKS, array, undo)]
                for name, array in packed.blocks.items()
            },
            "evaluations": _append(root / EVALUATIONS, packed.evaluations, undo),
        }
        manifest_json = json.dumps({"sha256": _digest(content), "content": content})
        arrays = {name: np.asarray(array, order="C") for name, array in packed.arrays.items()}
        aside.write_bytes(serialized(arrays, {MANIFEST: manifest_json}))
        flush(aside)
        _read(aside, _content(aside, env_step), into=None)
        recalibration_of(path).unlink(missing_ok=True)
        aside.replace(path)
        undo.pop_all()
    flush(root)
    _prune(root, env_step, keep)
    return path


def path_of(root: Path, env_step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return root / f"{env_step:012d}{SUFFIX}"


def recalibration_of(path: Path) -> Path:
    """Return the path of the recalibration of a checkpoint; see `quantilax.runs.recalibration`."""
    return path.with_suffix(".recalibration.json")


def steps(root: Path) -> list[int]:
    """Return the environment steps of all checkpoints, complete or damaged, in ascending order.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    try:
        names = [path.name.removesuffix(SUFFIX) for path in root.iterdir()]  # format 1 had no suffix
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{root}: cannot be read: {error.strerror}") from None
    return sorted({int(name) for name in names if name.isascii() and name.isdigit()})


def find(root: Path, which: str | int = "last", warn: Callable[[str], None] = print) -> Checkpoint:
    """Read the last checkpoint, the best one, or that of a given step.

    For `last` and `best`, an unreadable checkpoint is reported and the next in line is read.

    Args:
        root: the run's directory of checkpoints.
        which: `last`, `best` (highest mean return of its evaluation; the later of two equals) or a
            number of environment steps.
        warn: called with a line for each checkpoint that was skipped.

    Raises:
        CheckpointError: none can be read. Nothing is deleted.
    """
    there = steps(root)
    if which not in ("last", "best"):
        if isinstance(which, str):
            raise CheckpointError(f"checkpoint: expected last, best or a number of environment steps, got '{which}'")
        if which not in there:
            raise CheckpointError(f"{root}: no checkpoint at step {which:,}; there are {_listed(there) or 'none'}")
        return read(path_of(root, int(which)))
    errors: list[str] = []
    for path in _in_order(root, there, which, errors.append):
        try:
            found = read(path)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        for line in errors:
            warn(f"{line}; using step {found.facts['env_step']:,} instead")
        return found
    if errors:
        tried = f"; tried {len(errors)}" if len(errors) > 1 else ""
        raise CheckpointError(f"no checkpoint can be read{tried}: {errors[0]}; nothing was deleted")
    raise CheckpointError(f"{root.parent}: has no checkpoint; the run was stopped before its first one")


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint and return it.

    Raises:
        CheckpointError: part of it is missing, cut short or altered, or it has another format.
    """
    content, arrays = manifest(path), Arrays()
    _read(path, content, into=arrays)
    return Checkpoint(path, {k: v for k, v in content.items() if k not in ("leaves", "blocks", "evaluations")}, arrays)


def manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint without reading its arrays.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    return _content(path, int(path.name.removesuffix(SUFFIX)))


def _content(path: Path, env_step: int) -> dict[str, Any]:
    if not os.path.lexists(path) and os.path.lexists(path.with_suffix("")):
        raise CheckpointError(
            f"{path.with_suffix('')}: is a checkpoint of format 1, but this version reads format {FORMAT}; use the commit of"
            " quantilax that run.json names"
        )
    try:
        with safe_open(path, "numpy") as file:
            outer = json.loads((file.metadata() or {})[MANIFEST])
        content = outer["content"]
        whole = outer["sha256"] == _digest(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: is cut short or altered") from None
    if not whole or not isinstance(content, dict):
        raise CheckpointError(f"{path}: was altered")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {content.get('format')}, but this version reads format {FORMAT}; use quantilax"
            f" {versions(content).get('quantilax', '?')}, which wrote it, at the commit that run.json names"
        )
    for name, kind in REQUIRED.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path}: its manifest has no {name}")
    if content["env_step"] != env_step:
        raise CheckpointError(f"{path}: its manifest is for step {content['env_step']:,}")
    return content


def pack(state: PyTree, evaluations: PyTree = ()) -> Packed:
    """Copy a tree to the host, one array per leaf. Keys become their data; replays lose empty rows.

    Args:
        state: each leaf with a leading axis of seeds.
        evaluations: each leaf with a leading axis of rows.
    """
    arrays, blocks = Arrays(), Arrays()

    def is_ring(node: Any) -> bool:
        return isinstance(node, replay.Ring)

    def on_host(leaf: Any) -> np.ndarray:
        return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)  # a copy: training reuses the buffer

    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_ring):
        if is_ring(node):
            large = _large(_name(path))
            for name, leaf in _named(replay.compact(node)):
                name = f"{_name(path)}/{name}"
                (blocks if name.startswith(large) else arrays)[name] = on_host(leaf)
        else:
            arrays[_name(path)] = on_host(node)
    return Packed(arrays, blocks, {name: on_host(leaf) for name, leaf in _named(evaluations)})


def _large(ring: str) -> tuple[str, ...]:
    """Return the prefixes of the names of a replay's large arrays: those that are compacted."""
    return f"{ring}/rows/", f"{ring}/observations", f"{ring}/depth"


def unpack(checkpoint: Checkpoint, specs: PyTree) -> PyTree:
    """Put a checkpoint's arrays into a tree of the given shapes, on the devices of their shardings.

    Args:
        checkpoint: from `read` or `find`.
        specs: a tree of `jax.ShapeDtypeStruct`.

    Raises:
        CheckpointError: names the leaves that differ, because the checkpoint is of another config,
            environment or version.
    """
    arrays, names = checkpoint.arrays, [name for name, _ in _named(specs)]
    rings = [
        _name(path)
        for path, node in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, replay.Ring))
        if isinstance(node, replay.Ring)
    ]

    def differences() -> Iterable[str]:
        for name, spec in _named(specs):
            shape, dtype = _raw(spec)
            if name not in arrays:
                yield f"{name} is not in the checkpoint"
                continue
            there = arrays[name]
            is_row = any(name.startswith(_large(ring)) for ring in rings)
            fits = there.shape == shape or (
                is_row and there.ndim == len(shape) and there.shape[1] <= shape[1] and _but(there.shape) == _but(shape)
            )
            if not fits or there.dtype != dtype:
                yield f"{name} is {there.dtype}{list(there.shape)} in the checkpoint, {dtype}{list(shape)} here"
        yield from (f"{name} is unknown here" for name in arrays if name not in names)

    found = list(differences())
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        wrote = versions(checkpoint.facts)
        raise CheckpointError(
            f"{checkpoint.path}: does not fit the run's config with this version: {'; '.join(found[:3])}{more};"
            f" it was written by quantilax {wrote.get('quantilax', '?')} with jax {wrote.get('jax', '?')}"
        )

    def expanded(node: Any, spec: Any) -> Any:
        return replay.expand(node, spec) if isinstance(node, replay.Ring) else node

    def on_device(array: Any, spec: Any) -> jax.Array:
        if _is_key(spec):
            data = jnp.array(array, device=spec.sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(jnp.empty((), spec.dtype)))
        return jnp.array(array, device=spec.sharding)

    tree = jax.tree.unflatten(jax.tree.structure(specs), [arrays[name] for name in names])
    tree = jax.tree.map(expanded, tree, specs, is_leaf=lambda x: isinstance(x, replay.Ring))
    return jax.tree.map(on_device, tree, specs)


def _in_order(root: Path, there: list[int], which: str | int, complain: Callable[[str], None]) -> list[Path]:
    """Return the paths in the order to try. For `best`, unreadable checkpoints are left out."""
    paths = [path_of(root, step) for step in reversed(there)]
    if which != "best":
        return paths
    ranked: list[tuple[float, Path]] = []
    for path in paths:
        try:
            mean = manifest(path)["return_mean"]
            ranked.append((-math.inf if math.isnan(mean) else mean, path))
        except CheckpointError as error:
            complain(str(error))
    return [path for _, path in sorted(ranked, key=lambda pair: -pair[0])]  # stable: the later of equals first


def _prune(root: Path, env_step: int, keep: int) -> None:
    """Delete old checkpoints, and the blocks that only they needed.

    The `keep` latest and the best stay. Checkpoints of later steps stay too: they are damaged, so
    the run continued from an earlier step and will replace them.
    """
    there = steps(root)
    if keep == 1:
        kept = {path_of(root, env_step)}
    else:
        paths = [path_of(root, step) for step in there if step <= env_step]
        best = _in_order(root, [step for step in there if step <= env_step], "best", lambda _: None)[:1]
        kept = {*paths[-keep:], *best, *(path_of(root, step) for step in there if step > env_step)}
    for path in root.iterdir():
        is_checkpoint = path.name.endswith(SUFFIX) and path.stem.isdigit()
        if (is_checkpoint and path not in kept) or path.name.endswith(PARTIAL):
            with contextlib.suppress(OSError):
                path.unlink()
                recalibration_of(path).unlink(missing_ok=True)
    try:
        needed = {digest for path in kept for *_, digests in manifest(path)["blocks"].values() for digest in digests}
    except CheckpointError:
        return  # an unreadable checkpoint may need any block
    for path in (root / BLOCKS).iterdir() if (root / BLOCKS).is_dir() else ():
        if path.name not in needed:
            path.unlink(missing_ok=True)


def _write_blocks(directory: Path, array: np.ndarray, undo: contextlib.ExitStack) -> tuple[int, list[str]]:
    """Write the blocks of an array that do not exist yet; return the block size and all names."""
    directory.mkdir(exist_ok=True)
    size, names, is_new = _block_size(array), list[str](), False
    for data in _blocks(array, size):
        names.append(_sha256(data))
        file = directory / names[-1]
        if _unpacked(file, len(data)) == data:
            continue
        undo.callback(file.unlink, missing_ok=True)
        aside = file.with_name(file.name + PARTIAL)
        undo.callback(aside.unlink, missing_ok=True)
        aside.write_bytes(zlib.compress(data, level=1))
        flush(aside)
        aside.replace(file)
        is_new = True
    if is_new:
        flush(directory)
    return size, names


def _block_size(array: np.ndarray) -> int:
    """Return a power of two that cuts a seed's part into at most 64 blocks, clipped to `BLOCK`."""
    least, most = BLOCK
    return min(max(least, 2 ** math.ceil(math.log2(max(array[0].nbytes if len(array) else 0, 1) / 64))), most)


def _blocks(array: np.ndarray, size: int) -> Iterator[memoryview]:
    """Yield the bytes of an array in blocks; no block spans two seeds.

    The array has a leading axis of seeds. A longer array begins with the same blocks.
    """
    for of_seed in _bytes(array).reshape(array.shape[0], -1) if array.size else ():
        for begin in range(0, of_seed.size, size):
            yield of_seed[begin : begin + size].data


def _append(file: Path, arrays: Mapping[str, np.ndarray], undo: contextlib.ExitStack) -> dict[str, Any]:
    """Write the rows that the file lacks, and return the facts that verify them."""
    leaves = {name: _spec(array) for name, array in arrays.items()}
    table = np.zeros(len(next(iter(arrays.values()))) if arrays else 0, _row(leaves))
    for name, array in arrays.items():
        table[name] = array
    data = _bytes(table) if arrays else np.zeros(0, np.uint8)
    with file.open("r+b" if file.exists() else "w+b") as stream:
        there = np.frombuffer(stream.read(), np.uint8)
        both = min(len(there), len(data))
        differing = np.flatnonzero(there[:both] != data[:both])  # after resuming from an older checkpoint
        begin = int(differing[0]) if differing.size else both
        if begin == len(there):
            undo.callback(os.truncate, file, begin)
        stream.seek(begin)
        stream.write(data[begin:].data)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
    return {"rows": len(table), "leaves": leaves, "sha256": _sha256(data)}


def _row(leaves: dict[str, Any]) -> np.dtype:
    """Return the dtype of one row of the evaluations."""
    return np.dtype([(name, np.dtype(dtype), tuple(shape[1:])) for name, (shape, dtype) in leaves.items()])


def _read(path: Path, content: dict[str, Any], into: Arrays | None) -> None:
    """Verify all that a checkpoint's manifest names; put the arrays into `into` unless it is None.

    Raises:
        CheckpointError: names what is missing, cut short or altered.
    """
    found = Arrays() if into is None else into
    try:
        _read_arrays(path, content["leaves"], found)
        for name, (shape, dtype, size, digests) in content["blocks"].items():
            data = _read_blocks(path, shape, np.dtype(dtype), size, digests, keep=into is not None)
            if data is not None:
                found[name] = data.view(dtype).reshape(shape)
        _read_evaluations(path, content["evaluations"], found)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from None
    except (SafetensorError, ValueError, TypeError, LookupError, OverflowError, AttributeError):
        raise CheckpointError(f"{path}: its manifest is not that of a checkpoint") from None


def _read_arrays(path: Path, leaves: dict[str, Any], found: Arrays) -> None:
    with safe_open(path, "numpy") as file:
        if unlike := set(file.keys()) ^ set(leaves):
            name = min(unlike)
            raise CheckpointError(f"{path}: {name} is {'missing' if name in leaves else 'not in its manifest'}")
        for name, (shape, dtype, digest) in leaves.items():
            array = file.get_tensor(name)
            if [*_spec(array), _sha256(_bytes(array))] != [shape, dtype, digest]:
                raise CheckpointError(f"{path}: {name} was altered")
            found[name] = array


def _read_blocks(
    path: Path, shape: list[int], dtype: np.dtype, block: int, digests: list[str], keep: bool
) -> np.ndarray | None:
    of_seed = math.prod(shape[1:]) * dtype.itemsize
    each = -(-of_seed // max(block, 1))
    if min(*shape, block - 1) < 0 or len(digests) != shape[0] * each or not all(map(SHA256.fullmatch, digests)):
        raise ValueError
    whole = np.empty(shape[0] * of_seed, np.uint8) if keep else None
    for i, digest in enumerate(digests):
        file, begin = path.parent / BLOCKS / digest, i % each * block
        size = min(block, of_seed - begin)
        data = _unpacked(file, size)
        if data is None or _sha256(data) != digest:
            how = "was cut short or altered" if file.exists() else "is missing"
            raise CheckpointError(f"{path}: {BLOCKS}/{digest} {how}")
        if whole is not None:
            begin += i // each * of_seed
            whole[begin : begin + size] = np.frombuffer(data, np.uint8)
    return whole


def _read_evaluations(path: Path, facts: dict[str, Any], found: Arrays) -> None:
    rows, leaves, dtype = facts["rows"], facts["leaves"], _row(facts["leaves"])
    file, size = path.parent / EVALUATIONS, rows * dtype.itemsize
    if rows < 0 or any(shape[0] != rows for shape, _ in leaves.values()):
        raise ValueError
    there = file.stat().st_size if file.exists() else 0
    if there < size:
        raise CheckpointError(f"{path}: {EVALUATIONS} has {there} of {size} bytes")
    with file.open("rb") if size else contextlib.nullcontext(io.BytesIO()) as stream:
        data = stream.read(size)
    if _sha256(data) != facts["sha256"]:
        raise CheckpointError(f"{path}: {EVALUATIONS} was altered")
    table = np.frombuffer(data, dtype) if size else np.zeros(rows, dtype)
    found |= {name: np.ascontiguousarray(table[name]) for name in leaves}


def _unpacked(file: Path, size: int) -> bytes | None:
    """Return the bytes of a block, or None if it is missing, damaged or not of this size."""
    if not file.exists():
        return None
    unpacking, packed = zlib.decompressobj(), file.read_bytes()
    try:
        data = unpacking.decompress(packed, size + 1)
    except zlib.error:
        return None
    return data if len(data) == size and unpacking.eof and not unpacking.unused_data else None


def _spec(array: np.ndarray) -> list[Any]:
    return [list(array.shape), str(array.dtype)]


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array in row-major order, without a copy if it is stored that way."""
    return np.asarray(array, order="C").reshape(-1).view(np.uint8)


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(content: Any) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _raw(spec: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and dtype in which a leaf is stored."""
    stored = jax.eval_shape(jax.random.key_data, spec) if _is_key(spec) else spec
    return stored.shape, np.dtype(stored.dtype)


def _but(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its second axis, the rows or slots of a replay."""
    return shape[:1] + shape[2:]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def versions(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the versions that wrote a checkpoint, as far as it records them."""
    found = facts.get("versions")
    return found if isinstance(found, dict) else {}


def _listed(there: list[int]) -> str:
    return ", ".join(f"{step:,}" for step in there)
