"""Gradient steps per second, memory and compile time of S seeds in one `vmap`, on the default device: collecting and learning.

    python -m benchmarks.scaling configs/gymnax/cartpole.yaml iqn --seeds 1 16 256 1024 --set compute_dtype=bfloat16

Each `--set` is one more variant beside the section as it is. All programs are compiled first, side by side; then each is timed
by itself: a scan over iterations with the state donated, repeated for `--seconds`, the median of at least five. `--profile N`
traces the program of N seeds and writes what each of its operations took to `--out` with the ending `.profile.csv`: for the
names of the operations, without command buffers (`XLA_FLAGS=--xla_gpu_enable_command_buffer=`).

    python -m benchmarks.scaling --draw scaling.csv picture.png           # updates per second in all over seeds
    python -m benchmarks.scaling --shares scaling.256.profile.csv ...     # of kinds of operations in an iteration
"""

import argparse
import csv
import glob
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import yaml

from quantilax.runs import load_section

ITERATIONS = 20
"""In one call of a program."""


class Case:
    """One section with one variant and a number of seeds."""

    def __init__(self, config: Path, name: str, variant: str, seeds: int) -> None:
        settings = dict(item.split("=", 1) for item in variant.split(",") if item)
        self.algo = load_section(config, name, {k: yaml.safe_load(v) for k, v in settings.items()}).create()
        self.name, self.variant, self.seeds = name, variant, seeds
        keys = jax.random.split(jax.random.key(0), seeds)
        self.keys = keys
        self.init_lowered = jax.jit(jax.vmap(self.algo.init)).lower(keys)
        self.run_lowered = jax.jit(jax.vmap(self.run), donate_argnums=0).lower(self.init_lowered.out_info)
        self.compile_s = float("nan")

    def run(self, state: Any) -> Any:
        return jax.lax.scan(lambda s, _: (self.algo.step(s)[0], None), state, None, ITERATIONS)[0]

    def compile(self) -> None:
        start = time.perf_counter()
        self.init, self.program = self.init_lowered.compile(), self.run_lowered.compile()
        self.compile_s = time.perf_counter() - start

    def measured(self, seconds: float, profile: Callable[["Case", Any], Any] | None = None) -> dict[str, Any]:
        state = jax.block_until_ready(self.init(self.keys))
        state = jax.block_until_ready(self.program(state))
        times: list[float] = []
        while len(times) < 5 or sum(times) < seconds:
            start = time.perf_counter()
            state = jax.block_until_ready(self.program(state))
            times.append(time.perf_counter() - start)
        if profile is not None:
            state = profile(self, state)
        steps = int(jax.tree.leaves(state.gradient_steps)[0][0])
        updates = steps / (len(times) + 1 + (PROFILED if profile else 0))  # of a seed in a call
        call = statistics.median(times)
        analysis: Any = self.program.memory_analysis()
        stats = jax.devices()[0].memory_stats() or {}
        return {
            "section": self.name,
            "variant": self.variant or "as it is",
            "seeds": self.seeds,
            "microseconds_per_update": call / updates * 1e6,
            "spread": (max(times) - min(times)) / call,
            "updates_per_s": updates * self.seeds / call,
            "env_steps_per_s": ITERATIONS * self.algo.config.steps_per_iteration * self.seeds / call,
            "state_mb": analysis.argument_size_in_bytes / 1e6,
            "temporary_mb": analysis.temp_size_in_bytes / 1e6,
            "peak_mb": stats.get("peak_bytes_in_use", float("nan")) / 1e6,
            "compile_s": self.compile_s,
        }


PROFILED = 5
"""Calls in a profile."""


def profiler(path: Path) -> Callable[[Case, Any], Any]:
    """Return what traces calls of a program and writes its operations, the longest first."""

    def profile(case: Case, state: Any) -> Any:
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                start = time.perf_counter()
                for _ in range(PROFILED):
                    state = jax.block_until_ready(case.program(state))
                wall = time.perf_counter() - start
            (file,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
            data = jax.profiler.ProfileData.from_file(file)
        names = dict(re.findall(r'%?([\w.\-]+) = .*op_name="([^"]*)"', case.program.as_text() or ""))
        took: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in (e for plane in data.planes for line in plane.lines for e in line.events):
            operation = next((str(value) for name, value in event.stats if name == "hlo_op"), None)
            if operation is not None:  # else an event of the host
                took[operation, event.name].append(event.duration_ns / 1e3)
        iterations = PROFILED * ITERATIONS
        with path.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["seeds", "operation", "kernel", "times", "microseconds", "name"])  # of an iteration
            for (operation, kernel), times in sorted(took.items(), key=lambda item: -sum(item[1])):
                means = f"{len(times) / iterations:.6g}", f"{sum(times) / iterations:.6g}"
                writer.writerow([case.seeds, operation, kernel[:120], *means, names.get(operation, "")])
        print(f"profile of {case.seeds} seeds: {wall / iterations * 1e6:.0f} microseconds an iteration by the clock")
        return state

    return profile


def kind(name: str, kernel: str) -> str:
    """Say what an operation is part of, by the name that JAX gave it and by its kernel."""
    last = name.rsplit("/", 1)[-1]
    if "gemm" in kernel or "cutlass" in kernel or last == "dot_general":
        return "matrix products"
    if any(word in name for word in ("threefry", "random", "randint", "uniform")) or last in ("unstack", "shift_left"):
        return "random numbers"
    if "transpose(jvp" in name:
        return "backwards, elementwise and sums"
    return "forwards, elementwise" if "jvp(" in name else "Adam, target, replay, collecting, the rest"


def shares(paths: list[Path]) -> None:
    """Print the share of each kind of operation in an iteration, a profile after the other."""
    for path in paths:
        with path.open() as file:
            rows = list(csv.DictReader(file))
        total = sum(float(row["microseconds"]) for row in rows)
        kinds: dict[str, float] = defaultdict(float)
        for row in rows:
            kinds[kind(row["name"], row["kernel"])] += float(row["microseconds"])
        kernels = sum(float(row["times"]) for row in rows)
        print(f"{path.name}: {kernels:.0f} kernels in an iteration, {total:,.0f} microseconds")
        for name, microseconds in sorted(kinds.items(), key=lambda item: -item[1]):
            print(f"  {microseconds / total:.1%} {name}")


def draw(results: Path, picture: Path) -> None:
    """Draw what `--out` has: a line for each section and variant that was measured with several numbers of seeds."""
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with results.open() as file:
        for row in csv.DictReader(file):
            name = f"{Path(row['config']).stem} {row['section']}, {row['variant']}"
            lines[name].append((int(row["seeds"]), float(row["updates_per_s"])))
            device = f"{row['device']}, jax {row['jax']}"
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        if len(points) > 1:
            seeds, rates = zip(*sorted(points), strict=True)
            (line,) = axes.plot(seeds, rates, marker="o", label=name)
            axes.plot(
                seeds, [rates[0] * s / seeds[0] for s in seeds], color=line.get_color(), linestyle=":", linewidth=1
            )
    axes.set(
        xscale="log", yscale="log", xlabel="seeds in one vmap", ylabel="gradient steps per second, in all", title=device
    )
    axes.set_ylim(top=2 * max(rate for points in lines.values() for _, rate in points))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("section", nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--set", action="append", default=[], dest="variants", metavar="FIELD=VALUE,...")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("scaling.csv"))
    parser.add_argument("--profile", type=int, nargs="*", default=[])
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("RESULTS", "PICTURE"))
    parser.add_argument("--shares", type=Path, nargs="+", metavar="PROFILE")
    arguments = parser.parse_args()
    if arguments.shares:
        shares(arguments.shares)
        return
    if arguments.draw:
        draw(*arguments.draw)
        return
    if arguments.section is None:
        parser.error("a config and a section of it are needed")

    cases = [
        Case(arguments.config, arguments.section, variant, seeds)
        for seeds in sorted(arguments.seeds)
        for variant in ["", *arguments.variants]
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(Case.compile, cases))
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}; {arguments.config}; medians\n")
    for case in cases:
        wanted = case.seeds in arguments.profile and not case.variant
        profile = profiler(arguments.out.with_suffix(f".{case.seeds}.profile.csv")) if wanted else None
        try:
            row = case.measured(arguments.seconds, profile)
        except jax.errors.JaxRuntimeError as error:
            print(f"{case.name} {case.variant} {case.seeds}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        row = {"config": str(arguments.config), **row, "device": device.device_kind, "jax": jax.__version__}
        is_new = not arguments.out.exists()
        with arguments.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        print(
            f"{row['section']} {row['variant']} {row['seeds']} seeds: {row['microseconds_per_update']:.1f} us per update"
            f" ({row['spread']:.0%}), {row['updates_per_s']:,.0f} updates/s in all, state {row['state_mb']:,.0f} MB,"
            f" temporary {row['temporary_mb']:,.0f} MB, peak {row['peak_mb']:,.0f} MB, compiled in {row['compile_s']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
