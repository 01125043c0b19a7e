"""Seconds that S seeds take, laid over the cores, one after another, and in one `vmap`.

    python -m benchmarks.seeds

The section `iqn` of configs/gymnax/cartpole.yaml for `--steps` environment steps, compiling apart. Every way
and number of seeds runs in a process of its own, all in turn, `--pairs` times; ratios are to one seed in the same turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

WAYS = {
    "cores": "a device per core, one after another on each (`quantilax train --seeds`)",
    "map": "one after another on one device (`lax.map`)",
    "vmap": "all at once on one device (`vmap`)",
}


def measure(way: str, seeds: int, steps: int) -> float:
    """Seconds of the compiled program, in this process."""
    import jax
    import yaml

    from quantilax import IQN, devices, runs
    from quantilax.devices import compile_fit, fit

    if way == "cores":
        runs.use_all_cores(seeds)
    elif way == "vmap":
        devices.over_seeds = lambda function, inputs: jax.vmap(function)(inputs)
    with open("configs/gymnax/cartpole.yaml") as file:
        section = yaml.safe_load(file)["iqn"] | {"total_timesteps": steps, "eval_freq": steps // 4}
    algorithm, env, config = IQN.create(**section).arguments()
    keys = jax.vmap(jax.random.key)(jax.numpy.arange(seeds))
    program = compile_fit(algorithm, env, config, keys)
    assert program.init is not None
    start = time.perf_counter()
    for segment in fit(env, config, program, program.init(env, config, keys)):
        jax.block_until_ready(segment)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "SEEDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, seeds = arguments.measure
        print(json.dumps(measure(way, int(seeds), arguments.steps)))
        return

    cache = tempfile.TemporaryDirectory()  # of compiled programs: compiling is not measured
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache.name}
    seconds: dict[tuple[str, int], list[float]] = {(w, s): [] for w in arguments.ways for s in arguments.seeds}
    for pair in range(arguments.pairs):
        for way, seeds in seconds:
            command = [sys.executable, "-m", "benchmarks.seeds", "--steps", str(arguments.steps)]
            done = subprocess.run(
                [*command, "--measure", way, str(seeds)], capture_output=True, text=True, check=True, env=environment
            )
            seconds[way, seeds].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"pair {pair + 1} of {arguments.pairs} done", file=sys.stderr, flush=True)

    print(
        f"{os.cpu_count()} cores; medians of {arguments.pairs}: seconds (times the seconds of one seed on one device)\n"
    )
    print("| way | " + " | ".join(f"{s} seeds" for s in arguments.seeds) + " |")
    print("|---|" + "---|" * len(arguments.seeds))
    base = seconds["map", 1] if ("map", 1) in seconds else seconds[arguments.ways[0], arguments.seeds[0]]
    for way in arguments.ways:
        cells = []
        for s in arguments.seeds:
            ratio = statistics.median(a / b for a, b in zip(seconds[way, s], base, strict=True))
            cells.append(f"{statistics.median(seconds[way, s]):.1f} ({ratio:.2f})")
        print(f"| {WAYS[way]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
