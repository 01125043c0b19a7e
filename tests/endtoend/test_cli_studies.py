"""A study from outside: run, its table, its report in a browser, and a section recommended into a config file."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
import yaml

from quantilax import runs
from quantilax.errors import ConfigError
from quantilax.runs import provenance
from quantilax.studies.store import Store
from tests.endtoend.browser import BROWSER, browse, probed
from tests.endtoend.conftest import TINY, Call, tree
from tests.endtoend.processes import Ended, process
from tests.studies import FALLS, GOOD, LATE, NAN, NEVER, store

STUDY = """\
question: Does a shorter horizon hurt?
prediction: It does not.
base: {config: tiny.yaml, section: iqn}
variants:
  named: {short: {gamma: 0.5}}
seeds: 3
solved: 0.5
"""


class Done(NamedTuple):
    """The outcomes of a study's commands, in order."""

    root: Path
    study: Ended
    report: Ended
    recommend: Ended


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root, cache = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("cache")
    (root / "tiny.yaml").write_text(TINY)
    (root / "s.yaml").write_text(STUDY)
    study = process(root, cache, "study", "s.yaml", "--out", "s", "--jobs", "1")
    report = process(root, cache, "report", "s")
    options = ("--variant", "base", "--seeds", "2", "--write", "tiny.yaml", "--section", "iqn_kept")
    options += ("--benchmarks", "b.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", os.devnull)  # as an installed package, whatever changes this checkout has
        return Done(root, study, report, process(root, cache, "recommend", "s", *options))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let commands in this process find no checkout either."""
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)


def test_a_study_ends_with_its_table_and_says_how_to_get_a_report(done: Done):
    assert (done.study.status, [line for line in done.study.lines if line.startswith("warning")]) == (0, [])
    out = done.study.stdout
    assert out.splitlines()[0].split()[:2] == ["variant", "n"]
    for row in Store.open(done.root / "s").summary().iter_rows(named=True):
        line = next(line for line in out.splitlines() if line.startswith(row["variant"]))
        assert line.split()[1] == "3"
        assert f"{row['final_iqm']:.3f}" in line
    assert "With so few seeds, no difference could have been detected" in out
    assert out.splitlines()[-1] == "results in s; make a report with: quantilax report s"


def test_a_report_lies_beside_the_results(done: Done):
    assert (done.report.status, done.report.lines) == (0, [])
    assert done.report.stdout == "s/report.html and s/report.md\n"
    page = (done.root / "s" / "report.html").read_text()
    assert "Does a shorter horizon hurt?" in page
    assert "quantilax study s.yaml --out s" in page
    assert "![Learning curves" in (done.root / "s" / "report.md").read_text()
    assert (done.root / "s" / "report-curves.svg").exists()


def test_a_validated_section_stands_in_the_file_and_trains(done: Done, call: Call, tmp_path):
    assert (done.recommend.status, done.recommend.stdout.splitlines()[-2:]) == (
        0,
        ["written: section iqn_kept of tiny.yaml", "written: record in b.yaml"],
    ), done.recommend
    text = (done.root / "tiny.yaml").read_text()
    assert text.startswith(TINY)
    assert "held-out seeds 3, 4 (n = 2)" in text
    assert "--write tiny.yaml --section iqn_kept" in " ".join(text.replace("#: ", "").split())
    sections = yaml.safe_load(text)
    assert sections["iqn_kept"] == Store.open(done.root / "s").facts["variants"]["base"]
    validation = Store.open(done.root / "s" / "validation")
    assert validation.records().select(pl.col("seed").unique().sort())["seed"].to_list() == [3, 4]
    (tmp_path / "new.yaml").write_text(text)
    ended = call("train", "new.yaml", "iqn_kept", "--dry-run")
    assert (ended.status, ended.stderr) == (0, "")


def test_a_validated_section_has_its_record(done: Done):
    (record,) = yaml.safe_load((done.root / "b.yaml").read_text())
    assert (record["config"], record["section"]) == ("tiny.yaml", "iqn_kept")
    assert (record["environment"], record["steps"], record["n"], record["seeds"]) == ("probe/corridor", 300, 2, "3, 4")
    summary = Store.open(done.root / "s" / "validation").summary().row(0, named=True)
    assert record["return_at_end"].startswith(f"{summary['final_iqm']:.3f}")
    assert record["lowest_at_end"] == f"{summary['final_min']:.3f}"
    assert record["command"].startswith(
        "quantilax recommend s --variant base --seeds 2 --write tiny.yaml --section iqn_kept"
    )


def test_a_section_is_validated_by_the_file_of_a_study_that_has_nothing_to_choose(call: Call, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "one.yaml").write_text("base: {config: tiny.yaml, section: iqn}\nseeds: 1\n")
    options = ("--seeds", "2", "--write", "tiny.yaml", "--benchmarks", "b.yaml", "--quiet")
    ended = call("recommend", "one.yaml", "--out", "one", *options)
    assert (ended.status, ended.stdout.splitlines()[0]) == (0, "base: the study has no other variant"), ended
    assert "held-out seeds 1, 2 (n = 2)" in (tmp_path / "tiny.yaml").read_text()
    assert "config: tiny.yaml\n  section: iqn\n" in (tmp_path / "b.yaml").read_text()
    assert Store.open(tmp_path / "one").records().is_empty()
    report = call("report", "one")
    assert report.status == 0, report
    assert "Held-out seeds (1, 2) agree" in (tmp_path / "one" / "report.md").read_text()


@pytest.mark.parametrize(
    "command",
    [("recommend", "s", "--seeds", "2"), ("study", "s.yaml", "--out", "s/validation", "--resume", "--jobs", "2")],
)
def test_what_was_begun_gets_as_many_devices_as_it_was_begun_with(call: Call, tmp_path, monkeypatch, command):
    def use(number, **_):
        raise ConfigError(f"asked for {number}")

    store(tmp_path / "s", {"base": [GOOD] * 6})
    store(tmp_path / "s" / "validation", {"base": [GOOD] * 6}).update(jobs=7)
    (tmp_path / "s.yaml").write_text(STUDY)
    monkeypatch.setattr(runs, "use_all_cores", use)
    assert call(*command).stderr == "error: asked for 7\n"


def test_a_recommendation_that_is_contradicted_ends_with_status_1_and_writes_nothing(call: Call, tmp_path, monkeypatch):
    store(tmp_path / "s", {"base": [NEVER] * 6, "fast": [GOOD] * 6})  # of curves that training does not give
    (tmp_path / "x.yaml").write_text(TINY)
    ended = call("recommend", "s", "--seeds", "2", "--write", "x.yaml", "--benchmarks", "b.yaml", "--quiet")
    assert ended.status == 1
    assert ended.stderr.startswith("held-out seeds 6, 7 contradict the study: it is not ahead of “base” there")
    assert ended.stderr.endswith("; nothing is written\n")
    assert (tmp_path / "x.yaml").read_text() == TINY
    assert not (tmp_path / "b.yaml").exists()


def test_a_section_is_not_written_while_the_checkout_has_changes(call: Call, tmp_path, monkeypatch):
    store(tmp_path / "s", {"base": [NEVER] * 6, "fast": [GOOD] * 6})
    monkeypatch.setattr(provenance, "changes", lambda: ["src/quantilax/train.py"])
    before = tree(tmp_path)
    ended = call("recommend", "s", "--seeds", "2", "--write", "x.yaml", "--benchmarks", "b.yaml", "--quiet")
    assert ended.status == 2
    assert ended.stderr.startswith(f"error: {tmp_path}: src/quantilax/train.py: not committed; commit first")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nowhere"], "error: nowhere: is not a study directory: it has no study.json"),
        (["report", "tiny.yaml"], "error: tiny.yaml: is not a study directory: it has no study.json"),
        (
            ["report", "s", "--out", "tiny.yaml"],
            "error: tiny.yaml: cannot be written: File exists; choose another --out",
        ),
        (["report"], "error: Missing argument 'DIR'."),
        (["recommend", "nowhere"], "error: nowhere: is not a study directory"),
        (
            ["recommend", "s", "--first-seed", "0"],
            "error: --first-seed: seed 0 to 5 chose the variant, and cannot validate it",
        ),
        (["recommend", "s", "--variant", "bse"], "error: s: no variant 'bse'; did you mean 'base'?"),
        (
            ["recommend", "s", "--write", "no/x.yaml"],
            "error: no/x.yaml: the directory no does not exist; create it, or choose another",
        ),
        (
            ["recommend", "s", "--write", "flow.yaml"],
            "error: flow.yaml: section 'iqn' cannot be inserted without changing the",
        ),
        (["recommend", "s", "--benchmarks", "b.yaml"], "error: --benchmarks: only a written section is recorded"),
        (
            ["recommend", "s", "--write", "x.yaml", "--benchmarks", "s"],
            "error: s: cannot be read: Is a directory; choose another --benchmarks",
        ),
        (["recommend", "s", "--seeds", "0"], "error: Invalid value for '--seeds'"),
        (["recommend", "s", "--out", "t"], "error: --out: s is already the results directory; leave --out out"),
        (["recommend", "none.yaml"], "error: none.yaml: no such file"),
        (
            ["recommend", "s.yaml", "--out", "t"],
            "error: s.yaml: has 2 variants to choose among; run it with quantilax study",
        ),
        (
            ["recommend", "one.yaml", "--out", "t", "--write", "flow.yaml"],
            "error: flow.yaml: section 'iqn' cannot be inserted",
        ),
        (["recommend", "half"], "error: half: runs of the base are missing; finish the study with --resume first"),
    ],
)
def test_what_users_get_wrong_is_one_line_and_changes_nothing(call: Call, tmp_path, arguments, words):
    store(tmp_path / "s", {"base": [GOOD] * 6, "low": [NEVER] * 6})
    store(tmp_path / "half", {"base": [GOOD] * 2, "low": [NEVER] * 2})
    (tmp_path / "flow.yaml").write_text("iqn: {env: probe/corridor}\n")
    (tmp_path / "s.yaml").write_text(STUDY)
    (tmp_path / "one.yaml").write_text("base: {config: tiny.yaml, section: iqn}\n")
    before = tree(tmp_path)
    ended = call(*arguments)
    assert ended.status == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(words)
    assert tree(tmp_path) == before


def test_a_damaged_file_of_records_is_named(call: Call, tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 6})
    part = there.path / "records" / "000000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    ended = call("report", "s")
    assert ended.status == 2
    assert re.match(
        r"error: s/records/000000\.parquet: is damaged .*; move it elsewhere and continue with --resume$",
        ended.stderr,
    )


# In a browser

PROBE = """
<script>
const failed = [];
addEventListener("error", event => failed.push(event.message));
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  const press = title => {
    const head = [...table.tHead.rows[0].cells].find(head => head.textContent === title);
    head.querySelector("button").click();
    return [head.getAttribute("aria-sort"), names()];
  };
  const told = {before: names(), width: document.documentElement.clientWidth};
  told.scroll = document.documentElement.scrollWidth;
  told.sorted = ["return at the end", "return at the end", "solved for good", "variant", "better at the end"].map(press);
  const seed = [...document.querySelectorAll("svg.figure .seeds path")].find(path => path.dataset.tip);
  seed.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 5, clientY: 5}));
  told.tip = document.getElementById("tip").textContent;
  told.tipShown = !document.getElementById("tip").hidden;
  told.failed = failed;
  parent.postMessage(told, "*");
});
</script>
"""


@pytest.mark.validation
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser_on_desktop_and_phone(call: Call, tmp_path):
    name = "a_name_without_any_place_to_break_it_that_is_longer_than_a_phone_is_wide"
    broken = (10.0, 480.0, NAN, NAN)
    curves = {
        "base": [GOOD, FALLS, GOOD, LATE, GOOD, GOOD],
        name: [NEVER] * 6,
        "wild": [FALLS, LATE, broken, LATE, FALLS, LATE],
    }
    there = store(tmp_path / "s", curves, question=f"Is {name} wide?")
    there.update(
        starts=[{**start, "command": f"quantilax study {'very-' * 60}long.yaml"} for start in there.facts["starts"]]
    )
    assert call("report", "s").status == 0
    page = tmp_path / "s" / "report.html"

    seen = browse(page)
    assert "CONSOLE" not in seen.stderr, seen.stderr  # errors of scripts, and what the page's own policy refused
    assert 'id="tip"' in seen.stdout

    told = probed(page, PROBE, (1280, 390))
    for width, found in told.items():
        assert found["failed"] == []
        assert found["scroll"] == int(width), "the body scrolls sideways"
        assert found["before"] == ["base", name, "wild"]
        assert found["sorted"] == [
            ["descending", ["base", "wild", name]],
            ["ascending", [name, "wild", "base"]],
            ["ascending", ["base", "wild", name]],  # soonest first
            ["ascending", [name, "base", "wild"]],
            ["descending", ["wild", name, "base"]],  # the base has none: last
        ]
        assert found["tipShown"]
        assert found["tip"].startswith("seed 0: 500.0 at the end")
