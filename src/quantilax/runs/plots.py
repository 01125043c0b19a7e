"""Draw learning curves from the files of runs."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantilax import statistics
from quantilax.errors import ConfigError, reason

FORMATS = (".png", ".svg", ".pdf")


class Curve(NamedTuple):
    """The learning curves of several seeds."""

    label: str
    steps: np.ndarray
    """(T,) environment steps."""
    returns: np.ndarray
    """(seeds, T) mean returns of the evaluations."""


def curve(label: str, rows: Sequence[tuple[int, int, float]]) -> Curve:
    """Make a curve from rows (seed, environment step, mean return).

    It has the steps that all seeds have.
    """
    by_seed: dict[int, dict[int, float]] = {}
    for seed, step, value in rows:
        by_seed.setdefault(seed, {})[step] = value
    steps = sorted(set.intersection(*map(set, by_seed.values()))) if by_seed else []
    values = [[by_seed[seed][step] for step in steps] for seed in sorted(by_seed)]
    return Curve(label, np.array(steps), np.array(values).reshape(len(by_seed), len(steps)))


def curve_of_run(evaluations: Path, label: str) -> Curve:
    """Read a run's curve from its `evaluations.csv`.

    Raises:
        ConfigError: the file is missing or damaged, or holds no evaluation yet.
    """
    try:
        with evaluations.open(encoding="utf-8") as stream:
            rows = [(int(r["seed"]), int(r["env_step"]), float(r["return_mean"])) for r in csv.DictReader(stream)]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{evaluations}: cannot be read ({reason(error)}); resume the run to rewrite it") from None
    if not rows:
        raise ConfigError(f"{evaluations.parent}: has no evaluation yet; wait for the first, or resume the run")
    return curve(label, rows)


def learning_curve(evaluations: Path, picture: Path, title: str) -> None:
    """Draw the mean return over environment steps: each seed pale, the mean over the seeds bold.

    Args:
        evaluations: the run's `evaluations.csv`.
        picture: the file to write; its suffix gives the format.
        title: title of the picture; the number of seeds is added.
    """
    _, steps, returns = curve_of_run(evaluations, "")
    figure, axes = _axes()
    if len(returns) > 1:
        axes.plot(steps, returns.T, color="C0", alpha=0.3, linewidth=1)
    axes.plot(steps, returns.mean(axis=0), color="C0", linewidth=2, marker="o", markersize=3)
    axes.set_title(f"{title} ({_seeds(len(returns))})", fontsize=10, parse_math=False)
    _save(figure, picture)


def together(curves: Sequence[Curve], picture: Path) -> None:
    """Draw several curves in one picture.

    Each is the mean over the seeds, with its 95% interval if there are several seeds.

    Args:
        curves: the curves, with their labels in the legend.
        picture: the file to write, in one of `FORMATS`.

    Raises:
        ConfigError: the file has another format, or cannot be written.
    """
    if picture.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out: {picture}: expected a name that ends with {', '.join(FORMATS)}")
    figure, axes = _axes()
    lines = []
    for number, (_, steps, returns) in enumerate(curves):
        color, style = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
        lines += axes.plot(steps, returns.mean(axis=0), color=color, linestyle=style, linewidth=1.8)
        if len(returns) > 1:
            low, high = statistics.interval(_mean_over_seeds, returns, resamples=statistics.QUICK_RESAMPLES)
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    labels = [f"{curve.label} ({_seeds(len(curve.returns))})" for curve in curves]
    legend = axes.legend(lines, labels, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.set_title("mean over seeds, with its 95% interval at each step", fontsize=9)
    try:
        _save(figure, picture)
    except OSError as error:
        raise ConfigError(f"--out: {picture} cannot be written: {reason(error)}; choose another file") from None


def _mean_over_seeds(returns: np.ndarray) -> np.ndarray:
    return returns.mean(axis=1)  # (B, seeds, T) -> (B, T)


def _seeds(number: int) -> str:
    return f"{number} seed{'s' if number > 1 else ''}"


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # slow (half a second): imported only if needed

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="environment steps", ylabel="mean return of an evaluation")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, picture: Path) -> None:
    aside = picture.with_name(picture.name + ".partial")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the font lacks a character
            figure.savefig(aside, format=picture.suffix[1:].lower())
        aside.replace(picture)
    finally:
        aside.unlink(missing_ok=True)
