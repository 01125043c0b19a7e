"""Steps of environments: `collect` takes them for learning, `evaluate` to measure a policy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from quantilax.envs.vector import Mapped
from quantilax.envs.wrappers import of_evaluation
from quantilax.errors import ConfigError
from quantilax.learning import exploration, normalize
from quantilax.pytree import dataclass
from quantilax.types import (
    Action,
    Carry,
    Config,
    Discrete,
    Environment,
    Legal,
    Observation,
    Policy,
    TimeStep,
    Transition,
    no_action,
    num_actions,
)

ADVICE_ON_TRUNCATION = (
    "bootstrap_truncated=false teaches that the return ends at the time limit, which the observation does not show: values"
    " of good states come out too small and noisy; set it to true"
)
"""For algorithms that have the field `bootstrap_truncated`."""

Seen: TypeAlias = tuple[Float[Array, "E"], Transition, Transition]


class Envs(NamedTuple):
    """Where E environments stand. Every array has the leading axis E."""

    state: PyTree
    obs: Shaped[Array, "E *obs"]
    """The observations to act on next."""
    legal: Bool[Array, "E A"] | None
    """The actions that may be taken next; None if all may."""
    carry: Carry
    """What the policy remembers of each episode."""


@dataclass
class State:
    """What every algorithm carries from one iteration to the next.

    Each algorithm's own class adds networks and whatever else it needs.
    """

    params: PyTree
    envs: Envs
    normalizer: normalize.Normalizer
    key: Key[Array, ""]
    evaluation_key: Key[Array, ""]
    """Never split. Evaluations fold the step into it, so they cannot disturb training."""
    env_steps: Int[Array, ""]
    gradient_steps: Int[Array, ""]

    @property
    def followed(self) -> PyTree:
        """The parameters that `target_params` follow, if there is a target network."""
        return self.params


def begin(env: Environment, config: Config, key: Key[Array, ""], carry: Carry = ()) -> dict[str, Any]:
    """Reset the environments of training. Return the fields of `State` except parameters and keys.

    Args:
        env, config, key: of training.
        carry: initial carry of the policy by which training acts.
    """
    return {
        "envs": reset(env, jax.random.split(key, config.num_envs), carry),
        "normalizer": normalize.init(
            env.observation_space.shape,
            config.num_envs,
            config.normalize_observations,
            config.normalize_rewards,
            config.reward_scale,
        ),
        "env_steps": jnp.zeros((), jnp.int32),
        "gradient_steps": jnp.zeros((), jnp.int32),
    }


def reset(env: Environment, keys: Key[Array, "E"], carry: Carry = ()) -> Envs:
    """Begin an episode in each of E environments. `carry` is that of the policy that will act."""
    carries = jax.tree.map(lambda x: jnp.broadcast_to(x, (keys.shape[0], *jnp.shape(x))), carry)
    return Envs(*Mapped(env=env).reset(keys), carries)


def begun(policy: Policy, envs: Envs) -> Envs:
    """Apply `Policy.begin` to environments that were just reset."""
    if policy.begin is None:
        return envs
    state, obs = jax.vmap(policy.begin)(envs.state, envs.obs)
    return envs._replace(state=state, obs=obs)


def step(env: Environment, policy: Policy, envs: Envs, key: Key[Array, ""]) -> tuple[Envs, Transition]:
    """Take one step in each of E environments.

    Returns:
        The environments after automatic resets, and the transitions, whose `next_obs` are the true
        successors.
    """
    num_envs, carry = jax.tree.leaves(envs.obs)[0].shape[0], envs.carry
    if policy.before is not None:
        key, key_before = jax.random.split(key)
        carry = policy.before(carry, key_before, envs.legal)
    keys_act, keys_step = jax.random.split(key, (2, num_envs))
    action, carry = jax.vmap(policy.act)(envs.obs, carry, keys_act, envs.legal)
    env_state, told = Mapped(env=env).step(keys_step, envs.state, action)
    transition = _transition(envs.obs, action, told, envs.legal)
    forgotten = jax.tree.map(lambda first, x: jnp.broadcast_to(first, x.shape), policy.carry, carry)
    carry = where(told.terminated | told.truncated, forgotten, carry)
    return Envs(env_state, told.obs, told.legal, carry), transition


def collect(
    env: Environment, config: Config, act: Callable[[Config, Any], Policy], state: Any, key: Key[Array, ""]
) -> tuple[Any, Transition]:
    """Take the environment steps of one iteration.

    Args:
        env, config: of training.
        act: (config, state) -> policy.
        state: a `State`. Its environments, moments and number of steps advance.
        key: consumed.

    Returns:
        The state, and the transitions with leading axes (T, E).
    """

    def one(state: Any, key: Key[Array, ""]) -> tuple[Any, Transition]:
        envs, transition = step(env, act(config, state), state.envs, key)
        if not config.bootstrap_truncated:
            transition = transition.ended_where_truncated()
        normalizer = normalize.update(state.normalizer, transition, config.gamma)
        steps = state.env_steps + config.num_envs
        return replace(state, envs=envs, normalizer=normalizer, env_steps=steps), transition

    length = config.steps_per_iteration // config.num_envs
    if length == 1:
        state, transition = one(state, key)
        return state, jax.tree.map(lambda x: x[None], transition)
    return jax.lax.scan(one, state, jax.random.split(key, length))


def random_action(env: Environment) -> Policy:
    """Return the policy that takes every legal action with equal chances.

    Raises:
        ConfigError: if the actions are real-valued without bounds.
    """
    space = env.action_space
    if not isinstance(space, Discrete) and not np.isfinite([np.min(space.low), np.max(space.high)]).all():
        raise ConfigError(f"env: {env.name}'s actions have no bounds; give its action_space a low and a high")

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        if isinstance(space, Discrete) and legal is not None:
            return exploration.legal_action(jax.random.uniform(key), legal), carry
        if isinstance(space, Discrete):
            return jax.random.randint(key, (), 0, num_actions(env)), carry
        return jax.random.uniform(key, space.shape, space.number, space.low, space.high), carry

    return Policy(act)


class Episodes(NamedTuple):
    """Episodes of an evaluation, with what it takes to compare them with predictions."""

    lengths: Int[Array, "E"]
    returns: Float[Array, "E"]
    """Undiscounted."""
    discounted: Float[Array, "E"]
    """sum_t gamma^t r_t, without what would follow a truncation."""
    first: Transition
    """The first step of each episode."""
    last: Transition
    """The last step of each episode."""


def evaluate(
    env: Environment, policy: Policy, key: Key[Array, ""], episodes: int
) -> tuple[Int[Array, "E"], Float[Array, "E"]]:
    """Play `episodes` episodes in parallel and return (lengths, undiscounted returns).

    Each environment plays one episode, to its end.
    """
    env = of_evaluation(env)
    played = play(env, policy, *begin_episodes(env, policy, key, episodes), None, lambda seen, *_: seen)
    return played.lengths, played.returns


def watch(
    env: Environment, policy: Policy, key: Key[Array, ""], episodes: int, gamma: Float[Array, ""] | float
) -> Episodes:
    """Play the episodes that `evaluate` plays, and keep more of them."""

    def see(seen: Seen, transition: Transition, active: Bool[Array, "E"], t: Int[Array, ""]) -> Seen:
        discounted, first, last = seen
        discounted = discounted + jnp.where(active, gamma**t * transition.reward, 0.0)
        return discounted, where(t == 0, transition, first), where(active, transition, last)

    nothing = jax.tree.map(lambda x: jnp.zeros((episodes, *x.shape), x.dtype), transition_spec(env))
    env, begun = of_evaluation(env), (jnp.zeros(episodes), nothing, nothing)
    played = play(env, policy, *begin_episodes(env, policy, key, episodes), begun, see)
    return Episodes(played.lengths, played.returns, *played.seen)


class Played(NamedTuple):
    """Episodes, one in each environment, and what was seen of them."""

    lengths: Int[Array, "E"]
    returns: Float[Array, "E"]
    """Undiscounted."""
    unfinished: Bool[Array, "E"]
    """Whether the play ended before the episode did."""
    seen: Any


def begin_episodes(env: Environment, policy: Policy, key: Key[Array, ""], episodes: int) -> tuple[Envs, Key[Array, ""]]:
    """Return environments at the beginning of `episodes` episodes, and a key for `play`."""
    key_reset, key = jax.random.split(key)
    return begun(policy, reset(env, jax.random.split(key_reset, episodes), policy.carry)), key


def play(
    env: Environment,
    policy: Policy,
    envs: Envs,
    key: Key[Array, ""],
    seen: Any,
    see: Callable[..., Any],
    steps: int | Float[Array, ""] | None = None,
) -> Played:
    """Play an episode in each of E environments, all in parallel, each to its end.

    Args:
        env, policy: the environment, and the policy that plays in it.
        envs, key: from `begin_episodes`.
        seen: what `see` updates, at the beginning.
        see: (seen, transition, active, t) -> seen. It is called after each step; `active` (E,) says
            whose episode goes on.
        steps: an upper bound below that of the environment.
    """
    episodes = jax.tree.leaves(envs.obs)[0].shape[0]
    limit = env.max_episode_steps if steps is None else jnp.minimum(env.max_episode_steps, steps)

    def is_unfinished(carry: tuple[Any, ...]) -> Array:
        _, _, t, active, *_ = carry
        return active.any() & (t < limit)

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        envs, key, t, active, lengths, returns, seen = carry
        key, key_step = jax.random.split(key)
        envs, transition = step(env, policy, envs, key_step)
        returns = returns + jnp.where(active, transition.score, 0.0)
        lengths = lengths + active
        seen = see(seen, transition, active, t)
        active = active & ~(transition.terminated | transition.truncated)
        return envs, key, t + 1, active, lengths, returns, seen

    carry = (
        envs,
        key,
        jnp.zeros((), jnp.int32),
        jnp.ones(episodes, bool),
        jnp.zeros(episodes, jnp.int32),
        jnp.zeros(episodes),
        seen,
    )
    *_, active, lengths, returns, seen = jax.lax.while_loop(is_unfinished, one, carry)
    return Played(lengths, returns, active, seen)


def where(mask: Bool[Array, "*E"], new: PyTree, old: PyTree) -> PyTree:
    """Choose by a mask over the leading axis, or by one flag for all."""
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - mask.ndim)), n, o), new, old)


def _transition(obs: Observation, action: Action, told: TimeStep, legal: Any) -> Transition:
    ends = told.terminated, told.truncated
    return Transition(obs, action, told.reward, told.next_obs, *ends, legal, told.next_legal, told.raw_reward)


def transition_spec(env: Environment) -> Transition:
    """Return shapes and dtypes of one transition of the environment, without running it."""

    def one(key: Key[Array, ""]) -> Transition:
        key, key_step = jax.random.split(key)  # `jax_debug_key_reuse` allows each key once
        env_state, obs, *mask = env.reset(key)
        action = no_action(env.action_space)
        _, told = env.step(key_step, env_state, action)
        return _transition(obs, action, told, mask[0] if mask else None)

    return jax.eval_shape(one, jax.random.key(0))
