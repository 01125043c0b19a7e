"""Check an environment by playing it: what the contract promises and types cannot show.

docs/guides/environments.md explains each finding.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from quantilax.checks.findings import Finding
from quantilax.envs.vector import Mapped
from quantilax.learning import rollout
from quantilax.types import Box, Discrete, Environment, Transition

NUM_ENVS = 8
"""Environments that are played side by side."""
OF_LIMIT = 0.5
"""Share of the terminated episodes that last equally long, and longest, from which a limit is
suspected."""


class Played(NamedTuple):
    """Random play; every array has the leading axes (steps, environments)."""

    transitions: Transition
    following: Array
    """Observations to act on next."""


class Facts(NamedTuple):
    """What random play showed."""

    steps: int
    terminated: int
    """Episodes that terminated."""
    truncated: int
    """Episodes that were cut off."""
    lengths: np.ndarray
    """Lengths of complete episodes."""
    returns: np.ndarray
    """Their returns."""


def check(env: Environment, steps: int = 1_000, seed: int = 0) -> tuple[Facts, list[Finding]]:
    """Play an environment at random, and return what was seen and what is wrong.

    Args:
        env: from `quantilax.envs.as_environment`, which checks shapes and dtypes.
        steps: environment steps, in `NUM_ENVS` environments together.
        seed: of the play.
    """
    rounds = max(2, steps // NUM_ENVS)
    play = jax.jit(partial(_play, env), static_argnums=1)
    key = jax.random.key(seed)
    played = jax.tree.map(np.asarray, play(key, rounds))
    facts, ends = _facts(played)
    found = [
        *_bounds(env, played),
        *_rewards(played),
        *_masks(played),
        *_resets(played),
        *_limits(env, facts, ends),
        *_repeats(play, key, rounds, played),
        *_as_compiled(env, key),
    ]
    return facts, found


def _play(env: Environment, key: Key[Array, ""], rounds: int) -> Played:
    policy = rollout.random_action(env)

    def one(now: rollout.Envs, key: Key[Array, ""]) -> tuple[rollout.Envs, Played]:
        after, transition = rollout.step(env, policy, now, key)
        return after, Played(transition, after.obs)

    key, key_reset = jax.random.split(key)
    first = rollout.reset(env, jax.random.split(key_reset, NUM_ENVS))
    return jax.lax.scan(one, first, jax.random.split(key, rounds))[1]


def _facts(played: Played) -> tuple[Facts, dict[str, np.ndarray]]:
    """Return the facts, and the lengths of episodes by the way they ended."""
    t = played.transitions
    lengths: dict[str, list[int]] = {"terminated": [], "truncated": []}
    returns = []
    for e in range(NUM_ENVS):
        begin = 0
        for end in np.flatnonzero(t.terminated[:, e] | t.truncated[:, e]).tolist():
            lengths["terminated" if t.terminated[end, e] else "truncated"].append(end + 1 - begin)
            returns.append(float(t.score[begin : end + 1, e].sum()))
            begin = end + 1
    ends = {name: np.array(values, int) for name, values in lengths.items()}
    every = np.concatenate([ends["terminated"], ends["truncated"]])
    return Facts(t.reward.size, len(ends["terminated"]), len(ends["truncated"]), every, np.array(returns)), ends


def _bounds(env: Environment, played: Played) -> Iterator[Finding]:
    space = env.observation_space
    seen = np.concatenate([played.transitions.obs, played.transitions.next_obs]).astype(np.float64)
    if not np.isfinite(seen).all():
        yield _error("observations hold NaN or infinity", "random play", "return numbers only")
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    slack = 1e-5 * np.maximum(1, np.abs(np.nan_to_num(seen)))
    outside = (seen < low - slack) | (seen > high + slack)
    if outside.any():
        worst = seen[outside][np.argmax(np.abs(seen[outside]))]
        yield _warning(
            f"{outside.mean():.1%} of the numbers in observations lie outside of observation_space",
            f"for example {worst:g}",
            "widen low and high; `normalize` and one-hot encodings rely on them",
        )


def _rewards(played: Played) -> Iterator[Finding]:
    rewards = played.transitions.reward
    if not np.isfinite(rewards).all():
        yield _error("rewards hold NaN or infinity", "random play", "return numbers only")
    elif not rewards.any():
        yield _note("no reward was seen", f"{rewards.size:,} random steps", "expect a task that needs exploration")


def _masks(played: Played) -> Iterator[Finding]:
    legal = played.transitions.legal
    if legal is not None and not legal.any(axis=-1).all():
        yield _error("a mask has no legal action", "random play", "leave at least one action legal before each step")


def _resets(played: Played) -> Iterator[Finding]:
    t, following = played.transitions, played.following
    done = t.terminated | t.truncated
    if (following[~done] != t.next_obs[~done]).any():
        yield _error(
            "obs differs from next_obs within an episode",
            "random play",
            "return the same observation in both unless the episode ended",
        )
    varies = bool((t.obs != t.obs[0, 0]).any())
    if varies and done.any() and (following[done] == t.next_obs[done]).reshape(done.sum(), -1).all(axis=1).mean() > 0.9:
        yield _warning(
            "obs equals next_obs where episodes end",
            f"{done.sum()} ends",
            "reset after the last step: obs is the first observation of the next episode, next_obs the true successor",
        )


def _limits(env: Environment, facts: Facts, ends: dict[str, np.ndarray]) -> Iterator[Finding]:
    limit, longest = int(env.max_episode_steps), int(facts.lengths.max(initial=0))
    if longest > limit:
        yield _error(
            f"an episode lasted {longest:,} steps, and max_episode_steps is {limit:,}",
            "random play",
            "raise max_episode_steps; evaluations stop there",
        )
    if not facts.lengths.size:
        yield _note("no episode ended", f"{facts.steps // NUM_ENVS:,} steps each", "play for longer with --steps")
    terminated = ends["terminated"]
    at_longest = int((terminated == terminated.max(initial=0)).sum())
    if terminated.size >= 8 and at_longest >= OF_LIMIT * terminated.size and len(set(terminated.tolist())) > 1:
        suspected = True
    else:
        suspected = bool(terminated.size >= 8 and at_longest == terminated.size and terminated.max() == limit > 1)
    if suspected:
        yield _warning(
            f"{at_longest} of {terminated.size} episodes terminate after {terminated.max():,} steps, the longest: this looks"
            " like a time limit told as an end",
            "lengths of episodes",
            "set truncated instead of terminated at a time limit, or learned values of good states come out too small",
        )


def _repeats(play: Callable[..., Any], key: Key[Array, ""], rounds: int, played: Played) -> Iterator[Finding]:
    if not _equal(play(key, rounds), played):
        yield _error(
            "the same key leads to another course",
            "two plays with one key",
            "draw everything that is random from the key (or from the seed that reset gets)",
        )
    other = play(jax.random.fold_in(key, 1), rounds)
    same = np.array_equal(np.asarray(other.transitions.obs)[0], played.transitions.obs[0])
    if same and np.ptp(played.transitions.obs[0].astype(float), axis=0).max() == 0:
        yield _note("every episode begins with the same observation", f"{2 * NUM_ENVS} resets", "none, if it is meant")


def _as_compiled(env: Environment, key: Key[Array, ""]) -> Iterator[Finding]:
    """Compare single calls, operation by operation, with the mapped and compiled program."""
    keys = jax.random.split(key, NUM_ENVS)
    space = env.action_space
    action = jnp.zeros((), jnp.int32) if isinstance(space, Discrete) else _middle(space)
    mapped = Mapped(env=env)
    states, obs, _ = jax.jit(mapped.reset)(keys)
    told = jax.jit(mapped.step)(keys, states, jnp.broadcast_to(action, (NUM_ENVS, *action.shape)))[1]
    for i in (0, NUM_ENVS - 1):
        state, one, *_ = env.reset(keys[i])
        single = env.step(keys[i], state, action)[1]
        pairs = [
            (one, obs[i]),
            *((getattr(single, n), getattr(told, n)[i]) for n in ("next_obs", "reward", "terminated")),
        ]
        if not all(np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-4, atol=1e-5) for a, b in pairs):
            yield _error(
                "jit and vmap change what reset or step return",
                "one reset and one step",
                "let the results depend on the arguments alone, not on Python's state",
            )
            return


def _middle(space: Box) -> Array:
    low, high = (np.broadcast_to(bound, space.shape) for bound in (space.low, space.high))
    return jnp.asarray(np.where(np.isfinite(low + high), (low + high) / 2, 0), space.number)


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)


def _error(finding: str, evidence: str, remedy: str) -> Finding:
    return Finding("error", "", finding, evidence, remedy)


def _warning(finding: str, evidence: str, remedy: str) -> Finding:
    return Finding("warning", "", finding, evidence, remedy)


def _note(finding: str, evidence: str, remedy: str) -> Finding:
    return Finding("note", "", finding, evidence, remedy)
