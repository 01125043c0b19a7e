"""`quantilax lint` from outside: what it prints, how it ends, what it refuses."""

import json
from pathlib import Path

import pytest

from quantilax.algorithms import IQN
from quantilax.checks import inert
from tests.endtoend.conftest import TINY, Call, tree
from tests.endtoend.processes import process

SOUND = ("eval_episodes=10", "num_epochs=4", "learning_rate=1e-2", "gamma=0.9", "total_timesteps=900", "eval_freq=300")
"""With these there is nothing against `tiny.yaml` but notes."""
TINY_DQN = TINY.split("  num_cosines")[0].replace("iqn", "dqn")
"""Without the fields of IQN alone, of which each takes a trace or several."""


@pytest.mark.validation
def test_a_process_of_its_own_confirms_what_it_finds_and_leaves_nothing_in_the_directory(tmp_path):
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    (root / "tiny.yaml").write_text(TINY_DQN)
    before = tree(root)
    ended = process(root, cache, "lint", "tiny.yaml", "dqn", *SOUND, "munchausen_alpha=0.9", "--json")
    assert (ended.status, ended.lines) == (1, [])
    told = json.loads(ended.stdout)
    assert {k: told[k] for k in ("config", "section", "confirm")} == {
        "config": "tiny.yaml",
        "section": "dqn",
        "confirm": True,
    }
    (bonus,) = (finding for finding in told["findings"] if finding["field"] == "munchausen_alpha")
    assert set(bonus) == {"severity", "field", "finding", "evidence", "remedy"}
    # 64 iterations of 4 steps after the warm-up of 40.
    assert bonus["evidence"] == (
        "by the program; confirmed: curves with munchausen_alpha=0.4 are equal, bit for bit, over 296 environment steps"
    )
    assert {finding["field"] for finding in told["findings"] if finding["severity"] != "note"} == {"munchausen_alpha"}
    assert tree(root) == before


def test_findings_beyond_notes_end_with_status_1_and_stand_in_a_table_warnings_at_creation_included(
    call: Call, monkeypatch
):
    examined = {"risk", "risk_eta", "munchausen", "munchausen_alpha", "prioritized", "priority_exponent"}
    monkeypatch.setattr(inert, "LOOP", tuple(set(IQN.__dataclass_fields__) - examined))  # each takes a trace
    fields = ("risk_eta=0.5", "target_update_freq=2", "batch_size=8")
    ended = call("lint", "tiny.yaml", "--no-confirm", *SOUND, *fields)
    assert (ended.status, ended.stderr) == (1, "")
    head, *rows = ended.stdout.splitlines()
    assert head.split() == ["severity", "field", "finding", "evidence", "remedy"]
    starts = [row.split()[:2] for row in rows if row[0] != " "]
    names = ("batch_size", "target_time_constant_updates", "risk_eta")
    assert starts[:3] == [["warning", name] for name in names]
    words = " ".join(ended.stdout.split())
    assert "by arithmetic" in words
    assert "by the program" in words
    assert "confirmed" not in words
    told = json.loads(call("lint", "tiny.yaml", "--no-confirm", *SOUND, *fields, "--json").stdout)
    assert (told["section"], told["confirm"]) == ("iqn", False)
    assert [finding["field"] for finding in told["findings"]][:3] == list(names)


def test_nothing_to_find_is_said(call: Call, monkeypatch):
    monkeypatch.setattr("quantilax.checks.lint.lint", lambda *_, **__: [])
    ended = call("lint", "tiny.yaml")
    assert (ended.status, ended.stdout, ended.stderr) == (0, "nothing found\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope.yaml"], "error: nope.yaml: no such file"),
        (["tiny.yaml", "iqm"], "no section 'iqm'; did you mean 'iqn'?"),
        (["tiny.yaml", "learning_rat=1"], "unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        (["tiny.yaml", "gamma=2"], "gamma: must be >= 0 and <= 1, got 2.0"),
        (["tiny.yaml", "gamma"], "no section 'gamma'"),
        (["tiny.yaml", "buffer_size=2"], "buffer_size: 2 cannot hold one step of num_envs=4; raise it"),
        (["tiny.yaml", "env=Pendulum-v1"], "Pendulum-v1 has continuous actions and iqn needs discrete ones"),
        (["tiny.yaml", "buffer_size=2e9"], "GiB"),
        (["tiny.yaml", "--steps", "0"], "--steps"),
        (["tiny.yaml", "--seeds", "2"], "--seeds"),
        ([], "Missing argument 'CONFIG'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_read_is_refused_with_one_line_and_status_2(call: Call, tmp_path, arguments, words):
    before = tree(tmp_path)
    ended = call("lint", *arguments)
    assert (ended.status, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert tree(tmp_path) == before


def test_the_page_of_lint_has_the_borders_that_the_code_has():
    from quantilax.checks import inert, ranges

    page = (Path(__file__).parents[2] / "docs" / "guides" / "lint.md").read_text()
    low, high = ranges.SAMPLES_PER_STEP
    near, far = ranges.HORIZONS
    for words in (
        f"below {low:g} or above {high:g}",
        f"below {ranges.TARGET_UPDATES:g} gradient steps",
        f"fewer than {ranges.TARGETS_PER_RUN:g} of them",
        f"after {ranges.EXPLORATION:.0%} of the run",
        f"over {ranges.WARMUP:.0%} of the run",
        f"fewer than {ranges.EVAL_EPISODES}",
        f"above {ranges.LEARNING_RATE:g}",
        f"less than {ranges.TRAVEL:g}",
        f"below {near:g} or above {far:g} times",
        f"{inert.STEPS:,} environment steps",
        f"{inert.TRIAL_STEPS} environment steps",
        f"{inert.TRIAL_EPISODES} episodes",
    ):
        assert words in " ".join(page.split()), words
