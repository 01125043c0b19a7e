"""What checkpoints cost: how much longer a run takes with them, time and size of one save, and bytes over a long run.

    python -m benchmarks.checkpoints --pairs 5

The run is the section `iqn` of configs/gymnax/cartpole.yaml at its default settings: a checkpoint after each evaluation.
With and without (one at the end) run in turn, each in a fresh process; seconds of training, compiling apart.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from quantilax import IQN
from quantilax.host import limits
from quantilax.runs import checkpoints

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "gymnax" / "cartpole.yaml"


def training_seconds(out: Path, every: int, steps: int, cache: Path) -> float:
    """Seconds that `quantilax train` takes, compiling apart."""
    command = [
        *(sys.executable, "-m", "quantilax.cli", "train", str(CONFIG), "iqn", f"total_timesteps={steps}"),
        *("--checkpoint-every", str(every), "--out", str(out), "--quiet"),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"XDG_CACHE_HOME": str(cache)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds: float = json.loads((out / "run.json").read_text())["seconds"]
    return seconds


def pairs(number: int, steps: int) -> None:
    """Print the cost of checkpoints over a run."""
    ratios, with_them, without = [], [], []
    with tempfile.TemporaryDirectory() as root:
        cache = Path(root) / "cache"
        training_seconds(Path(root) / "warm", 1, steps, cache)
        for pair in range(number):
            order = (1, 0) if pair % 2 else (0, 1)
            seconds = {every: training_seconds(Path(root) / f"{pair}-{every}", every, steps, cache) for every in order}
            with_them.append(seconds[1])
            without.append(seconds[0])
            ratios.append(seconds[1] / seconds[0])
            print(f"pair {pair}: {seconds[1]:.2f} s with, {seconds[0]:.2f} s without", file=sys.stderr)
    print(
        f"{number} pairs of {steps:,} steps: median {statistics.median(with_them):.2f} s with a checkpoint after each"
        f" evaluation, {statistics.median(without):.2f} s with one at the end; ratio pair by pair: median"
        f" {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}\n"
    )


def saves() -> None:
    """Print time and size of a save, for replays of several sizes and seeds, full and a tenth filled."""
    print(
        "| seeds | replay rows | filled | copy, ms | write, ms | write again, ms | read, ms | MB on disk | MB of state |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for seeds, capacity, share in ((1, 20_000, 1.0), (10, 20_000, 1.0), (1, 1_000_000, 0.1), (1, 1_000_000, 1.0)):
        algo = IQN.create(env="CartPole-v1", buffer_size=capacity)
        state = jax.vmap(algo.init)(jax.random.split(jax.random.key(0), seeds))
        ring, filled = state.replay, int(capacity * share) // algo.config.num_envs
        rows, observations = jax.tree.map(
            lambda x: jax.random.bits(jax.random.key(1), x.shape, jnp.uint32).astype(x.dtype),  # compresses badly
            (ring.rows, ring.observations),
        )
        counters = dict(iterations=jnp.full_like(ring.iterations, filled), cursor=jnp.full_like(ring.cursor, filled))
        ring = replace(ring, rows=rows, observations=observations, **counters)
        state = jax.block_until_ready(replace(state, replay=ring))
        copy, write, again, read = [], [], [], []
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            for _ in range(5):
                start = time.perf_counter()
                arrays = checkpoints.pack({"state": state})
                copied = time.perf_counter()
                facts = {"return_mean": 0.0, "config": {}, "rows": 0}
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                path = checkpoints.save(root / "checkpoints", 1, arrays, facts)
                written = time.perf_counter()
                checkpoints.save(root / "checkpoints", 2, arrays, facts)  # its replay is there already
                again.append(time.perf_counter() - written)
                checkpoints.save(root / "checkpoints", 1, arrays, facts, keep=1)
                begun = time.perf_counter()
                checkpoints.read(path)
                read.append(time.perf_counter() - begun)
                write.append(written - copied)
                copy.append(copied - start)
            size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
        total = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
        figures = " | ".join(f"{statistics.median(x) * 1e3:.0f}" for x in (copy, write, again, read))
        print(f"| {seeds} | {capacity:,} | {share:.0%} | {figures} | {size / 1e6:.1f} | {total / 1e6:.1f} |")


MANY = """
import pathlib, sys
from quantilax import cli
sys.argv = ["quantilax", *sys.argv[1:]]
try:
    cli.main()
finally:
    facts = dict(line.split(": ") for line in pathlib.Path("/proc/self/io").read_text().splitlines())
    print(facts["wchar"], file=sys.stderr)
"""
LONG = """
dqn: {env: CartPole-v1, total_timesteps: 21000, eval_freq: 20, eval_episodes: 128, fill_buffer: 1000, num_envs: 10,
      num_epochs: 1, buffer_size: 20000, batch_size: 16, torso_sizes: [64, 64], head_sizes: [64]}
"""


def bytes_written() -> None:
    """Print what a run of a thousand evaluations hands to the system to write (Linux), with checkpoints and with one."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "long.yaml").write_text(LONG)
        written = {}
        for every in (1, 0):
            words = ("train", "long.yaml", "dqn", "--quiet", "--no-cache", "--checkpoint-every", str(every))
            command = [sys.executable, "-c", MANY, *words, "--out", f"run-{every}"]
            done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
            written[every] = int(done.stderr.split()[-1])
        held = sum(p.stat().st_size for p in (Path(root) / "run-1" / "checkpoints").rglob("*") if p.is_file())
    print(
        f"1,001 evaluations of 128 episodes, a replay that fills to 20,000 rows: {written[1] / 1e6:,.0f} MB written with a"
        f" checkpoint after each, {written[0] / 1e6:,.0f} MB with one at the end; {held / 1e6:.1f} MB of checkpoints stay\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30_000)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {limits.cores()} cores\n")
    bytes_written()
    saves()
    print()
    pairs(arguments.pairs, arguments.steps)


if __name__ == "__main__":
    main()
