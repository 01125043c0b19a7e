"""Reading compiled programs."""

import re

import jax


def copies_in_loops(compiled: jax.stages.Compiled, rows: int) -> int:
    """Count the copies of arrays with an axis of `rows` outside the program's entry: those that each turn of a loop makes."""
    count, entry = 0, False
    for line in compiled.as_text().splitlines():
        if line.endswith("{"):
            entry = line.startswith("ENTRY")
        elif not entry and re.search(rf"\[(\d+,)*{rows}[,\]][^=]* copy\(", line):
            count += 1
    return count
