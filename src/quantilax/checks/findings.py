"""A finding: one line on a config or a run, with its evidence and a remedy."""

from typing import Any, Literal, NamedTuple, get_args

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[str, ...] = get_args(Severity)
"""The gravest first. An error cannot be meant, a warning tends to mislead, a note is worth knowing.
"""


class Finding(NamedTuple):
    """One finding on a config or a run."""

    severity: Severity
    field: str
    """The hyperparameter or derived quantity in question; empty if there is none."""
    finding: str
    evidence: str
    """How the finding is known, and how surely."""
    remedy: str
    change: dict[str, Any] | None = None
    """The smallest change of the config that leaves nothing to find; None if none is known."""
