"""Speed of environments outside of JAX: beside the bare libraries, and of several seeds in one program.

    python -m benchmarks.hosts play     # random play: the adapter beside the library
    python -m benchmarks.hosts seeds    # training on Pong: four seeds in one program beside four processes

Both sides take turns, and ratios are medians over the turns.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.libraries import compared, in_turns, of_adapter, program

ENVS, STEPS = 8, 1_000
SEEDS = 4
CONFIG = Path("configs/atari/pong.yaml")
SHORTER = dict(total_timesteps=2_000, eval_freq=1_000, eval_episodes=1, fill_buffer=400, buffer_size=4_000)
Play = Callable[[int], Any]
"""Plays `STEPS` steps of `ENVS` environments at random, from a seed."""


def adapter(name: str, **env_args: Any) -> Play:
    """An environment inside a program."""
    import jax

    from quantilax import envs

    played = program(of_adapter(envs.make(name, env_args=env_args)), ENVS, STEPS)
    return lambda seed: jax.block_until_ready(played(jax.random.key(seed)))


def gymnasium(name: str) -> Play:
    """The library's own loop over environments in this process."""
    import gymnasium as library

    env = library.make_vec(name, ENVS, vectorization_mode="sync")

    def play(seed: int) -> None:
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(STEPS):
            env.step(env.action_space.sample())

    return play


def atari(name: str, threads: int) -> Play:
    """ALE's own pool, with sticky actions and whole games, as `preset: dopamine`."""
    import numpy as np
    from ale_py.vector_env import AtariVectorEnv

    env: Any = AtariVectorEnv(
        name, ENVS, num_threads=threads, noop_max=0, use_fire_reset=False, repeat_action_probability=0.25
    )

    def play(seed: int) -> None:
        env.reset(seed=seed)
        actions = np.random.default_rng(seed).integers(env.single_action_space.n, size=(STEPS, ENVS))
        for action in actions:
            env.step(action)

    return play


PAIRS: dict[str, tuple[Callable[[], Play], Callable[[], Play]]] = {
    f"gymnasium/{name}": (lambda name=name: adapter(f"gymnasium/{name}"), lambda name=name: gymnasium(name))
    for name in ("CartPole-v1", "LunarLander-v3")
} | {
    "atari/Pong, one process": (lambda: adapter("atari/Pong"), lambda: atari("pong", 1)),
    "atari/Pong, two workers or threads": (
        lambda: adapter("atari/Pong", vectorization_mode="async", num_workers=2),
        lambda: atari("pong", 2),
    ),
}
"""The adapter and the library."""


def play(turns: int) -> None:
    """Print a row per environment."""
    print("| environment | adapter, steps/s | library, steps/s | adapter / library |\n|---|---|---|---|")
    for name, sides in PAIRS.items():
        print(f"| {name} | {compared([side() for side in sides], turns, ENVS * STEPS)} |", flush=True)


def train(seeds: list[int]) -> None:
    """Compile a training of these seeds; for each line on standard input run it and answer."""
    import jax
    import yaml

    from quantilax import QRDQN, devices, runs

    if len(seeds) > 1:
        runs.use_all_cores(len(seeds))
    section = yaml.safe_load(CONFIG.read_text())["qrdqn"] | SHORTER
    algorithm, env, config = QRDQN.create(**section).arguments()
    keys = jax.vmap(jax.random.key)(jax.numpy.array(seeds))
    program = devices.compile_fit(algorithm, env, config, keys)
    assert program.init is not None
    print("compiled", flush=True)
    for _ in sys.stdin:
        for segment in devices.fit(env, config, program, program.init(env, config, keys)):
            jax.block_until_ready(segment)
        print("done", flush=True)


def seeds(turns: int) -> None:
    """Print the seconds of both ways and their ratio."""

    def started(*seeds: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks.hosts", "train", *map(str, seeds)]
        one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert one.stdout is not None
        one.stdout.readline()
        return one

    def run(processes: list[subprocess.Popen[str]], turn: int) -> None:
        for one in processes:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in processes:
            assert one.stdout is not None
            assert one.stdout.readline() == "done\n"

    ways = [started(*range(SEEDS))], [started(seed) for seed in range(SEEDS)]
    together, apart = in_turns([partial(run, way) for way in ways], turns)
    for way in ways:
        for one in way:
            one.communicate()
    print(f"{SEEDS} seeds of Pong, {SHORTER['total_timesteps']:,} steps each; medians of {turns}\n")
    print("| together, seconds | processes, seconds | speed together / processes |\n|---|---|---|")
    ratio = median(one / other for one, other in zip(apart, together, strict=True))
    print(f"| {median(together):.1f} | {median(apart):.1f} | {ratio:.2f} |")


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("what", choices=["play", "seeds", "train"])
    parser.add_argument("seeds", nargs="*", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    if given.what == "train":
        train(given.seeds)
    else:
        {"play": play, "seeds": seeds}[given.what](given.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
