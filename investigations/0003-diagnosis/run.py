"""Train every cell of `faults.py` and keep the evaluations of each, signals included, as Parquet; what is there is left out.

python investigations/0003-diagnosis/run.py --out runs/diagnosis --seeds 20      # some 10 minutes on two idle cores
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import polars as pl
from faults import CELLS, Cell

from quantilax import devices, train
from quantilax.runs import evaluations, loggers, use_all_cores


def curves(cell: Cell, seeds: list[int]) -> pl.DataFrame:
    """Train a cell with each seed: a row per seed and evaluation, as a run's `evaluations.parquet` has them."""
    algorithm, env, config = cell.agent().arguments()
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
    parser.add_argument("--cells", help="only those whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so many")
    asked = parser.parse_args()
    use_all_cores(asked.seeds)
    asked.out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(asked.first_seed, asked.first_seed + asked.seeds))
    start = time.perf_counter()
    for cell in CELLS:
        path = asked.out / f"{cell.name.replace('/', 'over')}-{seeds[0]}-{seeds[-1]}.parquet"
        if path.exists() or not cell.name.startswith(asked.cells or ""):
            continue
        if time.perf_counter() - start > asked.seconds:
            print("time is over; call it again")
            return
        begun = time.perf_counter()
        table = curves(cell, seeds).with_columns(pl.lit(cell.name).alias("cell"))
        table.write_parquet(path)
        last = table.filter(pl.col("env_step") == pl.col("env_step").max())
        seconds = time.perf_counter() - begun
        print(f"{cell.name}: {last['length_mean'].round().to_list()}, {seconds:.0f} s", flush=True)
    print("all cells are there")


if __name__ == "__main__":
    main()
