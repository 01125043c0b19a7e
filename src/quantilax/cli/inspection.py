"""The commands `evaluate`, `show`, `plot`, `list-runs`, `list` and `configs`."""

import dataclasses
import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import rich.table
from rich.console import Console

from quantilax.cli.shared import (
    CHECKPOINT,
    NO_CACHE,
    as_checkpoint,
    refuse_without_memory,
    seed_range,
    show_config,
    table_console,
)
from quantilax.errors import ConfigError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(min=1), default=1_000, show_default=True, help="Episodes per seed.")
@CHECKPOINT
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the episodes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@NO_CACHE
def evaluate(run: Path, episodes: int, checkpoint: str, seed: int, as_json: bool, no_cache: bool) -> None:
    """Evaluate the policy that the run in the directory RUN learned, and print a summary.

    The summary has the returns and the lengths of the episodes, for each seed and for all seeds:
    means, quantiles, and the mean return of the worst 5, 10 and 25 % of the episodes (CVaR).

    \b
    quantilax evaluate runs/x
    quantilax evaluate runs/x --episodes 1000 --checkpoint best --seed 7
    """
    from quantilax import runs
    from quantilax.statistics import CVAR_LEVELS, FEW_SEEDS, QUANTILES, summarize

    if not no_cache:
        runs.enable_compilation_cache()
    which = as_checkpoint(checkpoint)
    with refuse_without_memory("--episodes"):
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
            cells = (f"{s.mean:.1f}", _ends(s.mean_interval), f"{s.iqm:.1f}", _ends(s.iqm_interval))
            quantiles = (f"{value:.1f}" for value in s.quantiles.values())
            table.add_row(name if quantity == "return" else "", quantity, *cells, *quantiles)
    table_console(110).print(table)
    click.echo("mean return of the worst episodes (CVaR)")
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("seed")
    for level in CVAR_LEVELS:
        table.add_column(f"worst {level:.0%}", justify="right")
        table.add_column("95% interval", justify="right")
    for name, row in summaries.items():
        s = row["return"]
        table.add_row(
            name, *(x for level in CVAR_LEVELS for x in (f"{s.cvar[level]:.1f}", _ends(s.cvar_interval[level])))
        )
    table_console(110).print(table)
    click.echo(
        "intervals for one seed resample its episodes; they say nothing about training with another seed"
        + ("" if len(found.seeds) < 2 else "; intervals for all resample whole seeds")
        + (f" and are too narrow with fewer than {FEW_SEEDS}" if 1 < len(found.seeds) < FEW_SEEDS else "")
    )


def _ends(interval: tuple[float, float]) -> str:
    low, high = interval
    return "-" if math.isnan(low) else f"{low:.1f} to {high:.1f}"


def _plain(summary: "Summary") -> dict[str, Any]:  # type: ignore[name-defined]
    """Convert a summary to JSON values; non-finite numbers and intervals become null."""
    from quantilax.runs.evaluations import finite_or_none as plain

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: told(inner) for key, inner in value.items()}
        if isinstance(value, tuple):
            return [plain(number) for number in value] if all(map(math.isfinite, value)) else None
        return plain(value)

    found: dict[str, Any] = told(summary._asdict())
    return found


@click.command(name="list-runs")
@click.argument("directory", type=click.Path(path_type=Path), default=Path("runs"))
def list_runs(directory: Path) -> None:
    """List the runs in and below DIRECTORY (default: runs/)."""
    from quantilax.runs import overview

    found, broken = overview.find_runs(directory)
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in ("run", "section", "seeds", "state", "step", "mean return", "begun"):
        table.add_column(column, justify="right" if column in ("step", "mean return") else "left", overflow="fold")
    for run in found:
        table.add_row(
            str(run.path),
            run.section,
            seed_range(run.seeds),
            run.status,
            "-" if run.env_step is None else f"{run.env_step:,}",
            "-" if run.return_mean is None else f"{run.return_mean:.1f}",
            run.begun[:16].replace("T", " "),
        )
    if found:
        least = 80 if sys.stdout.isatty() else 200
        table_console(least, highlight=False, markup=False, emoji=False).print(table)
    else:
        click.echo(f"no runs below {directory}")
    for line in broken:
        click.echo(f"warning: {line}", err=True)


@click.command(name="configs")
@click.argument("name", required=False)
def configs_(name: str | None) -> None:
    """List the configs that come with quantilax and their sections, or print the config NAME.

    Such a name works wherever a command takes a CONFIG.

    \b
    quantilax configs
    quantilax configs gymnax/cartpole > mine.yaml
    quantilax train gymnax/cartpole iqn
    """
    from quantilax.errors import did_you_mean
    from quantilax.runs import configs

    shipped = configs.shipped()
    if name is None:
        for each, file in shipped.items():
            click.echo(f"{each}: {', '.join(configs.read_yaml(file))}")
        return
    name = name.removesuffix(".yaml")
    if name not in shipped:
        raise ConfigError(f"no config '{name}' comes with quantilax{did_you_mean(name, shipped, 'configs')}")
    click.echo(shipped[name].read_text(encoding="utf-8"), nl=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def show(run: Path) -> None:
    """Show the run in the directory RUN.

    Prints its config, the quantities derived from it, its state, its checkpoints and its curve.
    """
    from quantilax import runs
    from quantilax.runs import overview

    directory = runs.RunDirectory.open(run)
    agent, told = directory.agent(), overview.info(directory)
    show_config(told.section, agent, len(told.seeds))
    rows = overview.curve(run)
    done = f"step {told.env_step or 0:,} of {agent.evaluation_steps[-1]:,}"
    click.echo(f"\nstate: {told.status}, {done}, seeds {seed_range(told.seeds)}")
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
        click.echo(f"\ncontinue with: quantilax resume {shlex.quote(str(run))}")


@click.command()
@click.argument("directories", nargs=-1, required=True, metavar="RUN|STUDY...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("curves.png"),
    show_default=True,
    help="Picture to write: .png, .svg or .pdf; an existing file is overwritten.",
)
def plot(directories: tuple[Path, ...], out: Path) -> None:
    """Draw the learning curves of several runs, or of all variants of a study, in one picture.

    Each curve is the mean over the seeds with its 95% interval at each step. Directory names label
    the curves.

    \b
    quantilax plot runs/iqn runs/qrdqn --out heads.png
    quantilax plot studies/fractions
    """
    from quantilax.host import paths
    from quantilax.runs import plots

    names = [path.resolve().name for path in directories]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, directories, strict=True)]
    curves = [curve for path, label in zip(directories, labels, strict=True) for curve in _curves(path, label)]
    plots.together(curves, paths.check(out))
    click.echo(f"{out}: {len(curves)} learning curve{'s' if len(curves) > 1 else ''}")


def _curves(path: Path, label: str) -> list["Curve"]:  # type: ignore[name-defined]
    """Return the curve of a run, or one curve for each variant of a study."""
    from quantilax import runs
    from quantilax.runs import plots
    from quantilax.studies.store import Store

    store = None if os.path.exists(path / "run.json") else Store.find(path)
    if store is None:
        return [plots.curve_of_run(runs.RunDirectory.open(path).path / "evaluations.csv", label)]
    records = store.records()
    if records.is_empty():
        raise ConfigError(f"{path}: has no finished run yet")
    rows = {
        part["variant"][0]: part.select("seed", "env_step", "return_mean").rows()
        for part in records.partition_by("variant", maintain_order=True)
    }
    return [plots.curve(f"{label}: {variant}", of_variant) for variant, of_variant in rows.items()]


@click.command(name="list")
@click.argument("algorithm", required=False)
@click.option(
    "--environments",
    is_flag=False,
    flag_value="",
    metavar="[LIBRARY]",
    help="List the libraries of environments, or the environments of one.",
)
def list_(algorithm: str | None, environments: str | None) -> None:
    """List algorithms and environments, or the fields of ALGORITHM with defaults and meanings.

    \b
    quantilax list
    quantilax list iqn
    quantilax list --environments gymnasium
    """
    from quantilax import algorithms, envs

    if algorithm is not None:
        _list_fields(algorithms.get(algorithm).config)
        return
    console = table_console(120, highlight=False, markup=False)
    if environments:
        for name in envs.names_of(environments):
            console.print(name)
        return
    if environments is None:
        console.print("algorithms", style="bold")
        for name, one in algorithms.ALGORITHMS.items():
            told, module = one.config.__doc__ or "", sys.modules[one.init.__module__]
            if told.startswith(f"{one.config.__name__}("):  # generated by `dataclass`
                told = module.__doc__ or ""
            console.print(f"  {name:10} {next(iter(told.splitlines()), '')}".rstrip(), soft_wrap=True)
    console.print("environments", style="bold")
    table = rich.table.Table(box=None, show_header=False, pad_edge=False)
    for library, (what, is_there) in envs.libraries().items():
        install = f"pip install 'quantilax[{library}]'"
        table.add_row(f"  {library}", what, f"quantilax list --environments {library}" if is_there else install)
    table.add_row("  your own", "module:Class or module:function, such as mypackage.envs:GridWorld", "")
    console.print(table)


def _list_fields(config: type) -> None:
    import yaml

    from quantilax import pytree

    defaults = pytree.defaults(config)
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("field", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for field in dataclasses.fields(config):
        meaning, choices = field.metadata.get("doc", ""), field.metadata.get("choices")
        of = f"; one of {', '.join(sorted(choices))}" if choices else ""
        default = yaml.safe_dump(defaults.get(field.name, ""), default_flow_style=True).removesuffix("\n...\n").strip()
        table.add_row(field.name, default, meaning + of)
    table_console(110, highlight=False, markup=False, emoji=False).print(table)
