"""Promises of the package: tested version ranges, rooms import only those below, a light import."""

import ast
import graphlib
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import quantilax
from quantilax import cli

PROJECT = Path(__file__).parents[2]
SOURCE = Path(quantilax.__file__).parent

GROUND = {"types", "pytree", "switches", "errors"}
PROGRAMS = {"losses", "fractions", "networks", "hyperparameters", "replay", "envs", "learning", "heads"}
RUNNING = {"agent", "devices", "train", "algorithms", "signals", "statistics", "host", "simulators", *PROGRAMS, *GROUND}
BELOW = {
    "errors": set(),
    "host": {"errors"},
    "pytree": {"errors"},
    "types": {"pytree"},
    "switches": {"errors", "host"},
    "simulators": {"errors"},
    "statistics": set(),
    "losses": set(),
    "fractions": {"types"},
    "networks": {"types", "pytree", "errors"},
    "hyperparameters": {"networks", "pytree"},
    "replay": {"types", "pytree", "errors"},
    "envs": {"simulators", "host", *GROUND},
    "learning": {"envs", *GROUND},
    "heads": {"learning", "losses", "fractions", "networks", "hyperparameters", *GROUND},
    "signals": {"heads", "learning", *GROUND},
    "algorithms": {"signals", *PROGRAMS, *GROUND},
    "train": {"signals", "learning", "networks", *GROUND},
    "devices": {"train", "host", *GROUND},
    "arguments": GROUND,
    "agent": {"train", "algorithms", "arguments", "fractions", "learning", "envs", *GROUND},
    "runs": RUNNING,
    "export": {"runs", "arguments", *RUNNING},
    "returns": {"runs", "arguments", *RUNNING},
    "studies": {"runs", *RUNNING},
    "checks": {"studies", "runs", *RUNNING},
    "reports": {"checks", "studies", "returns", "runs", *RUNNING},
    "cli": {"reports", "checks", "studies", "returns", "export", "runs", *RUNNING},
    "__main__": {"cli"},
}
"""Each room, and the rooms that it may look into."""


def imports(file: Path) -> set[str]:
    """Rooms of quantilax that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quantilax":
            parts = (node.module or "").split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("quantilax.")}
    return found


def test_data_flows_one_way():
    for file in SOURCE.rglob("*.py"):
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert imports(file) <= BELOW[room] | {room}, f"{room} looks into a room that is not below it"


@pytest.mark.parametrize("room", [room for room in BELOW if (SOURCE / room).is_dir()])
def test_the_files_of_a_room_do_not_import_each_other_in_a_circle(room):
    files = {f"quantilax.{room}.{file.stem}": file for file in (SOURCE / room).glob("*.py")}
    below = {}
    for name, file in files.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantilax"):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        below[name] = (found & set(files)) - {name}
    list(graphlib.TopologicalSorter(below).static_order())  # raises where there is a circle


def test_environments_are_mapped_over_in_one_place():
    pattern = re.compile(r"vmap\(\s*[\w.]*env\.(reset|step)\b")
    found = [file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py") if pattern.search(file.read_text())]
    assert found == ["envs/vector.py"]


def test_no_file_outside_a_head_asks_which_head_it_is():
    pattern = re.compile(r"\.head *(==|!=|in )|HEADS\[\"")
    files = [file for file in SOURCE.rglob("*.py") if "heads" not in file.relative_to(SOURCE).parts]
    assert [file.name for file in files if pattern.search(file.read_text())] == []


def test_every_room_is_in_the_plan():
    rooms = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(BELOW)


def test_there_is_no_jit_in_an_algorithms_file():
    for file in (SOURCE / "algorithms").glob("*.py"):
        assert "jit(" not in file.read_text()
        assert "@jax.jit" not in file.read_text()


def test_the_public_names_are_few_and_there():
    assert len(quantilax.__all__) <= 25
    assert all(hasattr(quantilax, name) for name in quantilax.__all__)
    assert quantilax.__version__
    assert set(quantilax.__all__) <= set(dir(quantilax))


def test_the_oldest_versions_tested_are_the_lower_ends_of_the_ranges():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    ranges = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    lower = {re.match(r"[\w-]+", r)[0]: re.search(r">=([\d.]+)", r)[1] for r in ranges}
    lines = (PROJECT / "constraints" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned == lower


def test_importing_the_package_imports_nothing_heavy_that_may_not_be_used():
    code = """
import quantilax, sys
light = [m for m in ("jax", "numpy", "click", "rich") if m in sys.modules]
quantilax.IQN
heavy = ("gymnax", "matplotlib", "pandas", "click", "safetensors", "polars", "scipy.stats", "rich.progress", "quantilax.runs")
print(light + [m for m in heavy if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(AttributeError, match="module 'quantilax' has no attribute 'trian'"):
        quantilax.trian  # noqa: B018


def test_gymnaxs_plotting_libraries_are_not_imported_but_work_when_asked_for_and_nobody_else_notices():
    code = """
import builtins, sys
seen, usual = [], builtins.__import__
class Meanwhile:
    def find_spec(name, path=None, target=None):  # what another thread would meet during the import
        if name.startswith('gymnax.environments.misc'):
            seen.append(builtins.__import__ is usual and not {'seaborn', 'matplotlib'} & set(sys.modules))
sys.meta_path.insert(0, Meanwhile)
import quantilax.envs.gymnax as adapter
assert seen and all(seen)
assert not [finder for finder in sys.meta_path if type(finder).__module__ == adapter.__name__]
assert not {'seaborn', 'pandas', 'scipy.stats', 'matplotlib', 'matplotlib.pyplot'} & set(sys.modules)
import gymnax.environments.misc.pong as pong
assert callable(pong.plt.subplots) and callable(pong.colors.ListedColormap)
import matplotlib.pyplot as plt
assert plt.subplots is pong.plt.subplots
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_types_and_configs_are_shipped():
    assert (SOURCE / "py.typed").exists()
    wheel = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "quantilax/configs"}  # where `quantilax.runs.configs` looks first


def test_on_windows_the_command_line_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "error: quantilax needs Linux or macOS; on Windows use WSL\n"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match="need Linux or macOS; on Windows use WSL"):
        runpy.run_path(str(SOURCE / "host" / "locks.py"))
