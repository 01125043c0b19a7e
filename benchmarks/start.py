"""Seconds until `quantilax.IQN` is there, beside `import jax` alone; each in a fresh process, in turn.

python -m benchmarks.start
"""

import statistics
import subprocess
import sys
import time

SIDES = {
    "nothing": "pass",
    "jax": "import jax",
    "quantilax": "from quantilax import IQN",
    "its command line": "import quantilax.cli.commands",
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(11):
        for name, code in SIDES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - start)
    print("| import of | seconds, median of 10 | more than jax |\n|---|---|---|")
    for name, values in seconds.items():
        more = statistics.median(
            a - b for a, b in zip(values[1:], seconds["jax"][1:], strict=True)
        )  # the first warms up
        print(f"| {name} | {statistics.median(values[1:]):.2f} | {more:+.2f} |")


if __name__ == "__main__":
    main()
