"""Checks that what a run computes is finite and, if not, whether the environment is the cause.

The evidence is gathered only after something went wrong: from the replay, the running moments and
the evaluation. If an algorithm stores no transitions (PQN), the environment is played further
with random actions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from quantilax import switches
from quantilax.agent import Agent
from quantilax.errors import RunError
from quantilax.learning import rollout
from quantilax.replay.ring import BLOCK, Ring
from quantilax.runs.directory import RunDirectory
from quantilax.types import Environment, Record, State

STEPS = 1_000
"""Number of further steps to play in each environment."""


@switches.standard()
@switches.unchecked()
def check(agent: Agent, record: Record, env_step: int, state: State, directory: RunDirectory) -> None:
    """Raise `RunError` if the loss or a parameter of a seed is NaN or infinite.

    `state` and `record` have a leading axis of seeds.
    """
    learned = np.asarray(state.gradient_steps) > 0
    bad = ~np.asarray(record.finite)
    what = "parameters hold NaN or inf"
    if record.metrics is not None:
        loss = np.asarray(record.metrics.loss)
        bad_loss = ~np.isfinite(loss) & learned
        if bad_loss.any():
            bad, what = bad_loss, f"loss is {loss[bad_loss][0]}"
    if not bad.any():
        return
    seeds = directory.facts["seeds"]
    written = f"the results so far are in {directory.path}"
    for i in np.flatnonzero(bad).tolist():
        if (found := fault_of_environment(agent, state, record, i)) is not None:
            raise RunError(
                f"the environment gave {found} (seed {seeds[i]}); the {what} at environment step {env_step:,}; fix the"
                f" environment; {written}"
            )
    names = ", ".join(str(seed) for seed, is_bad in zip(seeds, bad, strict=True) if is_bad)
    raise RunError(
        f"the {what} at environment step {env_step:,} (seed {names});{_alibi(state, int(np.argmax(bad)))} try a lower"
        f" learning_rate or max_grad_norm; {written}"
    )


def fault_of_environment(agent: Agent, state: State, record: Record, i: int) -> str | None:
    """Say which number from the environment of seed i was not finite, and when; None if unknown."""
    replay = getattr(state, "replay", None)
    if isinstance(replay, Ring):
        ring = jax.tree.map(lambda x: np.asarray(x)[i], replay)
        found = [seen for seen in (_reward(ring), _observation(ring)) if seen is not None]
        if found:
            step, what = min(found)
            return f"{what}, the first in the replay at environment step {step:,}"
    normalizer = state.normalizer
    for name, moments in (
        ("an observation", normalizer.observation),
        ("a reward", normalizer.reward and normalizer.reward.moments),
    ):
        if moments is not None and not all(np.isfinite(np.asarray(x)[i]).all() for x in moments):
            return f"{name} that is NaN, infinite or too large for the running moments, which are no longer finite"
    returns = np.asarray(record.returns)[i]
    if not np.isfinite(returns).all():
        return f"a reward that made an episode of the evaluation return {returns[~np.isfinite(returns)][0]}"
    if replay is None and hasattr(state, "envs"):
        return _played_on(agent, state, i)
    return None


def _reward(ring: Ring) -> tuple[int, str] | None:
    """Return the first non-finite reward in a ring: (environment step, description)."""
    iterations, rows = _rows(ring)
    rewards = ring.rows.reward[rows]  # (held, E)
    bad = np.argwhere(~np.isfinite(rewards))
    if not len(bad):
        return None
    row, env = bad[0]
    return (int(iterations[row]) + 1) * rewards.shape[1], f"a reward that is {rewards[row, env]}"


def _observation(ring: Ring) -> tuple[int, str] | None:
    """Return the same for observations; step 0 is the first reset."""
    iterations, rows = _rows(ring)
    num_envs = len(ring.cursor)
    found = []
    for leaf in jax.tree.leaves(ring.observations):  # (L, E, *obs)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        slots = leaf.shape[0]
        bad = ~np.isfinite(leaf).all(axis=tuple(range(2, leaf.ndim)))  # (L, E)
        for env in np.flatnonzero(bad.any(axis=0)):
            newest = int(ring.cursor[env])
            there = np.arange(max(newest + 1 - slots, 0), newest + 1)
            first = there[bad[there % slots, env]][0]
            anchors = ring.anchors[iterations // BLOCK % len(ring.anchors), env]
            given_by = np.searchsorted(anchors + ring.rows.offset[rows, env], first)  # steps from earlier slots
            numbers = np.ravel(leaf[first % slots, env])
            value = numbers[~np.isfinite(numbers)][0]
            found.append(((int(iterations[0]) + int(given_by)) * num_envs, f"an observation that holds {value}"))
    return min(found, default=None)


def _rows(ring: Ring) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations that a ring holds, oldest first, and the indices of their rows."""
    length = len(ring.rows.reward)
    iterations = np.arange(max(int(ring.iterations) - length, 0), int(ring.iterations))
    return iterations, iterations % length


def _alibi(state: State, i: int) -> str:
    """Say where the environment of seed i was checked without a finding."""
    replay = getattr(state, "replay", None)
    if not isinstance(replay, Ring):
        return " no non-finite number was found in the environment:"
    ring = jax.tree.map(lambda x: np.asarray(x)[i], replay)
    rewards = ring.rows.reward[_rows(ring)[1]]
    return f" the replay holds finite observations and rewards from {rewards.min():g} to {rewards.max():g}:"


def _played_on(agent: Agent, state: State, i: int) -> str | None:
    """Play the environments of seed i further, at random; return what was not finite, or None."""
    envs, key = jax.tree.map(lambda x: x[i], (state.envs._replace(carry=()), state.evaluation_key))
    _, env, _ = agent.arguments()
    firsts = jax.device_get(_play(env, envs, jax.random.fold_in(key, 2**31 - 1)))
    for what, first in zip(("a reward", "an observation"), firsts, strict=True):
        if first < STEPS:
            return f"{what} that is NaN or infinite when it was played further with random actions, after {first + 1:,} steps"
    return None


@jax.jit
def _play(env: Environment, envs: rollout.Envs, key: Key[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Return the first step with a non-finite reward, and that of an observation; `STEPS`: none."""
    policy = rollout.random_action(env)

    def one(envs: rollout.Envs, key: Key[Array, ""]) -> tuple[rollout.Envs, tuple[Array, Array]]:
        envs, seen = rollout.step(env, policy, envs, key)
        observations = jax.tree.leaves((seen.obs, seen.next_obs, envs.obs))
        return envs, (
            ~jnp.isfinite(seen.reward).all(),
            ~jnp.stack([jnp.isfinite(x).all() for x in observations]).all(),
        )

    bad = jax.lax.scan(one, envs, jax.random.split(key, STEPS))[1]
    reward, observation = (jnp.where(x.any(), x.argmax(), STEPS) for x in bad)
    return reward, observation
