"""The page of validated sections: a Markdown table with a row per section of a config file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantilax.pytree import ConfigError
from quantilax.runs import locks
from quantilax.studies import tables
from quantilax.studies.results import Results

OPTION = "--benchmarks"

COLUMNS = (
    "section",
    "environment",
    "steps",
    "held-out seeds",
    "return at the end, IQM",
    "lowest at the end",
    "solved at the end",
    "fell",
    "solved for good, median step",
    "commit",
    "date",
    "command",
)
INTRODUCTION = """\
# Benchmarks

Sections of the shipped configs, each validated on held-out seeds: seeds that no choice of a setting saw, trained once.
`quantilax recommend` writes a row when such a validation agrees with the study that it follows. Figures are of the last
policy of each run, not of its best checkpoint: mean returns of an evaluation's episodes. "Solved at the end" says from which
mean return on, "fell" how many of the runs that reached it had a later evaluation below it. Intervals are of 95 %.
"""


def line(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


HEADER, RULE = line(COLUMNS), "|" + "---|" * len(COLUMNS)


def label(file: Path, section: str) -> str:
    """Name a section: the file as seen from here, and the section's name."""
    try:
        file = file.resolve().relative_to(Path.cwd())
    except ValueError:
        file = Path(file.name)
    return f"`{file.as_posix()}` `{section}`"


def row(results: Results, cell: str, file: Path, section: str) -> list[str]:
    """Give the row of a cell.

    Args:
        results: of the held-out runs.
        cell: the one that was validated.
        file: the config file that has the section.
        section: its name there.
    """
    figures, fields = results.row(cell), results.store.facts["cells"][cell]
    assert figures is not None
    runs = results.outcomes.filter(cell=cell)
    number, start = tables.number_format(results).format, results.store.facts["starts"][-1]
    solved = ["-", "-", "-"]
    if results.store.solved is not None:
        count = round(figures["solved_at_end_share"] * figures["n"])
        solved = [
            f"{_of(figures, 'solved_at_end_share', count, 'n')} at {results.store.solved:g}",
            _of(figures, "fell_share", figures["fell"], "reached"),
            _with(figures, "solved_for_good_median", tables.steps),
        ]
    return [
        label(file, section),
        fields["env"],
        f"{fields['total_timesteps']:,}",
        f"{tables.seeds(runs['seed'].to_list())} (n = {figures['n']})",
        _with(figures, "final_iqm", number),
        number(results.lowest_end(cell)),
        *solved,
        (start.get("commit") or "unknown")[:12],
        start["date"][:10],
        f"`{locks.command()}`",
    ]


def _of(figures: dict[str, Any], name: str, count: int, of: str) -> str:
    if not figures[of]:
        return "-"
    return f"{count} of {figures[of]} ({tables.interval(figures, name, tables.percent)})"


def _with(figures: dict[str, Any], name: str, written: Any) -> str:
    low_high = tables.interval(figures, name, written)
    return written(figures[name]) + (f" ({low_high})" if low_high else "")


def put(text: str, file: Path, cells: Sequence[str]) -> str:
    """Put a row into a page's text, in the place of the section's row or at the end; all else stays byte for byte.

    Args:
        text: of the page; empty where there is none yet.
        file: for messages.
        cells: of the row; the first names the section.

    Raises:
        ConfigError: the table has no rule below its header.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    bare = [one.rstrip("\r\n") for one in lines]
    new = line(cells) + newline
    if HEADER not in bare:
        gap = "" if not text else newline if text.endswith("\n") else 2 * newline
        start = INTRODUCTION.replace("\n", newline) + newline if not text else text + gap
        return start + HEADER + newline + RULE + newline + new
    first = bare.index(HEADER) + 1
    if first == len(bare) or set(bare[first]) != {"|", "-"}:
        raise ConfigError(
            f"{file}: the table's header is not followed by {RULE}; put that line there, or name another file"
        )
    end = first + 1
    while end < len(bare) and bare[end].startswith("|"):
        end += 1
    for i in range(first + 1, end):
        if bare[i].startswith(line(cells[:1])[:-1]):
            return "".join([*lines[:i], new, *lines[i + 1 :]])
    before = "".join(lines[:end])
    return before + ("" if before.endswith("\n") else newline) + new + "".join(lines[end:])
