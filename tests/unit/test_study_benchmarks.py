"""The table of validated sections: a row written in its place, in a file that loses nothing."""

import re
from pathlib import Path

import pytest

from quantilax.errors import ConfigError
from quantilax.reports import benchmark_table as benchmarks
from quantilax.reports import recommend, sections
from quantilax.reports.benchmark_table import BELOW_HEADER, HEADER, PAGE, TITLES, label, put_row, row_of
from quantilax.reports.results import Results
from quantilax.studies import start
from quantilax.studies.store import Store
from tests.studies import FALLS, GOOD, LATE, NEVER, START, store, write

FILE = Path("b.md")


def row(first: str, word: str = "x") -> list[str]:
    return [first, *[word] * (len(TITLES) - 1)]


def line(variants: list[str]) -> str:
    return f"| {' | '.join(variants)} |"


A, B, C = ("`a.yaml iqn`", "`a.yaml iqn_other`", "`b.yaml iqn`")
ABOVE = "# Mine\n\nSome *words*.  \n\n| another | table |\n|---|---|\n| `a.yaml iqn` | kept |\n\n"
BELOW = "\nMore words,\twith a tab\n\n| `a.yaml iqn` | of no table |\n\x0b\u2028"
TABLE = "\n".join((HEADER, BELOW_HEADER, line(row(A)), line(row(B)), line(row(C)), ""))


# The file


def test_a_new_file_says_what_it_is_and_holds_the_row():
    text = put_row("", FILE, row(A))
    assert text == PAGE + "\n".join((HEADER, BELOW_HEADER, line(row(A)), ""))
    for words in ("held-out seeds", "quantilax recommend", "last policy, not of the best checkpoint", "95%"):
        assert words in PAGE


@pytest.mark.parametrize("first", [A, B, C])
def test_a_row_takes_the_place_of_its_own_and_all_else_stays(first):
    text = put_row(ABOVE + TABLE + BELOW, FILE, row(first, "new"))
    assert text == ABOVE + TABLE.replace(line(row(first)), line(row(first, "new"))) + BELOW
    assert put_row(text, FILE, row(first, "new")) == text


@pytest.mark.parametrize("below", [BELOW, ""])
def test_a_row_that_is_new_comes_at_the_tables_end(below):
    text = put_row(ABOVE + TABLE + below, FILE, row("`c.yaml iqn`"))
    assert text == ABOVE + TABLE + line(row("`c.yaml iqn`")) + "\n" + below


def test_a_table_without_rows_gets_its_first():
    assert (
        put_row(f"{HEADER}\n{BELOW_HEADER}\n\nend", FILE, row(A)) == f"{HEADER}\n{BELOW_HEADER}\n{line(row(A))}\n\nend"
    )


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_file_without_the_table_gets_it_at_its_end(end):
    before = ABOVE.rstrip("\n") + end
    text = put_row(before, FILE, row(A))
    assert text.startswith(before)
    assert text[len(before) :].lstrip("\n") == "\n".join((HEADER, BELOW_HEADER, line(row(A)), ""))
    assert text[: text.index(HEADER)].endswith("\n\n"), "Markdown takes no table right below a paragraph"
    assert put_row(text, FILE, row(A)) == text


def test_another_header_is_another_table():
    other = HEADER.replace("| date |", "| day |")
    text = put_row(f"{other}\n{BELOW_HEADER}\n{line(row(A))}\n", FILE, row(A, "new"))
    assert text.startswith(f"{other}\n{BELOW_HEADER}\n{line(row(A))}\n\n{HEADER}\n")


def test_line_ends_of_windows_stay():
    before = "\ufeff" + (ABOVE + TABLE + BELOW).replace("\n", "\r\n")
    for first in (B, "`c.yaml iqn`"):
        text = put_row(before, FILE, row(first, "new"))
        assert "\n" not in text.replace("\r\n", "")
        if first == B:
            assert text == before.replace(line(row(B)), line(row(B, "new")))
        else:
            assert text.replace(line(row(first, "new")) + "\r\n", "") == before
    new = put_row(ABOVE.replace("\n", "\r\n"), FILE, row(A))
    assert "\n" not in new.replace("\r\n", "")


@pytest.mark.parametrize("first", [C, "`c.yaml iqn`"])
def test_a_file_that_ends_in_the_table_without_a_line_end_still_does(first):
    text = put_row(TABLE.rstrip("\n"), FILE, row(first, "new"))
    assert text == put_row(TABLE, FILE, row(first, "new")).rstrip("\n")


def test_a_row_that_someone_aligned_is_found():
    aligned = line(row(A)).replace(A, f"  {A}    ")
    text = put_row(TABLE.replace(line(row(A)), aligned).replace("|---", "| :-: "), FILE, row(A, "new"))
    assert text == TABLE.replace("|---", "| :-: ").replace(line(row(A)), line(row(A, "new")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TABLE + "\n" + TABLE, "has the table of sections twice; delete one, or choose another --benchmarks"),
        (TABLE.replace(BELOW_HEADER + "\n", ""), "its table of sections has no line |---|"),
        (TABLE.replace(BELOW_HEADER, "|---|---|"), "its table of sections has no line |---|"),
        (HEADER, "its table of sections has no line |---|"),
        (TABLE.replace(B, A), "has 2 rows of `a.yaml iqn`; delete all but one, or choose another --benchmarks"),
    ],
)
def test_a_table_that_cannot_be_edited_is_refused(text, words):
    with pytest.raises(ConfigError, match=rf"^b\.md: {re.escape(words)}") as refusal:
        put_row(text, FILE, row(A))
    assert "\n" not in str(refusal.value)


# The row


def test_a_row_tells_the_figures_of_the_held_out_seeds(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD, FALLS, LATE, GOOD, GOOD, NEVER]}, first_seed=100)
    told = row_of("first", Results.read(there), "base", [*range(100, 105), 110], "abc+", "2026-11-22")
    # Wilson, z^2 = 3.84: 5 of 6 are 44% to 97%, 1 of 5 is 4% to 62%. Solved for good: 100, 300, 300, 100, 100, never.
    assert told[:4] == ["first", "`probe/corridor`", "300", "6: 100 to 104, 110"]
    assert told[4].startswith("495.0 (")  # of 40, 490, 490, 500, 500, 500 the middle four
    assert told[5:9] == ["40.0", "5 of 6 at 475 or more (44% to 97%)", "1 of 5 (4% to 62%)", "200 (100 to never)"]
    assert told[9:11] == ["`abc+`", "2026-11-22"]
    assert told[11].startswith("`")
    assert len(told) == len(TITLES)


def test_a_study_without_threshold_has_dashes_for_what_solving_is(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 3}, seeds=3, solved=None)
    assert row_of("first", Results.read(there), "base", [0, 1, 2], "abc", "")[6:9] == ["-"] * 3


def test_runs_that_never_reached_the_threshold_have_a_dash_for_falls(tmp_path):
    there = store(tmp_path / "s", {"base": [NEVER] * 3}, seeds=3)
    assert row_of("first", Results.read(there), "base", [0, 1, 2], "abc", "")[7:9] == ["-", "never"]


def test_a_config_file_is_named_from_the_current_directory_or_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for config in ("configs/x.yaml", "../here/configs/x.yaml", tmp_path / "here" / "configs" / "x.yaml"):
        assert label(Path(config), "iqn") == "`configs/x.yaml iqn`"
    assert label(tmp_path / "x.yaml", "iqn") == label(Path("../x.yaml"), "iqn") == "`x.yaml iqn`"


def test_names_with_pipes_and_backticks_stay_in_their_variant_and_find_their_row(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    piped, ticked = label(Path("x.yaml"), "a|b"), label(Path("x.yaml"), "a`b\nc")
    assert (piped, ticked) == (r"`x.yaml a\|b`", "`` x.yaml a`b c ``")
    text = put_row(put_row(TABLE, FILE, row(piped)), FILE, row(ticked))
    for first in (piped, ticked):
        assert put_row(text, FILE, row(first, "new")) == text.replace(line(row(first)), line(row(first, "new")))


def test_a_command_with_pipes_stays_in_its_variant(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["quantilax", "recommend", "a|b"])
    there = store(tmp_path / "s", {"base": [GOOD] * 3}, seeds=3)
    assert row_of("first", Results.read(there), "base", [0], "abc", "")[11] == r"`quantilax recommend 'a\|b'`"


# With a recommendation


@pytest.fixture
def found(tmp_path, monkeypatch):
    """`fast` wins, and the held-out runs come to `ends`, which a test may change."""
    monkeypatch.chdir(tmp_path)
    ends = {"base": LATE, "fast": GOOD}
    there = store(tmp_path / "s", {"base": [LATE] * 8, "fast": [GOOD] * 8}, seeds=8)

    def run(study, out, **_):
        made = Store.create(out, study, jobs=1, width=1, starts=[START], status="finished")
        write(made, {variant.name: dict.fromkeys(study.seeds, ends[variant.name]) for variant in study.variants})
        return made

    monkeypatch.setattr(start, "run", run)
    return there, ends


def test_a_recommendation_that_holds_gets_its_row(found):
    there, _ = found
    Path("b.md").write_text(ABOVE + TABLE + BELOW, encoding="utf-8")
    told = recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.md"), seeds=8)
    assert told.judgement.holds
    text = Path("b.md").read_text(encoding="utf-8")
    (new,) = set(text.splitlines()) - set((ABOVE + TABLE + BELOW).splitlines())
    assert new.startswith(
        "| `a.yaml iqn` | `probe/corridor` | 300 | 8: 8 to 15 | 500.0 (500.0 to 500.0) | 500.0 | 8 of 8 at"
    )
    assert f"| `{START['commit']}` | 2026-11-22 | `" in new
    assert text == ABOVE + TABLE.replace(line(row(A)), new) + BELOW


def test_a_recommendation_that_is_contradicted_gets_no_row(found):
    there, ends = found
    ends["fast"] = NEVER
    assert not recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.md"), seeds=8).judgement.holds
    assert not Path("b.md").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"write": None}, "--benchmarks: a row tells of a section that is written; name its file with --write"),
        ({"benchmarks": "no/b.md"}, "no/b.md: there is no directory no; make it, or choose another --benchmarks"),
        ({"benchmarks": "binary.md"}, "binary.md: is no text file in UTF-8; choose another --benchmarks"),
        ({"benchmarks": "s"}, "s: cannot be read: Is a directory; choose another --benchmarks"),
        ({"benchmarks": "twice.md"}, "twice.md: has the table of sections twice"),
        ({"benchmarks": "./a.yaml"}, "a.yaml: is the file of --write too; choose another --benchmarks"),
    ],
)
def test_a_row_that_cannot_be_written_is_refused_before_anything_runs(found, monkeypatch, options, words):
    there, _ = found
    monkeypatch.setattr(start, "run", lambda *_, **__: pytest.fail("it runs"))
    Path("binary.md").write_bytes(b"\x89PNG\xff")
    Path("twice.md").write_text(TABLE * 2)
    asked = {
        name: value and Path(value) for name, value in ({"write": "a.yaml", "benchmarks": "b.md"} | options).items()
    }
    with pytest.raises(ConfigError) as refusal:
        recommend.recommend(there, **asked)
    assert str(refusal.value).startswith(words)
    assert not Path("a.yaml").exists()


def test_a_row_that_became_impossible_meanwhile_leaves_the_config_as_it_was(found, monkeypatch):
    there, _ = found
    run = start.run

    def meddled(*arguments, **options):
        Path("b.md").write_text(TABLE * 2)
        return run(*arguments, **options)

    monkeypatch.setattr(start, "run", meddled)
    with pytest.raises(ConfigError, match="twice"):
        recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.md"), seeds=8)
    assert not Path("a.yaml").exists()


def test_the_page_is_written_as_configs_are(found, monkeypatch):
    there, _ = found
    Path("real.md").write_text(TABLE)
    Path("real.md").chmod(0o640)
    Path("b.md").symlink_to("real.md")
    recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.md"), seeds=8)
    assert Path("b.md").is_symlink()
    assert Path("real.md").stat().st_mode & 0o777 == 0o640
    assert Path("real.md").read_text() != TABLE

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match=r"b\.md: cannot be written: No space left on device; choose another --bench"):
        sections.write(Path("b.md"), benchmarks.PAGE, "--benchmarks")
