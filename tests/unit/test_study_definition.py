"""What a study's file may say, and what is refused."""

from pathlib import Path

import pytest
import yaml

from quantilax.errors import ConfigError
from quantilax.studies import definition
from tests.endtoend.conftest import TINY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def study(folder: Path, **changes) -> definition.Study:
    asked = {"base": {"config": "tiny.yaml", "section": "iqn"}, "seeds": 3, **changes}
    file = folder / "a-study.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in asked.items() if v is not None}, sort_keys=False))
    return definition.load(file)


def names(asked: definition.Study) -> list[str]:
    return [variant.name for variant in asked.variants]


def test_the_base_is_a_variant_and_the_files_name_is_the_studys(folder):
    asked = study(folder, question=" Why? ", prediction="Because.")
    assert (asked.name, asked.question, asked.prediction) == ("a-study", "Why?", "Because.")
    assert names(asked) == ["base"]
    assert asked.seeds == (0, 1, 2)
    assert asked.solved is None  # the probe does not say


def test_a_study_in_a_folder_of_its_own_is_called_after_the_folder(folder, monkeypatch):
    (folder / "0001-batch").mkdir()
    (folder / "0001-batch" / "study.yaml").write_text("base: {config: ../tiny.yaml}")
    monkeypatch.chdir(folder / "0001-batch")
    assert definition.load(Path("study.yaml")).name == definition.load(folder / "0001-batch" / "study.yaml").name
    assert definition.load(Path("study.yaml")).name == "0001-batch"


def test_named_variants_keep_their_names_and_fields(folder):
    asked = study(folder, variants={"named": {"wide": {"torso_sizes": [16]}, "fast": {"learning_rate": "1e-2"}}})
    assert names(asked) == ["base", "wide", "fast"]
    assert asked.create(asked.variants[1]).config.torso_sizes == (16,)
    assert asked.create(asked.variants[2]).config.learning_rate == 0.01
    assert asked.create(asked.variants[1]).config.batch_size == 16  # the base's


def test_a_grid_is_the_product_and_its_point_at_the_base_is_the_base(folder):
    asked = study(folder, variants={"grid": {"batch_size": [16, 32], "gamma": [0.9, 0.99]}})
    assert names(asked) == [
        "base",  # batch_size 16 and gamma 0.99 are the base's
        "batch_size=16, gamma=0.9",
        "batch_size=32, gamma=0.9",
        "batch_size=32, gamma=0.99",
    ]


def test_one_at_a_time_changes_one_field_in_each_variant(folder):
    asked = study(folder, variants={"one_at_a_time": {"batch_size": [8, 16], "double": [True]}})
    assert [variant.overrides for variant in asked.variants] == [{}, {"batch_size": 8}, {"double": True}]


def test_a_variant_that_is_drawn_twice_or_is_the_base_again_stands_once(folder):
    asked = study(folder, variants={"random": {"number": 10, "fields": {"double": {"choice": [True, False]}}}})
    assert sorted(repr(variant.overrides) for variant in asked.variants) == ["{'double': True}", "{}"]


def test_random_variants_lie_in_their_ranges_and_are_the_same_for_the_same_seed(folder):
    fields = {
        "learning_rate": {"log_uniform": [1e-5, 1e-2]},
        "gamma": {"uniform": [0.9, 0.99]},
        "batch_size": {"integer": [4, 8]},
        "double": {"choice": [True, False]},
    }
    variants = [
        study(folder, variants={"random": {"number": 50, "seed": s, "fields": fields}}).variants for s in (1, 1, 2)
    ]
    assert (
        [c.overrides for c in variants[0]] == [c.overrides for c in variants[1]] != [c.overrides for c in variants[2]]
    )
    drawn = [c.overrides for c in variants[0][1:]]
    assert all(1e-5 <= o["learning_rate"] <= 1e-2 and 0.9 <= o["gamma"] <= 0.99 for o in drawn)
    assert {o["batch_size"] for o in drawn} == {4, 5, 6, 7, 8}  # 50 draws miss one of five with a chance of 7e-5
    assert sum(o["learning_rate"] < 10**-3.5 for o in drawn) > 12  # uniform in the logarithm: half of 50, sd 3.5


def test_the_base_may_have_overrides_and_variants_go_on_top(folder):
    asked = study(
        folder,
        base={"config": "tiny.yaml", "section": "iqn", "overrides": {"gamma": 0.5, "batch_size": 18}},
        variants={"named": {"a": {"batch_size": 20}}},
    )
    config = asked.create(asked.variants[1]).config
    assert (config.gamma, config.batch_size) == (0.5, 20)


def test_a_variant_may_be_another_environment(folder):
    asked = study(folder, variants={"named": {"two": {"env": "probe/bimodal"}}})
    assert [asked.create(variant).env.name for variant in asked.variants] == ["probe/corridor", "probe/bimodal"]


def test_the_config_is_found_beside_the_study_or_from_the_current_directory(folder, monkeypatch, tmp_path_factory):
    (folder / "sub").mkdir()
    (folder / "sub" / "s.yaml").write_text("base: {config: ../tiny.yaml}")
    assert definition.load(folder / "sub" / "s.yaml").base.section.env == "probe/corridor"
    monkeypatch.chdir(folder)
    (folder / "sub" / "s.yaml").write_text("base: {config: tiny.yaml}")
    assert definition.load(Path("sub/s.yaml")).base.section.env == "probe/corridor"


def test_seeds_are_a_number_from_the_first_on_or_a_list(folder):
    assert study(folder, seeds=2, first_seed=200).seeds == (200, 201)
    assert study(folder, seeds=[7, 3]).seeds == (7, 3)
    assert study(folder, seeds=None).seeds == tuple(range(20))
    assert study(folder, seeds=2, first_seed=5).with_seeds(3).seeds == (5, 6, 7)


def test_an_environment_with_a_threshold_needs_no_other(folder):
    base = {"config": "tiny.yaml", "overrides": {"env": "CartPole-v1"}}
    assert study(folder, base=base).solved == 475
    assert study(folder, base=base, solved=100).solved == 100


MILLION = {"grid": {f: [float(i) / 2000 for i in range(1000)] for f in ("gamma", "eps_end")}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"variants": {"named": {"a": {"batchsize": 1}}}},
            "variant 'a': unknown field 'batchsize'; did you mean 'batch_size'?",
        ),
        ({"variants": {"named": {"a": {"batch_size": "many"}}}}, "variant 'a': batch_size: expected a whole number"),
        ({"variants": {"named": {"base": {"batch_size": 1}}}}, "two variants are called 'base'"),
        (
            {"variants": {"named": {"batch_size=8": {"gamma": 0.5}}, "one_at_a_time": {"batch_size": [8]}}},
            "'batch_size=8'",
        ),
        ({"variants": {"named": {"a": {"gamma": 0.5}, "b": {"gamma": 0.5}}}}, "variants 'a' and 'b' are the same"),
        ({"variants": {"named": {"same": {"double": False}}}}, "variants 'base' and 'same' are the same configuration"),
        ({"variants": MILLION}, "grid: 1,000,000 variants are more than 1,000"),
        ({"variants": {"one_at_a_time": {"gamma": [i / 2000 for i in range(1001)]}}}, "more than 1,000"),
        ({"variants": {"gird": {"gamma": [0.5]}}}, "variants: unknown key 'gird'; did you mean 'grid'?"),
        ({"variants": {"grid": {"gamma": 0.5}}}, "gamma: expected a list of values, got 0.5"),
        ({"variants": {"grid": {}}}, "expected fields with lists"),
        ({"variants": ["a"]}, "variants: expected named, grid, one_at_a_time, random"),
        ({"variants": {"named": {"a": None}}}, "a: expected fields such as"),
        (
            {"variants": {"random": {"number": 0, "fields": {"gamma": {"uniform": [0, 1]}}}}},
            "number: expected a whole number",
        ),
        (
            {"variants": {"random": {"number": 2, "fields": {"gamma": {"uniform": [1, 0]}}}}},
            "uniform: expected low < high",
        ),
        (
            {"variants": {"random": {"number": 2, "fields": {"gamma": {"log_uniform": [0, 1]}}}}},
            "expected 0 < low < high",
        ),
        (
            {"variants": {"random": {"number": 2, "fields": {"gamma": {"normal": [0, 1]}}}}},
            "gamma: expected one of 'uniform",
        ),
        (
            {"variants": {"random": {"number": 2, "fields": {"gamma": {"uniform": 3}}}}},
            "uniform: expected [low, high], got 3",
        ),
        ({"variants": {"random": {"number": 2, "seed": -1, "fields": {}}}}, "seed: expected a whole number, 0 or more"),
        (
            {"variants": {"random": {"number": 2, "fields": {"batch_size": {"integer": [1, 1e20]}}}}},
            "batch_size: integer: expected whole numbers below 2^31, got [1, 1e+20]",
        ),
        (
            {"variants": {"random": {"number": 2, "fields": {"batch_size": {"integer": [1, 10**400]}}}}},
            "batch_size: integer: expected [low, high], got [1, 1000",
        ),
        ({"seeds": 4_000_000_000}, "seeds: 4,000,000,000 runs of each variant are more than 1,000,000; ask for fewer"),
        (
            {"variants": {"one_at_a_time": {"gamma": [0.5, 0.6]}}, "seeds": 500_000},
            "1,500,000 runs are more than 1,000,000; ask for fewer seeds",
        ),
        ({"base": {"config": "tiny.yaml", "section": ["iqn"]}}, "base: section: expected a name, got ['iqn']"),
        ({"base": {"config": "tiny\0.yaml"}}, "is not a file name"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is listed twice"),
        ({"seeds": 0}, "seeds: expected a number of seeds"),
        ({"seeds": [1, "two"]}, "seeds: expected whole numbers"),
        ({"seeds": [-1]}, "seeds: expected whole numbers"),
        ({"seeds": [1, 2], "first_seed": 3}, "seeds: expected a number of seeds"),
        ({"solved": "high"}, "solved: expected a mean return, got 'high'"),
        ({"question": 3}, "question: expected text, got 3"),
        ({"base": None}, "base: expected lines such as"),
        ({"base": {"config": "none.yaml"}}, "none.yaml: no such file"),
        ({"base": {"config": "tiny.yaml", "section": "pqn"}}, "no section 'pqn'"),
        ({"base": {"config": "tiny.yaml", "sektion": "iqn"}}, "base: unknown key 'sektion'; did you mean 'section'?"),
        ({"base": {"config": "tiny.yaml", "overrides": {"gama": 1}}}, "base: overrides: unknown field 'gama'"),
        ({"base": {"config": "tiny.yaml", "overrides": 3}}, "base: overrides: expected fields"),
        ({"quest": "?"}, "unknown key 'quest'; did you mean 'question'?"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, changes, message):
    with pytest.raises(ConfigError) as error:
        study(folder, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_more_seeds_than_anyone_gets_through_are_refused(folder):
    with pytest.raises(ConfigError, match="seeds: 4,000,000,000 runs of each variant are more than"):
        study(folder).with_seeds(4_000_000_000)
