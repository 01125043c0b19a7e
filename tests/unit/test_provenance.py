"""The commit of a run: what counts as a change to it, and what is only the record of a run."""

import subprocess

import pytest

from quantilax.runs import provenance

COMMITTED = ("src/a.py", "configs/x.yaml", "investigations/0001-q/records.parquet", "investigations/0001-q/run.py")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a commit, in the place of quantilax's."""
    root = tmp_path / "checkout"
    monkeypatch.setattr(provenance, "CHECKOUT", root)
    for name in COMMITTED:
        put(root, name, "as committed")
    put(root, ".gitignore", "/ignored/")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "first")
    return root


def git(root, *words):
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout.strip()


def put(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_clean_checkout_has_its_commit(checkout):
    told = provenance.provenance()
    assert told["commit"] == git(checkout, "rev-parse", "HEAD")
    assert "uncommitted" not in told


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(
    "name",
    ["src/a.py", "src/new/b.py", "configs/x.yaml", "tests/t.py", "docs/ä page.md", "investigations/0001-q/run.py", "x"],
)
def test_a_change_is_told_by_a_plus_and_by_its_path(checkout, name, staged):
    put(checkout, name, "changed")
    if staged:
        git(checkout, "add", ".")
    told = provenance.provenance()
    assert told["commit"] == git(checkout, "rev-parse", "HEAD") + "+"
    assert told["uncommitted"] == [name]


def test_deleted_and_moved_files_count(checkout):
    (checkout / "configs" / "x.yaml").unlink()
    git(checkout, "mv", "src/a.py", "src/b.py")
    assert provenance.changes() == ["configs/x.yaml", "src/a.py", "src/b.py"]


@pytest.mark.parametrize(
    "name",
    [
        "investigations/0001-q/records.parquet",
        "investigations/0002-r/s.yaml",
        "investigations/0002-r/s/study.json",
        "runs/a/run.json",
        "studies/a/validation/study.json",
        "ignored/a.py",
    ],
)
def test_records_of_runs_are_no_changes(checkout, name):
    put(checkout, name, "changed")
    assert provenance.provenance()["commit"] == git(checkout, "rev-parse", "HEAD")


def test_outside_of_a_checkout_there_is_no_commit_and_no_change(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert provenance.provenance()["commit"] is None
    assert provenance.changes() == []
