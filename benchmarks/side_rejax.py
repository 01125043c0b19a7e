"""One timed run of rejax's IQN, printed as JSON; runs in rejax's own environment, without quantilax."""

import argparse
import json
import resource
import statistics
import time

import jax
from rejax import IQN
from workload import TEST_3, UPDATES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1, help="of the compiled program; the median is told")
    options = parser.parse_args()
    algo = IQN.create(env="CartPole-v1", **TEST_3)
    start = time.perf_counter()
    lowered = jax.jit(algo.train).lower(jax.random.PRNGKey(0))
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()
    times = []
    for _ in range(options.runs):
        start_run = time.perf_counter()
        _, (_, returns) = jax.block_until_ready(compiled(jax.random.PRNGKey(0)))
        times.append(time.perf_counter() - start_run)
    print(
        json.dumps(
            {
                "trace_s": traced - start,
                "compile_s": ready - traced,
                "run_s": statistics.median(times),
                "updates": UPDATES,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "final_return": float(returns[-1].mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
