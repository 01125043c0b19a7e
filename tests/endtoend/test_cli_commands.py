"""What commands print without training: help, lists, resolved configs and warnings."""

import dataclasses
import importlib.metadata
import sys
from pathlib import Path

import pytest
import yaml

from quantilax import ALGORITHMS, Study, pytree, runs
from quantilax.host import console
from tests.endtoend.conftest import Call, tree

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.yaml"))
SECTIONS = [(path, name) for path in CONFIGS for name in yaml.safe_load(path.read_text())]


def resolved(stdout: str) -> tuple[dict, dict[str, str]]:
    """The YAML part of a dry run, and its table."""
    text, table = stdout.split("\nquantity", 1)
    rows = dict(line.split(maxsplit=1) for line in table.splitlines()[1:])
    return yaml.safe_load(text), {quantity: value.strip() for quantity, value in rows.items()}


def test_the_installed_command_is_the_main_of_the_cli():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="quantilax")
    assert script.value == "quantilax.cli:main"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["Usage: ", "train", "list", "--version"]),
        (["-h"], ["Usage: ", "train", "list"]),
        (
            ["train", "--help"],
            ["CONFIG [SECTION]", "FIELD=VALUE", "--seeds", "--seed ", "--out", "--dry-run", "--quiet"],
        ),
        (["list", "--help"], ["Usage: "]),
        (["--version"], [importlib.metadata.version("quantilax")]),
    ],
)
def test_help_and_version_print_to_stdout_and_end_with_status_0(call: Call, tmp_path, arguments, words):
    before = tree(tmp_path)
    ended = call(*arguments)
    assert (ended.status, ended.stderr) == (0, "")
    assert all(word in ended.stdout for word in words)
    assert tree(tmp_path) == before


def test_list_names_every_algorithm_and_environment_and_each_can_be_made(call: Call):
    ended = call("list")
    assert (ended.status, ended.stderr) == (0, "")
    words = {line.split()[0] for line in ended.stdout.splitlines() if line.startswith("  ")}
    assert set(ALGORITHMS) <= words
    for library, known in (("gymnax", "CartPole-v1"), ("probes", "probe/time_limit")):
        assert library in words
        ended = call("list", "--environments", library)
        assert (ended.status, ended.stderr) == (0, "")
        assert known in ended.stdout.splitlines()
    from quantilax import make

    for name in ("CartPole-v1", "probe/corridor"):
        assert make(name).name == name


def test_list_prints_the_fields_of_an_algorithm_with_default_and_meaning(call: Call):
    ended = call("list", "iqn")
    assert (ended.status, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    starts = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert starts == {"field", *(f.name for f in dataclasses.fields(ALGORITHMS["iqn"].config))}
    (risk,) = (line for line in lines if line.startswith("risk "))
    assert risk.split()[1] == "neutral"
    assert "distortion of the acting policy's fractions; one of " in risk
    (sizes,) = (line for line in lines if line.startswith("torso_sizes "))
    assert sizes.split()[1].startswith("[")
    ended = call("list", "iqm")
    assert ended.lines == ["error: unknown algorithm 'iqm'; did you mean 'iqn'?"]


@pytest.mark.parametrize("file", ["tiny.yaml", "tiny_pqn.yaml"])
def test_a_dry_run_prints_the_resolved_config_and_what_follows_and_writes_nothing(call: Call, tmp_path, file):
    call()  # whatever a first call of the process leaves behind
    before = tree(tmp_path)
    ended = call("train", file, "--dry-run", "--seeds", "3", "learning_rate=2e-4", "--out", "never")
    assert (ended.status, ended.stderr) == (0, "")
    assert tree(tmp_path) == before

    agent = runs.load_section(tmp_path / file, None, {"learning_rate": 2e-4}).create()
    name = agent.algorithm.name
    config, table = resolved(ended.stdout)
    assert config == {name: {"algorithm": name, "env": "probe/corridor", **pytree.to_dict(agent.config)}}
    assert config[name]["learning_rate"] == 2e-4
    for quantity, value in agent.config.derived().items():
        assert float(table[quantity].replace(",", "")) == pytest.approx(value, rel=1e-5)
    steps = agent.evaluation_steps
    assert table["evaluations"] == f"{len(steps)}, at environment steps {steps[0]} to {steps[-1]}"
    per_seed, total = (int(part.split()[0].replace(",", "")) for part in table["bytes_of_state"].split(", "))
    assert total == 3 * per_seed
    if name == "iqn":
        # A transition: an observation of 6 cells, action and reward in 4 bytes each, two flags of 1 byte: 34 bytes.
        replay = int(table["bytes_of_replay"].split()[0].replace(",", ""))
        assert 1000 * 34 <= replay <= 1.1 * 1000 * 34
        assert per_seed > replay


def test_what_a_dry_run_prints_is_a_file_that_gives_the_same_dry_run(call: Call, tmp_path):
    first = call("train", "tiny.yaml", "--dry-run", "max_grad_norm=.inf", "learning_rate=1e-5", "activation=gelu")
    assert first.status == 0, first.stderr
    (tmp_path / "again.yaml").write_text(first.stdout.split("\nquantity", 1)[0])
    assert call("train", "again.yaml", "--dry-run").stdout == first.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "tiny.yaml", "iqn", "gamma=0.5", "kappa=2", "--dry-run"],
        ["train", "tiny.yaml", "iqn", "--dry-run", "gamma=0.5", "kappa=2"],
        ["train", "--dry-run", "tiny.yaml", "iqn", "gamma=0.5", "kappa=2"],
        ["train", "tiny.yaml", "gamma=0.5", "--dry-run", "kappa=2"],
        ["train", "--dry-run", "tiny.yaml", "gamma=5e-1", "kappa=2.0"],
        ["train", "tiny.yaml", "--dry-run", "kappa=2", "gamma=.5"],
    ],
)
def test_fields_may_stand_before_and_after_options_and_a_lone_section_be_left_out(call: Call, arguments):
    ended = call(*arguments)
    assert (ended.status, ended.stderr) == (0, "")
    config, _ = resolved(ended.stdout)
    assert (config["iqn"]["gamma"], config["iqn"]["kappa"]) == (0.5, 2.0)


def test_env_and_algorithm_can_be_overridden(call: Call, tmp_path):
    (tmp_path / "bare.yaml").write_text("x:\n  algorithm: iqn\n  env: probe/corridor\n")
    ended = call("train", "bare.yaml", "--dry-run", "env=probe/bimodal", "algorithm=pqn")
    assert ended.status == 0, ended.stderr
    config, _ = resolved(ended.stdout)
    assert (config["x"]["algorithm"], config["x"]["env"]) == ("pqn", "probe/bimodal")
    assert "lambda_" in config["x"]


def test_the_configs_that_come_with_quantilax_are_listed_printed_and_taken_by_their_names(call: Call, tmp_path):
    ended = call("configs")
    assert (ended.status, ended.stderr) == (0, "")
    listed = dict(line.split(": ") for line in ended.stdout.splitlines())
    there = {f"{path.parent.name}/{path.stem}": path for path in CONFIGS}
    assert {name: sections.split(", ") for name, sections in listed.items()} == {
        name: list(yaml.safe_load(path.read_text())) for name, path in there.items()
    }
    cartpole = there["gymnax/cartpole"].read_text()
    assert call("configs", "gymnax/cartpole").stdout == call("configs", "gymnax/cartpole.yaml").stdout == cartpole
    (tmp_path / "mine.yaml").write_text(cartpole)
    dry = call("train", "gymnax/cartpole", "iqn", "--dry-run")
    assert (dry.status, dry.stderr) == (0, "")
    assert dry.stdout == call("train", "mine.yaml", "iqn", "--dry-run").stdout
    ended = call("configs", "gymnax/cartpol")
    assert ended.lines == ["error: no config 'gymnax/cartpol' comes with quantilax; did you mean 'gymnax/cartpole'?"]
    (tmp_path / "gymnax").mkdir()
    (tmp_path / "gymnax" / "cartpole").write_text("mine:\n  algorithm: pqn\n  env: CartPole-v1\n")
    assert "algorithm: pqn" in call("train", "gymnax/cartpole", "--dry-run").stdout  # a file of that name comes first
    (tmp_path / "s.yaml").write_text("base: {config: gymnax/acrobot, section: iqn}\nseeds: 1\n")
    assert Study.load(tmp_path / "s.yaml").base.section.env == "Acrobot-v1"


def test_numbers_that_yaml_reads_as_text_are_coerced(call: Call, tmp_path):
    (tmp_path / "text.yaml").write_text("iqn: {env: probe/corridor, learning_rate: 1e-3, total_timesteps: 1e5}\n")
    ended = call("train", "text.yaml", "--dry-run")
    assert (ended.status, ended.stderr) == (0, "")
    config, _ = resolved(ended.stdout)
    assert config["iqn"]["learning_rate"] == 1e-3
    assert config["iqn"]["total_timesteps"] == 100_000
    assert isinstance(config["iqn"]["total_timesteps"], int)


@pytest.mark.parametrize(("path", "section"), SECTIONS, ids=lambda x: getattr(x, "name", x))
def test_every_section_in_configs_resolves_without_a_warning(call: Call, path, section):
    ended = call("train", str(path), section, "--dry-run")
    assert (ended.status, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("tiny.yaml", ["eval_freq=128"], ["eval_freq=128", "total_timesteps=300", "choose an eval_freq"]),
        ("tiny.yaml", ["eval_freq=50"], ["eval_freq=50", "whole iterations", "multiple of 4"]),
        ("tiny.yaml", ["exploration_fraction=1"], ["exploration never ends", "set exploration_fraction"]),
        ("tiny.yaml", ["eps_end=0.5"], ["exploration never ends", "set eps_end"]),
        ("tiny.yaml", ["batch_size=8"], ["batch_size=8", "set batch_size to 32"]),
        ("tiny.yaml", ["fill_buffer=300"], ["fill_buffer=300", "lower fill_buffer or raise total_timesteps"]),
        ("tiny.yaml", ["fill_buffer=12"], ["fill_buffer=12", "batch_size=16", "set fill_buffer"]),
        ("tiny.yaml", ["buffer_size=12"], ["buffer_size=12", "batch_size=16", "raise buffer_size"]),
        (
            "tiny.yaml",
            ["target_update_freq=10", "polyak=0.99"],
            ["polyak=0.99", "target_update_freq=10", "polyak=0 for a hard one"],
        ),
        ("tiny_pqn.yaml", ["layer_norm=false"], ["layer_norm=false", "set it to true"]),
        ("tiny_pqn.yaml", ["eps_end=0.5"], ["exploration never ends", "set eps_end"]),
        ("tiny_pqn.yaml", ["eval_freq=100"], ["eval_freq=100", "multiple of 64"]),
    ],
)
def test_a_misleading_setting_gives_exactly_one_warning_with_the_remedy(call: Call, file, fields, words):
    ended = call("train", file, "--dry-run", *fields)
    assert ended.status == 0
    assert all(line.startswith(f"warning: {file}: ") for line in ended.lines)
    (_,) = (line for line in ended.lines if all(word in line for word in words))
    beyond = {("buffer_size=12",): "cannot hold one episode", ("target_update_freq=10", "polyak=0.99"): "the target"}
    more = beyond.get(tuple(fields))  # these lie outside of a usual range besides
    assert len(ended.lines) == 1 + (more is not None), ended.lines
    assert more is None or any(more in line for line in ended.lines)


def test_two_misleading_settings_give_a_warning_each(call: Call):
    ended = call("train", "tiny.yaml", "--dry-run", "eps_end=0.5", "batch_size=8")
    assert ended.status == 0
    assert len(ended.lines) == 2
    assert all(line.startswith("warning: ") for line in ended.lines)


def test_train_says_at_once_what_lint_says_by_arithmetic(call: Call):
    ended = call("train", "tiny.yaml", "--dry-run", "learning_rate=0.1")
    assert ended.status == 0
    assert ended.lines == [
        "warning: tiny.yaml: iqn: learning_rate=0.1 is above 0.01, larger than any known to work here; 1e-3 or less"
    ]


@pytest.mark.parametrize(
    "fields", [["target_update_freq=10", "polyak=0"], ["eps_start=0.05", "exploration_fraction=1"]]
)
def test_sound_settings_beside_the_misleading_ones_give_no_warning(call: Call, fields):
    fields = [*fields, "eps_end=0.05"]
    ended = call("train", "tiny.yaml", "--dry-run", *fields)
    assert (ended.status, ended.stderr) == (0, "")


def test_a_categorical_support_that_does_not_cover_the_returns_gives_one_warning_with_the_figures(call: Call, tmp_path):
    section = "c51:\n  env: CartPole-v1\n  total_timesteps: 400\n  eval_freq: 100\n  eval_episodes: 4\n  num_envs: 4\n"
    section += (
        "  num_epochs: 1\n  fill_buffer: 40\n  batch_size: 16\n  torso_sizes: [8]\n  head_sizes: [8]\n  v_min: 0.0\n"
    )
    (tmp_path / "c51.yaml").write_text(section)
    told = call("train", "c51.yaml", "c51", "v_max=2.0", "--out", "narrow", "--quiet", "--no-cache")
    assert told.status == 0
    (line,) = told.lines
    assert line.startswith("warning: v_max: 100% of the returns of an evaluation")
    assert line.endswith("widen the support, or change reward_scale (seen at step 40)")
    assert call("train", "c51.yaml", "c51", "v_max=100.0", "--out", "wide", "--quiet", "--no-cache").lines == []


def test_main_run_again_in_a_process_leaves_standard_error_as_the_first_time(call):
    call("show", "nowhere")
    first = sys.stderr
    assert isinstance(first, console.Lossy)
    call("show", "nowhere")
    assert sys.stderr is first
