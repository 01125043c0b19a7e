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

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import averaging, exploration, fractions, losses, normalize, offpolicy, rollout, signals
from quantilax.heads import quantile
from quantilax.networks import ActionHead, monotone, torso
from quantilax.offpolicy import State
from quantilax.pytree import ConfigError, dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config(offpolicy.SharedConfig, quantile.Quantiles):
    """Hyperparameters of QR-DQN; `PAPER` is what Dabney et al. (2018) used on Atari."""

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
        "learning_rate": 5e-5,
        "learning_rate_end": 1.0,
        "learning_rate_fraction": 1.0,
        "weight_averaging": 0.0,
        "adam_eps": 3.125e-4,
        "max_grad_norm": float("inf"),
        "target_update_freq": 10_000,
        "polyak": 0.0,
        "num_quantiles": 200,
        "kappa": 1.0,
        "double": False,
        "non_crossing": False,
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

    non_crossing: bool = field(False, "a head whose quantiles never cross (Zhou et al. 2020)")

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        if self.non_crossing and self.dueling:
            raise ConfigError(
                "dueling: quantiles of a sum of two streams may cross, which non_crossing rules out; set one to false"
            )
        super().check()


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
