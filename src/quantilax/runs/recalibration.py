"""Recalibrations of learned quantiles, stored beside the checkpoint that they were fitted to.

    {"format": 1, "env_step": 60000,
     "seeds": {"0": {"levels": [...], "excess": [...], "least": 0.1, "episodes": 1000}}}

The numbers are those of `quantilax.fractions.Recalibration`. A recalibration is deleted with its
checkpoint, and when the checkpoint is written again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from quantilax.errors import ConfigError
from quantilax.fractions import Recalibration
from quantilax.host.files import write_whole
from quantilax.runs import checkpoints

FORMAT = 1


def write(root: Path, env_step: int, fitted: Mapping[int, Recalibration], episodes: int) -> Path:
    """Write the recalibrations of a checkpoint's seeds, and return the file.

    Args:
        root: the run's directory of checkpoints.
        env_step: of the checkpoint.
        fitted: by seed.
        episodes: number that each was fitted to.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = checkpoints.recalibration_of(checkpoints.path_of(root, env_step))
    seeds = {
        str(seed): {
            "levels": np.asarray(one.levels).tolist(),
            "excess": np.asarray(one.excess).tolist(),
            "least": float(one.least),
            "episodes": episodes,
        }
        for seed, one in fitted.items()
    }
    try:
        write_whole(path, json.dumps({"format": FORMAT, "env_step": env_step, "seeds": seeds}) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def read(root: Path, env_step: int) -> dict[int, Recalibration]:
    """Return the recalibration of each seed; nothing if there is no recalibration.

    Raises:
        ConfigError: the file cannot be read or is damaged.
    """
    path = checkpoints.recalibration_of(checkpoints.path_of(root, env_step))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; delete it, or fit it again") from None
    try:
        told = json.loads(text)
        if told["format"] != FORMAT:
            raise ConfigError(f"{path}: has format {told['format']}, but this version reads {FORMAT}; fit it again")
        found = {int(seed): _recalibration(row) for seed, row in told["seeds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is damaged; delete it, or fit it again") from None
    return found


def _recalibration(row: Any) -> Recalibration:
    levels, excess = (np.asarray(row[name], np.float32) for name in ("levels", "excess"))
    least = float(row["least"])
    if levels.ndim != 1 or len(levels) < 2 or levels.shape != excess.shape:
        raise ValueError
    if not (np.diff([0, *levels, 1]) >= 0).all() or not (np.diff(excess) >= 0).all():
        raise ValueError
    if not np.isfinite([*excess, least]).all():
        raise ValueError
    return Recalibration(jnp.asarray(levels), jnp.asarray(excess), least)
