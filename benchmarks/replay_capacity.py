"""Cost of one training iteration against the capacity of the replay, plain and over seeds: it should not depend on it.

python -m benchmarks.replay_capacity
"""

import statistics
import time

import jax

from quantilax import IQN


def milliseconds(capacity: int, seeds: int, iterations: int = 300) -> float:
    """Median time of one iteration (10 environment steps, one small update) in a scan, the buffer donated."""
    algo = IQN.create(
        env="CartPole-v1", buffer_size=capacity, fill_buffer=1_000, num_epochs=1, batch_size=16, num_tau_samples=2,
        num_tau_prime_samples=2, num_quantile_samples=2, torso_sizes=(16,), head_sizes=(16,),
    )  # fmt: skip

    def run(state):  # type: ignore[no-untyped-def]
        return jax.lax.scan(lambda s, _: (algo.step(s)[0], None), state, None, iterations)[0]

    state = jax.vmap(algo.init)(jax.random.split(jax.random.key(0), seeds))
    compiled = jax.jit(jax.vmap(run), donate_argnums=0).lower(state).compile()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        state = jax.block_until_ready(compiled(state))
        times.append((time.perf_counter() - start) / iterations * 1e3)
    return statistics.median(times)


def main() -> None:
    print(
        f"jax {jax.__version__}; milliseconds an iteration\n\n| seeds | 1k rows | 10k | 100k | 1M |\n|---|---|---|---|---|"
    )
    for seeds in (1, 8):
        row = [milliseconds(capacity, seeds) for capacity in (1_000, 10_000, 100_000, 1_000_000)]
        print(f"| {seeds} | " + " | ".join(f"{x:.3f}" for x in row) + " |")


if __name__ == "__main__":
    main()
