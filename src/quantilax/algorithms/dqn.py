"""DQN: deep Q-networks (Mnih et al. 2015, https://doi.org/10.1038/nature14236), with their usual refinements as switches.

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `transition` | m steps, `n_step` or fewer at an episode's end; R is the sum of their discounted rewards |
| m, d | `steps`, `discount` | of the transition; `discount = 1 - terminated`: a time limit still bootstraps |
| Q(x, a), Q^- | `Q`, `Q_next` | expected return by the online and the target network, (A,) |
| y | `target` | `R + gamma^m d Q^-(x', a*)` |
| a* | | argmax of Q^-(x', .); of the online network if `double` (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461) |

The loss is the Huber loss of y - Q(x, a). With `munchausen` it is M-DQN (Vieillard, Pietquin & Geist 2020,
https://arxiv.org/abs/2007.14430), see `losses.munchausen_targets`.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import averaging, exploration, losses, normalize, offpolicy, rollout, signals
from quantilax.hyperparameters import LEAST, Munchausen
from quantilax.networks import ActionHead, torso
from quantilax.offpolicy import State
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config(offpolicy.SharedConfig, Munchausen):
    """Hyperparameters of DQN; `PAPER` is what Mnih et al. (2015) used on Atari."""

    PAPER: ClassVar[dict[str, Any]] = {
        "total_timesteps": 50_000_000,
        "eval_freq": 250_000,
        "eval_epsilon": 0.05,
        "num_envs": 1,
        "num_epochs": 0.25,
        "buffer_size": 1_000_000,
        "fill_buffer": 50_000,
        "batch_size": 32,
        "n_step": 1,
        "prioritized": False,
        "learning_rate": 2.5e-4,
        "learning_rate_end": 1.0,
        "learning_rate_fraction": 1.0,
        "weight_averaging": 0.0,
        "max_grad_norm": float("inf"),
        "target_update_freq": 10_000,
        "polyak": 0.0,
        "kappa": 1.0,
        "double": False,
        "eps_start": 1.0,
        "eps_end": 0.1,
        "exploration_fraction": 0.02,
        "exploration_repeats": 1,
        "gamma": 0.99,
        "reward_scale": 1.0,
        "normalize_observations": False,
        "normalize_rewards": False,
        "torso": "nature",
        "torso_sizes": (),
        "head_sizes": (512,),
        "activation": "relu",
        "layer_norm": False,
        "spectral_norm": False,
        "compute_dtype": "float32",
        "dueling": False,
        "noisy": False,
    }

    kappa: float = field(
        1.0,
        "where the Huber loss becomes linear, in units of return; .inf: squared error",
        ge=LEAST,
        finite=False,
    )

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        offpolicy.check_munchausen(self)
        super().check()


class QNetwork(nnx.Module):
    """Q(x, .) = f(psi(x))."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = ActionHead(
            self.psi.features,
            num_actions(env),
            1,
            config.head_sizes,
            config.activation,
            config.layer_norm,
            config.dueling,
            config.noisy,
            rngs=rngs,
        )

    def __call__(self, obs: Observation) -> Float[Array, "A"]:
        """Values of one observation."""
        return self.head(self.psi(obs))[0]


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    return offpolicy.init(env, config, key, QNetwork)


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    return offpolicy.step(env, config, state, acting_policy, update)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move."""
    return offpolicy.update(config, state, key, batch_loss)


def loss(
    Q: Float[Array, "A"],
    Q_next: Float[Array, "A"],
    q_next: Float[Array, "A"],
    q_before: Float[Array, "A"] | None,
    transition: NStep,
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Huber loss of one transition, and (Q(x, a), |y - Q(x, a)|).

    Args:
        Q: online network at x.
        Q_next: target network at x'.
        q_next: the network that selects, at x'.
        q_before: target network at x, for `munchausen`; else None.
        transition: (x, a, R, x'), over m steps.
        config: gamma, kappa and those of `munchausen`.
    """
    y = target(Q_next, q_next, q_before, transition, config)
    q = Q[transition.action]
    delta = jax.lax.stop_gradient(y) - q
    return losses.huber(delta, config.kappa), (q, jnp.abs(delta))


def target(
    Q_next: Float[Array, "A"],
    q_next: Float[Array, "A"],
    q_before: Float[Array, "A"] | None,
    transition: NStep,
    config: Config,
) -> Float[Array, ""]:
    """R + gamma^m d Q^-(x', a*), a* the best action by q_next; with `munchausen` its soft form."""
    if q_before is None:
        return losses.targets(Q_next[None], q_next, transition, config.gamma)[0]
    t, alpha, l0 = config.munchausen_temperature, config.munchausen_alpha, config.munchausen_clip
    return losses.munchausen_targets(Q_next[None], q_next, q_before, transition, config.gamma, t, alpha, l0)[0]


def batch_loss(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    key: Key[Array, ""],
    config: Config,
    selector_params: PyTree | None = None,
) -> offpolicy.Losses:
    """Weighted mean of `loss` over a batch, and (q, TD error, priority) of each example; nothing is drawn."""
    Q, Q_next, q_next, q_before = forward(params, target_params, network, batch, config, selector_params)
    value, (q, td_error) = jax.vmap(loss, in_axes=(0, 0, 0, 0, 0, None))(Q, Q_next, q_next, q_before, batch, config)
    return offpolicy.weighted_mean(value, batch), (q, td_error, td_error)


def forward(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    config: Config,
    selector_params: PyTree | None = None,
) -> Any:
    """Return Q, Q_next, q_next and q_before of a batch, as `loss` takes them."""
    online, target, selector = map(jax.vmap, offpolicy.networks(network, params, target_params, selector_params))
    Q_next = target(batch.next_obs)  # (B, A)
    q_next = selector(batch.next_obs) if config.double else Q_next
    q_before = target(batch.obs) if config.munchausen else None
    return online(batch.obs), Q_next, q_next, q_before


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on Q."""
    Q = nnx.merge(state.network, state.params)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        return exploration.epsilon_greedy(key, Q(normalize.observations(state.normalizer, obs)), epsilon)

    return act


def policy(env: Environment, config: Config, state: State) -> Policy:
    """Return the policy that evaluation runs: averaged weights, greedy but for `eval_epsilon`, noisy layers without noise."""
    return acting_policy(config, averaging.averaged(state), config.eval_epsilon)


def measure_signals(
    env: Environment,
    config: Config,
    state: State,
    episodes: rollout.Episodes,
    reference_key: Key[Array, ""],
    key: Key[Array, ""],
) -> signals.Signals:
    """Hand over what `quantilax.signals` measures with."""

    def errors(params: PyTree, batch: NStep, key: Key[Array, ""]) -> tuple[Float[Array, "B 1 1"], Float[Array, "B"]]:
        Q, Q_next, q_next, q_before = forward(params, state.target_params, state.network, batch, config)
        y = jax.vmap(target, in_axes=(0, 0, 0, 0, None))(Q_next, q_next, q_before, batch, config)
        q = jax.vmap(lambda Q, action: Q[action])(Q, batch.action)
        return (y - q)[:, None, None], q

    def values(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return jnp.asarray(nnx.merge(state.network, params)(obs))

    learner = offpolicy.learner(config, state, acting_policy, batch_loss, errors, values, quantiles=None)
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("dqn", Config, init, step, policy, signals=measure_signals)
