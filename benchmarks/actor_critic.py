"""Microseconds of one gradient step of SAC and TQC, beside sbx, stable-baselines3 and sb3-contrib.

    python -m benchmarks.actor_critic

Networks of 256 x 256 units, batches of 256, two critics, Pendulum-v1. All programs are timed in turn, 200 steps each,
`--rounds` times; figures are medians, and ratios are medians of each round's. The others run in a process of their own.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from benchmarks.peers import ENVIRONMENT, peer_python
from quantilax import SAC, TQC
from quantilax.algorithms import sac

STEPS, SEEDS = 200, 8
SETTINGS: dict[str, Any] = dict(env="Pendulum-v1", fill_buffer=1_000, buffer_size=100_000, batch_size=256)


def gradient_steps(algo: Any, seeds: int) -> Callable[[], float]:
    """Return a function that times gradient steps of several seeds together, in microseconds per step."""
    _, _, config = algo.arguments()

    def run(state: Any) -> Any:
        keys = jax.random.split(state.key, STEPS)
        return jax.lax.scan(lambda s, key: (sac.step(config, s, key)[0], None), state, keys)[0]

    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.vmap(algo.init)(keys) if seeds > 1 else algo.init(keys[0])
    program = jax.jit(jax.vmap(run) if seeds > 1 else run, donate_argnums=0).lower(state).compile()

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(program(state))
        return (time.perf_counter() - start) / STEPS * 1e6

    once()
    return once


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    algos = {"SAC": SAC.create(**SETTINGS), "TQC": TQC.create(num_critics=2, **SETTINGS)}
    ours = {f"quantilax {name}": gradient_steps(algo, 1) for name, algo in algos.items()}
    ours |= {f"quantilax {name}, {SEEDS} seeds": gradient_steps(algo, SEEDS) for name, algo in algos.items()}
    script = Path(__file__).with_name("side_sbx.py")
    pipe = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    times: list[dict[str, float]] = []
    with pipe([peer_python("sbx"), script]) as peers:
        assert peers.stdin is not None
        assert peers.stdout is not None
        for _ in range(rounds + 1):
            peers.stdin.write("run\n")
            peers.stdin.flush()
            theirs = json.loads(peers.stdout.readline())
            times.append({name: once() for name, once in ours.items()} | theirs)
        peers.stdin.close()
    times = times[1:]
    print("| program | gradient step, us | quantilax's is faster by |\n|---|---|---|")
    for name in times[0]:
        own = f"quantilax {name.split()[1].rstrip(',')}"
        ratio = statistics.median(t[name] / t[own] for t in times)
        print(f"| {name} | {statistics.median(t[name] for t in times):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
