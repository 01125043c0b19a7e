"""What can go wrong with a run."""


class RunError(RuntimeError):
    """A run that cannot go on, or cannot be read; what it wrote is kept."""


def reason(error: BaseException) -> str:
    """Return a line on an error."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.splitlines()[0][:200] if text else type(error).__name__


class CheckpointError(RunError):
    """A checkpoint that cannot be read or does not fit; names the file and what is wrong with it."""
