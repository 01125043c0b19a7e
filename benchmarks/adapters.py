"""Throughput of an environment's adapter, beside the bare library with a reset written by hand.

    python -m benchmarks.adapters jumanji/Snake-v1 pgx/minatar-breakout xminigrid/MiniGrid-DoorKey-5x5

Both sides take the same number of steps of random legal actions, compiled with jit, vmap and scan, in one process and in
turn. Prints medians in steps per second, and the median ratio of the rounds (below 1: the adapter is slower).
A library is added by an entry in `BARE`.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantilax.types import num_actions


class Bare(NamedTuple):
    """A library's environment, its step followed by a reset where the episode ended."""

    reset: Callable[[Any], Any]
    """key -> state."""
    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    """(key, state, action) -> (state, (observation, reward))."""
    legal: Callable[[Any], Any] | None = None
    """state -> mask of the legal actions; None: always all."""


def select(done: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), new, old)


def jumanji(name: str) -> Bare:
    import jumanji as library

    env = library.make(name)
    parts = tuple(int(n) for n in jnp.atleast_1d(env.action_spec.num_values))

    def step(key: Any, state: Any, action: Any) -> Any:
        flat = action if len(parts) == 1 else jnp.stack(jnp.unravel_index(action, parts))
        state, told = env.step(state[0], flat)
        state, then = select(told.last(), env.reset(key), (state, told))
        return (state, then.observation), (then.observation, told.reward)

    def reset(key: Any) -> Any:
        state, told = env.reset(key)
        return state, told.observation

    has_masks = hasattr(jax.eval_shape(reset, jax.random.key(0))[1], "action_mask")
    return Bare(reset, step, (lambda state: jnp.ravel(state[1].action_mask)) if has_masks else None)


def pgx(name: str) -> Bare:
    env = importlib.import_module("pgx").make(name)

    def step(key: Any, state: Any, action: Any) -> Any:
        key_step, key_reset = jax.random.split(key)
        state = env.step(state, action, key_step)
        then = select(state.terminated, env.init(key_reset), state)
        return then, (then.observation, state.rewards[0])

    return Bare(env.init, step, (lambda state: state.legal_action_mask) if name == "2048" else None)


def xminigrid(name: str) -> Bare:
    import xminigrid as library

    env, params = library.make(name)

    def step(key: Any, state: Any, action: Any) -> Any:
        told = env.step(params, state, action)
        then = select(told.last(), env.reset(params, key), told)
        return then, (then.observation, told.reward)

    return Bare(lambda key: env.reset(params, key), step)


BARE: dict[str, Callable[[str], Bare]] = {"jumanji": jumanji, "pgx": pgx, "xminigrid": xminigrid}
"""How each library is run without its adapter."""


def adapted(env: Any) -> Bare:
    """Return an adapter in the same form; the mask is part of the state."""

    def reset(key: Any) -> Any:
        state, _, *legal = env.reset(key)
        return state, *legal

    def step(key: Any, state: Any, action: Any) -> Any:
        state, told = env.step(key, state[0], action)
        return (state, *([] if told.legal is None else [told.legal])), (told.obs, told.next_obs, told.reward)

    masked = len(jax.eval_shape(reset, jax.random.key(0))) == 2
    return Bare(reset, step, (lambda state: state[1]) if masked else None)


def program(side: Bare, actions: int, num_envs: int, steps: int) -> Callable[[Any], Any]:
    """Compile a side: key -> a number that depends on everything that was observed."""

    def one(carry: Any, key: Any) -> Any:
        state, total = carry
        key_action, key_step = jax.random.split(key)
        if side.legal is None:
            action = jax.random.randint(key_action, (num_envs,), 0, actions)
        else:
            mask = jax.vmap(side.legal)(state)
            action = jnp.argmax(jax.random.uniform(key_action, mask.shape) * mask, axis=-1)
        state, seen = jax.vmap(side.step)(jax.random.split(key_step, num_envs), state, action)
        return (state, total + sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(seen))), None

    def run(key: Any) -> Any:
        state = jax.vmap(side.reset)(jax.random.split(key, num_envs))
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)  # no weak types
        return jax.lax.scan(one, (state, jnp.zeros(())), jax.random.split(key, steps))[0][1]

    return jax.jit(run)


def compare(name: str, num_envs: int, steps: int, rounds: int) -> tuple[float, float, float]:
    """Return steps per second of the adapter and of the bare library, and the median ratio of the rounds."""
    library, task = name.split("/", 1)
    env = importlib.import_module(f"quantilax.envs.{library}").make(task)
    sides = [program(side, num_actions(env), num_envs, steps) for side in (adapted(env), BARE[library](task))]
    for side in sides:
        side(jax.random.key(0)).block_until_ready()
    taken: list[list[float]] = [[], []]
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            sides[which](jax.random.key(i)).block_until_ready()
            taken[which].append(num_envs * steps / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(*taken, strict=True))
    return statistics.median(taken[0]), statistics.median(taken[1]), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="+", metavar="LIBRARY/NAME")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print("| environment | adapter, steps/s | bare, steps/s | ratio |\n|---|---|---|---|")
    for name in arguments.names:
        ours, bare, ratio = compare(name, arguments.num_envs, arguments.steps, arguments.rounds)
        print(f"| {name} | {ours:,.0f} | {bare:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
