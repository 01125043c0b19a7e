"""From a study's winner to a section in a config file: only after seeds that the study never saw say the same."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from quantilax import algorithms, pytree
from quantilax.pytree import ConfigError, did_you_mean
from quantilax.runs import RunError, locks
from quantilax.runs.configs import Section
from quantilax.runs.errors import reason
from quantilax.studies import choice, definition, execution, sections, tables
from quantilax.studies.benchmarks import label, put_row, row_of
from quantilax.studies.choice import Choice, Judgement
from quantilax.studies.definition import Cell, Study
from quantilax.studies.results import Results
from quantilax.studies.store import Store
from quantilax.studies.verdict import quoted

BENCHMARKS = "--benchmarks"


class Recommended(NamedTuple):
    """A choice, what held-out seeds say of it, and where it was written."""

    choice: Choice
    seeds: list[int]
    """All held-out seeds that count."""
    judgement: Judgement
    section: str
    """Its name in a config file."""
    edited: sections.Edited | None
    """None where nothing was written."""


def recommend(
    store: Store,
    *,
    cell: str | None = None,
    seeds: int = 20,
    first_seed: int | None = None,
    write: Path | None = None,
    section: str | None = None,
    benchmarks: Path | None = None,
    jobs: int | None = None,
    quiet: bool = False,
    cache: bool = False,
) -> Recommended:
    """Choose a cell by the rule of `quantilax.studies.choice`, validate it on held-out seeds, and write it if it holds.

    The held-out runs, of the cell and of the base, lie in `validation/` within the study's directory. They are run once: the
    same call again finds them there. All that lie there count, also those of an earlier call, so none can be discarded; with
    how many it was judged is noted. Only those of seeds that the study itself has run since count no more.

    Args:
        store: a study's directory.
        cell: a cell in place of the winner.
        seeds: number of held-out seeds.
        first_seed: the first of them; None: the one after the study's largest.
        write: the config file; None: nothing is written.
        section: name of the section in it; None: that of the study's base.
        benchmarks: the Markdown file whose table of validated sections gets a row of a section that is written; None: none.
        jobs: devices to use at once; None: all.
        quiet: show no progress.
        cache: keep compiled programs in the user's cache directory.

    Raises:
        ConfigError: nothing can be chosen yet, held-out seeds are the study's own, or a file cannot be edited. All this is
            found out before anything is run.
        RunError, Interrupted: as for `execution.run`.
    """
    results = Results.read(store)
    chosen, is_winner = _chosen(results, cell)
    asked = held_out(store.facts["seeds"], seeds, first_seed)
    name = section or str(store.facts["section"])
    fields = store.facts["cells"][chosen.cell]
    if write is not None:
        sections.put(sections.read(write), write, name, fields, ["a trial"])
    if benchmarks is not None:
        _check_benchmarks(benchmarks, write, name)
    study = validation(store, chosen.cell, asked)
    ran = execution.run(study, store.path / choice.VALIDATION, jobs=jobs, resume=True, quiet=quiet, cache=cache)
    theirs = choice.held_out(results, chosen.cell)
    counted = [] if theirs is None else sorted(theirs.store.facts["seeds"])
    judgement = None if theirs is None else choice.judge(results, theirs, chosen.cell, is_winner)
    if theirs is None or judgement is None or not set(asked) <= set(counted):
        raise ConfigError(
            f"{ran.path}: runs of {quoted(chosen.cell)} or of the base are missing there; see its failures"
        )
    looks = _looked(theirs.store, chosen.cell, len(counted))
    edited = None
    if write is not None and judgement.holds:
        comment = _comment(results, theirs, chosen, judgement, counted, looks)
        edited = sections.put(sections.read(write), write, name, fields, comment)
        files = [(write, edited.text, "--write")]
        if benchmarks is not None:
            row = row_of(label(write, name), theirs, chosen.cell, counted, *_origin(theirs))
            files.append((benchmarks, put_row(_read(benchmarks), benchmarks, row), BENCHMARKS))
        for file, text, option in files:
            sections.write(file, text, option)
    return Recommended(chosen, counted, judgement, name, edited)


def recommend_alone(file: Path, out: Path | None = None, *, jobs: int | None = None, **options: Any) -> Recommended:
    """Validate the base of a study that has no other cell: nothing is to be chosen, so the study itself need not be run.

    Args:
        file: the study's YAML file.
        out: the results' directory, new or of the same study; None: `studies/<name>`.
        jobs: devices to use at once; None: all.
        options: see `recommend`.

    Raises:
        ConfigError: there are cells to choose among, or as for `recommend`; a directory that was made for it is gone again.
        RunError, Interrupted: as for `execution.run`.
    """
    study = definition.load(file)
    if len(study.cells) > 1:
        raise ConfigError(
            f"{file}: has {len(study.cells)} cells to choose among; run it with quantilax study, then recommend its directory"
        )
    out = out or study.directory
    begun, was_there = Store.find(out), os.path.isdir(out)
    if begun is None:
        laid = execution.plan(study, jobs=jobs).laid
        store = Store.create(out, study, jobs=laid.jobs, width=laid.width, starts=[], status="not run")
    else:
        begun.check(study)
        store = begun
    try:
        return recommend(store, jobs=jobs, **options)
    except ConfigError:
        if begun is None and not (out / choice.VALIDATION).exists():
            store.delete()
            if not was_there:
                out.rmdir()
        raise


def _check_benchmarks(benchmarks: Path, write: Path | None, name: str) -> None:
    """Raise `ConfigError` unless a row can be put into the file."""
    if write is None:
        raise ConfigError(f"{BENCHMARKS}: a row tells of a section that is written; name its file with --write")
    if benchmarks.resolve() == write.resolve():
        raise ConfigError(f"{benchmarks}: is the file of --write too; choose another {BENCHMARKS}")
    put_row(_read(benchmarks), benchmarks, [label(write, name), "a trial"])


def _read(benchmarks: Path) -> str:
    return sections.read(benchmarks, BENCHMARKS)


def _chosen(results: Results, cell: str | None) -> tuple[Choice, bool]:
    """Give the cell, and whether the rule names it."""
    path, cells = results.store.path, results.store.facts["cells"]
    winner = choice.choose(results)
    if cell is None:
        if winner is None:
            raise ConfigError(f"{path}: runs of the base are missing; finish the study with --resume first")
        return winner, True
    if cell not in cells:
        raise ConfigError(f"{path}: no cell '{cell}'{did_you_mean(cell, cells, 'cells')}")
    if winner is not None and winner.cell == cell:
        return winner, True
    if results.row(cell) is None or cell in results.missing:
        raise ConfigError(f"{path}: runs of cell '{cell}' are missing; finish the study with --resume first")
    return Choice(cell, "it was asked for"), False


def held_out(used: list[int], number: int, first: int | None) -> list[int]:
    """Give the seeds to validate with; raise `ConfigError` where the study has used one of them."""
    start = max(used) + 1 if first is None else first
    if number > definition.MAX_RUNS:
        raise ConfigError(f"--seeds: {number:,} are more than {definition.MAX_RUNS:,}; ask for fewer")
    asked = range(start, start + number)
    both = [seed for seed in used if seed in asked]
    if both:
        raise ConfigError(
            f"--first-seed: seed {tables.seeds(both)} chose the cell, and cannot validate it; begin at {max(used) + 1} or later"
        )
    if asked.stop > 2**32:
        raise ConfigError(f"--first-seed: {start} leaves no room for {number} seeds below 2^32; choose a smaller one")
    return list(asked)


def validation(store: Store, cell: str, seeds: list[int]) -> Study:
    """Make the study of a cell and the base on held-out seeds, from what the study's directory says."""
    facts = store.facts
    names = list(dict.fromkeys((facts["base"], cell)))
    there = store.asked()
    overrides = {name: facts["overrides"].get(name, {}) for name in names if name != facts["base"]}
    definition = {key: value for key, value in there.items() if key not in ("cells", "first_seed")}
    definition |= {"seeds": seeds} | ({"cells": {"named": overrides}} if overrides else {})
    return Study(
        name=f"{facts['name']}-validation",
        question=f"Does {quoted(cell)} hold on seeds that did not choose it?",
        prediction="",
        cells=tuple(Cell(name, facts["overrides"].get(name, {}), _section(store, name)) for name in names),
        seeds=tuple(seeds),
        solved=store.solved,
        definition=definition,
        where=str(store.path),
    )


def _section(store: Store, cell: str) -> Section:
    fields, where = store.facts["cells"][cell], f"{store.path}: cell '{cell}'"
    algorithm = algorithms.get(fields["algorithm"])
    own = {name: value for name, value in fields.items() if name not in ("algorithm", "env")}
    converted: dict[str, Any] = pytree.convert(algorithm.config, own, where)
    return Section(str(store.facts["section"]), where, algorithm, fields["env"], converted)


def _looked(validation: Store, cell: str, number: int) -> list[int]:
    """Note that a cell was judged by so many held-out seeds, and give the numbers that it was judged by, rising.

    Who looks again with more seeds until the answer pleases gets a better one: at a level of 5% a difference that is not
    there is found in 8% of cases by the second look and in 14% by the fifth (Armitage, McPherson and Rowe 1969, "Repeated
    significance tests on accumulating data").
    """
    with validation.lock():
        store = Store.open(validation.path)
        before = store.facts.get("looks", {}).get(cell, [])
        looks = sorted({*before, number})
        if looks != before:
            try:
                store.update(looks={**store.facts.get("looks", {}), cell: looks})
            except OSError as error:
                raise RunError(
                    f"{store.path}: cannot be written: {reason(error)}; make room and give the command again"
                ) from None
    return looks


def _comment(
    results: Results, theirs: Results, chosen: Choice, judgement: Judgement, seeds: list[int], looks: list[int]
) -> list[str]:
    commits, date = _origin(theirs)
    earlier = [str(number) for number in looks if number != len(seeds)]
    lines = [
        f"cell {quoted(chosen.cell)} of the study {quoted(results.store.facts['name'])}; on held-out seeds"
        f" {tables.seeds(seeds)} (n = {len(seeds)}{'; judged with n = ' + ', '.join(earlier) + ' too' if earlier else ''})"
        f" {judgement.score}."
    ]
    base = theirs.row(theirs.base)
    if chosen.cell != results.base and base is not None:
        lines.append(f"The base on {base['n']} held-out seeds: {choice.score(theirs, base)}.")
    lines.append(f"Intervals of 95%. Commit {commits}, {date}: {locks.command()}")
    return lines


def _origin(theirs: Results) -> tuple[str, str]:
    """Give the commits that ran the held-out seeds, and the date of the last start."""
    starts = theirs.store.facts["starts"]
    return ", ".join(dict.fromkeys(start.get("commit") or "unknown" for start in starts)), starts[-1]["date"][:10]
