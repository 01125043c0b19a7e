"""What can go wrong with a run."""


class RunError(RuntimeError):
    """A run that cannot go on, or cannot be read; what it wrote is kept."""


class CheckpointError(RunError):
    """A checkpoint that cannot be read or does not fit; names the file and what is wrong with it."""
