"""TD3: deterministic actor and noisy targets, with any head: TD3, D4PG, ...

| symbol | here | meaning |
|---|---|---|
| mu(x) | `greedy` | the actor's action, scaled to [-1, 1] |
| mu^-(x) | `target_params["actor"]` | that of the target network |
| e' | `noise` | N(0, `target_noise`^2), clipped at +-`target_noise_clip` |
| a' | `a_next` | `mu^-(x') + e'`, clipped to [-1, 1] |

The critics learn `y = R + gamma^m d Z(x', a')`, each by its head's loss. Every `policy_delay`
gradient steps the actor raises Q(x, mu(x)) of the first critic, and the target networks move.
Training acts by `mu(x) + e`, e ~ N(0, `exploration_noise`^2).

Source: Fujimoto, van Hoof & Meger (2018), https://arxiv.org/abs/1802.09477. D4PG, one critic of
atoms without noise in its targets: Barth-Maron et al. (2018), https://arxiv.org/abs/1804.08617.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from quantilax import heads
from quantilax.algorithms import actor_critic
from quantilax.algorithms.actor_critic import State, greedy
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Policy


@dataclass
class Config(actor_critic.Config):
    """Hyperparameters of TD3. An algorithm's own config adds a `head` and its groups."""

    target_update_freq: int = field(1, "steps of the actor between updates of the target networks", ge=1)
    policy_delay: int = field(2, "gradient steps of the critics per step of the actor", ge=1)
    target_noise: float = field(0.2, "std of the noise of the target's action, in half widths of the box", ge=0)
    target_noise_clip: float = field(0.5, "largest noise of the target's action, in half widths of the box", ge=0)
    exploration_noise: float = field(0.1, "std of the noise of training's actions, in half widths of the box", ge=0)

    @property
    def actor_delay(self) -> int:
        """Gradient steps of the critics per step of the actor."""
        return self.policy_delay

    @property
    def target_period(self) -> int:
        """Gradient steps of the critics between updates of the target networks."""
        return self.target_update_freq * self.policy_delay

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        lines = super().caveats()
        if self.target_noise:
            lines.append(f"target_noise={self.target_noise:g}: the learned returns are those of noisy actions")
        return lines


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Build the networks, reset the environments, fill the replay with random actions."""
    return actor_critic.init(env, config, key, outputs=1, extra={}, targets=("critic", "actor"))


def act(env: Environment, config: Config, state: State) -> Policy:
    """Return the training policy: mu(x) with noise."""

    def choose(key: Key[Array, ""], outputs: Float[Array, "1 d"]) -> Float[Array, "d"]:
        mu = greedy(outputs)
        return jnp.clip(mu + config.exploration_noise * jax.random.normal(key, mu.shape), -1, 1)

    return actor_critic.acting(env, state, choose)


def mu(state: State, params: PyTree, obs: Any) -> Float[Array, "B d"]:
    """Return the actions of a batch of observations."""
    return jax.vmap(lambda x: greedy(nnx.merge(state.network.actor, params)(x)))(obs)


def step(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Take a gradient step of the critics and, every `policy_delay` of them, of the actor.

    The actor's loss counts `policy_delay` times in the step that takes it and is 0 in the others,
    so that its mean over many steps is that of the actor's steps.
    """
    key_batch, key_noise, key_tau, key_acting = jax.random.split(key, 4)
    state, batch, drawn = actor_critic.draw(config, state, key_batch)
    y, tau = bootstrap(config, state, batch, (key_noise, key_tau))
    state, (loss, norm), (q, td_error, priority) = actor_critic.learn(
        config, state, "critic", actor_critic.critic_loss, config, state, batch, y, tau
    )

    def improved(state: State) -> tuple[PyTree, PyTree, Array]:
        state, (value, _), _ = actor_critic.learn(config, state, "actor", actor_loss, config, state, batch, key_acting)
        return state.params["actor"], state.optimizer_state["actor"], config.policy_delay * value

    def unchanged(state: State) -> tuple[PyTree, PyTree, Array]:
        return state.params["actor"], state.optimizer_state["actor"], jnp.zeros(())

    is_due = (state.gradient_steps + 1) % config.policy_delay == 0
    actor, moments, of_actor = jax.lax.cond(is_due, improved, unchanged, state)
    state = replace(
        state,
        params=state.params | {"actor": actor},
        optimizer_state=state.optimizer_state | {"actor": moments},
    )
    means = loss, norm, q.mean(), td_error.mean(), jnp.zeros(()), of_actor
    return actor_critic.finish(config, state, drawn, priority), Metrics(*means)


def bootstrap(config: Config, state: State, batch: NStep, keys: Any) -> tuple[Any, Any]:
    """Return y of a batch with a' = mu^-(x') + e', and the fractions at which critics predict."""
    key_noise, key_tau = keys
    a_next, c = mu(state, state.target_params["actor"], batch.next_obs), config.target_noise_clip
    noise = jnp.clip(config.target_noise * jax.random.normal(key_noise, a_next.shape), -c, c)
    tau, tau_prime = heads.of(config).draw(key_tau, batch.reward.shape, "tau", "tau_prime")
    a_next = jnp.clip(a_next + noise, -1, 1)
    return actor_critic.targets(config, state, batch, a_next, 0.0, tau_prime), tau


def actor_loss(
    params: PyTree, config: Config, state: State, batch: NStep, key: Key[Array, ""]
) -> tuple[Float[Array, ""], tuple[()]]:
    """Return the mean of -Q(x, mu(x)), by the first critic.

    Q is the mean at the fractions that a policy acts on, so a risk measure of the head applies.
    """
    head, first = heads.of(config), jax.tree.map(lambda x: x[:1], state.params["critic"])
    tau, _ = head.draw_acting(key)
    action = mu(state, params, batch.obs)
    Z = actor_critic.predictions(state.network.critic, first, config, batch.obs, action, tau)
    return -jax.vmap(jax.vmap(head.mean))(Z).mean(), ()


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Take `num_epochs` gradient steps, each on a batch of its own."""
    return actor_critic.update(step, config, state, key)


SIGNALS = actor_critic.learning(bootstrap, act, actor_critic.Learner)


def algorithm(name: str, config: type) -> Algorithm:
    """Return TD3 with the head of a config class, under a name."""
    return actor_critic.algorithm(name, config, init, act, update, SIGNALS, ("actor_loss",))
