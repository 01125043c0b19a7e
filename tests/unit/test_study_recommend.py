"""A recommended section: validated on seeds that did not choose it, and put into a file that loses nothing."""

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from quantilax.errors import ConfigError
from quantilax.host import strict_yaml
from quantilax.reports import choice, recommend, sections
from quantilax.reports import pages as report
from quantilax.reports.results import Results
from quantilax.runs import load_section, provenance
from quantilax.studies import start
from quantilax.studies.definition import plain
from quantilax.studies.store import Store
from tests.endtoend.conftest import TINY
from tests.studies import FALLS, GOOD, LATE, NEVER, START, store, write

SLOW = (10.0, 20.0, 480.0, 500.0)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A directory in the place of quantilax's checkout, without git: as an installed package."""
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    return tmp_path


@pytest.fixture
def found(tmp_path):
    """`fast` wins by the curve."""
    return store(tmp_path / "s", {"base": [SLOW] * 8, "fast": [GOOD] * 8}, seeds=8)


def validated_by(monkeypatch, curves):
    """Let the held-out runs come to these curves, and note which seeds were asked for."""
    asked = []

    def run(study, out, **_):
        asked.append((tuple(variant.name for variant in study.variants), study.seeds))
        there = Store.find(out) or Store.create(out, study, jobs=1, width=1, starts=[START], status="finished")
        facts = there.facts
        there.update(seeds=[*facts["seeds"], *(s for s in study.seeds if s not in facts["seeds"])])
        finished = there.finished()
        for variant in study.variants:
            runs = {seed: curves[variant.name] for seed in study.seeds if (variant.name, seed) not in finished}
            write(there, {variant.name: runs})
        return there

    monkeypatch.setattr(start, "run", run)
    return asked


# Validation


def test_a_winner_that_holds_is_written_with_its_score_seeds_commit_and_date(found, tmp_path, monkeypatch):
    asked = validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    file = tmp_path / "x.yaml"
    told = recommend.recommend(found, write=file, seeds=8)
    assert asked == [(("base", "fast"), tuple(range(8, 16)))]
    assert told.choice.variant == "fast"
    assert told.judgement.holds
    text = file.read_text()
    comment = " ".join(line.removeprefix("#: ") for line in text.splitlines() if line.startswith("#: "))
    assert (
        "Recommended by quantilax: variant “fast” of the study “s”; on held-out seeds 8 to 15 (n = 8) 8 of 8 runs"
        in comment
    )
    assert "(68% to 100%)" in comment  # Wilson: 8 / (8 + 3.84) = .68
    assert "The base on 8 held-out seeds: 8 of 8 runs" in comment
    assert f"Commit {START['commit']}, 2026-11-22: " in comment
    assert plain(load_section(file, "iqn")) == found.facts["variants"]["fast"]


def test_a_winner_that_held_out_seeds_contradict_is_not_written(found, tmp_path, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": SLOW})
    told = recommend.recommend(found, write=tmp_path / "x.yaml", seeds=8)
    assert told.judgement.contradictions == ["it is not ahead of “base” there"]
    assert not (tmp_path / "x.yaml").exists()


def test_a_winner_that_ends_below_what_the_study_gave_is_not_written(found, tmp_path, monkeypatch):
    # Ahead of a base that never solves, but 0 of 8 solved at the end, where the study gave 68% or more.
    validated_by(monkeypatch, {"base": NEVER, "fast": (10.0, 480.0, 470.0, 470.0)})
    told = recommend.recommend(found, write=tmp_path / "x.yaml", seeds=8)
    assert told.judgement.contradictions == [
        "its share solved at the end is 0% there, below the study's interval (68% to 100%)"
    ]
    assert not (tmp_path / "x.yaml").exists()


def test_the_base_is_validated_alone(tmp_path, monkeypatch):
    there = store(tmp_path / "s", {"base": [GOOD] * 6, "low": [NEVER] * 6})
    asked = validated_by(monkeypatch, {"base": GOOD})
    told = recommend.recommend(there, seeds=4, first_seed=100)
    assert asked == [(("base",), (100, 101, 102, 103))]
    assert (told.choice.variant, told.judgement.holds, told.edited) == ("base", True, None)


def test_a_variant_of_ones_own_choosing_has_only_not_to_be_behind(tmp_path, monkeypatch):
    there = store(tmp_path / "s", {"base": [GOOD] * 6, "same": [GOOD] * 6, "low": [NEVER] * 6})
    validated_by(monkeypatch, {"base": GOOD, "same": GOOD, "low": NEVER})
    assert recommend.recommend(there, variant="same", seeds=6).judgement.holds
    told = recommend.recommend(there, variant="low", seeds=6)
    assert "it is behind “base” by the share of runs solved at the end" in told.judgement.contradictions[0]


def test_held_out_runs_of_an_earlier_call_count_too(found, tmp_path, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": SLOW})
    assert not recommend.recommend(found, seeds=8).judgement.holds
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    told = recommend.recommend(found, seeds=8)  # there already: nothing is run again
    assert not told.judgement.holds
    told = recommend.recommend(found, seeds=8, first_seed=50)
    assert told.seeds == [*range(8, 16), *range(50, 58)]


def test_with_how_many_seeds_a_variant_was_judged_before_is_written(found, tmp_path, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    recommend.recommend(found, seeds=8)
    for seeds, told in (
        (8, "(n = 8) "),
        (10, "(n = 10; judged with n = 8 too) "),
        (12, "(n = 12; judged with n = 8, 10 too) "),
    ):
        recommend.recommend(found, seeds=seeds, write=tmp_path / "x.yaml", section="iqn")
        assert told in (tmp_path / "x.yaml").read_text().replace("\n#: ", " ")
    assert Store.open(found.path / "validation").facts["looks"] == {"fast": [8, 10, 12]}


def test_held_out_seeds_that_a_longer_study_has_used_since_count_no_more(found, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    assert recommend.recommend(found, seeds=8).seeds == list(range(8, 16))
    found.update(seeds=list(range(12)))
    write(found, {"base": dict.fromkeys(range(8, 12), SLOW), "fast": dict.fromkeys(range(8, 12), GOOD)})
    assert recommend.recommend(found, seeds=4).seeds == list(range(12, 16))
    assert report.contents(Results.read(found))["recommended"]["held_out"] == "12 to 15"


def test_another_variant_is_validated_beside_held_out_runs_of_the_first(tmp_path, monkeypatch):
    there = store(tmp_path / "s", {"base": [SLOW] * 6, "fast": [GOOD] * 6, "same": [SLOW] * 6})
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD, "same": SLOW})
    assert recommend.recommend(there, seeds=6).seeds == list(range(6, 12))
    told = recommend.recommend(there, variant="same", seeds=3)
    assert (told.seeds, told.judgement.holds) == ([6, 7, 8], True)
    assert recommend.recommend(there, seeds=6).seeds == list(range(6, 12))


def test_held_out_runs_that_failed_are_told(found, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    recommend.recommend(found, seeds=8)
    run = start.run
    monkeypatch.setattr(start, "run", lambda study, out, **_: run(study._replace(variants=study.variants[:1]), out))
    with pytest.raises(ConfigError, match="runs of “fast” or of the base are missing there; see its failures"):
        recommend.recommend(found, seeds=8, first_seed=50)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"first_seed": 3}, "--first-seed: seed 3 to 7 chose the variant, and cannot validate it; begin at 8 or later"),
        ({"first_seed": 2**32 - 1}, "is too large for 20 seeds below 2^32"),
        ({"variant": "fats"}, "no variant 'fats'; did you mean 'fast'?"),
        (
            {"write": Path("nowhere/x.yaml")},
            "the directory nowhere does not exist; create it, or choose another --write",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(found, monkeypatch, options, words):
    monkeypatch.setattr(start, "run", lambda *_, **__: pytest.fail("it runs"))
    with pytest.raises(ConfigError) as refusal:
        recommend.recommend(found, **options)
    assert words in str(refusal.value)
    assert not (found.path / choice.VALIDATION).exists()


def test_a_file_that_cannot_be_edited_is_refused_before_anything_runs(found, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "run", lambda *_, **__: pytest.fail("it runs"))
    file = tmp_path / "x.yaml"
    for text in ("iqn: {env: probe/corridor}\n", "iqn: [\n", "- 1\n", "pqn: &a\n  env: CartPole-v1\niqn: *a\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(str(file))):
            recommend.recommend(found, write=file)
        assert file.read_text() == text


def test_an_unfinished_study_recommends_nothing(tmp_path):
    there = store(tmp_path / "s", {"base": [GOOD] * 5, "fast": [GOOD] * 3})
    for options in ({}, {"variant": "fast"}):
        with pytest.raises(ConfigError, match="are missing; finish the study with --resume first"):
            recommend.recommend(there, **options)


@pytest.mark.parametrize("finished", [0, 2])
def test_of_a_study_without_another_variant_the_base_is_validated_though_its_own_runs_are_missing(
    tmp_path, monkeypatch, finished
):
    there = store(tmp_path / "s", {"base": [NEVER] * finished})
    asked = validated_by(monkeypatch, {"base": GOOD})
    for options in ({}, {"variant": "base"}):
        told = recommend.recommend(there, seeds=3, write=tmp_path / "x.yaml", **options)
        assert asked.pop() == (("base",), (6, 7, 8))
        assert (told.choice.variant, told.judgement.holds, told.section) == ("base", True, "iqn")
        assert "3 of 3 runs ended at 475 or more" in (tmp_path / "x.yaml").read_text().replace("\n#: ", " ")
    with pytest.raises(ConfigError, match="no variant 'bse'; did you mean 'base'"):
        recommend.recommend(there, variant="bse")
    assert asked == []


def test_a_file_of_such_a_study_is_given_its_directory_and_found_there_again(tmp_path, monkeypatch):
    file, asked = alone(tmp_path), validated_by(monkeypatch, {"base": GOOD})
    for seeds in (2, 3):
        told = recommend.recommend_alone(file, tmp_path / "out", seeds=seeds)
        assert asked.pop() == (("base",), tuple(range(5, 5 + seeds)))  # the study's own seeds are 0 to 4
        assert told.seeds == list(range(5, 5 + seeds))
    there = Store.open(tmp_path / "out")
    assert (there.status, there.facts["seeds"], there.records().height) == ("not run", [0, 1, 2, 3, 4], 0)
    assert Store.open(tmp_path / "out" / "validation").finished() == {("base", seed) for seed in (5, 6, 7)}


def test_a_refused_file_leaves_no_directory(tmp_path, monkeypatch):
    asked = validated_by(monkeypatch, {"base": GOOD})
    with pytest.raises(ConfigError, match="--first-seed: seed 4 chose the variant"):
        recommend.recommend_alone(alone(tmp_path), tmp_path / "out", first_seed=4)
    with pytest.raises(ConfigError, match="has 2 variants to choose among; run it with quantilax study"):
        recommend.recommend_alone(alone(tmp_path, "variants: {named: {x: {gamma: 0.5}}}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert asked == []
    store(tmp_path / "other", {"base": [GOOD] * 5, "x": [GOOD] * 5})
    with pytest.raises(ConfigError, match="holds results of another study"):
        recommend.recommend_alone(alone(tmp_path, base="  overrides: {gamma: 0.5}"), tmp_path / "other")
    assert Store.open(tmp_path / "other").finished() == {(c, seed) for c in ("base", "x") for seed in range(5)}


def test_a_refused_file_leaves_a_directory_of_the_users_as_it_was(tmp_path, monkeypatch):
    validated_by(monkeypatch, {"base": GOOD})
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("real", "link"):
        with pytest.raises(ConfigError, match=r"the directory .* does not exist"):
            recommend.recommend_alone(alone(tmp_path), tmp_path / name, write=tmp_path / "no" / "x.yaml")
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "real").iterdir()) == []


def test_more_held_out_seeds_than_anyone_gets_through_are_refused(found, monkeypatch):
    with pytest.raises(ConfigError, match="--seeds: 4,000,000,000 are more than 1,000,000; ask for fewer"):
        recommend.recommend(found, seeds=4_000_000_000)


def alone(path, more="", base=""):
    """Write the file of a study whose only variant is its base."""
    (path / "tiny.yaml").write_text(TINY)
    text = f"base:\n  config: tiny.yaml\n  section: iqn\n{base}\nseeds: 5\nsolved: 475\n{more}\n"
    (path / "alone.yaml").write_text(text)
    return path / "alone.yaml"


def test_a_study_keeps_what_it_was_asked_as_it_was_asked(found, tmp_path):
    asked = {
        "question": "064",
        "base": {"config": "1e3"},
        "variants": {"named": {"1:00": {"gamma": 1e-05}, "yes": {"a": "on"}}},
    }
    study = recommend.validation(found, "fast", [100])._replace(definition=asked)
    Store.create(tmp_path / "kept", study, jobs=1, width=1, starts=[], status="running")
    assert Store.open(tmp_path / "kept").facts["asked"] == asked


def test_the_study_of_held_out_seeds_has_the_studys_own_configs(found):
    study = recommend.validation(found, "fast", [100, 101])
    assert {variant.name: plain(variant.section) for variant in study.variants} == found.facts["variants"]
    assert study.solved == 475.0
    assert study.create(study.variants[1]).config.gamma == 0.5


def test_the_report_tells_what_held_out_seeds_said(found, monkeypatch):
    from quantilax.reports.pages import report

    assert "It has not been validated" in report(found).twin
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    recommend.recommend(found, seeds=8)
    assert "Held-out seeds (8 to 15) agree: 8 of 8 runs ended at 475 or more" in report(found).twin


def test_a_score_says_falls_and_leaves_out_what_a_study_without_threshold_has_not(tmp_path):
    there = Results.read(store(tmp_path / "a", {"base": [GOOD, FALLS, LATE, GOOD, GOOD, GOOD]}))
    assert "1 of 6 fell below it (3% to 56%)" in choice.score(there, there.rows[0])
    assert "; solved for good (median step): 100 (100 to 300); " in choice.score(there, there.rows[0])  # 4 of 6 at 100
    assert ", of the lowest run 490.0; over the curve" in choice.score(there, there.rows[0])
    there = Results.read(store(tmp_path / "b" / "b", {"base": [GOOD, LATE] * 3}, solved=None))
    told = choice.score(there, there.rows[0])
    assert told.startswith("return at the end 495.0 (490.0 to 500.0), of the lowest run 490.0; over the curve")
    assert "solved" not in told


# The commit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["src/a.py"], ": src/a.py: not committed; commit first"),
        (["x.yaml", "b.yaml", "a", "b", "c", "d"], ": a, b, c and 1 more: not committed; commit first"),
        (["configs/x.yaml"], ": configs/x.yaml: not committed"),
    ],
)
def test_with_uncommitted_changes_nothing_is_run_or_written(found, checkout, monkeypatch, changes, words):
    monkeypatch.setattr(start, "run", lambda *_, **__: pytest.fail("it runs"))
    monkeypatch.setattr(provenance, "changes", lambda: changes)
    with pytest.raises(ConfigError, match=re.escape(f"{checkout}{words}")):
        recommend.recommend(found, write=checkout / "x.yaml", benchmarks=checkout / "b.yaml")
    assert not (checkout / "x.yaml").exists()


def test_changes_to_the_files_that_are_written_do_not_count(found, checkout, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    monkeypatch.setattr(provenance, "changes", lambda: ["b.yaml", "x.yaml"])
    monkeypatch.setitem(START, "commit", "abc+")
    monkeypatch.setitem(START, "uncommitted", ["b.yaml", "x.yaml"])
    (checkout / "link.yaml").symlink_to("x.yaml")
    told = recommend.recommend(found, write=checkout / "link.yaml", benchmarks=checkout / "b.yaml", seeds=8)
    assert told.edited is not None
    assert "Commit abc, " in (checkout / "x.yaml").read_text()
    assert "commits: [abc]" in (checkout / "b.yaml").read_text()


def test_a_validation_that_writes_nothing_may_have_changes(found, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    monkeypatch.setattr(provenance, "changes", lambda: ["src/a.py"])
    assert recommend.recommend(found, seeds=8).judgement.holds


@pytest.mark.parametrize("says", [{}, {"uncommitted": ["src/a.py"]}, {"uncommitted": ["src/a.py", "x.yaml"]}])
def test_held_out_runs_of_uncommitted_code_are_not_written(found, checkout, monkeypatch, says):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    with monkeypatch.context() as patch:
        for name, value in {"commit": "abc+", **says}.items():
            patch.setitem(START, name, value)
        recommend.recommend(found, seeds=8)
    monkeypatch.setattr(start, "run", lambda *_, **__: pytest.fail("it runs"))
    with pytest.raises(
        ConfigError, match=r"validation: has runs of 2026-11-22 at commit abc\+, with uncommitted changes"
    ):
        recommend.recommend(found, write=checkout / "x.yaml", seeds=9)
    assert not (checkout / "x.yaml").exists()


def test_held_out_runs_that_began_when_something_was_changed_meanwhile_are_not_written(found, checkout, monkeypatch):
    validated_by(monkeypatch, {"base": SLOW, "fast": GOOD})
    monkeypatch.setitem(START, "commit", "abc+")
    monkeypatch.setitem(START, "uncommitted", ["src/a.py"])
    with pytest.raises(ConfigError, match=r"at commit abc\+, with uncommitted changes"):
        recommend.recommend(found, write=checkout / "x.yaml", seeds=8)
    assert not (checkout / "x.yaml").exists()


# The file

TEXT = """\
# What this file is for.

# Of the first one.
iqn:   # the usual
  env: probe/corridor
  learning_rate: 1e-3        # chosen by hand
  torso_sizes: [8, 8]   # two
  # a comment between
  gamma: 0.9


# Of the second one: keep this.
iqn_other:
  algorithm: iqn   # not its name
  env: "probe/corridor"
  kappa: 0.5
# the end
"""


def target(text: str, tmp_path: Path, name: str = "iqn", **changes) -> dict:
    file = tmp_path / "target.yaml"
    file.write_text(text, newline="")
    return plain(load_section(file, name, changes))


def test_only_the_values_that_differ_are_replaced(tmp_path):
    fields = target(TEXT, tmp_path, learning_rate=2e-4, torso_sizes=[16], double=True)
    edited = sections.put(TEXT, Path("x.yaml"), "iqn", fields, ["why"])
    expected = (
        TEXT.replace("1e-3 ", "0.0002 ")
        .replace("[8, 8]", "[16]")
        .replace("gamma: 0.9\n", "gamma: 0.9\n  double: true\n")
    )
    assert edited.text == expected.replace("iqn:   #", "#: Recommended by quantilax: why\niqn:   #")
    assert set(edited.changed) == {"learning_rate", "torso_sizes", "double"}
    assert set(edited.commented) == {"learning_rate", "torso_sizes"}


def test_however_a_section_is_laid_out_its_other_lines_stay(tmp_path):
    text = (
        "iqn:\n    env:    'probe/corridor'\n    double: True\n    # two\n\n    torso_sizes: [8,8]\n"
        "    head_sizes:\n    -   8\n    gamma:  0.90   # here\n# above\n\niqn_other: {env:  probe/corridor}\n"
    )
    fields = target(text, tmp_path, gamma=0.5, kappa=0.25)
    edited = sections.put(text, Path("x.yaml"), "iqn", fields, ["why"]).text
    expected = text.replace("gamma:  0.90   # here\n", "gamma:  0.5   # here\n    kappa: 0.25\n")
    assert edited == "#: Recommended by quantilax: why\n" + expected


def test_the_last_section_is_edited_before_the_end_of_the_file(tmp_path):
    fields = target(TEXT, tmp_path, "iqn_other", double=True)
    text = sections.put(TEXT, Path("x.yaml"), "iqn_other", fields, ["why"]).text
    assert text.endswith("  kappa: 0.5\n  double: true\n# the end\n")
    assert text.startswith(TEXT[: TEXT.index("iqn_other")])


@pytest.mark.parametrize("end", ["\n", "", "\n\n"])
def test_a_new_section_comes_at_the_end_and_everything_before_it_stays(tmp_path, end):
    before = TEXT.rstrip("\n") + end
    fields = target(before, tmp_path, gamma=0.5)
    text = sections.put(before, Path("x.yaml"), "iqn_new", fields, ["one", "two"]).text
    assert text.startswith(before)
    assert (
        text[len(before) :]
        .lstrip("\n")
        .startswith("#: Recommended by quantilax: one\n#: two\niqn_new:\n  algorithm: iqn\n")
    )
    assert yaml.safe_load(text)["iqn_new"] == fields


def test_line_ends_of_windows_and_a_byte_order_mark_stay(tmp_path):
    before = "\ufeff" + TEXT.replace("\n", "\r\n")
    fields = target(before, tmp_path, gamma=0.5, double=True)
    text = sections.put(before, Path("x.yaml"), "iqn", fields, ["why", "more"]).text
    assert "\n" not in text.replace("\r\n", "")
    assert (
        text.replace("#: Recommended by quantilax: why\r\n#: more\r\n", "")
        .replace("  double: true\r\n", "")
        .replace("gamma: 0.5", "gamma: 0.9")
        == before
    )
    new = sections.put(before, Path("x.yaml"), "new", fields, ["why"]).text
    assert new.startswith(before)
    assert "\n" not in new.replace("\r\n", "")


def test_a_second_recommendation_takes_the_place_of_the_firsts_comment(tmp_path):
    fields = target(TEXT, tmp_path, gamma=0.5)
    once = sections.put(TEXT, Path("x.yaml"), "iqn", fields, ["first", "its command"]).text
    twice = sections.put(once, Path("x.yaml"), "iqn", fields, ["second"]).text
    assert twice == once.replace("first\n#: its command", "second")
    assert "# Of the first one.\n#: Recommended by quantilax: second\niqn:   # the usual" in twice


def test_long_comments_are_wrapped_and_stay_comments(tmp_path):
    fields = target(TEXT, tmp_path)
    text = sections.put(TEXT, Path("x.yaml"), "iqn", fields, ["many words " * 40, "a\nb\u2028c: [d"]).text
    assert max(map(len, text.splitlines())) <= 120
    assert "#: a b c: [d\n" in text
    assert yaml.safe_load(text) == yaml.safe_load(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "iqn: {env: probe/corridor}\n",
        "{iqn: {env: probe/corridor}}\n",
        "base: &a {env: probe/corridor, gamma: 0.9}\niqn: *a\n",
        "pqn:\n  env: probe/corridor\n  gamma: &g 0.9\niqn:\n  env: probe/corridor\n  gamma: *g\n",
        "iqn:\n  env: probe/corridor\n  gamma: &g 0.9\npqn:\n  env: probe/corridor\n  gamma: *g\n",
        "iqn:\n  env: probe/corridor\n  torso_sizes:\n  - 4\n  # four\n  - 4\n# the end\n",
        "iqn:\n  env: probe/corridor\n  torso_sizes: [4,  # four\n    4]\n",
        "iqn:\n  env: probe/corridor\n...\n---\n",
        "all: &a\n  iqn:\n    env: probe/corridor\n<<: *a\n",
    ],
)
def test_a_section_that_cannot_be_edited_in_place_is_refused(tmp_path, text):
    fields = target("iqn:\n  env: probe/corridor\n  gamma: 0.5\n", tmp_path)
    with pytest.raises(
        ConfigError, match=r"x\.yaml(: section 'iqn' cannot be inserted without changing the rest|.*broken YAML)"
    ):
        sections.put(text, Path("x.yaml"), "iqn", fields, ["why"])


def test_a_section_of_another_algorithm_is_left_alone(tmp_path):
    fields = target("iqn:\n  env: probe/corridor\n", tmp_path)
    with pytest.raises(
        ConfigError, match="section 'pqn' is for pqn, but this one is for iqn; choose another --section"
    ):
        sections.put("pqn:\n  env: probe/corridor\n", Path("x.yaml"), "pqn", fields, ["why"])


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_keep_their_other_sections_byte_for_byte(file, tmp_path):
    text = sections.read(file)
    for name in yaml.safe_load(text):
        fields = target(text, tmp_path, name, gamma=0.123, total_timesteps=123_000, metrics=False)
        after = sections.put(text, file, name, fields, ["why"]).text
        removed = set(text.splitlines()) - set(after.splitlines())
        above = text.partition(f"\n{name}:")[0].splitlines()
        comment = set(
            itertools.takewhile(lambda line: line.startswith("#:"), reversed(above))
        )  # of an earlier recommendation
        assert len(removed - comment) <= 2  # lines of gamma and total_timesteps
        assert sections.put(after, file, name, fields, ["why"]).text == after


def test_links_and_rights_of_the_file_stay(tmp_path):
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text(TEXT)
    real.chmod(0o640)
    link.symlink_to(real)
    sections.write(link, "iqn: 1\n")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("iqn: 1\n", 0o640)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "x.yaml"
    file.write_text(TEXT)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        sections.write(file, "iqn: 1\n")
    assert file.read_text() == TEXT
    assert [p.name for p in tmp_path.iterdir()] == ["x.yaml"]


def test_what_is_written_as_a_value_is_read_as_it(tmp_path):
    for value in (1, 0.5, 1e-5, float("inf"), True, None, [8, 8], "relu", "a: b", "1e-3", "064", "yes", ""):
        assert strict_yaml.parse(f"x: {sections.written(value)}") == {"x": value}
        assert json.dumps(value) is not None
