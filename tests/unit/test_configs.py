"""`quantilax.runs.configs`: sections of YAML files, overrides on top, and refusals that name the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantilax.errors import ConfigError
from quantilax.host import strict_yaml
from quantilax.runs import Section, load_section, parse_overrides

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
BARE = "iqn:\n  env: probe/corridor\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path to write to."""
    return tmp_path_factory.mktemp("configs") / "file.yaml"


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What the function returns and '', or None and the one line with which it refuses."""
    try:
        return function(*arguments), ""
    except ConfigError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    return None, message


def test_a_section_is_read_with_its_numbers_converted(file):
    file.write_text(BARE + "  learning_rate: 1e-3\n  total_timesteps: 1e5\n  torso_sizes: [8, '16']\n")
    section = load_section(str(file), "iqn")
    assert (section.name, section.algorithm.name, section.env) == ("iqn", "iqn", "probe/corridor")
    assert section.hyperparameters == {"learning_rate": 1e-3, "total_timesteps": 100_000, "torso_sizes": (8, 16)}
    assert type(section.hyperparameters["total_timesteps"]) is int
    assert section.where == f"{file}: iqn"


def test_the_only_section_need_not_be_named(file):
    file.write_text(BARE)
    assert load_section(file).name == "iqn"


def test_a_section_of_another_name_says_its_algorithm(file):
    file.write_text("mine:\n  algorithm: pqn\n  env: probe/corridor\n")
    section = load_section(file)
    assert (section.name, section.algorithm.name) == ("mine", "pqn")
    assert "algorithm" not in section.hyperparameters


def test_overrides_win_over_the_file_for_fields_env_and_algorithm(file):
    file.write_text(BARE + "  gamma: 0.9\n")
    section = load_section(file, None, {"gamma": 0.5, "env": "probe/bimodal", "algorithm": "pqn"})
    assert section.hyperparameters == {"gamma": 0.5}
    assert (section.env, section.algorithm.name) == ("probe/bimodal", "pqn")


def test_a_created_agent_has_the_fields_of_the_section(file):
    file.write_text(BARE + "  gamma: 0.9\n")
    agent = load_section(file, None, {"kappa": 2}).create()
    assert (agent.config.gamma, agent.config.kappa, agent.env.name) == (0.9, 2.0, "probe/corridor")


def test_an_error_in_the_file_names_the_file_and_one_in_an_override_the_command_line(file):
    file.write_text(BARE + "  gamma: 2\n")
    with pytest.raises(ConfigError, match=r"file\.yaml: iqn: gamma: must be >= 0 and <= 1, got 2\.0$"):
        load_section(file)
    file.write_text(BARE)
    with pytest.raises(ConfigError, match=r"^command line: gamma: must be >= 0 and <= 1, got 2\.0$"):
        load_section(file, None, {"gamma": 2})


def test_a_bad_field_in_the_file_is_refused_though_an_override_hides_it(file):
    file.write_text(BARE + "  gamma: fast\n")
    with pytest.raises(ConfigError, match="gamma: expected a number, got 'fast'"):
        load_section(file, None, {"gamma": 0.5})


def test_a_section_that_is_not_asked_for_need_not_be_valid(file):
    file.write_text(BARE + "pqn:\n  env: nowhere\n  gamma: fast\n")
    assert load_section(file, "iqn").env == "probe/corridor"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BARE + "  gamma: 0.9\n  kappa: 1\n  gamma: 0.8\n", 5),
        (BARE + "\n\niqn:\n  env: probe/bimodal\n", 5),
        ("iqn:\n  env: [1\n", 3),
        ("iqn:\n\tenv: x\n", 2),
        ("iqn:\n  env: x\n gamma: 1\n", 3),
        ("iqn:\n  env: *nowhere\n", 2),
        ("iqn:\n  3: 4\n", 2),
    ],
)
def test_broken_yaml_is_refused_with_the_number_of_the_line(file, text, line):
    file.write_text(text)
    assert outcome(load_section, file)[1].startswith(f"{file}, line {line}: broken YAML: ")


@QUICK
@given(st.binary(max_size=60))
@example(b"")
@example(b"\x00")
@example(b"\xff\xfe")
@example("iqn:\n  env: x\n".encode("utf-16"))
def test_any_bytes_are_a_section_or_refused_in_one_line(file, data):
    file.write_bytes(data)
    section, message = outcome(load_section, file)
    assert isinstance(section, Section) or message.startswith(str(file))


SCALARS = st.one_of(
    st.text("0123456789-+.:_eExobT infa~!&*[]{}'\"|>%@`#,\n", max_size=12),
    st.sampled_from(
        ["yes", "~", "!!int x", "!!timestamp x", "!!float x", "!!binary x", "2020-13-45", "0x_", "0b_", "1:60"]
    ),
)


@QUICK
@given(SCALARS)
@example("2020-13-45")
@example("0x_")
@example("!!timestamp x")
@example("9" * 5000)
@example("[" * 2000)
@example("[" * 900 + "]" * 900)
def test_any_text_for_a_field_is_taken_or_refused_in_one_line(file, text):
    file.write_text(BARE + f"  gamma: {text}\n")
    section, message = outcome(load_section, file)
    if section is None:
        assert message.startswith(str(file))
    else:
        assert 0 <= section.hyperparameters["gamma"] <= 1


@QUICK
@given(SCALARS)
@example("2020-13-45")
@example("0x_")
@example("!!timestamp x")
@example("9" * 5000)
@example("[" * 2000)
def test_any_text_after_an_equals_sign_is_a_value_or_refused_in_one_line(text):
    parsed, message = outcome(parse_overrides, [f"gamma={text}"])
    assert message.startswith("command line: gamma: ") if parsed is None else list(parsed) == ["gamma"]


@QUICK
@given(st.text(min_size=1, max_size=12))
def test_any_argument_is_a_field_with_a_value_or_refused_in_one_line(argument):
    parsed, message = outcome(parse_overrides, [argument])
    if parsed is None:
        assert message.startswith("command line: ")
    else:
        (field,) = parsed
        assert argument.startswith(f"{field}=")


@QUICK
@given(st.text(max_size=12))
@example("gam\nma")
@example("gamma\r")
@example("gamma\u2028")
def test_any_name_that_is_no_field_is_refused_in_one_line(file, name):
    file.write_text(yaml.safe_dump({"iqn": {"env": "probe/corridor", f"{name}?": 1}}))
    assert outcome(load_section, file)[1].startswith(f"{file}: iqn: unknown field ")


def test_values_of_overrides_are_read_as_yaml():
    arguments = ["a=1", "b=1e-3", "c=true", "d=[1, 2]", "e=text", "f=.inf", "g=", "h=a=b"]
    assert parse_overrides(arguments) == {
        "a": 1,
        "b": "1e-3",  # YAML 1.1 reads it as text; the field's type converts it
        "c": True,
        "d": [1, 2],
        "e": "text",
        "f": float("inf"),
        "g": None,
        "h": "a=b",
    }


@pytest.mark.parametrize("argument", ["gamma", "=1", "", "="])
def test_an_override_without_name_or_equals_sign_is_refused_with_an_example(argument):
    with pytest.raises(
        ConfigError, match=r"^command line: expected field=value, got .*; for example learning_rate=1e-3$"
    ):
        parse_overrides([argument])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("+1", 1),
        ("-1_000", -1_000),
        ("0x10", 16),
        ("1.", 1.0),
        (".5", 0.5),
        ("1_000.5", 1_000.5),
        ("1.5e+3", 1_500.0),
        ("-.inf", float("-inf")),
        ("~", None),
        ("", None),
        ("True", True),
        ("!!str 64", "64"),
        *[(text, text) for text in ("064", "1:00", "0b1", "0o17", "1e-3", "1__0", "2024-01-01", "yes", "off", "=")],
    ],
)
def test_a_plain_word_is_a_number_only_where_yaml_1_1_and_1_2_agree(text, value):
    found = strict_yaml.parse(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1_000", 1_000), ("1e3", 1_000), ("0x10", 16), ("0o17", 15), ("0b11", 3), ("+1", 1), ("5.", 5)],
)
def test_a_field_of_whole_numbers_takes_every_spelling_that_has_one_meaning(file, text, value):
    file.write_text(BARE + f"  batch_size: {text}\n")
    assert load_section(file).hyperparameters == {"batch_size": value}
    assert load_section(file, None, parse_overrides([f"batch_size={text}"])).hyperparameters == {"batch_size": value}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("batch_size: 064", "expected 64, or 0o64 for the octal number 52, got '064'"),
        ("batch_size: -089", "expected -89, got '-089'"),
        ("gamma: 01", "expected 1, or 0o1 for the octal number 1, got '01'"),
        ("torso_sizes: [010]", r"expected 10, or 0o10 for the octal number 8, got ['010']"),
        ("fill_buffer: 1:00", "expected a whole number, got '1:00'"),
        ("total_timesteps: 10:00:00", "expected a whole number, got '10:00:00'"),
        ("batch_size: 1__0", "expected a whole number, got '1__0'"),
        ("gamma: 2024-01-01", "expected a number, got '2024-01-01'"),
        ("double: yes", "expected true or false, got 'yes'"),
        ("double: off", "expected true or false, got 'off'"),
    ],
)
def test_a_number_or_switch_of_two_meanings_is_refused_in_a_file_and_on_the_command_line(file, field, expected):
    name, _, text = field.partition(": ")
    file.write_text(BARE + f"  {field}\n")
    assert outcome(load_section, file) == (None, f"{file}: iqn: {name}: {expected}")
    file.write_text(BARE)
    overrides = parse_overrides([f"{name}={text}"])
    assert outcome(load_section, file, None, overrides) == (None, f"command line: {name}: {expected}")


def test_the_first_of_several_merged_mappings_wins_and_the_sections_own_fields_over_all(file):
    file.write_text(
        "first: &first {gamma: 0.5}\nsecond: &second {gamma: 0.6, kappa: 2, batch_size: 8}\n"
        "iqn:\n  <<: [*first, *second]\n  env: probe/corridor\n  batch_size: 16\n"
    )
    assert load_section(file, "iqn").hyperparameters == {"batch_size": 16, "gamma": 0.5, "kappa": 2.0}


BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: {b: 1, b: 2}", "'b' occurs twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "'<<' occurs twice; write '<<: [*first, *second]', where the first wins"),
        ("a: {<<: 3}", "expected fields after '<<', such as '*base' or '[*first, *second]'"),
        ("a: &a [*a]", "an alias refers to a value that contains it"),
        ("a: &a {<<: *a}", "an alias refers to a value that contains it"),
        ("a: !!python/name:os.system x", "the tag !!python/name:os.system is not supported; leave it out"),
        ("a: !!int 064", "'064' is not a valid !!int; leave the tag out"),
        ("a: 1\n---\nb: 1", "a second document begins here; keep only one"),
        ("a: \x00", "the character '\\x00' is not allowed in YAML"),
        ('a: "\\ud800"', "half of a surrogate pair is not a character"),
        ("{3: 4}", "expected a name, got 3; put it in quotes"),
        ("[" * 2_000, "nested too deeply"),
        (BOMB, "more than 100,000 values, with aliases counted wherever they are used"),
    ],
)
def test_what_has_no_one_meaning_is_refused(text, problem):
    with pytest.raises(strict_yaml.BrokenError) as caught:
        strict_yaml.parse(text)
    assert str(caught.value) == problem


def test_a_byte_order_mark_is_no_part_of_the_first_name(file):
    file.write_text("\ufeff" + BARE, encoding="utf-8")
    assert load_section(file).name == "iqn"


LOOKALIKES = (
    "064",
    "1:00",
    "yes",
    "1e3",
    "0o17",
    "0b1",
    "2024-01-01",
    "1_000",
    "~",
    "null",
    "",
    "=",
    "<<",
    ".inf",
    "-.5",
)


@QUICK
@given(
    st.one_of(st.sampled_from(LOOKALIKES), st.text("0123456789-+.:_eExobyn", max_size=6), st.floats(allow_nan=False))
)
def test_whatever_is_written_is_read_back_the_same(value):
    document = {"a": value, str(value): [value]}
    for style in (None, False, True):
        text = yaml.safe_dump(document, sort_keys=False, default_flow_style=style, allow_unicode=True)
        assert repr(strict_yaml.parse(text)) == repr(document)


def test_a_message_that_repeats_a_value_of_any_size_stays_short(file):
    file.write_text(f"iqn: [{', '.join(['0'] * 50_000)}]\n")
    assert len(outcome(load_section, file)[1]) < 2_100
