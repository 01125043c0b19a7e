"""Time to a lasting solution of CartPole-v1, beside peers from PyPI, each in an environment of its own.

    python -m benchmarks.solution --out results.csv              # takes hours; asked again, it goes on where it stopped
    python -m benchmarks.solution --out results.csv --summary    # the tables
    python -m benchmarks.solution --out results.csv --algorithm pqn --seeds 5

A solution lasts from the first evaluation with a mean return of at least 475 after which no evaluation over the rest of the
budget falls below 475. Its seconds run from the start of the process, so importing and compiling count, as do the
evaluations. A seed without a lasting solution counts with the seconds and steps of its whole budget.

Each seed of each side runs in a fresh process, the sides in turn. A side reports its evaluations as they are there
(`benchmarks/solution_report.py`); when its process has ended, they are appended to the CSV all at once.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import ENVIRONMENT, PEERS, ROOT, peer_python

THRESHOLD = 475.0


class Side(NamedTuple):
    """How a side is run."""

    peer: str
    """`quantilax`, or whose environment it needs."""
    section: str
    """Of its settings."""
    is_compiled: bool = True
    """Whether a compilation cache could serve it."""


SIDES = {
    "iqn": {
        "quantilax": Side("quantilax", "iqn"),
        "rejax": Side("rejax", "iqn"),
        "rejax-noted": Side("rejax", "iqn_noted"),
        "sb3-contrib": Side("sb3-contrib", "qrdqn", is_compiled=False),
        "tianshou": Side("tianshou", "iqn", is_compiled=False),
    },
    "pqn": {"quantilax": Side("quantilax", "pqn"), "rejax": Side("rejax", "pqn")},
}
BUDGETS = {"iqn": 100_000, "pqn": 524_288}
SEEDS = {"iqn": 10, "pqn": 5}


class Row(NamedTuple):
    """A line of the CSV: one evaluation."""

    algorithm: str
    cache: str
    """`cold` or `warm`, of compiled programs."""
    budget: int
    """Environment steps asked for."""
    peer: str
    seed: int
    env_step: int
    seconds: float
    """Since the process was started."""
    return_mean: float
    process_seconds: float
    """Of the whole process, to its exit; the same for all rows of a seed."""
    versions: str


class Solution(NamedTuple):
    """What one seed came to."""

    is_lasting: bool
    seconds: float
    """To the lasting solution; without one, of the whole budget."""
    env_step: int
    """Likewise."""


def lasting(curve: list[Row]) -> Solution:
    """Find the first evaluation from which on none is below the threshold."""
    good = list(itertools.takewhile(lambda row: row.return_mean >= THRESHOLD, reversed(curve)))
    row = good[-1] if good else curve[-1]
    return Solution(bool(good), row.seconds, row.env_step)


def run_seed(algorithm: str, cache: str, budget: int, name: str, seed: int, compiled: Path) -> list[Row]:
    """Run a seed of a side in a process of its own and return its curve.

    Args:
        algorithm, cache, budget, name, seed: as in `Row`.
        compiled: the directory for compiled programs, which the side finds as it is.
    """
    side = SIDES[algorithm][name]
    python = Path(sys.executable) if side.peer == "quantilax" else peer_python(side.peer)
    script = f"solution_{side.peer.replace('-', '_')}.py"
    command = [str(python), script, side.section, str(seed), str(budget), cache]
    environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT / "benchmarks", env=environment, capture_output=True, text=True)
    process_seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    *curve, facts = reports
    return [
        Row(
            *(algorithm, cache, budget, name, seed, report["env_step"], round(report["at"] - start, 3)),
            *(round(report["return_mean"], 3), round(process_seconds, 3), facts["versions"]),
        )
        for report in curve
    ]


def read(path: Path) -> list[Row]:
    """Read the rows of a CSV; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        types = Row.__annotations__
        return [Row(**{name: types[name](text) for name, text in line.items()}) for line in csv.DictReader(file)]


def append(path: Path, rows: list[Row]) -> None:
    """Append rows to a CSV, with a header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(Row._fields)
        writer.writerows(rows)


def run(path: Path, algorithm: str, cache: str, budget: int, names: list[str], seeds: range) -> None:
    """Run what the CSV does not have yet, the sides in turn."""
    key = algorithm, cache, budget
    there = {(row.peer, row.seed) for row in read(path) if row[:3] == key}
    pairs = [(name, seed) for seed in seeds for name in names if (name, seed) not in there]
    for peer in {SIDES[algorithm][name].peer for name, _ in pairs} & set(PEERS):
        peer_python(peer)
    with tempfile.TemporaryDirectory() as root:
        for number, (name, seed) in enumerate(pairs, start=1):
            if cache == "cold" or not SIDES[algorithm][name].is_compiled:
                compiled = Path(tempfile.mkdtemp(dir=root))
            else:
                compiled = Path(root) / name
                if not compiled.exists():
                    print(f"{name}: a run that fills the cache, not recorded", file=sys.stderr, flush=True)
                    run_seed(*key, name, seed, compiled)
            curve = run_seed(*key, name, seed, compiled)
            append(path, curve)
            solution = lasting(curve)
            told = (
                f"lasting from {solution.env_step:,} steps, {solution.seconds:.1f} s" if solution.is_lasting else "none"
            )
            print(
                f"{number} of {len(pairs)}: {name}, seed {seed}: {curve[-1].seconds:.1f} s, final return"
                f" {curve[-1].return_mean:.1f}; lasting solution: {told}",
                file=sys.stderr,
                flush=True,
            )


def curves_of(rows: list[Row]) -> dict[str, dict[int, list[Row]]]:
    """Sort rows by peer and seed."""
    curves: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        curves.setdefault(row.peer, {}).setdefault(row.seed, []).append(row)
    return curves


def print_solutions(curves: dict[str, dict[int, list[Row]]]) -> None:
    """Print the table of lasting solutions; `>` where half of the seeds or more had none, so that the median is a bound."""
    all_solutions = {name: [lasting(curve) for curve in seeds.values()] for name, seeds in curves.items()}
    solved = {name: sum(s.is_lasting for s in solutions) for name, solutions in all_solutions.items()}
    is_bound = {name: 2 * solved[name] <= len(solutions) for name, solutions in all_solutions.items()}
    medians = {name: statistics.median(s.seconds for s in solutions) for name, solutions in all_solutions.items()}
    print(
        "| side | seeds | with a lasting solution | seconds to it | steps to it | whole budget, s | beside quantilax |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, solutions in all_solutions.items():
        sign = ">" if is_bound[name] else ""
        steps = statistics.median(s.env_step for s in solutions)
        whole = statistics.median(curve[-1].seconds for curve in curves[name].values())
        ratio = "-"
        if not is_bound.get("quantilax", True):
            ratio = f"{sign}{medians[name] / medians['quantilax']:.2f}"
        print(
            f"| {name} | {len(solutions)} | {solved[name]} | {sign}{medians[name]:.1f} | {sign}{steps:,.0f} | {whole:.1f}"
            f" | {ratio} |"
        )


def print_totals(curves: dict[str, dict[int, list[Row]]]) -> None:
    """Print the table of whole runs."""
    ours = curves.get("quantilax", {})
    print(
        "| side | seeds | seconds | range | process, s | final mean return | range | beside quantilax, seed by seed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, seeds in curves.items():
        last = {seed: curve[-1] for seed, curve in seeds.items()}
        seconds = [row.seconds for row in last.values()]
        returns = [row.return_mean for row in last.values()]
        process = statistics.median(row.process_seconds for row in last.values())
        ratios = [row.seconds / ours[seed][-1].seconds for seed, row in last.items() if seed in ours]
        print(
            f"| {name} | {len(last)} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} |"
            f" {process:.1f} | {statistics.median(returns):.1f} | {min(returns):.1f} to {max(returns):.1f} |"
            f" {f'{statistics.median(ratios):.2f}' if ratios else '-'} |"
        )


def summarize(rows: list[Row]) -> None:
    """Print a table for each combination of algorithm, cache and budget."""
    print(f"{platform.machine()}, {os.cpu_count()} cores; medians over the seeds")
    for algorithm, cache, budget in dict.fromkeys(row[:3] for row in rows):
        chosen = [row for row in rows if row[:3] == (algorithm, cache, budget)]
        print(f"\n{algorithm}, {budget:,} environment steps, compiling {cache}\n")
        (print_solutions if algorithm == "iqn" else print_totals)(curves_of(chosen))
        print()
        for name, versions in dict.fromkeys((row.peer, row.versions) for row in chosen):
            print(f"- {name}: {versions}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the CSV; what it has is not run again")
    parser.add_argument("--summary", action="store_true", help="print the tables of the CSV and run nothing")
    parser.add_argument("--algorithm", choices=sorted(SIDES), default="iqn")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="which of them; all, unless told otherwise")
    parser.add_argument("--seeds", type=int, help="how many; 10, of pqn 5, unless told otherwise")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--cache", choices=("cold", "warm"), default="cold", help="of compiled programs")
    parser.add_argument("--total-timesteps", type=int, help="another budget, to try the command")
    arguments = parser.parse_args()
    algorithm = arguments.algorithm
    names = arguments.sides or list(SIDES[algorithm])
    if unknown := [name for name in names if name not in SIDES[algorithm]]:
        parser.error(f"--sides: no side '{unknown[0]}' of {algorithm}; there are {', '.join(SIDES[algorithm])}")
    if arguments.summary:
        if not arguments.out.exists():
            parser.error(f"--out: no file {arguments.out}")
        summarize(read(arguments.out))
        return
    budget = arguments.total_timesteps or BUDGETS[algorithm]
    last = arguments.first_seed + (arguments.seeds or SEEDS[algorithm])
    run(arguments.out, algorithm, arguments.cache, budget, names, range(arguments.first_seed, last))


if __name__ == "__main__":
    main()
