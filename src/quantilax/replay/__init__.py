"""Replay: what was seen, kept for learning."""

from quantilax.replay.ring import Ring, Rows, add, compact, expand, init, sample

__all__ = ["Ring", "Rows", "add", "compact", "expand", "init", "sample"]
