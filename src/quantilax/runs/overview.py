"""Lists the runs below a directory and shows one in a terminal; reads files, never live objects."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from quantilax.errors import CheckpointError, ConfigError
from quantilax.runs import checkpoints
from quantilax.runs.directory import RunDirectory


class RunInfo(NamedTuple):
    """A run's line in the list."""

    path: Path
    section: str
    seeds: list[int]
    status: str
    env_step: int | None
    """Of the last evaluation; None before the first."""
    return_mean: float | None
    """Mean over seeds and episodes of the last evaluation."""
    begun: str


def find_runs(root: Path) -> tuple[list[RunInfo], list[str]]:
    """Return the runs at and below a directory, by path, and a line for each unreadable one.

    Raises:
        ConfigError: the directory does not exist.
    """
    if not os.path.isdir(root):
        raise ConfigError(f"{root}: no such directory; quantilax train creates runs below runs/")
    found, broken = [], []
    for directory, below, files in os.walk(root):
        if "run.json" in files:
            below.clear()  # a run contains no other runs
            try:
                found.append(info(RunDirectory.open(Path(directory))))
            except ConfigError as error:
                broken.append(str(error))
    return sorted(found), sorted(broken)


def info(run: RunDirectory) -> RunInfo:
    """Return the line that describes a run."""
    rows = curve(run.path)
    last = rows[-1] if rows else {}
    return RunInfo(
        run.path,
        run.facts["section"],
        run.facts["seeds"],
        run.status,
        last.get("env_step"),
        last.get("all", {}).get("return_mean"),
        run.facts["starts"][0]["date"],
    )


def curve(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `evaluations.jsonl`, up to the first damaged line.

    `all` omits means that are not finite.
    """
    rows = []
    try:
        lines = (path / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            row = json.loads(line)
            means = {name: float(value) for name, value in row["all"].items() if value is not None}
            means = {name: value for name, value in means.items() if math.isfinite(value)}
            rows.append({"env_step": int(row["env_step"]), "all": means, "seeds": list(row["seeds"])})
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            break
    return rows


def plot(rows: list[dict[str, Any]], width: int, color: bool) -> str:
    """Draw the mean return over environment steps as text: mean, lowest and highest of the seeds.

    The text is empty if there is nothing to draw or a number is too large for an axis.
    """
    from uniplot import plot_to_string

    names = {"mean": "return_mean"}
    if any(len(row["seeds"]) > 1 for row in rows):
        names = {"highest seed": "return_highest", "lowest seed": "return_lowest", **names}
    try:
        drawn: str = plot_to_string(
            xs=[[row["env_step"] for row in rows]] * len(names),
            ys=[[row["all"].get(column, math.nan) for row in rows] for column in names.values()],
            lines=True,
            width=max(20, min(width - 14, 90)),
            height=12,
            color=color,
            legend_labels=list(names) if len(names) > 1 else None,
            title="mean return over environment steps",
        )
    except (ValueError, ArithmeticError):
        return ""
    return drawn


def checkpoint_lines(run: RunDirectory) -> list[str]:
    """Return a line for each checkpoint: step, mean return, and which one is the best."""
    facts: dict[int, float | str] = {}
    for step in checkpoints.steps(run.checkpoints):
        try:
            facts[step] = checkpoints.manifest(checkpoints.path_of(run.checkpoints, step))["return_mean"]
        except CheckpointError as error:
            facts[step] = str(error)
    readable = {step: value for step, value in facts.items() if isinstance(value, float)}
    best = max(readable, key=lambda step: (readable[step], step), default=None)
    return [
        f"step {step:,}: {f'mean return {value:.1f}' if isinstance(value, float) else value}"
        + (" (best)" if step == best else "")
        for step, value in facts.items()
    ]
