"""Time of an environment step and of a gradient step of shipped sections, and of compiling them.

    python -m benchmarks.sections configs/gymnax/breakout.yaml dqn iqn
    python -m benchmarks.sections --against HEAD~1 configs/gymnax/*.yaml   # every section, beside another commit

An iteration is timed with the section's number of gradient steps and with twice as many: the difference is the
gradient steps, the rest the environment steps. All programs are timed in turn, so that other work on the machine
meets them alike; each figure is a median. With `--against` both checkouts are timed in turn, each in a process of
its own, and the last column is the median of the ratios of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENV_STEPS = 400
"""About so many per timing, in whole iterations."""
COLUMNS = ("environment step, us", "gradient step, us", "compiling, s")


def prepared(file: str, name: str) -> Callable[[], list[float]]:
    """Return a function that times one round of a section: [environment step, gradient step, compiling]."""
    import warnings

    import jax

    from quantilax.runs import load_section

    warnings.simplefilter("ignore")
    algo = load_section(Path(file), name).create()
    config = algo.config
    k = config.num_epochs
    steps, updates = config.steps_per_iteration, k * getattr(config, "num_minibatches", 1)
    iterations = max(1, ENV_STEPS // steps)
    seconds = 0.0

    def program(algo: Any) -> Callable[[], float]:
        nonlocal seconds

        def run(state):  # type: ignore[no-untyped-def]
            return jax.lax.scan(lambda s, _: (algo.step(s)[0], None), state, None, iterations)[0]

        state = jax.jit(algo.init)(jax.random.key(0))
        start = time.perf_counter()
        compiled = jax.jit(run, donate_argnums=0).lower(state).compile()
        seconds = max(seconds, time.perf_counter() - start)

        def once() -> float:
            nonlocal state
            start = time.perf_counter()
            state = jax.block_until_ready(compiled(state))
            return (time.perf_counter() - start) / iterations * 1e6

        once()
        return once

    usual, twice = program(algo), program(algo.replace(num_epochs=2 * k))

    def round_of() -> list[float]:
        one, two = usual(), twice()
        return [(2 * one - two) / steps, (two - one) / updates, seconds]

    return round_of


def worker() -> None:
    """Answer lines `[file, section]` (compile), `"run"` (one round of all) and `"drop"` (forget them) with one line each."""
    import jax

    programs: list[Callable[[], list[float]]] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "run":
            answer: Any = [program() for program in programs]
        elif asked == "drop":
            programs.clear()
            jax.clear_caches()
            answer = None
        else:
            programs.append(prepared(*asked))
            answer = None
        print(json.dumps(answer), flush=True)


def ask(process: "subprocess.Popen[str]", line: Any) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(line), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def timed(sources: list[Path], sections: list[tuple[str, str]], rounds: int) -> list[list[list[list[float]]]]:
    """[checkout][section][round] -> figures; a section at a time, its rounds in turn between the checkouts."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "-"]
    workers = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(source / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for source in sources
    ]
    found: list[list[list[list[float]]]] = [[] for _ in sources]
    for section in sections:
        for process in workers:
            ask(process, section)
        rows: list[list[list[float]]] = [[] for _ in sources]
        for _ in range(rounds):
            for process, row in zip(workers, rows, strict=True):
                row.extend(ask(process, "run"))
        for process, row, whole in zip(workers, rows, found, strict=True):
            ask(process, "drop")
            whole.append(row)
        print(f"{section[0]} {section[1]}: timed", file=sys.stderr, flush=True)
    for process in workers:
        process.communicate()
    return found


def table(sections: list[tuple[str, str]], found: list[list[list[list[float]]]]) -> str:
    """Medians; beside another checkout `before -> now (median of now / before)`."""
    lines = ["| section | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for i, (file, name) in enumerate(sections):
        cells = [f"{Path(file).stem} {name}"]
        for column in range(len(COLUMNS)):
            figures = [[row[column] for row in checkout[i]] for checkout in found]
            shown = [f"{statistics.median(x):.3g}" for x in figures]
            if len(figures) == 2:
                ratio = statistics.median(b / a for a, b in zip(*figures, strict=True))
                cells.append(f"{shown[0]} -> {shown[1]} ({ratio:.2f})")
            else:
                cells.append(shown[0])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    if "--worker" in sys.argv:
        worker()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="+", help="config files, each followed by names of sections; none: all of it")
    parser.add_argument("--against", help="a commit, checked out beside the working tree")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    sections: list[tuple[str, str]] = []
    for name in arguments.names:
        if name.endswith(".yaml"):
            file, whole = str(Path(name).resolve()), True
            import yaml

            sections += [(file, section) for section in yaml.safe_load(Path(file).read_text())]
        else:
            if whole:
                sections = [section for section in sections if section[0] != file]
            whole = False
            sections.append((file, name))
    with tempfile.TemporaryDirectory() as folder:
        sources = [ROOT]
        if arguments.against:
            other = Path(folder) / "before"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "-q", "--detach", str(other), arguments.against], check=True)
            sources = [other, ROOT]
        try:
            found = timed(sources, sections, arguments.rounds)
        finally:
            if arguments.against:
                subprocess.run([*git, "remove", "--force", str(other)], check=True)
    print(table(sections, found))


if __name__ == "__main__":
    main()
