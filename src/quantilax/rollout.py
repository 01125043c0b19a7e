"""Steps of environments: `collect` for learning, `evaluate` for measuring."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from quantilax.envs.vector import Mapped
from quantilax.pytree import ConfigError
from quantilax.types import Discrete, Environment, Observation, Policy, Transition, no_action

ADVICE_ON_TRUNCATION = (
    "bootstrap_truncated=false teaches that the return ends at the time limit, which the observation does not show: values"
    " of good states come out too small and noisy; set it to true"
)
"""For algorithms that have the field."""

Seen: TypeAlias = tuple[Float[Array, "E"], Transition, Transition]


def collect(
    env: Environment,
    act: Policy,
    env_state: PyTree,
    obs: Observation,
    key: Key[Array, ""],
    instead: tuple[Bool[Array, "E"], Int[Array, "E"]] | None = None,
) -> tuple[PyTree, Observation, Transition]:
    """Take one step in each of E environments.

    Args:
        act: (observation, key) -> action, for one environment.
        env_state, obs: leading axis E.
        instead: (where, actions): environments in which another action is taken.

    Returns:
        The states, the observations to act on next (after automatic resets), and the transitions, whose `next_obs` are the
        true successors.
    """
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    keys_act, keys_step = jax.random.split(key, (2, num_envs))
    action = jax.vmap(act)(obs, keys_act)
    if instead is not None:
        action = jnp.where(*instead, action)
    env_state, time_step = Mapped(env=env).step(keys_step, env_state, action)
    transition = Transition(
        obs, action, time_step.reward, time_step.next_obs, time_step.terminated, time_step.truncated
    )
    return env_state, time_step.obs, transition


def random_action(env: Environment) -> Policy:
    """Return the policy that takes any action with equal chances.

    Raises:
        ConfigError: real-valued actions without bounds.
    """
    space = env.action_space
    if not isinstance(space, Discrete) and not np.isfinite([np.min(space.low), np.max(space.high)]).all():
        raise ConfigError(f"env: {env.name}'s actions have no bounds; give its action_space a low and a high")

    def act(obs: Observation, key: Key[Array, ""]) -> Array:
        if isinstance(space, Discrete):
            return jax.random.randint(key, (), 0, space.n)
        return jax.random.uniform(key, space.shape, space.number, space.low, space.high)

    return act


class Episodes(NamedTuple):
    """Episodes of an evaluation, and what is needed to compare them with what a network expected of them."""

    lengths: Int[Array, "E"]
    returns: Float[Array, "E"]
    """Undiscounted."""
    discounted: Float[Array, "E"]
    """sum_t gamma^t r_t, without what would follow a cut."""
    first: Transition
    """The first step of each."""
    last: Transition
    """The last step of each."""


def evaluate(
    env: Environment, policy: Policy, key: Key[Array, ""], episodes: int
) -> tuple[Int[Array, "E"], Float[Array, "E"]]:
    """Play `episodes` episodes in parallel, each counted once, to its end: (lengths, returns), undiscounted."""
    lengths, returns, _ = _play(env, policy, key, episodes, None, lambda seen, *_: seen)
    return lengths, returns


def watch(
    env: Environment, policy: Policy, key: Key[Array, ""], episodes: int, gamma: Float[Array, ""] | float
) -> Episodes:
    """Play the episodes that `evaluate` plays, and keep more of them."""

    def see(seen: Seen, transition: Transition, active: Bool[Array, "E"], t: Int[Array, ""]) -> Seen:
        discounted, first, last = seen
        discounted = discounted + jnp.where(active, gamma**t * transition.reward, 0.0)
        return discounted, _where(t == 0, transition, first), _where(active, transition, last)

    nothing = jax.tree.map(lambda x: jnp.zeros((episodes, *x.shape), x.dtype), transition_spec(env))
    lengths, returns, seen = _play(env, policy, key, episodes, (jnp.zeros(episodes), nothing, nothing), see)
    return Episodes(lengths, returns, *seen)


def _play(
    env: Environment, policy: Policy, key: Key[Array, ""], episodes: int, seen: Any, see: Callable[..., Any]
) -> tuple[Int[Array, "E"], Float[Array, "E"], Any]:
    """Lengths, returns and what `see` made of the steps: (seen, transition, active, t) -> seen."""

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, _, _, t, active, *_ = carry
        return active.any() & (t < env.max_episode_steps)

    def play(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        env_state, obs, key, t, active, lengths, returns, seen = carry
        key, key_collect = jax.random.split(key)
        env_state, obs, transition = collect(env, policy, env_state, obs, key_collect)
        returns = returns + jnp.where(active, transition.reward, 0.0)
        lengths = lengths + active
        seen = see(seen, transition, active, t)
        active = active & ~(transition.terminated | transition.truncated)
        return env_state, obs, key, t + 1, active, lengths, returns, seen

    key_reset, key = jax.random.split(key)
    env_state, obs = Mapped(env=env).reset(jax.random.split(key_reset, episodes))
    carry = (
        env_state,
        obs,
        key,
        jnp.zeros((), jnp.int32),
        jnp.ones(episodes, bool),
        jnp.zeros(episodes, jnp.int32),
        jnp.zeros(episodes),
        seen,
    )
    *_, lengths, returns, seen = jax.lax.while_loop(unfinished, play, carry)
    return lengths, returns, seen


def _where(mask: Bool[Array, "*E"], new: PyTree, old: PyTree) -> PyTree:
    """Choose by a mask over the leading axis (or by one for all)."""
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - mask.ndim)), n, o), new, old)


def transition_spec(env: Environment) -> Transition:
    """Shapes and dtypes of one transition of the environment, without running it."""

    def one(key: Key[Array, ""]) -> Transition:
        key, key_step = jax.random.split(key)  # each key once, as `jax_debug_key_reuse` wants it
        env_state, obs = env.reset(key)
        action = no_action(env.action_space)
        _, time_step = env.step(key_step, env_state, action)
        return Transition(obs, action, time_step.reward, time_step.next_obs, time_step.terminated, time_step.truncated)

    return jax.eval_shape(one, jax.random.key(0))
