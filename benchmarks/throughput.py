"""Speed on the investigation's Test 3 (20,000 steps), beside rejax's IQN from PyPI in an environment of its own.

    python -m benchmarks.throughput --against rejax --pairs 5

The two run in turn, each in a fresh process; medians over the pairs, and the ratio pair by pair. Compiling is cold (no
cache) but in the last row, which starts from a cache that an earlier process filled.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import ENVIRONMENT, ROOT, peer_python
from benchmarks.workload import TEST_3


def side(python: Path, *arguments: str, cwd: Path = ROOT) -> dict[str, float]:
    """Run one side in a process and return what it prints, with what follows from it."""
    command = [str(python), *arguments]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    if "run_s" in result:
        result["updates_per_s"] = result["updates"] / result["run_s"]
        result["env_steps_per_s"] = TEST_3["total_timesteps"] / result["run_s"]
    result["start_s"] = result["trace_s"] + result["compile_s"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", choices=["rejax"], help="the peer; left out, quantilax alone")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()

    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for pair in range(arguments.pairs):
        ours.append(side(Path(sys.executable), "-m", "benchmarks.side_quantilax"))
        if arguments.against:
            script = f"side_{arguments.against}.py"
            theirs.append(side(peer_python(arguments.against), script, cwd=ROOT / "benchmarks"))
        print(f"pair {pair + 1} of {arguments.pairs} done", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        warm = [side(Path(sys.executable), "-m", "benchmarks.side_quantilax", cache) for _ in range(4)][1:]

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians of {arguments.pairs}\n"
    )
    print(f"| quantity | quantilax | {arguments.against or '-'} | ratio, pair by pair |\n|---|---|---|---|")
    for quantity, digits in (
        ("updates_per_s", 1), ("env_steps_per_s", 1), ("run_s", 1), ("trace_s", 2), ("compile_s", 2), ("start_s", 2),
        ("peak_mb", 0), ("final_return", 1),
    ):  # fmt: skip
        row = [statistics.median(r[quantity] for r in ours)]
        text = f"| {quantity} | {row[0]:.{digits}f} |"
        if theirs:
            ratio = statistics.median(a[quantity] / b[quantity] for a, b in zip(ours, theirs, strict=True))
            text += f" {statistics.median(r[quantity] for r in theirs):.{digits}f} | {ratio:.2f} |"
        print(text if theirs else f"{text} | |")
    print(f"| start_s, warm cache | {statistics.median(r['start_s'] for r in warm):.2f} | | |")


if __name__ == "__main__":
    main()
