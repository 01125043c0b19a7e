"""Train the section `iqn` and keep, at each evaluation, how its episodes end and what the network thinks of the track.

    python investigations/0017-how-it-falls/run.py --first-seed 2600 --seeds 24 --out runs/falls

A file for each seed, written when the seed is done; those that are there are not trained again. Training is that of the
section: everything here is measured by an `eval_callback`, for the newest weights and for their average.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jaxtyping import Array, Key, PyTree

from quantilax import devices
from quantilax.agent import Agent
from quantilax.learning import averaging, rollout
from quantilax.runs.configs import load_section
from quantilax.types import Policy, State

ROOT = Path(__file__).resolve().parents[2]
EPISODES, EVERY = 32, 10
X = jnp.linspace(-2.4, 2.4, 25)
V = jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0])
TRACK = jnp.stack([*jnp.broadcast_arrays(X[:, None], V, 0.0, 0.0)], axis=-1)
"""(x, v, upright, at rest): (25, 5, 4)."""
BINS = jnp.linspace(0.0, 2.4, 13)
FRACTIONS = (jnp.arange(32) + 0.5) / 32


def play(agent: Agent, policy: Policy, key: Key[Array, ""]) -> dict[str, Array]:
    """Lengths of episodes, the state that each ended in, whether it terminated, and every tenth state of each."""

    def step(carry: PyTree, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        envs, active, lengths, last, died = carry
        envs, seen = rollout.step(agent.env, policy, envs, key)
        last = jnp.where(active[:, None], seen.next_obs, last)
        died = died | (active & seen.terminated)
        lengths = lengths + active
        active = active & ~(seen.terminated | seen.truncated)
        return (envs, active, lengths, last, died), last

    key_reset, key = jax.random.split(key)
    envs = rollout.reset(agent.env, jax.random.split(key_reset, EPISODES), policy.carry)
    carry = envs, jnp.ones(EPISODES, bool), jnp.zeros(EPISODES, jnp.int32), envs.obs, jnp.zeros(EPISODES, bool)
    (_, _, lengths, last, died), path = jax.lax.scan(step, carry, jax.random.split(key, 500))
    return {"lengths": lengths, "last": last, "died": died, "path": path[EVERY - 1 :: EVERY]}


def look(agent: Agent, state: State, key: Key[Array, ""]) -> PyTree:
    """What is kept of an evaluation."""
    found: dict[str, PyTree] = {}
    newest = replace(state, average_params=state.params)  # policies and quantiles are made of the average
    for name, of in (("newest", newest), ("average", averaging.averaged(state))):
        found[name] = play(agent, agent.algorithm.policy(agent.env, agent.config, of), key)
        found[name]["track"] = agent.quantiles(of, TRACK, FRACTIONS).mean(axis=-2)  # (25, 5, A)
        found[name]["params"] = of.average_params
    x = jnp.abs(state.replay.observations[..., 0])
    found["coverage"] = jnp.histogram(x, BINS)[0] / x.size
    found["terminated"] = state.replay.rows.terminated.mean()
    return found


def main() -> None:
    """Train the seeds one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, required=True)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="FIELD=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    overrides = {name: yaml.safe_load(text) for name, text in (item.split("=", 1) for item in arguments.overrides)}
    asked = {"eval_freq": 1_000, "eval_episodes": 8, **overrides}
    agent = load_section(ROOT / "configs" / "gymnax" / "cartpole.yaml", "iqn", asked).create(eval_callback=look)
    algorithm, env, config = agent.arguments()
    keys = jax.vmap(jax.random.key)(jnp.array([0], jnp.uint32))
    program = devices.compile_fit(algorithm, env, config, keys, agent.in_program_callback)
    assert program.init is not None
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        file = arguments.out / f"{seed}.npz"
        if file.exists():
            continue
        start = time.perf_counter()
        keys = jax.vmap(jax.random.key)(jnp.array([seed], jnp.uint32))
        rows = []
        for _, record in devices.fit(env, config, program, program.init(env, config, keys)):
            kept = jax.device_get({"env_step": record.env_step, "metrics": record.metrics._asdict(), **record.callback})
            rows.append({jax.tree_util.keystr(path): leaf[0] for path, leaf in jax.tree.leaves_with_path(kept)})
        np.savez_compressed(file, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})
        print(seed, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
