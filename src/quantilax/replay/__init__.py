"""Replay: storage of past steps, from which batches are drawn."""

from quantilax.replay import priorities, tree
from quantilax.replay.priorities import Priorities
from quantilax.replay.ring import Ring, Rows, add, compact, expand, init, sample

__all__ = ["Priorities", "Ring", "Rows", "add", "compact", "expand", "init", "priorities", "sample", "tree"]
