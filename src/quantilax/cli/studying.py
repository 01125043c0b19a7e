"""The commands `study`, `report` and `recommend`."""

import contextlib
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import rich.table

from quantilax.cli.shared import NO_CACHE, QUIET, misleading, stop_on_signals, table_console
from quantilax.errors import ConfigError, did_you_mean


def _number_or_auto(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    return None if value == "auto" else click.IntRange(min=1)(value, parameter, context)


JOBS = click.option(
    "--jobs",
    callback=_number_or_auto,
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Simultaneous runs in each worker or process; auto: one per core or device, or as many as the study began with.",
)


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds, instead of the study's.")
@JOBS
@click.option(
    "--on",
    type=click.Choice(["ray"]),
    help="Run on the workers of a Ray cluster, not only on this machine.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Run share I of N of the runs, alongside processes with the same --out; for job arrays.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Results directory.  [default: studies/<name>]")
@click.option("--dry-run", is_flag=True, help="Print variants, compile groups, time and memory; keep no results.")
@click.option("--resume", is_flag=True, help="Continue from the existing results; finished runs are never repeated.")
@click.option("--compact", is_flag=True, help="Run nothing: pack the results in the directory FILE into two files.")
@click.option("--unpack", is_flag=True, help="Run nothing: undo --compact of a directory with several studies.")
@QUIET
@NO_CACHE
def study(
    file: Path,
    seeds: int | None,
    jobs: int | None,
    on: str | None,
    shard: str | None,
    out: Path | None,
    dry_run: bool,
    resume: bool,
    compact: bool,
    unpack: bool,
    quiet: bool,
    no_cache: bool,
) -> None:
    """Run every variant with every seed of the study in the YAML file FILE.

    Results are written as they come.

    \b
    quantilax study investigations/0004-munchausen/study.yaml --dry-run
    quantilax study investigations/0004-munchausen/study.yaml --seeds 20 --out studies/munchausen
    quantilax study investigations/0004-munchausen/study.yaml --on ray
    quantilax study investigations/0004-munchausen/study.yaml --shard $SLURM_ARRAY_TASK_ID/8
    quantilax study studies --compact
    """
    from quantilax import runs
    from quantilax.studies import definition, execution, start
    from quantilax.studies.store import Store

    if compact and unpack:
        raise ConfigError("--unpack: undoes --compact; leave one of them out")
    if compact or unpack:
        from quantilax.studies import archive

        found = archive.compact(file) if compact else archive.unpack(file)
        number = "1 study" if len(found) == 1 else f"{len(found)} studies"
        click.echo(f"{file}: {number} {'compacted' if compact else 'unpacked'}")
        return
    asked = definition.load(file)
    asked = asked if seeds is None else asked.with_seeds(seeds)
    out = out or asked.directory
    share = start.Shard.parse(shard) if shard is not None else None
    begun = Store.find(out) if resume or share else None
    wanted = begun.facts["jobs"] if begun else jobs  # a resumed study keeps its number of jobs
    is_told = wanted is not None
    runs.use_all_cores(
        wanted or len(asked.variants) * len(asked.seeds), elsewhere=on is not None and is_told, asked=is_told
    )
    for line in _misleading(asked):
        click.echo(f"warning: {line}", err=True)
    if dry_run:
        if not no_cache:
            runs.enable_compilation_cache()
        _foretell(execution.plan(asked, begun, jobs, share or (1, 1)))
        return
    with stop_on_signals():
        store = start.run(asked, out, jobs=jobs, resume=resume, quiet=quiet, cache=not no_cache, on=on, shard=share)
    _summarize(store, quiet or store.status != "finished")


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Output directory.  [default: DIR]")
def report(directory: Path, out: Path | None) -> None:
    """Write the report of the study in DIR: report.html, report.md and its figures.

    The HTML page is self-contained and needs no network. The report of an unfinished study covers
    the runs that are finished.

    \b
    quantilax report studies/fractions
    """
    from quantilax.reports import pages as reports
    from quantilax.studies.store import Store

    out = out or directory
    reports.report(Store.open(directory)).write(out)
    click.echo(f"{out / reports.PAGE} and {out / reports.TWIN}")


@click.command()
@click.argument("study", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--variant", help="The variant whose runs make the band.  [default: the only one]")
@click.option("--write", type=click.Path(path_type=Path), help="YAML file of configs beside which to write the band.")
@click.option("--section", help="Name of the section there.  [default: that of the study's base]")
def band(study: Path, variant: str | None, write: Path | None, section: str | None) -> None:
    """Show where the learning curves of the study in DIR lie: the band of its section.

    With --write, the band is stored beside a config file. `quantilax train` then compares runs of
    the section with it. The study's seeds should be held-out ones, at least ten.

    \b
    quantilax band studies/mine --write mine.yaml --section iqn
    """
    from quantilax.checks import bands
    from quantilax.runs.configs import read_yaml
    from quantilax.studies.store import Store

    found = bands.of_study(study, variant)
    for line in bands.lines(found):
        click.echo(line)
    if write is not None:
        name = section or str(Store.open(study).facts["section"])
        if name not in (known := read_yaml(write)):
            raise ConfigError(
                f"{write}: no section '{name}'{did_you_mean(name, known, 'sections')}; choose one with --section"
            )
        click.echo(f"written: band of section {name} in {bands.write(write, name, found)}")


@click.command()
@click.argument("study", metavar="DIR|STUDY.yaml", type=click.Path(path_type=Path))
@click.option("--variant", help="Validate this variant, not the one that the rule chooses.")
@click.option("--seeds", type=click.IntRange(min=1), default=20, show_default=True, help="Number of held-out seeds.")
@click.option(
    "--first-seed", type=click.IntRange(0, 2**32 - 1), help="First held-out seed.  [default: after the study's largest]"
)
@click.option("--write", type=click.Path(path_type=Path), help="YAML file of configs to write the section to.")
@click.option("--section", help="Name of that section.  [default: that of the study's base]")
@click.option("--benchmarks", type=click.Path(path_type=Path), help="YAML file to write a record of the section to.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Results directory of STUDY.yaml.  [default: studies/<name>]"
)
@JOBS
@QUIET
@NO_CACHE
def recommend(
    study: Path,
    variant: str | None,
    seeds: int,
    first_seed: int | None,
    write: Path | None,
    section: str | None,
    benchmarks: Path | None,
    out: Path | None,
    jobs: int | None,
    quiet: bool,
    no_cache: bool,
) -> None:
    """Validate the winner of the study in DIR on held-out seeds.

    With --write, the winner's section is written into a config file if the held-out seeds agree.
    If the held-out seeds contradict the study, nothing is written and the exit status is 1. --write
    is refused while the checkout of quantilax has uncommitted changes.

    A study whose only variant is its base has nothing to choose, so it need not be run: give its
    file STUDY.yaml in place of DIR.

    \b
    quantilax recommend studies/fractions
    quantilax recommend studies/fractions --write configs/gymnax/cartpole.yaml --section iqn_shared
    quantilax recommend studies/fractions --write configs/gymnax/cartpole.yaml \\
        --benchmarks docs/benchmarks.yaml
    quantilax recommend investigations/0014-research/iqn_research.yaml --out studies/research \\
        --seeds 10
    """
    from quantilax import runs
    from quantilax.reports import choice, formats
    from quantilax.reports import recommend as recommending
    from quantilax.studies import definition
    from quantilax.studies.store import Store

    is_file = study.suffix in (".yaml", ".yml") or os.path.isfile(study)
    if out is not None and not is_file:
        raise ConfigError(f"--out: {study} is already the results directory; leave --out out")
    store = None if is_file else Store.open(study)
    here = study if store is not None else out or definition.load(study).directory
    begun = Store.find(here / choice.VALIDATION)
    told = begun.facts["jobs"] if begun else jobs  # a validation that was begun keeps its number
    runs.use_all_cores(told or 2 * seeds, asked=told is not None)
    options: dict[str, Any] = {
        "variant": variant,
        "seeds": seeds,
        "first_seed": first_seed,
        "write": write,
        "section": section,
        "benchmarks": benchmarks,
        "jobs": jobs,
        "quiet": quiet,
        "cache": not no_cache,
    }
    with stop_on_signals():
        if store is None:
            found = recommending.recommend_alone(study, out, **options)
        else:
            found = recommending.recommend(store, **options)
    click.echo(f"{found.choice.variant}: {found.choice.reason}")
    on = f"held-out seeds {formats.seeds(found.seeds)}"
    if not found.judgement.holds:
        click.echo(
            f"{on} contradict the study: {'; '.join(found.judgement.contradictions)}; nothing is written", err=True
        )
        sys.exit(1)
    click.echo(f"{on} agree: {found.judgement.score}")
    if found.edited is None:
        return
    if found.edited.commented:
        click.echo(
            f"warning: {write}: the comments after {', '.join(found.edited.commented)} describe the old values; update them",
            err=True,
        )
    click.echo(f"written: section {found.section} of {write}")
    if benchmarks is not None:
        click.echo(f"written: record in {benchmarks}")


def _summarize(store: "Store", quiet: bool) -> None:  # type: ignore[name-defined]
    if not quiet:
        _tell_results(store)
    click.echo(f"results in {store.path}; make a report with: quantilax report {shlex.quote(str(store.path))}")


def _tell_results(store: "Store") -> None:  # type: ignore[name-defined]
    from quantilax.reports.pages import summary_table
    from quantilax.reports.results import Results
    from quantilax.reports.verdict import verdict

    results = Results.read(store)
    told, table = verdict(results), summary_table(results)
    if table.rows:
        drawn = rich.table.Table(box=None, header_style="bold", pad_edge=False)
        kept = [i for i, column in enumerate(table.columns) if column.title in SUMMARY]
        for i in kept:
            drawn.add_column(table.columns[i].title, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*("\n".join((row[i].text, *filter(None, row[i].detail.split("; ")))) for i in kept))
        table_console(120, highlight=False, markup=False, emoji=False).print(drawn)
        click.echo("\nbelow each figure: its 95% interval, and p adjusted for the number of variants compared")
    for line in (told.headline, *told.caveats):
        click.echo(line)


SUMMARY = (
    "variant",
    "n",
    "return at the end",
    "solved for good",
    "fell",
    "better over the curve",
    "better at the end",
    "broken",
)
"""Titles of the columns that fit into a terminal."""


def _misleading(study: "Study") -> list[str]:  # type: ignore[name-defined]
    """Return a line for each misleading setting, with the variants that have it."""
    from quantilax import train
    from quantilax.agent import ConfigWarning

    found: dict[str, list[str]] = {}
    for variant in study.variants:
        with contextlib.suppress(ConfigError), warnings.catch_warnings(category=ConfigWarning, action="ignore"):
            agent = study.create(variant)  # if this fails, the study itself reports it
            for line in dict.fromkeys([*train.advice(agent.env, agent.config), *misleading(agent)]):
                found.setdefault(line, []).append(variant.name)
    return [f"{_variants(names, len(study.variants))}: {line}" for line, names in found.items()]


def _variants(names: list[str], all_there_are: int) -> str:
    if len(names) == 1:
        return f"variant '{names[0]}'"
    if len(names) == all_there_are:
        return f"all {all_there_are} variants"
    return f"{len(names)} of {all_there_are} variants, such as '{names[0]}'"


def _foretell(planned: "Plan") -> None:  # type: ignore[name-defined]
    from quantilax.studies.forecast import forecast

    console = table_console(120, highlight=False, markup=False)
    derived = {variant: agent.config.derived() for group in planned.groups for variant, agent in group.agents.items()}
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    quantities = list(dict.fromkeys(quantity for figures in derived.values() for quantity in figures))
    for column in ("variant", "group", *(quantity.replace("_", " ") for quantity in quantities)):
        table.add_column(column, justify="left" if column == "variant" else "right", overflow="fold")
    number = {variant: group.number + 1 for group in planned.groups for variant in group.agents}
    for variant in planned.study.variants:
        figures = derived.get(variant.name, {})
        variants = (f"{figures[q]:,.6g}" if q in figures else "-" for q in quantities)
        table.add_row(variant.name, str(number.get(variant.name, "-")), *variants)
    console.print(table)
    for failure in planned.failures:
        click.echo(f"warning: variant '{failure.variant}' cannot be run: {failure.reason}", err=True)
    batch_shape, told = planned.batch_shape, forecast(planned)
    for group, why in told.broken:
        for variant in group.agents:
            click.echo(f"warning: variant '{variant}' cannot be run: {why}", err=True)
    click.echo(
        f"\n{planned.left} runs to do, {planned.finished} finished; {batch_shape.jobs} job(s), {batch_shape.width}"
        f" run(s) on each at a time; {len(planned.groups)} compile group(s)"
    )
    click.echo(f"memory: {told.state_bytes / 2**20:,.1f} MiB for the states of {batch_shape.runs} run(s) at a time")
    if told.costs:
        compiling, least, most = told.total
        timed = "" if len(told.costs) == told.groups else f" (timed: {len(told.costs)} of {told.groups} groups)"
        click.echo(
            f"time: {_duration(least)} to {_duration(most)}, depending on the length of evaluation episodes, plus"
            f" {_duration(compiling)} compiling{timed}"
        )


def _duration(seconds: float) -> str:
    """Format seconds as 45 s, 12 min or 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
