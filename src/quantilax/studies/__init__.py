"""Studies of configs and runs: what can be said before a run, and from many."""
