"""What can go wrong with a run."""

import os
import re


class RunError(RuntimeError):
    """A run that cannot go on, or cannot be read; what it wrote is kept."""


def reason(error: BaseException) -> str:
    """Return a line on an error; what TensorStore says is long, and the system's own error is in the midst of it."""
    text = str(error).strip()
    number = re.search(r"os_error_code='(\d+)'", text)
    if number:
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.splitlines()[0][:200] if text else type(error).__name__


class CheckpointError(RunError):
    """A checkpoint that cannot be read or does not fit; names the file and what is wrong with it."""
