"""What it takes to reproduce a run's results: command, versions, commit and machine."""

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from quantilax import switches
from quantilax.host import limits, locks

CHECKOUT = Path(__file__).resolve().parents[3]
"""The root of quantilax's checkout, unless it is installed as a package."""

RECORDS = ("investigations", "runs", "studies")
"""Directories of the checkout that hold records of runs."""


def provenance() -> dict[str, Any]:
    """Return what it takes to reproduce a run's results: command, versions, commit and machine.

    The commit is None outside a checkout of quantilax. If `changes` finds files, the commit ends
    with `+` and `uncommitted` lists them.
    """
    head, changed = _git("rev-parse", "HEAD"), changes()
    return {
        "command": locks.command(),
        "commit": head and head.strip() + ("+" if changed else ""),
        **({"uncommitted": changed} if changed else {}),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": platform.machine(),
        "cores": limits.cores(),
        "device": switches.devices()[0].device_kind,
        **switches.facts(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect a run's results."""
    packages = ("quantilax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
    return {name: importlib.metadata.version(name) for name in packages}


def changes() -> list[str]:
    """Return the uncommitted files of quantilax's checkout, as relative paths.

    A file counts if it was changed, added or deleted since the commit, staged or not, or if git
    neither tracks nor ignores it. Below `RECORDS` only Python files count: the rest there are
    definitions of studies, which their records repeat, and what runs left. Outside a checkout
    there are none.
    """
    status = _git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all") or ""
    names = [entry[3:] for entry in status.split("\0") if entry]
    return sorted(name for name in names if name.partition("/")[0] not in RECORDS or name.endswith(".py"))


def _git(*words: str) -> str | None:
    """Return git's output for the checkout; None without a checkout or without git."""
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
