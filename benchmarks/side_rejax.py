"""One timed run of rejax's IQN, printed as JSON; runs in rejax's own environment, without quantilax."""

import json
import resource
import time

import jax
from rejax import IQN
from workload import TEST_3, UPDATES


def main() -> None:
    algo = IQN.create(env="CartPole-v1", **TEST_3)
    start = time.perf_counter()
    lowered = jax.jit(algo.train).lower(jax.random.PRNGKey(0))
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()
    _, (_, returns) = jax.block_until_ready(compiled(jax.random.PRNGKey(0)))
    end = time.perf_counter()
    print(
        json.dumps(
            {
                "trace_s": traced - start,
                "compile_s": ready - traced,
                "run_s": end - ready,
                "updates": UPDATES,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "final_return": float(returns[-1].mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
