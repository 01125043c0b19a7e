"""The command `risk`."""

from functools import partial
from pathlib import Path

import click
import rich.table

from quantilax.cli.shared import (
    CHECKPOINT,
    NO_CACHE,
    as_checkpoint,
    refuse_without_memory,
    seed_range,
    table_console,
)
from quantilax.errors import ConfigError, reason


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--levels", type=click.IntRange(min=1), default=20, show_default=True, help="Levels, evenly spaced.")
@click.option("--episodes", type=click.IntRange(min=2), default=1_000, show_default=True, help="Episodes per level.")
@CHECKPOINT
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the episodes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("risk.png"),
    show_default=True,
    help="Picture to write, .png, .svg or .pdf. The table of the same name ends with .csv.",
)
@NO_CACHE
def risk(run: Path, levels: int, episodes: int, checkpoint: str, seed: int, out: Path, no_cache: bool) -> None:
    """Show what the run in the directory RUN obtains at each level of risk.

    Plays with the policy for CVaR at each level, from the same weights. Prints the mean and the
    CVaR of the discounted returns, and writes them as a picture and as a table.

    \b
    quantilax risk runs/x
    quantilax risk runs/x --levels 5 --episodes 200 --out cautious.png
    """
    from quantilax import runs
    from quantilax.returns import frontier
    from quantilax.runs.plots import FORMATS

    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out: {out}: expected a name that ends with {', '.join(FORMATS)}")
    which = as_checkpoint(checkpoint)
    if not no_cache:
        runs.enable_compilation_cache()
    asked = [i / levels for i in range(1, levels + 1)]
    with refuse_without_memory("--episodes"):
        tell = partial(click.echo, err=True)
        found = frontier.of_run(run, which, levels=asked, episodes=episodes, seed=seed, tell=tell)
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in ("seed", "level", "mean", "95% interval", "CVaR", "95% interval", "score"):
        table.add_column(column, justify="right")
    for number, points in found.items():
        for i, p in enumerate(points):
            mean, cvar = f"{p.mean_low:.3g} to {p.mean_high:.3g}", f"{p.cvar_low:.3g} to {p.cvar_high:.3g}"
            cells = f"{p.level:.0%}", f"{p.mean:.4g}", mean, f"{p.cvar:.4g}", cvar, f"{p.score:.4g}"
            table.add_row(str(number) if i == 0 else "", *cells)
    table_console(90).print(table)
    try:
        frontier.write(found, out.with_suffix(".csv"))
        frontier.draw(
            found, out, f"{run.resolve().name}, seeds {seed_range(list(found))}, {episodes:,} episodes per level"
        )
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {reason(error)}; choose another file") from None
    click.echo(f"intervals are over episodes, and say nothing about training with another seed; {out} written")
