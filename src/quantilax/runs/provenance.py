"""What is needed to get a run's numbers again: command, versions, commit and machine."""

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from quantilax import switches
from quantilax.host import limits, locks


def provenance() -> dict[str, Any]:
    """Return what is needed to get a run's numbers again: command, versions, commit and machine."""
    return {
        "command": locks.command(),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": platform.machine(),
        "cores": limits.cores(),
        "device": switches.devices()[0].device_kind,
        **switches.facts(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Return the versions of what decides a run's numbers."""
    packages = ("quantilax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
    return {name: importlib.metadata.version(name) for name in packages}


def _commit() -> str | None:
    """Return the commit of quantilax's checkout, with `+` where it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")
