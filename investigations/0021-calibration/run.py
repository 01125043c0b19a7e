"""Train heads on tasks and calibrate them, with rows appended to results.csv as they come.

    python investigations/0021-calibration/run.py probes          # or cartpole, lunar_lander, ...
    python investigations/0021-calibration/run.py table           # the tables of the README

Pairs of a task and a variant that results.csv already has are skipped, and a training that was
stopped goes on from its last checkpoint. Runs are written to `runs/0021-calibration`.
"""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

import quantilax
from quantilax.agent import Agent
from quantilax.returns import calibration, episodes
from quantilax.runs import RunDirectory, enable_compilation_cache, load_section
from quantilax.runs.loading import load_states

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.csv"
RUNS = Path("runs/0021-calibration")
SEEDS = range(9_000, 9_010)
EPISODES = 1_000

PROBE = dict(
    total_timesteps=8_000, eval_freq=8_000, eval_episodes=16, num_envs=8, num_epochs=1, fill_buffer=800,
    learning_rate=3e-3, learning_rate_end=0.05, polyak=0.95, target_update_freq=1, num_tau_samples=16,
    num_tau_prime_samples=16, torso_sizes=(32,), head_sizes=(32,), num_cosines=32, eps_end=0.2,
)  # fmt: skip
PROBE_PQN = dict(
    total_timesteps=32_768, eval_freq=32_768, eval_episodes=16, num_envs=8, num_steps=32, num_minibatches=8,
    torso_sizes=(32,), learning_rate=3e-3, eps_start=0.2, eps_end=0.2,
)  # fmt: skip

TASKS: dict[str, dict[str, Any]] = {
    "geometric": dict(env="probe/geometric", gamma=0.9, v_min=0.0, v_max=10.0),
    "bimodal": dict(env="probe/bimodal", v_min=-2.0, v_max=3.0),
    "corridor": dict(env="probe/corridor", gamma=0.9, v_min=-0.2, v_max=1.2),
    "cartpole": dict(config="gymnax/cartpole", v_min=0.0, v_max=5.0),
    "lunar_lander": dict(config="gymnasium/lunar_lander", v_min=-8.0, v_max=8.0),
    "navix": dict(env="navix/Navix-Empty-8x8-v0", wrappers=["flatten"], v_min=-0.2, v_max=1.2),
    "breakout": dict(config="gymnax/breakout", v_min=0.0, v_max=25.0),
    "space_invaders": dict(config="gymnax/space_invaders", v_min=0.0, v_max=25.0),
}
"""Each with the support of the atoms, in learned units."""
GROUPS = {"probes": ("geometric", "bimodal", "corridor")}
VARIANTS: dict[str, dict[str, Any]] = {
    "c51": dict(head="categorical"),
    "qr": dict(head="quantile"),
    "iqn": dict(head="implicit_quantile"),
    "fqf": dict(head="proposed"),
    "pqn": dict(head="quantile"),
    "qr_fine": dict(head="quantile", kappa=0.05),
    "iqn_fine": dict(head="implicit_quantile", kappa=0.05),
}
"""Heads with the sections' kappa of 1, and two with a small one."""
LONGER = {"breakout": 1_003_520, "space_invaders": 1_003_520}
"""Environment steps of PQN where its section takes ten times as many."""


def agent_of(task: str, variant: str) -> Agent:
    """Return the agent of a task and a variant."""
    given, of_variant = dict(TASKS[task]), VARIANTS[variant]
    creator = quantilax.PQN if variant == "pqn" else quantilax.QLearning
    known = {f.name for f in dataclasses.fields(creator.algorithm.config)}
    support = {name: given.pop(name) for name in ("v_min", "v_max")}
    fields: dict[str, Any] = {}
    place = {name: given.pop(name) for name in ("env", "wrappers") if name in given}
    if config := given.pop("config", None):
        section = load_section(ROOT / "configs" / f"{config}.yaml", "pqn" if has_pqn(config, variant) else "iqn", {})
        fields = {name: value for name, value in section.hyperparameters.items() if name in known}
        place = section.environment
    elif task in GROUPS["probes"]:
        fields = PROBE_PQN if variant == "pqn" else PROBE
    fields = {**fields, "munchausen": False, **support, **given, **of_variant}
    if variant == "pqn" and task in LONGER:
        fields |= {"total_timesteps": LONGER[task], "eval_freq": 143_360}
    return creator.create(**place, **{name: value for name, value in fields.items() if name in known})


def has_pqn(config: str, variant: str) -> bool:
    """Return whether the section `pqn` of a config is used."""
    return variant == "pqn" and "pqn:" in (ROOT / "configs" / f"{config}.yaml").read_text()


def trained(task: str, variant: str) -> Path:
    """Train ten seeds, or go on with it, and return the run."""
    path = RUNS / f"{task}-{variant}"
    if (path / "run.json").exists():
        quantilax.resume(path, quiet=True)
    else:
        agent = agent_of(task, variant)
        quantilax.run(agent, path, SEEDS, checkpoint_every=0, quiet=True)
    return path


def distance_to_truth(path: Path) -> list[float]:
    """Return the mean distance of the quantiles from the true ones of a probe, for each seed."""
    agent, states, seeds, _ = load_states(path, "last")
    taus, found = (jnp.arange(100) + 0.5) / 100, []
    truth = agent.env.quantile_function(taus, agent.config.gamma)
    for i in range(len(seeds)):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        obs, action = episodes.first(agent, state, jax.random.key(0), 1)
        Z = episodes.predicted(agent, state, obs, action, taus)[0]
        found.append(float(jnp.abs(Z - truth[:, action[0]]).mean()))
    return found


def rows_of(task: str, variant: str, path: Path) -> pl.DataFrame:
    """Calibrate a run, and return the rows that are kept.

    All numbers of all seeds together, but PIT and shares below only for first and for all states;
    and the coverage at all states of each seed.
    """
    found = calibration.calibrate_run(path, episodes=EPISODES, recalibrate=True)
    facts = RunDirectory.open(path).facts["starts"][0]
    rows = [
        row
        for row in found.rows()
        if (row["seed"] == "all" and (row["states"] in ("first", "all") or row["quantity"] not in ("pit", "below")))
        or (row["quantity"] == "coverage" and row["states"] == "all")
    ]
    alone = {"distribution": "raw", "states": "first", "low": None, "high": None, "at": None, "expected": None}
    if hasattr(load_states(path, "last")[0].env, "quantile_function"):
        each = distance_to_truth(path)
        rows.append({**alone, "seed": "all", "quantity": "distance_to_truth", "value": float(np.mean(each))})
    assert found.spread is not None
    for name, value in (*found.spread._asdict().items(), ("left_out", found.left_out)):
        rows.append({**alone, "seed": "all", "quantity": name, "value": value})
    head = {"task": task, "variant": variant, "commit": (facts.get("commit") or "")[:12], "env_step": found.env_step}
    return pl.DataFrame(
        [{**head, **{name: plain(row[name]) for name in NAMES}} for row in rows], infer_schema_length=None
    )


NAMES = ("seed", "distribution", "states", "quantity", "at", "expected", "value", "low", "high")


def plain(value: Any) -> Any:
    """Round numbers to five digits; NaN becomes empty."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.5g}")


def done() -> set[tuple[str, str]]:
    """Return the pairs that results.csv has."""
    if not RESULTS.exists():
        return set()
    return set(pl.read_csv(RESULTS, infer_schema_length=None).select("task", "variant").unique().iter_rows())


def table() -> None:
    """Print the table of the README."""
    results = pl.read_csv(RESULTS, infer_schema_length=None).filter(pl.col("seed") == "all")
    print(
        "| task | head | 50 % | 80 % | 95 % | largest error, all states (first) | after recalibration | CRPS | reference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        for variant in VARIANTS:
            of = results.filter((pl.col("task") == task) & (pl.col("variant") == variant))
            if of.is_empty():
                continue

            def errors(distribution: str, states: str, of: pl.DataFrame = of) -> pl.DataFrame:
                chosen = (pl.col("distribution") == distribution) & (pl.col("states") == states)
                return of.filter(chosen & (pl.col("quantity") == "coverage")).sort("at")

            def largest(distribution: str, states: str) -> str:
                rows = errors(distribution, states)
                return f"{100 * (rows['value'] - rows['expected']).abs().max():.1f}"

            def one(quantity: str, of: pl.DataFrame = of) -> str:
                chosen = (pl.col("distribution") == "raw") & (pl.col("states") == "all")
                return f"{of.filter(chosen & (pl.col('quantity') == quantity))['value'][0]:.3g}"

            raw = " | ".join(f"{100 * value:.1f}" for value in errors("raw", "all")["value"])
            before = f"{largest('raw', 'all')} ({largest('raw', 'first')})"
            after = f"{largest('recalibrated', 'all')} ({largest('recalibrated', 'first')})"
            print(f"| {task} | {variant} | {raw} | {before} | {after} | {one('crps')} | {one('reference_crps')} |")


def main() -> None:
    """Run what is asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="+", choices=[*TASKS, *GROUPS, "table"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    asked = parser.parse_args()
    if asked.what == ["table"]:
        table()
        return
    enable_compilation_cache()
    tasks = [task for name in asked.what for task in GROUPS.get(name, (name,))]
    for task in tasks:
        for variant in asked.variants:
            if (task, variant) in done():
                continue
            rows = rows_of(task, variant, trained(task, variant))
            with RESULTS.open("a") as file:
                file.write(rows.write_csv(include_header=RESULTS.stat().st_size == 0))
            print(f"{task} {variant}: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
