"""Record one episode of a run's policy, with the returns that the run predicts along it.

At each *stop*, a step of the episode that is kept, the recording has the quantiles of every action.
At some stops there are *rollouts* as well: episodes played on from the stored state of the
environment. Each takes a given action first and follows the evaluation policy from then on, so its
return is of the kind that is predicted.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from quantilax import switches
from quantilax.agent import Agent
from quantilax.envs import host
from quantilax.envs.vector import Mapped
from quantilax.envs.wrappers import of_evaluation
from quantilax.errors import ConfigError
from quantilax.host import paths
from quantilax.learning import rollout
from quantilax.returns.calibration import caveats
from quantilax.runs import loading, pictures, playing
from quantilax.types import Algorithm, Discrete, Environment, Observation, Policy, State, Transition

TAUS = (np.arange(50) + 0.5) / 50
"""Fractions of the recorded quantiles. The mean over the first five is the CVaR of 10 %."""
CVAR = 0.1
MAX_ROLLOUTS = 4_096
"""Most rollouts by default. In any case there are rollouts from at least four stops."""
NEGLIGIBLE = 1e-3
"""A rollout is cut off where the discount has fallen to this."""


class Rollouts(NamedTuple):
    """Returns of M rollouts for each of A actions from S stops."""

    stops: np.ndarray
    """(S,): indices of stops."""
    returns: np.ndarray
    """(S, A, M); NaN for actions that are not legal."""
    weight: np.ndarray
    """(S, A, M): 0 if a rollout played to its episode's end. If it was cut off, the discount there:
    the return then contains a predicted return times this weight."""


class Recording(NamedTuple):
    """An episode at T stops, with predictions for A actions (or one row, if the run has one)."""

    facts: dict[str, Any]
    """What was played: `run`, `environment`, `algorithm`, `seed`, `env_step`, `episode_seed`,
    `gamma`, `steps`, `score`, `ended`."""
    meaning: list[str]
    """Sentences that say what the predicted return is."""
    caveats: list[str]
    """How it differs from what the policy earns; see `calibration.caveats`."""
    steps: np.ndarray
    """(T,): steps of the episode."""
    rows: list[str]
    """(A,): names of the actions."""
    legal: np.ndarray
    """(T, A)."""
    taken: np.ndarray
    """(T,): the row of the action that was taken."""
    actions: list[str]
    """(T,): the action that was taken, in words."""
    quantiles: np.ndarray
    """(T, A, N), at `TAUS`, in ascending order."""
    rewards: np.ndarray
    """(T,): reward of the step, in the units of the returns."""
    earned: np.ndarray
    """(T,): discounted return of this episode from the stop on."""
    rollouts: Rollouts | None
    no_rollouts: str
    """Why there are none."""
    pictures: list[np.ndarray] | None
    """(T,) pictures, each (height, width, 3)."""
    observations: np.ndarray
    """(T, D): the observations as vectors."""
    names: list[str]
    """(D,): names of their numbers."""

    @property
    def means(self) -> np.ndarray:
        """(T, A): mean of the predicted return."""
        means: np.ndarray = self.quantiles.mean(axis=-1)
        return means

    @property
    def cvars(self) -> np.ndarray:
        """(T, A): mean of the worst share `CVAR` of the predicted return."""
        cvars: np.ndarray = self.quantiles[..., : round(CVAR * len(TAUS))].mean(axis=-1)
        return cvars


@switches.standard()
def record(
    path: Path | str,
    checkpoint: str | int = "last",
    *,
    seed: int | None = None,
    env: Any = None,
    episode_seed: int = 0,
    stops: int = 500,
    rollouts: int = 32,
    rollout_stops: int | None = None,
) -> Recording:
    """Play an episode with the policy of a run, and record it.

    Args:
        path, checkpoint, seed, env: as for `quantilax.load`.
        episode_seed: of the episode and its rollouts.
        stops: most steps that are kept; of a longer episode every second, fourth, ... step is kept.
        rollouts: M, rollouts for each action at a stop with rollouts; 0: none.
        rollout_stops: S, stops with rollouts, evenly over the episode; None: 20, or fewer if that
            makes more than `MAX_ROLLOUTS`.

    Raises:
        ConfigError, CheckpointError: as for `load`; the run learned no quantiles.
    """
    agent, states, seeds, env_step = loading.load_states(paths.check(path, "run"), checkpoint, env)
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ConfigError(f"{path}: has no seed {seed}; it has {', '.join(map(str, seeds))}")
    state = jax.tree.map(lambda x: x[seeds.index(seed)], states)
    try:
        recording = of_agent(agent, state, episode_seed, stops, rollouts, rollout_stops)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    named = {"run": Path(path).name, "seed": seed, "env_step": env_step, "episode_seed": episode_seed}
    return recording._replace(facts=named | recording.facts)


def of_agent(
    agent: Agent, state: State, episode_seed: int, stops: int, rollouts: int, rollout_stops: int | None
) -> Recording:
    """Record an episode of an agent in a state; see `record`."""
    env, config = of_evaluation(agent.env), agent.config
    _predict(agent, state, jax.eval_shape(env.reset, jax.random.key(0))[1])  # refuses before anything is played
    key_episode, key_rollouts = jax.random.split(jax.random.key(episode_seed))
    played = _play(env, agent.algorithm.policy(agent.env, config, state), key_episode, stops)
    obs = np.stack([np.asarray(stop.begun.obs) for stop in played.kept])
    quantiles = np.sort(np.moveaxis(np.asarray(_predict(agent, state, obs)), 1, 2), axis=-1)
    rows, taken, actions = _rows(env, quantiles.shape[1], [stop.action for stop in played.kept])
    masks = [np.asarray(stop.begun.legal) for stop in played.kept if stop.begun.legal is not None]
    legal = np.stack(masks) if masks and len(rows) > 1 else np.ones(quantiles.shape[:2], bool)
    tail = None
    if played.truncated and config.bootstrap_truncated:
        tail = float(np.asarray(_predict(agent, state, played.last_obs[None])).mean(axis=1).max())
    recording = Recording(
        facts={
            "environment": env.name,
            "algorithm": agent.algorithm.name,
            "gamma": float(config.gamma),
            "length": len(played.rewards),
            "score": played.score,
            "truncated": played.truncated,
            "bootstraps": bool(config.bootstrap_truncated),
        },
        meaning=[*meaning(agent, played.is_changed), *([CUT] if tail is not None else [])],
        caveats=caveats(agent),
        steps=played.steps,
        rows=rows,
        legal=legal,
        taken=taken,
        actions=actions,
        quantiles=quantiles.astype(np.float32),
        rewards=np.asarray(played.rewards)[played.steps],
        earned=_earned(played.rewards, float(config.gamma), tail or 0.0)[played.steps],
        rollouts=None,
        no_rollouts="None were asked for." if not rollouts else NO_ROLLOUTS.format(env.name),
        pictures=_pictures(env, played),
        observations=obs.reshape(len(obs), -1).astype(np.float32),
        names=_names(env, obs[0].shape),
    )
    if not rollouts or played.simulated is not None:
        return recording
    if rollout_stops is None:
        rollout_stops = min(20, max(MAX_ROLLOUTS // (rollouts * len(rows)), 4))
    return recording._replace(
        rollouts=_rollouts(agent, state, env, played, recording, rollouts, rollout_stops, key_rollouts), no_rollouts=""
    )


CUT = "A time limit cut this episode off. In what it earned, the mean that is predicted there stands for the rest."
NO_ROLLOUTS = (
    "There are no rollouts, because {} is simulated outside of JAX, and its simulator cannot be set back to this state"
    " with other random numbers."
)


def meaning(agent: Agent, is_changed: bool) -> list[str]:
    """Return sentences on what the quantiles of a run are quantiles of.

    Args:
        agent: of the run.
        is_changed: whether a wrapper changes rewards for learning.
    """
    config, env = agent.config, agent.env
    gamma = f"{float(config.gamma):g}"
    told = [
        f"A predicted return is the discounted sum of rewards from this step on, r₀ + {gamma} r₁ + {gamma}² r₂ + …, in"
        " the environment's units. It is not the episode's score, which adds up all rewards without a discount."
    ]
    if agent.algorithm.actions == (Discrete,):
        told.append("It is the return if the agent takes this action now and its evaluation policy from then on.")
    else:
        told.append("It is the return if the agent follows its evaluation policy from this state on.")
    if is_changed:
        told.append("Rewards count as they were learned, after the wrappers that clip or scale them.")
    simulation: Any = getattr(pictures.innermost(env), "simulation", None)
    if simulation is not None and simulation.evaluation is not simulation:
        told.append("In training the return ends earlier than here, for example with a lost life.")
    if config.bootstrap_truncated:
        told.append("A time limit does not end it: the predicted return goes on where an episode is cut off.")
    return told


class Stop(NamedTuple):
    """What is kept of a step."""

    begun: rollout.Envs
    """Of one environment, without the axis E. `state` is None if a simulator has it."""
    action: np.ndarray


class _Played(NamedTuple):
    kept: list[Stop]
    steps: np.ndarray
    drawn: list[np.ndarray]
    rewards: list[float]
    score: float
    is_changed: bool
    truncated: bool
    last_obs: np.ndarray
    simulated: tuple[int, np.ndarray] | None


def _play(env: Environment, policy: Policy, key: Key[Array, ""], most: int) -> _Played:
    """Play an episode, and keep every n-th step of it, with n a power of two."""
    kept: dict[int, Stop] = {}
    draw, drawn, rewards, scores, every = pictures.classic(env), {}, [], [], 1
    for t, moment in enumerate(playing.moments(env, policy, key)):
        if t == 0:
            begun = host.state_of(moment.state)
        told = moment.told
        rewards.append(float(told.reward))
        scores.append(float(told.reward if told.raw_reward is None else told.raw_reward))
        if t % every:
            continue
        if draw is not None:
            drawn[t] = draw(moment.state)
        state = moment.state if begun is None else None  # the log of actions is as long as an episode may be
        kept[t] = Stop(rollout.Envs(state, moment.obs, moment.legal, moment.carry), np.asarray(moment.action))
        if len(kept) > most:
            every *= 2
            kept, drawn = ({t: x for t, x in of.items() if t % every == 0} for of in (kept, drawn))
    ended = host.state_of(moment.after)
    return _Played(
        kept=list(kept.values()),
        steps=np.array(list(kept)),
        drawn=list(drawn.values()),
        rewards=rewards,
        score=sum(scores),
        is_changed=told.raw_reward is not None,
        truncated=bool(told.truncated & ~told.terminated),
        last_obs=np.asarray(told.next_obs),
        simulated=None if begun is None or ended is None else (int(begun.seed), np.asarray(ended.log)),
    )


def _predict(agent: Agent, state: State, obs: Any) -> Any:
    """Return the quantiles (T, N, A) of observations; for a mere shape nothing is computed."""
    taus = jnp.asarray(TAUS, jnp.float32)

    def predict(obs: Observation) -> Float[Array, "..."]:
        return agent.quantiles(state, obs, taus)

    return jax.eval_shape(predict, obs) if isinstance(obs, jax.ShapeDtypeStruct) else jax.jit(predict)(obs)


def _earned(rewards: list[float], gamma: float, tail: float) -> np.ndarray:
    """Return the discounted return from each step on; `tail` is that from the last observation."""
    earned = np.zeros(len(rewards))
    for t in reversed(range(len(rewards))):
        tail = earned[t] = rewards[t] + gamma * tail
    return earned


def _rows(env: Environment, number: int, actions: list[np.ndarray]) -> tuple[list[str], np.ndarray, list[str]]:
    """Return names of the rows, the row that was taken at each stop, and each action in words."""
    names = pictures.action_names(env)
    if names is None:
        words = [", ".join(f"{x:.3g}" for x in np.ravel(action)) for action in actions]
    else:
        words = [names[int(action)] for action in actions]
    if names is None or number != len(names):
        return ["the policy's action"], np.zeros(len(actions), int), words
    return names, np.array([int(action) for action in actions]), words


def _names(env: Environment, shape: tuple[int, ...]) -> list[str]:
    names = getattr(pictures.innermost(env), "observation_names", ())
    if len(names) == math.prod(shape):  # not so if frames are stacked
        return list(names)
    return ["[" + ", ".join(map(str, index)) + "]" for index in np.ndindex(shape)]


def _pictures(env: Environment, played: _Played) -> list[np.ndarray] | None:
    """Return a picture for each stop; None if the environment has none."""
    if played.simulated is not None:
        wanted = set(played.steps.tolist())
        try:
            return [frame for t, frame in enumerate(host.pictures(env, *played.simulated)) if t in wanted]
        except ConfigError:
            return None
    if played.drawn:
        return played.drawn
    if played.last_obs.ndim != 3:
        return None
    return [pictures.grid(np.asarray(stop.begun.obs)) for stop in played.kept]


def _rollouts(
    agent: Agent,
    state: State,
    env: Environment,
    played: _Played,
    recording: Recording,
    number: int,
    stops: int,
    key: Key[Array, ""],
) -> Rollouts:
    """Play on from some stops, in one program for all of them."""
    chosen = np.unique(np.linspace(0, len(played.kept) - 1, min(stops, len(played.kept))).round().astype(int))
    begun, actions = _stacked([played.kept[i].begun for i in chosen]), None
    if len(recording.rows) > 1:  # in place of illegal actions, play the one taken
        legal, taken = jnp.asarray(recording.legal[chosen]), jnp.asarray(recording.taken[chosen])
        actions = jnp.where(legal, jnp.arange(len(recording.rows)), taken[:, None])
    returns, weight = map(np.asarray, play_on(agent, state, begun, actions, key, number))
    return Rollouts(chosen, np.where(recording.legal[chosen][..., None], returns, np.nan), weight)


def _stacked(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def play_on(
    agent: Agent,
    state: State,
    begun: rollout.Envs,
    actions: Int[Array, "S A"] | None,
    key: Key[Array, ""],
    number: int,
) -> tuple[Float[Array, "S A M"], Float[Array, "S A M"]]:
    """Return M returns for each of A first actions from S states, and `Rollouts.weight`.

    After the first action the evaluation policy acts. A rollout ends with its episode. It is cut
    off by the time limit, or where the discount is `NEGLIGIBLE`. If the algorithm bootstraps from
    time limits, a draw from the return that is predicted there takes the place of the rest.

    Args:
        agent: of the run, in an environment of JAX.
        state: of one seed.
        begun: S environments to play on from.
        actions: the first ones; None: the policy chooses them, and A is 1.
        key: consumed.
        number: M.
    """
    algorithm, env, config = agent.arguments()
    return _play_on(algorithm, of_evaluation(env), config, state, begun, actions, key, number)


@switches.checked
@partial(jax.jit, static_argnums=(0, 7))
@switches.standard()
def _play_on(
    algorithm: Algorithm,
    env: Environment,
    config: Any,
    state: State,
    begun: rollout.Envs,
    actions: Int[Array, "S A"] | None,
    key: Key[Array, ""],
    number: int,
) -> tuple[Float[Array, "S A M"], Float[Array, "S A M"]]:
    policy = algorithm.policy(env, config, state)
    states, number_of_actions = (begun.obs.shape[0], 1) if actions is None else actions.shape
    shape = (states, number_of_actions, number)
    rows = math.prod(shape)

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None, None], (*shape, *x.shape[1:])).reshape(rows, *x.shape[1:])

    envs: Any = jax.tree.map(spread, begun)
    key_act, key_step, key_tail, key = jax.random.split(key, 4)
    first, carry = jax.vmap(policy.act)(envs.obs, envs.carry, jax.random.split(key_act, rows), envs.legal)
    if actions is not None:
        first = jnp.broadcast_to(actions[..., None], shape).ravel().astype(first.dtype)
    env_state, told = Mapped(env=env).step(jax.random.split(key_step, rows), envs.state, first)
    envs = rollout.Envs(env_state, told.obs, told.legal, carry)
    gamma = jnp.asarray(config.gamma, jnp.float32)
    negligible = jnp.where(gamma < 1, jnp.ceil(jnp.log(NEGLIGIBLE) / jnp.log(gamma)), jnp.inf)
    goes_on = ~(told.terminated | told.truncated)

    def see(seen: Any, step: Transition, active: Bool[Array, "R"], t: Int[Array, ""]) -> Any:
        returns, *before = seen
        active &= goes_on
        returns = returns + jnp.where(active, gamma ** (t + 1) * step.reward, 0.0)
        now = [step.next_obs, step.next_legal, gamma ** (t + 2) * step.discount]
        return returns, *rollout.where(active, now, before)

    seen = (told.reward, told.next_obs, told.next_legal, jnp.where(told.terminated, 0.0, gamma))
    returns, last, legal, weight = rollout.play(env, policy, envs, key, seen, see, negligible).seen
    if config.bootstrap_truncated:
        tail = _drawn(algorithm, config, state, policy, last, legal, key_tail)
        returns = returns + weight * tail
    return returns.reshape(shape), weight.reshape(shape)


def _drawn(
    algorithm: Algorithm,
    config: Any,
    state: State,
    policy: Policy,
    obs: Observation,
    legal: Any,
    key: Key[Array, ""],
) -> Float[Array, "R"]:
    """Return a draw from the predicted return of the policy's action for each observation."""
    quantiles = algorithm.quantiles
    assert quantiles is not None

    def one(obs: Observation, legal: Any, key: Key[Array, ""]) -> Float[Array, ""]:
        key_tau, key_act = jax.random.split(key)
        z = quantiles(config, state, obs, jax.random.uniform(key_tau, (1,)))[0]
        action = policy.act(obs, policy.carry, key_act, legal)[0]
        return z[0] if z.shape[0] == 1 else z[action]

    return jax.vmap(one)(obs, legal, jax.random.split(key, jax.tree.leaves(obs)[0].shape[0]))
