"""The figures of a report, drawn as SVG.

Lines, marks and words tell variants apart, never colour alone. The HTML page has each drawing
inline, in the page's colours and with tooltips; the Markdown twin has it as a separate file.
Lengths are in the drawing's own units, about one pixel each.
"""

import html
import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import polars as pl

from quantilax.reports.formats import NumberFormat, interval, number_format, share, steps
from quantilax.reports.results import Results

MAX_PANELS = 30
MAX_POINTS = 8_000
"""Most points of all seeds' curves in a figure, which keep its file below 200 kB.

If there are more, only every n-th evaluation is drawn; see `every`.
"""
MAX_SLOTS = 50
"""Most places along a curve that have a tooltip."""

PANEL_WIDTH, PANEL_HEIGHT = 300, 190
STRIP_WIDTH, ROW = 370, 58
NAME = 50
"""Characters of a variant's name that fit into a line of a drawing."""


class Figure(NamedTuple):
    """A drawing: the content of its `<svg>` element, and its size."""

    body: str
    width: float
    height: float
    label: str
    """What the drawing shows, in words."""

    def inline(self) -> str:
        """Write the drawing as an element of a page whose style sheet includes `figure.css`."""
        size = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        return f'<svg class="figure" role="img" aria-label="{escape(self.label)}" {size}>{self.body}</svg>'

    def alone(self) -> str:
        """Write the drawing as the text of an SVG file."""
        style = (files("quantilax.reports") / "templates" / "figure.css").read_text(encoding="utf-8")
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="figure alone" role="img" {size}>'
            f"<title>{escape(self.label)}</title><style>{style}</style>"
            f'<rect class="paper" width="100%" height="100%"/>{self.body}</svg>\n'
        )


class Scale(NamedTuple):
    """A linear map from values to positions along an axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a value; a value beyond an end of the scale is put on that end."""
        value = min(max(value, self.low), self.high)
        return self.start + (self.end - self.start) * (value - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values within the scale, about `most` of them."""
        rough = (self.high - self.low) / max(most - 1, 1) or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, first + most + 1) if i * step <= self.high + 1e-9 * step]


def thousands(value: float) -> str:
    """Write 50,000 as 50k, to save room at an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# Learning curves


class Curves(NamedTuple):
    """Learning curves, one panel per variant."""

    panels: dict[str, Figure]
    """Panels by variant; the base comes first."""

    def together(self, columns: int = 3) -> Figure:
        """Put all panels into one drawing, each below its variant's name."""
        gap, title = 24, 40
        columns = min(columns, len(self.panels))
        parts = []
        for i, (variant, panel) in enumerate(self.panels.items()):
            x, y = (i % columns) * (PANEL_WIDTH + gap) + gap / 2, (i // columns) * (PANEL_HEIGHT + title + gap)
            lines = textwrap.wrap(variant, 44, max_lines=2, placeholder=" …") or [""]
            spans = "".join(
                _text("name", x + 4, y + title - 8 - 15 * (len(lines) - 1 - j), line) for j, line in enumerate(lines)
            )
            parts.append(f'{spans}<svg x="{x:g}" y="{y + title:g}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}">')
            parts.append(f"{panel.body}</svg>")
        rows = -(-len(self.panels) // columns)
        size = columns * (PANEL_WIDTH + gap), rows * (PANEL_HEIGHT + title + gap)
        return Figure("".join(parts), *size, "Learning curves, a panel per variant")


def curves(results: Results, hover: bool) -> Curves:
    """Draw each variant's learning curve.

    Seeds are pale, the interquartile mean is bold on its interval, and the base is dashed.

    Args:
        results: the study's results.
        hover: whether to add tooltips, for the HTML page.
    """
    parts = {part["variant"][0]: part for part in results.curves.partition_by("variant", maintain_order=True)}
    order = shown(results)
    nth = every(results)
    x, y = _scales([parts[variant] for variant in order], results.store.solved)
    number = number_format(results)
    base = parts.get(results.base)
    panels = {
        variant: _panel(results, parts[variant], base if variant != results.base else None, x, y, nth, number, hover)
        for variant in order
    }
    return Curves(panels)


def every(results: Results) -> int:
    """Return n where every n-th evaluation of the seeds is drawn."""
    drawn = results.curves.filter(pl.col("variant").is_in(shown(results)))
    return max(1, -(-int(drawn["n"].sum()) // MAX_POINTS))


def shown(results: Results) -> list[str]:
    """Return the variants to draw, the base first.

    If there are more than `MAX_PANELS`, those with the best returns over the curve are drawn.
    """
    variants = [row["variant"] for row in results.rows if row["variant"] != results.base]
    if len(variants) >= MAX_PANELS:
        means = {row["variant"]: row["auc_mean"] for row in results.rows}
        best = set(sorted(variants, key=lambda variant: -means[variant])[: MAX_PANELS - 1])
        variants = [variant for variant in variants if variant in best]
    return [results.base, *variants] if results.row(results.base) else variants


def _scales(parts: Sequence[pl.DataFrame], solved: float | None) -> tuple[Scale, Scale]:
    values = [v for part in parts for row in part["returns"].to_list() for v in row if math.isfinite(v)]
    values += [] if solved is None else [solved]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.04 * (high - low) or 1.0
    last = max(part["env_step"].max() for part in parts)  # type: ignore[type-var]
    x = Scale(0.0, float(last), 46, PANEL_WIDTH - 10)  # type: ignore[arg-type]
    return x, Scale(low - margin, high + margin, PANEL_HEIGHT - 26, 8)


def _panel(
    results: Results,
    part: pl.DataFrame,
    base: pl.DataFrame | None,
    x: Scale,
    y: Scale,
    nth: int,
    number: NumberFormat,
    hover: bool,
) -> Figure:
    at, returns = part["env_step"].to_list(), part["returns"].to_list()
    kept = sorted({*range(0, len(at), nth), len(at) - 1})
    body = [_frame(x, y, results.store.solved)]
    if hover:
        body.append(_slots(part, base, x, number))
    body.append(_band(part, x, y))
    seeds, ends = results.outcomes.filter(variant=part["variant"][0]), []
    body.append('<g class="seeds">')
    for i, run in enumerate(seeds.iter_rows(named=True)):
        values = [returns[t][i] for t in kept]
        told = f"<title>{escape(_run(run, number, results.store.solved))}</title>" if hover else ""
        line = _line([at[t] for t in kept], values, x, y)
        body.append(f'<path d="{line}">{told}</path>' if told else f'<path d="{line}"/>')
        if run["broken"]:
            last = max((t for t in range(len(at)) if math.isfinite(returns[t][i])), default=None)
            if last is not None:
                ends.append(_cross(x(at[last]), y(returns[last][i]), "broken"))
    body += ["</g>", *ends]
    if base is not None:
        body.append(f'<path class="base" d="{_line(base["env_step"].to_list(), base["iqm"].to_list(), x, y)}"/>')
    body.append(f'<path class="iqm" d="{_line(at, part["iqm"].to_list(), x, y)}"/>')
    return Figure("".join(body), PANEL_WIDTH, PANEL_HEIGHT, f"Learning curve of {part['variant'][0]}")


def _run(run: dict[str, Any], number: NumberFormat, solved: float | None) -> str:
    told = f"seed {run['seed']}: {number.format(run['final'])} at the end"
    if run["broken"]:
        return f"seed {run['seed']}: broke"
    if solved is None:
        return told
    return f"{told}, solved for good: {steps(run['solved_for_good'])}{', fell' if run['fell'] else ''}"


def _frame(x: Scale, y: Scale, solved: float | None) -> str:
    """Draw the axes, and the threshold from which on the task counts as solved."""
    parts = []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{x.start:g} {y(tick):.1f}H{x.end:g}"/>')
        if solved is None or abs(y(tick) - y(solved)) > 12:
            parts.append(_text("tick", x.start - 6, y(tick) + 3.5, thousands(tick), "end"))
    for tick in x.ticks():
        anchor = "end" if x(tick) > x.end - 10 else "middle"
        parts.append(_text("tick", x(tick), y.start + 16, thousands(tick), anchor))
    if solved is not None:
        parts.append(f'<path class="level" d="M{x.start:g} {y(solved):.1f}H{x.end:g}"/>')
        parts.append(_text("tick strong", x.start - 6, y(solved) + 3.5, thousands(solved), "end"))
    return "".join(parts)


def _band(part: pl.DataFrame, x: Scale, y: Scale) -> str:
    """Draw the interval as a band.

    If runs broke, it may reach down to minus infinity, which is drawn at the lower edge.
    """
    rows = [
        (x(step), y(low), y(high))
        for step, low, high in part.select("env_step", "iqm_low", "iqm_high").iter_rows()
        if low is not None and not math.isnan(low) and not math.isnan(high)
    ]
    if not rows:
        return ""
    there = "L".join(f"{px:.1f} {high:.1f}" for px, _, high in rows)
    back = "L".join(f"{px:.1f} {low:.1f}" for px, low, _ in reversed(rows))
    return f'<path class="band" d="M{there}L{back}Z"/>'


def _line(at: Sequence[float], values: Sequence[float | None], x: Scale, y: Scale) -> str:
    parts, pen = [], "M"
    for step, value in zip(at, values, strict=True):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{x(step):.1f} {y(value):.1f}")
        pen = "L"
    return "".join(parts)


def _slots(part: pl.DataFrame, base: pl.DataFrame | None, x: Scale, number: NumberFormat) -> str:
    theirs = {} if base is None else dict(base.select("env_step", "iqm").iter_rows())
    rows = list(part.iter_rows(named=True))
    kept = rows[:: max(1, -(-len(rows) // MAX_SLOTS))]
    places = [x(row["env_step"]) for row in kept]
    edges = [x.start, *((a + b) / 2 for a, b in itertools.pairwise(places)), x.end]
    parts = []
    for row, start, end in zip(kept, edges, edges[1:], strict=False):
        low_high = interval(row, "iqm", number.format)
        told = f"step {row['env_step']:,}: {number.format(row['iqm'])}" + (f" ({low_high})" if low_high else "")
        if row["env_step"] in theirs:
            told += f"; base {number.format(theirs[row['env_step']])}"
        parts.append(
            f'<rect class="slot" x="{start:.1f}" y="0" width="{end - start:.1f}" height="{PANEL_HEIGHT - 26}">'
            f"<title>{escape(told)}</title></rect>"
        )
    return "".join(parts)


# Strips: a row per variant with a dot per run


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float | None
    high: float | None
    told: str
    is_second: bool = False
    """Whether it is drawn hollow, below the first estimate."""


class Row(NamedTuple):
    """A variant's row: one dot per run, and estimates."""

    name: str
    dots: list[tuple[float, str]]
    """(value, description); the value is infinite if the run never got there."""
    estimates: list[Estimate]


def solved_for_good(results: Results, hover: bool) -> Figure:
    """Draw the step at which each run solved the task for good, and the median."""
    rows = []
    for row, part in _by_variant(results):
        dots = [(run["solved_for_good"], f"seed {run['seed']}: {steps(run['solved_for_good'])}") for run in part]
        rows.append(Row(row["variant"], dots, [_estimate(row, "solved_for_good_median", steps, "median")]))
    last = float(results.curves["env_step"].max() or 1)  # type: ignore[arg-type]
    return _strips(rows, (0.0, last), results.base, "Steps until solved for good, a dot per run", hover, thousands)


def over_the_curve(results: Results, hover: bool) -> Figure:
    """Draw each run's mean return over its learning curve, and the mean over the runs."""
    number = number_format(results)
    rows = []
    for row, part in _by_variant(results):
        dots = [(run["auc"], f"seed {run['seed']}: {number.format(run['auc'])}") for run in part if not run["broken"]]
        rows.append(Row(row["variant"], dots, [_estimate(row, "auc_mean", number.format, "mean")]))
    values = [value for row in rows for value, _ in row.dots]
    ends = min(values, default=0.0), max(values, default=1.0)
    return _strips(rows, ends, results.base, "Return over the curve, a dot per run", hover, thousands)


def improvement(results: Results, hover: bool) -> Figure:
    """Draw each variant's probability of improvement over the base.

    A filled mark stands for the return over the curve, a hollow one for the return at the end.
    """
    rows = []
    drawn = shown(results)
    for row in (row for row in results.others if row["variant"] in drawn):
        estimates = [
            _estimate(row, f"{name}_improvement", share, where)._replace(is_second=name == "final")
            for name, where in (("auc", "over the curve"), ("final", "at the end"))
        ]
        rows.append(Row(row["variant"], [], estimates))
    return _strips(rows, (0.0, 1.0), None, "Probability of improvement over the base", hover, share, 0.5)


def _by_variant(results: Results) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    rows = {row["variant"]: row for row in results.rows}
    return [
        (rows[variant], list(results.outcomes.filter(variant=variant).iter_rows(named=True)))
        for variant in shown(results)
    ]


def _estimate(row: dict[str, Any], name: str, written: Callable[[Any], str], what: str) -> Estimate:
    low_high = interval(row, name, written)
    told = f"{what} {written(row[name])}" + (f" ({low_high})" if low_high else "")
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], told)


def _strips(
    rows: list[Row],
    ends: tuple[float, float],
    base: str | None,
    label: str,
    hover: bool,
    written: Callable[[float], str],
    reference: float | None = None,
) -> Figure:
    """Draw rows below each other on one axis; infinite values get a column labelled "never"."""
    has_never = any(math.isinf(value) for row in rows for value, _ in row.dots)
    margin = 0.02 * (ends[1] - ends[0]) or 1.0
    x = Scale(ends[0] - margin, ends[1] + margin, 8, STRIP_WIDTH - (64 if has_never else 12))
    never = STRIP_WIDTH - 30
    names = [textwrap.wrap(row.name, NAME, max_lines=2, placeholder=" …") or [""] for row in rows]
    under = 15 * max(map(len, names), default=1)  # where the marks of a row begin, below its name
    each = ROW - 15 + under
    height = each * len(rows) + 26
    body = [f'<path class="grid" d="M{x(tick):.1f} 4V{height - 20}"/>' for tick in x.ticks(6)]
    body += [_text("tick", x(tick), height - 6, written(tick), "middle") for tick in x.ticks(6)]
    if has_never:
        body.append(f'<path class="axis" d="M{STRIP_WIDTH - 56} 4V{height - 20}"/>')
        body.append(_text("tick", never, height - 6, "never", "middle"))
    level = next((row.estimates[0].value for row in rows if row.name == base), reference)
    if level is not None and math.isfinite(level):  # in each row, below its name
        line = "".join(f"M{x(level):.1f} {each * i + under + 5}V{each * (i + 1)}" for i in range(len(rows)))
        body.append(f'<path class="level" d="{line}"/>')

    def place(value: float) -> float:
        return never if value == math.inf else x(value)

    for i, row in enumerate(rows):
        top, mark = each * i, each * i + under
        body += [_text("name halo", 4, top + 15 * (j + 1), line) for j, line in enumerate(names[i])]
        body += _dots(row.dots, place, mark + 13, hover)
        lines = (mark + 28,) if row.dots else (mark + 13, mark + 26)
        body += [_mark(e, place, line, hover) for e, line in zip(row.estimates, lines, strict=False)]
    return Figure("".join(body), STRIP_WIDTH, height, label)


def _dots(dots: list[tuple[float, str]], place: Callable[[float], float], middle: float, hover: bool) -> list[str]:
    """Stack dots that share a place; the more there are, the closer together they are drawn."""
    piles: dict[int, list[tuple[float, float, str]]] = {}
    for value, told in sorted(dots):
        piles.setdefault(round(place(value) / 4), []).append((place(value), value, told))
    parts, crosses = ['<g class="dots">'], []
    for pile in piles.values():
        apart = min(4.5, 15 / len(pile))
        for i, (px, value, told) in enumerate(pile):
            py = middle + (i - (len(pile) - 1) / 2) * apart
            inside = f"<title>{escape(told)}</title>" if hover else ""
            if value == math.inf:
                crosses.append(_cross(px + (i % 2 - 0.5) * 10, py, "never", inside))
            elif inside:
                parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3">{inside}</circle>')
            else:
                parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3"/>')
    return [*parts, "</g>", *crosses]


def _mark(estimate: Estimate, place: Callable[[float], float], middle: float, hover: bool) -> str:
    value, low, high = estimate.value, estimate.low, estimate.high
    second = " second" if estimate.is_second else ""
    inside = f"<title>{escape(estimate.told)}</title>" if hover else ""
    line = ""
    if low is not None and high is not None and not math.isnan(low + high if math.isfinite(low + high) else 0.0):
        line = f'<path class="reach{second}" d="M{place(low):.1f} {middle}H{place(high):.1f}"/>'
    if not math.isfinite(value) and value < 0:
        return ""
    px = place(value)
    diamond = f"M{px:.1f} {middle - 5}l4.5 5l-4.5 5l-4.5 -5z"
    return f'<g class="mark">{line}<path class="middle{second}" d="{diamond}"/>{inside}</g>'


def escape(words: str) -> str:
    """Escape text for XML, which does not allow most control characters."""
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words))


def _text(kind: str, px: float, py: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _cross(px: float, py: float, kind: str, inside: str = "") -> str:
    return f'<path class="cross {kind}" d="M{px - 3:.1f} {py - 3:.1f}l6 6m0 -6l-6 6">{inside}</path>'
