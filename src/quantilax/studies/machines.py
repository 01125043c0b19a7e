"""Facts of a machine that affect the low bits of results, for when several share a study."""

from collections.abc import Iterator
from typing import Any

from quantilax import switches
from quantilax.host import limits
from quantilax.host.limits import processor
from quantilax.runs.provenance import versions


def facts() -> dict[str, Any]:
    """Return versions, device, processor, cores and the relevant switches of this process."""
    return {
        **versions(),
        "device": switches.devices()[0].device_kind,
        "processor": processor(),
        "cores": limits.cores(),
        **switches.facts(),
    }


def differences(there: dict[str, Any], here: dict[str, Any], who: str) -> Iterator[str]:
    """Yield a line for each fact in which `who` differs from this machine."""
    for name in here:
        if there.get(name) != here[name]:
            yield (f"{who} has {name} {there.get(name)}, this one {here[name]}: the low bits of its results may differ")
