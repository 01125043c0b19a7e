"""C51: categorical distributions (Bellemare, Dabney & Munos 2017, https://arxiv.org/abs/1707.06887).

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `transition` | m steps, `n_step` or fewer at an episode's end; R is the sum of their discounted rewards |
| m, d | `steps`, `discount` | of the transition; `discount = 1 - terminated`: a time limit still bootstraps |
| z_1, ..., z_M | `support` | M atoms, `num_atoms`, from `v_min` to `v_max` |
| p(x, a) | `logits` | probabilities of the atoms, a softmax of the logits, (M, A) |
| Phi | `losses.categorical_projection` | onto the support |
| a* | | argmax of sum_i z_i p^-_i(x', .); of the online network if `double` |

The target is `Phi(R + gamma^m d z with probabilities p^-(x', a*))`, the loss its cross-entropy with p(x, a).
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import averaging, exploration, fractions, losses, normalize, offpolicy, rollout, signals
from quantilax.heads import categorical
from quantilax.networks import ActionHead, torso
from quantilax.offpolicy import State
from quantilax.pytree import dataclass
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config(offpolicy.SharedConfig, categorical.Categorical):
    """Hyperparameters of C51; `PAPER` is what Bellemare et al. (2017) used on Atari."""

    PAPER: ClassVar[dict[str, Any]] = {
        "total_timesteps": 50_000_000,
        "eval_freq": 250_000,
        "eval_epsilon": 1e-3,
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
        "adam_eps": 3.125e-4,
        "max_grad_norm": float("inf"),
        "target_update_freq": 10_000,
        "polyak": 0.0,
        "num_atoms": 51,
        "v_min": -10.0,
        "v_max": 10.0,
        "double": False,
        "eps_start": 1.0,
        "eps_end": 0.01,
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

    @property
    def support(self) -> tuple[float, float]:
        """Bounds of what can be learned: `v_min` and `v_max`."""
        return self.v_min, self.v_max

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        self.check_support()
        super().check()


class CategoricalNetwork(nnx.Module):
    """Logits of p(x, .) = f(psi(x))."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = ActionHead(
            self.psi.features,
            num_actions(env),
            config.num_atoms,
            config.head_sizes,
            config.activation,
            config.layer_norm,
            config.dueling,
            config.noisy,
            rngs=rngs,
        )

    def __call__(self, obs: Observation) -> Float[Array, "M A"]:
        """Logits of one observation."""
        return self.head(self.psi(obs))


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    return offpolicy.init(env, config, key, CategoricalNetwork)


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    return offpolicy.step(env, config, state, acting_policy, update)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move."""
    return offpolicy.update(config, state, key, batch_loss)


def support_of(config: Config) -> Float[Array, "M"]:
    """z_1, ..., z_M."""
    return losses.support(config.v_min, config.v_max, config.num_atoms)


def means(logits: Float[Array, "*batch M A"], config: Config) -> Float[Array, "*batch A"]:
    """Expected returns."""
    return jnp.einsum("m,...ma->...a", support_of(config), jax.nn.softmax(logits, axis=-2))


def loss(
    logits: Float[Array, "M A"],
    logits_next: Float[Array, "M A"],
    q_next: Float[Array, "A"],
    transition: NStep,
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]]:
    """Cross-entropy of one transition, and (q = mean of p(x, a), |mean of the target - q|, KL divergence: the priority).

    Args:
        logits: online network at x.
        logits_next: target network at x'.
        q_next: means of the network that selects, at x'.
        transition: (x, a, R, x'), over m steps.
        config: gamma and the support.
    """
    support = support_of(config)
    p = jax.lax.stop_gradient(target(logits_next, q_next, transition, config))
    log_p = jax.nn.log_softmax(logits[:, transition.action])
    q = support @ jnp.exp(log_p)
    priority = losses.kl_divergence(p, log_p)  # as Hessel et al. (2018) have it
    return -(p @ log_p), (q, jnp.abs(support @ p - q), priority)


def target(
    logits_next: Float[Array, "M A"], q_next: Float[Array, "A"], transition: NStep, config: Config
) -> Float[Array, "M"]:
    """Probabilities of the projected target."""
    support = support_of(config)
    p_next = jax.nn.softmax(logits_next[:, jnp.argmax(q_next)])
    atoms = transition.reward + config.gamma**transition.steps * transition.discount * support
    return losses.categorical_projection(atoms, p_next, support)


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
    logits, logits_next, q_next = forward(params, target_params, network, batch, config, selector_params)
    value, (q, td_error, priority) = jax.vmap(loss, in_axes=(0, 0, 0, 0, None))(
        logits, logits_next, q_next, batch, config
    )
    return offpolicy.weighted_mean(value, batch), (q, td_error, priority)


def forward(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    config: Config,
    selector_params: PyTree | None = None,
) -> Any:
    """Return logits, logits_next and q_next of a batch, as `loss` takes them."""
    online, target, selector = map(jax.vmap, offpolicy.networks(network, params, target_params, selector_params))
    logits_next = target(batch.next_obs)  # (B, M, A)
    q_next = means(selector(batch.next_obs) if config.double else logits_next, config)  # (B, A)
    return online(batch.obs), logits_next, q_next


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Quantiles at any fractions, for one observation, in the environment's units: the least atom whose P(Z <= z) is tau."""
    network = nnx.merge(state.network, state.average_params)
    logits = network(normalize.observations(state.normalizer, obs))
    return normalize.returns(state.normalizer, at(logits, tau, config))


def at(logits: Float[Array, "M A"], tau: Float[Array, "N"], config: Config) -> Float[Array, "N A"]:
    """Quantiles of the distributions that the logits stand for."""
    return fractions.of_atoms(jax.nn.softmax(logits, axis=0), support_of(config), tau)


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on the means."""
    network = nnx.merge(state.network, state.params)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        q = means(network(normalize.observations(state.normalizer, obs)), config)
        return exploration.epsilon_greedy(key, q, epsilon)

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
        logits, logits_next, q_next = forward(params, state.target_params, state.network, batch, config)
        p = jax.vmap(target, in_axes=(0, 0, 0, None))(logits_next, q_next, batch, config)  # (B, M)
        q = jax.vmap(lambda q, action: q[action])(means(logits, config), batch.action)
        return (p @ support_of(config) - q)[:, None, None], q

    def quantiles_of(params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        return at(nnx.merge(state.network, params)(obs), tau, config)

    def values(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return means(nnx.merge(state.network, params)(obs), config)

    learner = offpolicy.learner(config, state, acting_policy, batch_loss, errors, values, quantiles_of)
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("c51", Config, init, step, policy, quantiles, measure_signals)
