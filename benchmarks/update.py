"""Milliseconds of one gradient step of IQN, beside its matrix products alone and the machine's best product.

    python -m benchmarks.update

Settings of the investigation's Test 3, then with fractions shared by the batch and with fewer of them. All programs are timed
in turn, 100 steps in a scan, `--rounds` times; the table gives the median and the least.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.workload import TEST_3
from quantilax import IQN
from quantilax.algorithms import q_learning

STEPS = 100
WIDTH = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "N = N' = 64, K = 32": {},
    "the same, shared": {"share_tau": True},
    "N = N' = K = 16": {"num_tau_samples": 16, "num_tau_prime_samples": 16, "num_quantile_samples": 16},
    "N = N' = K = 8": {"num_tau_samples": 8, "num_tau_prime_samples": 8, "num_quantile_samples": 8},
    "the same, shared ": {
        "num_tau_samples": 8,
        "num_tau_prime_samples": 8,
        "num_quantile_samples": 8,
        "share_tau": True,
    },
}


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Return the compiled function with its arguments, run once."""
    program = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    return lambda: program(*arguments)


def updates(settings: dict[str, Any]) -> Callable[[], Any]:
    """100 gradient steps, each on a batch of the replay's."""
    algo = IQN.create(env="CartPole-v1", activation="swish", **{**TEST_3, **settings})
    _, _, config = algo.arguments()

    def run(config: Any, state: Any) -> Any:
        keys = jax.random.split(state.key, STEPS)
        return jax.lax.scan(lambda s, key: (q_learning.step(config, s, key)[0], None), state, keys)[0].params

    return compiled(run, config, algo.init(jax.random.key(0)))


def products(config: Any) -> list[tuple[int, str]]:
    """Rows of the large products of a gradient step (64 by 64 weights), forwards and for gradients of weights and inputs."""
    b = config.batch_size
    n, n_prime, k = config.num_tau_samples, config.num_tau_prime_samples, config.num_quantile_samples
    shared = config.share_tau
    embedded = [(rows if shared else b * rows, "forward") for rows in (n, n_prime, k)]
    hidden = [(b * rows, "forward") for rows in (n, n_prime, k)]
    return [*embedded, *hidden, (n if shared else b * n, "weights"), (b * n, "weights"), (b * n, "forward")]


def alone(shapes: list[tuple[int, str]]) -> Callable[[], Any]:
    """100 times those products and nothing else, each waiting for the one before."""
    x = {rows: jax.random.normal(jax.random.key(rows), (rows, WIDTH)) for rows, _ in shapes}
    w = jnp.eye(WIDTH)

    def once(w: Any, _: None) -> tuple[Any, None]:
        for rows, kind in shapes:
            if kind == "forward":
                y = x[rows] @ w
                w = jax.lax.optimization_barrier((w, y))[0] + 0 * y[0, 0]
            else:
                w = jnp.eye(WIDTH) + 0 * ((x[rows] + w[0, 0]).T @ x[rows])
        return w, None

    return compiled(lambda w: jax.lax.scan(once, w, None, length=STEPS)[0], w)


def best_product(n: int = 1024) -> Callable[[], Any]:
    """100 products of n by n matrices."""
    a = jax.random.normal(jax.random.key(0), (n, n))
    return compiled(lambda a: jax.lax.scan(lambda c, _: (0.01 * (c @ a), None), a, None, length=STEPS)[0], a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds

    programs, flops = {"a 1024 x 1024 product": best_product()}, {"a 1024 x 1024 product": 2.0 * 1024**3}
    for name, settings in SETTINGS.items():
        config = replace(IQN.create(env="CartPole-v1", **TEST_3).config, **settings)
        shapes = products(config)
        programs[name], programs[f"{name}: products"] = updates(settings), alone(shapes)
        flops[f"{name}: products"] = sum(2.0 * rows * WIDTH**2 for rows, _ in shapes)

    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)

    rate = flops["a 1024 x 1024 product"] / statistics.median(times["a 1024 x 1024 product"]) / 1e6
    print(f"jax {jax.__version__}; {rate:.0f} GFLOP/s in products of 1024 x 1024; medians (least) of {rounds}\n")
    print("| setting | a gradient step, ms | its large products alone, ms | the same at the best rate, ms |")
    print("|---|---|---|---|")
    for name in SETTINGS:
        step, part = times[name], times[f"{name}: products"]
        print(
            f"| {name.strip()} | {statistics.median(step):.2f} ({min(step):.2f}) |"
            f" {statistics.median(part):.2f} ({min(part):.2f}) | {flops[f'{name}: products'] / rate / 1e6:.2f} |"
        )


if __name__ == "__main__":
    main()
