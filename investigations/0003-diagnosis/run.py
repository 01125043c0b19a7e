"""Train every variant of `faults.py` and keep the evaluations of each, signals included, as Parquet; what is there is left out.

python investigations/0003-diagnosis/run.py --out runs/diagnosis --seeds 20      # some 10 minutes on two idle cores
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import polars as pl
from faults import VARIANTS, Variant

from quantilax import devices, train
from quantilax.runs import evaluations, loggers, use_all_cores


def curves(variant: Variant, seeds: list[int]) -> pl.DataFrame:
    """Train a variant with each seed: a row per seed and evaluation, as a run's `evaluations.parquet` has them."""
    algorithm, env, config = variant.agent().arguments()
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
    records = jax.device_get(program(algorithm, jax.tree.structure((env, config)))(env, config, keys))
    rows = []
    for i in range(records.env_step.shape[1]):
        evaluation = evaluations.Evaluation(jax.tree.map(lambda x, i=i: x[:, i], records), 0.0)
        rows += loggers.rows(evaluations.entry(seeds, evaluation, is_first=i == 0))
    return loggers.table(rows)


PROGRAMS: dict = {}


def program(algorithm, structure):
    """Compile once per treedef: hyperparameters of type float are arguments."""
    if structure not in PROGRAMS:

        def records(env, config, keys):
            return devices.over_seeds(lambda key: train.train(algorithm, env, config, key)[1], keys)

        PROGRAMS[structure] = jax.jit(records)
    return PROGRAMS[structure]


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/diagnosis"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--variants", help="only those whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no variant after so many")
    asked = parser.parse_args()
    use_all_cores(asked.seeds)
    asked.out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(asked.first_seed, asked.first_seed + asked.seeds))
    start = time.perf_counter()
    for variant in VARIANTS:
        path = asked.out / f"{variant.name.replace('/', 'over')}-{seeds[0]}-{seeds[-1]}.parquet"
        if path.exists() or not variant.name.startswith(asked.variants or ""):
            continue
        if time.perf_counter() - start > asked.seconds:
            print("time is over; call it again")
            return
        begun = time.perf_counter()
        table = curves(variant, seeds).with_columns(pl.lit(variant.name).alias("variant"))
        table.write_parquet(path)
        last = table.filter(pl.col("env_step") == pl.col("env_step").max())
        seconds = time.perf_counter() - begun
        print(f"{variant.name}: {last['length_mean'].round().to_list()}, {seconds:.0f} s", flush=True)
    print("all variants are there")


if __name__ == "__main__":
    main()
