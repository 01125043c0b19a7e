"""Pictures of runs, drawn from their files."""

import csv
import warnings
from pathlib import Path

import numpy as np


def learning_curve(evaluations: Path, picture: Path, title: str) -> None:
    """Draw the mean return over environment steps: each seed pale, the mean of the seeds bold.

    Args:
        evaluations: an `evaluations.csv`.
        picture: the PNG to write.
        title: stands above the picture, with the number of seeds.
    """
    from matplotlib.figure import Figure  # takes half a second: only for those who need it

    with evaluations.open(encoding="utf-8") as stream:
        rows = [(int(r["seed"]), int(r["env_step"]), float(r["return_mean"])) for r in csv.DictReader(stream)]
    seeds = sorted({seed for seed, _, _ in rows})
    steps = sorted({step for _, step, _ in rows})
    returns = np.array([[r for s, _, r in rows if s == seed] for seed in seeds])  # (seeds, rows)

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    if len(seeds) > 1:
        axes.plot(steps, returns.T, color="C0", alpha=0.3, linewidth=1)
    axes.plot(steps, returns.mean(axis=0), color="C0", linewidth=2, marker="o", markersize=3)
    axes.set(xlabel="environment steps", ylabel="mean return of an evaluation")
    seeds_told = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    axes.set_title(f"{title} ({seeds_told})", fontsize=10, parse_math=False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    aside = picture.with_name(picture.name + ".partial")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the font lacks a letter of a name
            figure.savefig(aside, format="png")
        aside.replace(picture)
    finally:
        aside.unlink(missing_ok=True)
