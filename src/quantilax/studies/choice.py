"""Which cell a study recommends, and whether seeds that it never saw say the same.

The rule. A cell is *ahead of the base* if the first of these that separates the two speaks for it:

1. the share of runs solved at the end: their 95% intervals do not overlap;
2. the share of runs that fell after solving: likewise;
3. the return over the curve: the rank test, adjusted for the number of cells.

A study without `solved` has the rank test of the return at the end in place of 1 and 2. Of the cells that are ahead the one
with the highest lower end of 1 wins, then the lowest upper end of 2, then the highest lower end of the return over the curve.
Where none is ahead the base stays. Cells with missing runs, or with more broken ones than the base, are not chosen.

The best of many cells looks better than it is, so a choice is validated on held-out seeds: see `judge`.
"""

import math
from typing import Any, NamedTuple

from quantilax.studies.results import Results, verdict_of
from quantilax.studies.store import Store
from quantilax.studies.tables import interval, number_format, p_value, percent, share, steps
from quantilax.studies.verdict import quoted

VALIDATION = "validation"
"""Directory of the held-out runs, within the study's."""


class Choice(NamedTuple):
    """The cell that the rule names."""

    cell: str
    reason: str


def choose(results: Results) -> Choice | None:
    """Apply the rule; None while the base has missing runs. Where no other cell is, runs decide nothing."""
    if list(results.store.facts["cells"]) == [results.base]:
        return Choice(results.base, "the study has no other cell")
    base = results.row(results.base)
    if base is None or results.base in results.missing:
        return None
    ahead = []
    for row in results.others:
        sign, reason = compare(results, row, base)
        if sign > 0 and row["cell"] not in results.missing and row["broken"] <= base["broken"]:
            ahead.append((row, reason))
    if not ahead:
        return Choice(results.base, f"no cell is ahead of {quoted(results.base)} by the rule, so it stays")
    row, reason = max(ahead, key=lambda pair: _order(pair[0]))
    several = (
        "" if len(ahead) == 1 else f"; {len(ahead)} cells are ahead of it, this one is the first of them by the rule"
    )
    return Choice(row["cell"], f"it is ahead of {quoted(results.base)} by {reason}{several}")


def compare(results: Results, row: dict[str, Any], base: dict[str, Any]) -> tuple[int, str]:
    """Say whether a cell is ahead of the base (1), behind (-1) or neither (0), and what decides."""
    tests = {"final": "the return at the end"} if results.store.solved is None else {}
    for name, what, is_good in (
        ("solved_at_end_share", "the share of runs solved at the end", True),
        ("fell_share", "the share of runs that fell", False),
    ):
        if results.store.solved is None or row[name] is None or base[name] is None:
            continue
        is_above, is_below = row[f"{name}_low"] > base[f"{name}_high"], row[f"{name}_high"] < base[f"{name}_low"]
        if is_above or is_below:
            told = f"{what}, {interval(row, name, percent)} against {interval(base, name, percent)}"
            return (1 if is_above == is_good else -1), told
    for name, what in (tests | {"auc": "the return over the curve"}).items():
        if sign := verdict_of(row, name):
            chance = f"{share(row[f'{name}_improvement'])} ({interval(row, f'{name}_improvement', share)})"
            return sign, f"{what}, probability of improvement {chance}, {p_value(row[f'{name}_p_holm'])}"
    return 0, "nothing that separates them"


def _order(row: dict[str, Any]) -> tuple[float, float, float]:
    fell = row.get("fell_share_high")
    return row.get("solved_at_end_share_low") or 0.0, -(1.0 if fell is None else fell), _or(row["auc_mean_low"])


def _or(value: float | None) -> float:
    return -math.inf if value is None else value


def held_out(results: Results, cell: str) -> Results | None:
    """Read the held-out runs that count for a cell: of seeds that it and the base both have there.

    Not those of seeds that the study has run since: they chose the cell too. None where there are none.
    """
    store = Store.find(results.store.path / VALIDATION)
    if store is None:
        return None
    there, used = store.finished(), results.store.facts["seeds"]
    seeds = [
        seed
        for seed in store.facts["seeds"]
        if seed not in used and all((name, seed) in there for name in (cell, results.base))
    ]
    return Results.read(store.part(seeds)) if seeds else None


class Judgement(NamedTuple):
    """What held-out seeds say of a choice."""

    contradictions: list[str]
    """Why it does not hold; none where it does."""
    score: str
    """What the cell came to on them."""

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts."""
        return not self.contradictions


def judge(results: Results, held_out: Results, cell: str, is_winner: bool) -> Judgement | None:
    """Compare a choice with what held-out seeds give; None where they have no complete runs of it.

    It holds if the rule, applied to the held-out seeds alone, finds the cell ahead of the base again (of a cell that the
    rule did not name: not behind it), and if the cell's share solved at the end (without `solved`: its return at the end)
    is not below the interval that the study gave. A study whose only cell it is may have no runs: nothing was chosen by them.
    """
    row, base, before = held_out.row(cell), held_out.row(results.base), results.row(cell)
    if row is None or cell in held_out.missing:
        return None
    contradictions = []
    if cell != results.base:
        if base is None or results.base in held_out.missing:
            return None
        sign, reason = compare(held_out, row, base)
        if sign < int(is_winner):
            word = "behind" if sign < 0 else "not ahead of"
            by = f" by {reason}" if sign else ""
            contradictions.append(f"it is {word} {quoted(results.base)}{by} there")
    number = number_format(held_out).format
    name, written, what = (
        ("final_iqm", number, "return at the end")
        if results.store.solved is None
        else ("solved_at_end_share", percent, "share solved at the end")
    )
    if before is not None and before[f"{name}_low"] is not None and row[name] < before[f"{name}_low"]:
        contradictions.append(
            f"its {what} is {written(row[name])} there, below what the study gave ({interval(before, name, written)})"
        )
    return Judgement(contradictions, score(held_out, row))


def score(results: Results, row: dict[str, Any]) -> str:
    """Tell a cell's figures in one line."""
    number = number_format(results).format
    parts = []
    if results.store.solved is not None:
        solved = f"{round(row['solved_at_end_share'] * row['n'])} of {row['n']} runs ended at {results.store.solved:g} or more"
        parts.append(f"{solved} ({interval(row, 'solved_at_end_share', percent)})")
        if row["reached"]:
            parts.append(f"{row['fell']} of {row['reached']} fell below it ({interval(row, 'fell_share', percent)})")
        parts.append(f"solved for good (median step): {_with(row, 'solved_for_good_median', steps)}")
    parts.append(f"return at the end {_with(row, 'final_iqm', number)}, of the lowest run {number(row['final_min'])}")
    parts.append(f"over the curve {_with(row, 'auc_mean', number)}")
    return "; ".join(parts)


def _with(row: dict[str, Any], name: str, written: Any) -> str:
    low_high = interval(row, name, written)
    return written(row[name]) + (f" ({low_high})" if low_high else "")
