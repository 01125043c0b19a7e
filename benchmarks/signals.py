"""Seconds of training with signals on, beside the same with them off.

    python -m benchmarks.signals

The sections of configs/gymnax/cartpole.yaml as they are, one seed, compiling apart. The two programs run in turn, `--pairs`
times, in one process; the table gives medians and the ratio pair by pair.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import yaml

import quantilax
from quantilax.devices import compile_fit, fit


def program(section: str, signals: bool) -> Callable[[], float]:
    """Return a function that trains once and returns its seconds; training without signals needs the same of it."""
    with open("configs/gymnax/cartpole.yaml") as file:
        settings = yaml.safe_load(file)[section]
    agent = getattr(quantilax, settings.pop("algorithm", section).upper()).create(**settings, signals=signals)
    algorithm, env, config = agent.arguments()
    keys = jax.vmap(jax.random.key)(jax.numpy.arange(1))
    compiled = compile_fit(algorithm, env, config, keys)

    def run() -> float:
        assert compiled.init is not None
        start = time.perf_counter()
        for segment in fit(env, config, compiled, compiled.init(env, config, keys)):
            jax.block_until_ready(segment)
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sections", nargs="+", default=["iqn", "pqn"])
    arguments = parser.parse_args()
    print("| section | pairs | off, s | on, s | ratio, pair by pair: median | range |\n|---|---|---|---|---|---|")
    for section in arguments.sections:
        off, on = (program(section, signals) for signals in (False, True))
        seconds = [(off(), on()) for _ in range(arguments.pairs)]
        ratios = [b / a for a, b in seconds]
        middle = [statistics.median(one) for one in zip(*seconds, strict=True)]
        print(
            f"| {section} | {arguments.pairs} | {middle[0]:.2f} | {middle[1]:.2f} | {statistics.median(ratios):.2f} |"
            f" {min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
