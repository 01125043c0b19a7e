"""Make the report of a study from its files: a self-contained HTML page, and a Markdown twin."""

import base64
import hashlib
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from markupsafe import Markup, escape

from quantilax.checks import diagnosis
from quantilax.errors import ConfigError
from quantilax.host import paths
from quantilax.host.files import write_whole
from quantilax.reports import choice, figures, formats
from quantilax.reports.figures import Figure
from quantilax.reports.formats import Column, Entry
from quantilax.reports.results import Results
from quantilax.reports.verdict import quoted, too_few_seeds, verdict
from quantilax.studies.store import Store

PAGE, TWIN = "report.html", "report.md"

TEMPLATES = jinja2.PackageLoader("quantilax.reports", "templates")


class Table(NamedTuple):
    """A table of a report."""

    columns: list[Column]
    rows: list[list[Entry]]


class Report(NamedTuple):
    """The HTML page, its Markdown twin, and the twin's figures by file name."""

    page: str
    twin: str
    figures: dict[str, str]

    def write(self, out: Path) -> None:
        """Write all files into a directory; figures of an earlier report are deleted.

        Raises:
            ConfigError: the files cannot be written.
        """
        paths.check(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name in FIGURES:
                (out / name).unlink(missing_ok=True)
            for name, text in (self.figures | {PAGE: self.page, TWIN: self.twin}).items():
                write_whole(out / name, text)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written: {error.strerror}; choose another --out") from None


FIGURES = ("report-curves.svg", "report-solved.svg", "report-return.svg", "report-improvement.svg")


def report(store: Store) -> Report:
    """Make the report of a study from its files; that of an unfinished study covers finished runs.

    Raises:
        ConfigError: a file of the records is damaged.
    """
    results = Results.read(store)
    told = contents(results)
    drawn = _figures(results, hover=True)
    style = "".join(source(name) for name in ("figure.css", "report.css"))
    script = source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment(autoescape=True).get_template("report.html.j2")
    page = html.render(
        **told,
        style=Markup(style),
        script=Markup(script),
        digest=digest,
        figures={name: Markup(figure.inline()) for name, figure in drawn.items()},
        panels=_panels(results),
    )
    alone = {name: figure.alone() for name, figure in _figures(results, hover=False).items()}
    twin = environment(autoescape=False).get_template("report.md.j2").render(**told, figures=alone)
    return Report(page, re.sub(r"\n{3,}", "\n\n", twin), alone)


def contents(results: Results) -> dict[str, Any]:
    """Return the content of page and twin, by the names that the templates use."""
    facts, starts = results.store.facts, results.store.facts["starts"]
    asked = len(facts["variants"]) * len(facts["seeds"])
    chosen = choice.choose(results)
    no_recommendation = _no_recommendation(results, chosen)
    return {
        "name": facts["name"],
        "title": facts["question"] or facts["name"],
        "prediction": facts["prediction"],
        "predicted": _predicted(results),
        "status": results.store.status,
        "base": results.base,
        "seeds": formats.seeds(facts["seeds"]),
        "runs": results.outcomes.height,
        "asked": asked,
        "variants": len(facts["variants"]),
        "solved": results.store.solved,
        "date": starts[-1].get("date", "")[:10] if starts else "",
        "verdict": verdict(results),
        "table": summary_table(results),
        "failures": results.failures,
        "broken": {variant: formats.seeds(numbers) for variant, numbers in results.broken.items()},
        "missing": {variant: formats.seeds(numbers) for variant, numbers in results.missing.items()},
        "diagnosis": _diagnosis(results.store),
        "configurations": _configurations(results),
        "left_out": max(0, results.summary.height - figures.MAX_PANELS),
        "every": figures.every(results) if results.rows else 1,
        "recommended": None if chosen is None or no_recommendation else _recommended(results, chosen),
        "no_recommendation": no_recommendation,
        "rule": _rule(),
        "starts": starts,
        "jobs": facts["jobs"],
        "width": facts["width"],
    }


def _predicted(results: Results) -> str:
    """Write whether the prediction was made before the runs, or changed after some."""
    changes = [change for change in results.changes if change["field"] == "prediction"]
    if not changes:
        return "Predicted before the runs"
    before = quoted(changes[0]["before"]) if changes[0]["before"] else "nothing"
    return f"Prediction, changed after {changes[-1]['runs']} runs; before any run it said {before}"


def summary_table(results: Results) -> Table:
    """Format the summary of a study as a table."""
    found = formats.columns(results) if results.rows else []
    return Table(found, [[column.entry(row) for column in found] for row in results.rows])


def section_yaml(results: Results, variant: str) -> str:
    """Write a variant as a section of a config file, with every field."""
    fields = results.store.facts["variants"][variant]
    return yaml.safe_dump({results.store.facts["section"]: fields}, sort_keys=False, default_flow_style=None, width=100)


def _no_recommendation(results: Results, chosen: choice.Choice | None) -> str:
    """Return why no section is recommended; empty if one is."""
    if chosen is None:
        return "None while runs of the base are missing."
    return too_few_seeds(results) if chosen.variant == results.base else ""


def _recommended(results: Results, chosen: choice.Choice) -> dict[str, Any]:
    store, held_out = Store.find(results.store.path / choice.VALIDATION), choice.held_out(results, chosen.variant)
    is_whole = store is not None and store.status == "finished"
    told = (
        choice.judge(results, held_out, chosen.variant, is_winner=True) if held_out is not None and is_whole else None
    )
    return {
        "variant": chosen.variant,
        "reason": chosen.reason,
        "yaml": section_yaml(results, chosen.variant),
        "judgement": told,
        "held_out": formats.seeds(held_out.store.facts["seeds"]) if held_out else "",
    }


def _rule() -> list[list[str]]:
    """Return the rule as the docstring of `choice` states it, by paragraph.

    A list gives one string per item, any other paragraph gives a single string.
    """
    paragraphs = (choice.__doc__ or "").strip().split("\n\n")[1:-1]
    parts = [" ".join(paragraph.replace("*", "").replace("`", "").split()) for paragraph in paragraphs]
    return [re.split(r" ?(?<!\w)\d\. ", part)[1:] if part.startswith("1. ") else [part] for part in parts]


def _configurations(results: Results) -> Table:
    """Return what each variant changes, and the quantities derived from its config."""
    facts, derived = results.store.facts, results.derived()
    quantities = list(dict.fromkeys(name for of_variant in derived.values() for name in of_variant))
    columns = [
        Column("variant", "", lambda _: Entry("")),
        Column("differs from the base by", "", lambda _: Entry("")),
        *(Column(name.replace("_", " "), "", lambda _: Entry("")) for name in quantities),
    ]
    base, rows = facts["variants"].get(facts["base"], {}), []
    for variant, fields in facts["variants"].items():
        named = {field: fields.get(field, value) for field, value in facts["overrides"].get(variant, {}).items()}
        changed = {field: (base.get(field), value) for field, value in named.items() if base.get(field) != value}
        lines = [f"{field}: {_plain(before)} → {_plain(value)}" for field, (before, value) in changed.items()]
        told = ", ".join(lines) or "the base"
        figured = derived.get(variant, {})
        rows.append(
            [Entry(variant, "", variant), Entry(told, "", told), *(_quantity(figured.get(name)) for name in quantities)]
        )
    return Table(columns, rows)


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()


def _quantity(value: float | None) -> Entry:
    return Entry("-") if value is None else Entry(f"{value:,.6g}", "", float(value))


def _diagnosis(store: Store) -> Table | None:
    """Return a row for each variant and first cause; None if the runs measured no signals."""
    if not diagnosis.can_diagnose(store.records()):
        return None
    frame = diagnosis.summary(diagnosis.diagnose_study(store.path))
    columns = [Column(name, "", lambda _: Entry("")) for name in frame.columns]
    rows = []
    for row in frame.iter_rows():
        shown = [Entry(text, "", text) for text in row]
        figure, _, healthy = row[4].partition("; ")
        shown[4] = Entry(figure, healthy, figure)
        rows.append(shown)
    return Table(columns, rows)


def _figures(results: Results, hover: bool) -> dict[str, Figure]:
    if not results.rows:
        return {}
    drawn = {} if hover else {"report-curves.svg": figures.curves(results, hover=False).together()}
    if results.store.solved is not None:
        drawn["report-solved.svg"] = figures.solved_for_good(results, hover)
    drawn["report-return.svg"] = figures.over_the_curve(results, hover)
    if results.others:
        drawn["report-improvement.svg"] = figures.improvement(results, hover)
    return drawn


def _panels(results: Results) -> dict[str, Markup]:
    drawn = figures.curves(results, hover=True).panels if results.rows else {}
    return {variant: Markup(panel.inline()) for variant, panel in drawn.items()}


def source(name: str) -> str:
    """Return the text of a file of `templates/`."""
    return (files("quantilax.reports") / "templates" / name).read_text(encoding="utf-8")


def environment(autoescape: bool) -> jinja2.Environment:
    """Return what reads templates; `autoescape` is for HTML."""
    found = jinja2.Environment(
        loader=TEMPLATES,
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"markdown": markdown, "sortable": _sortable, "whole": whole}
    return found


def _sortable(entry: Entry) -> str | None:
    """Return the key by which the page's script sorts."""
    value = entry.value
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return None if value is None or value != value else str(value)


LONGEST = 24
"""Characters that fit into a line on a phone, beside other columns."""


def whole(text: Any) -> Markup:
    """Write text so that words such as `learning_rate=3e-4` are broken only after `=`.

    A browser would also break them after a hyphen.
    """
    parts = re.split(r"(\S*[-=/_]\S*)", str(text))  # every second part is such a word
    return Markup("").join(_whole_word(part) if i % 2 else escape(part) for i, part in enumerate(parts))


def _whole_word(word: str) -> Markup:
    parts = re.split(r"(?<==)(?=.)", word)
    kept = (
        Markup('<span class="whole">{}</span>').format(part) if len(part) <= LONGEST else escape(part) for part in parts
    )
    return Markup("<wbr>").join(kept)


def markdown(text: Any) -> str:
    """Escape text so that Markdown shows it unchanged, in one line."""
    line = " ".join(str(text).split()).replace("&", "&amp;")
    line = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", line)
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    return re.sub(r"^(#+|[-+]|\d+[.)])(?=\s)", lambda m: m[0][:-1] + "\\" + m[0][-1], line)
