"""Users' mistakes give one line on standard error and status 2, and change nothing on disk."""

import json
import os
import resource
from pathlib import Path

import jax
import pytest

from quantilax.runs import checkpoints
from tests.endtoend.conftest import TINY, TINY_DQN, TINY_PQN, Call, tree
from tests.endtoend.processes import Ended

BOTH = TINY + TINY_PQN
BARE = "iqn:\n  env: probe/corridor\n"


def refused(ended: Ended) -> str:
    """The one line of a refusal, which is all there is."""
    assert ended.status == 2, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.endswith("\n")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def refusal(call: Call, tmp_path: Path):
    """Call, and return the error's line after checking that the disk is as before."""

    def run(*arguments: str) -> str:
        before = tree(tmp_path)
        line = refused(call(*arguments))
        assert tree(tmp_path) == before
        return line

    return run


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["learning_rat=1"], "command line: unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        (["xyzzy=1"], "command line: unknown field 'xyzzy'; the nearest fields are "),
        (["xyzzy=1"], "; quantilax list ALGORITHM lists all"),
        (["learning_rate=fast"], "learning_rate: expected a number, got 'fast'"),
        (["learning_rate=true"], "learning_rate: expected a number, got True"),
        (["learning_rate="], "learning_rate: expected a number, got None"),
        (["learning_rate=[1]"], "learning_rate: expected a number, got [1]"),
        (["learning_rate=.nan"], "learning_rate: expected a number, got nan"),
        (["learning_rate=-1"], "learning_rate: must be >= 0, got -1.0"),
        (["batch_size=16.5"], "batch_size: expected a whole number, got 16.5"),
        (["batch_size=yes"], "batch_size: expected a whole number, got 'yes'"),
        (["batch_size=0"], "batch_size: must be >= 1, got 0"),
        (["total_timesteps=.inf"], "total_timesteps: expected a whole number, got inf"),
        (["total_timesteps=1e10"], "total_timesteps: must be "),
        (["gamma=1.01"], "gamma: must be >= 0 and <= 1, got 1.01"),
        (["priority_exponent=1.5"], "priority_exponent: must be >= 0 and <= 1, got 1.5"),
        (["double=1"], "double: expected true or false, got 1"),
        (["torso_sizes=64"], "torso_sizes: expected a list of whole numbers, got 64"),
        (["torso_sizes=[64, wide]"], "torso_sizes: expected a list of whole numbers"),
        (["torso_sizes=[64, 0]"], "torso_sizes: must be >= 1, got (64, 0)"),
        (["activation=rellu"], "activation: unknown value 'rellu'; did you mean 'relu'?"),
        (["risk=3"], "risk: expected text, got 3"),
        (["env=probe/corrido"], "unknown environment 'probe/corrido'; did you mean 'probe/corridor'?"),
        (["env=CartPole-v2"], "unknown environment 'CartPole-v2'; did you mean 'CartPole-v1'?"),
        (["env=xyzzy"], "unknown environment 'xyzzy'; the nearest environments are "),
        (["env=xyzzy"], "; quantilax list --environments gymnax lists all; a class of your own is named module:Class"),
        (["env=Pendulum-v1"], "env: Pendulum-v1 has continuous actions and iqn needs discrete ones; choose another"),
        (["env=3"], "env: expected a name, got 3"),
        (["algorithm=iqm"], "unknown algorithm 'iqm'; did you mean 'iqn'?"),
        (["algorithm="], "algorithm: expected a name, got None"),
        (["gamma"], "expected field=value, got 'gamma'; for example learning_rate=1e-3"),
        (["=1"], "expected field=value, got '=1'; for example learning_rate=1e-3"),
        (["torso_sizes=[64"], "torso_sizes: cannot read '[64' as a YAML value"),
        (["buffer_size=2"], "buffer_size: 2 cannot hold one step of num_envs=4; raise it"),
        (["total_timesteps=3"], "total_timesteps: 3 is less than one step of num_envs=4; raise it"),
    ],
    ids=lambda x: "" if isinstance(x, str) else x[0],
)
def test_a_bad_field_on_the_command_line_is_refused_with_the_remedy(refusal, fields, words):
    assert words in refusal("train", "tiny.yaml", "iqn", *fields)


@pytest.mark.parametrize("value", ["2020-13-45", "0x_", "!!int many", "!!timestamp now", "9" * 5000])
def test_a_value_that_only_looks_like_yaml_is_refused(refusal, value):
    assert "gamma" in refusal("train", "tiny.yaml", f"gamma={value}")


@pytest.mark.parametrize("field", ["num_epochs=3e9", "target_update_freq=3e9", "eval_episodes=1e30"])
def test_a_count_that_no_program_can_hold_is_refused(call: Call, tmp_path, field):
    before = tree(tmp_path)
    ended = call("train", "tiny.yaml", field, "polyak=0")
    assert field.split("=")[0] in refused(ended)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("arguments", [["gam\nma=1"], ["gam\nma"], ["env=probe\ncorridor"], ["--out", "tiny.yaml/\nx"]])
def test_a_line_break_in_an_argument_does_not_break_the_error_into_lines(refusal, arguments):
    refusal("train", "tiny.yaml", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["trian", "tiny.yaml"], "No such command 'trian'"),
        (["train", "tiny.yaml", "--seedz", "3"], "--seedz"),
        (["train", "tiny.yaml", "--seeds", "0"], "--seeds"),
        (["train", "tiny.yaml", "--seeds", "-1"], "--seeds"),
        (["train", "tiny.yaml", "--seeds", "1.5"], "--seeds"),
        (["train", "tiny.yaml", "--seeds"], "--seeds"),
        (["train", "tiny.yaml", "--seed", "-1"], "--seed"),
        (
            ["train", "tiny.yaml", "--seed", "4294967295", "--seeds", "2"],
            "--seed: 4294967295 is too large for 2 seeds",
        ),
        (["train", "tiny.yaml", "--out"], "--out"),
        (["list", "--all"], "--all"),
    ],
    ids=lambda x: "" if isinstance(x, str) else " ".join(x),
)
def test_a_bad_option_is_refused_by_its_name(refusal, arguments, words):
    assert words in refusal(*arguments)


def test_no_command_at_all_gives_the_help_or_one_error_line_and_never_an_error_of_many_lines(call: Call):
    ended = call()
    if "error: " in ended.stderr:
        refused(ended)
    else:
        assert "Usage: " in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains no sections; expected lines such as 'iqn:'"),
        ("# only a comment\n", "contains no sections"),
        ("- iqn\n- pqn\n", "contains no sections"),
        ("hello\n", "contains no sections"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is not a text file; expected YAML in UTF-8"),
        (b"iqn:\n  env: a\x00b\n", "broken YAML"),
        ("iqn:\n  env: [probe/corridor\n  gamma: 0.9\n", "line 3: broken YAML"),
        ("iqn:\n\tenv: probe/corridor\n", "line 2: broken YAML"),
        (BARE + "  gamma: 0.9\n  gamma: 0.8\n", "line 4: broken YAML: 'gamma' occurs twice"),
        (BARE + "iqn:\n  env: probe/bimodal\n", "line 3: broken YAML: 'iqn' occurs twice"),
        ("a: 1\n---\nb: 2\n", "line 2: broken YAML"),
        ("1: {env: probe/corridor}\n", "line 1: broken YAML: expected a name, got 1"),
        ("iqn: !!python/object:os.system x\n", "line 1: broken YAML"),
        ("iqn: &a\n  env: probe/corridor\n  gamma: *a\n", "broken YAML"),
        ("iqn:\n", "iqn: expected fields such as 'env: CartPole-v1', got None"),
        ("iqn: probe/corridor\n", "iqn: expected fields such as 'env: CartPole-v1', got 'probe/corridor'"),
        ("iqn:\n  gamma: 0.9\n", "iqn: missing field 'env'"),
        ("mine:\n  env: probe/corridor\n", "mine: unknown algorithm 'mine'"),
        (BARE + "  learning_rat: 1e-3\n", "iqn: unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        (BARE + "  learning_rate: fast\n", "iqn: learning_rate: expected a number, got 'fast'"),
        (BARE + "  kappa: 0\n", "iqn: kappa: must be >= 1e-16, got 0.0"),
        (BARE + "  gamma: 2020-13-45\n", "file.yaml"),
        (BARE + "  gamma: !!int many\n", "file.yaml"),
        (BARE + "  gamma: " + "9" * 5000 + "\n", "file.yaml"),
        (BARE + "  torso_sizes: " + "[" * 3000 + "\n", "file.yaml"),
        (BARE + "  torso_sizes: " + "[" * 900 + "]" * 900 + "\n", "file.yaml"),
        (BARE + '  "gam\\nma": 1\n', "file.yaml"),
        ('iqn:\n  env: "probe\\ncorridor"\n', "file.yaml"),
        ("pqn:\n  env: probe/corridor\n  num_minibatches: 7\n", "num_minibatches: 7 does not divide"),
        ("pqn:\n  env: Pendulum-v1\n", "Pendulum-v1 has continuous actions and pqn needs discrete ones"),
    ],
    ids=lambda x: repr(x[:40]) if isinstance(x, bytes) else repr(x[-40:]),
)
def test_a_bad_file_is_refused_by_its_name_and_line(refusal, tmp_path, text, words):
    (tmp_path / "file.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    line = refusal("train", "file.yaml")
    assert line.startswith("error: file.yaml")
    assert words in line


def test_a_missing_file_is_refused(refusal):
    assert refusal("train", "nope.yaml").startswith("error: nope.yaml: no such file; quantilax configs lists ")


def test_a_directory_as_file_is_refused(refusal, tmp_path):
    (tmp_path / "folder").mkdir()
    assert refusal("train", "folder").startswith("error: folder: cannot be read: ")


def test_a_file_below_a_file_is_refused(refusal):
    assert refusal("train", "tiny.yaml/x").startswith("error: tiny.yaml/x: cannot be read: ")


def test_an_unknown_section_is_refused_with_a_suggestion(refusal, tmp_path):
    (tmp_path / "both.yaml").write_text(BOTH)
    assert "no section 'iqm'; did you mean 'iqn'?" in refusal("train", "both.yaml", "iqm")


def test_a_section_must_be_named_where_there_are_several(refusal, tmp_path):
    (tmp_path / "both.yaml").write_text(BOTH)
    assert "has several sections; name one of iqn, pqn" in refusal("train", "both.yaml")
    assert "has several sections; name one of iqn, pqn" in refusal("train", "both.yaml", "gamma=0.9")


def test_an_out_directory_that_holds_anything_is_refused(refusal, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "notes.txt").write_text("mine")
    line = refusal("train", "tiny.yaml", "--out", "held")
    assert line == "error: --out: held is not empty, and nothing is overwritten; choose another directory"


@pytest.mark.parametrize("out", ["tiny.yaml", "tiny.yaml/run", "tiny.yaml/a/b"])
def test_an_out_directory_that_is_or_lies_below_a_file_is_refused(refusal, out):
    line = refusal("train", "tiny.yaml", "--out", out)
    assert line.startswith(f"error: --out: {out} ")
    assert line.endswith("choose another directory")


def test_an_out_directory_that_cannot_be_made_is_refused(refusal):
    name = "x" * 300  # longer than any file system takes, for root too
    assert refusal("train", "tiny.yaml", "--out", name).startswith(f"error: --out: {name} cannot be created: ")


def test_an_out_directory_that_cannot_be_made_leaves_no_parents_behind(refusal):
    refusal("train", "tiny.yaml", "--out", f"a/b/{'x' * 300}")


def test_an_out_directory_that_cannot_be_written_to_is_refused(refusal, tmp_path, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom no mode stops: let the question be answered as for anyone else
        monkeypatch.setattr(os, "access", lambda path, mode, **_: not (mode & os.W_OK and str(path).endswith("locked")))
    line = refusal("train", "tiny.yaml", "--out", "locked")
    assert line == "error: --out: locked cannot be written to; choose another directory"


def test_a_refused_out_directory_does_not_even_leave_a_cache_behind(refusal, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refusal("train", "tiny.yaml", "--out", "tiny.yaml")


@pytest.mark.parametrize("out", [[], ["--out", "new/run"]], ids=["default", "out"])
def test_a_buffer_larger_than_memory_is_refused_before_anything_is_made(refusal, out):
    # 2e9 transitions of 58 bytes, a thousand times: 108 TiB.
    line = refusal("train", "tiny.yaml", "buffer_size=2e9", "--seeds", "1000", *out)
    assert "GiB" in line
    assert "lower buffer_size or --seeds" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--seeds", "4000000000"], "--seeds"), (["total_timesteps=2147483647", "eval_freq=1"], "eval_freq")],
    ids=["seeds", "evaluations"],
)
def test_a_count_that_no_memory_holds_is_refused_before_anything_is_made(call: Call, tmp_path, arguments, words):
    before = tree(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, hard))  # so that a list of billions fails here, and fast
    try:
        ended = call("train", "tiny.yaml", "eps_end=0.05", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert words in refused(ended)
    assert tree(tmp_path) == before


def test_memory_that_runs_out_while_training_is_one_error_line_and_a_failed_status(call: Call, tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1149000005568 bytes.")

    monkeypatch.setattr("quantilax.runs.session.devices.trace_fit", exhausted)
    line = refused(call("train", "tiny.yaml", "--quiet", "--out", "run"))
    assert "memory" in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"].startswith("failed")


def test_an_interrupted_run_ends_with_status_130_and_does_not_claim_to_be_running(call: Call, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("quantilax.runs.session.devices.trace_fit", interrupted)
    ended = call("train", "tiny.yaml", "--quiet", "--out", "run")
    assert ended.status == 130
    assert "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] != "running"


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["resume"],
        ["evaluate"],
        ["list-runs"],
        ["diagnose"],
        ["report"],
        ["recommend"],
        ["study"],
        ["lint"],
        ["--import"],
        ["study", "study.yaml", "--resume", "--out"],
        ["study", "study.yaml", "--out"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_longer_than_any_file_systems_is_refused(refusal, tmp_path, arguments):
    (tmp_path / "study.yaml").write_text("base: {config: tiny.yaml, section: iqn}\nseeds: 2\n")
    name = "x" * 300
    assert name in refusal(*arguments, name)


def test_a_study_whose_config_has_too_long_a_name_is_refused(refusal, tmp_path):
    (tmp_path / "study.yaml").write_text(f"base: {{config: {'x' * 300}}}\n")
    assert "cannot be read: File name too long" in refusal("study", "study.yaml")


def test_a_checkpoints_directory_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(checkpoints.CheckpointError, match="cannot be read: Permission denied"):
        checkpoints.steps(tmp_path)


def test_a_config_whose_name_is_no_text_is_no_hindrance(call: Call, tmp_path):
    name = os.fsdecode(b"caf\xe9.yaml")
    (tmp_path / name).write_text(TINY_DQN)
    ended = call("train", name, "-q", "--out", "run")
    assert ended.status == 0, ended.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    ended = call("show", "run")
    assert (ended.status, ended.stderr) == (0, "")
    assert "train 'caf\\udce9.yaml' -q --out run" in ended.stdout


@pytest.mark.parametrize("command", [["train", "tiny.yaml"], ["study", "study.yaml"]], ids=lambda x: x[0])
def test_an_out_directory_whose_name_is_no_text_is_refused(refusal, tmp_path, command):
    (tmp_path / "study.yaml").write_text("base: {config: tiny.yaml}\nseeds: 1\n")
    line = refusal(*command, "--out", os.fsdecode(b"caf\xe9"))
    assert line == "error: --out: caf\\udce9 is not valid UTF-8; choose another directory"


def test_episodes_that_no_memory_holds_are_one_line(call: Call, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1149000005568 bytes.")

    monkeypatch.setattr("quantilax.runs.evaluate", exhausted)
    assert refused(call("evaluate", "run", "--no-cache")) == "error: out of device memory; lower --episodes"


def test_a_logger_that_is_given_twice_is_refused(refusal):
    line = refusal("train", "tiny.yaml", "--log", "tensorboard", "--log", "tensorboard", "--out", "run")
    assert line == "error: log: tensorboard is given twice; leave one out"
