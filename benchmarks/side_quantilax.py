"""One timed run of quantilax, printed as JSON. Networks as rejax has them: 64, 64 and 64 units, swish."""

import argparse
import json
import resource
import statistics
import time

import jax

from benchmarks.workload import TEST_3
from quantilax import IQN
from quantilax.train import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", nargs="?", help="a directory for compiled programs: only the start is timed")
    parser.add_argument("--runs", type=int, default=1, help="of the compiled program; the median is told")
    options = parser.parse_args()
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    algo = IQN.create(env="CartPole-v1", activation="swish", **TEST_3)
    arguments = algo.arguments()
    start = time.perf_counter()
    lowered = jax.jit(train, static_argnums=0).lower(*arguments, jax.random.key(0))
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()
    if options.cache:
        print(json.dumps({"trace_s": traced - start, "compile_s": ready - traced}))
        return
    times = []
    for _ in range(options.runs):
        start_run = time.perf_counter()
        state, record = jax.block_until_ready(compiled(*arguments[1:], jax.random.key(0)))
        times.append(time.perf_counter() - start_run)
    print(
        json.dumps(
            {
                "trace_s": traced - start,
                "compile_s": ready - traced,
                "run_s": statistics.median(times),
                "updates": int(state.gradient_steps),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "final_return": float(record.returns[-1].mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
