"""Calls in another thread."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def begin(function: Callable[[], T]) -> Callable[[], T]:
    """Call a function in a thread of its own; what is returned waits for its result, or raises what it raised.

    The thread does not keep the process from ending.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            results.put((function(), None))
        except BaseException as error:
            results.put((None, error))

    def wait() -> T:
        result, error = results.get()
        if error is not None:
            raise error
        return result

    threading.Thread(target=call, daemon=True).start()
    return wait
