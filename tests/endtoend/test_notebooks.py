"""The notebooks run from top to bottom, and are stored without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import each

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
print(sum(len(cell.get("outputs", ())) for cell in notebook.cells))
"""


LEFT = {"study": "corridor-study/report.html", "tour": "walk/study.json"}
"""What each leaves behind."""


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == list(LEFT)


@pytest.mark.parametrize("name", each(LEFT, []))
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, pytestconfig):
    path = NOTEBOOKS[0].with_stem(name)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(pytestconfig.cache.mkdir("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "IPYTHONDIR": str(tmp_path / ".ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    command = [sys.executable, "-c", EXECUTE, str(path)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 0
    assert (tmp_path / LEFT[name]).exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
