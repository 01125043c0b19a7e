"""Held-out episodes of the evaluation policy, and the learned quantiles of their returns.

| symbol | meaning |
|---|---|
| E | episodes |
| K | states kept of an episode |
| G_t | return from step t, `sum_i gamma^i r_{t+i}`, in the units of `Agent.quantiles` |
| Z_tau | learned quantiles |

`sample` keeps K states of each episode, so its memory does not grow with the length of the
episodes. It plays the episodes that `Agent.evaluate` plays with the same key, unless learning ends
episodes early (a lost life in Atari, for example). Then it plays those that learning sees, because
the learned returns end there.

Rewards are those that learning receives, before `reward_scale` and normalisation, which
`Agent.quantiles` undoes. They differ from the rewards of the score if a wrapper changes them.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from quantilax import arguments, switches
from quantilax.agent import EVALUATION, Agent
from quantilax.errors import ConfigError
from quantilax.fractions import Recalibration
from quantilax.learning import rollout
from quantilax.types import Algorithm, Discrete, Environment, Observation, Policy, State, Transition, as_key

STATES = 8
"""K, by default."""
TAIL = 0.01
"""Largest weight gamma^m of what follows a time limit m steps later, by default."""
BLOCK = 1_024
"""Observations for which quantiles are computed together."""
ALL = 2**31 - 1


class Sampled(NamedTuple):
    """K states of each episode: the first, and others that were drawn along the way."""

    obs: Shaped[Array, "E K *obs"]
    action: Shaped[Array, "E K *action"]
    time: Int[Array, "E K"]
    """t of each state."""
    weight: Float[Array, "E K"]
    """Number of visited states that it stands for; 0 where nothing is kept, for example because the
    episode is too short."""
    returns: Float[Array, "E K"]
    """G_t. Where a time limit cuts the episode, the learned mean of the rest is added."""
    scores: Float[Array, "E K"]
    """The same sum of the score's rewards, without anything added."""
    lengths: Int[Array, "E"]
    episode_returns: Float[Array, "E"]
    """Undiscounted sums of the score's rewards."""
    cut: Bool[Array, "E"]
    """Whether a time limit cut the episode."""
    left_out: Float[Array, ""]
    """Share of the visited states that lie too close to a time limit to be drawn."""


class _Kept(NamedTuple):
    """The states kept so far; t is -1 where there is none."""

    obs: Shaped[Array, "E K *obs"]
    action: Shaped[Array, "E K *action"]
    time: Int[Array, "E K"]
    returns: Float[Array, "E K"]
    scores: Float[Array, "E K"]
    last: Transition


def sample(
    agent: Agent, state: State, key: Key[Array, ""], episodes: int, states: int = STATES, tail: float = TAIL
) -> Sampled:
    """Play episodes, and keep the first state and up to K - 1 others of each, with their returns.

    The others are drawn uniformly from the episode's states. A state's weight is the number of
    visited states that it stands for, so weighted means are means over all visited states. Without
    the weights, states of short episodes would count too much, and so would returns that end soon.

    The return beyond a time limit is not known. If one cuts episodes after L steps, only states
    with t <= L - m are drawn, where gamma^m <= `tail`, and the learned mean of the last successor
    is added with its weight of gamma^m or less. Drawing by the time t alone, and not by how the
    episode went on, keeps the draw unbiased. Nothing is left out if learning treats the limit as
    an end (`bootstrap_truncated: false`).

    Args:
        agent, state: of one run.
        key: as for `Agent.evaluate`.
        episodes: E.
        states: K.
        tail: largest weight of what would follow a time limit.

    Raises:
        ConfigError: a time limit cuts the returns of all states, the algorithm has no quantiles,
            the state is that of several runs, or a number is out of range.
    """
    episodes, states = arguments.as_count("episodes", episodes), arguments.as_count("states", states)
    if not 0 < tail < 1:
        raise ConfigError(f"tail: expected a weight above 0 and below 1, got {tail:g}")
    algorithm, env, config = agent.arguments()
    if algorithm.quantiles is None:
        agent.quantiles(state, jnp.zeros(env.observation_space.shape), jnp.zeros(1))  # raises
    given = algorithm, env, config, arguments.one_state(state), as_key(key)
    found: Sampled = _sample(*given, jnp.int32(ALL), episodes, states)
    if not config.bootstrap_truncated or not bool(found.cut.any()):
        return found
    gamma, limit = float(config.gamma), int(jnp.where(found.cut, found.lengths, ALL).min())
    left = math.ceil(math.log(tail) / math.log(gamma)) if 0 < gamma < 1 else (1 if gamma == 0 else ALL)
    if limit < left:
        weight = gamma**limit
        raise ConfigError(
            f"{agent.env.name}: the time limit of {limit} steps cuts the returns: what would follow has a weight of"
            f" {weight:.2g} even at first states, more than {tail:g}; play with a longer limit, or raise tail"
        )
    return _sample(*given, jnp.int32(limit - left), episodes, states)


def first(agent: Agent, state: State, key: Key[Array, ""], episodes: int) -> tuple[Observation, Shaped[Array, "..."]]:
    """Return the first observations of episodes, and the policy's actions there, (E, ...).

    The same key gives the same observations, whatever the state.

    Raises:
        ConfigError: the state is that of several runs, or `episodes` is below 1.
    """
    episodes = arguments.as_count("episodes", episodes)
    return _first(*agent.arguments(), arguments.one_state(state), as_key(key), episodes)


def predicted(
    agent: Agent,
    state: State,
    obs: Observation,
    action: Shaped[Array, "..."],
    taus: Float[Array, "N"],
    calibrated: bool = False,
) -> Float[Array, "*batch N"]:
    """Return Z_tau(x, a) for pairs of observation and action, as `Agent.quantiles` gives it.

    SAC, TD3 and PPO have one distribution per state, so the action is not used. With `calibrated`
    the quantiles are corrected by the agent's `recalibration`.

    Raises:
        ConfigError: as `Agent.quantiles`.
    """
    taus = arguments.as_fractions(taus)
    correction = agent.recalibration if calibrated else None
    return _predicted(*agent.arguments(), arguments.one_state(state), obs, action, taus, correction)


@switches.checked
@partial(jax.jit, static_argnums=(0, 6, 7))
@switches.standard()
def _sample(
    algorithm: Algorithm,
    env: Environment,
    config: Any,
    state: State,
    key: Key[Array, ""],
    last_start: Int[Array, ""],
    episodes: int,
    states: int,
) -> Sampled:
    """Play, and keep states with t <= `last_start`, by reservoir sampling (Vitter 1985)."""
    key, key_draw = jax.random.fold_in(key, EVALUATION), jax.random.fold_in(key, EVALUATION + 1)
    policy, rows, others = algorithm.policy(env, config, state), jnp.arange(episodes), states - 1

    def see(kept: _Kept, transition: Transition, active: Bool[Array, "E"], t: Int[Array, ""]) -> _Kept:
        # State t is the t-th candidate for the slots 1, ..., K - 1. It takes the next free one,
        # or if there is none, a random one with probability (K - 1) / t.
        drawn = jax.random.randint(jax.random.fold_in(key_draw, t), (episodes,), 0, jnp.maximum(t, 1))
        slot = jnp.where(t <= others, t, 1 + drawn)
        slot = jnp.where(active & (t <= last_start) & (slot < states), slot, states)  # no slot: dropped

        def put(x: Array, new: Any) -> Array:
            return x.at[rows, slot].set(new, mode="drop")

        time = put(kept.time, t)
        weight = jnp.where(active[:, None] & (time >= 0), config.gamma ** jnp.maximum(t - time, 0), 0.0)
        return _Kept(
            put(kept.obs, transition.obs),
            put(kept.action, transition.action),
            time,
            put(kept.returns, 0.0) + weight * transition.reward[:, None],
            put(kept.scores, 0.0) + weight * transition.score[:, None],
            rollout.where(active, transition, kept.last),
        )

    spec = rollout.transition_spec(env)
    zeros = partial(jax.tree.map, lambda x: jnp.zeros((episodes, states, *x.shape), x.dtype))
    nothing = _Kept(
        zeros(spec.obs),
        zeros(spec.action),
        jnp.full((episodes, states), -1),
        jnp.zeros((episodes, states)),
        jnp.zeros((episodes, states)),
        jax.tree.map(lambda x: jnp.zeros((episodes, *x.shape), x.dtype), spec),
    )
    played = rollout.play(env, policy, *rollout.begin_episodes(env, policy, key, episodes), nothing, see)
    kept, lengths = played.seen, played.lengths
    cut = played.unfinished | (kept.last.truncated & ~kept.last.terminated)
    rest = jnp.where(
        cut & config.bootstrap_truncated, _rest(algorithm, env, config, state, policy, kept.last, key), 0.0
    )
    to_end = config.gamma ** (lengths[:, None] - kept.time)
    candidates = jnp.clip(jnp.minimum(lengths - 1, last_start), 0)
    weight = jnp.where(jnp.arange(states) == 0, 1.0, (candidates / jnp.clip(candidates, 1, max(others, 1)))[:, None])
    return Sampled(
        kept.obs,
        kept.action,
        kept.time,
        jnp.where(kept.time >= 0, weight, 0.0),
        kept.returns + jnp.where(kept.time >= 0, to_end * rest[:, None], 0.0),
        kept.scores,
        lengths,
        played.returns,
        cut,
        1 - (1 + candidates).sum() / lengths.sum(),
    )


def _rest(
    algorithm: Algorithm,
    env: Environment,
    config: Any,
    state: State,
    policy: Policy,
    last: Transition,
    key: Key[Array, ""],
) -> Float[Array, "E"]:
    """Return the learned mean of what follows the last step of each episode."""
    action = _actions(policy, last.next_obs, last.next_legal, jax.random.fold_in(key, 0))
    taus = (jnp.arange(100) + 0.5) / 100
    return _quantiles(algorithm, env, config, state, last.next_obs, action, taus).mean(axis=-1)


@switches.checked
@partial(jax.jit, static_argnums=(0, 5))
@switches.standard()
def _first(
    algorithm: Algorithm, env: Environment, config: Any, state: State, key: Key[Array, ""], episodes: int
) -> tuple[Observation, Shaped[Array, "..."]]:
    policy = algorithm.policy(env, config, state)
    envs, key = rollout.begin_episodes(env, policy, jax.random.fold_in(key, EVALUATION), episodes)
    return envs.obs, _actions(policy, envs.obs, envs.legal, key)


def _actions(policy: Policy, obs: Observation, legal: Any, key: Key[Array, ""]) -> Shaped[Array, "..."]:
    """Return the policy's actions at the beginning of episodes."""
    keys = jax.random.split(key, jax.tree.leaves(obs)[0].shape[0])
    return jax.vmap(lambda obs, key, legal: policy.act(obs, policy.carry, key, legal)[0])(obs, keys, legal)


@switches.checked
@partial(jax.jit, static_argnums=0)
@switches.standard()
def _predicted(
    algorithm: Algorithm,
    env: Environment,
    config: Any,
    state: State,
    obs: Observation,
    action: Shaped[Array, "..."],
    taus: Float[Array, "N"],
    correction: Recalibration | None,
) -> Float[Array, "*batch N"]:
    return _quantiles(algorithm, env, config, state, obs, action, taus, correction)


def _quantiles(
    algorithm: Algorithm,
    env: Environment,
    config: Any,
    state: State,
    obs: Observation,
    action: Shaped[Array, "..."],
    taus: Float[Array, "N"],
    correction: Recalibration | None = None,
) -> Float[Array, "*batch N"]:
    shape, of_algorithm = env.observation_space.shape, algorithm.quantiles
    assert of_algorithm is not None
    batch = obs.shape[: obs.ndim - len(shape)]

    def one(pair: tuple[Observation, Array]) -> Float[Array, "N"]:
        obs, action = pair

        def learned(taus: Float[Array, "N"]) -> Float[Array, "N"]:
            Z = of_algorithm(config, state, obs, taus)
            return Z[:, action] if isinstance(env.action_space, Discrete) and Z.shape[1] > 1 else Z[:, 0]

        return learned(taus) if correction is None else correction.quantiles(learned, taus)

    flat = obs.reshape(-1, *shape), action.reshape(-1, *action.shape[len(batch) :])
    Z = jax.lax.map(one, flat, batch_size=BLOCK)
    return Z.reshape(*batch, taus.shape[0])
