"""Calls in another thread."""

import threading

import pytest

from quantilax.host import background


def test_the_caller_goes_on_and_waits_for_the_result_when_it_asks():
    may_end = threading.Event()

    def function() -> str:
        may_end.wait(10)
        return threading.current_thread().name

    wait = background.call(function)
    may_end.set()
    assert wait() != threading.current_thread().name


def test_what_the_function_raises_is_raised_where_its_result_is_asked_for():
    def function() -> None:
        raise KeyError("x")

    wait = background.call(function)
    with pytest.raises(KeyError, match="x"):
        wait()
