"""Processes of the command line, from their start to their end."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ended(NamedTuple):
    """The outcome of a command."""

    arguments: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """Lines on standard error; matplotlib may say, once per machine, that it builds its font cache."""
        return [line for line in self.stderr.splitlines() if not line.startswith("Matplotlib is building")]


OF_TINY_CONFIGS = (
    "each row of the curve is a mean over",
    "a weight can move about",
    ": the target is slow: ",
    "the schedule has no effect",
)
"""What is said of every config that trains as little as those of conftest.py."""


def heard(stderr: str) -> str:
    """Leave out the warnings that every config as tiny as those of conftest.py gets."""
    lines = stderr.splitlines(keepends=True)
    return "".join(
        line for line in lines if not (line.startswith("warning: ") and any(x in line for x in OF_TINY_CONFIGS))
    )


def ended(arguments: tuple[str, ...], status: int, stdout: str, stderr: str) -> Ended:
    """Make an `Ended`."""
    return Ended(arguments, status, stdout, heard(stderr))


def environment(cache: Path) -> dict[str, str]:
    """Variables of a process whose compiled programs are below `cache`."""
    others = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return others | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}


def process(cwd: Path, cache: Path, *arguments: str) -> Ended:
    """Run the command line as a process of its own."""
    command = [sys.executable, "-m", "quantilax.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(cache), capture_output=True, text=True, timeout=300)
    return ended(arguments, done.returncode, done.stdout, done.stderr)


SERVER = """
import json, os, resource, sys
import matplotlib.backends.backend_agg, polars
from quantilax import cli
from quantilax.runs import loading, overview

for line in sys.stdin:
    asked = json.loads(line)
    if "poll" in asked:
        pid, status = os.waitpid(asked["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *((path, os.O_WRONLY | os.O_CREAT) for path in asked["streams"])]
    ):
        os.dup2(os.open(path, flags, 0o666), number)
    os.chdir(asked["cwd"])
    sys.argv = ["quantilax", *asked["arguments"]]
    if asked["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_size"],) * 2)
    break
else:
    sys.exit()
cli.main()
"""


class Life:
    """A process of the command line."""

    def __init__(self, server: "Server", pid: int, arguments: tuple[str, ...], streams: list[Path]) -> None:
        self.server, self.pid, self.arguments, self.streams = server, pid, arguments, streams
        self.status: int | None = None

    @property
    def stderr(self) -> str:
        return heard(self.streams[1].read_text())

    def poll(self) -> int | None:
        """The exit status (-9 for SIGKILL), or None while it lives."""
        if self.status is None:
            self.status = self.server.ask(poll=self.pid)
        return self.status

    def send(self, number: int) -> None:
        """Send a signal; the server has not reaped it yet, so the number is still its own."""
        assert self.status is None
        os.kill(self.pid, number)

    def until(self, holds: Callable[[], Any], seconds: float = 120, every: float = 0.001) -> None:
        """Wait until something holds; fail where the process ends before."""
        end = time.monotonic() + seconds
        while not holds():
            if self.poll() is not None and not holds():
                pytest.fail(f"{self.arguments} ended with {self.status} too early: {self.stderr}")
            assert time.monotonic() < end, f"{self.arguments} takes too long: {self.stderr}"
            time.sleep(every)

    def wait(self, seconds: float = 120) -> Ended:
        """Wait for its end."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < end, f"{self.arguments} takes too long: {self.stderr}"
            time.sleep(0.005)
        while self.server.drains:
            self.server.drains.pop().wait(10)
        told = (stream.read_text() if stream.is_file() else "" for stream in self.streams)  # /dev/full has no end
        return ended(self.arguments, int(self.status), *told)

    def kill(self) -> None:
        """Kill it with -9 and wait for its end."""
        self.send(signal.SIGKILL)
        self.wait()


class Server:
    """Begins processes by forking one that has imported everything.

    They are real processes (a kill hits the process, the directory and the lock alike), and start
    4 s sooner. `directory` gets their output.
    """

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory, self.numbers = directory, itertools.count()
        self.lives: list[Life] = []
        self.drains: list[subprocess.Popen[bytes]] = []
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=environment(cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def begin(self, cwd: Path, *arguments: str, file_size: int = 0, stderr: str | None = None) -> Life:
        """Begin a process; no file that it writes may grow beyond `file_size` bytes (0: any may)."""
        number = next(self.numbers)
        streams = [self.directory / f"{number}.out", Path(stderr or self.directory / f"{number}.err")]
        ends = [self.drained(stream) for stream in streams] if file_size else streams
        request = {"cwd": str(cwd), "arguments": arguments, "streams": list(map(str, ends)), "file_size": file_size}
        self.lives.append(Life(self, self.ask(**request), arguments, streams))
        return self.lives[-1]

    def drained(self, file: Path) -> Path:
        """A pipe that is copied to a file, so that limits on files do not apply to it."""
        pipe = file.with_suffix(f"{file.suffix}.pipe")
        os.mkfifo(pipe)
        self.drains.append(subprocess.Popen(["sh", "-c", 'exec cat "$0" > "$1"', str(pipe), str(file)]))
        return pipe

    def run(self, cwd: Path, *arguments: str, **limits: int) -> Ended:
        return self.begin(cwd, *arguments, **limits).wait()

    def close(self) -> None:
        for life in self.lives:
            if life.poll() is None:
                life.kill()
        with self.server:
            self.server.stdin.close()
