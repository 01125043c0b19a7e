"""The command line: parses, calls, prints."""

import sys
import warnings
from pathlib import Path

import click
import rich.table
from rich.console import Console

from quantilax.pytree import ConfigError

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=HELP, invoke_without_command=True)
@click.pass_context
@click.version_option(package_name="quantilax", prog_name="quantilax")
def cli(context: click.Context) -> None:
    """Distributional reinforcement learning in JAX: IQN and its neighbours, whole training as one XLA program."""
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
@click.option("--quiet", "-q", is_flag=True, help="Print the last line only.")
@click.option("--no-cache", is_flag=True, help="Do not keep compiled programs in the user's cache directory.")
def train(
    config: Path,
    section: str | None,
    overrides: tuple[str, ...],
    seeds: int,
    seed: int,
    out: Path | None,
    dry_run: bool,
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
    from quantilax.runs.directory import default_path

    named = section if section is None or "=" not in section else None
    fields = overrides if named is section else (str(section), *overrides)
    asked = runs.load_section(config, named, runs.parse_overrides(fields))
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
    directory = runs.RunDirectory(out or default_path(agent.env.name, asked.name))
    if not no_cache:
        runs.enable_compilation_cache()
    try:
        result = runs.run(agent, asked.name, list(range(seed, seed + seeds)), directory, quiet)
    except KeyboardInterrupt:
        click.echo(f"interrupted; what was written so far is in {directory.path}", err=True)
        sys.exit(130)
    click.echo(
        f"final mean return {result.return_mean:.1f} over {seeds} seed{'s' if seeds > 1 else ''},"
        f" {result.seconds:.1f} s (+ {result.compile_seconds:.1f} s compiling), in {directory.path}"
    )


@cli.command(name="list")
def list_() -> None:
    """List algorithms and environments."""
    from quantilax import algorithms, envs

    console = Console(highlight=False)
    console.print("[bold]algorithms[/bold]")
    for name, algorithm in algorithms.ALGORITHMS.items():
        module = sys.modules[algorithm.init.__module__]
        console.print(f"  {name:6} {(module.__doc__ or '').splitlines()[0]}", soft_wrap=True)
    for library, names in envs.names().items():
        console.print(f"[bold]environments of {library}[/bold]")
        for name in names:
            console.print(f"  {name}")


def _describe(name: str, agent: "Agent", seeds: int) -> None:  # type: ignore[name-defined]
    from quantilax import train
    from quantilax.runs.directory import config_yaml

    click.echo(config_yaml(name, agent))
    table = rich.table.Table("quantity", "value", box=None, header_style="bold", pad_edge=False)
    for quantity, value in agent.config.derived().items():
        table.add_row(quantity, f"{value:,.6g}" if isinstance(value, float) else f"{value:,}")
    steps = agent.evaluation_steps
    table.add_row("evaluations", f"{len(steps)}, at environment steps {steps[0]:,} to {steps[-1]:,}")
    sizes = train.state_bytes(*agent._arguments())
    if "replay" in sizes:
        table.add_row("bytes_of_replay", f"{sizes['replay']:,} per seed")
    table.add_row("bytes_of_state", f"{sizes['total']:,} per seed, {sizes['total'] * seeds:,} in all")
    Console().print(table)


def main() -> None:
    """Run the command line; what a user got wrong is one line on standard error and exit status 2."""
    from quantilax.runs import RunError

    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} (see quantilax --help)", err=True)
        sys.exit(2)
    except (ConfigError, RunError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
