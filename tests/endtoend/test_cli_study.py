"""`quantilax study` from outside: what it prints and leaves, what it refuses, and a process that is killed midway."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from quantilax.studies.store import Store
from tests.endtoend.conftest import TINY, Call, tree
from tests.endtoend.processes import process

STUDY = """\
question: Does a short horizon hurt?
prediction: The corridor is learned with gamma 0.99 and not with 0.5.
base: {config: tiny.yaml, section: iqn}
variants:
  one_at_a_time: {gamma: [0.5, 0.9]}
  named: {wide: {torso_sizes: [16]}}
seeds: 2
solved: 0.5
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def test_a_dry_run_tells_variants_groups_time_and_memory_and_leaves_nothing(call: Call, study, tmp_path):
    call("list")  # makes tiny.yaml
    before = tree(tmp_path)
    ended = call("study", "study.yaml", "--dry-run", "--jobs", "1")
    assert ended.status == 0
    lines = ended.stdout.splitlines()
    groups = {
        line.split()[0]: line.split()[1] for line in lines if line.split()[:1] and line.split()[0] in ("base", "wide")
    }
    assert groups == {"base": "1", "wide": "2"}
    assert "8 runs to do, 0 finished; 1 job(s), 1 run(s) on each at a time; 2 compile group(s)" in ended.stdout
    assert any(line.startswith("memory: ") and "MiB for the states of 1 run(s)" in line for line in lines)
    assert any(line.startswith("time: ") and "compiling" in line for line in lines)
    assert tree(tmp_path) == before


def test_a_study_says_at_once_which_variants_have_settings_that_mislead(call: Call, tmp_path):
    variants = (
        "{named: {fast: {learning_rate: 0.1}, faster: {learning_rate: 0.2}, both: {learning_rate: 0.1, gamma: 0.5}}}"
    )
    (tmp_path / "s.yaml").write_text(f"base: {{config: tiny.yaml}}\nvariants: {variants}\nseeds: 1\n")
    ended = call("study", "s.yaml", "--dry-run", "--jobs", "1")
    told = "is above 0.01, larger than any known to work here; 1e-3 or less"
    assert ended.lines == [
        f"warning: 2 of 4 variants, such as 'fast': learning_rate=0.1 {told}",
        f"warning: variant 'faster': learning_rate=0.2 {told}",
    ]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (STUDY, ("study", "none.yaml"), "none.yaml: no such file"),
        (
            STUDY.replace("gamma", "gama"),
            (),
            "study.yaml: variant 'gama=0.5': unknown field 'gama'; did you mean 'gamma'?",
        ),
        (STUDY.replace("wide:", "gamma=0.5:"), (), "two variants are called 'gamma=0.5'"),
        (STUDY.replace("seeds: 2", "seeds: [1, 1]"), (), "seeds: 1 is listed twice; leave one out"),
        (
            STUDY.replace("gamma: [0.5, 0.9]", "gamma: 0.5"),
            (),
            "one_at_a_time: gamma: expected a list of values, got 0.5",
        ),
        (STUDY + "seeds: 3\n", (), "'seeds' occurs twice"),
        ("- a\n", (), "study.yaml: contains no study"),
        (STUDY, ("study", "study.yaml", "--jobs", "999"), "--jobs: 999 is more than the"),
        (STUDY, ("study", "study.yaml", "--jobs", "all"), "'--jobs': 'all' is not a valid integer"),
        (STUDY, ("study", "study.yaml", "--out", "tiny.yaml"), "tiny.yaml: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(call: Call, tmp_path, text, arguments, message):
    call("list")
    (tmp_path / "study.yaml").write_text(text)
    before = tree(tmp_path)
    ended = call(*(arguments or ("study", "study.yaml")))
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith("error: ")
    assert message in ended.lines[0]
    assert tree(tmp_path) == before


@pytest.mark.validation
def test_a_study_killed_midway_goes_on_to_the_records_of_one_that_was_not(tmp_path, tmp_path_factory, study):
    cache = tmp_path_factory.mktemp("cache")
    (tmp_path / "tiny.yaml").write_text(TINY.replace("total_timesteps: 300", "total_timesteps: 3000"))
    whole = process(tmp_path, cache, "study", "study.yaml", "--out", "whole", "--quiet")
    assert (whole.status, whole.lines) == (0, [])

    kept = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-m", "quantilax.cli", "study", "study.yaml", "--out", "cut", "--resume"],
            cwd=tmp_path,
            env=os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as life:
            files = tmp_path / "cut" / "records"
            there, deadline = kept, time.monotonic() + 120
            while life.poll() is None and len(list(files.glob("*.parquet"))) <= there and time.monotonic() < deadline:
                time.sleep(0.01)
            life.send_signal(number)
            _, errors = life.communicate(timeout=60)
        kept = len(Store.open(tmp_path / "cut").finished())
        assert kept > there
        if number == signal.SIGINT and life.returncode:  # else it had finished in that instant
            assert life.returncode == 130
            assert "continue with the same command and --resume" in errors
    again = process(tmp_path, cache, "study", "study.yaml", "--out", "cut", "--resume")
    assert again.status == 0
    assert f"of {8 - kept} runs" in again.stderr or kept == 8
    assert_frame_equal(
        Store.open(tmp_path / "cut").records().drop("seconds"), Store.open(tmp_path / "whole").records().drop("seconds")
    )
    facts = json.loads((tmp_path / "cut" / "study.json").read_text())
    assert len(facts["starts"]) == 3
    assert facts["status"] == "finished"
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == ["records.parquet", "study.json"]
