"""Time per environment step of shipped sections, training alone: collecting and learning, without evaluations and compiling.

    python -m benchmarks.sections configs/gymnax/breakout.yaml dqn iqn

The sections are timed in turn, so that other work on the machine meets them alike; median (and least).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax

from quantilax.runs import load_section

ENV_STEPS = 400
"""About so many per timing, in whole iterations."""


def timed(config: Path, name: str) -> Callable[[], float]:
    """Microseconds per environment step, in a scan over iterations with the state donated."""
    algo = load_section(config, name).create()
    steps = algo.config.steps_per_iteration
    iterations = max(1, ENV_STEPS // steps)

    def run(state):  # type: ignore[no-untyped-def]
        return jax.lax.scan(lambda s, _: (algo.step(s)[0], None), state, None, iterations)[0]

    state = jax.jit(algo.init)(jax.random.key(0))
    compiled = jax.jit(run, donate_argnums=0).lower(state).compile()

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(compiled(state))
        return (time.perf_counter() - start) / (iterations * steps) * 1e6

    once()
    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("sections", nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    programs = [timed(arguments.config, name) for name in arguments.sections]
    rounds = [[program() for program in programs] for _ in range(arguments.rounds)]
    print(f"jax {jax.__version__}; {arguments.config}; of {arguments.rounds}\n")
    print("| section | microseconds per environment step |\n|---|---|")
    for name, times in zip(arguments.sections, zip(*rounds, strict=True), strict=True):
        print(f"| {name} | {statistics.median(times):.0f} ({min(times):.0f}) |")


if __name__ == "__main__":
    main()
