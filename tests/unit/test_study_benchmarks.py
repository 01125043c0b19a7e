"""The page of validated sections: one row per section, and nothing else on the page changes."""

from pathlib import Path

import pytest

from quantilax.pytree import ConfigError
from quantilax.studies import benchmarks, recommend
from quantilax.studies.results import Results
from tests.studies import FALLS, GOOD, LATE, START, store
from tests.unit.test_study_recommend import SLOW, validated_by

CELLS = ["`a.yaml` `iqn`", *"bcdefghijkl"]


@pytest.fixture
def found(tmp_path):
    """`fast` wins by the curve."""
    return store(tmp_path / "s", {"base": [SLOW] * 8, "fast": [GOOD] * 8}, seeds=8)


def test_a_new_page_says_what_it_is_and_has_the_table(tmp_path):
    text = benchmarks.put("", tmp_path / "b.md", CELLS)
    assert text == benchmarks.INTRODUCTION + f"\n{benchmarks.HEADER}\n{benchmarks.RULE}\n{benchmarks.line(CELLS)}\n"
    assert benchmarks.RULE.count("---") == len(benchmarks.COLUMNS) == len(CELLS)


def test_the_row_of_a_section_takes_the_place_of_the_one_before(tmp_path):
    others = [["`a.yaml` `iqn_other`", *"bcdefghijkl"], ["`a.yaml` `pqn`", *"bcdefghijkl"]]
    rows = [others[0], CELLS, others[1]]
    head, tail = f"# Mine\r\n\r\n{benchmarks.HEADER}\r\n{benchmarks.RULE}\r\n", "\r\nAfter | it.\r\n"
    text = head + "".join(benchmarks.line(row) + "\r\n" for row in rows) + tail
    new = [CELLS[0], "another", *CELLS[2:]]
    expected = text.replace(benchmarks.line(CELLS), benchmarks.line(new))
    assert benchmarks.put(text, tmp_path, new) == expected != text


@pytest.mark.parametrize("end", ["", "\n", "\n\nMore words.\n"])
def test_a_section_without_a_row_gets_one_below_the_others(tmp_path, end):
    table = f"{benchmarks.HEADER}\n{benchmarks.RULE}\n{benchmarks.line(CELLS)}"
    new = ["`a.yaml` `pqn`", *CELLS[1:]]
    assert benchmarks.put(table + end, tmp_path, new) == f"{table}\n{benchmarks.line(new)}\n" + end.removeprefix("\n")


def test_a_page_without_the_table_gets_it_at_its_end(tmp_path):
    text = benchmarks.put("Words.\n\n| another | table |\n|---|---|\n", tmp_path, CELLS)
    assert text.startswith("Words.\n\n| another | table |\n|---|---|\n\n" + benchmarks.HEADER)
    assert text.endswith(benchmarks.line(CELLS) + "\n")


def test_a_table_without_its_rule_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"b\.md: the table's header is not followed by"):
        benchmarks.put(benchmarks.HEADER + "\n", tmp_path / "b.md", CELLS)


def test_bars_in_a_cell_do_not_make_columns():
    assert benchmarks.line(["a|b", "c"]) == "| a\\|b | c |"


def test_a_row_tells_the_figures_of_the_held_out_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results.read(store(tmp_path / "s", {"base": [GOOD] * 5 + [FALLS]}, first_seed=20))
    file = tmp_path / "configs" / "x.yaml"
    row = dict(zip(benchmarks.COLUMNS, benchmarks.row(results, "base", file, "iqn"), strict=True))
    assert row["section"] == "`configs/x.yaml` `iqn`"
    assert row["held-out seeds"] == "20 to 25 (n = 6)"
    assert row["lowest at the end"] == "490.0"
    assert row["solved at the end"] == "6 of 6 (61% to 100%) at 475"
    assert row["fell"] == "1 of 6 (3% to 56%)"
    assert row["solved for good, median step"].startswith("100")
    assert (row["commit"], row["date"]) == (START["commit"][:12], START["date"][:10])


def test_a_study_without_a_threshold_says_nothing_of_solving(tmp_path):
    results = Results.read(store(tmp_path / "s", {"base": [GOOD, LATE] * 3}, solved=None))
    row = dict(zip(benchmarks.COLUMNS, benchmarks.row(results, "base", tmp_path / "x.yaml", "iqn"), strict=True))
    assert {row[name] for name in ("solved at the end", "fell", "solved for good, median step")} == {"-"}
    assert row["return at the end, IQM"] == "495.0 (490.0 to 500.0)"


def test_a_recommendation_that_holds_is_put_on_the_page_and_one_that_does_not_is_not(found, tmp_path, monkeypatch):
    file, page = tmp_path / "x.yaml", tmp_path / "b.md"
    validated_by(monkeypatch, {"base": GOOD, "fast": SLOW})
    recommend.recommend(found, write=file, benchmarks=page, seeds=8)
    assert not page.exists()
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    recommend.recommend(
        store(tmp_path / "t" / "t", {"base": [SLOW] * 8, "fast": [GOOD] * 8}, seeds=8),
        write=file,
        benchmarks=page,
        seeds=8,
    )
    assert page.read_text().count("| `x.yaml` `iqn` |") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(benchmarks="b.md"), r"--benchmarks: tells of a section that was written; give --write too"),
        (
            dict(benchmarks="no/b.md", write="x.yaml"),
            r"there is no directory no; make it, or choose another --benchmarks",
        ),
        (dict(benchmarks="bad.md", write="x.yaml"), r"bad\.md: the table's header is not followed by"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_runs(found, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.md").write_text(benchmarks.HEADER)
    asked = validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    with pytest.raises(ConfigError, match=words):
        recommend.recommend(found, seeds=8, **{name: Path(value) for name, value in options.items()})
    assert asked == []
