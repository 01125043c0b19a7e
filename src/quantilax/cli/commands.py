"""The commands: each parses, calls, prints."""

import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import rich.table
from rich.console import Console

from quantilax.cli import stdout
from quantilax.pytree import ConfigError

QUIET = click.option("--quiet", "-q", is_flag=True, help="Print the last line only.")
NO_CACHE = click.option("--no-cache", is_flag=True, help="Do not keep compiled programs in the user's cache directory.")


def _number_or_auto(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    return None if value == "auto" else click.IntRange(min=1)(value, parameter, context)


JOBS = click.option(
    "--jobs",
    callback=_number_or_auto,
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Runs at the same time, in each worker or process; auto: one per core or device, or as the study was begun.",
)
LOG = click.option(
    "--log", multiple=True, metavar="NAME", help="tensorboard or wandb, beside the run's own files; may be repeated."
)

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=HELP, invoke_without_command=True)
@click.pass_context
@click.version_option(package_name="quantilax", prog_name="quantilax")
@click.option(
    "--import",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a Python file first, which registers algorithms of your own; may be repeated.",
)
def cli(context: click.Context, files: tuple[Path, ...]) -> None:
    """Distributional reinforcement learning in JAX: IQN and its neighbours, whole training as one XLA program."""
    if files:
        from quantilax.runs import extensions

        extensions.load(*files)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("section", required=False)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many seeds, in one program.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="The first of them.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run's directory; must not hold anything.  [default: runs/...]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the resolved config, what follows from it and the memory; train nothing.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Evaluations between checkpoints; 0: at the end only.",
)
@LOG
@QUIET
@NO_CACHE
def train(
    config: Path,
    section: str | None,
    overrides: tuple[str, ...],
    seeds: int,
    seed: int,
    out: Path | None,
    dry_run: bool,
    checkpoint_every: int,
    log: tuple[str, ...],
    quiet: bool,
    no_cache: bool,
) -> None:
    """Train SECTION of the YAML file CONFIG.

    SECTION may be left out where the file has only one. FIELD=VALUE changes a field of it.

    \b
    quantilax train configs/gymnax/cartpole.yaml iqn
    quantilax train configs/gymnax/cartpole.yaml iqn --seeds 5 learning_rate=1e-3 --out runs/x
    """
    from quantilax import runs

    runs.use_all_cores(seeds)
    asked = _load(config, section, overrides)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent = asked.create()
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        click.echo(f"warning: {message}", err=True)
    if dry_run:
        _describe(asked.name, agent, seeds)
        return
    if seed + seeds > 2**32:
        raise ConfigError(f"--seed: {seed} leaves no room for {seeds} seeds below 2^32; choose a smaller one")
    runs.check_memory(agent, seeds)
    with _told_if_interrupted():
        result = runs.run(
            agent,
            out,
            range(seed, seed + seeds),
            section=asked.name,
            checkpoint_every=checkpoint_every,
            log=log,
            quiet=quiet,
            cache=not no_cache,
        )
    _tell(result, seeds)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--total-timesteps",
    type=click.IntRange(min=1),
    help="Extend the run to so many environment steps; schedules follow the new number.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=0),
    help="Evaluations between checkpoints; 0: at the end only.  [default: as before]",
)
@LOG
@QUIET
@NO_CACHE
def resume(
    run: Path,
    total_timesteps: int | None,
    checkpoint_every: int | None,
    log: tuple[str, ...],
    quiet: bool,
    no_cache: bool,
) -> None:
    """Go on with the run in the directory RUN, as if it had never stopped.

    \b
    quantilax resume runs/x
    quantilax resume runs/x --total-timesteps 200_000
    """
    from quantilax import runs

    before = runs.RunDirectory.open(run).facts
    runs.use_all_cores(before.get("devices", 1), asked=True)  # as it was begun
    with _told_if_interrupted():
        result = runs.resume(
            run,
            total_timesteps=total_timesteps,
            checkpoint_every=checkpoint_every,
            log=log or None,
            quiet=quiet,
            cache=not no_cache,
        )
    after = runs.RunDirectory.open(run).facts
    if len(after["starts"]) == len(before["starts"]):
        click.echo(
            f"finished already: mean return {result.return_mean:.1f} after {result.env_step:,} steps;"
            " --total-timesteps extends it"
        )
        return
    _tell(result, len(after["seeds"]))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(min=1), default=1_000, show_default=True, help="Episodes per seed.")
@click.option("--checkpoint", default="last", show_default=True, help="last, best or environment steps.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the episodes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@NO_CACHE
def evaluate(run: Path, episodes: int, checkpoint: str, seed: int, as_json: bool, no_cache: bool) -> None:
    """Play episodes with what the run in the directory RUN learned, and print what they come to.

    \b
    quantilax evaluate runs/x
    quantilax evaluate runs/x --episodes 1000 --checkpoint best --seed 7
    """
    from quantilax import runs
    from quantilax.statistics import FEW_SEEDS, QUANTILES, summarize

    if not no_cache:
        runs.enable_compilation_cache()
    which = int(checkpoint) if checkpoint.isdecimal() else checkpoint
    if which not in ("last", "best") and not isinstance(which, int):
        raise ConfigError(f"--checkpoint: expected last, best or environment steps, got '{checkpoint}'")
    with _memory_told("--episodes"):
        found = runs.evaluate(run, which, episodes=episodes, seed=seed)
    parts = {str(number): (found.returns[i], found.lengths[i]) for i, number in enumerate(found.seeds)}
    if len(found.seeds) > 1:
        parts["all"] = found.returns, found.lengths
    summaries = {
        name: {"return": summarize(returns), "length": summarize(lengths)} for name, (returns, lengths) in parts.items()
    }
    if as_json:
        head = {"run": str(run), "env_step": found.env_step, "episodes": episodes, "seed": seed}
        told = {name: {q: _plain(s) for q, s in row.items()} for name, row in summaries.items()}
        click.echo(json.dumps({**head, "seeds": told}, indent=2, allow_nan=False))
        return
    click.echo(f"{run}: the policy at step {found.env_step:,}, {episodes:,} episodes per seed")
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in ("seed", "", "mean", "95% interval", "IQM", "95% interval", *(f"{q:.0%}" for q in QUANTILES)):
        table.add_column(column, justify="left" if column in ("seed", "") else "right")
    for name, row in summaries.items():
        for quantity, s in row.items():
            ends = (s.mean_interval, s.iqm_interval)
            intervals = ["-" if math.isnan(low) else f"{low:.1f} to {high:.1f}" for low, high in ends]
            cells = (f"{s.mean:.1f}", intervals[0], f"{s.iqm:.1f}", intervals[1])
            quantiles = (f"{value:.1f}" for value in s.quantiles.values())
            table.add_row(name if quantity == "return" else "", quantity, *cells, *quantiles)
    _console(110).print(table)
    click.echo(
        "intervals: of one seed, episodes drawn anew; they say nothing on training with another seed"
        + ("" if len(found.seeds) < 2 else "; of all, whole seeds drawn anew")
        + (f", which with fewer than {FEW_SEEDS} is too narrow" if 1 < len(found.seeds) < FEW_SEEDS else "")
    )


def _plain(summary: "Summary") -> dict[str, Any]:  # type: ignore[name-defined]
    """A summary as JSON has it; what is no finite number, or an interval of such, is null."""
    from quantilax.runs.evaluations import finite_or_none as plain

    found = summary._asdict()
    for name, value in found.items():
        if isinstance(value, dict):
            found[name] = {key: plain(number) for key, number in value.items()}
        elif isinstance(value, tuple):
            found[name] = [plain(number) for number in value] if all(map(math.isfinite, value)) else None
        else:
            found[name] = plain(value)
    return found


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("section", required=False)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--confirm/--no-confirm",
    default=True,
    show_default=True,
    help="Run the first steps with fields changed and compare the curves.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    help="Environment steps after the warm-up to compare before a field is said to change nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@NO_CACHE
def lint(
    config: Path,
    section: str | None,
    overrides: tuple[str, ...],
    confirm: bool,
    steps: int,
    as_json: bool,
    no_cache: bool,
) -> None:
    """Look for settings in SECTION of the YAML file CONFIG that mislead, contradict each other or have no effect.

    Nothing is trained but, to confirm, some hundreds of steps. Exit status 1: there is more to say than notes.

    \b
    quantilax lint configs/gymnax/cartpole.yaml iqn
    quantilax lint configs/gymnax/cartpole.yaml iqn risk_eta=0.25 --json
    """
    from quantilax import runs
    from quantilax.agent import ConfigWarning
    from quantilax.runs import stderr
    from quantilax.studies import lint as linting

    asked = _load(config, section, overrides)
    with warnings.catch_warnings(action="ignore", category=ConfigWarning):  # told as findings
        agent = asked.create()
    if not no_cache:
        runs.enable_compilation_cache()
    with stderr.status("reading the program of the run") as say:
        found = linting.lint(agent, confirm=confirm, steps=steps, given=asked.hyperparameters, progress=say)
    if as_json:
        head = {"config": str(config), "section": asked.name, "confirm": confirm}
        click.echo(json.dumps({**head, "findings": [finding._asdict() for finding in found]}, indent=2))
    elif found:
        table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
        for column in ("severity", "field", "finding", "evidence", "remedy"):
            table.add_column(column, overflow="fold", ratio=None if column in ("severity", "field") else 1)
        for finding in found:
            table.add_row(*finding)
        _console(140, highlight=False, markup=False, emoji=False).print(table)
    else:
        click.echo("nothing found")
    if not linting.is_clean(found):
        sys.exit(1)


@cli.command()
@click.argument("file", metavar="STUDY.yaml", type=click.Path(path_type=Path))
@click.option("--seeds", type=click.IntRange(min=1), help="Another number of seeds than the study says.")
@JOBS
@click.option(
    "--on",
    type=click.Choice(["ray", "jax"]),
    help="Beyond this process: workers of a Ray cluster, or all processes of jax.distributed.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The results' directory.  [default: studies/<name>]")
@click.option("--dry-run", is_flag=True, help="Print cells, compile groups, time and memory; train nothing for good.")
@click.option("--resume", is_flag=True, help="Go on with what is there: finished runs are never repeated.")
@QUIET
@NO_CACHE
def study(
    file: Path,
    seeds: int | None,
    jobs: int | None,
    on: str | None,
    out: Path | None,
    dry_run: bool,
    resume: bool,
    quiet: bool,
    no_cache: bool,
) -> None:
    """Run the study in the file STUDY.yaml: cells times seeds, results written as they come.

    \b
    quantilax study investigations/0004-munchausen/study.yaml --dry-run
    quantilax study investigations/0004-munchausen/study.yaml --seeds 20 --out studies/munchausen
    quantilax study investigations/0004-munchausen/study.yaml --on ray
    """
    from quantilax import runs
    from quantilax.studies import definition, execution
    from quantilax.studies.store import Store

    asked = definition.load(file)
    asked = asked if seeds is None else asked.with_seeds(seeds)
    out = out or asked.directory
    begun = Store.find(out) if resume else None
    wanted = begun.facts["jobs"] if begun else jobs  # a resumed study keeps its number
    is_told = wanted is not None
    runs.use_all_cores(
        wanted or len(asked.cells) * len(asked.seeds), elsewhere=on is not None and is_told, asked=is_told
    )
    if dry_run:
        if not no_cache:
            runs.enable_compilation_cache()
        _foretell(execution.plan(asked, begun, jobs))
        return
    with _told_if_interrupted():
        store = execution.run(asked, out, jobs=jobs, resume=resume, quiet=quiet, cache=not no_cache, on=on)
    _summarize(store, quiet or store.writer > 0)  # of several processes one tells the results


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write.  [default: DIR]")
def report(directory: Path, out: Path | None) -> None:
    """Write the report of the study whose results are in DIR: report.html, report.md and its figures.

    The page stands alone: it needs no network. Of a study that is not finished it shows what is there.

    \b
    quantilax report studies/fractions
    """
    from quantilax.studies import report as reports
    from quantilax.studies.store import Store

    out = out or directory
    reports.report(Store.open(directory)).write(out)
    click.echo(f"{out / reports.PAGE} and {out / reports.TWIN}")


@cli.command()
@click.argument("study", metavar="DIR|STUDY.yaml", type=click.Path(path_type=Path))
@click.option("--cell", help="Another cell than the one that the rule names.")
@click.option("--seeds", type=click.IntRange(min=1), default=20, show_default=True, help="Number of held-out seeds.")
@click.option(
    "--first-seed", type=click.IntRange(0, 2**32 - 1), help="The first of them.  [default: after the study's largest]"
)
@click.option("--write", type=click.Path(path_type=Path), help="The YAML file of configs to write the section into.")
@click.option("--section", help="Its name there.  [default: that of the study's base]")
@click.option(
    "--benchmarks", type=click.Path(path_type=Path), help="The Markdown file whose table gets a row of the section."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The results' directory of STUDY.yaml.  [default: studies/<name>]"
)
@JOBS
@QUIET
@NO_CACHE
def recommend(
    study: Path,
    cell: str | None,
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
    """Validate the winner of the study in DIR on held-out seeds, and write its section into a config file if it holds.

    Of a study whose only cell is its base the file STUDY.yaml will do: nothing is to be chosen, so it need not be run.
    Where the held-out seeds contradict, nothing is written and the exit status is 1.

    \b
    quantilax recommend studies/fractions
    quantilax recommend studies/fractions --write configs/gymnax/cartpole.yaml --section iqn_shared
    quantilax recommend studies/fractions --write configs/gymnax/cartpole.yaml --benchmarks docs/benchmarks.md
    quantilax recommend investigations/0014-research/iqn_research.yaml --out studies/research --seeds 10
    """
    from quantilax import runs
    from quantilax.studies import choice, definition, tables
    from quantilax.studies import recommend as recommending
    from quantilax.studies.store import Store

    is_file = study.suffix in (".yaml", ".yml") or os.path.isfile(study)
    if out is not None and not is_file:
        raise ConfigError(f"--out: the results of {study} lie there; leave it out")
    store = None if is_file else Store.open(study)
    here = study if store is not None else out or definition.load(study).directory
    begun = Store.find(here / choice.VALIDATION)
    told = begun.facts["jobs"] if begun else jobs  # what was begun keeps its number
    runs.use_all_cores(told or 2 * seeds, asked=told is not None)
    options: dict[str, Any] = {
        "cell": cell,
        "seeds": seeds,
        "first_seed": first_seed,
        "write": write,
        "section": section,
        "benchmarks": benchmarks,
        "jobs": jobs,
        "quiet": quiet,
        "cache": not no_cache,
    }
    with _told_if_interrupted():
        if store is None:
            found = recommending.recommend_alone(study, out, **options)
        else:
            found = recommending.recommend(store, **options)
    click.echo(f"{found.choice.cell}: {found.choice.reason}")
    on = f"held-out seeds {tables.seeds(found.seeds)}"
    if not found.judgement.holds:
        click.echo(f"{on} contradict: {'; '.join(found.judgement.contradictions)}; nothing is written", err=True)
        sys.exit(1)
    click.echo(f"{on} agree: {found.judgement.score}")
    if found.edited is None:
        return
    if found.edited.commented:
        click.echo(
            f"warning: {write}: the comments behind {', '.join(found.edited.commented)} were written for the values before",
            err=True,
        )
    click.echo(f"written: section {found.section} of {write}")
    if benchmarks is not None:
        click.echo(f"written: its row in {benchmarks}")


@cli.command()
@click.argument("path", metavar="RUN|STUDY", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(path: Path, as_json: bool) -> None:
    """Name the causes of what went wrong in the run or the study in a directory, with the evidence.

    It reads the signals that training measures with signals=true; see docs/diagnosis.md.

    \b
    quantilax train configs/gymnax/cartpole.yaml iqn signals=true --seeds 5 --out runs/x
    quantilax diagnose runs/x
    """
    from quantilax.studies import diagnosis
    from quantilax.studies.store import FACTS

    found = (
        diagnosis.diagnose_study(path) if os.path.exists(path / FACTS) else {"": diagnosis.diagnose_run(path)}
    )  # a run is a study of one cell
    if as_json:
        told = {cell: [diagnosis.as_json(one) for one in seeds] for cell, seeds in found.items()}
        click.echo(json.dumps(told if list(told) != [""] else told[""], indent=2))
        return
    for cell, seeds in found.items():
        if cell:
            click.echo(f"cell {cell}")
        for line in diagnosis.told(seeds):
            click.echo(f"  {line}" if cell else line)


@cli.command(name="list-runs")
@click.argument("directory", type=click.Path(path_type=Path), default=Path("runs"))
def list_runs(directory: Path) -> None:
    """List the runs at and below DIRECTORY, by default runs/."""
    from quantilax.runs import overview

    found, broken = overview.find_runs(directory)
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in ("run", "section", "seeds", "state", "step", "mean return", "begun"):
        table.add_column(column, justify="right" if column in ("step", "mean return") else "left", overflow="fold")
    for run in found:
        table.add_row(
            str(run.path),
            run.section,
            _range(run.seeds),
            run.status,
            "-" if run.env_step is None else f"{run.env_step:,}",
            "-" if run.return_mean is None else f"{run.return_mean:.1f}",
            run.begun[:16].replace("T", " "),
        )
    if found:
        least = 80 if sys.stdout.isatty() else 200
        _console(least, highlight=False, markup=False, emoji=False).print(table)
    else:
        click.echo(f"no runs below {directory}")
    for line in broken:
        click.echo(f"warning: {line}", err=True)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def show(run: Path) -> None:
    """Show the run in the directory RUN: config, state, checkpoints, curve, and what follows from the config."""
    from quantilax import runs
    from quantilax.runs import overview
    from quantilax.runs.conditions import load_agent

    directory = runs.RunDirectory.open(run)
    agent, told = load_agent(run), overview.info(directory)
    _describe(told.section, agent, len(told.seeds))
    rows = overview.curve(run)
    done = f"step {told.env_step or 0:,} of {agent.evaluation_steps[-1]:,}"
    click.echo(f"\nstate: {told.status}, {done}, seeds {_range(told.seeds)}")
    for number, start in enumerate(directory.facts["starts"]):
        click.echo(f"{'begun' if number == 0 else 'resumed'} {start['date']} at step {start['from_env_step']:,}")
        click.echo(f"  {start['command']}")
    lines = overview.checkpoint_lines(directory)
    click.echo("\ncheckpoints: " + ("" if lines else "none"))
    for line in lines:
        click.echo(f"  {line}")
    console = Console()
    if drawn := overview.plot(rows, console.width, bool(console.color_system) and not console.no_color):
        click.echo(f"\n{drawn}")
    if told.status not in ("finished", "running"):
        click.echo(f"\ngo on with: quantilax resume {shlex.quote(str(run))}")


@cli.command(name="list")
def list_() -> None:
    """List algorithms and environments."""
    from quantilax import algorithms, envs

    console = _console(80, highlight=False)
    console.print("[bold]algorithms[/bold]")
    for name, algorithm in algorithms.ALGORITHMS.items():
        told, module = algorithm.config.__doc__ or "", sys.modules[algorithm.init.__module__]
        if told.startswith(f"{algorithm.config.__name__}("):  # a dataclass's own, where nothing was written
            told = module.__doc__ or ""
        console.print(f"  {name:10} {next(iter(told.splitlines()), '')}".rstrip(), soft_wrap=True, markup=False)
    for library, names in envs.names().items():
        console.print(f"[bold]environments of {library}[/bold]")
        for name in names:
            console.print(f"  {name}")


def _summarize(store: "Store", quiet: bool) -> None:  # type: ignore[name-defined]
    if not quiet:
        _tell_results(store)
    click.echo(f"results in {store.path}; quantilax report {shlex.quote(str(store.path))} makes a page of them")


def _tell_results(store: "Store") -> None:  # type: ignore[name-defined]
    from quantilax.studies.report import summary_table
    from quantilax.studies.results import Results
    from quantilax.studies.verdict import verdict

    results = Results.read(store)
    told, table = verdict(results), summary_table(results)
    if table.rows:
        drawn = rich.table.Table(box=None, header_style="bold", pad_edge=False)
        kept = [i for i, column in enumerate(table.columns) if column.title in SUMMARY]
        for i in kept:
            drawn.add_column(table.columns[i].title, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*("\n".join((row[i].text, *filter(None, row[i].detail.split("; ")))) for i in kept))
        _console(120, highlight=False, markup=False, emoji=False).print(drawn)
        click.echo("\nbelow each figure its 95% interval, and p adjusted for the number of cells compared")
    for line in (told.headline, *told.caveats):
        click.echo(line)


SUMMARY = (
    "cell",
    "n",
    "return at the end",
    "solved for good",
    "fell",
    "better over the curve",
    "better at the end",
    "broken",
)
"""Columns that a terminal has room for."""


def _foretell(planned: "Plan") -> None:  # type: ignore[name-defined]
    from quantilax import train
    from quantilax.studies.forecast import forecast

    console = _console(120, highlight=False, markup=False)
    derived = {cell: agent.config.derived() for group in planned.groups for cell, agent in group.agents.items()}
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    quantities = list(dict.fromkeys(quantity for figures in derived.values() for quantity in figures))
    for column in ("cell", "group", *(quantity.replace("_", " ") for quantity in quantities)):
        table.add_column(column, justify="left" if column == "cell" else "right", overflow="fold")
    number = {cell: group.number + 1 for group in planned.groups for cell in group.agents}
    for cell in planned.study.cells:
        figures = derived.get(cell.name, {})
        cells = (f"{figures[q]:,.6g}" if q in figures else "-" for q in quantities)
        table.add_row(cell.name, str(number.get(cell.name, "-")), *cells)
    console.print(table)
    for failure in planned.failures:
        click.echo(f"warning: cell '{failure.cell}' cannot be run: {failure.reason}", err=True)
    for cell, agent in ((cell, agent) for group in planned.groups for cell, agent in group.agents.items()):
        for line in train.advice(agent.env, agent.config):
            click.echo(f"warning: cell '{cell}': {line}", err=True)
    laid, told = planned.laid, forecast(planned)
    for group, why in told.broken:
        for cell in group.agents:
            click.echo(f"warning: cell '{cell}' cannot be run: {why}", err=True)
    click.echo(
        f"\n{planned.left} runs to do, {planned.finished} are there; {laid.jobs} job(s), {laid.width} run(s) on each at a"
        f" time; {len(planned.groups)} compile group(s)"
    )
    click.echo(f"memory: {told.state_bytes / 2**20:,.1f} MiB for the states of {laid.runs} run(s) at a time")
    if told.costs:
        compiling, least, most = told.total
        timed = "" if len(told.costs) == told.groups else f" (timed: {len(told.costs)} of {told.groups} groups)"
        click.echo(
            f"time: {_duration(least)} to {_duration(most)}, by the length of the evaluations' episodes, and"
            f" {_duration(compiling)} compiling{timed}"
        )


def _duration(seconds: float) -> str:
    """Write 45 s, 12 min or 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _console(least: int, **options: Any) -> Console:
    """A console on standard output of so many columns at least: in a narrower terminal, which folds lines, no figure is cut."""
    return Console(width=max(Console().width, least), **options)


@contextmanager
def _memory_told(options: str) -> Iterator[None]:
    """Refuse what the device has no memory for."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"the device's memory does not suffice; lower {options}") from None


@contextmanager
def _told_if_interrupted() -> Iterator[None]:
    """End the process with the signal's exit status; click would make 1 of it."""
    from quantilax.runs import Interrupted

    try:
        yield
    except Interrupted as error:
        click.echo(str(error), err=True)
        if error.at_once:
            _end_at_once(error.exit_status)
        sys.exit(error.exit_status)


def _load(config: Path, section: str | None, overrides: tuple[str, ...]) -> "Section":  # type: ignore[name-defined]
    """Read what CONFIG [SECTION] [FIELD=VALUE]... asks for; what stands in the place of SECTION may be a FIELD=VALUE."""
    from quantilax import runs

    named = section if section is None or "=" not in section else None
    fields = overrides if named is section else (str(section), *overrides)
    return runs.load_section(config, named, runs.parse_overrides(fields))


def _tell(result: "Result", seeds: int) -> None:  # type: ignore[name-defined]
    click.echo(
        f"final mean return {result.return_mean:.1f} over {seeds} seed{'s' if seeds > 1 else ''},"
        f" {result.seconds:.1f} s (+ {result.compile_seconds:.1f} s compiling), in {result.path}"
    )


def _range(seeds: list[int]) -> str:
    """Write 0-4 for 0, 1, 2, 3, 4."""
    is_range = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if is_range else ", ".join(map(str, seeds))


def _describe(name: str, agent: "Agent", seeds: int) -> None:  # type: ignore[name-defined]
    from quantilax import train
    from quantilax.runs.directory import config_yaml

    click.echo(config_yaml(name, agent))
    table = rich.table.Table("quantity", "value", box=None, header_style="bold", pad_edge=False)
    for quantity, value in agent.config.derived().items():
        table.add_row(quantity, f"{value:,.6g}" if isinstance(value, float) else f"{value:,}")
    steps = agent.evaluation_steps
    table.add_row("evaluations", f"{len(steps)}, at environment steps {steps[0]:,} to {steps[-1]:,}")
    sizes = train.state_bytes(*agent.arguments())
    if "replay" in sizes:
        table.add_row("bytes_of_replay", f"{sizes['replay']:,} per seed")
    table.add_row("bytes_of_state", f"{sizes['total']:,} per seed, {sizes['total'] * seeds:,} in all")
    _console(80).print(table)


def main() -> None:
    """Run the command line; see `quantilax.cli.main`."""
    from quantilax.runs import beside, stderr

    told = sys.stderr
    if told is not None and not isinstance(told, stderr.Lossy):  # `main` may run more than once in a process
        sys.stderr = stderr.Lossy(lambda: told)
    try:
        with stdout.guarded():
            status = _status()
    except stdout.LostError as error:
        status = error.exit_status
        if str(error):
            click.echo(f"error: {error}", err=True)
    if beside.is_any_left():
        _end_at_once(status)
    sys.exit(status)


def _status() -> int:
    """Run the command and return its exit status."""
    from quantilax.runs import RunError

    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} (see quantilax --help)", err=True)
        return 2
    except (ConfigError, RunError) as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        _refuse_without_devices()
        raise
    return 0


def _refuse_without_devices() -> None:
    """End with one line where JAX finds no device, which it says by exceptions of many kinds, some without a word."""
    from quantilax import switches

    try:
        switches.devices()
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _end_at_once(status: int) -> None:
    """End the process without the exit of the interpreter, which would wait for what still runs."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
