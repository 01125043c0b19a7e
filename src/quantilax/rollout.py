"""Steps of environments: `collect` for learning, `evaluate` for measuring."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax.types import Environment, Observation, Policy, Transition


def collect(
    env: Environment, act: Policy, env_state: PyTree, obs: Observation, key: Key[Array, ""]
) -> tuple[PyTree, Observation, Transition]:
    """Take one step in each of E environments.

    Args:
        act: (observation, key) -> action, for one environment.
        env_state, obs: leading axis E.

    Returns:
        The states, the observations to act on next (after automatic resets), and the transitions, whose `next_obs` are the
        true successors.
    """
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    keys_act, keys_step = jax.random.split(key, (2, num_envs))
    action = jax.vmap(act)(obs, keys_act)
    env_state, time_step = jax.vmap(env.step)(keys_step, env_state, action)
    transition = Transition(
        obs, action, time_step.reward, time_step.next_obs, time_step.terminated, time_step.truncated
    )
    return env_state, time_step.obs, transition


def evaluate(
    env: Environment, policy: Policy, key: Key[Array, ""], episodes: int
) -> tuple[Int[Array, "E"], Float[Array, "E"]]:
    """Play `episodes` episodes in parallel, each counted once, to its end: (lengths, returns), undiscounted."""

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, _, _, t, active, _, _ = carry
        return active.any() & (t < env.max_episode_steps)

    def play(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        env_state, obs, key, t, active, lengths, returns = carry
        key, key_collect = jax.random.split(key)
        env_state, obs, transition = collect(env, policy, env_state, obs, key_collect)
        returns = returns + jnp.where(active, transition.reward, 0.0)
        lengths = lengths + active
        active = active & ~(transition.terminated | transition.truncated)
        return env_state, obs, key, t + 1, active, lengths, returns

    key_reset, key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key_reset, episodes))
    carry = (
        env_state,
        obs,
        key,
        jnp.zeros((), jnp.int32),
        jnp.ones(episodes, bool),
        jnp.zeros(episodes, jnp.int32),
        jnp.zeros(episodes),
    )
    *_, lengths, returns = jax.lax.while_loop(unfinished, play, carry)
    return lengths, returns


def transition_spec(env: Environment) -> Transition:
    """Shapes and dtypes of one transition of the environment, without running it."""

    def one(key: Key[Array, ""]) -> Transition:
        env_state, obs = env.reset(key)
        action = jnp.zeros((), jnp.int32)
        _, time_step = env.step(key, env_state, action)
        return Transition(obs, action, time_step.reward, time_step.next_obs, time_step.terminated, time_step.truncated)

    return jax.eval_shape(one, jax.random.key(0))
