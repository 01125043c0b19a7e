"""A study's report shows the figures of the statistics, claims no more, and is self-contained."""

import html.parser
import re
import xml.etree.ElementTree as ET

import polars as pl
import pytest

from quantilax import statistics
from quantilax.checks.rules import healthy
from quantilax.reports import choice, figures, formats
from quantilax.reports import pages as report
from quantilax.reports.results import Results, seeds_needed, smallest_p, verdict_of
from quantilax.reports.verdict import verdict
from quantilax.studies import definition, start
from quantilax.studies.store import Failure, Store
from tests.studies import FALLS, GOOD, LATE, NAN, NEVER, START, store, write
from tests.unit.test_diagnosis import frame

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
SELF_CLOSED = {"path", "circle", "rect"}


class Page(html.parser.HTMLParser):
    """What a strict reader finds in a page: every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[dict]] = []
        """Variants of all table rows: text and data-value."""
        self.words = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        assert len(named) == len(attributes), f"an attribute of <{tag}> stands there twice"
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "action", "xlink:href", "data")
        ]
        assert not [name for name in named if name.startswith("on")], "scripts in attributes"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append({"value": named.get("data-value"), "text": "", "title": named.get("title")})
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attributes):
        assert tag in SELF_CLOSED, f"<{tag}/>"
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
            return
        if "style" in self.open:
            return
        self.words += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1]["text"] += data


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def two(tmp_path):
    """Six seeds each: the base falls now and then, the other variant is late or never solves."""
    base = [GOOD, GOOD, FALLS, GOOD, FALLS, GOOD]
    curves = {"base": base, "slow": [NEVER, LATE, NEVER, NEVER, LATE, NEVER]}
    return store(tmp_path / "s", curves, question="Does it help?", prediction="It does.")


@pytest.fixture
def told(two):
    return report.report(two)


# Figures


def test_the_table_of_the_page_has_the_statistics_own_figures(two, told):
    rows = [row for row in Page(told.page).rows if row and row[0]["text"] in ("base", "slow")][:2]
    for row, mine in zip(two.summary().iter_rows(named=True), rows, strict=True):
        values = [variant["value"] for variant in mine]
        assert values[0] == row["variant"]
        names = [
            "final_iqm",
            "auc_mean",
            "solved_at_end_share",
            "fell_share",
            "solved_for_good_median",
            "worst_drop_median",
        ]
        names += ["auc_improvement", "final_improvement"]
        expected = [row["n"], *(row[name] for name in names)]
        assert [None if v is None else float(v) for v in values[1:]] == expected
    base, slow = ([variant["text"] for variant in row] for row in rows)
    assert base[4:6] == ["6 of 6" + "61% to 100%", "2 of 6" + "10% to 70%"]  # Wilson: z^2 = 3.84; 6 / (6 + 3.84) = .61
    assert slow[4:7] == ["2 of 610% to 70%", "0 of 20% to 66%", "never300 to never"]
    assert slow[8] == "0.00 worse0.00 to 0.39p = 0.002"  # all below: 2 / C(12, 6) = 0.0022; 3.84 / (6 + 3.84) = .39


def test_page_and_twin_say_the_same_figures(told):
    for words in ("6 of 6", "2 of 6", "300 to never", "0.00 worse", "p = 0.002"):
        assert words in told.page
        assert words in told.twin
    text = unwrapped(Page(told.page).words)
    for line in re.findall(r"^- ([^*].*)$", told.twin.split("## Variants")[0], re.MULTILINE):
        assert unwrapped(line.replace("\\", "")) in text
    assert "Does it help?" in told.twin
    assert "It does." in told.twin


def test_the_dots_are_the_outcomes_and_the_panels_have_every_seed(two, told):
    assert len(re.findall(r'<path d="M[^"]*"><title>seed ', told.page)) == 12
    for run in two.outcomes().iter_rows(named=True):
        assert f"seed {run['seed']}: {formats.steps(run['solved_for_good'])}</title>" in told.page
    assert told.page.count('class="cross never"') == 4


def test_a_curve_lies_where_its_numbers_are(tmp_path):
    there = Results.read(store(tmp_path / "s", {"base": [(0.0, 500.0, 250.0, 500.0)]}, seeds=1))
    panel = figures.curves(there, hover=False).panels["base"].body
    drawn = re.search(r'<g class="seeds"><path d="M([^"]+)"', panel)[1]
    points = [tuple(map(float, p.split())) for p in drawn.split("L")]
    left, right, top, bottom = 46, figures.PANEL_WIDTH - 10, 8, figures.PANEL_HEIGHT - 26
    assert [x for x, _ in points] == pytest.approx([left + (right - left) * t / 3 for t in range(4)], abs=0.06)
    heights = [bottom - (bottom - top) * (value + 20) / 540 for value in (0, 500, 250, 500)]  # margins of 4%
    assert [y for _, y in points] == pytest.approx(heights, abs=0.06)


def test_ticks_are_round_and_within():
    assert figures.Scale(0, 100_000, 0, 1).ticks() == [0, 25_000, 50_000, 75_000, 100_000]
    assert figures.Scale(-20, 520, 0, 1).ticks() == [0, 200, 400]
    assert figures.Scale(0, 0.7, 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6])


# Verdict


def test_what_the_tests_tell_apart_is_said_with_its_interval_and_n(two):
    said = verdict(Results.read(two))
    assert said.headline == "Over the whole curve “slow” is worse than “base”. At the end “slow” is worse than “base”."
    assert "n = 6 seeds per variant" in said.basis
    assert "adjusted for 1 comparison." in said.basis
    assert "against" in said.findings[0]
    assert "p = 0.002" in said.findings[0]


def test_what_cannot_be_told_apart_is_said_to_be_so(tmp_path):
    curves = {"base": [GOOD, FALLS, GOOD, LATE, GOOD, GOOD], "same": [FALLS, GOOD, GOOD, GOOD, LATE, GOOD]}
    said = verdict(Results.read(store(tmp_path / "s", curves)))
    assert said.headline == (
        "Over the whole curve “same” cannot be told apart from “base”. At the end “same” cannot be told apart from “base”."
    )
    assert not any("beats" in line for line in said.findings)
    assert any(
        line.startswith("Variants that cannot be told apart need not be equal: over the whole curve, the intervals")
        for line in said.caveats
    )


def test_a_difference_that_does_not_survive_the_number_of_variants_is_not_claimed(tmp_path):
    # Four seeds all below four others: p = 2 / C(8, 4) = 0.029, which 2 comparisons make 0.057.
    curves = {"base": [GOOD] * 4, "low": [NEVER] * 4}
    assert verdict_of(Results.read(store(tmp_path / "one", curves, seeds=4)).others[0], "auc") == -1
    results = Results.read(store(tmp_path / "two", curves | {"same": [GOOD] * 4}, seeds=4))
    low = next(row for row in results.others if row["variant"] == "low")
    assert low["auc_p"] < 0.05 < low["auc_p_holm"]
    assert verdict(results).headline.startswith("Over the whole curve no variant can be told apart from “base”.")


def test_too_few_seeds_to_show_anything_are_said_to_be_too_few(tmp_path):
    assert smallest_p(3, 3) == pytest.approx(0.1)  # 2 / C(6, 3)
    curves = {"base": [GOOD] * 3, "low": [NEVER] * 3}
    said = verdict(Results.read(store(tmp_path / "s", curves, seeds=3)))
    assert any(
        "With so few seeds, no difference could have been detected: the smallest" in line for line in said.caveats
    )
    assert any("is 0.1; at least 4 seeds per variant are needed (--seeds 4 --resume)." in line for line in said.caveats)
    assert any("fewer than 10 seeds" in line for line in said.caveats)


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 4), (2, 5), (6, 5), (7, 6)])
def test_the_seeds_needed_are_the_fewest_that_can_show_a_difference(comparisons, seeds):
    # 2 / C(2n, n): 0.029 of 4 seeds, 0.0079 of 5 (6 comparisons of it are 0.048), 0.0022 of 6
    assert seeds_needed(comparisons) == seeds


def test_nothing_is_recommended_where_no_difference_could_have_shown(tmp_path):
    few = report.report(store(tmp_path / "few", {"base": [GOOD] * 3, "low": [NEVER] * 3}, seeds=3))
    (told,) = (line for line in few.twin.splitlines() if line.startswith("With so few seeds"))
    assert "at least 4 seeds per variant are needed" in told
    for text in (few.page, few.twin):
        assert told in text
        assert "No recommendation" in text
        assert "Recommended section" not in text
        assert "algorithm: iqn" not in text
    enough = report.report(store(tmp_path / "enough", {"base": [GOOD] * 4, "low": [NEVER] * 4}, seeds=4))
    assert "Recommended section" in enough.page
    assert "Recommended section" in enough.twin


def test_an_interval_that_says_nothing_is_left_out(tmp_path):
    there = Results.read(store(tmp_path / "s", {"base": [NEVER, GOOD, NEVER], "other": [GOOD] * 3}, seeds=3))
    base, other = (formats.with_interval(row, "solved_for_good_median", formats.steps) for row in there.rows)
    assert (base.text, base.detail) == ("never", "")  # not: 0 to never
    assert (other.text, other.detail) == ("100", "")


def test_a_configuration_tells_the_bases_value_and_its_own(tmp_path):
    there = store(
        tmp_path / "s", {"base": [GOOD] * 6, "slow": [LATE] * 6}, {"slow": {"learning_rate": "3e-5", "gamma": 0.9}}
    )
    told = report.report(there)
    base = Results.read(there).store.facts["variants"]["base"]
    assert base["gamma"] != 0.9
    told_of = f"learning_rate: {base['learning_rate']} → 3.0e-05, gamma: {base['gamma']} → 0.9"
    rows = {row[0]["text"]: row[1]["text"] for row in Page(told.page).rows if row}
    assert rows["slow"] == told_of
    assert rows["base"] == "the base"
    assert told_of in told.twin.replace("\\", "")


def test_a_configuration_tells_only_what_differs_from_the_base(tmp_path):
    base = Results.read(store(tmp_path / "base", {"base": [GOOD] * 2})).store.facts["variants"]["base"]
    changes = {"slow": {"learning_rate": base["learning_rate"], "gamma": 0.9}}
    told = report.report(store(tmp_path / "s", {"base": [GOOD] * 2, "slow": [LATE] * 2}, changes))
    rows = {row[0]["text"]: row[1]["text"] for row in Page(told.page).rows if row}
    assert rows["slow"] == f"gamma: {base['gamma']} → 0.9"


def test_a_long_name_of_a_variant_is_whole_in_a_drawing(tmp_path):
    name = "munchausen=false, normalize_rewards=false, weight_averaging=0.9998"
    curves = {"base": [GOOD] * 2, name: [LATE] * 2}
    drawn = figures.solved_for_good(Results.read(store(tmp_path / "s", curves)), hover=False).body
    lines = re.findall(r'<text class="name halo"[^>]*>([^<]*)</text>', drawn)
    assert lines[0] == "base"
    assert " ".join(lines[1:]) == name
    assert max(map(len, lines)) <= figures.NAME


def test_words_with_signs_are_broken_after_an_equals_sign_only():
    assert report.whole("x a_b=3e-4, <b>") == (
        'x <span class="whole">a_b=</span><wbr><span class="whole">3e-4,</span> &lt;b&gt;'
    )
    long = "a-" * 20
    assert report.whole(long) == long


def test_no_label_lies_on_a_line(tmp_path, two):
    drawn = figures.solved_for_good(Results.read(two), hover=False).body
    (level,) = re.findall(r'<path class="level" d="([^"]*)"/>', drawn)
    stretches = [tuple(map(float, ends)) for ends in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", level)]
    names = [float(y) for y in re.findall(r'<text class="name halo" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert len(stretches) == len(names) == 2
    assert not any(top < y + 3 and bottom > y - 10 for y in names for top, bottom in stretches)


def test_the_page_speaks_of_no_pointer_that_a_phone_does_not_have(told):
    assert "pointer" not in Page(told.page).words


def test_without_a_threshold_nothing_is_said_of_solving(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 6, "low": [NEVER] * 6}, solved=None)
    told = report.report(there)
    assert not [c for c in there.summary().columns if "solved" in c or "fell" in c]
    assert "solved" not in Page(told.page).words.split("How it is chosen")[0]
    assert set(told.figures) == {"report-curves.svg", "report-return.svg", "report-improvement.svg"}


# Missing and failed runs


def test_an_unfinished_study_shows_what_is_there_and_what_is_missing(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 6, "slow": [LATE] * 2})
    there.update(status="interrupted")
    told = report.report(there)
    words = unwrapped(Page(told.page).words)
    assert "8 of 12 runs" in words
    assert "interrupted" in words
    assert "4 of 12 runs are missing (seeds of “slow”: 2 to 5); quantilax study with --resume runs them." in words
    assert "slow has no results yet for seed 2 to 5." in words
    assert "n = 2 to 6 seeds per variant" in words
    assert "- **slow** has no results yet for seed 2 to 5." in told.twin


def test_a_study_without_results_has_a_report_too(tmp_path):
    told = report.report(store(tmp_path / "s", {"base": []}))
    words = unwrapped(Page(told.page).words)
    assert "No run is finished yet, so there is nothing to report." in words
    assert "0 of 6 runs" in words
    assert told.figures == {}


def test_a_variant_that_failed_is_told_with_its_reason_and_is_not_missing(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 6, "bad": []})
    there.failed(Failure("bad", "buffer_size: 2 cannot hold <one> step"))
    told = report.report(there)
    words = unwrapped(Page(told.page).words)
    assert "bad could not be run: buffer_size: 2 cannot hold <one> step" in words
    assert "missing" not in words.split("How it is chosen")[0].replace("None while runs of the base are missing", "")
    assert "cannot hold \\<one\\> step" in told.twin


def test_a_base_without_runs_compares_nothing(tmp_path):
    told = report.report(store(tmp_path / "s", {"base": [], "slow": [LATE] * 6}))
    words = unwrapped(Page(told.page).words)
    assert "The base “base” has no runs, so no variant is compared with anything." in words
    assert "None while runs of the base are missing." in words


def test_broken_seeds_are_counted_named_and_drawn(tmp_path):
    broken = (10.0, 480.0, NAN, NAN)
    there = store(tmp_path / "s", {"base": [GOOD] * 6, "wild": [GOOD, GOOD, broken, GOOD, broken, GOOD]})
    told = report.report(there)
    words = unwrapped(Page(told.page).words)
    assert "2 runs of “wild” broke" in words
    assert "wild broke with seed 2, 4." in words
    assert told.page.count('class="cross broken"') == 2 + 1  # and one in the key
    row = next(row for row in Page(told.page).rows if row[0]["text"] == "wild")
    assert row[-1]["text"] == "2"
    assert row[3]["value"] == "-Infinity"  # the mean of returns with one that is -inf
    assert "nan" not in told.page.lower().split("<body>")[1].split("<script>")[0]


# The page


def test_the_page_is_well_formed_and_stands_alone(told):
    page = Page(told.page)
    assert page.addresses == ["data:,"]
    assert not re.search(r"https?:|@import|url\(", told.page)
    assert {"html", "head", "body", "main", "table", "svg"} <= set(page.tags)
    assert "default-src 'none'" in told.page
    assert len(page.scripts) == 1


def test_names_and_words_of_users_are_text_in_page_twin_and_figures(tmp_path):
    name = "<script>alert('x')</script>|`a` \"b\" & *c* {{ 7 * 7 }}"
    curves = {"base": [GOOD] * 6, name: [NEVER] * 6}
    evil = "<img src=x onerror=alert(1)> </title></script><!-- {% raw %}"
    told = report.report(store(tmp_path / "s", curves, question=evil, prediction=f"# {evil}"))
    page = Page(told.page)
    assert "img" not in page.tags
    assert len(page.scripts) == 1
    assert page.words.count(name) >= 3
    assert evil in page.words
    assert "49" not in {variant["text"] for row in page.rows for variant in row}
    assert not re.search(r"(?<!\\)<(script|img)", told.twin.split("```yaml")[0])
    for row in re.findall(r"^\|.*script.*$", told.twin, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) in (11, 10)  # of the table of variants, of that of configurations
    for figure in told.figures.values():
        ET.fromstring(figure)
    assert "&lt;script&gt;" in told.figures["report-return.svg"]


@pytest.mark.parametrize(
    "text", ["# a", "- a", "1. a", "a\nb", "a | b", "_a_", "<b>", "[a](b)", "a `b`", "5 * 3", "\\"]
)
def test_markdown_of_text_is_that_text(text):
    from markdown_it import MarkdownIt  # rich needs it

    drawn = MarkdownIt("commonmark", {"html": True}).render(report.markdown(text))
    assert html.unescape(drawn) == f"<p>{' '.join(text.split())}</p>\n"


def test_names_of_fields_stay_readable_in_markdown():
    assert report.markdown("batch_size=64, gamma=0.98") == "batch_size=64, gamma=0.98"


def test_figures_of_the_twin_are_small_and_stand_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(
        statistics, "interval", lambda of, *rows, **_: (of(*(x[None] for x in rows))[0],) * 2
    )  # at once
    many = {f"variant {i}": [GOOD, FALLS, LATE, NEVER] * 25 for i in range(40)}
    told = report.report(store(tmp_path / "s", {"base": [GOOD] * 100, **many}, seeds=100))
    assert len(told.figures) == 4
    for figure in told.figures.values():
        assert len(figure.encode()) < 200_000
        assert re.findall(r"https?://[^\"]*", figure) == ["http://www.w3.org/2000/svg"]
        ET.fromstring(figure)
    assert "11 variants with lower returns over the curve are not drawn" in Page(told.page).words
    assert "Only one evaluation in 2 of each seed's curve is drawn" in unwrapped(Page(told.page).words)
    assert sum(row[0]["text"].startswith("variant ") for row in Page(told.page).rows if row) == 80  # in two tables


def test_every_column_is_explained(told):
    heads = next(row for row in Page(told.page).rows if row and row[0]["text"] == "variant")
    assert all(head["title"] for head in heads)
    for head in heads:
        assert f"**{head['text']}**: " in told.twin


def test_the_page_says_how_to_get_it_again(tmp_path, two):
    two.update(starts=[START, {**START, "command": "quantilax study s.yaml --resume", "finished_before": 7}])
    words = unwrapped(Page(report.report(two).page).words)
    for part in (
        START["command"],
        "quantilax study s.yaml --resume",
        "with 7 runs finished",
        START["commit"],
        "jax 0.10.2",
    ):
        assert part in words
    assert "Seeds 0 to 5; 2 devices at once with 1 run on each." in words


def test_first_causes_are_shown_by_variant_where_signals_were_measured(tmp_path, told, monkeypatch):
    monkeypatch.setattr("quantilax.checks.ranges.ranges", lambda agent: [])  # lint warns of so short a run
    assert "Diagnosis" not in Page(told.page).words
    assert "## Diagnosis" not in told.twin
    made = store(tmp_path / "measured", {}, variants={"clipped": {"max_grad_norm": 1e-3}}, seeds=3)
    fault = {"clip_factor": 1e-4}
    for variant, seeds in {"base": [{}, {}, {}], "clipped": [fault, {}, fault]}.items():
        for seed, columns in enumerate(seeds):
            made.write(
                frame(None, seed, **columns).with_columns(variant=pl.lit(variant), finite=pl.lit(True)).rows(named=True)
            )
    told = report.report(made)
    shown = [[c["text"] for c in row] for row in Page(told.page).rows]
    low, high = healthy()["clip_factor"]
    evidence = f"clip_factor 0.0001 to 0.0001in healthy runs {low:.3g} to {high:.3g}"
    assert [row for row in shown if row[-1:] in (["try"], [""], ["max_grad_norm=10.0"])] == [
        ["variant", "named first", "seeds", "how they went", "evidence", "try"],
        ["base", "no cause", "3 of 3", "3 learned", "", ""],
        ["clipped", "clipping", "2 of 3", "2 learned", evidence, "max_grad_norm=10.0"],
        ["clipped", "no cause", "1 of 3", "1 learned", "", ""],
    ]
    assert "## Diagnosis" in told.twin
    assert "max_grad_norm=10.0" in told.twin


def test_the_recommended_section_is_yaml_that_resolves_to_the_variant(tmp_path, two, told):
    from quantilax.runs import load_section
    from quantilax.studies.definition import resolved

    block = re.search(r"```yaml\n(.*?)```", told.twin, re.DOTALL)[1]
    assert unwrapped(block) in unwrapped(Page(told.page).words)
    (tmp_path / "x.yaml").write_text(block)
    section = load_section(tmp_path / "x.yaml", "iqn")
    mine = two.facts["variants"]["base"]
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in resolved(section).items()} == mine


def test_the_report_of_the_same_files_is_the_same(two, told):
    assert report.report(Store.open(two.path)) == told


def test_writing_twice_leaves_the_second_report(tmp_path, two, told):
    out = tmp_path / "out"
    told.write(out)
    assert {p.name for p in out.iterdir()} == {"report.html", "report.md", *report.FIGURES}
    (out / "mine.svg").write_text("mine")
    told._replace(figures={}).write(out)
    assert {p.name for p in out.iterdir()} == {"report.html", "report.md", "mine.svg"}


# The choice


def test_the_base_stays_where_nothing_is_ahead(two):
    chosen = choice.choose(Results.read(two))
    assert (chosen.variant, chosen.reason) == ("base", "by the rule, no variant is ahead of “base”, so it stays")


def test_solving_decides_before_the_curve(tmp_path):
    low = (10.0, 20.0, 30.0, 480.0)  # a lower curve than FALLS, but solved at the end
    high = (10.0, 480.0, 470.0, 470.0)
    there = Results.read(store(tmp_path / "s", {"base": [high] * 8, "end": [low] * 8}, seeds=8))
    assert verdict_of(there.others[0], "auc") == -1
    chosen = choice.choose(there)
    assert chosen.variant == "end"
    assert "the share of runs solved at the end, 8 of 8 (68% to 100%) against 0 of 8 (0% to 32%)" in chosen.reason


def test_falls_decide_where_all_end_solved(tmp_path):
    fast = (10.0, 480.0, 300.0, 500.0)
    calm = (10.0, 20.0, 480.0, 500.0)
    there = Results.read(store(tmp_path / "s", {"base": [fast] * 8, "calm": [calm] * 8}, seeds=8))
    assert choice.choose(there).variant == "calm"


def test_who_solves_late_had_no_time_to_fall(tmp_path):
    falls = (10.0, 480.0, 470.0, 500.0)
    late = (10.0, 20.0, 30.0, 480.0)  # at the last evaluation: nothing is known of what comes after
    there = Results.read(store(tmp_path / "s", {"base": [falls] * 8, "late": [late] * 8}, seeds=8))
    assert choice.watched(there, ["late", "base"]) == [(0, 8), (0, 8)]
    assert choice.choose(there).variant == "base"
    sign, reason = choice.compare(there, there.row("late"), there.row("base"))
    assert (sign, reason.split(",")[0]) == (-1, "the return over the curve")


def test_falls_are_counted_over_the_time_that_both_variants_were_watched(tmp_path):
    soon = (10.0, 480.0, 480.0, 300.0)  # falls two evaluations after solving, of which `later` has one
    later = (10.0, 20.0, 480.0, 480.0)
    curves = {"base": [soon] * 5 + [NEVER], "later": [later] * 5 + [(10.0, 20.0, 480.0, 300.0)]}
    there = Results.read(store(tmp_path / "s", curves))
    assert choice.watched(there, ["later", "base"]) == [(1, 6), (0, 5)]
    assert choice.watched(there, ["base"]) == [(5, 5)]
    curves = {"base": [NEVER] * 6, "later": [later] * 6}
    assert choice.watched(Results.read(store(tmp_path / "t", curves)), ["later", "base"]) == [(0, 6), (0, 0)]


def test_of_several_variants_ahead_one_is_not_first_for_having_had_no_time_to_fall(tmp_path):
    early, late = (10.0, 480.0, 470.0, 500.0), (10.0, 20.0, 30.0, 480.0)
    curves = {"base": [NEVER] * 8, "early": [early] * 8, "late": [late] * 8}
    assert choice.choose(Results.read(store(tmp_path / "s", curves, seeds=8))).variant == "early"


def test_a_broken_run_has_fallen_if_it_had_reached_the_threshold(tmp_path):
    broke = (10.0, 480.0, NAN, NAN)
    there = Results.read(store(tmp_path / "s", {"base": [GOOD] * 6, "wild": [broke] * 6}))
    assert choice.watched(there, ["wild", "base"]) == [(6, 6), (0, 6)]


def test_counts_are_told_with_the_number_of_variants_that_they_are_not_adjusted_for(tmp_path):
    curves = {"base": [NEVER] * 8, "good": [GOOD] * 8, "late": [LATE] * 8}
    reason = choice.choose(Results.read(store(tmp_path / "s", curves, seeds=8))).reason
    assert "8 of 8 (68% to 100%) against 0 of 8 (0% to 32%), not adjusted for 2 variants compared" in reason


def test_a_prediction_that_was_changed_after_runs_is_not_told_as_made_before_them(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 6}, prediction="It falls.")
    assert "<b>Predicted before the runs</b> It falls." in report.report(Results.read(there).store).page
    asked = there.facts["asked"] | {"prediction": "It holds.", "solved": 450.0}
    for _ in range(2):  # the second time nothing is changed
        start.run(definition.make(asked, "s"), tmp_path / "s", resume=True, quiet=True)
    there = Store.open(tmp_path / "s")
    assert there.facts["changes"] == [
        {"field": "prediction", "before": "It falls.", "after": "It holds.", "runs": 6},
        {"field": "solved", "before": 475.0, "after": 450.0, "runs": 6},
    ]
    told = report.report(there)
    assert "<b>Prediction, changed after 6 runs; before any run it said “It falls.”</b> It holds." in told.page
    assert "Predicted before the runs" not in told.page + told.twin
    assert "The threshold was changed from 475 to 450 after 6 runs" in told.page


def test_a_threshold_that_came_after_the_validation_is_the_one_of_both(tmp_path):
    there = store(tmp_path / "s", {"base": [NEVER] * 8, "good": [GOOD] * 8}, seeds=8, solved=None)
    store(tmp_path / "s" / "validation", {"base": [NEVER] * 8, "good": [GOOD] * 8}, seeds=8, first_seed=8, solved=None)
    there.update(solved=475.0)
    assert "Held-out seeds (8 to 15) agree: 8 of 8 runs ended at 475 or more" in report.report(there).twin


def test_counts_whose_intervals_overlap_decide_nothing(tmp_path):
    # 6 of 6 (61% to 100%) against 4 of 6 (30% to 90%) solved at the end, curves alike
    curves = {"base": [GOOD, GOOD, GOOD, GOOD, NEVER, NEVER], "more": [GOOD] * 6}
    assert choice.choose(Results.read(store(tmp_path / "s", curves))).variant == "base"


def test_the_curve_decides_last(tmp_path):
    slow = (10.0, 20.0, 480.0, 500.0)
    chosen = choice.choose(Results.read(store(tmp_path / "s", {"base": [slow] * 6, "fast": [GOOD] * 6})))
    assert chosen.variant == "fast"
    assert "the return over the curve" in chosen.reason


def test_variants_with_missing_or_more_broken_runs_are_not_chosen(tmp_path):
    slow = (10.0, 20.0, 480.0, 500.0)
    curves = {"base": [slow] * 8, "few": [GOOD] * 7, "wild": [GOOD] * 7 + [(1.0, NAN, NAN, NAN)]}
    assert choice.choose(Results.read(store(tmp_path / "s", curves, seeds=8))).variant == "base"


def test_variants_of_unequal_budgets_are_said_to_be(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 4, "short": [GOOD[:3]] * 4}, seeds=4)
    assert any("not for the same budget" in line for line in verdict(Results.read(there)).caveats)


def test_a_variant_that_failed_half_way_is_incomplete_and_is_said_to_be(tmp_path):
    slow = (10.0, 20.0, 480.0, 500.0)
    there = store(tmp_path / "s", {"base": [slow] * 8, "few": [GOOD] * 7}, seeds=8)
    there.failed(Failure("few", "out of memory"))
    results = Results.read(there)
    assert results.missing == {"few": [7]}
    assert choice.choose(results).variant == "base"
    caveats = " ".join(verdict(results).caveats)
    assert "“few” could not be run to the end; the figures cover the runs before that." in caveats
    assert "no figures" not in caveats


def test_nothing_is_chosen_while_runs_of_the_base_are_missing(tmp_path):
    there = store(tmp_path / "s", {"base": [NEVER] * 5, "good": [GOOD] * 6})
    assert choice.choose(Results.read(there)) is None
    write(there, {"base": {5: NEVER}})
    assert choice.choose(Results.read(there)).variant == "good"


def test_control_characters_in_a_name_do_not_break_the_figures(tmp_path):
    told = report.report(store(tmp_path / "s", {"base": [GOOD] * 6, "a\x1bb": [LATE] * 6}))
    for figure in told.figures.values():
        ET.fromstring(figure)
