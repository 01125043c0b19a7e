"""How a side of `benchmarks.solution` is asked and answers: arguments in, JSON lines out. Needs nothing but Python."""

import json
import sys
import time
from importlib.metadata import version
from typing import NamedTuple


class Asked(NamedTuple):
    """What a side is to run."""

    section: str
    """Of the side's settings."""
    seed: int
    total_timesteps: int
    is_warm: bool
    """Whether the directory of compiled programs was filled by an earlier process."""


def asked() -> Asked:
    """Read the arguments that `benchmarks.solution` gives."""
    section, seed, total_timesteps, cache = sys.argv[1:]
    return Asked(section, int(seed), int(total_timesteps), cache == "warm")


def evaluation(env_step: int, return_mean: float, at: float | None = None) -> None:
    """Report an evaluation as it is there.

    Args:
        env_step: environment steps so far, all of them.
        return_mean: over the episodes of the evaluation.
        at: `time.monotonic()`, whose origin processes of a machine share (Linux, macOS); None: now.
    """
    at = time.monotonic() if at is None else at
    print(json.dumps({"env_step": int(env_step), "return_mean": float(return_mean), "at": at}), flush=True)


def versions(*packages: str) -> None:
    """Report what ran, the side's own package first."""
    print(json.dumps({"versions": ", ".join(f"{package} {version(package)}" for package in packages)}), flush=True)
