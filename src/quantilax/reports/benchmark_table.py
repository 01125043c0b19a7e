"""The table of validated sections in a Markdown file: a row of its own for each, and all else stays as it is, byte for byte."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from quantilax.errors import ConfigError
from quantilax.host import locks
from quantilax.reports import formats
from quantilax.reports.formats import Entry
from quantilax.reports.results import Results

TITLES = (
    "section", "environment", "steps", "held-out seeds", "return at the end", "lowest run at the end", "ended solved",
    "fell after solving", "solved for good (median step)", "commit", "date", "command",
)  # fmt: skip

HEADER = f"| {' | '.join(TITLES)} |"
"""The line by which the table is found."""

BELOW_HEADER = "|---" * len(TITLES) + "|"

PAGE = """\
# Benchmarks

Each row is a section of a shipped config, validated on held-out seeds, which chose nothing; `quantilax recommend` writes it.
All figures are of the last policy, not of the best checkpoint: the return at the end is the interquartile mean over the
seeds of the mean return of the last evaluation. Intervals, in brackets, are of 95%.

"""
"""What stands above the table of a new file."""


def put_row(text: str, file: Path, row: Sequence[str]) -> str:
    """Put a row into the table in a file's text: in the place of the one with the same first variant, else at the table's end.

    A text without the table gets it at its end; an empty one becomes a page.

    Args:
        text: of the file.
        file: for messages.
        row: the variants, as `row_of` gives them.

    Raises:
        ConfigError: the table is broken, or it is there twice, or the row is.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    written = f"| {' | '.join(row)} |"
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    heads = [i for i, line in enumerate(lines) if _apart(line)[0] == HEADER]
    if not heads:
        gap = "" if not text else newline if text.endswith("\n") else 2 * newline
        return (text + gap if text else PAGE) + newline.join((HEADER, BELOW_HEADER, written, ""))
    start = heads[0] + 2
    if len(heads) > 1:
        raise _not_editable(file, "has the table of sections twice; delete one")
    if not re.fullmatch(rf"(\| *:?-+:? *){{{len(TITLES)}}}\|\s*", "".join(lines[start - 1 : start])):
        raise _not_editable(file, f"its table of sections has no line {BELOW_HEADER} below the header; put it back")
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    same = [i for i in range(start, end) if _first_variant(lines[i]) == row[0]]
    if len(same) > 1:
        raise _not_editable(file, f"has {len(same)} rows of {row[0]}; delete all but one")
    if same:
        lines[same[0]] = written + _apart(lines[same[0]])[1]
    else:
        last, line_end = _apart(lines[end - 1])  # without an end where the file has none there
        lines[end - 1 : end] = [last + (line_end or newline), written + line_end]
    return "".join(lines)


def label(config: Path, section: str) -> str:
    """Give a row's first variant: the config file, relative to the current directory if it lies below it, and the section."""
    place, here = Path(os.path.abspath(config)), Path.cwd()
    name = place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name
    return _code(f"{name} {section}")


def row_of(first: str, held_out: Results, variant: str, seeds: list[int], commit: str, date: str) -> list[str]:
    """Write what held-out seeds say of a variant as a row of the table.

    Args:
        first: the row's first variant, see `label`.
        held_out: results of the held-out seeds, with runs of the variant.
        variant: its name there.
        seeds: those that count.
        commit, date: of the runs.
    """
    row, fields, solved = held_out.row(variant), held_out.store.facts["variants"][variant], held_out.store.solved
    assert row is not None
    told = {column.title: column.entry(row) for column in formats.columns(held_out)}
    return [
        first,
        _code(fields["env"]),
        formats.steps(fields["total_timesteps"]),
        f"{len(seeds)}: {formats.seeds(seeds)}",
        _figure(told["return at the end"]),
        formats.number_format(held_out).format(row["final_min"]),
        "-" if solved is None else _figure(told["solved at the end"], f" at {solved:g} or more"),
        _figure(told.get("fell", Entry("-"))),
        _figure(told.get("solved for good", Entry("-"))),
        _code(commit),
        date,
        _code(locks.command()),
    ]


def _figure(entry: Entry, what: str = "") -> str:
    return entry.text + what + (f" ({entry.detail})" if entry.detail else "")


def _code(text: str) -> str:
    """Write text as code within a variant."""
    line = " ".join(text.split()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    gap = " " if "`" in line else ""
    return f"{fence}{gap}{line}{gap}{fence}"


def _first_variant(line: str) -> str:
    return re.split(r"(?<!\\)\|", line)[1].strip()


def _apart(line: str) -> tuple[str, str]:
    """Take a line apart from its end."""
    body = line.rstrip("\r\n")
    return body, line[len(body) :]


def _not_editable(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file}: {why}, or choose another --benchmarks")
