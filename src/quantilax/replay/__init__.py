"""Replay: what was seen, kept for learning."""

from quantilax.replay.ring import Ring, add, init, sample

__all__ = ["Ring", "add", "init", "sample"]
