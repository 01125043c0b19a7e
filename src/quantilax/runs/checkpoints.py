"""Checkpoints: all that a run carries, at the end of a segment; complete, or invisible.

    RUN/checkpoints/000000060000/     named after the environment steps done
        checkpoint.json               what it holds, by whom it was written, and the SHA-256 of every other file
        arrays/                       Orbax: one array per leaf of the state and of the records so far

It is written under another name, flushed to the disk and renamed, so a crash at any moment leaves the checkpoints before it
as they were. Reading verifies every byte first. Nothing in it is pickled: reading a stranger's checkpoint runs nothing.
See docs/decisions/0008-checkpoints.md.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from quantilax import replay
from quantilax.runs.errors import CheckpointError, reason
from quantilax.runs.files import flush

FORMAT = 1
"""Raised when older programs could not read what newer ones write."""
KEEP = 3
"""Checkpoints kept, beside the best."""
MANIFEST = "checkpoint.json"
ARRAYS = "arrays"
PARTIAL, REPLACED = ".partial", ".replaced"

REQUIRED = {"env_step": int, "return_mean": float, "config": dict, "leaves": dict, "files": dict, "rows": int}
"""What every manifest says, and what it is."""

Arrays = dict[str, np.ndarray]
T = TypeVar("T")


class Checkpoint(NamedTuple):
    """What a checkpoint holds, verified."""

    path: Path
    facts: dict[str, Any]
    """`env_step`, `return_mean`, `config`, `seeds`, `versions` and what else `save` was given."""
    arrays: Arrays


def save(root: Path, env_step: int, arrays: Arrays, facts: dict[str, Any]) -> Path:
    """Write a checkpoint, make it visible, and delete those that are neither among the last three nor the best.

    Args:
        root: the run's directory of checkpoints.
        env_step: environment steps done; an unreadable or older checkpoint of the same step is replaced.
        arrays: as `pack` gives them.
        facts: what else is to be known before reading the arrays, as JSON; `return_mean` decides which one is the best.

    Raises:
        OSError: the disk is full, say; what was there before is untouched.
    """
    root.mkdir(exist_ok=True)
    path = root / f"{env_step:012d}"
    aside, replaced = path.with_name(path.name + PARTIAL), path.with_name(path.name + REPLACED)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        _write_arrays(aside / ARRAYS, {name: array for name, array in arrays.items() if array.size})
        leaves = {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}
        content = {"format": FORMAT, "env_step": env_step, **facts, "leaves": leaves, "files": _digests(aside)}
        (aside / MANIFEST).write_text(json.dumps({"sha256": _digest(content), "content": content}), encoding="utf-8")
        for directory, _, files in os.walk(aside):
            for name in files:
                flush(Path(directory) / name)
            flush(Path(directory))
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        aside.rename(path)
        flush(root)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if not path.exists():
            with contextlib.suppress(OSError):
                replaced.rename(path)
        raise
    _prune(root, env_step)
    return path


def steps(root: Path) -> list[int]:
    """Environment steps of the checkpoints that there are, complete or damaged, rising.

    Raises:
        CheckpointError: the directory cannot be looked into.
    """
    try:
        return sorted({int(path.name) for path in root.iterdir() if path.name.isascii() and path.name.isdigit()})
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{root}: cannot be read: {error.strerror}") from None


def find(root: Path, which: str | int = "last", warn: Callable[[str], None] = print) -> Checkpoint:
    """Read the last checkpoint, the best, or that of a step; an unreadable one is named and the next in line read.

    Args:
        root: the run's directory of checkpoints.
        which: `last`, `best` (by the mean return of its evaluation; the later of two equals) or environment steps.
        warn: called with a line on each checkpoint that was skipped.

    Raises:
        CheckpointError: none can be read. Nothing is deleted.
    """
    there = steps(root)
    if which not in ("last", "best"):
        if isinstance(which, str):
            raise CheckpointError(f"checkpoint: expected last, best or environment steps, got '{which}'")
        if which not in there:
            raise CheckpointError(f"{root}: no checkpoint at step {which:,}; there are {_listed(there) or 'none'}")
        return read(root / f"{which:012d}")
    errors: list[str] = []
    for path in _in_order(root, there, which, errors.append):
        try:
            found = read(path)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        for line in errors:
            warn(f"{line}; skipped, step {found.facts['env_step']:,} is used")
        return found
    if errors:
        tried = f"; tried {len(errors)}" if len(errors) > 1 else ""
        raise CheckpointError(f"no checkpoint can be read{tried}: {errors[0]}; nothing was deleted")
    raise CheckpointError(f"{root.parent}: has no checkpoint; it was stopped before the first one")


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint, then read it.

    Raises:
        CheckpointError: a file that is missing, cut short or altered, or a format of a later version.
    """
    content = manifest(path)
    try:
        there = _digests(path)
        expected = [(name, size, digest) for name, (size, digest) in content["files"].items()]
        leaves = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in content["leaves"].items()}
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in leaves.items() if 0 in shape}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise CheckpointError(f"{path}: {MANIFEST} is no manifest of a checkpoint") from None
    for name, size, digest in expected:
        if name not in there:
            raise CheckpointError(f"{path}: {name} is missing")
        if there[name][0] != size:
            raise CheckpointError(f"{path}: {name} has {there[name][0]} of {size} bytes")
        if there[name][1] != digest:
            raise CheckpointError(f"{path}: {name} was altered")
    arrays |= _read_arrays(path / ARRAYS, leaves.keys() - arrays.keys())
    return Checkpoint(path, {k: v for k, v in content.items() if k not in ("files", "leaves")}, arrays)


def manifest(path: Path) -> dict[str, Any]:
    """Return what `checkpoint.json` says, without reading the arrays.

    Raises:
        CheckpointError: it is missing, damaged or of a later format.
    """
    file = path / MANIFEST
    try:
        outer = json.loads(file.read_text(encoding="utf-8"))
        content = outer["content"]
        whole = outer["sha256"] == _digest(content)
    except OSError as error:
        raise CheckpointError(f"{path}: {MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: {MANIFEST} is cut short or altered") from None
    if not whole or not isinstance(content, dict):
        raise CheckpointError(f"{path}: {MANIFEST} was altered")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {content.get('format')} and this version reads {FORMAT}; use quantilax"
            f" {versions(content).get('quantilax', '?')}, which wrote it"
        )
    for name, kind in REQUIRED.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path}: {MANIFEST} has no {name}")
    if content["env_step"] != int(path.name):
        raise CheckpointError(f"{path}: {MANIFEST} is of step {content['env_step']:,}")
    return content


def pack(tree: PyTree) -> Arrays:
    """Copy a tree to the host: one array per leaf, named by its path; keys as their data, replay without empty rows."""

    def compacted(node: Any) -> Any:
        return replay.compact(node) if isinstance(node, replay.Ring) else node

    def on_host(leaf: Any) -> np.ndarray:
        return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)  # a copy: training goes on in its place

    tree = jax.tree.map(compacted, tree, is_leaf=lambda node: isinstance(node, replay.Ring))
    return {name: on_host(leaf) for name, leaf in _named(tree)}


def unpack(checkpoint: Checkpoint, specs: PyTree) -> PyTree:
    """Put the arrays of a checkpoint into a tree of the given shapes (`jax.ShapeDtypeStruct`), where their shardings say.

    Raises:
        CheckpointError: names the leaves that differ: the checkpoint is of another config, environment or version.
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
            is_row = any(name.startswith((f"{ring}/rows/", f"{ring}/observations")) for ring in rings)
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
    """Paths of the checkpoints, the one asked for first; where the best is asked for, without those not to be ranked."""
    paths = [root / f"{step:012d}" for step in reversed(there)]
    if which != "best":
        return paths
    ranked: list[tuple[float, Path]] = []
    for path in paths:
        try:
            mean = manifest(path)["return_mean"]
            ranked.append((-math.inf if math.isnan(mean) else mean, path))
        except CheckpointError as error:
            complain(str(error))
    return [path for _, path in sorted(ranked, key=lambda pair: -pair[0])]  # stable: the later of two equals first


def _prune(root: Path, env_step: int) -> None:
    """Delete what is older than the last three and not the best; what a damaged run has of later steps will be replaced."""
    there = [step for step in steps(root) if step <= env_step]
    paths = [root / f"{step:012d}" for step in there]
    kept = {*paths[-KEEP:], *_in_order(root, there, "best", lambda _: None)[:1]}
    for path in root.iterdir():
        if (path in paths and path not in kept) or path.suffix in (PARTIAL, REPLACED):
            shutil.rmtree(path, ignore_errors=True)


def _write_arrays(path: Path, arrays: Arrays) -> None:
    def write(ocp: Any) -> None:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), arrays)

    _with_orbax(write)


def _read_arrays(path: Path, names: Iterable[str]) -> Arrays:
    def read(ocp: Any) -> Arrays:
        args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        with ocp.PyTreeCheckpointer() as checkpointer:
            arrays: Arrays = checkpointer.restore(path.absolute(), item=dict.fromkeys(args, 0), restore_args=args)
            return arrays

    try:
        return _with_orbax(read)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _with_orbax(act: Callable[[Any], T]) -> T:
    """Call a function with the module of Orbax, imported here as that takes most of a second.

    Of one failure it prints the traceback of every task: at once, when the tasks are collected, and from threads that come
    too late. One line is kept.

    Raises:
        OSError: anything failed; Orbax and TensorStore have no common class of errors.
    """
    import orbax.checkpoint

    _ignore_late_tasks()
    noisy = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in noisy:
        logger.addFilter(_nothing)
    try:
        try:
            return act(orbax.checkpoint)
        except Exception as error:
            why = reason(error)
        gc.collect()  # here, where the traceback that holds the tasks is gone
        raise OSError(why)
    finally:
        for logger in noisy:
            logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _ignore_late_tasks() -> None:
    """Print nothing where TensorStore calls back into an event loop that is closed already."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        sys.unraisablehook = hook


def _digests(root: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file below `root` but the manifest."""
    found: dict[str, list[Any]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p != root / MANIFEST):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[path.relative_to(root).as_posix()] = [path.stat().st_size, digest]
    return found


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _raw(spec: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype in which a leaf is stored."""
    stored = jax.eval_shape(jax.random.key_data, spec) if _is_key(spec) else spec
    return stored.shape, np.dtype(stored.dtype)


def _but(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its second axis, the rows or slots of a replay."""
    return shape[:1] + shape[2:]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def versions(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the versions that wrote a checkpoint, as far as it says."""
    found = facts.get("versions")
    return found if isinstance(found, dict) else {}


def _listed(there: list[int]) -> str:
    return ", ".join(f"{step:,}" for step in there)
