"""QR-DQN: quantile regression (Dabney, Rowland, Bellemare & Munos 2018, https://arxiv.org/abs/1710.10044).

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `transition` | m steps, `n_step` or fewer at an episode's end; R is the sum of their discounted rewards |
| m, d | `steps`, `discount` | of the transition; `discount = 1 - terminated`: a time limit still bootstraps |
| tau_i | `tau` | N fixed fractions, `(2 i - 1) / 2 N` |
| theta_i(x, a) | `Z` | quantile of the return at tau_i, (N, A) |
| y_j | `y` | `R + gamma^m d theta^-_j(x', a*)` |
| a* | | argmax of the mean of theta^-(x', .); of the online network if `double` |

The loss is IQN's at these fractions, `1/N sum_i sum_j rho^kappa_{tau_i}(y_j - theta_i)`. With `non_crossing` the
head's quantiles are monotone in tau, see `networks.monotone`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import averaging, exploration, fractions, hyperparameters, losses, normalize, offpolicy, rollout, signals
from quantilax.networks import ActionHead, monotone, torso
from quantilax.offpolicy import State
from quantilax.pytree import ConfigError, dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config:
    """Hyperparameters of QR-DQN. Defaults are practical; `paper` is what Dabney et al. (2018) used on Atari."""

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
    learning_rate: float = hyperparameters.learning_rate(1e-3, paper=5e-5)
    learning_rate_end: float = hyperparameters.learning_rate_end(1.0, paper=1.0)
    learning_rate_fraction: float = hyperparameters.learning_rate_fraction(1.0, paper=1.0)
    weight_averaging: float = hyperparameters.weight_averaging(0.0, paper=0.0)
    adam_eps: float = hyperparameters.adam_eps(3.125e-4, paper=3.125e-4)
    max_grad_norm: float = hyperparameters.max_grad_norm(float("inf"), paper=float("inf"))

    # Target network: every `target_update_freq` gradient steps, theta^- <- polyak theta^- + (1 - polyak) theta
    target_update_freq: int = hyperparameters.target_update_freq(32, paper=10_000)
    polyak: float = hyperparameters.polyak(0.0, paper=0.0)

    # The distribution
    num_quantiles: int = field(32, "N, quantiles of each action", paper=200, ge=1)
    kappa: float = hyperparameters.kappa(1.0, paper=1.0)
    double: bool = hyperparameters.double(False, paper=False)
    non_crossing: bool = field(False, "a head whose quantiles never cross (Zhou et al. 2020)", paper=False)

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

    def derived(self) -> dict[str, Any]:
        """Figures that follow from the config, see docs/guides/derived.md."""
        return offpolicy.derived(self)

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        if self.non_crossing and self.dueling:
            raise ConfigError(
                "dueling: quantiles of a sum of two streams may cross, which non_crossing rules out; set one to false"
            )
        offpolicy.check(self)

    def advice(self) -> list[str]:
        """Lines on settings known to mislead, each with the remedy."""
        return offpolicy.advice(self)


class QuantileNetwork(nnx.Module):
    """theta(x, .) = f(psi(x))."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = ActionHead(
            self.psi.features,
            num_actions(env),
            config.num_quantiles + 2 * config.non_crossing,
            config.head_sizes,
            config.activation,
            config.layer_norm,
            config.dueling,
            config.noisy,
            rngs=rngs,
        )
        self.non_crossing = config.non_crossing

    def __call__(self, obs: Observation) -> Float[Array, "N A"]:
        """Quantiles of one observation."""
        return monotone(self.head(self.psi(obs))) if self.non_crossing else self.head(self.psi(obs))


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    return offpolicy.init(env, config, key, QuantileNetwork)


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    return offpolicy.step(env, config, state, acting_policy, update)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move."""
    return offpolicy.update(config, state, key, batch_loss)


def loss(
    Z: Float[Array, "N A"],
    Z_next: Float[Array, "N A"],
    q_next: Float[Array, "A"],
    transition: NStep,
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Quantile regression of one transition, and (q = mean of theta(x, a), |mean of the targets - q|).

    Args:
        Z: online network at x.
        Z_next: target network at x'.
        q_next: means of the network that selects, at x'.
        transition: (x, a, R, x'), over m steps.
        config: gamma and kappa.
    """
    y = jax.lax.stop_gradient(losses.targets(Z_next, q_next, transition, config.gamma))  # (N,)
    z = Z[:, transition.action]  # (N,)
    q = z.mean()
    return losses.quantile_regression(z, fractions.midpoints(z), y, config.kappa), (q, jnp.abs(y.mean() - q))


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
    Z, Z_next, q_next = forward(params, target_params, network, batch, config, selector_params)
    value, (q, td_error) = jax.vmap(loss, in_axes=(0, 0, 0, 0, None))(Z, Z_next, q_next, batch, config)
    return offpolicy.weighted_mean(value, batch), (q, td_error, td_error)


def forward(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    config: Config,
    selector_params: PyTree | None = None,
) -> Any:
    """Return Z, Z_next and q_next of a batch, as `loss` takes them."""
    online, target, selector = map(jax.vmap, offpolicy.networks(network, params, target_params, selector_params))
    Z_next = target(batch.next_obs)  # (B, N, A)
    q_next = (selector(batch.next_obs) if config.double else Z_next).mean(axis=1)  # (B, A)
    return online(batch.obs), Z_next, q_next


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Quantiles at any fractions, for one observation, in the environment's units: the step function through the theta_i."""
    network = nnx.merge(state.network, state.average_params)
    Z = network(normalize.observations(state.normalizer, obs))
    return normalize.returns(state.normalizer, fractions.of_quantiles(Z, tau))


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on the mean of the quantiles."""
    network = nnx.merge(state.network, state.params)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        q = network(normalize.observations(state.normalizer, obs)).mean(axis=0)  # (A,)
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

    def errors(params: PyTree, batch: NStep, key: Key[Array, ""]) -> tuple[Float[Array, "B N N"], Float[Array, "B"]]:
        Z, Z_next, q_next = forward(params, state.target_params, state.network, batch, config)
        y = jax.vmap(losses.targets, in_axes=(0, 0, 0, None))(Z_next, q_next, batch, config.gamma)  # (B, N)
        z = jax.vmap(lambda Z, action: Z[:, action])(Z, batch.action)  # (B, N)
        return y[:, None, :] - z[:, :, None], z.mean(axis=1)

    def quantiles_of(params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        return fractions.of_quantiles(nnx.merge(state.network, params)(obs), tau)

    def values(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return jnp.asarray(nnx.merge(state.network, params)(obs)).mean(axis=0)

    learner = offpolicy.learner(config, state, acting_policy, batch_loss, errors, values, quantiles_of, config.kappa)
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("qrdqn", Config, init, step, policy, quantiles, measure_signals)
