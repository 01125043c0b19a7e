"""A run's evaluations on the host: per seed, and averaged over all seeds."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from quantilax import switches
from quantilax.runs import checkpoints
from quantilax.runs.checkpoints import Checkpoint
from quantilax.signals import Signals
from quantilax.statistics import iqm
from quantilax.types import AT_THE_END, Metrics, Record, State

COLUMNS = (
    "seed", "env_step", "return_mean", "return_std", "return_min", "length_mean", *Metrics._fields, "seconds",
)  # fmt: skip
"""Columns of each seed's row. Before `seconds` come the fields of `quantilax.signals.Signals`, if
they are measured, and the numbers that an `eval_callback` returned, as `callback/<name>`."""


class Evaluation(NamedTuple):
    """One row of a run's learning curve."""

    record: Record
    """NumPy arrays with a leading axis of seeds."""
    seconds: float
    """Since training began, without compilation and without the time between two sessions."""


class Entry(NamedTuple):
    """An evaluation for loggers, in plain numbers; None where there is no value."""

    env_step: int
    seconds: float
    seeds: list[dict[str, Any]]
    """One row per seed, with `COLUMNS` and the callback's columns."""
    all: dict[str, Any]
    """Means of the same columns over the seeds, and `return_iqm`, `return_lowest` and
    `return_highest` of the seeds' mean returns."""
    returns: np.ndarray
    """(S, E)"""
    lengths: np.ndarray
    """(S, E)"""


def entry(seeds: list[int], evaluation: Evaluation, is_first: bool) -> Entry:
    """Convert an evaluation to plain numbers.

    Args:
        seeds: the seeds of the leading axis.
        evaluation: one row of the curve.
        is_first: whether this row precedes training; then its metrics average nothing.
    """
    record, seconds = evaluation
    returns, lengths = np.asarray(record.returns), np.asarray(record.lengths)
    env_step = int(np.asarray(record.env_step)[0])
    columns = {
        "return_mean": returns.mean(axis=1),
        "return_std": returns.std(axis=1),
        "return_min": returns.min(axis=1),
        "length_mean": lengths.mean(axis=1),
        **_metrics(record.metrics, is_first),
        **_signals(record.signals),
        **_numbers(record.callback, len(seeds)),
    }
    rows = [
        {
            "seed": seed,
            "env_step": env_step,
            **{name: None if values is None else float(values[i]) for name, values in columns.items()},
            "seconds": round(seconds, 3),
        }
        for i, seed in enumerate(seeds)
    ]
    means = columns["return_mean"]
    together = {
        "env_step": env_step,
        "num_seeds": len(seeds),
        "return_iqm": iqm(means),
        "return_lowest": float(means.min()),
        "return_highest": float(means.max()),
        **{name: None if values is None else float(np.mean(values)) for name, values in columns.items()},
        "seconds": round(seconds, 3),
    }
    return Entry(env_step, seconds, rows, together, returns, lengths)


def stack(history: list[Evaluation]) -> dict[str, Any]:
    """Stack evaluations for a checkpoint: each leaf gets a leading axis of rows."""
    return {
        "record": jax.tree.map(lambda *rows: np.stack(rows), *(e.record for e in history)),
        "seconds": np.array([e.seconds for e in history], np.float32),
    }


def unstack(stacked: dict[str, Any]) -> list[Evaluation]:
    """Undo `stack`."""
    return [
        Evaluation(jax.tree.map(lambda x, i=i: np.asarray(x[i]), stacked["record"]), float(seconds))
        for i, seconds in enumerate(stacked["seconds"])
    ]


@switches.standard()
def pack(state: State, history: list[Evaluation]) -> checkpoints.Packed:
    """Copy a state and the evaluations so far to the host, for `checkpoints.save`."""
    return checkpoints.pack({"state": state}, {"history": stack(history)})


@switches.standard()
@switches.unchecked()
def unpack(checkpoint: Checkpoint, specs: tuple[State, Record]) -> tuple[State, list[Evaluation]]:
    """Undo `pack`: return the state, on the device, and the evaluations.

    Args:
        checkpoint: one that `pack` made.
        specs: shapes of a state and of a record (`devices.Program.specs`).

    Raises:
        CheckpointError: it is of another config, environment or version.
    """
    state, record = specs
    rows = checkpoint.facts["rows"]
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), record)
    history = {"record": stacked, "seconds": jax.ShapeDtypeStruct((rows,), np.float32)}
    tree = checkpoints.unpack(checkpoint, {"state": state, "history": history})
    return tree["state"], unstack(jax.device_get(tree["history"]))


def finite_or_none(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(metrics: Metrics | None, is_first: bool) -> dict[str, np.ndarray | None]:
    values = metrics._asdict() if metrics is not None else dict.fromkeys(Metrics._fields)
    return {
        name: None if value is None or (is_first and name not in AT_THE_END) else np.asarray(value)
        for name, value in values.items()
    }


def _signals(signals: Signals | None) -> dict[str, np.ndarray | None]:
    """Return the columns of the signals; none if they are not measured."""
    found = {} if signals is None else signals._asdict()
    return {name: None if value is None else np.asarray(value) for name, value in found.items()}


def _numbers(callback: Any, seeds: int) -> dict[str, np.ndarray]:
    """Return a column for each leaf that holds one number per seed."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(callback):
        if np.shape(leaf) == (seeds,):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[f"callback/{name}" if name else "callback"] = np.asarray(leaf)
    return found
