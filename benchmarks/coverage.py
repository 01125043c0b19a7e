"""How often the bootstrap interval of a mean holds the true mean, for the table in docs/guides/statistics.md.

    python -m benchmarks.coverage --studies 10000

A study draws n returns and takes their interval by `quantilax.statistics.interval`. Four minutes on one core.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np

from quantilax.statistics import interval

RETURNS: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "normal": (np.random.Generator.normal, 0.0),
    "exponential": (np.random.Generator.exponential, 1.0),
}
"""How to draw them, and their true mean."""


def mean(values: np.ndarray) -> np.ndarray:
    """Mean of each resample."""
    return values.mean(axis=1)


def coverage(returns: str, n: int, studies: int) -> float:
    """Share of studies of n seeds whose interval holds the true mean."""
    draw, truth = RETURNS[returns]
    rng = np.random.default_rng(n)
    ends = (interval(mean, draw(rng, size=n)) for _ in range(studies))
    return sum(bool(low <= truth <= high) for low, high in ends) / studies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 10, 20, 50, 100], metavar="N")
    arguments = parser.parse_args()
    for returns in RETURNS:
        for n in arguments.seeds:
            share = coverage(returns, n, arguments.studies)
            error = math.sqrt(share * (1 - share) / arguments.studies)
            print(f"{returns}, n = {n}: {share:.1%}, standard error {error:.2%}", flush=True)
