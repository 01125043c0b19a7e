"""The command `calibrate`."""

import json
import math
from pathlib import Path
from typing import Any

import click
import rich.table

from quantilax.cli.shared import CHECKPOINT, NO_CACHE, as_checkpoint, refuse_without_memory, table_console
from quantilax.errors import ConfigError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(min=1), default=1_000, show_default=True, help="Episodes per seed.")
@CHECKPOINT
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the episodes.")
@click.option("--levels", default="0.5,0.8,0.95", show_default=True, help="Levels of coverage.")
@click.option("--states", type=click.IntRange(min=1), default=8, show_default=True, help="States kept per episode.")
@click.option(
    "--tail",
    type=float,
    default=0.01,
    show_default=True,
    help="Largest weight of what would follow a time limit; states with more are left out.",
)
@click.option(
    "--recalibrate",
    is_flag=True,
    help="Fit a correction of the quantiles to as many more episodes, check it, and store it in RUN.",
)
@click.option("--csv", type=click.Path(path_type=Path), help="Write all numbers to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@NO_CACHE
def calibrate(
    run: Path,
    episodes: int,
    checkpoint: str,
    seed: int,
    levels: str,
    states: int,
    tail: float,
    recalibrate: bool,
    csv: Path | None,
    as_json: bool,
    no_cache: bool,
) -> None:
    """Compare the return distributions that RUN learned with returns of held-out episodes.

    Prints how often intervals hold the return (coverage), how often returns are below the learned
    quantiles, the CRPS and the PIT histogram; see docs/calibration.md.

    \b
    quantilax calibrate runs/x
    quantilax calibrate runs/x --recalibrate --csv calibration.csv
    """
    from quantilax import runs
    from quantilax.returns import calibration

    which = as_checkpoint(checkpoint)
    try:
        asked = [float(level) for level in levels.split(",")]
    except ValueError:
        raise ConfigError(f"--levels: expected numbers such as 0.5,0.8,0.95, got '{levels}'") from None
    if not no_cache:
        runs.enable_compilation_cache()
    with refuse_without_memory("--episodes or --states"):
        found = calibration.calibrate_run(
            run,
            which,
            episodes=episodes,
            seed=seed,
            levels=asked,
            states=states,
            tail=tail,
            recalibrate=recalibrate,
        )
    if csv is not None:
        _write(csv, found.rows())
    if as_json:
        head = {"run": str(run), "env_step": found.env_step, "episodes": episodes, "seed": seed}
        told = {"left_out": found.left_out, "converted": found.conversions, "not_converted": found.caveats}
        spread = None if found.spread is None else found.spread._asdict()
        rows = [{name: _plain(value) for name, value in row.items()} for row in found.rows()]
        click.echo(json.dumps({**head, **told, "spread": spread, "rows": rows}, indent=2, allow_nan=False))
        return
    _print(run, found, episodes)


def _print(run: Path, found: "CalibratedRun", episodes: int) -> None:  # type: ignore[name-defined]
    from quantilax.returns import calibration
    from quantilax.statistics import FEW_SEEDS

    click.echo(f"{run}: the policy at step {found.env_step:,}, {episodes:,} episodes per seed")
    for line in found.conversions:
        click.echo(f"converted: {line}")
    for line in found.caveats:
        click.echo(f"not converted: {line}")
    if found.left_out:
        click.echo(f"left out: {found.left_out:.1%} of the visited states, whose returns the time limit cuts")
    levels = next(iter(found.parts.values()))[0].levels
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in ("seed", "quantiles", "steps", *(f"in {level:.3g}" for level in levels), "below median", "CRPS"):
        table.add_column(column, justify="left" if column in ("seed", "quantiles", "steps") else "right")
    table.add_column("reference", justify="right")
    summary = "all" if len(found.seeds) > 1 else str(found.seeds[0])
    for (seed, distribution), parts in found.parts.items():
        for i, part in enumerate(parts if seed == summary else parts[1:2]):
            shares = [_share(part.coverage, k) for k in range(len(levels))]
            below = _share(part.below, calibration.BELOW.index(0.5))
            crps = f"{part.crps.value:.3g}", "-" if math.isnan(part.reference) else f"{part.reference:.3g}"
            table.add_row(*((seed, distribution) if i == 0 else ("", "")), part.name, *shares, below, *crps)
    table_console(120).print(table)
    for (seed, distribution), parts in found.parts.items():
        if seed == summary:
            told = " ".join(f"{share:.0%}" for share in parts[1].pit.value)
            click.echo(f"{distribution}: PIT from 0 to 1, each should be 10%: {told}")
            for line in calibration.verdict(parts[1]) or ["no deviation of 2 points or more beyond chance"]:
                click.echo(f"{distribution}: {line}")
    if found.spread is not None:
        click.echo(
            f"at first states: standard deviation {found.spread.within:.3g} within a seed's distribution, and"
            f" {found.spread.between:.3g} between the means of seeds"
        )
    if found.file is not None:
        click.echo(f"wrote {found.file}; quantilax.load(RUN).algo.quantiles(..., calibrated=True) uses it")
    click.echo(
        "intervals for one seed resample its episodes"
        + ("" if len(found.seeds) < 2 else "; intervals for all resample whole seeds")
        + (f" and are too narrow with fewer than {FEW_SEEDS}" if 1 < len(found.seeds) < FEW_SEEDS else "")
    )


def _share(measured: Any, i: int) -> str:
    value, low, high = (x[i] for x in measured)
    return f"{value:.0%}" if math.isnan(low) else f"{value:.0%} ({low:.0%} to {high:.0%})"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import polars as pl

    try:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(path)
    except OSError as error:
        raise ConfigError(f"--csv: {path} cannot be written: {error.strerror or error}") from None
