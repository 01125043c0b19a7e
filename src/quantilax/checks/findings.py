"""What a tool has to say on a config or a run: one line each, with where it knows it from and what to do."""

from typing import Literal, NamedTuple, get_args

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[str, ...] = get_args(Severity)
"""From the gravest: cannot have been meant; tends to mislead; worth knowing."""


class Finding(NamedTuple):
    """One thing found."""

    severity: Severity
    field: str
    """The hyperparameter or derived quantity that it is on; empty where it is on none."""
    finding: str
    evidence: str
    """Where it is known from, and how surely."""
    remedy: str
