"""Trains agents on the problems `risk/...`, and compares their CVaR with the exact optimum.

PYTHONPATH=. python investigations/0022-static-cvar/run.py [--seeds 10] [NAME...]

Each line of `results.csv` is one problem, agent, level and seed. Policies are evaluated exactly, by
the tree of all outcomes, and not by episodes. All seeds of a problem train in one `vmap`.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import QRDQN, Agent
from quantilax.algorithms import objectives, q_learning
from quantilax.envs.finite import PROBLEMS, Finite
from tests import exact

LEVELS = (0.05, 0.1, 0.25, 0.5)
GAMMA = {"risk/inventory": 0.95, "risk/windy_grid": 0.95}
COLUMNS = ("problem", "agent", "level", "seed", "cvar", "optimum", "regret", "mean", "seconds")
SETTINGS: dict[str, Any] = dict(
    num_quantiles=64,
    kappa=0.02,
    torso_sizes=(64,),
    head_sizes=(64,),
    total_timesteps=40_000,
    eval_freq=40_000,
    eval_episodes=1,
    num_envs=32,
    num_epochs=9,
    batch_size=64,
    fill_buffer=4_000,
    learning_rate=2e-3,
    learning_rate_end=0.0,
    target_update_freq=50,
    weight_averaging=0.995,
    eps_end=0.5,
    metrics=False,
)


def agent(env: Finite, objective: str) -> Agent:
    """Return the agent of a problem; rewards are scaled so that returns span 2."""
    found = exact.attainable(env, gamma := GAMMA.get(env.name, 1.0))
    ends = {"return_min": float(found[0]), "return_max": float(found[-1])}
    scale = 2 / (ends["return_max"] - ends["return_min"])
    return QRDQN.create(env, risk_objective=objective, gamma=gamma, reward_scale=scale, **ends, **SETTINGS)


def policies(algo: Agent, env: Finite, states: Any) -> np.ndarray:
    """Return the action at each node, by seed and level: (seeds, levels, nodes)."""
    gamma = float(algo.config.gamma)
    state, t, earned = (jnp.asarray(x) for x in zip(*exact.nodes(env, gamma), strict=True))
    one_hot = jax.nn.one_hot(state, env.observation_space.shape[0])

    def actions(trained: Any, level: Any) -> Any:
        policy = q_learning.policy_at(algo.env, algo.config, trained, level)
        obs = one_hot
        if policy.begin is not None:
            wrapper = objectives.stock(algo.config)
            _, first = policy.begin((None, None), wrapper.shown(one_hot[0], jnp.zeros(1)))
            c = jnp.clip((wrapper.of(first) + earned[:, None]) / gamma ** t[:, None], wrapper.low, wrapper.high)
            obs = jax.vmap(wrapper.shown)(one_hot, c)
        return jax.vmap(lambda x: policy.act(x, (), jax.random.key(0), None)[0])(obs)

    found = jax.jit(jax.vmap(jax.vmap(actions, (None, 0)), (0, None)))(states, jnp.array(LEVELS))
    return np.asarray(found)


def rows(name: str, kind: str, seeds: int, optimum: dict[float, exact.Optimum]) -> Iterator[tuple[Any, ...]]:
    """Train and evaluate the agents of a problem. Yield a row per level and seed."""
    env = PROBLEMS[name]()
    gamma = GAMMA.get(name, 1.0)
    algo = agent(env, "static_cvar" if kind == "static" else "mean")
    begun = time.perf_counter()
    states, _ = jax.block_until_ready(jax.jit(jax.vmap(algo.train))(jax.vmap(jax.random.key)(jnp.arange(seeds))))
    seconds = round(time.perf_counter() - begun, 1)
    chosen, found = policies(algo, env, states), exact.attainable(env, gamma)
    index = {(s, t, e): i for i, (s, t, e) in enumerate(exact.nodes(env, gamma))}
    for i, level in enumerate(LEVELS):
        for seed in range(seeds):
            of_seed = chosen[seed, i]
            obtained = exact.returns(env, gamma, lambda s, t, e, of_seed=of_seed: int(of_seed[index[s, t, e]]))
            cvar, best = obtained.cvar(level), optimum[level].value
            regret = (best - cvar) / (found[-1] - found[0])
            yield name, kind, level, seed, *(round(float(x), 6) for x in (cvar, best, regret, obtained.mean)), seconds


def main() -> None:
    """Append to `results.csv` as results come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--kinds", nargs="*", default=["static", "greedy"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--timesteps", type=int, default=SETTINGS["total_timesteps"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.csv")
    asked = parser.parse_args()
    SETTINGS.update(total_timesteps=asked.timesteps, eval_freq=asked.timesteps)
    is_new = not asked.out.exists()
    with asked.out.open("a", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if is_new:
            table.writerow(COLUMNS)
        for name in asked.names or PROBLEMS:
            optimum = exact.static_cvar(PROBLEMS[name](), GAMMA.get(name, 1.0), LEVELS)
            for kind in asked.kinds:
                made = list(rows(name, kind, asked.seeds, optimum))
                table.writerows(made)
                file.flush()
                for level in LEVELS:
                    of_level = [row[6] for row in made if row[2] == level]
                    print(
                        f"{name} {kind} {level}: regret {np.mean(of_level):.2%}, largest {max(of_level):.2%}",
                        flush=True,
                    )
                print(f"{name} {kind}: {made[0][-1]} s", flush=True)


if __name__ == "__main__":
    main()
