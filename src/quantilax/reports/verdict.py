"""Say in sentences what a study has shown, and claim no more than the adjusted tests allow."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from quantilax.reports.formats import interval, number_format, p_value, percent, seeds, share
from quantilax.reports.results import LEVEL, Results, seeds_needed, smallest_adjusted_p, verdict_of
from quantilax.statistics import FEW_SEEDS

LISTED = 4
"""Most variants that a sentence names; more are only counted."""

MEASURES = {"auc": "over the whole curve", "final": "at the end"}


class Verdict(NamedTuple):
    """A study's verdict, in sentences without markup."""

    headline: str
    basis: str
    """The seeds and tests behind the headline."""
    findings: list[str]
    """A sentence for each difference from the base, then counts of solving and falling."""
    caveats: list[str]
    """What is missing, and what the figures cannot show."""


def verdict(results: Results) -> Verdict:
    """Say what a study has shown."""
    if not results.rows:
        return Verdict("No run is finished yet, so there is nothing to report.", "", [], _caveats(results))
    if not results.others:
        return Verdict(_alone(results), "", _solving(results), _caveats(results))
    parts = [_measure(results, name) for name in MEASURES]
    basis = (
        f"{_numbers(results)}; two-sided rank tests of each run's return over the curve, and of its return at the end, at"
        f" {LEVEL:.0%}, each adjusted for {_count(len(results.others), 'comparison')}."
    )
    findings = [*_apart(results), *_solving(results)]
    return Verdict(" ".join(parts), basis, findings, [*_open(results), *_caveats(results)])


def _alone(results: Results) -> str:
    row, number = results.row(results.base), number_format(results).format
    if row is None:
        return f"The base {quoted(results.base)} has no runs, so no variant is compared with anything."
    told = f"The base {quoted(results.base)} ends at an interquartile mean of {number(row['final_iqm'])}"
    low_high = interval(row, "final_iqm", number)
    told += f" (95% interval {low_high}" if low_high else " (no interval"
    return f"{told}; n = {row['n']}). No other variant has runs to compare it with."


def _measure(results: Results, name: str) -> str:
    """Say which variants one of `MEASURES` tells apart from the base."""
    sides = {told: [r["variant"] for r in results.others if verdict_of(r, name) == told] for told in (1, -1, 0)}
    base, where = quoted(results.base), MEASURES[name]
    parts = [
        f"{_names(sides[told])} {'is' if len(sides[told]) == 1 else 'are'} {word} than {base}"
        for told, word in ((1, "better"), (-1, "worse"))
        if sides[told]
    ]
    if not parts:
        no = "no variant" if len(results.others) > 1 else _names([results.others[0]["variant"]])
        can = "can" if len(results.others) > 1 else "cannot"
        return f"{where.capitalize()} {no} {can} be told apart from {base}."
    if sides[0]:
        rest = quoted(sides[0][0]) if len(sides[0]) == 1 else f"the other {len(sides[0])}"
        parts.append(f"{rest} cannot be told apart from it")
    return f"{where.capitalize()} {_and(parts)}."


def _apart(results: Results) -> list[str]:
    number, base = number_format(results).format, results.row(results.base)
    assert base is not None
    columns = {"auc": ("auc_mean", "mean"), "final": ("final_iqm", "interquartile mean")}
    found = []
    for row in results.others:
        for name, (column, what) in columns.items():
            if verdict_of(row, name):
                found.append(
                    f"{quoted(row['variant'])} {MEASURES[name]}: {what} {_with(row, column, number)} against"
                    f" {_with(base, column, number)}; a run of it beats one of the base with probability"
                    f" {_with(row, f'{name}_improvement', share)}, {p_value(row[f'{name}_p_holm'])}."
                )
    return found


def _solving(results: Results) -> list[str]:
    """Report the counts of the base, the lowest and the highest; they are not tested."""
    if results.store.solved is None:
        return []
    found = []
    for column, count, of, what in (
        ("solved_at_end_share", None, "n", f"Solved at the end (last evaluation at {results.store.solved:g} or more)"),
        ("fell_share", "fell", "reached", f"Fell below {results.store.solved:g} after reaching it"),
    ):
        rows = [row for row in results.rows if row[of]]
        if not rows:
            found.append(f"{what}: no run reached it.")
            continue
        least, most = min(rows, key=lambda r: r[column]), max(rows, key=lambda r: r[column])
        told = {row["variant"]: row for row in (*[r for r in rows if r["variant"] == results.base], least, most)}
        counted = [
            f"{quoted(variant)} {row[count] if count else round(row[column] * row[of])} of {row[of]}"
            f" ({interval(row, column, percent)})"
            for variant, row in told.items()
        ]
        extremes = " (the base, the lowest and the highest; counts are not tested)" if len(counted) > 1 else ""
        found.append(f"{what}: {', '.join(counted)}{extremes}.")
    return found


def _open(results: Results) -> list[str]:
    """Say what the comparisons leave open."""
    found = []
    for name, where in MEASURES.items():
        level = [row for row in results.others if verdict_of(row, name) == 0]
        if level:
            low, high = (
                min(r[f"{name}_improvement_low"] for r in level),
                max(r[f"{name}_improvement_high"] for r in level),
            )
            found.append(
                f"Variants that cannot be told apart need not be equal: {where}, the intervals of their probability of"
                f" improvement reach from"
                f" {share(low)} to {share(high)}."
            )
    if too_few := too_few_seeds(results):
        found.append(too_few)
    return found


def too_few_seeds(results: Results) -> str:
    """Say that the seeds were too few to show any difference; empty if they were enough."""
    least = smallest_adjusted_p(results)
    if least is None or least < LEVEL:
        return ""
    needed = seeds_needed(len(results.others))
    return (
        "With so few seeds, no difference could have been detected: the smallest possible adjusted p-value is"
        f" {min(least, 1.0):.2g}; at least {needed} seeds per variant are needed (--seeds {needed} --resume)."
    )


def _caveats(results: Results) -> list[str]:
    facts, found = results.store.facts, []
    asked = len(facts["variants"]) * len(facts["seeds"])
    number = sum(map(len, results.missing.values()))
    if number:
        places = [f"{quoted(variant)}: {seeds(numbers)}" for variant, numbers in results.missing.items()]
        where = "; ".join(places[:LISTED]) + (
            f"; and {len(places) - LISTED} more variants" if len(places) > LISTED else ""
        )
        found.append(
            f"{number} of {asked} runs are missing (seeds of {where}); quantilax study with --resume runs them."
        )
    begun = [f.variant for f in results.failures if results.row(f.variant) is not None]
    never = [f.variant for f in results.failures if f.variant not in begun]
    if never:
        found.append(f"{_names(never)} could not be run and {_have(never)} no figures.")
    if begun:
        found.append(f"{_names(begun)} could not be run to the end; the figures cover the runs before that.")
    for change in results.changes:
        if change["field"] == "solved":
            levels = ["none" if level is None else f"{level:g}" for level in (change["before"], change["after"])]
            found.append(
                f"The threshold was changed from {levels[0]} to {levels[1]} after {_count(change['runs'], 'run')}: the results"
                " on solving answer a question that was not asked before."
            )
    if results.broken:
        runs = sum(map(len, results.broken.values()))
        found.append(
            f"{_count(runs, 'run')} of {_names(list(results.broken))} broke (non-finite numbers); they count as the lowest"
            " returns and as never solved, and means over them are minus infinity."
        )
    if results.rows and min(row["n"] for row in results.rows) < FEW_SEEDS:
        found.append(
            f"With fewer than {FEW_SEEDS} seeds, 95% bootstrap intervals are too narrow: that of a mean of five contains"
            " the true value in about 80% of studies."
        )
    if results.rows and len({variant["env_step"].max() for variant in results.curves.partition_by("variant")}) > 1:
        found.append(
            "Variants were trained for different numbers of steps, so their results are not for the same budget."
        )
    return found


def _numbers(results: Results) -> str:
    least, *_, most = sorted(row["n"] for row in results.rows)
    return f"n = {_count(most, 'seed') if least == most else f'{least} to {most} seeds'} per variant"


def _with(row: dict[str, Any], name: str, written: Any) -> str:
    low_high = interval(row, name, written)
    return f"{written(row[name])}" + (f" ({low_high})" if low_high else "")


def quoted(variant: str) -> str:
    """Quote a variant's name, which may contain commas, for use in a sentence."""
    return f"“{variant}”"


def _names(variants: list[str]) -> str:
    return f"{len(variants)} variants" if len(variants) > LISTED else _and(map(quoted, variants))


def _and(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _have(several: list[Any]) -> str:
    return "has" if len(several) == 1 else "have"
