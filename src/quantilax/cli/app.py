"""The group of all commands, and the exit status of the process.

A command parses its arguments, calls the library and prints the result.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import click

from quantilax.cli import (
    calibrating,
    checking,
    environments,
    exporting,
    frontier,
    inspection,
    looking,
    stdout,
    studying,
    training,
)
from quantilax.cli.shared import HELP, end_at_once
from quantilax.errors import ConfigError, LostEpisodesWarning


@click.group(context_settings=HELP, invoke_without_command=True)
@click.pass_context
@click.version_option(package_name="quantilax", prog_name="quantilax")
@click.option(
    "--import",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a Python file first, to register algorithms or environments of your own; may be repeated.",
)
def cli(context: click.Context, files: tuple[Path, ...]) -> None:
    """Distributional reinforcement learning in JAX.

    IQN and related algorithms; a whole training run is one XLA program.
    """
    if files:
        from quantilax.runs import extensions

        extensions.load(*files)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


COMMANDS = (
    training.train,
    training.resume,
    inspection.evaluate,
    calibrating.calibrate,
    frontier.risk,
    exporting.export,
    looking.inspect,
    looking.video,
    inspection.show,
    inspection.plot,
    inspection.list_runs,
    inspection.list_,
    inspection.configs_,
    checking.lint,
    checking.diagnose,
    environments.check_env,
    environments.play,
    studying.study,
    studying.report,
    studying.recommend,
    studying.band,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; see `quantilax.cli.main`."""
    from quantilax.host import console
    from quantilax.runs import loggers

    warnings.showwarning = _show_warning
    told = sys.stderr
    if told is not None and not isinstance(told, console.Lossy):  # a process may call `main` twice
        sys.stderr = console.Lossy(lambda: told)
    try:
        with stdout.guarded():
            status = _status()
    except stdout.LostError as error:
        status = error.exit_status
        if str(error):
            click.echo(f"error: {error}", err=True)
    if loggers.is_any_left():
        end_at_once(status)
    sys.exit(status)


_showwarning = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Show a warning of quantilax in one line, without the line of code that it came from."""
    if issubclass(category, LostEpisodesWarning):
        click.echo(f"warning: {message}", err=True)
    else:
        _showwarning(message, category, *where, **more)


def _status() -> int:
    """Run the command and return its exit status."""
    from quantilax.errors import RunError

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
    """Exit with a one-line error if JAX finds no device.

    JAX reports this with many kinds of exception, some of them without a message.
    """
    from quantilax import switches

    try:
        switches.devices()
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
