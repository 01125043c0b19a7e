"""The commands `train` and `resume`."""

import warnings
from pathlib import Path

import click

from quantilax.cli.shared import LOG, NO_CACHE, QUIET, load, misleading, show_config, stop_on_signals, tell
from quantilax.errors import ConfigError


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("section", required=False)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of seeds, trained in one program.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="First seed.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory; must be new or empty.  [default: runs/...]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the resolved config, quantities derived from it and the memory it needs; train nothing.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Evaluations between checkpoints; 0: at the end only.",
)
@click.option("--no-band", is_flag=True, help="Do not compare the run with the band of its section.")
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
    no_band: bool,
    log: tuple[str, ...],
    quiet: bool,
    no_cache: bool,
) -> None:
    """Train the agent that SECTION of the YAML file CONFIG describes.

    SECTION may be left out if the file has only one. FIELD=VALUE overrides a field of the section.

    If the file has a band for the section, the run is compared with it at 10, 20 and 50 % of its
    budget; see docs/diagnosis.md.

    \b
    quantilax train configs/gymnax/cartpole.yaml iqn
    quantilax train configs/gymnax/cartpole.yaml iqn --seeds 5 learning_rate=1e-3 --out runs/x
    """
    from quantilax import devices, runs

    runs.use_all_cores(seeds)
    asked = load(config, section, overrides)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent = asked.create()
    told = [*(str(warning.message) for warning in caught), *(f"{asked.where}: {line}" for line in misleading(agent))]
    for message in dict.fromkeys(told):
        click.echo(f"warning: {message}", err=True)
    if dry_run:
        show_config(asked.name, agent, seeds)
        return
    if seed + seeds > 2**32:
        raise ConfigError(f"--seed: {seed} is too large for {seeds} seeds below 2^32; choose a smaller one")
    watch = None if no_band else _watch(config, asked, agent)
    devices.check_memory(seeds, *agent.arguments())
    with stop_on_signals():
        result = runs.run(
            agent,
            out,
            range(seed, seed + seeds),
            section=asked.name,
            checkpoint_every=checkpoint_every,
            log=log,
            watch=watch,
            quiet=quiet,
            cache=not no_cache,
        )
    tell(result, seeds)


def _watch(config: Path, asked: "Section", agent: "Agent") -> "Watch | None":  # type: ignore[name-defined]
    """Return what compares the run with the band of its section, if there is one."""
    from quantilax.checks import bands, ranges
    from quantilax.checks.watch import Watch
    from quantilax.runs.configs import find
    from quantilax.studies.definition import plain

    band, section = bands.read(find(config), asked.name), plain(asked)
    if band is None or band.changes(section) is None:
        return None
    return Watch(band, asked.name, section, list(ranges.ranges(agent)))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--total-timesteps",
    type=click.IntRange(min=1),
    help="Extend the run to this many environment steps; schedules follow the new total.",
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
    """Continue the run in the directory RUN as if it had never stopped.

    \b
    quantilax resume runs/x
    quantilax resume runs/x --total-timesteps 200_000
    """
    from quantilax import runs

    before = runs.RunDirectory.open(run).facts
    runs.use_all_cores(before.get("devices", 1), asked=True)  # the number it began with
    with stop_on_signals():
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
            f"already finished: mean return {result.return_mean:.1f} after {result.env_step:,} steps;"
            " extend it with --total-timesteps"
        )
        return
    tell(result, len(after["seeds"]))
