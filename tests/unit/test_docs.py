"""The documentation: its tables agree with the code, its Python runs, its links work."""

import dataclasses
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import polars as pl
import pytest
import yaml

from quantilax import ALGORITHMS, ConfigError, pytree
from quantilax.envs.probes import PROBES
from quantilax.heads import HEADS
from quantilax.studies import tables

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
INVESTIGATIONS = ROOT / "investigations"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rows(page: Path) -> dict[str, list[str]]:
    """Cells of every table row of a page whose first cell is a name in code, by that name."""
    cells = (
        [c.strip() for c in line.strip("|").split(" | ")] for line in page.read_text().splitlines() if "| `" in line
    )
    return {first.strip("` "): rest for first, *rest in cells if re.fullmatch(r"`\w+`", first)}


def test_the_tables_are_what_the_configs_and_the_data_of_benchmarks_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "tables.py"), "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_of_q_learning_has_each_head_with_its_hyperparameters():
    listed = rows(DOCS / "algorithms" / "q_learning.md")
    for name, head in HEADS.items():
        fields = {field for group in head.configs for field in pytree.defaults(group)}
        assert set(re.findall(r"`(\w+)`", listed[name][-1])) == fields


def is_accepted(algorithm, **settings):
    try:
        pytree.from_dict(ALGORITHMS[algorithm].config, settings).check()
    except ConfigError:
        return False
    return True


def test_the_page_of_q_learning_tells_what_goes_with_what():
    page = (DOCS / "algorithms" / "q_learning.md").read_text()
    section = page.partition("### What goes with what\n")[2].partition("\n## ")[0]
    top, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.partition("\n\n`double`")[0].strip().splitlines()
    ]
    assert top == ["", *(f"`{head}`" for head in HEADS)]
    told = {row: [{"yes": True, "no": False}[cell] for cell in cells] for row, *cells in lines}
    assert told == {
        "Q-learning": [is_accepted("q_learning", head=head) for head in HEADS],
        "Q-learning with `munchausen`": [is_accepted("q_learning", head=head, munchausen=True) for head in HEADS],
        "[PQN](pqn.md)": [is_accepted("pqn", head=head) for head in HEADS],
        "PQN with `munchausen`": [is_accepted("pqn", head=head, munchausen=True) for head in HEADS],
        "`algo.quantiles`": [head.quantiles is not None for head in HEADS.values()],
    }
    for refused in (
        {"munchausen": True, "double": True},
        {"munchausen": True, "n_step": 2},
        {"head": "quantile", "non_crossing": True, "dueling": True},
    ):
        assert not is_accepted("q_learning", **refused)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_page_of_derived_quantities_has_each_of_them(name):
    listed = rows(DOCS / "guides" / "derived.md")
    assert set(ALGORITHMS[name].config().derived()) | {"evaluations", "bytes_of_replay", "bytes_of_state"} <= set(
        listed
    )


def test_the_example_of_derived_quantities_is_right():
    page = (DOCS / "guides" / "derived.md").read_text()
    intro, _, table = page.partition("### An example\n")[2].partition("\n## ")[0].partition("| quantity |")
    settings = yaml.safe_load("\n".join(re.findall(r"`(\w+: \S+)`", intro)))
    derived = pytree.from_dict(ALGORITHMS["iqn"].config, settings).derived()
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", table, re.MULTILINE))
    assert {k: float(v.replace(",", "")) for k, v in told.items()} == {k: pytest.approx(v) for k, v in derived.items()}


def test_the_page_of_environments_has_each_probe_with_its_fields():
    page = (DOCS / "guides" / "environments.md").read_text()
    assert re.findall(r"^\| `(probe/\w+)` \|", page, re.MULTILINE) == list(PROBES)
    for name, probe in PROBES.items():
        fields = re.search(rf"^\| `{name}` \| ([^|]*) \|", page, re.MULTILINE)[1]
        told = {field: float(value) for field, value in re.findall(r"`(\w+)` (-?[\d.]+)", fields)}
        assert told == {f.name: f.default for f in dataclasses.fields(probe)}


def test_the_columns_and_files_of_a_run_are_told():
    from quantilax.runs.directory import RunDirectory
    from quantilax.runs.evaluations import COLUMNS

    page = (DOCS / "guides" / "runs.md").read_text()
    files = re.findall(r"^ *\| `(\S+)` \|", RunDirectory.__doc__, re.MULTILINE)
    assert len(files) == 8
    for word in (*files, *COLUMNS):
        assert re.search(rf"^\| `{re.escape(word)}` \|", page, re.MULTILINE), word


def test_the_columns_of_the_statistics_are_told():
    page = (DOCS / "guides" / "statistics.md").read_text()
    records = pl.DataFrame({"variant": ["a", "b"], "seed": [0, 0], "env_step": [0, 0], "return_mean": [1.0, 2.0]})
    told = {word for line in page.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line)}
    for table in (tables.outcomes(records, 475), tables.summary(records, 475, "a")):
        names = {re.sub("_(low|high)$", "", name) for name in table.columns}
        assert names - told <= {"variant", "env", "seed"}


def python_of(page: Path) -> str:
    """A page's Python blocks as one program, each line where it stands in the page."""
    text = page.read_text()
    lines = [""] * len(text.splitlines())
    for block in FENCE.finditer(text):
        if block[1] == "python":
            start = text.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[start : start + len(code)] = code
    return "\n".join(lines)


RUNNABLE = [page for page in PAGES if python_of(page).strip()]


def test_the_quickstart_and_the_readme_have_python_to_run():
    assert {"README.md", "docs/quickstart.md"} <= {relative(page) for page in RUNNABLE}


LONG = {
    "docs/quickstart.md", "docs/guides/coming-from.md", "docs/guides/lint.md", "docs/guides/runs.md",
    "docs/calibration.md", "docs/risk.md",
}  # fmt: skip
"""Pages whose programs take six seconds of processor time and more: in `make validate`."""


ALONE = {"docs/guides/custom-head.md", "docs/guides/custom-algorithm.md"}
"""Pages that run in a process of their own, because they register names."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.validation if relative(page) in LONG else ()) for page in RUNNABLE],
    ids=relative,
)
def test_the_python_of_a_page_runs_from_top_to_bottom_without_a_warning(page, tmp_path, pytestconfig, monkeypatch):
    if relative(page) not in ALONE | LONG:  # pytest makes warnings errors here as well
        module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.chdir(tmp_path)
        exec(compile(python_of(page), page, "exec"), vars(module))
        return
    program = tmp_path / page.name  # so that a traceback names the page's own line
    program.write_text(python_of(page))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(pytestconfig.cache.mkdir("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    command = [sys.executable, "-W", "error", str(program)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if page.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link}: the built site holds docs/ alone"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\s-]", "", h).strip().lower().replace(" ", "-") for h in headings}, link


def test_every_page_stands_in_the_navigation():
    listed = re.findall(r"^ *- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_investigation_stands_in_the_table():
    listed = re.findall(
        r"^\| \[(\d{4})\]\(\1(-\S+)/README\.md\)", INVESTIGATIONS.joinpath("README.md").read_text(), re.MULTILINE
    )
    assert ["".join(name) for name in listed] == sorted(page.parent.name for page in INVESTIGATIONS.glob("*/README.md"))


def test_records_of_investigations_stay_small():
    """Finished studies are two files each: quantilax study investigations/NNNN --compact."""
    there = [file for file in INVESTIGATIONS.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert len(there) < 150
    assert sum(file.stat().st_size for file in there) < 5e6
