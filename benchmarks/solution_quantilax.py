"""Side of `benchmarks.solution`: quantilax with a section of configs/gymnax/cartpole.yaml, as `quantilax train` runs it.

Checkpoints and files of the run are written as by default. Evaluations: 128 greedy episodes.
"""

import tempfile
from pathlib import Path
from typing import Any

from solution_report import asked, evaluation, versions

from quantilax import runs

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "gymnax" / "cartpole.yaml"
OVERRIDES: dict[str, dict[str, Any]] = {
    "iqn": {},
    "pqn": {"eval_freq": 16_384},  # as rejax's section has it
}


def main() -> None:
    section, seed, total_timesteps, _ = asked()

    def report(state: Any, record: Any) -> None:
        evaluation(record.env_step[0], record.returns.mean())

    overrides = {"total_timesteps": total_timesteps, **OVERRIDES[section]}
    agent = runs.load_section(CONFIG, section, overrides).create()
    with tempfile.TemporaryDirectory() as out:
        runs.run(agent, Path(out) / "run", [seed], section=section, callback=report, quiet=True, cache=True)
    versions("quantilax", "jax", "flax", "gymnax")


if __name__ == "__main__":
    main()
