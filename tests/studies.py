"""Studies' directories with made-up results: a test writes the curves that it needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantilax.studies import definition
from quantilax.studies.store import Store
from tests.endtoend.conftest import TINY

STEPS = (0, 100, 200, 300)
START: dict[str, Any] = {
    "command": "quantilax study s.yaml --out s",
    "commit": "0123456789abcdef",
    "python": "3.11.4",
    "versions": {"quantilax": "0.1.0", "jax": "0.10.2"},
    "machine": "x86_64",
    "cores": 2,
    "device": "cpu",
    "date": "2026-11-22T10:00:00+0000",
    "finished_before": 0,
}

Curve = Sequence[float]

GOOD: Curve = (10.0, 480.0, 500.0, 500.0)
"""Solved for good at 100."""
FALLS: Curve = (10.0, 480.0, 300.0, 490.0)
LATE: Curve = (10.0, 20.0, 300.0, 490.0)
NEVER: Curve = (10.0, 20.0, 30.0, 40.0)
NAN = float("nan")


def store(
    path: Path,
    curves: Mapping[str, Mapping[int, Curve] | Sequence[Curve]],
    variants: Mapping[str, dict[str, Any]] | None = None,
    seeds: int = 6,
    solved: float | None = 475.0,
    first_seed: int = 0,
    **says: Any,
) -> Store:
    """Write the directory of a study.

    Args:
        path: the directory.
        curves: of each variant with results, by seed or in the order of the seeds from `first_seed` on.
        variants: overrides of each variant but the base; if None, a `gamma` of its own for each variant in `curves`.
        seeds, solved, first_seed: of the study.
        says: question and prediction.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    config = path.parent / "tiny.yaml"
    config.write_text(TINY)
    if variants is None:
        variants = {name: {"gamma": 0.5 + 0.01 * i} for i, name in enumerate(name for name in curves if name != "base")}
    asked: dict[str, Any] = {"base": {"config": str(config), "section": "iqn"}, "solved": solved, **says}
    asked |= {"variants": {"named": dict(variants)} if variants else None, "seeds": seeds, "first_seed": first_seed}
    made = Store.create(path, definition.make(asked, "s"), jobs=2, width=1, starts=[START], status="finished")
    write(made, curves, first_seed)
    return made


def write(there: Store, curves: Mapping[str, Mapping[int, Curve] | Sequence[Curve]], first_seed: int = 0) -> None:
    """Write runs into a study's directory."""
    for variant, runs in curves.items():
        by_seed = runs if isinstance(runs, Mapping) else dict(enumerate(runs, first_seed))
        rows = [
            {"variant": variant, "seed": seed, "env_step": step, "return_mean": value, "finite": value == value}
            for seed, curve in by_seed.items()
            for step, value in zip(STEPS[: len(curve)], curve, strict=True)
        ]
        if rows:
            there.write(rows)
