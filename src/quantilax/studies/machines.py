"""What of a machine decides the low bits of a run's numbers, where several work on one study."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from quantilax.runs.directory import cores, versions


def facts() -> dict[str, Any]:
    """Return versions, device, kind of processor and cores of this process."""
    return {**versions(), "device": jax.local_devices()[0].device_kind, "processor": _processor(), "cores": cores()}


def differences(there: dict[str, Any], here: dict[str, Any], who: str) -> Iterator[str]:
    """Say in which facts `who` differs from this machine."""
    for name in here:
        if there.get(name) != here[name]:
            yield (
                f"{who} has {name} {there.get(name)}, this one {here[name]}: the low bits of its runs may be others than"
                " here"
            )


def _processor() -> str:
    """Return the name of the processor, by whose instructions XLA compiles; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
