"""What of a machine decides the low bits of a run's numbers, where several work on one study."""

from collections.abc import Iterator
from typing import Any

from quantilax import switches
from quantilax.host import limits
from quantilax.host.limits import processor
from quantilax.runs.provenance import versions


def facts() -> dict[str, Any]:
    """Return versions, device, kind of processor, cores and deciding switches of this process."""
    return {
        **versions(),
        "device": switches.devices()[0].device_kind,
        "processor": processor(),
        "cores": limits.cores(),
        **switches.facts(),
    }


def differences(there: dict[str, Any], here: dict[str, Any], who: str) -> Iterator[str]:
    """Say in which facts `who` differs from this machine."""
    for name in here:
        if there.get(name) != here[name]:
            yield (
                f"{who} has {name} {there.get(name)}, this one {here[name]}: the low bits of its runs may be others than"
                " here"
            )
