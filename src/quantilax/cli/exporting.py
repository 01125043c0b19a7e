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
@click.option(
    "--outputs",
    default="action,q,quantiles",
    show_default=True,
    help="What the file computes, as far as the run learned it; action is always included.",
)
def export(run: Path, out: Path, checkpoint: str, seed: int | None, outputs: str) -> None:
    """Write the policy of the run in the directory RUN to a file that runs without quantilax.

    An ONNX file runs in onnxruntime, without JAX. StableHLO runs in JAX.

    \b
    quantilax export runs/x
    quantilax export runs/x --checkpoint best --out policy.stablehlo
    quantilax export runs/x --outputs action
    """
    from quantilax import export

    which = as_checkpoint(checkpoint)
    path = export.export(run, out, outputs=outputs.split(","), checkpoint=which, seed=seed)
    click.echo(f"{path}: {path.stat().st_size:,} bytes")
