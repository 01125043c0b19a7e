"""The commands `lint` and `diagnose`."""

import json
import sys
import warnings
from pathlib import Path

import click
import rich.table

from quantilax.cli.shared import NO_CACHE, load, table_console


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("section", required=False)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--confirm/--no-confirm",
    default=True,
    show_default=True,
    help="Confirm findings: run the first steps with fields changed and compare the curves.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    help="Environment steps to compare, after the warm-up, before a field is reported to have no effect.",
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
    """Find settings in SECTION of the YAML file CONFIG that mislead, conflict or have no effect.

    Nothing is trained, except for a few hundred steps to confirm a finding. The exit status is 1 if
    any finding is more severe than a note.

    \b
    quantilax lint configs/gymnax/cartpole.yaml iqn
    quantilax lint configs/gymnax/cartpole.yaml iqn risk_eta=0.25 --json
    """
    from quantilax import runs
    from quantilax.agent import ConfigWarning
    from quantilax.checks import lint as linting
    from quantilax.host import console

    asked = load(config, section, overrides)
    with warnings.catch_warnings(action="ignore", category=ConfigWarning):  # reported as findings
        agent = asked.create()
    if not no_cache:
        runs.enable_compilation_cache()
    with console.status("reading the program of the run") as say:
        found = linting.lint(agent, confirm=confirm, steps=steps, given=asked.hyperparameters, progress=say)
    if as_json:
        head = {"config": str(config), "section": asked.name, "confirm": confirm}
        click.echo(json.dumps({**head, "findings": [finding._asdict() for finding in found]}, indent=2))
    elif found:
        table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
        columns = ("severity", "field", "finding", "evidence", "remedy")
        for column in columns:
            table.add_column(column, overflow="fold", ratio=None if column in ("severity", "field") else 1)
        for finding in found:
            table.add_row(*(getattr(finding, column) for column in columns))
        table_console(140, highlight=False, markup=False, emoji=False).print(table)
    else:
        click.echo("nothing found")
    if not linting.is_clean(found):
        sys.exit(1)


@click.command()
@click.argument("path", metavar="RUN|STUDY", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--band",
    metavar="CONFIG",
    type=click.Path(path_type=Path),
    help="YAML file of configs whose bands to judge by.  [default: those that come with quantilax]",
)
def diagnose(path: Path, as_json: bool, band: Path | None) -> None:
    """Explain what went wrong in a run or a study, with the evidence for each cause.

    Reads the signals that training records with signals=true; see docs/diagnosis.md. If the band of
    the run's section holds ranges of signals, the run is judged by these.

    \b
    quantilax train configs/gymnax/cartpole.yaml iqn signals=true --seeds 5 --out runs/x
    quantilax diagnose runs/x
    """
    from quantilax.checks import diagnosis
    from quantilax.studies.store import Store

    is_study = Store.find(path) is not None  # otherwise a run: one variant, which has no name
    found = diagnosis.diagnose_study(path, band) if is_study else {"": diagnosis.diagnose_run(path, band)}
    if as_json:
        told = {variant: [diagnosis.as_json(one) for one in seeds] for variant, seeds in found.items()}
        click.echo(json.dumps(told if list(told) != [""] else told[""], indent=2))
        return
    for variant, seeds in found.items():
        if variant:
            click.echo(f"variant {variant}")
        for line in diagnosis.told(seeds):
            click.echo(f"  {line}" if variant else line)
