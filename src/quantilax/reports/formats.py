"""Format numbers for people: the columns of a study's summary, numbers and their intervals."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from quantilax.reports.results import Results, verdict_of


class Entry(NamedTuple):
    """An entry of a table."""

    text: str
    detail: str = ""
    """The interval of the figure, or where it comes from."""
    value: float | str | None = None
    """The key by which a table is sorted; None comes last."""


class Column(NamedTuple):
    """A column of the summary."""

    title: str
    meaning: str
    entry: Callable[[dict[str, Any]], Entry]
    """Make the entry from a row of the summary."""
    higher_is_better: bool | None = None
    """None if neither is better."""


def columns(results: Results) -> list[Column]:
    """Return the columns of a study's summary; those on solving need the study's `solved`."""
    solved, base = results.store.solved, results.base
    of_returns = number_format(results)
    number = of_returns.format

    def figure(name: str, written: Callable[[Any], str]) -> Callable[[dict[str, Any]], Entry]:
        return lambda row: with_interval(row, name, written)

    def counted(share: str, count: Callable[[dict[str, Any]], int], of: str) -> Callable[[dict[str, Any]], Entry]:
        def entry(row: dict[str, Any]) -> Entry:
            if not row[of]:
                return Entry("-")
            return Entry(f"{count(row)} of {row[of]}", interval(row, share, percent), row[share])

        return entry

    def compared(name: str) -> Callable[[dict[str, Any]], Entry]:
        def entry(row: dict[str, Any]) -> Entry:
            if row[f"{name}_p"] is None:
                return Entry("-")
            word = {1: " better", -1: " worse", 0: ""}[verdict_of(row, name)]
            detail = f"{interval(row, f'{name}_improvement', share)}; {p_value(row[f'{name}_p_holm'])}"
            return Entry(share(row[f"{name}_improvement"]) + word, detail, row[f"{name}_improvement"])

        return entry

    found = [
        Column(
            "variant",
            "A configuration, named after the fields that differ from the base.",
            lambda r: Entry(r["variant"], "", r["variant"]),
        ),
        Column(
            "n",
            "Number of runs, each with its own seed; figures are computed over them.",
            lambda r: Entry(str(r["n"]), "", r["n"]),
        ),
        Column(
            "return at the end",
            "Interquartile mean (the mean of the middle half of the runs) of the mean return of the last evaluation.",
            figure("final_iqm", number),
            True,
        ),
        Column(
            "return over the curve",
            "Mean over the runs of the mean return over the whole learning curve (its area divided by its length);"
            " learning early counts.",
            figure("auc_mean", number),
            True,
        ),
    ]
    if solved is not None:
        found += [
            Column(
                "solved at the end",
                f"Runs whose last evaluation has a mean return of {solved:g} or more.",
                counted("solved_at_end_share", lambda r: round(r["solved_at_end_share"] * r["n"]), "n"),
                True,
            ),
            Column(
                "fell",
                f"Of the runs that reached {solved:g}: those with a later evaluation below it.",
                counted("fell_share", lambda r: r["fell"], "reached"),
                False,
            ),
            Column(
                "solved for good",
                f"Median of the environment step from which on no evaluation is below {solved:g};"
                " it is infinite for runs that never get there.",
                figure("solved_for_good_median", steps),
                False,
            ),
            Column(
                "worst drop",
                f"How far below {solved:g} the lowest evaluation after reaching it lies: median over the runs that reached it,"
                " and the largest.",
                lambda r: _drop(r, number),
                False,
            ),
        ]
    better = (
        f"Probability that a run of this variant has {{what}} than one of '{base}': 1 always, 0.5 no"
        " difference, 0 never; and p of a rank test (Mann-Whitney), adjusted for the number of variants compared (Holm)."
    )
    found += [
        Column("better over the curve", better.format(what="a higher return over the curve"), compared("auc"), True),
        Column("better at the end", better.format(what="a higher return at the end"), compared("final"), True),
    ]
    if any(row["broken"] for row in results.rows):
        meaning = "Runs whose parameters or returns became non-finite; they count as the lowest of all returns."
        found.append(Column("broken", meaning, lambda r: Entry(str(r["broken"]), "", r["broken"]), False))
    return found


def _drop(row: dict[str, Any], number: Callable[[Any], str]) -> Entry:
    if row["worst_drop_median"] is None:
        return Entry("-")
    return Entry(number(row["worst_drop_median"]), f"at most {number(row['worst_drop_max'])}", row["worst_drop_median"])


def with_interval(row: dict[str, Any], name: str, written: Callable[[Any], str]) -> Entry:
    """Make an entry of a figure of the summary and its interval."""
    return Entry(written(row[name]), interval(row, name, written), row[name])


def interval(row: dict[str, Any], name: str, written: Callable[[Any], str]) -> str:
    """Write an interval as `low to high`.

    Empty if there is no interval, or if it says nothing, such as from 0 steps to never.
    """
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None or high is None or (high == math.inf and not 0 < low < math.inf):
        return ""
    return f"{written(low)} to {written(high)}"


class NumberFormat(NamedTuple):
    """How returns are written: all with the same number of decimals."""

    decimals: int

    def format(self, value: float | None) -> str:
        """Write a return: `-` for None and NaN, and `-∞` for minus infinity (a broken run)."""
        if value is None or math.isnan(value):
            return "-"
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        return f"{value:,.{self.decimals}f}"


def number_format(results: Results) -> NumberFormat:
    """Choose the decimals of returns so that the largest has four digits."""
    columns = [results.outcomes[name] for name in ("final", "auc")] if results.outcomes.height else []
    sizes = [abs(x) for column in columns for x in column.to_list() if math.isfinite(x)]
    return NumberFormat(decimals_of(max(sizes, default=0.0)))


def decimals_of(largest: float) -> int:
    """Return the number of decimals that gives `largest` four digits, at most 3."""
    return min(3, max(0, 3 - math.floor(math.log10(largest)))) if largest else 1


def steps(value: float | None) -> str:
    """Write a number of environment steps; infinity is `never`."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if math.isfinite(value) else "never"


def percent(value: float) -> str:
    """Write a share as a percentage."""
    return f"{value:.0%}"


def share(value: float) -> str:
    """Write a probability with two decimals."""
    return f"{value:.2f}"


def p_value(p: float) -> str:
    """Write a p-value, such as `p = 0.012`, with two or three decimals."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def seeds(numbers: list[int]) -> str:
    """Write the seeds 0, 1, 2, 3, 4, 7 as `0 to 4, 7`."""
    parts, start = [], 0
    numbers = sorted(numbers)
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            parts += (
                [str(first)] if first == last else [f"{first}, {last}"] if last == first + 1 else [f"{first} to {last}"]
            )
            start = i
    return ", ".join(parts)
