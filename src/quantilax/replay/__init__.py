"""Replay: what was seen, kept for learning."""

from quantilax.replay.ring import Ring, add, compact, expand, init, sample

__all__ = ["Ring", "add", "compact", "expand", "init", "sample"]
