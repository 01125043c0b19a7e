"""Which variant a study recommends, and whether seeds that it never saw say the same.

A variant is *ahead of the base* if the first of these comparisons that separates the two is in its
favour:

1. The share of runs that are solved at the end: the 95% intervals do not overlap.
2. The share of runs that fell after solving, likewise. Both sides are counted over an equal time
   after first reaching the threshold: the shortest time that any of their runs had left. Runs that
   had less than half of their variant's median time left do not count, because a run that solves
   the task late has had no time to fall.
3. The return over the curve: the rank test, adjusted for the number of variants.

Without `solved`, the rank test of the return at the end takes the place of 1 and 2. If several
variants are ahead, the one with the highest lower end of 1 wins. Ties are decided by the lowest
upper end of 2 (over the time that all of them were watched), then by the highest lower end of the
return over the curve. If none is ahead, the base stays. Variants with missing runs, or with more
broken runs than the base, are not chosen.

The best of many variants looks better than it is, so a choice is validated on held-out seeds; see
`judge`. `watched` counts over the equal time. Reports print the paragraphs between the first and
this one.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from quantilax import statistics
from quantilax.reports.formats import interval, number_format, p_value, percent, share, steps
from quantilax.reports.results import Results, verdict_of
from quantilax.reports.verdict import quoted
from quantilax.studies.store import Store

VALIDATION = "validation"
"""Directory of the held-out runs, inside the study's directory."""


class Choice(NamedTuple):
    """The variant that the rule chooses, and why."""

    variant: str
    reason: str


def choose(results: Results) -> Choice | None:
    """Apply the rule; return None while the base has missing runs.

    If the study has only its base, the base is chosen, whatever runs there are.
    """
    if list(results.store.facts["variants"]) == [results.base]:
        return Choice(results.base, "the study has no other variant")
    base = results.row(results.base)
    if base is None or results.base in results.missing:
        return None
    ahead = []
    for row in results.others:
        sign, reason = compare(results, row, base)
        if sign > 0 and row["variant"] not in results.missing and row["broken"] <= base["broken"]:
            ahead.append((row, reason))
    if not ahead:
        return Choice(results.base, f"by the rule, no variant is ahead of {quoted(results.base)}, so it stays")
    fallen = watched(results, [row["variant"] for row, _ in ahead])
    row, reason = max(zip(ahead, fallen, strict=True), key=lambda pair: _order(pair[0][0], pair[1]))[0]
    several = "" if len(ahead) == 1 else f"; {len(ahead)} variants are ahead of it, and the rule puts this one first"
    return Choice(row["variant"], f"it is ahead of {quoted(results.base)} by {reason}{several}")


def compare(results: Results, row: dict[str, Any], base: dict[str, Any]) -> tuple[int, str]:
    """Say if a variant is ahead of the base (1), behind (-1) or neither (0), and what decides."""
    tests = {"final": "the return at the end"} if results.store.solved is None else {}
    number = len(results.others)
    unadjusted = f", not adjusted for {number} variants compared" if number > 1 else ""
    for what, is_good, shares in _counts(results, row, base):
        mine, theirs = (statistics.share_interval(count, of) for count, of in shares)
        if mine[0] > theirs[1] or mine[1] < theirs[0]:
            told = [
                f"{count} of {of} ({percent(low)} to {percent(high)})"
                for (count, of), (low, high) in zip(shares, (mine, theirs), strict=True)
            ]
            return (1 if (mine[0] > theirs[1]) == is_good else -1), f"{what}, {' against '.join(told)}{unadjusted}"
    for name, what in (tests | {"auc": "the return over the curve"}).items():
        if sign := verdict_of(row, name):
            chance = f"{share(row[f'{name}_improvement'])} ({interval(row, f'{name}_improvement', share)})"
            return sign, f"{what}, probability of improvement {chance}, {p_value(row[f'{name}_p_holm'])}"
    return 0, "nothing that separates them"


Count = tuple[int, int]
"""(count, total)"""


def _counts(results: Results, row: dict[str, Any], base: dict[str, Any]) -> Iterator[tuple[str, bool, list[Count]]]:
    """Yield comparisons 1 and 2: what is counted, whether more is better, and both counts.

    Yields nothing if the study has no threshold.
    """
    if results.store.solved is None:
        return
    yield (
        "the share of runs solved at the end",
        True,
        [(round(side["solved_at_end_share"] * side["n"]), side["n"]) for side in (row, base)],
    )
    fallen = watched(results, [row["variant"], base["variant"]])
    if min(of for _, of in fallen) > 0:
        yield "the share of runs that fell, over an equal time after solving", False, fallen


def watched(results: Results, variants: Sequence[str]) -> list[Count]:
    """Count, for each variant, the runs that fell within an equal time after solving.

    The time is the shortest that any counted run had left after it first reached the threshold.
    Runs that had less than half of their variant's median time left do not count. A variant that
    never reached the threshold gets (0, 0) and does not shorten the time.

    Returns:
        For each variant, (runs that fell, runs that count).
    """
    level = results.store.solved
    if level is None:
        return [(0, 0) for _ in variants]
    sides: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for name in variants:
        curves = results.curves.filter(variant=name)
        steps, returns = curves["env_step"].to_numpy(), np.array(curves["returns"].to_list())  # (steps, seeds)
        runs = [(run, int(np.argmax(run >= level))) for run in returns.T if (run >= level).any()]
        sides.append([(steps[at:] - steps[at], ~(run[at:] >= level)) for run, at in runs])  # NaN is below
    kept = []
    for side in sides:
        least = np.median([after[-1] for after, _ in side]) / 2 if side else 0.0
        kept.append([(after, below) for after, below in side if after[-1] >= least])
    time = min((after[-1] for side in kept for after, _ in side), default=0)
    counts = [[bool(below[after <= time].any()) for after, below in side] for side in kept]
    return [(sum(fell), len(fell)) for fell in counts]


def _order(row: dict[str, Any], fallen: Count) -> tuple[float, float, float]:
    fell = statistics.share_interval(*fallen)[1] if fallen[1] else 1.0
    return row.get("solved_at_end_share_low") or 0.0, -fell, _or(row["auc_mean_low"])


def _or(value: float | None) -> float:
    return -math.inf if value is None else value


def held_out(results: Results, variant: str) -> Results | None:
    """Read the held-out runs that count for a variant; return None if there are none.

    A seed counts if both the variant and the base have a held-out run with it. A seed that the
    study itself has run since does not count, because it took part in the choice.
    """
    store = Store.find(results.store.path / VALIDATION)
    if store is None:
        return None
    there, used = store.finished(), results.store.facts["seeds"]
    seeds = [
        seed
        for seed in store.facts["seeds"]
        if seed not in used and all((name, seed) in there for name in (variant, results.base))
    ]
    return Results.read(store.part(seeds, solved=results.store.solved)) if seeds else None


class Judgement(NamedTuple):
    """The result of validating a choice on held-out seeds."""

    contradictions: list[str]
    """Why the choice does not hold; empty if it does."""
    score: str
    """The variant's figures on the held-out seeds."""

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the choice."""
        return not self.contradictions


def judge(results: Results, held_out: Results, variant: str, is_winner: bool) -> Judgement | None:
    """Check a choice against held-out seeds; return None if runs of it are missing there.

    The choice holds if both of these are true:

    - The rule, applied to the held-out seeds alone, finds the variant ahead of the base again. A
      variant that the rule did not choose (`is_winner` is false) need only not be behind the base.
    - The variant's share solved at the end (without `solved`: its return at the end) is not below
      the interval that the study gave. A study that has only this variant may have no runs and then
      gives no interval.
    """
    row, base, before = held_out.row(variant), held_out.row(results.base), results.row(variant)
    if row is None or variant in held_out.missing:
        return None
    contradictions = []
    if variant != results.base:
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
            f"its {what} is {written(row[name])} there, below the study's interval ({interval(before, name, written)})"
        )
    return Judgement(contradictions, score(held_out, row))


def score(results: Results, row: dict[str, Any]) -> str:
    """Write a variant's figures in one line."""
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
