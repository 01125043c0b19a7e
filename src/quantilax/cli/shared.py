"""Options and helpers that several commands share."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import rich.table
from rich.console import Console

from quantilax.errors import ConfigError, out_of_memory

QUIET = click.option("--quiet", "-q", is_flag=True, help="Print only the last line.")


NO_CACHE = click.option("--no-cache", is_flag=True, help="Do not keep compiled programs in the user's cache directory.")


LOG = click.option(
    "--log",
    multiple=True,
    metavar="NAME",
    help="tensorboard or wandb, in addition to the run's own files; may be repeated.",
)


CHECKPOINT = click.option(
    "--checkpoint", default="last", show_default=True, help="last, best or a number of environment steps."
)


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def table_console(least: int, **options: Any) -> Console:
    """Return a console on standard output that is at least `least` columns wide.

    A narrower terminal folds the lines, but no number in a table is cut off.
    """
    return Console(width=max(Console().width, least), **options)


def as_checkpoint(text: str) -> str | int:
    """Return what `--checkpoint` names, or raise `ConfigError`."""
    if text in ("last", "best"):
        return text
    if not text.isdecimal():
        raise ConfigError(f"--checkpoint: expected last, best or a number of environment steps, got '{text}'")
    return int(text)


@contextmanager
def refuse_without_memory(options: str) -> Iterator[None]:
    """Turn a device's out-of-memory error into a `ConfigError` that says which options to lower."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if told := out_of_memory(error, options):
            raise ConfigError(told) from None
        raise


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """End the process with the signal's own exit status; click would always exit with 1."""
    from quantilax.host.interrupts import Interrupted

    try:
        yield
    except Interrupted as error:
        click.echo(str(error), err=True)
        if error.at_once:
            end_at_once(error.exit_status)
        sys.exit(error.exit_status)


def load(config: Path, section: str | None, overrides: tuple[str, ...]) -> "Section":  # type: ignore[name-defined]
    """Read the section that CONFIG [SECTION] [FIELD=VALUE]... asks for.

    A FIELD=VALUE in the place of SECTION counts as an override.
    """
    from quantilax import runs

    named = section if section is None or "=" not in section else None
    fields = overrides if named is section else (str(section), *overrides)
    return runs.load_section(config, named, runs.parse_overrides(fields))


def misleading(agent: "Agent") -> list[str]:  # type: ignore[name-defined]
    """Return a line for each setting outside its usual range.

    This is the part of `lint` that needs arithmetic alone.
    """
    from quantilax.checks.ranges import ranges

    found = [told for told in ranges(agent) if told.severity != "note"]
    findings = (told.finding if told.field in told.finding else f"{told.field}: {told.finding}" for told in found)
    return [f"{finding}; {told.remedy}" for finding, told in zip(findings, found, strict=True)]


def seed_range(seeds: list[int]) -> str:
    """Write the seeds 0, 1, 2, 3, 4 as `0-4`."""
    is_range = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if is_range else ", ".join(map(str, seeds))


def tell(result: "Result", seeds: int) -> None:  # type: ignore[name-defined]
    """Print how a run ended."""
    click.echo(
        f"final mean return {result.return_mean:.1f} over {seeds} seed{'s' if seeds > 1 else ''},"
        f" {result.seconds:.1f} s (+ {result.compile_seconds:.1f} s compiling), in {result.path}"
    )


def show_config(name: str, agent: "Agent", seeds: int) -> None:  # type: ignore[name-defined]
    """Print the resolved config, the quantities derived from it and the memory that it needs."""
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
    table.add_row("bytes_of_state", f"{sizes['total']:,} per seed, {sizes['total'] * seeds:,} in total")
    table_console(80).print(table)


def end_at_once(status: int) -> None:
    """End the process now; the interpreter's normal exit would wait for threads that still run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
