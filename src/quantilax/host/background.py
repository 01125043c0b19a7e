"""Work in other threads: a single call, or jobs that run in order."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

Job = Callable[[], None]


def call(function: Callable[[], T]) -> Callable[[], T]:
    """Call a function in a thread of its own, and return a function that waits for its outcome.

    The returned function returns what the call returned or raises what it raised. The thread is a
    daemon: it does not keep the process alive.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((function(), None))
        except BaseException as error:
            results.put((None, error))

    def wait() -> T:
        while True:  # a signal that arrives just before a wait begins is handled when that wait ends
            try:
                result, error = results.get(timeout=0.5)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return result

    threading.Thread(target=work, daemon=True).start()
    return wait


class Background:
    """A thread that runs jobs one after another; leaving the context waits for all of them.

    Jobs should report their own failures; the thread survives a job that raises. At most one job
    added with `put_large` waits or runs at a time, and adding the next one blocks until then. So
    at most one copy of a run's state is kept.
    """

    def __init__(self, name: str = "quantilax-writer") -> None:
        """Prepare the thread; entering the context or calling `start` starts it."""
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.is_free = threading.Semaphore(1)
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.ended = threading.Event()  # an interrupted `join` of Python 3.11 marks a live thread as ended

    def __enter__(self) -> Self:
        """Start the thread."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the jobs, except on `KeyboardInterrupt`: then the process should end at once."""
        self.end()
        if not isinstance(error, KeyboardInterrupt):
            self.join()

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def end(self) -> None:
        """Accept no more jobs: the thread ends after those added so far."""
        self.jobs.put(None)

    def join(self, seconds: float | None = None) -> None:
        """Wait up to `seconds` for the thread to end, if it was started."""
        if self.is_at_work:
            self.ended.wait(seconds)

    @property
    def is_at_work(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self.thread.ident is not None and not self.ended.is_set()

    def finish(self) -> None:
        """Wait for all jobs added so far."""
        done = threading.Event()
        self.jobs.put(done.set)
        done.wait()

    def put(self, job: Job) -> None:
        """Add a small job."""
        self.jobs.put(job)

    def put_large(self, make: Callable[[], Job]) -> None:
        """Wait until the previous large job is done, then make one and add it."""
        self.is_free.acquire()
        try:
            job = make()
        except BaseException:
            self.is_free.release()
            raise
        self.jobs.put(lambda: self._release_after(job))

    def _release_after(self, job: Job) -> None:
        try:
            job()
        finally:
            self.is_free.release()

    def _work(self) -> None:
        try:
            while (job := self.jobs.get()) is not None:
                try:
                    job()
                except BaseException as error:  # go on: somebody may be waiting for a later job
                    threading.excepthook(
                        threading.ExceptHookArgs((type(error), error, error.__traceback__, self.thread))
                    )
        finally:
            self.ended.set()
