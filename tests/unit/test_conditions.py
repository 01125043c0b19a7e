"""What affects a run's results is recorded, with a digest of the source that computes them."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnax
import jax
import pytest

from quantilax import envs
from quantilax.agent import create
from quantilax.envs.probes import Corridor
from quantilax.host import compilation_cache
from quantilax.runs import identity
from quantilax.runs.checkpoints import Checkpoint
from tests.conftest import TINY, tiny


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of quantilax."""
    for name in ("losses.py", "runs/directory.py", "reports/pages.py", "cli/app.py"):
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text("x = 1\n")
    monkeypatch.setattr(identity, "PACKAGE", tmp_path / "package")
    return tmp_path / "package"


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("losses.py", True),
        ("new.py", True),
        ("runs/directory.py", False),
        ("reports/pages.py", False),
        ("cli/app.py", False),
    ],
)
def test_source_that_computes_counts_and_source_that_handles_runs_does_not(package, changed, counts):
    algo = tiny("iqn")
    before = identity.code(algo)
    assert identity.code(algo) == before
    (package / changed).write_text("x = 2\n")
    assert (identity.code(algo) != before) == counts


def test_the_versions_of_an_environments_library_are_recorded():
    assert envs.versions(SimpleNamespace(name="atari/Pong")) == {"ale-py": importlib.metadata.version("ale-py")}
    algo = tiny("iqn", "gymnasium/CartPole-v1")
    assert identity.machine(algo, 1)["versions"]["gymnasium"] == importlib.metadata.version("gymnasium")
    assert envs.versions(tiny("iqn").env) == {}


@pytest.mark.parametrize("function", ["act", "update"])
def test_the_file_of_an_algorithm_of_ones_own_counts(function, tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("def update(config, state, key): ...\n")
    spec = importlib.util.spec_from_file_location("mine_for_a_digest", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    algo = tiny("iqn")
    mine = create(algo.algorithm._replace(**{function: module.update}), algo.env, TINY["iqn"])
    without, before = identity.code(algo), identity.code(mine)
    file.write_text("def update(config, state, key): return state\n")
    assert before not in (without, identity.code(mine))
    assert identity.code(algo) == without


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({}, None),
        ({"cores": 64}, "the checkpoint was written with cores 64, here it is "),
        ({"device": "TPU"}, "the checkpoint was written with device TPU, here it is cpu"),
        ({"processor": "Z80"}, "the checkpoint was written on Z80, this is "),
        (
            {"jax_default_matmul_precision": "highest"},
            "the checkpoint was written with jax_default_matmul_precision highest, here it is None",
        ),
        (
            {"code": "abc"},
            "the checkpoint was written by different code: the source of quantilax or of the algorithm has changed",
        ),
        ({"versions": {"jax": "9.9.9"}}, "the checkpoint was written with jax 9.9.9, this is "),
    ],
)
def test_a_resumed_run_tells_what_made_its_checkpoint_otherwise(other, line):
    algo = tiny("iqn")
    facts = {"env_step": 60, "seeds": [0], "config": identity.described(algo), **identity.machine(algo, 1)}
    changed = {name: {**facts[name], **x} if name == "versions" else x for name, x in other.items()}
    warned, said = [], []
    progress = SimpleNamespace(warn=warned.append, say=said.append)
    identity.tell_differences(Checkpoint(Path("x"), facts | changed, {}), algo, progress)
    assert said == []
    if line is None:
        assert warned == []
    else:
        (told,) = warned
        assert told.startswith(line)
        assert told.endswith(": the results will not match an uninterrupted run bit for bit")


def test_a_checkpoint_of_a_version_that_did_not_note_code_and_processor_is_told_nothing_of_them():
    algo = tiny("iqn")
    facts = {"env_step": 60, "seeds": [0], "config": identity.described(algo), **identity.machine(algo, 1)}
    del facts["code"], facts["processor"]
    progress = SimpleNamespace(warn=pytest.fail, say=pytest.fail)
    identity.tell_differences(Checkpoint(Path("x"), facts, {}), algo, progress)


def test_an_environments_digest_is_of_its_parameters_and_of_nothing_else():
    cartpole = envs.make("CartPole-v1")
    shorter = dataclasses.replace(cartpole, params=cartpole.params.replace(max_steps_in_episode=200))
    same = dataclasses.replace(cartpole, params=cartpole.params.replace(max_steps_in_episode=500))  # no array
    heavier = dataclasses.replace(cartpole, params=cartpole.params.replace(masscart=1.1))
    digests = [identity.environment(env) for env in (cartpole, shorter, heavier)]
    assert len(set(digests)) == 3
    assert identity.environment(same) == identity.environment(envs.make("CartPole-v1")) == digests[0]
    as_an_object = envs.as_environment(gymnax.make("CartPole-v1")[0])
    assert identity.environment(as_an_object) == digests[0]
    whole = dataclasses.replace(cartpole, params=cartpole.params.replace(gravity=9, max_steps_in_episode=500.0))
    same_numbers = dataclasses.replace(cartpole, params=cartpole.params.replace(gravity=9.0))
    assert identity.environment(whole) == identity.environment(same_numbers)
    breakout = envs.make("Breakout-MinAtar")
    assert identity.environment(breakout) != identity.environment(dataclasses.replace(breakout, probability=0.0))
    assert identity.environment(Corridor(cells=6)) != identity.environment(Corridor(cells=7))


class Own:
    """An environment that is no pytree."""

    def __init__(self, table: float) -> None:
        self.table = table


def test_of_an_environment_that_is_an_object_its_class_is_told():
    assert identity.environment(Own(1.0)) == identity.environment(Own(2.0)) != identity.environment(object())


def test_where_there_is_no_home_the_cache_is_left_alone(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compilation_cache.Path, "home", homeless)
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache with four programs of 100 bytes, the first used last; the time of use of one is unknown."""
    directory = tmp_path / "quantilax" / "xla"
    directory.mkdir(parents=True)
    for i, name in enumerate("dcba"):
        (directory / f"{name}-cache").write_bytes(bytes(100))
        os.utime(directory / f"{name}-cache", (1e9 + 100 * i, 1e9))
        if name != "b":
            (directory / f"{name}-atime").write_bytes(bytes(8))
    (directory / "autotune").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(compilation_cache, "CACHE_BYTES", 250)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    return directory


def test_what_was_not_used_for_the_longest_time_goes_from_a_full_cache(cache):
    compilation_cache.enable_compilation_cache()
    assert sorted(file.name for file in cache.iterdir()) == ["a-atime", "a-cache", "autotune", "b-cache"]


def test_a_cache_that_is_not_full_or_is_bounded_by_the_user_or_lies_elsewhere_is_left_as_it_is(cache, monkeypatch):
    before = sorted(cache.iterdir())
    monkeypatch.setattr(compilation_cache, "CACHE_BYTES", 400)
    compilation_cache.enable_compilation_cache()
    monkeypatch.setattr(compilation_cache, "CACHE_BYTES", 0)
    with monkeypatch.context() as bounded:
        bounded.setattr(type(jax.config), "jax_compilation_cache_max_size", 100)
        compilation_cache.enable_compilation_cache()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    compilation_cache.enable_compilation_cache()
    assert sorted(cache.iterdir()) == before


def test_a_cache_that_another_process_clears_is_no_error(cache, monkeypatch):
    unlink = os.unlink

    def late(path):
        unlink(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", late)
    compilation_cache.enable_compilation_cache()
    assert not (cache / "d-cache").exists()
