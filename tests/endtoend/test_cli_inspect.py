"""`quantilax inspect` and `quantilax video`: from a run to a page and a video, and the page in a browser."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from quantilax import envs, runs
from quantilax.reports import inside
from quantilax.returns import recording
from tests.conftest import tiny
from tests.endtoend.browser import BROWSER, browse, probed
from tests.endtoend.conftest import TINY, TINY_PQN, Call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs `iqn`, of two seeds, and `pqn`."""
    root = tmp_path_factory.mktemp("trained")
    for name, text, seeds in (("iqn", TINY, (0, 1)), ("pqn", TINY_PQN, (0,))):
        (root / f"{name}.yaml").write_text(text)
        runs.run(runs.load_section(root / f"{name}.yaml").create(), root / name, seeds, quiet=True)
    return root


def test_a_run_is_inspected(call: Call, trained: Path):
    ended = call(
        "inspect", str(trained / "iqn"), "--seed", "1", "--episode-seed", "3", "--states", "4", "--out", "x.html"
    )
    assert (ended.status, ended.lines) == (0, [])
    page = Path("x.html").read_text()
    facts = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["facts"]
    assert (facts["run"], facts["seed"], facts["episode_seed"]) == ("iqn", 1, 3)
    told = f"seed 1, step 300: {facts['length']} steps, return {facts['score']:g}\nwritten: x.html\n"
    assert ended.stdout == told
    ended = call("video", str(trained / "iqn"), "--rollouts", "0")
    assert (ended.status, len(ended.lines)) == (2, 1)
    assert ended.lines[0].endswith(
        "iqn: probe/corridor draws no pictures; use quantilax inspect, which shows observations"
    )
    assert not Path("video.gif").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "gone"), "gone"),
        (("inspect", "RUN", "--seed", "9"), "has no seed 9; it has 0, 1"),
        (("inspect", "RUN", "--checkpoint", "first"), "--checkpoint: expected last, best or a number"),
        (("inspect", "RUN", "--checkpoint", "7"), "7"),
        (("inspect", "RUN", "--out", "x.pdf"), "--out: x.pdf must end with .html"),
        (("inspect", "RUN", "--out", "gone/x.html"), "--out: gone/x.html cannot be written: its directory does not"),
        (("inspect", "RUN", "--steps", "1"), "--steps"),
        (("video", "RUN", "--out", "x.avi"), "--out: x.avi must end with .gif or .mp4"),
        (("video", "RUN", "--fps", "0"), "--fps"),
    ],
)
def test_bad_input_is_one_line(call: Call, trained: Path, arguments, words):
    ended = call(*(str(trained / "iqn") if word == "RUN" else word for word in arguments))
    assert (ended.status, len(ended.lines)) == (2, 1), ended.stderr
    assert words in ended.lines[0]


def test_a_run_without_quantiles_is_refused(call: Call, trained: Path, tmp_path):
    shutil.copytree(trained / "pqn", tmp_path / "mean")
    assert yaml.safe_load((tmp_path / "mean" / "config.yaml").read_text())["pqn"]["head"] == "scalar"
    for command in ("inspect", "video"):
        ended = call(command, "mean")
        assert (ended.status, len(ended.lines)) == (2, 1)
        assert ended.lines[0].startswith("error: mean: head: scalar learns expected values, no quantiles; choose ")


# In a browser

PROBE = """
<script>
const failed = [];
addEventListener("error", event => failed.push(event.message));
addEventListener("load", () => setTimeout(async () => {
  const where = () => document.getElementById("where").textContent;
  const shown = () => document.getElementById("frame").src;
  const press = (key, more) => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, ...more}));
  const marks = () => document.querySelectorAll("#rows .rolled circle").length;
  const told = {width: document.documentElement.clientWidth, steps: [where()], marks: [marks()]};
  const first = shown();
  const note = () => told.steps.push(where());
  press("ArrowRight"); note();
  press("ArrowRight", {shiftKey: true}); note();
  press("Home"); note();
  document.getElementById("forth").click(); note();
  told.marks.push(marks());
  const slider = document.getElementById("at");
  slider.value = 5; slider.dispatchEvent(new Event("input")); note();
  told.moved = shown() !== first;
  document.querySelector("#told button").click(); note();
  told.marks.push(marks());
  const box = document.getElementById("time").getBoundingClientRect();
  document.getElementById("time").dispatchEvent(new PointerEvent("pointerdown", {clientX: box.right - 10, bubbles: true}));
  note();
  press("Home");
  const chosen = () => document.querySelector(".row.chosen").dataset.row;
  told.rows = [chosen()];
  press("ArrowDown"); told.rows.push(chosen());
  told.heading = document.getElementById("chosen").textContent;
  press(" ");
  await new Promise(done => setTimeout(done, 500));
  told.playing = document.getElementById("play").getAttribute("aria-label");
  press(" ");
  told.played = where();
  told.frame = document.getElementById("frame").naturalWidth;
  told.scroll = document.documentElement.scrollWidth;
  told.small = [...document.querySelectorAll(".controls button")].map(b => Math.round(b.getBoundingClientRect().height));
  told.failed = failed;
  parent.postMessage(told, "*");
}, 100));
</script>
"""


@pytest.mark.validation
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser_on_desktop_and_phone(tmp_path):
    agent = tiny("iqn", envs.make("Freeway-MinAtar", None, [{"time_limit": {"steps": 40}}]), torso="minatar")
    found = recording.of_agent(agent, agent.init(jax.random.key(0)), 1, 500, 8, 3)
    page = tmp_path / "x.html"
    inside.write(found._replace(facts={"run": "x", "seed": 0, "env_step": 0, "episode_seed": 1} | found.facts), page)
    last, stops = int(found.steps[-1]), [int(found.steps[i]) for i in found.rollouts.stops]
    assert (last, stops) == (39, [0, 20, 39])

    seen = browse(page)
    assert "CONSOLE" not in seen.stderr, seen.stderr  # errors of scripts, and what the page's own policy refused

    told = probed(page, PROBE, (1280, 360))
    rows = len(found.rows)
    for width, on in told.items():
        assert on["failed"] == []
        assert on["scroll"] == int(width), "the body scrolls sideways"
        assert on["steps"] == [f"step {t}" for t in (0, 1, 11, 0, 1, 5, 0, last)]
        assert on["marks"] == [8 * rows, 0, 8 * rows]
        assert on["moved"]
        assert on["rows"] == [str(found.taken[0]), str((found.taken[0] + 1) % rows)]
        assert found.rows[(found.taken[0] + 1) % rows] in on["heading"]
        assert (on["playing"], on["played"] != "step 0", on["frame"]) == ("Pause", True, 10)
        assert min(on["small"]) >= 44, "a finger needs 44 pixels"
    assert np.isfinite(found.rollouts.returns).all()
