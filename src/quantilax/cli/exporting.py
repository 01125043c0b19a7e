"""The command `export`."""

from pathlib import Path

import click

from quantilax.cli.shared import CHECKPOINT, as_checkpoint


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("policy.onnx"),
    show_default=True,
    help="File to write: .onnx or .stablehlo. It must not exist.",
)
@CHECKPOINT
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="One of the run's seeds.  [default: the first]")
def export(run: Path, out: Path, checkpoint: str, seed: int | None) -> None:
    """Write the policy that the run in the directory RUN learned to a file that needs no quantilax.

    An ONNX file runs in onnxruntime, without JAX. StableHLO runs in JAX.

    \b
    quantilax export runs/x
    quantilax export runs/x --checkpoint best --out policy.stablehlo
    """
    from quantilax import export

    path = export.export(run, out, checkpoint=as_checkpoint(checkpoint), seed=seed)
    click.echo(f"{path}: {path.stat().st_size:,} bytes")
