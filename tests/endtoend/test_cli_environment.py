"""Users' own environments on the command line and in files, named by their class: `module:Class`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import quantilax
from quantilax import ConfigError, Study, envs
from quantilax.agent import create
from tests.conftest import TINY
from tests.endtoend.conftest import TINY_PQN, Call

TINY_SECTION = yaml.safe_load(TINY_PQN)["pqn"]

MODULE = """\
import jax.numpy as jnp
from quantilax import Box, Discrete, TimeStep, pytree


class Plain:
    name = "count"
    observation_space = Box((2,))
    action_space = Discrete(3)

    def __init__(self, steps=5, bonus=0.0):
        self.max_episode_steps, self.bonus = steps, bonus

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(2)

    def step(self, key, state, action):
        done = state == self.max_episode_steps - 1
        reward = jnp.float32(action == 2) + self.bonus
        obs = jnp.zeros(2)
        return jnp.where(done, 0, state + 1), TimeStep(obs, obs, reward, done, jnp.array(False))


class Needy(Plain):
    def __init__(self, steps):
        super().__init__(steps)


@pytree.dataclass
class Leaves:
    bonus: float = 0.0
    name = "leaves"
    observation_space, action_space, max_episode_steps = Plain.observation_space, Plain.action_space, 5
    reset, step = Plain.reset, Plain.step


class Odd:
    name = "odd"


def function(steps=5):
    return Plain(steps)


number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, under a name of its own, that nothing has imported."""
    name = f"grids_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("cls", ["Plain", "Leaves"])
def test_a_class_in_the_working_directory_is_trained_shown_evaluated_and_resumed_by_its_name(call: Call, module, cls):
    search = list(sys.path)
    ended = call("train", "tiny_pqn.yaml", f"env={module}:{cls}", "--out", "run")
    assert ended.status == 0, ended.stderr
    assert sys.path == search
    assert yaml.safe_load(Path("run/config.yaml").read_text())["pqn"]["env"] == f"{module}:{cls}"
    ended = call("show", "run")
    assert (ended.status, ended.stderr) == (0, "")
    assert f"env: {module}:{cls}" in ended.stdout
    ended = call("evaluate", "run", "--episodes", "4")
    assert (ended.status, ended.stderr) == (0, "")
    ended = call("resume", "run", "--total-timesteps", "384")
    assert ended.status == 0, ended.stderr
    assert "warning" not in ended.stderr


def test_a_run_of_an_object_records_its_class_where_that_makes_the_same_object(module):
    name = {cls: f"{module}:{cls}" for cls in ("Plain", "Leaves", "Needy")}
    assert envs.make(name["Plain"]) is envs.make(name["Plain"])  # so that variants of a study share a program
    made = sys.modules[module]
    for env, expected in (
        (made.Plain(), name["Plain"]),
        (made.Plain(steps=5), name["Plain"]),
        (made.Plain(steps=6), "count"),
        (made.Needy(5), "count"),
        (made.Leaves(), name["Leaves"]),
        (made.Leaves(bonus=0.5), "leaves"),
    ):
        assert envs.name_of(envs.as_environment(env)) == expected


def test_a_function_with_arguments_makes_an_environment_and_the_run_records_both(call: Call, module):
    ended = call(
        "train", "tiny_pqn.yaml", f"env={module}:function", "env_args={steps: 7}", "wrappers=[flatten]", "--out", "run"
    )
    assert ended.status == 0, ended.stderr
    section = yaml.safe_load(Path("run/config.yaml").read_text())["pqn"]
    assert {key: section[key] for key in envs.FIELDS} == {
        "env": f"{module}:function",
        "env_args": {"steps": 7},
        "wrappers": ["flatten"],
    }
    assert {row["length_mean"] for row in rows("run")} == {7}
    ended = call("resume", "run", "--total-timesteps", "384")
    assert ended.status == 0, ended.stderr
    assert "warning" not in ended.stderr


def rows(run: str) -> list[dict[str, Any]]:
    lines = Path(run, "evaluations.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line)["seeds"][0].items() if key != "seconds"} for line in lines]


def test_a_run_in_an_environment_of_gymnasium_is_resumed_exactly(call: Call, tmp_path):
    pytest.importorskip("gymnasium", reason="the extra 'gymnasium' is not installed")
    constant = {
        "eps_start": 0.5,
        "eps_end": 0.5,
        "learning_rate_end": 1.0,
    }  # so that the length of the run plays no part
    section = {**TINY_SECTION, **constant, "env": "gymnasium/CartPole-v1", "env_args": {"max_episode_steps": 60}}
    (tmp_path / "gym.yaml").write_text(yaml.safe_dump({"pqn": section}))
    for out, steps in (("whole", 384), ("run", 256)):
        ended = call("train", "gym.yaml", "--out", out, f"total_timesteps={steps}")
        assert ended.status == 0, ended.stderr
    envs.make(section["env"], section["env_args"]).simulation.close()  # as in another process
    ended = call("resume", "run", "--total-timesteps", "384")
    assert (ended.status, "warning" in ended.stderr) == (0, False), ended.stderr
    assert rows("run") == rows("whole")
    assert len(rows("run")) == 4


@pytest.mark.parametrize("mode", [{}, {"vectorization_mode": "async", "num_workers": 1}], ids=["sync", "async"])
def test_what_an_environment_raises_ends_a_run_in_a_line_and_keeps_its_checkpoint(
    call: Call, tmp_path, monkeypatch, mode
):
    pytest.importorskip("gymnasium", reason="the extra 'gymnasium' is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stuck.py").write_text(STUCK)
    section = {**TINY_SECTION, "env": "stuck:Stuck", "env_args": {"max_episode_steps": 20, **mode}}
    (tmp_path / "stuck.yaml").write_text(yaml.safe_dump({"pqn": section}))
    ended = call("train", "stuck.yaml", "--out", "run", "total_timesteps=1280", "eval_freq=128")
    sys.modules.pop("stuck", None)
    assert ended.status == 2
    assert ended.lines[-1] == "error: env: stuck:Stuck: raised RuntimeError: the motor is stuck"
    assert "Traceback" not in ended.stderr
    assert list(Path("run/checkpoints").iterdir())


STUCK = """\
import gymnasium
import numpy as np


class Stuck(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        Stuck.steps += 1
        if Stuck.steps > 1000:
            raise RuntimeError("the motor is stuck")
        return np.zeros(1, np.float32), 1.0, False, False, {}
"""


def test_environments_of_libraries_keep_their_names():
    import gymnax

    for name in ("CartPole-v1", "Breakout-MinAtar", "probe/corridor"):
        assert envs.name_of(envs.make(name)) == name
    assert envs.name_of(envs.as_environment(gymnax.make("CartPole-v1")[0])) == "CartPole-v1"
    without_sticky_actions = envs.as_environment(gymnax.make("Breakout-MinAtar")[0])
    assert envs.name_of(without_sticky_actions) == "gymnax.environments.minatar.breakout:MinBreakout"


def test_a_run_of_an_object_that_no_name_makes_says_what_to_do(call: Call, module, tmp_path):
    envs.make(f"{module}:Plain")
    env = sys.modules[module].Needy(5)
    quantilax.run(create(quantilax.ALGORITHMS["pqn"], env, TINY["pqn"]), tmp_path / "run", quiet=True)
    for arguments in (["show", "run"], ["evaluate", "run"], ["resume", "run"]):
        ended = call(*arguments)
        assert ended.status == 2
        (line,) = ended.lines
        assert line.startswith(
            "error: run: was trained in 'count', which cannot be made from its name here; pass env= from Python"
        )
    assert quantilax.resume(tmp_path / "run", env=env, quiet=True).status == "finished"


def test_a_class_whose_defaults_changed_since_is_told_apart(call: Call, module, tmp_path):
    envs.make(f"{module}:Plain")
    quantilax.run(create(quantilax.ALGORITHMS["pqn"], f"{module}:Plain", TINY["pqn"]), tmp_path / "run", quiet=True)
    file = tmp_path / f"{module}.py"
    file.write_text(file.read_text().replace("bonus=0.0", "bonus=0.25"))
    del sys.modules[module]
    ended = call("evaluate", "run")
    assert ended.status == 2
    assert "run: was trained on 'count' with other parameters than its defaults" in ended.stderr


def test_the_variants_of_a_study_take_a_class_and_share_its_object(module, tmp_path):
    (tmp_path / "tiny.yaml").write_text("pqn:\n  env: probe/corridor\n")
    base = {"config": "tiny.yaml", "overrides": {"env": f"{module}:Plain"}}
    study = Study.make({"base": base, "variants": {"one_at_a_time": {"gamma": [0.5]}}, "seeds": 1})
    one, other = (study.create(variant).env for variant in study.variants)
    assert one is other
    assert one.name == "count"
    made = sys.modules[module]
    with pytest.raises(ConfigError, match=r"env: expected a name, got .*; name a class of your own as module:Class"):
        Study.make({"base": {**base, "overrides": {"env": made.Plain()}}})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "no_such_module:Grid",
            "env: there is no module 'no_such_module'; run in the directory where it lies, install",
        ),
        ("json.nothing:Grid", "env: there is no module 'json.nothing'; "),
        ("{}:Plane", "env: {} has no class 'Plane'; did you mean 'Plain'?"),
        ("{}:number", "env: {}:number is not a class or function; "),
        ("{}:Needy", "env: {}:Needy cannot be constructed without arguments (TypeError: "),
        (
            "{}:Odd",
            "env: Odd has no 'observation_space'; give a name, a gymnax environment, or an object or module:Class",
        ),
        ("{}:3x", "env: '{}:3x' is not the name of a class; write module:Class, such as mypackage.envs:GridWorld"),
        ("./grid.py:Grid", "env: './grid.py:Grid' is not the name of a class; write module:Class"),
        (
            "broken_{}:Grid",
            "env: the module broken_{} cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        ),
    ],
)
def test_a_name_that_stands_for_no_environment_is_refused_in_a_line(call: Call, module, tmp_path, name, line):
    (tmp_path / f"broken_{module}.py").write_text("import nowhere\n")
    ended = call("train", "tiny_pqn.yaml", f"env={name.format(module)}", "--out", "run")
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert line.format(module, module) in ended.lines[0]
    assert not (tmp_path / "run").exists()


def test_libraries_and_their_environments_are_listed(call: Call):
    ended = call("list", "--environments")
    assert ended.status == 0
    assert "quantilax list --environments gymnax" in ended.stdout
    ended = call("list", "--environments", "probes")
    assert ended.stdout.split()[:2] == ["probe/bimodal", "probe/geometric"]
    ended = call("list", "--environments", "gymnx")
    assert (ended.status, ended.lines[-1]) == (2, "error: unknown library 'gymnx'; did you mean 'gymnax'?")


def test_an_environment_is_checked_and_played(call: Call, module, tmp_path):
    ended = call("check-env", f"{module}:function", "env_args={steps: 3}", "--steps", "200")
    assert ended.status == 1, ended.stdout
    assert "64 of 64 episodes terminate after 3 steps" in " ".join(ended.stdout.split())
    assert "every episode begins with the same observation" in " ".join(ended.stdout.split())
    ended = call("play", f"{module}:Plain", "--episodes", "2")
    assert [line.split(", ")[0] for line in ended.stdout.splitlines()] == ["episode 0: 5 steps", "episode 1: 5 steps"]
    ended = call("play", f"{module}:Plain", "--video", "x.gif")
    assert (ended.status, ended.lines[-1].partition(" has no pictures")[0]) == (2, "error: --video: count")
    ended = call("play", f"{module}:Plain", "--video", "x.avi")
    assert (ended.status, ended.lines[-1]) == (2, "error: --video: x.avi must end with .gif or .mp4")
    ended = call("check-env", f"{module}:Plain", "gamma=1")
    assert (ended.status, "known fields: env_args, wrappers" in ended.stderr) == (2, True)


def test_the_policy_of_a_run_plays_in_its_own_environment(call: Call, module):
    ended = call("train", "tiny_pqn.yaml", f"env={module}:Plain", "--out", "run")
    assert ended.status == 0, ended.stderr
    ended = call("play", "count", "--policy", "run")
    assert (ended.status, ended.stdout.startswith("episode 0: 5 steps, return ")) == (0, True), ended.stderr
    ended = call("play", "CartPole-v1", "--policy", "run")
    assert (ended.status, ended.lines[-1]) == (
        2,
        "error: --policy: run was trained in count, not in CartPole-v1; use that name",
    )
