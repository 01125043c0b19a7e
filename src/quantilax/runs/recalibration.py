"""Recalibrations of learned quantiles, stored beside the checkpoint that they were fitted to.

    {"format": 1, "env_step": 60000, "seeds": {"0": {"levels": [0, ..., 1], "episodes": 1000}}}

`levels` are those of `Agent.recalibration`. A recalibration is deleted with its checkpoint, and
when the checkpoint is written again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantilax.errors import ConfigError
from quantilax.host.files import write_whole
from quantilax.runs import checkpoints

FORMAT = 1


def write(root: Path, env_step: int, levels: Mapping[int, np.ndarray], episodes: int) -> Path:
    """Write the recalibrations of a checkpoint's seeds, and return the file.

    Args:
        root: the run's directory of checkpoints.
        env_step: of the checkpoint.
        levels: seed -> levels (L,).
        episodes: number that each was fitted to.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = checkpoints.recalibration_of(checkpoints.path_of(root, env_step))
    seeds = {str(seed): {"levels": [float(x) for x in row], "episodes": episodes} for seed, row in levels.items()}
    try:
        write_whole(path, json.dumps({"format": FORMAT, "env_step": env_step, "seeds": seeds}) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def read(root: Path, env_step: int) -> dict[int, np.ndarray]:
    """Return the levels of each seed; nothing if there is no recalibration.

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
        found = {int(seed): _levels(row["levels"]) for seed, row in told["seeds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is damaged; delete it, or fit it again") from None
    return found


def _levels(given: Any) -> np.ndarray:
    levels = np.asarray(given, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (np.diff([0.0, *levels, 1.0]) >= 0).all():
        raise ValueError
    return levels
