"""Compares a run with the band of its section while it trains, and says in a line where it is."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantilax.checks.bands import SHARES, SLACK, Band
from quantilax.checks.diagnosis import MIN_ROWS, diagnose
from quantilax.checks.figures import has_signals
from quantilax.checks.findings import Finding

if TYPE_CHECKING:
    from quantilax.runs.evaluations import Entry


class Watch:
    """Compares a run with a band at `SHARES` of its budget, and says in a line where it is."""

    def __init__(self, band: Band, name: str, section: Mapping[str, Any], findings: Sequence[Finding] = ()) -> None:
        """Prepare to watch.

        Args:
            band, name: the band, and the name of its section.
            section: that of the run: algorithm, environment and every hyperparameter.
            findings: of lint on the run's section.
        """
        self.band, self.name, self.section, self.findings = band, name, section, findings
        self.left, self.total = list(SHARES), section["total_timesteps"]
        self.changed = band.changes(section) or {}

    def __call__(self, entries: list["Entry"]) -> tuple[str, bool] | None:
        """Return a line, and whether all seeds are inside, when a share of the budget is reached.

        Args:
            entries: the evaluations so far. None is returned unless the last one is the first at or
                beyond one of the shares, after some training, and within the band's budget.
        """
        last = entries[-1]
        passed = [share for share in self.left if last.env_step >= share * self.total]
        if not passed or len(entries) == 1 or last.env_step > self.band.env_step[-1]:
            return None
        self.left = [share for share in self.left if share not in passed]
        low, _, high = self.band.at(last.env_step)
        slack = SLACK * (max(self.band.high) - min(filter(math.isfinite, self.band.low)))
        below = [row for row in last.seeds if not row["return_mean"] >= low - slack]
        place = f"{last.env_step / self.total:.0%} of the budget: return {_span(last.seeds)}"
        band = f"the {self.band.seeds} held-out seeds of {self.name} had {low:.4g} to {high:.4g}"
        if not below:
            return f"{place}, as expected; {band}", True
        seeds = f"seed{'s' if len(below) > 1 else ''} {', '.join(str(row['seed']) for row in below[:5])}"
        of_all = "" if len(last.seeds) == 1 else f" ({len(below)} of {len(last.seeds)} below: {seeds})"
        return f"{place}, below the band{of_all}; {band}{self._why(entries, below[0]['seed'])}", False

    def _why(self, entries: list["Entry"], seed: int) -> str:
        """Say what `diagnose` names, and which changed field is the likeliest cause."""
        warned = [field for one in self.findings if one.severity != "note" for field in one.change or {}]
        cause = self._diagnosed(entries, seed)
        first = [*(cause.change if cause else ()), *(cause.config if cause else ()), *warned]
        changed = sorted(self.changed, key=lambda field: first.index(field) if field in first else len(first))
        told = f"; diagnose names {cause.cause}" if cause else ""
        if not changed:
            return f"{told}; no field differs from the section"
        fields = ", ".join("{}={} instead of {}".format(field, *self.changed[field]) for field in changed[:4])
        return f"{told}; changed: {fields}{', ...' if len(changed) > 4 else ''}"

    def _diagnosed(self, entries: list["Entry"], seed: int) -> Any:
        from quantilax.runs import loggers

        rows = loggers.table([row for entry in entries for row in loggers.rows(entry) if row["seed"] == seed])
        if not has_signals(rows) or rows.height < MIN_ROWS:
            return None
        own = self.band.healthy(self.section, entries[-1].env_step, self.name)
        (found,) = diagnose(rows, self.section, self.findings, own)
        return found.causes[0] if found.causes else None


def _span(seeds: list[dict[str, Any]]) -> str:
    values = [row["return_mean"] for row in seeds]
    return f"{min(values):.4g}" if len(values) == 1 else f"{min(values):.4g} to {max(values):.4g}"
