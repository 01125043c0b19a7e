"""Validate a study's winner on held-out seeds, and write its section into a config file."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from quantilax.checks import bands
from quantilax.errors import ConfigError, RunError, did_you_mean, reason
from quantilax.host import locks
from quantilax.reports import choice, formats, sections, validated
from quantilax.reports.choice import Choice, Judgement
from quantilax.reports.results import Results
from quantilax.reports.verdict import quoted
from quantilax.runs import configs, provenance
from quantilax.runs.configs import Section
from quantilax.studies import definition, execution, start
from quantilax.studies.definition import Study, Variant
from quantilax.studies.store import Store

BENCHMARKS = "--benchmarks"


class Recommended(NamedTuple):
    """A choice, its validation on held-out seeds, and where it was written."""

    choice: Choice
    seeds: list[int]
    """The held-out seeds that count."""
    judgement: Judgement
    section: str
    """Name of the section in a config file."""
    edited: sections.Edited | None
    """None if nothing was written."""


def recommend(
    store: Store,
    *,
    variant: str | None = None,
    seeds: int = 20,
    first_seed: int | None = None,
    write: Path | None = None,
    section: str | None = None,
    benchmarks: Path | None = None,
    jobs: int | None = None,
    quiet: bool = False,
    cache: bool = False,
) -> Recommended:
    """Choose a variant, validate it on held-out seeds, and write its section if it holds.

    The rule of the choice is in `quantilax.reports.choice`.

    The held-out runs of the variant and of the base are kept in `validation/` inside the study's
    directory. They run only once; a repeated call finds them there. All runs there count, also
    those of an earlier call, so that no result can be discarded. The exception is runs with seeds
    that the study itself has run since. Each number of seeds used for a judgement is recorded.

    With `write`, the checkout of quantilax must have no uncommitted changes, so that the commit
    beside the figures is the code that produced them. This is checked before anything runs, and for
    each start that added held-out runs. `quantilax.runs.provenance.changes` says what counts as a
    change; the files that this call writes do not count. If quantilax is installed as a package,
    there is nothing to check.

    Args:
        store: the study's directory.
        variant: a variant to use in place of the winner.
        seeds: number of held-out seeds.
        first_seed: the first held-out seed; None: the one after the study's largest.
        write: the config file to write to; None: write nothing.
        section: name of the section in that file; None: that of the study's base.
        benchmarks: the YAML file that gets a record of the written section; None: no record.
        jobs: number of devices to use at once; None: all.
        quiet: show no progress.
        cache: keep compiled programs in the user's cache directory.

    Raises:
        ConfigError: nothing can be chosen yet, the study has used a held-out seed, a file cannot be
            edited, or there are uncommitted changes. All of this is checked before anything runs.
        RunError, Interrupted: as for `studies.run`.
    """
    results = Results.read(store)
    chosen, is_winner = _chosen(results, variant)
    asked = held_out(store.facts["seeds"], seeds, first_seed)
    name = section or str(store.facts["section"])
    fields = store.facts["variants"][chosen.variant]
    written = [file for file in (write, benchmarks) if file is not None]
    if write is not None:
        written.append(bands.path_of(write))
    if benchmarks is not None:
        _check_benchmarks(benchmarks, write)
    if write is not None:
        sections.put(sections.read(write), write, name, fields, ["a trial"])
        _check_committed(written)
        before = Store.find(store.path / choice.VALIDATION)
        if before is not None:
            _check_starts(before, written)
    study = validation(store, chosen.variant, asked)
    ran = start.run(study, store.path / choice.VALIDATION, jobs=jobs, resume=True, quiet=quiet, cache=cache)
    theirs = choice.held_out(results, chosen.variant)
    counted = [] if theirs is None else sorted(theirs.store.facts["seeds"])
    judgement = None if theirs is None else choice.judge(results, theirs, chosen.variant, is_winner)
    if theirs is None or judgement is None or not set(asked) <= set(counted):
        raise ConfigError(
            f"{ran.path}: runs of {quoted(chosen.variant)} or of the base are missing there; see its failures"
        )
    looks = _looked(theirs.store, chosen.variant, len(counted))
    edited = None
    if write is not None and judgement.holds:
        _check_starts(theirs.store, written)
        comment = _comment(results, theirs, chosen, judgement, counted, looks)
        edited = sections.put(sections.read(write), write, name, fields, comment)
        files = [(write, edited.text, "--write")]
        if benchmarks is not None:
            record = validated.record(write, name, store.path, theirs, chosen.variant, counted, *_origin(theirs))
            files.append((benchmarks, validated.written(validated.put(_read(benchmarks), record)), BENCHMARKS))
        for file, text, option in files:
            sections.write(file, text, option)
        if len(counted) >= bands.LEAST_SEEDS:
            bands.write(write, name, bands.of_store(theirs.store, chosen.variant))
    return Recommended(chosen, counted, judgement, name, edited)


def recommend_alone(file: Path, out: Path | None = None, *, jobs: int | None = None, **options: Any) -> Recommended:
    """Validate the base of a study that has no other variant.

    There is nothing to choose, so the study itself need not be run.

    Args:
        file: the study's YAML file.
        out: the results' directory, new or of the same study; None: `studies/<name>`.
        jobs: number of devices to use at once; None: all.
        options: see `recommend`.

    Raises:
        ConfigError: there are variants to choose among, or as for `recommend`; a directory that was
            created for this call is deleted again, unless validation has begun in it.
        RunError, Interrupted: as for `studies.run`.
    """
    study = definition.load(file)
    if len(study.variants) > 1:
        raise ConfigError(
            f"{file}: has {len(study.variants)} variants to choose among; run it with quantilax study, then recommend"
            " its directory"
        )
    out = out or study.directory
    begun, was_there = Store.find(out), os.path.isdir(out)
    if begun is None:
        batch_shape = execution.plan(study, jobs=jobs).batch_shape
        store = Store.create(out, study, jobs=batch_shape.jobs, width=batch_shape.width, starts=[], status="not run")
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


def _check_benchmarks(benchmarks: Path, write: Path | None) -> None:
    """Raise `ConfigError` unless a record can be written into the file."""
    if write is None:
        raise ConfigError(f"{BENCHMARKS}: only a written section is recorded; name its file with --write")
    if benchmarks.resolve() == write.resolve():
        raise ConfigError(f"{benchmarks}: is also the file of --write; choose another {BENCHMARKS}")
    _read(benchmarks)


def _read(benchmarks: Path) -> list[validated.Record]:
    return validated.parse(sections.read(benchmarks, BENCHMARKS), benchmarks)


def _check_committed(written: list[Path]) -> None:
    """Raise `ConfigError` if other files than `written` have uncommitted changes."""
    changed = [name for name in provenance.changes() if name not in _within_checkout(written)]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{provenance.CHECKOUT}: {', '.join(changed[:3])}{more}: not committed; commit first, so that the measured"
            " code can be checked out, or leave out --write"
        )


def _check_starts(held_out: Store, written: list[Path]) -> None:
    """Raise `ConfigError` if held-out runs began with changes to other files than `written`."""
    for begun in held_out.facts["starts"]:
        commit, changed = begun.get("commit") or "", begun.get("uncommitted", ["unknown"])
        if commit.endswith("+") and not {*changed} <= _within_checkout(written):
            raise ConfigError(
                f"{held_out.path}: has runs of {begun['date'][:10]} at commit {commit}, with uncommitted changes;"
                " validate in another directory, or leave out --write"
            )


def _within_checkout(files: list[Path]) -> set[str]:
    return {os.path.relpath(file.resolve(), provenance.CHECKOUT) for file in files}


def _chosen(results: Results, variant: str | None) -> tuple[Choice, bool]:
    """Return the chosen variant, and whether the rule chose it."""
    path, variants = results.store.path, results.store.facts["variants"]
    winner = choice.choose(results)
    if variant is None:
        if winner is None:
            raise ConfigError(f"{path}: runs of the base are missing; finish the study with --resume first")
        return winner, True
    if variant not in variants:
        raise ConfigError(f"{path}: no variant '{variant}'{did_you_mean(variant, variants, 'variants')}")
    if winner is not None and winner.variant == variant:
        return winner, True
    if results.row(variant) is None or variant in results.missing:
        raise ConfigError(f"{path}: runs of variant '{variant}' are missing; finish the study with --resume first")
    return Choice(variant, "it was asked for"), False


def held_out(used: list[int], number: int, first: int | None) -> list[int]:
    """Return the seeds to validate with.

    Raises:
        ConfigError: the study has used one of them, or there are too many or too large ones.
    """
    start = max(used) + 1 if first is None else first
    if number > definition.MAX_RUNS:
        raise ConfigError(f"--seeds: {number:,} are more than {definition.MAX_RUNS:,}; ask for fewer")
    asked = range(start, start + number)
    both = [seed for seed in used if seed in asked]
    if both:
        raise ConfigError(
            f"--first-seed: seed {formats.seeds(both)} chose the variant, and cannot validate it;"
            f" begin at {max(used) + 1} or later"
        )
    if asked.stop > 2**32:
        raise ConfigError(f"--first-seed: {start} is too large for {number} seeds below 2^32; choose a smaller one")
    return list(asked)


def validation(store: Store, variant: str, seeds: list[int]) -> Study:
    """Make a study of a variant and the base on held-out seeds, from the study's directory."""
    facts = store.facts
    names = list(dict.fromkeys((facts["base"], variant)))
    there = store.facts["asked"]
    overrides = {name: facts["overrides"].get(name, {}) for name in names if name != facts["base"]}
    definition = {key: value for key, value in there.items() if key not in ("variants", "first_seed")}
    definition |= {"seeds": seeds} | ({"variants": {"named": overrides}} if overrides else {})
    return Study(
        name=f"{facts['name']}-validation",
        question=f"Does {quoted(variant)} hold on seeds that did not choose it?",
        prediction="",
        variants=tuple(Variant(name, facts["overrides"].get(name, {}), _section(store, name)) for name in names),
        seeds=tuple(seeds),
        solved=store.solved,
        definition=definition,
        where=str(store.path),
    )


def _section(store: Store, variant: str) -> Section:
    where = f"{store.path}: variant '{variant}'"
    return configs.section_of(store.facts["variants"][variant], str(store.facts["section"]), where)


def _looked(validation: Store, variant: str, number: int) -> list[int]:
    """Record that a variant was judged by `number` held-out seeds.

    Looking again with more seeds until the answer pleases inflates false positives: at a level of
    5%, a difference that does not exist is found in 8% of cases by the second look and in 14% by
    the fifth (Armitage, McPherson and Rowe 1969, "Repeated significance tests on accumulating
    data").

    Returns:
        All numbers of seeds that the variant was judged by, ascending.
    """
    with validation.lock():
        store = Store.open(validation.path)
        before = store.facts.get("looks", {}).get(variant, [])
        looks = sorted({*before, number})
        if looks != before:
            try:
                store.update(looks={**store.facts.get("looks", {}), variant: looks})
            except OSError as error:
                raise RunError(
                    f"{store.path}: cannot be written: {reason(error)}; make room and repeat the command"
                ) from None
    return looks


def _comment(
    results: Results, theirs: Results, chosen: Choice, judgement: Judgement, seeds: list[int], looks: list[int]
) -> list[str]:
    commits, date = _origin(theirs)
    earlier = [str(number) for number in looks if number != len(seeds)]
    lines = [
        f"variant {quoted(chosen.variant)} of the study {quoted(results.store.facts['name'])}; on held-out seeds"
        f" {formats.seeds(seeds)} (n = {len(seeds)}{'; judged with n = ' + ', '.join(earlier) + ' too' if earlier else ''})"
        f" {judgement.score}."
    ]
    base = theirs.row(theirs.base)
    if chosen.variant != results.base and base is not None:
        lines.append(f"The base on {base['n']} held-out seeds: {choice.score(theirs, base)}.")
    lines.append(f"Intervals of 95%. Commit {', '.join(commits)}, {date}: {locks.command()}")
    return lines


def _origin(theirs: Results) -> tuple[list[str], str]:
    """Return the commits that ran the held-out seeds, and the date of the last start."""
    starts = theirs.store.facts["starts"]
    commits = [
        (start.get("commit") or "unknown").removesuffix("+") for start in starts
    ]  # `_check_starts`: only written files differed
    return list(dict.fromkeys(commits)), starts[-1]["date"][:10]
