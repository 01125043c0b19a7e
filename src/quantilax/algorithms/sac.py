"""SAC: soft actor-critic, with any head: SAC, TQC, DSAC, ...

| symbol | here | meaning |
|---|---|---|
| mu, sigma | outputs of the actor | mean and standard deviation of u |
| u, a | `sample` | u ~ N(mu, sigma^2), a = tanh(u), the action scaled to [-1, 1] |
| ln pi(a given x) | `log_pi` | `ln N(u; mu, sigma^2) - sum_i ln(1 - a_i^2)` |
| alpha | `exp(log_alpha)` | temperature: the weight of the entropy |
| H | `target_entropy` | the entropy that the temperature steers to, per component of the action |

The critics learn `y = R + gamma^m d (Z(x', a') - alpha ln pi(a'|x'))` with a' ~ pi(.|x'), each by
its head's loss. The actor lowers `alpha ln pi(a|x) - Q(x, a)` with a ~ pi(.|x), and the temperature
lowers `-ln alpha (ln pi(a|x) + H dim(a))`. d is 1 - terminated.

Source: Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905. TQC: Kuznetsov et al. (2020),
https://arxiv.org/abs/2005.04269. DSAC: Ma et al. (2020), https://arxiv.org/abs/2004.14547.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from quantilax import heads
from quantilax.algorithms import actor_critic
from quantilax.algorithms.actor_critic import State
from quantilax.hyperparameters import LEAST, MOST
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Policy

METRICS = ("actor_loss", "entropy", "temperature")
"""Metrics of the loop, besides those of every algorithm."""
LOG_SIGMA = (-20.0, 2.0)
"""Bounds of ln sigma, as in the authors' code."""


@dataclass
class Config(actor_critic.Config):
    """Hyperparameters of SAC. An algorithm's own config adds a `head` and its groups."""

    learn_temperature: bool = field(True, "learn the temperature alpha; false: it stays at `temperature`")
    temperature: float = field(1.0, "alpha, weight of the entropy; the first one if it is learned", ge=LEAST)
    target_entropy: float = field(
        -1.0, "entropy in nats that the temperature steers to, per component of the scaled action", ge=-MOST, le=MOST
    )

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        lines = super().advice()
        if self.n_step > 1:
            lines.append(
                f"n_step={self.n_step}: the entropy of the steps in between does not enter SAC's targets, so they are not the"
                " soft return; set n_step to 1"
            )
        return lines

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        told = (
            "temperature: the learned returns contain the entropy of later actions, which are drawn from pi; evaluation"
            " takes tanh(mu); neither is converted"
        )
        return [*super().caveats(), told]


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Build the networks, reset the environments, fill the replay with random actions."""
    extra = {"log_alpha": jnp.log(jnp.asarray(config.temperature, jnp.float32))}
    return actor_critic.init(env, config, key, outputs=2, extra=extra, targets=("critic",))


def sample(key: Key[Array, ""], outputs: Float[Array, "2 d"]) -> tuple[Float[Array, "d"], Float[Array, ""]]:
    """Draw a = tanh(u): return (a, ln pi(a|x)), given the actor's outputs for x.

    `ln(1 - tanh(u)^2)` is computed as `2 (ln 2 - u - softplus(-2 u))`, which stays exact where
    tanh(u) rounds to 1.
    """
    mu, log_sigma = outputs[0], jnp.clip(outputs[1], *LOG_SIGMA)
    e = jax.random.normal(key, mu.shape)
    u = mu + jnp.exp(log_sigma) * e
    log_normal = -0.5 * (e**2 + jnp.log(2 * jnp.pi)) - log_sigma
    log_slope = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), (log_normal - log_slope).sum()


def act(env: Environment, config: Config, state: State) -> Policy:
    """Return the training policy, which draws from pi."""
    return actor_critic.acting(env, state, lambda key, outputs: sample(key, outputs)[0])


def actions(
    state: State, params: PyTree, obs: Any, key: Key[Array, ""]
) -> tuple[Float[Array, "B d"], Float[Array, "B"]]:
    """Draw an action for each observation of a batch: return (a, ln pi(a|x))."""
    outputs = jax.vmap(nnx.merge(state.network.actor, params))(obs)
    return jax.vmap(sample)(jax.random.split(key, outputs.shape[0]), outputs)


def step(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Take a gradient step of the critics, then of the actor, then of the temperature."""
    key_batch, key_next, key_tau, key_actor, key_acting = jax.random.split(key, 5)
    state, batch, drawn = actor_critic.draw(config, state, key_batch)
    alpha = jnp.exp(state.params["log_alpha"])
    y, tau = bootstrap(config, state, batch, (key_next, key_tau))
    state, (loss, norm), (q, td_error, priority) = actor_critic.learn(
        config, state, "critic", actor_critic.critic_loss, config, state, batch, y, tau
    )
    keys = key_actor, key_acting
    state, (of_actor, _), log_pi = actor_critic.learn(
        config, state, "actor", actor_loss, config, state, batch, alpha, keys
    )
    if config.learn_temperature:
        state, *_ = actor_critic.learn(config, state, "log_alpha", temperature_loss, config, state, log_pi)
    means = loss, norm, q.mean(), td_error.mean(), jnp.zeros(()), of_actor, -log_pi.mean(), alpha
    return actor_critic.finish(config, state, drawn, priority), Metrics(*means)


def bootstrap(config: Config, state: State, batch: NStep, keys: Any) -> tuple[Any, Any]:
    """Return y of a batch with a' ~ pi(.|x'), and the fractions at which critics predict."""
    key_next, key_tau = keys
    a_next, log_pi_next = actions(state, state.params["actor"], batch.next_obs, key_next)
    tau, tau_prime = heads.of(config).draw(key_tau, batch.reward.shape, "tau", "tau_prime")
    bonus = -jnp.exp(state.params["log_alpha"]) * log_pi_next
    return actor_critic.targets(config, state, batch, a_next, bonus, tau_prime), tau


def actor_loss(
    params: PyTree, config: Config, state: State, batch: NStep, alpha: Float[Array, ""], keys: Any
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Return the mean of `alpha ln pi(a|x) - Q(x, a)` with a ~ pi(.|x), and ln pi(a|x).

    Q is the mean at the fractions that a policy acts on, so a risk measure of the head applies.
    """
    key, key_tau = keys
    action, log_pi = actions(state, params, batch.obs, key)
    tau, _ = heads.of(config).draw_acting(key_tau)
    Z = actor_critic.predictions(state.network.critic, state.params["critic"], config, batch.obs, action, tau)
    Q = jax.vmap(partial(actor_critic.value, config), in_axes=1)(Z)
    return (alpha * log_pi - Q).mean(), log_pi


def temperature_loss(
    log_alpha: Float[Array, ""], config: Config, state: State, log_pi: Float[Array, "B"]
) -> tuple[Float[Array, ""], tuple[()]]:
    """Return the mean of `-ln alpha (ln pi(a|x) + H dim(a))`."""
    H, dim = config.target_entropy, state.bounds.low.size
    return -(log_alpha * (log_pi + H * dim)).mean(), ()


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Take `num_epochs` gradient steps, each on a batch of its own."""
    return actor_critic.update(step, config, state, key)


class Learner(actor_critic.Learner):
    """What signals read of SAC, whose targets hold the entropy of the next action."""

    def next_action(self, params: PyTree, obs: Any) -> tuple[Float[Array, "B d"], Float[Array, "B"]]:
        """Return a' ~ pi(.|x'), and -alpha ln pi(a'|x')."""
        action, log_pi = actions(self.state, params["actor"], obs, jax.random.key(0))
        return action, -jnp.exp(params["log_alpha"]) * log_pi


SIGNALS = actor_critic.learning(bootstrap, act, Learner)


def algorithm(name: str, config: type) -> Algorithm:
    """Return SAC with the head of a config class, under a name."""
    return actor_critic.algorithm(name, config, init, act, update, SIGNALS, METRICS)
