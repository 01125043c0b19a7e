"""Cost of one training iteration against the capacity of the replay, plain and over seeds: it should not depend on it.

    python -m benchmarks.replay_capacity --n-step 3

The capacities are timed in turn, so that other work on the machine meets them alike; median (and least).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax

from quantilax import IQN

CAPACITIES = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1M": 1_000_000}


def timed(capacity: int, seeds: int, n_step: int, prioritized: bool, iterations: int = 300) -> Callable[[], float]:
    """Milliseconds of one iteration (10 environment steps, one small update) in a scan, the buffer donated."""
    algo = IQN.create(
        env="CartPole-v1", buffer_size=capacity, fill_buffer=1_000, num_epochs=1, batch_size=16, num_tau_samples=2,
        num_tau_prime_samples=2, num_quantile_samples=2, torso_sizes=(16,), head_sizes=(16,), n_step=n_step,
        prioritized=prioritized,
    )  # fmt: skip

    def run(state):  # type: ignore[no-untyped-def]
        return jax.lax.scan(lambda s, _: (algo.step(s)[0], None), state, None, iterations)[0]

    state = jax.vmap(algo.init)(jax.random.split(jax.random.key(0), seeds))
    compiled = jax.jit(jax.vmap(run), donate_argnums=0).lower(state).compile()

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(compiled(state))
        return (time.perf_counter() - start) / iterations * 1e3

    once()
    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n-step", type=int, default=1)
    parser.add_argument("--prioritized", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    drawn = "by priority" if arguments.prioritized else "evenly"
    print(
        f"jax {jax.__version__}; n_step {arguments.n_step}, drawn {drawn}; milliseconds an iteration, of {arguments.rounds}\n"
    )
    print(f"| seeds | {' rows | '.join(CAPACITIES)} rows |\n|---{'|---' * len(CAPACITIES)}|")
    for seeds in (1, 8):
        programs = [timed(capacity, seeds, arguments.n_step, arguments.prioritized) for capacity in CAPACITIES.values()]
        rounds = [[program() for program in programs] for _ in range(arguments.rounds)]
        cells = [f"{statistics.median(times):.3f} ({min(times):.3f})" for times in zip(*rounds, strict=True)]
        print(f"| {seeds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
