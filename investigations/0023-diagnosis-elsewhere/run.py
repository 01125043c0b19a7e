"""Train the first fifth of each setting with each fault; keep the evaluations, signals included, as Parquet.

python investigations/0023-diagnosis-elsewhere/run.py --out runs/diagnosis-elsewhere --seeds 10

What is there is left out, so a run that was stopped can be repeated.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import polars as pl
from faults import FAULTS, SETTINGS, SHARE, Fault, Setting, agent, frozen, shipped

from quantilax import devices, signals, train
from quantilax.runs import evaluations, loggers, use_all_cores

PROGRAMS: dict[Any, Any] = {}


def deviation(setting: Setting) -> Any:
    """Standard deviations of the numbers of an observation, over R of the section's algorithm."""
    base = shipped(setting)
    space = base.env.observation_space
    if space.dtype == bool:
        return 1.0
    transitions = jax.jit(lambda key: signals.reference(base.env, key))(jax.random.key(0))
    return jnp.std(jnp.asarray(transitions.obs, jnp.float32), axis=0)


def curves(setting: Setting, fault: Fault, scale: Any, seeds: list[int]) -> pl.DataFrame | None:
    """Train with each seed: rows as in a run's `evaluations.parquet`."""
    made = agent(setting, fault, scale)
    if made is None:
        return None
    algorithm, env, config = made.arguments()
    segments = train.segment_iterations(config)
    steps = train.evaluation_steps(config)
    rows = max(i for i, step in enumerate(steps) if step <= SHARE * config.total_timesteps) + 1
    structure = (setting.name, fault.bug, jax.tree.structure((env, config)), rows)
    if structure not in PROGRAMS:

        def one(env: Any, config: Any, segments: Any, key: Any) -> Any:
            def body(state: Any, iterations: Any) -> Any:
                return train.segment(algorithm, env, config, state, iterations)

            return jax.lax.scan(body, train.init(algorithm, env, config, key), segments)[1]

        def all_of_them(env: Any, config: Any, segments: Any, keys: Any) -> Any:
            return devices.over_seeds(lambda key: one(env, config, segments, key), keys)

        PROGRAMS[structure] = jax.jit(all_of_them)
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
    with frozen(fault.bug == "frozen"):
        records = jax.device_get(PROGRAMS[structure](env, config, jnp.array(segments[:rows]), keys))
    found = []
    for i in range(rows):
        evaluation = evaluations.Evaluation(jax.tree.map(lambda x, i=i: x[:, i], records), 0.0)
        found += loggers.rows(evaluations.entry(seeds, evaluation, is_first=i == 0))
    named = (pl.lit(setting.name).alias("setting"), pl.lit(fault.name).alias("fault"))
    return loggers.table(found).with_columns(*named)


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/diagnosis-elsewhere"))
    parser.add_argument("--settings", nargs="*", help="only these")
    parser.add_argument("--faults", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    use_all_cores(2)
    for setting in SETTINGS:
        if asked.settings and setting.name not in asked.settings:
            continue
        PROGRAMS.clear()
        scale = deviation(setting)
        seeds = list(range(asked.first_seed, asked.first_seed + asked.seeds))
        for fault in FAULTS:
            path = asked.out / setting.name / f"{fault.name.replace('/', 'over')}-{seeds[0]}-{seeds[-1]}.parquet"
            if path.exists() or (asked.faults and fault.name not in asked.faults):
                continue
            begun = time.perf_counter()
            table = curves(setting, fault, scale, seeds)
            if table is None:
                continue
            path.parent.mkdir(exist_ok=True)
            table.write_parquet(path)
            last = table.filter(pl.col("env_step") == pl.col("env_step").max())
            returns = " ".join(f"{x:.4g}" for x in last["return_mean"])
            print(f"{setting.name}, {fault.name}: {returns}, {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
