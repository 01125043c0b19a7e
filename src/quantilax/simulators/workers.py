"""Benches in processes of their own, which step side by side.

`python -m quantilax.simulators.workers FD` is such a process. It imports neither JAX nor the
program that began it.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from quantilax.errors import reason
from quantilax.simulators import Form, Maker, SimulatorError
from quantilax.simulators.bench import Bench, Rows, Steps


class Workers:
    """The methods of a `Bench`, spread over processes by the numbers of handles."""

    def __init__(self, maker: Maker, form: Form, number: int) -> None:
        """Begin `number` processes."""
        try:
            told = pickle.dumps((maker, form, [*sys.path, os.getcwd()]))  # where `env: module:Class` looks as well
        except Exception as error:  # pickling runs a user's code
            raise SimulatorError(f"its arguments cannot be sent to processes: {reason(error)}") from None
        self._workers = [_Worker(told) for _ in range(number)]

    def begin(self, handles: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Bench.begin`."""
        obs, legal = self._spread("begin", handles, handles, seeds)
        return obs, legal

    def step(self, rows: Rows, actions: np.ndarray, next_seeds: np.ndarray) -> Steps:
        """See `Bench.step`."""
        return Steps(*self._spread("step", rows.handle, rows, actions, next_seeds))

    def replay(self, rows: Rows, *others: np.ndarray) -> tuple[Steps, int]:
        """See `Bench.replay`."""
        *steps, lost = self._spread("replay", rows.handle, rows, *others)
        return Steps(*steps), int(lost.sum())

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def _spread(self, method: str, handles: np.ndarray, *arguments: Any) -> list[np.ndarray]:
        """Call a method in each process with its share of the rows; return columns of results."""
        of = handles[:, 1] % len(self._workers)
        shares = [(worker, np.flatnonzero(of == i)) for i, worker in enumerate(self._workers)]
        shares = [(worker, share) for worker, share in shares if len(share)]
        with contextlib.ExitStack() as locks:
            for worker, _ in shares:
                locks.enter_context(worker.lock)
            for worker, share in shares:
                worker.send(method, [_part(argument, share) for argument in arguments])
            answers = [worker.receive() for worker, _ in shares]  # all of them, also after an error
        for answer in answers:
            if isinstance(answer, SimulatorError):
                raise answer
        order = np.argsort(np.concatenate([share for _, share in shares]))
        return [np.concatenate(column)[order] for column in zip(*answers, strict=True)]


class _Worker:
    def __init__(self, told: bytes) -> None:
        self._pipe, other = Pipe()
        self.lock = threading.Lock()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quantilax.simulators.workers", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C reaches the run, which ends its workers
            )
        self._pipe.send_bytes(told)

    def send(self, method: str, arguments: list[Any]) -> None:
        with contextlib.suppress(OSError):  # `receive` tells
            self._pipe.send((method, arguments))

    def receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            return SimulatorError(f"a process of it ended with status {self._process.poll()}")

    def close(self) -> None:
        self._pipe.close()  # the process ends at the end of its input
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()


def _part(argument: Any, share: np.ndarray) -> Any:
    return Rows(*(column[share] for column in argument)) if isinstance(argument, Rows) else argument[share]


def _columns(method: str, answer: Any, n: int) -> tuple[np.ndarray, ...]:
    if method == "replay":
        steps, lost = answer
        return (*steps, np.r_[lost, np.zeros(n - 1, int)])
    return tuple(answer)


def serve(pipe: Connection) -> None:
    """Answer calls until the other end of the pipe is closed."""
    maker, form, sys.path[:] = pickle.loads(pipe.recv_bytes())
    bench: Bench = Bench(maker, form)
    answer: Any
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            break
        try:
            call: Callable[..., Any] = getattr(bench, method)
            answer = _columns(method, call(*arguments), len(arguments[-1]))
        except SimulatorError as error:
            answer = error
        except Exception as error:  # a user's environment may raise anything
            answer = SimulatorError(f"raised {type(error).__name__}: {reason(error)}")
        pipe.send(answer)
    bench.close()


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as connection, contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(connection)
