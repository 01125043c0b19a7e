"""Records of validated sections: written in place, in a file that loses nothing, and made into a table."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from quantilax.errors import ConfigError
from quantilax.reports import recommend, sections
from quantilax.reports.results import Results
from quantilax.reports.validated import HEADER, Record, named, parse, put, record, written
from quantilax.runs import provenance
from quantilax.studies import start
from quantilax.studies.store import Store
from tests.studies import FALLS, GOOD, LATE, NEVER, START, store, write

FILE = Path("b.yaml")
ROOT = Path(__file__).resolve().parents[2]


def of(config: str, section: str, **fields) -> Record:
    """A record with a value for each field."""
    numbers = {"steps": 100_000, "n": 20, "solved": 475.0}
    values = {name: numbers.get(name, "2026-11-22") for name in Record._fields}
    return Record(**{**values, "commits": ["abc", "def"], **fields, "config": config, "section": section})


A, B, C = of("a.yaml", "iqn"), of("a.yaml", "iqn_other", ended_solved=None), of("b.yaml", "iqn")
D = of("c.yaml", "iqn", fell=None, command="quantilax recommend 'a|b': #c", seeds="0 to 3, 064")
TEXT = written([A, B, C])


# The file


def test_a_new_file_says_what_it_is_and_holds_the_record():
    text = written(put(parse("", FILE), A))
    assert text.startswith(HEADER)
    for words in ("held-out seeds", "quantilax recommend"):
        assert words in HEADER
    assert parse(text, FILE) == [A]


def test_what_is_written_is_read_back_and_by_any_reader_of_yaml():
    records = [A, B, C, D]
    assert parse(written(records), FILE) == records
    assert [Record(**fields) for fields in yaml.safe_load(written(records))] == records


@pytest.mark.parametrize("there", [A, B, C])
def test_a_record_takes_the_place_of_its_own_and_all_else_stays(there):
    new = there._replace(fell="0 of 20 (0% to 16%)")
    text = written(put(parse(TEXT, FILE), new))
    assert parse(text, FILE) == [new if r == there else r for r in (A, B, C)]
    assert len(set(text.splitlines()) - set(TEXT.splitlines())) == 1
    assert written(put(parse(text, FILE), new)) == text


def test_a_record_that_is_new_comes_at_the_end():
    assert written(put(parse(TEXT, FILE), D)).startswith(TEXT)
    assert parse(written(put(parse(TEXT, FILE), D)), FILE)[-1] == D


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (written([A, B, A]), "b.yaml: has 2 records of a.yaml iqn; delete all but one"),
        (TEXT.replace("  fell:", "  felt:", 1), "b.yaml: is not a list of records with the fields config, section,"),
        (TEXT.replace("- config:", "-\n- config:", 1), "b.yaml: is not a list of records"),
        ("iqn:\n  env: CartPole-v1\n", "b.yaml: is not a list of records"),
        ("# Benchmarks\n\n| section |\n|---|\n", "b.yaml, line 3: broken YAML"),
        ("- [\n", "b.yaml, line 2: broken YAML"),
    ],
)
def test_a_file_of_something_else_is_refused(text, words):
    with pytest.raises(ConfigError, match=rf"^{re.escape(words)}") as refusal:
        parse(text, FILE)
    assert "\n" not in str(refusal.value)


# The record


def made(path: Path, counted: list[int], **says) -> Record:
    there = Results.read(store(path / "s", **says))
    return record(Path("x.yaml"), "iqn", path / "s", there, "base", counted, ["abc", "def"], "2026-11-22")


def test_a_record_tells_the_figures_of_the_held_out_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curves = {"base": [GOOD, FALLS, LATE, GOOD, GOOD, NEVER]}
    told = made(tmp_path, [*range(100, 105), 110], curves=curves, first_seed=100)
    # Wilson, z^2 = 3.84: 5 of 6 are 44% to 97%, 1 of 5 is 4% to 62%. Solved for good: 100, 300, 300, 100, 100, never.
    assert (told.config, told.section, told.environment, told.steps) == ("x.yaml", "iqn", "probe/corridor", 300)
    assert (told.n, told.seeds, told.solved) == (6, "100 to 104, 110", 475.0)
    assert told.return_at_end.startswith("495.0 (")  # of 40, 490, 490, 500, 500, 500 the middle four
    assert told.lowest_at_end == "40.0"
    assert (told.ended_solved, told.fell) == ("5 of 6 (44% to 97%)", "1 of 5 (4% to 62%)")
    assert told.solved_for_good == "200 (100 to never)"
    assert (told.commits, told.date, told.study, told.variant) == (["abc", "def"], "2026-11-22", "s", "base")
    assert parse(written([told]), FILE) == [told]


def test_a_study_without_threshold_has_nothing_for_what_solving_is(tmp_path):
    told = made(tmp_path, [0, 1, 2], curves={"base": [GOOD] * 3}, seeds=3, solved=None)
    assert (told.solved, told.ended_solved, told.fell, told.solved_for_good) == (None, None, None, None)


def test_runs_that_never_reached_the_threshold_have_nothing_for_falls(tmp_path):
    told = made(tmp_path, [0, 1, 2], curves={"base": [NEVER] * 3}, seeds=3)
    assert (told.fell, told.solved_for_good) == (None, "never")


def test_a_config_file_is_named_from_the_current_directory_or_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for config in ("configs/x.yaml", "../here/configs/x.yaml", tmp_path / "here" / "configs" / "x.yaml"):
        assert named(Path(config)) == "configs/x.yaml"
    assert named(tmp_path / "x.yaml") == named(Path("../x.yaml")) == "x.yaml"


@pytest.mark.parametrize("name", ["a|b", "a`b\nc", "yes", "1e3", "- x: #y"])
def test_odd_names_of_sections_find_their_record(name):
    odd = of("x.yaml", name)
    text = written([A, odd, C])
    assert parse(text, FILE) == [A, odd, C]
    assert put(parse(text, FILE), odd._replace(fell=None)) == [A, odd._replace(fell=None), C]


# The table


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_have_a_row_for_each_record_and_say_how_it_was_made(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    solved = of("a.yaml", "iqn", ended_solved="5 of 6 (44% to 97%)", solved=-100.0)
    other = of("a.yaml", "pqn", solved=-100.0)
    none = of("a.yaml", "dqn", solved=None, ended_solved=None, fell=None, solved_for_good=None)
    (tmp_path / "benchmarks.yaml").write_text(written([solved, D, none, other]))
    results, _, made = tables.validated().partition("## How each row was made")
    first, second, third = results.split("### 2026-11-22")[1:]  # by environment, file and threshold
    assert first.startswith("\n\nSections of `a.yaml`. A mean return of -100 or more counts as solved.\n")
    header, below, *rows = [line.split(" | ") for line in first.splitlines() if line.startswith("|")]
    assert len(header) == len(below) == 8
    assert [row[0] for row in rows] == ["| `iqn`", "| `pqn`"]
    assert rows[0][1:3] == ["100,000", "20: 2026-11-22"]
    assert rows[0][5] == "5 of 6 (44% to 97%)"
    assert "`c.yaml`" in second
    (row,) = [line.split(" | ") for line in second.splitlines() if line.startswith("| `")]
    assert row[6] == "-"
    header, _, row = [line.split(" | ") for line in third.splitlines() if line.startswith("|")]
    assert "solved" not in third
    assert len(header) == len(row) == 5
    told = made.strip().split("\n```\n\n")
    assert len(told) == 4
    assert "`a.yaml iqn`, 2026-11-22, `abc`, `def`:\n\n```bash\n" in told[0]
    assert told[1].endswith(":\n\n```bash\nquantilax recommend 'a|b': #c")


def test_a_long_command_is_folded_between_its_options(tables):
    long = "quantilax recommend " + " ".join(f"--option-{i} value{i}" for i in range(9)) + " --flag"
    lines = tables.folded(long).split(" \\\n    ")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 94
    assert " ".join(lines) == long
    assert all(line.startswith("--") for line in lines[1:])


def test_a_commit_keeps_its_sign_of_a_changed_tree(tables):
    assert tables.shortened("0123456789" * 4 + "+") == "0123456789+"
    assert tables.shortened("0123456789" * 4) == "0123456789"


def test_pipes_and_backticks_stay_in_their_cell(tables):
    assert tables.table([["x"], [tables.code("a|b")]]).splitlines()[-1] == r"| `a\|b` |"
    assert tables.code("a`b c") == "`` a`b c ``"


# With a recommendation


@pytest.fixture
def found(tmp_path, monkeypatch):
    """`fast` wins, and the held-out runs come to `ends`, which a test may change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)  # as an installed package
    ends = {"base": LATE, "fast": GOOD}
    there = store(tmp_path / "s", {"base": [LATE] * 8, "fast": [GOOD] * 8}, seeds=8)

    def run(study, out, **_):
        made = Store.create(out, study, jobs=1, width=1, starts=[START], status="finished")
        write(made, {variant.name: dict.fromkeys(study.seeds, ends[variant.name]) for variant in study.variants})
        return made

    monkeypatch.setattr(start, "run", run)
    return there, ends


def test_a_recommendation_that_holds_gets_its_record(found):
    there, _ = found
    FILE.write_text(TEXT, encoding="utf-8")
    told = recommend.recommend(there, write=Path("a.yaml"), benchmarks=FILE, seeds=8)
    assert told.judgement.holds
    new, *others = parse(FILE.read_text(encoding="utf-8"), FILE)
    assert others == [B, C]
    assert new[:6] == ("a.yaml", "iqn", "probe/corridor", 300, 8, "8 to 15")
    assert (new.return_at_end, new.lowest_at_end) == ("500.0 (500.0 to 500.0)", "500.0")
    assert new.ended_solved.startswith("8 of 8 (")
    assert (new.commits, new.date, new.study, new.variant) == ([START["commit"]], "2026-11-22", "s", "fast")


def test_a_recommendation_that_is_contradicted_gets_no_record(found):
    there, ends = found
    ends["fast"] = NEVER
    assert not recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.yaml"), seeds=8).judgement.holds
    assert not Path("b.yaml").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"write": None}, "--benchmarks: only a written section is recorded; name its file with --write"),
        (
            {"benchmarks": "no/b.yaml"},
            "no/b.yaml: the directory no does not exist; create it, or choose another --benchmarks",
        ),
        ({"benchmarks": "binary.yaml"}, "binary.yaml: is not a text file in UTF-8; choose another --benchmarks"),
        ({"benchmarks": "s"}, "s: cannot be read: Is a directory; choose another --benchmarks"),
        ({"benchmarks": "twice.yaml"}, "twice.yaml: has 2 records of a.yaml iqn"),
        ({"benchmarks": "./a.yaml"}, "a.yaml: is also the file of --write; choose another --benchmarks"),
    ],
)
def test_a_record_that_cannot_be_written_is_refused_before_anything_runs(found, monkeypatch, options, words):
    there, _ = found
    monkeypatch.setattr(start, "run", lambda *_, **__: pytest.fail("it runs"))
    Path("binary.yaml").write_bytes(b"\x89PNG\xff")
    Path("twice.yaml").write_text(written([A, A]))
    asked = {
        name: value and Path(value) for name, value in ({"write": "a.yaml", "benchmarks": "b.yaml"} | options).items()
    }
    with pytest.raises(ConfigError) as refusal:
        recommend.recommend(there, **asked)
    assert str(refusal.value).startswith(words)
    assert not Path("a.yaml").exists()


def test_a_record_that_became_impossible_meanwhile_leaves_the_config_as_it_was(found, monkeypatch):
    there, _ = found
    run = start.run

    def meddled(*arguments, **options):
        Path("b.yaml").write_text(written([A, A]))
        return run(*arguments, **options)

    monkeypatch.setattr(start, "run", meddled)
    with pytest.raises(ConfigError, match="2 records"):
        recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.yaml"), seeds=8)
    assert not Path("a.yaml").exists()


def test_the_file_is_written_as_configs_are(found, monkeypatch):
    there, _ = found
    Path("real.yaml").write_text(TEXT)
    Path("real.yaml").chmod(0o640)
    Path("b.yaml").symlink_to("real.yaml")
    recommend.recommend(there, write=Path("a.yaml"), benchmarks=Path("b.yaml"), seeds=8)
    assert Path("b.yaml").is_symlink()
    assert Path("real.yaml").stat().st_mode & 0o777 == 0o640
    assert Path("real.yaml").read_text() != TEXT

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ConfigError, match=r"b\.yaml: cannot be written: No space left on device; choose another --bench"
    ):
        sections.write(Path("b.yaml"), TEXT, "--benchmarks")
