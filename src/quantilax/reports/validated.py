"""Records of validated sections: a YAML file from which `make tables` writes docs/benchmarks.md."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from quantilax.errors import ConfigError
from quantilax.host import locks
from quantilax.reports import formats
from quantilax.reports.formats import Entry
from quantilax.reports.results import Results
from quantilax.runs import configs

HEADER = "# Sections validated on held-out seeds. `quantilax recommend --benchmarks` writes this file.\n"


class Record(NamedTuple):
    """A section's results on held-out seeds.

    Figures are text in the format of reports; None stands for a figure that does not exist.
    """

    config: str
    """The config file, relative to the current directory if it is below it, else its name."""
    section: str
    environment: str
    steps: int
    n: int
    """Number of held-out seeds."""
    seeds: str
    return_at_end: str
    """Interquartile mean of the last evaluation, with its interval."""
    lowest_at_end: str
    solved: float | None
    """The return from which on the task counts as solved; None if the study has no threshold."""
    ended_solved: str | None
    fell: str | None
    solved_for_good: str | None
    """Median step, with its interval."""
    commits: list[str]
    date: str
    study: str
    """The study's directory, written as `config` is; `validation/` in it has the held-out runs."""
    variant: str
    command: str


def record(
    config: Path,
    section: str,
    study: Path,
    held_out: Results,
    variant: str,
    seeds: list[int],
    commits: list[str],
    date: str,
) -> Record:
    """Make the record of a section.

    Args:
        config: the file that the section is written into.
        section: name of the section in it.
        study: directory of the study that chose the section.
        held_out: results of the held-out seeds, with runs of the variant.
        variant: name of the variant in the study.
        seeds: the held-out seeds that count.
        commits, date: commits and date of the held-out runs.
    """
    row, fields = held_out.row(variant), held_out.store.facts["variants"][variant]
    assert row is not None
    told = {column.title: _figure(column.entry(row)) for column in formats.columns(held_out)}
    return Record(
        config=named(config),
        section=section,
        environment=fields["env"],
        steps=fields["total_timesteps"],
        n=len(seeds),
        seeds=formats.seeds(seeds),
        return_at_end=str(told["return at the end"]),
        lowest_at_end=formats.number_format(held_out).format(row["final_min"]),
        solved=held_out.store.solved,
        ended_solved=told.get("solved at the end"),
        fell=told.get("fell"),
        solved_for_good=told.get("solved for good"),
        commits=commits,
        date=date,
        study=named(study),
        variant=variant,
        command=" ".join(locks.command().split()),
    )


def named(path: Path) -> str:
    """Return a path relative to the current directory if it is below it, else its last part."""
    place, here = Path(os.path.abspath(path)), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name


def parse(text: str, file: Path) -> list[Record]:
    """Read the records in a file's text; an empty text holds none.

    Args:
        text: the file's text.
        file: the file, for messages.

    Raises:
        ConfigError: the text is not a list of records, or two of them are of the same section.
    """
    found = configs.parse_yaml(text, file) or []
    if not isinstance(found, list) or not all(isinstance(r, dict) and r.keys() == {*Record._fields} for r in found):
        raise ConfigError(
            f"{file}: is not a list of records with the fields {', '.join(Record._fields)}; choose another --benchmarks"
        )
    records = [Record(**r) for r in found]
    sections = [(r.config, r.section) for r in records]
    for config, section in sections:
        if sections.count((config, section)) > 1:
            raise ConfigError(
                f"{file}: has {sections.count((config, section))} records of {config} {section}; delete all but one"
            )
    return records


def put(records: Sequence[Record], new: Record) -> list[Record]:
    """Replace the record of the same section, or add the record at the end."""
    sections = [(r.config, r.section) for r in records]
    at = sections.index((new.config, new.section)) if (new.config, new.section) in sections else len(sections)
    return [*records[:at], new, *records[at + 1 :]]


def written(records: Sequence[Record]) -> str:
    """Return the file's text for these records."""
    fields = [r._asdict() for r in records]
    return HEADER + yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=10_000, allow_unicode=True)


def _figure(entry: Entry) -> str | None:
    if entry.text == "-":
        return None
    return entry.text + (f" ({entry.detail})" if entry.detail else "")
