"""The adapter of a physics library beside the library itself: for the tests of brax and MuJoCo Playground."""

from functools import partial

import jax
import jax.numpy as jnp

from quantilax.envs import adapters
from quantilax.learning.rollout import random_action

STEPS, ENVS, LIMIT = 250, 4, 12


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0))
def beside(env, library, key):
    """STEPS of one environment: what the adapter tells, and what the library tells, which is reset here.

    Both take the same actions. Returns (first observation, the library's, (time steps, what the library told)).
    """
    draw = random_action(env).act

    def one(carry, key):
        state, theirs = carry
        key_action, key_step = jax.random.split(key)
        action = draw(None, (), key_action, None)[0]
        state, step = env.step(key_step, state, action)
        with adapters.quiet():  # brax reads fields of MJX by deprecated names
            told, first = library.step(theirs, action), library.reset(key_step)
        kept = jax.tree.map(lambda a, b, old: jnp.where(told.done > 0, a, b).astype(old.dtype), first, told, theirs)
        return (state, kept), (step, (kept.obs, told.obs, told.reward, told.done, told.info["truncation"]))

    key_reset, key_run = jax.random.split(key)
    state, obs = env.reset(key_reset)
    with adapters.quiet():
        first = adapters.strong(library.reset(key_reset))
    return obs, first.obs, jax.lax.scan(one, (state, first), jax.random.split(key_run, STEPS))[1]
