"""Steps per second of random play: adapters of JAX libraries beside the libraries themselves.

python -m benchmarks.libraries jumanji/Snake-v1 pgx/minatar-breakout xminigrid/MiniGrid-Empty-8x8

Both run in one process, in turns, as one program of vmap and scan. The bare library resets by a
select after a last step, as the adapter does. `BARE` has a function per library; add yours there.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantilax.types import Discrete


class Side(NamedTuple):
    """One environment, without batches."""

    actions: int
    """Number of actions; of continuous ones, which are from -1 to 1, how many there are at a time."""
    reset: Callable[[Any], Any]
    """key -> state."""
    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    """(key, state, action) -> (state after a reset, (observation, reward)). The program has to compute what it returns."""
    is_continuous: bool = False

    def draw(self, key: Any, envs: int) -> Any:
        """Random actions of several environments."""
        if self.is_continuous:
            return jax.random.uniform(key, (envs, self.actions), minval=-1, maxval=1)
        return jax.random.randint(key, (envs,), 0, self.actions)


def of_adapter(env: Any) -> Side:
    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        state, told = env.step(key, state, action)
        return state, (told.obs, told.reward)

    space = env.action_space
    is_continuous = not isinstance(space, Discrete)
    return Side(space.shape[0] if is_continuous else space.n, lambda key: env.reset(key)[0], step, is_continuous)


def chosen(last: Any, first: Any, successor: Any) -> Any:
    """The first state after a last step, with the successor's dtypes."""
    return jax.tree.map(lambda a, b: jnp.where(last, a, b), first, successor)


def jumanji(name: str) -> Side:
    import jumanji as library

    env: Any = library.make(name)
    sizes = jnp.atleast_1d(env.action_spec.num_values)
    shape = tuple(int(size) for size in sizes)

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        taken = action if len(shape) == 1 else jnp.stack(jnp.unravel_index(action, shape))
        state, told = env.step(state, taken)
        first, first_told = env.reset(key)
        state, obs = chosen(told.last(), (first, first_told.observation), (state, told.observation))
        return state, (obs, told.reward)

    return Side(int(sizes.prod()), lambda key: env.reset(key)[0], step)


def pgx(name: str) -> Side:
    import pgx as library  # type: ignore[import-untyped,import-not-found,unused-ignore]

    env = library.make(name)

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        key, key_reset = jax.random.split(key)
        told = env.step(state, action, key)
        state = chosen(told.terminated | told.truncated, env.init(key_reset), told)
        return state, (state.observation, told.rewards)

    return Side(env.num_actions, env.init, step)


def xminigrid(name: str) -> Side:
    import xminigrid as library  # type: ignore[import-untyped,import-not-found,unused-ignore]

    env, params = library.make(name)

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        told = env.step(params, state, action)
        state = chosen(told.last(), env.reset(params, key), told)
        return state, (state.observation, told.reward)

    return Side(env.num_actions(params), lambda key: env.reset(params, key), step)


def navix(name: str) -> Side:
    import navix as library  # type: ignore[import-untyped,import-not-found,unused-ignore]

    env = library.make(name)

    def parts(told: Any) -> Any:
        return (told.state.replace(cache=None), told.t), told.observation  # the cache holds pixels

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        inner, t = state
        before = library.Timestep(t=t, observation=None, action=None, reward=None, step_type=None, state=inner)
        told = env._step(before, action)
        state, obs = chosen(told.is_done(), parts(env.reset(key)), parts(told))
        return state, (obs, told.reward)

    return Side(len(env.action_set), lambda key: parts(env.reset(key))[0], step)


def craftax(name: str) -> Side:
    from craftax import craftax_env as library  # type: ignore[import-untyped,import-not-found,unused-ignore]

    env = library.make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        key, key_reset = jax.random.split(key)
        obs, told, reward, last, _ = env.step(key, state, action, params)
        state, obs = chosen(last, env.reset(key_reset, params)[::-1], (told, obs))
        return state, (obs, reward)

    return Side(env.num_actions, lambda key: env.reset(key, params)[1], step)


def physics(env: Any, length: int) -> Side:
    """A bare environment of brax or MuJoCo Playground, which have one interface."""

    def step(key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        told = env.step(state[0], action)
        steps = state[1] + 1
        last = (told.done > 0) | (steps >= length)
        inner = chosen(last, env.reset(key), told)
        return (inner, jnp.where(last, 0, steps)), (inner.obs, told.reward)

    return Side(env.action_size, lambda key: (env.reset(key), jnp.zeros((), jnp.int32)), step, is_continuous=True)


def brax(name: str) -> Side:
    from quantilax.envs import adapters

    with adapters.quiet():
        from brax import envs as library  # type: ignore[import-untyped,import-not-found,unused-ignore]
    with adapters.loading():
        return physics(library.get_environment(name, backend="spring"), 1_000)


def playground(name: str) -> Side:
    from quantilax.envs import adapters

    with adapters.quiet():
        # as above
        from mujoco_playground import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
            dm_control_suite as library,
        )
    with adapters.loading():
        return physics(library.load(name, config_overrides={"impl": "jax"}), 1_000)


BARE: dict[str, Callable[[str], Side]] = {
    "brax": brax,
    "craftax": craftax,
    "jumanji": jumanji,
    "navix": navix,
    "pgx": pgx,
    "playground": playground,
    "xminigrid": xminigrid,
}
"""Library -> (name without the library -> bare environment)."""


def program(side: Side, envs: int, steps: int) -> Callable[[Any], Any]:
    """Compile random play: key -> sums of observations and rewards, which keep them in the program."""

    def play(key: Any) -> Any:
        def one(carry: Any, key: Any) -> tuple[Any, None]:
            state, total = carry
            key_action, key_step = jax.random.split(key)
            actions = side.draw(key_action, envs)
            state, told = jax.vmap(side.step)(jax.random.split(key_step, envs), state, actions)
            state = jax.tree.map(lambda new, old: new.astype(old.dtype), state, carry[0])
            return (state, total + sum(leaf.sum(dtype=jnp.float32) for leaf in jax.tree.leaves(told))), None

        key_reset, key_run = jax.random.split(key)
        state = jax.vmap(side.reset)(jax.random.split(key_reset, envs))
        state = jax.tree.map(lambda leaf: leaf + jnp.zeros((), leaf.dtype) if _is_weak(leaf) else leaf, state)
        return jax.lax.scan(one, (state, jnp.zeros(())), jax.random.split(key_run, steps))[0][1]

    compiled: Callable[[Any], Any] = jax.jit(play).lower(jax.random.key(0)).compile()
    return compiled


def in_turns(sides: Sequence[Callable[[int], Any]], turns: int) -> list[list[float]]:
    """Seconds of each side, which get the number of the turn; a first turn does not count."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(turns + 1):
        for side, taken in zip(sides, seconds, strict=True):
            begun = time.perf_counter()
            side(turn)
            taken.append(time.perf_counter() - begun)
    return [taken[1:] for taken in seconds]


def compared(sides: Sequence[Callable[[int], Any]], turns: int, steps: int) -> str:
    """Cells of a table: both sides' median steps per second, and the median of their ratios."""
    ours, theirs = ([steps / one for one in taken] for taken in in_turns(sides, turns))
    ratio = median(one / other for one, other in zip(ours, theirs, strict=True))
    return f"{median(ours):,.0f} | {median(theirs):,.0f} | {ratio:.2f}"


def _is_weak(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def main(arguments: list[str] | None = None) -> int:
    """Print a row per environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="LIBRARY/NAME")
    parser.add_argument("--envs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    print("| environment | adapter, steps/s | bare, steps/s | adapter / bare |\n|---|---|---|---|")
    for name in given.names:
        library, _, task = name.partition("/")
        adapter = importlib.import_module(f"quantilax.envs.{library}").make(task)
        sides = [program(side, given.envs, given.steps) for side in (of_adapter(adapter), BARE[library](task))]
        played = [lambda turn, side=side: jax.block_until_ready(side(jax.random.key(turn))) for side in sides]
        print(f"| {name} | {compared(played, given.rounds, given.envs * given.steps)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
