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

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import averaging, exploration, fractions, hyperparameters, losses, normalize, offpolicy, rollout, signals
from quantilax.networks import ActionHead, torso
from quantilax.offpolicy import State
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config:
    """Hyperparameters of C51. Defaults are practical; `paper` is what Bellemare et al. (2017) used on Atari."""

    # The loop
    total_timesteps: int = hyperparameters.total_timesteps(100_000, paper=50_000_000)
    eval_freq: int = hyperparameters.eval_freq(5_000, paper=250_000)
    eval_episodes: int = hyperparameters.eval_episodes(128)
    eval_epsilon: float = hyperparameters.eval_epsilon(0.0, paper=0.001)
    metrics: bool = hyperparameters.metrics(True)
    signals: bool = hyperparameters.signals(False)
    num_envs: int = hyperparameters.num_envs(10, paper=1)
    num_epochs: int = hyperparameters.num_epochs(2, paper=0.25)

    # Replay
    buffer_size: int = hyperparameters.buffer_size(100_000, paper=1_000_000)
    fill_buffer: int = hyperparameters.fill_buffer(1_000, paper=50_000)
    batch_size: int = hyperparameters.batch_size(64, paper=32)
    n_step: int = hyperparameters.n_step(1, paper=1)
    prioritized: bool = hyperparameters.prioritized(False, paper=False)
    priority_exponent: float = hyperparameters.priority_exponent(0.5)
    importance_exponent: float = hyperparameters.importance_exponent(0.4)

    # Optimisation
    learning_rate: float = hyperparameters.learning_rate(1e-3, paper=2.5e-4)
    learning_rate_end: float = hyperparameters.learning_rate_end(1.0, paper=1.0)
    learning_rate_fraction: float = hyperparameters.learning_rate_fraction(1.0, paper=1.0)
    weight_averaging: float = hyperparameters.weight_averaging(0.0, paper=0.0)
    adam_eps: float = hyperparameters.adam_eps(3.125e-4, paper=3.125e-4)
    max_grad_norm: float = hyperparameters.max_grad_norm(float("inf"), paper=float("inf"))

    # Target network: every `target_update_freq` gradient steps, theta^- <- polyak theta^- + (1 - polyak) theta
    target_update_freq: int = hyperparameters.target_update_freq(32, paper=10_000)
    polyak: float = hyperparameters.polyak(0.0, paper=0.0)

    # The distribution
    num_atoms: int = field(51, "M, atoms of the support", paper=51, ge=2)
    v_min: float = field(-10.0, "least return that the support has, in the units that are learned", paper=-10.0)
    v_max: float = field(10.0, "greatest return that the support has, in the units that are learned", paper=10.0)
    double: bool = hyperparameters.double(False, paper=False)

    # Exploration
    eps_start: float = hyperparameters.eps_start(1.0, paper=1.0)
    eps_end: float = hyperparameters.eps_end(0.04, paper=0.01)
    exploration_fraction: float = hyperparameters.exploration_fraction(0.1, paper=0.02)
    exploration_repeats: int = hyperparameters.exploration_repeats(1, paper=1)

    # The task
    gamma: float = hyperparameters.gamma(0.99, paper=0.99)
    bootstrap_truncated: bool = hyperparameters.bootstrap_truncated(True)
    reward_scale: float = hyperparameters.reward_scale(1.0, paper=1.0)
    normalize_observations: bool = hyperparameters.normalize_observations(False, paper=False)
    normalize_rewards: bool = hyperparameters.normalize_rewards(False, paper=False)

    # The network
    torso: str = hyperparameters.torso("mlp", paper="nature")
    torso_sizes: tuple[int, ...] = hyperparameters.torso_sizes((64, 64), paper=())
    head_sizes: tuple[int, ...] = hyperparameters.head_sizes((64,), paper=(512,))
    activation: str = hyperparameters.activation("relu", paper="relu")
    layer_norm: bool = hyperparameters.layer_norm(False, paper=False)
    spectral_norm: bool = hyperparameters.spectral_norm(False, paper=False)
    compute_dtype: str = hyperparameters.compute_dtype("float32", paper="float32")
    dueling: bool = hyperparameters.dueling(False, paper=False)
    noisy: bool = hyperparameters.noisy(False, paper=False)

    @property
    def warmup_steps(self) -> int:
        """Environment steps of `init`."""
        return offpolicy.warmup_steps(self)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of `step`."""
        return self.num_envs

    @property
    def support(self) -> tuple[float, float]:
        """Bounds of what can be learned: `v_min` and `v_max`."""
        return self.v_min, self.v_max

    def derived(self) -> dict[str, Any]:
        """Figures that follow from the config, see docs/guides/derived.md."""
        return offpolicy.derived(self)

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        hyperparameters.check_support(self.v_min, self.v_max, self.num_atoms)
        offpolicy.check(self)

    def advice(self) -> list[str]:
        """Lines on settings known to mislead, each with the remedy."""
        return offpolicy.advice(self)


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
