"""Play single episodes, step by step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from quantilax.envs import host
from quantilax.envs.wrappers import of_evaluation
from quantilax.errors import ConfigError
from quantilax.learning import rollout
from quantilax.runs import pictures as drawing
from quantilax.types import Action, Carry, Environment, Legal, Observation, Policy, TimeStep


class Moment(NamedTuple):
    """One step of an episode."""

    state: PyTree
    """Of the environment, before the step."""
    obs: Observation
    legal: Legal
    carry: Carry
    """Of the policy, before the step."""
    action: Action
    told: TimeStep
    after: PyTree
    """State of the environment after the step; after the last step that of the next episode."""


class Episode(NamedTuple):
    """One episode."""

    observations: list[np.ndarray]
    """From the first to the last."""
    actions: list[np.ndarray]
    score: float
    """The return, in the rewards that learning curves show."""
    simulated: tuple[int, np.ndarray] | None
    """Seed of the simulator's episode and its actions, if the environment has a simulator."""
    drawn: list[np.ndarray] | None = None
    """Pictures before each step, if there is a drawing of the environment's states."""


def moments(env: Environment, policy: Policy, key: Key[Array, ""]) -> Iterator[Moment]:
    """Yield the steps of one episode.

    Args:
        env: the environment; `evaluation`, if it has one, is played.
        policy: chooses the actions.
        key: consumed.
    """
    yield from _episodes(of_evaluation(env), policy)(key)


def _episodes(env: Environment, policy: Policy) -> Callable[[Key[Array, ""]], Iterator[Moment]]:
    reset, step, act = jax.jit(env.reset), jax.jit(env.step), jax.jit(policy.act)

    def episode(key: Key[Array, ""]) -> Iterator[Moment]:
        key, key_reset = jax.random.split(key)
        state, obs, *mask = reset(key_reset)
        if policy.begin is not None:
            state, obs = policy.begin(state, obs)
        legal, carry, done = mask[0] if mask else None, policy.carry, False
        while not done:
            key, key_act, key_step = jax.random.split(key, 3)
            action, remembered = act(obs, carry, key_act, legal)
            after, told = step(key_step, state, action)
            yield Moment(state, obs, legal, carry, action, told, after)
            state, obs, legal, carry = after, told.obs, told.legal, remembered
            done = bool(told.terminated | told.truncated)

    return episode


def play(
    env: Environment,
    act: Callable[..., Any] | None,
    episodes: int,
    seed: int,
    begin: Callable[..., Any] | None = None,
) -> Iterator[Episode]:
    """Play episodes one after another.

    Args:
        env: the environment; `evaluation`, if it has one, is played.
        act: (observation, key[, mask]) -> action; None: random actions.
        episodes: how many.
        seed: of the play.
        begin: (environment's state, observation) -> the same, after a reset; see `Agent.begin`.
    """
    env = of_evaluation(env)
    policy = rollout.random_action(env) if act is None else _without_memory(act)._replace(begin=begin)
    episode, draw = _episodes(env, policy), drawing.classic(env)
    for key in jax.random.split(jax.random.key(seed), episodes):
        observations: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        drawn: list[np.ndarray] = []
        score = 0.0
        for moment in episode(key):
            if not actions:
                begun = host.state_of(moment.state)
                observations.append(np.asarray(moment.obs))
            if draw is not None:
                drawn.append(draw(moment.state))
            told = moment.told
            actions.append(np.asarray(moment.action))
            observations.append(np.asarray(told.next_obs))
            score += float(told.reward if told.raw_reward is None else told.raw_reward)
        ended = host.state_of(moment.after)
        simulated = None if begun is None or ended is None else (int(begun.seed), np.asarray(ended.log))
        yield Episode(observations, actions, score, simulated, drawn or None)


def _without_memory(act: Callable[..., Any]) -> Policy:
    def of_policy(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        return act(obs, key, *(() if legal is None else (legal,))), carry

    return Policy(of_policy)


def pictures(env: Environment, episode: Episode) -> Iterator[np.ndarray]:
    """Yield a picture (height, width, 3) for each observation of an episode.

    Drawings of states leave out the last observation, because the state is already that of the next
    episode.

    Raises:
        ConfigError: neither the simulator nor the observations give pictures.
    """
    if episode.simulated is not None:
        yield from host.pictures(env, *episode.simulated)
        return
    if episode.drawn is not None:
        yield from episode.drawn
        return
    for obs in episode.observations:
        if obs.ndim != 3:
            raise ConfigError(f"--video: {env.name} has no pictures: its observations are not grids; leave --video out")
        yield drawing.grid(obs)
