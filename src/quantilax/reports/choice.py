"""Which variant a study recommends, and whether seeds that it never saw say the same.

The rule. A variant is *ahead of the base* if the first of these that separates the two speaks for it:

1. the share of runs solved at the end: their 95% intervals do not overlap;
2. the share of runs that fell after solving: likewise, of the runs and the evaluations after it that both had time for (see
   `watched`): who solves late has not had the time to fall;
3. the return over the curve: the rank test, adjusted for the number of variants.

A study without `solved` has the rank test of the return at the end in place of 1 and 2. Of the
variants that are ahead, the one with the highest lower end of 1 wins, then the lowest upper end of 2
(over the time that all of them were watched), then the highest lower end of the return over the
curve. Where none is ahead the base stays. Variants with missing runs, or with more broken ones than
the base, are not chosen.

The best of many variants looks better than it is, so a choice is validated on held-out seeds: see `judge`.
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
"""Directory of the held-out runs, within the study's."""


class Choice(NamedTuple):
    """The variant that the rule names."""

    variant: str
    reason: str


def choose(results: Results) -> Choice | None:
    """Apply the rule; None while the base has missing runs. Where no other variant is, runs decide nothing."""
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
        return Choice(results.base, f"no variant is ahead of {quoted(results.base)} by the rule, so it stays")
    fallen = watched(results, [row["variant"] for row, _ in ahead])
    row, reason = max(zip(ahead, fallen, strict=True), key=lambda pair: _order(pair[0][0], pair[1]))[0]
    several = (
        "" if len(ahead) == 1 else f"; {len(ahead)} variants are ahead of it, this one is the first of them by the rule"
    )
    return Choice(row["variant"], f"it is ahead of {quoted(results.base)} by {reason}{several}")


def compare(results: Results, row: dict[str, Any], base: dict[str, Any]) -> tuple[int, str]:
    """Say whether a variant is ahead of the base (1), behind (-1) or neither (0), and what decides."""
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
"""(count, of)"""


def _counts(results: Results, row: dict[str, Any], base: dict[str, Any]) -> Iterator[tuple[str, bool, list[Count]]]:
    """Give what rules 1 and 2 count, whether more of it is better, and the counts; nothing where there is no threshold."""
    if results.store.solved is None:
        return
    yield (
        "the share of runs solved at the end",
        True,
        [(round(side["solved_at_end_share"] * side["n"]), side["n"]) for side in (row, base)],
    )
    fallen = watched(results, [row["variant"], base["variant"]])
    if min(of for _, of in fallen) > 0:
        yield "the share of runs that fell, as long after solving as both were watched", False, fallen


def watched(results: Results, variants: Sequence[str]) -> list[Count]:
    """Count each variant's runs that fell, and those that were watched long enough, over an equal time after solving.

    The time is the least that any of the runs had left after it first reached the threshold. Runs
    that had less than half of their variant's median do not count. A variant that never reached it
    has (0, 0) and does not shorten the time.
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
    """Read the held-out runs that count for a variant: of seeds that it and the base both have there.

    Not those of seeds that the study has run since: they chose the variant too. None where there are none.
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
    """What held-out seeds say of a choice."""

    contradictions: list[str]
    """Why it does not hold; none where it does."""
    score: str
    """What the variant came to on them."""

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts."""
        return not self.contradictions


def judge(results: Results, held_out: Results, variant: str, is_winner: bool) -> Judgement | None:
    """Compare a choice with what held-out seeds give; None where they have no complete runs of it.

    It holds if the rule, applied to the held-out seeds alone, finds the variant ahead of the base
    again (of a variant that the rule did not name: not behind it), and if the variant's share solved
    at the end (without `solved`: its return at the end) is not below the interval that the study
    gave. A study with this variant alone may have no runs: nothing was chosen by them.
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
            f"its {what} is {written(row[name])} there, below what the study gave ({interval(before, name, written)})"
        )
    return Judgement(contradictions, score(held_out, row))


def score(results: Results, row: dict[str, Any]) -> str:
    """Tell a variant's figures in one line."""
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
