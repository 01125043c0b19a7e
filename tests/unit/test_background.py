"""Neither the writer's thread nor messages to the user can end a run or make it wait forever."""

import io
import re
import sys
import threading

import pytest

from quantilax.host import console
from quantilax.host.background import Background
from quantilax.runs.progress import RunProgress
from quantilax.studies.progress import StudyProgress


class Gone:
    """A stream on a disk that is full."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self):
        return False


def test_a_job_that_raises_is_told_and_those_after_it_are_done(monkeypatch):
    told, done = [], []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail():
        raise SystemExit(1)

    def within():
        with Background() as background:
            background.put(fail)
            background.put_large(lambda: fail)
            background.put_large(lambda: lambda: done.append("large"))
            background.finish()

    thread = threading.Thread(target=within, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert done == ["large"]
    assert [one.exc_type for one in told] == [SystemExit, SystemExit]


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


class Proxy:
    """The stream that replaces standard error while Rich draws a progress bar."""

    rich_proxied_file = Gone()

    def write(self, text):
        raise AssertionError

    flush = isatty = write


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("gone", [Gone, closed, lambda: None, Proxy])
@pytest.mark.parametrize("make", [RunProgress, StudyProgress])
def test_what_cannot_be_told_ends_nothing(make, gone, quiet, monkeypatch):
    monkeypatch.setattr(sys, "stderr", gone())
    with make(100, quiet) as progress:
        progress.say("begun")
        progress.warn("a warning")


@pytest.mark.parametrize("make", [RunProgress, StudyProgress])
def test_what_is_told_stands_as_it_is(make, capsys):
    with make(100) as progress:
        progress.say("runs/[bold]x[/bold] is gone on with")
        progress.warn("[/] is odd")
    assert capsys.readouterr().err.splitlines() == ["runs/[bold]x[/bold] is gone on with", "warning: [/] is odd"]


def test_without_a_bar_lines_come_at_a_sane_pace_the_first_and_the_last_always(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    log = console.Log(console.console())
    log.say("compiling")
    for step in range(25):  # one a second
        log.progress(f"step {step}")
        now[0] += 1
    log.end()
    log.end()
    times, lines = zip(*(line.split(" ", 1) for line in capsys.readouterr().err.splitlines()), strict=True)
    assert lines == ("compiling", "step 0", "step 10", "step 20", "step 24")
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", time) for time in times)


def test_without_a_bar_compiling_is_told_at_once(capsys):
    with RunProgress(100) as progress:
        progress.compiling()
        assert capsys.readouterr().err.endswith(" compiling\n")
    with RunProgress(100, quiet=True) as progress:
        progress.compiling()
    assert capsys.readouterr().err == ""


def test_a_lossy_stream_is_the_stream_in_all_else(capsys):
    lossy = console.Lossy(lambda: sys.stderr)
    assert lossy.write("a line\n") == 7
    lossy.flush()
    assert lossy.encoding == sys.stderr.encoding
    assert capsys.readouterr().err == "a line\n"


def test_lossy_streams_one_around_another_ask_the_stream_once():
    class Counting:
        asked = 0

        def __getattr__(self, name):
            self.asked += 1
            raise AttributeError(name)

    stream = counting = Counting()
    for _ in range(50):  # twice in each would never end
        stream = console.Lossy(lambda stream=stream: stream)
    assert getattr(stream, "rich_proxied_file", None) is None
    assert counting.asked == 1
