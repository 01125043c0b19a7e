"""How the program starts and ends: signals before anything heavy is imported, and standard streams that cannot be written."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quantilax.cli import app, stdout
from quantilax.host import console
from quantilax.host.interrupts import Interrupted, Stop

PREPARED = "import os, signal, sys; from quantilax.cli import start; start.prepare(); "
"""It imports no JAX, so a process costs a tenth of a second."""


def python(code: str, shell: str = 'exec "$@"', **more) -> subprocess.CompletedProcess:
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


# Signals


@pytest.mark.parametrize("module", ["quantilax", "quantilax.cli"])
def test_a_signal_while_jax_is_imported_ends_the_command_with_a_line(module, tmp_path):
    (tmp_path / "jax.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(50)\n")
    search = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", module, "list"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": search})
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "ended at once\n")


def test_a_signal_is_not_lost_in_a_finalizer():
    code = "class Last:\n    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\nLast()\nprint('lost')"
    ended = python(PREPARED + "\n" + code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "ended at once\n")


def test_signals_that_are_ignored_or_handled_by_the_caller_stay_so():
    code = "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, signal.getsignal(signal.SIGTERM) is own)"
    before = "import signal; own = lambda *_: None; signal.signal(signal.SIGTERM, own); "
    assert python(before + PREPARED + code, "trap '' INT; exec \"$@\"").stdout == "True True\n"


def test_a_function_that_calls_main_keeps_its_handlers_and_streams(monkeypatch, capsys):
    from quantilax import cli

    monkeypatch.setattr(sys, "argv", ["quantilax", "--version"])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.stdout
    ends: list[object] = []

    def call() -> None:
        with pytest.raises(SystemExit) as end:
            cli.main()
        ends.append(end.value.code)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    call()
    assert ends == [0, 0]
    assert ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.stdout) == before


def test_a_run_leaves_ignored_signals_ignored_and_saves_at_a_hangup(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stop(lambda line: None) as stop:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            stop.is_holding, stop.is_training = False, True
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested == signal.SIGHUP
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Interrupted("", signal.SIGHUP).exit_status == 129


@pytest.mark.parametrize("goes_on", [Stop.wait_for, Stop.finish_first])
def test_a_signal_whose_exception_was_swallowed_ends_the_run_at_the_next_step(goes_on):
    with Stop(lambda line: None) as stop:
        stop.release()
        with contextlib.suppress(Interrupted):  # as the garbage collector's callbacks of JAX do
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted) as told:
            goes_on(stop, lambda: None)
    assert (told.value.exit_status, told.value.at_once) == (130, True)


# Standard streams


def outcome(monkeypatch: pytest.MonkeyPatch, stream: io.TextIOBase, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["quantilax", *arguments])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as end:
        app.main()
    return end.value.code


@pytest.mark.parametrize("arguments", [("--version",), ("list",), ("list-runs", ".")])
def test_output_to_a_full_disk_is_an_error_of_one_line(arguments, monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        assert outcome(monkeypatch, full, *arguments) == 2
    told = capsys.readouterr().err
    assert told == "error: standard output cannot be written: No space left on device\n"


def test_output_without_a_reader_ends_the_command_silently_as_sigpipe_ends_others(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        assert outcome(monkeypatch, pipe, "list") == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_a_failure_to_write_that_a_library_swallows_is_told_in_the_end(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(stdout.LostError), stdout.guarded(), contextlib.suppress(Exception):
            print("some", flush=True)
        assert sys.stdout is full


def test_a_narrow_terminal_cuts_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1")
    assert outcome(monkeypatch, sys.stdout, "list", "--environments", "gymnax") == 0
    assert "CartPole-v1\n" in capsys.readouterr().out


def test_a_width_of_0_is_that_of_no_terminal():
    ended = python(PREPARED + "print(os.environ.get('COLUMNS'))", 'COLUMNS=0 exec "$@"')
    assert ended.stdout == "None\n"


def test_output_in_ascii_stays_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with stdout.guarded():
        app.click.echo("5 · é")
    assert raw.getvalue() == b"5 \\xb7 \\xe9\n"


def test_closed_streams_are_opened_so_that_no_file_takes_their_place():
    code = "import tempfile; file = tempfile.TemporaryFile(); print(1); os.write(int(sys.argv[1]), str(file.fileno()).encode())"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    shell = f'exec "$@" {writer} <&- >&- 2>&-'
    ended = python(PREPARED + code, shell, close_fds=False)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert int(pipe.read()) > 2
    assert ended.returncode == 120  # the interpreter's own: what was printed could not be written


@pytest.mark.parametrize(
    ("term", "more", "expected"),
    [
        ("xterm", {}, True),
        ("dumb", {}, False),
        ("xterm", {"TTY_INTERACTIVE": "0"}, False),
        ("xterm", {"NO_COLOR": "1"}, True),
    ],
)
def test_a_bar_is_drawn_in_a_terminal_that_can_redraw_a_line(term, more, expected, monkeypatch):
    for name, value in {"TERM": term, **more}.items():
        monkeypatch.setenv(name, value)
    ends = pty.openpty()
    with os.fdopen(ends[1], "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert console.is_live(console.console()) == expected
        assert not console.is_live(console.console(quiet=True))
    os.close(ends[0])


def test_forced_colours_draw_no_bar_into_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        assert not console.is_live(console.console())
        with console.status("busy") as say:
            say("still")
    assert (tmp_path / "log").read_text() == ""
