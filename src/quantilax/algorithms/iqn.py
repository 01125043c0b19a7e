"""IQN: implicit quantile networks (Dabney, Ostrovski, Silver & Munos 2018, https://arxiv.org/abs/1806.06923).

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `transition` | m steps, `n_step` or fewer at an episode's end; R is the sum of their discounted rewards |
| m, d | `steps`, `discount` | of the transition; `discount = 1 - terminated`: a time limit still bootstraps |
| psi(x), phi(tau) | `psi`, `embedding` | features of the observation, embedding of a fraction |
| Z_tau(x, a) | `Z` | quantile of the return at fraction tau: `Z = head(psi, tau)`, (N, A) |
| tau, tau', tau'' | `tau`, `tau_prime`, `tau_action` | N, N' and K fractions, drawn as `tau_sampling` and `share_tau` say |
| theta, theta^- | `params`, `target_params` | online and target network; equal at step 0 |
| delta_ij | | `R + gamma^m d Z^-_{tau'_j}(x', a*) - Z_{tau_i}(x, a)` |
| a* | `a_star` | argmax of the mean over K samples of the target network (of the online one if `double`) |

With `munchausen` it is M-IQN (Vieillard, Pietquin & Geist 2020, https://arxiv.org/abs/2007.14430): pi is the softmax of that
mean over the temperature t, R gets `alpha [t ln pi(a|x)]` clipped to [l0, 0], and the target is the soft one,
`sum_a' pi(a'|x') (Z^-_{tau'_j}(x', a') - t ln pi(a'|x'))` in the place of `Z^-_{tau'_j}(x', a*)`.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import (
    averaging,
    exploration,
    fractions,
    losses,
    normalize,
    offpolicy,
    risk,
    rollout,
    signals,
)
from quantilax.heads import implicit_quantile
from quantilax.hyperparameters import Munchausen
from quantilax.networks import ImplicitQuantileHead, in_one_pass, torso
from quantilax.offpolicy import State
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config(offpolicy.SharedConfig, implicit_quantile.ImplicitQuantiles, Munchausen):
    """Hyperparameters of IQN; `PAPER` is what Dabney et al. (2018) used on Atari."""

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
        "num_tau_samples": 64,
        "num_tau_prime_samples": 64,
        "num_quantile_samples": 32,
        "tau_sampling": "uniform",
        "share_tau": False,
        "acting_tau_sampling": "uniform",
        "kappa": 1.0,
        "double": False,
        "risk": "neutral",
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
        "num_cosines": 64,
        "activation": "relu",
        "layer_norm": False,
        "spectral_norm": False,
        "compute_dtype": "float32",
        "dueling": False,
        "noisy": False,
    }

    tau_sampling: str = field(
        "uniform", "how tau, tau' and tau'' are drawn in the loss", choices=tuple(fractions.SAMPLERS)
    )
    share_tau: bool = field(False, "the examples of a batch share one draw of fractions")
    acting_tau_sampling: str = field(
        "uniform", "how the K fractions of the acting policy are drawn", choices=tuple(fractions.SAMPLERS)
    )
    risk: str = field("neutral", "distortion of the acting policy's fractions", choices=tuple(risk.DISTORTIONS))
    risk_eta: float = field(
        1.0, "eta, strength of the distortion: cvar (0, 1], cpw (0, 100]; wang and power: < 0 averse, > 0 seeks risk"
    )

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        risk.check(self.risk, self.risk_eta)
        offpolicy.check_munchausen(self)
        super().check()


class ImplicitQuantileNetwork(nnx.Module):
    """psi and f(psi * phi(tau)); see `quantilax.networks`."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.Z = ImplicitQuantileHead(
            self.psi.features,
            num_actions(env),
            config.head_sizes,
            config.num_cosines,
            config.activation,
            config.layer_norm,
            config.dueling,
            config.noisy,
            rngs=rngs,
        )


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    return offpolicy.init(env, config, key, ImplicitQuantileNetwork)


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    return offpolicy.step(env, config, state, acting_policy, update)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move."""
    return offpolicy.update(config, state, key, batch_loss)


def loss(
    Z: Float[Array, "N A"],
    Z_next: Float[Array, "N_prime A"],
    Z_action: Float[Array, "K A"],
    Z_before: Float[Array, "K A"] | None,
    tau: Float[Array, "N"],
    transition: NStep,
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Algorithm 1 of the paper for one transition: the loss, and (q = mean of Z_tau(x, a), |mean of the targets - q|).

    Args:
        Z: online network at x and tau.
        Z_next: target network at x' and tau'.
        Z_action: the network that selects, at x' and tau''.
        Z_before: target network at x and tau'', for `munchausen`; else None.
        tau: the fractions of Z.
        transition: (x, a, R, x'), over m steps.
        config: gamma, kappa and those of `munchausen`.
    """
    y = targets(Z_next, Z_action, Z_before, transition, config)  # (N',)
    z = Z[:, transition.action]  # (N,)
    q = z.mean()
    td_error = jnp.abs(y.mean() - q)
    return losses.quantile_regression(z, tau, jax.lax.stop_gradient(y), config.kappa), (q, td_error)


def targets(
    Z_next: Float[Array, "N_prime A"],
    Z_action: Float[Array, "K A"],
    Z_before: Float[Array, "K A"] | None,
    transition: NStep,
    config: Config,
) -> Float[Array, "N_prime"]:
    """R + gamma^m d Z^- at a*, the best action by the mean of Z_action; with `munchausen` its soft form."""
    q_next = Z_action.mean(axis=0)
    if Z_before is None:
        return losses.targets(Z_next, q_next, transition, config.gamma)
    q_before = Z_before.mean(axis=0)
    t, alpha, l0 = config.munchausen_temperature, config.munchausen_alpha, config.munchausen_clip
    return losses.munchausen_targets(Z_next, q_next, q_before, transition, config.gamma, t, alpha, l0)


def batch_loss(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    key: Key[Array, ""],
    config: Config,
    selector_params: PyTree | None = None,
) -> offpolicy.Losses:
    """Weighted mean of `loss` over a batch, and (q, TD error, priority) of each example.

    Every example draws its own fractions, or shares them (`share_tau`).
    """
    tau, Z, Z_next, Z_action, Z_before = forward(params, target_params, network, batch, key, config, selector_params)
    value, (q, td_error) = jax.vmap(loss, in_axes=(0, 0, 0, 0, 0, 0, None))(
        Z, Z_next, Z_action, Z_before, tau, batch, config
    )
    return offpolicy.weighted_mean(value, batch), (q, td_error, td_error)


def forward(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    key: Key[Array, ""],
    config: Config,
    selector_params: PyTree | None = None,
) -> Any:
    """Return tau, Z, Z_next, Z_action and Z_before of a batch, as `loss` takes them."""
    online, target, selector = offpolicy.networks(network, params, target_params, selector_params)
    shape = () if config.share_tau else batch.reward.shape
    numbers = config.num_tau_samples, config.num_tau_prime_samples, config.num_quantile_samples
    tau, tau_prime, tau_action = fractions.draw(key, config.tau_sampling, shape, numbers)

    psi_next = jax.vmap(target.psi)(batch.next_obs)  # (B, features)
    if config.double:
        Z_next = target.Z(psi_next, tau_prime)  # (B, N', A)
        Z_action = selector.Z(jax.vmap(selector.psi)(batch.next_obs), tau_action)  # (B, K, A)
    else:
        Z_next, Z_action = in_one_pass(target.Z, psi_next, tau_prime, tau_action)
    Z_before = target.Z(jax.vmap(target.psi)(batch.obs), tau_action) if config.munchausen else None  # (B, K, A)
    Z = online.Z(jax.vmap(online.psi)(batch.obs), tau)  # (B, N, A)
    return jnp.broadcast_to(tau, Z.shape[:-1]), Z, Z_next, Z_action, Z_before


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Z_tau(x, .) of the averaged weights, for one observation; observation and Z in the environment's units."""
    return quantiles_of(state, state.average_params, obs, tau)


def quantiles_of(state: State, params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """The same of any weights."""
    network = nnx.merge(state.network, params)
    return normalize.returns(
        state.normalizer, network.Z(network.psi(normalize.observations(state.normalizer, obs)), tau)
    )


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on the mean over K samples of Z_beta(tau), beta the risk distortion."""

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        key_tau, key_epsilon = jax.random.split(key)
        (tau,) = fractions.draw(key_tau, config.acting_tau_sampling, (), (config.num_quantile_samples,))
        tau = risk.DISTORTIONS[config.risk](tau, config.risk_eta)
        q = quantiles_of(state, state.params, obs, tau).mean(axis=0)  # (A,)
        return exploration.epsilon_greedy(key_epsilon, q, epsilon)

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

    def errors(
        params: PyTree, batch: NStep, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B N N_prime"], Float[Array, "B"]]:
        _, Z, Z_next, Z_action, Z_before = forward(params, state.target_params, state.network, batch, key, config)
        y = jax.vmap(targets, in_axes=(0, 0, 0, 0, None))(Z_next, Z_action, Z_before, batch, config)  # (B, N')
        z = jax.vmap(lambda Z, action: Z[:, action])(Z, batch.action)  # (B, N)
        return y[:, None, :] - z[:, :, None], z.mean(axis=1)

    def learned(params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        network = nnx.merge(state.network, params)
        return network.Z(network.psi(obs), tau)

    def values(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return learned(params, obs, signals.midpoints(signals.NUM_FRACTIONS)).mean(axis=0)

    learner = offpolicy.learner(
        config,
        state,
        acting_policy,
        batch_loss,
        errors,
        values,
        learned,
        config.kappa,
        config.num_quantile_samples,
    )
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("iqn", Config, init, step, policy, quantiles, measure_signals)
