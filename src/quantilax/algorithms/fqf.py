"""FQF: the fully parameterized quantile function (Yang et al. 2019, https://arxiv.org/abs/1911.02140).

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `transition` | m steps, `n_step` or fewer at an episode's end; R is the sum of their discounted rewards |
| m, d | `steps`, `discount` | of the transition; `discount = 1 - terminated`: a time limit still bootstraps |
| psi(x), Z_tau(x, a) | `psi`, `Z` | features, and the quantile of the return at fraction tau, as in IQN |
| p_i | `log_p` | N shares of [0, 1] that the proposal gives for psi(x): softmax of a linear layer |
| tau_i | `tau` | `p_0 + ... + p_{i-1}`, N + 1 fractions from 0 to 1 |
| tau^_i | `tau_hat` | `(tau_i + tau_{i+1}) / 2`, N fractions |
| q(x, a) | `q` | `sum_i (tau_{i+1} - tau_i) Z_{tau^_i}(x, a)` |
| theta, theta^- | `params`, `target_params` | online and target network, each with its proposal; equal at step 0 |
| y_j | `y` | `R + gamma^m d Z^-_{tau^'_j}(x', a*)`, tau^' of the target's proposal for x' |
| a* | | argmax of q^-(x', .); of the online network's if `double` |

IQN but for this: fractions are proposed instead of drawn, q is the sum weighted by them, and the proposal has a loss and an
optimiser of its own. Neither loss has a gradient in what the other trains.
"""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from quantilax import (
    averaging,
    exploration,
    fractions,
    losses,
    normalize,
    offpolicy,
    packing,
    rollout,
    signals,
)
from quantilax.hyperparameters import Huber
from quantilax.networks import FractionProposal, ImplicitQuantileHead, torso
from quantilax.offpolicy import State
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions

RMS_DECAY, RMS_EPS = 0.95, 1e-5
"""Of the proposal's RMSProp, as published; epsilon is added to v."""


@dataclass
class Config(offpolicy.SharedConfig, Huber):
    """Hyperparameters of FQF; `PAPER` is what Yang et al. (2019) used on Atari."""

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
        "fraction_learning_rate": 2.5e-9,
        "target_update_freq": 10_000,
        "polyak": 0.0,
        "num_fractions": 32,
        "fraction_entropy": 1e-3,
        "weigh_targets": False,
        "kappa": 1.0,
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
        "num_cosines": 64,
        "activation": "relu",
        "layer_norm": False,
        "spectral_norm": False,
        "compute_dtype": "float32",
        "dueling": False,
        "noisy": False,
    }

    fraction_learning_rate: float = field(1e-5, "step size of the proposal's RMSProp, constant", ge=0)
    num_fractions: int = field(32, "N, fractions proposed for an observation", ge=2)
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", ge=1)
    fraction_entropy: float = field(
        0.001, "lambda, weight of the entropy of the shares in the proposal's loss, in units of return", ge=0
    )
    weigh_targets: bool = field(True, "a target counts by the width of its fractions; false: all alike")


class FullyParameterizedNetwork(nnx.Module):
    """psi, f(psi * phi(tau)) and the proposal; see `quantilax.networks`."""

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
        self.proposal = FractionProposal(self.psi.features, config.num_fractions, rngs=rngs)

    def __call__(
        self, psi: Float[Array, "*batch features"]
    ) -> tuple[Float[Array, "*batch N"], Float[Array, "*batch N+1"], Float[Array, "*batch N A"]]:
        """ln p, tau, and Z at tau^: no gradient of Z reaches the proposal, and none of the proposal psi."""
        log_p = self.proposal(jax.lax.stop_gradient(psi))
        tau = fractions.proposed(log_p)
        return log_p, tau, self.Z(psi, jax.lax.stop_gradient(fractions.centres(tau)))


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam as elsewhere for psi and Z; RMSProp for the proposal, whose gradient is not clipped."""
    rmsprop = optax.rmsprop(config.fraction_learning_rate, RMS_DECAY, RMS_EPS)
    return optax.partition({"Z": offpolicy.adam(config), "proposal": packing.packed(rmsprop)}, trained_by)


def trained_by(params: PyTree) -> PyTree:
    """For each array of the network, whose loss and optimiser it has: "Z" or "proposal"."""
    return jax.tree.map_with_path(lambda path, _: "proposal" if path[0].key == "proposal" else "Z", params)


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    return offpolicy.init(env, config, key, FullyParameterizedNetwork, optimizer)


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    return offpolicy.step(env, config, state, acting_policy, update)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move."""
    return offpolicy.update(config, state, key, batch_loss, optimizer)


def loss(
    log_p: Float[Array, "N"],
    tau: Float[Array, "N+1"],
    Z_hat: Float[Array, "N A"],
    Z_tau: Float[Array, "N-1 A"],
    tau_prime: Float[Array, "N+1"],
    Z_next: Float[Array, "N A"],
    q_next: Float[Array, "A"],
    transition: NStep,
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Algorithm 1 of the paper for one transition: the sum of both losses, and (q(x, a), |mean of the targets - q|).

    Args:
        log_p, tau: the online network's proposal for x.
        Z_hat: online network at x and tau^.
        Z_tau: online network at x and tau_1, ..., tau_{N-1}.
        tau_prime: the target network's proposal for x'.
        Z_next: target network at x' and tau^'.
        q_next: values of the network that selects, at x'.
        transition: (x, a, R, x'), over m steps.
        config: gamma, kappa, the weight of the entropy and whether targets are weighted.
    """
    y = jax.lax.stop_gradient(losses.targets(Z_next, q_next, transition, config.gamma))  # (N,)
    z = Z_hat[:, transition.action]  # (N,)
    tau_hat = jax.lax.stop_gradient(fractions.centres(tau))
    widths = jax.lax.stop_gradient(jnp.diff(tau_prime)) if config.weigh_targets else None
    of_quantiles = losses.quantile_regression(z, tau_hat, y, config.kappa, widths)
    unevenness = math.log(config.num_fractions) - losses.entropy(log_p)  # the constant: so that no loss is negative
    of_fractions = losses.fraction_proposal(tau, Z_tau[:, transition.action], z) + config.fraction_entropy * unevenness
    q = fractions.expectation(tau, z)
    return of_quantiles + of_fractions, (q, jnp.abs(fractions.expectation(tau_prime, y) - q))


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
    log_p, tau, Z_hat, Z_tau, tau_prime, Z_next, q_next = forward(
        params, target_params, network, batch, config, selector_params
    )
    value, (q, td_error) = jax.vmap(loss, in_axes=(0, 0, 0, 0, 0, 0, 0, 0, None))(
        log_p, tau, Z_hat, Z_tau, tau_prime, Z_next, q_next, batch, config
    )
    return offpolicy.weighted_mean(value, batch), (q, td_error, td_error)


def forward(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    config: Config,
    selector_params: PyTree | None = None,
) -> Any:
    """Return log_p, tau, Z_hat, Z_tau, tau_prime, Z_next and q_next of a batch, as `loss` takes them."""
    online, target, selector = offpolicy.networks(network, params, target_params, selector_params)
    psi = jax.vmap(online.psi)(batch.obs)  # (B, features)
    log_p, tau, Z_hat = online(psi)  # (B, N), (B, N + 1), (B, N, A)
    Z_tau = jax.lax.stop_gradient(online.Z(psi, tau[:, 1:-1]))  # (B, N - 1, A)

    _, tau_prime, Z_next = target(jax.vmap(target.psi)(batch.next_obs))
    selected_by = tau_prime, Z_next
    if config.double:
        _, *selected_by = selector(jax.vmap(selector.psi)(batch.next_obs))
    q_next = jax.vmap(fractions.expectation)(*selected_by)  # (B, A)
    return log_p, tau, Z_hat, Z_tau, tau_prime, Z_next, q_next


def values(network: FullyParameterizedNetwork, obs: Observation) -> Float[Array, "A"]:
    """q(x, .) of one normalised observation."""
    _, tau, Z = network(network.psi(obs))
    return fractions.expectation(tau, Z)


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Quantiles at any fractions, for one observation, in the environment's units: the step function whose mean is q."""
    network = nnx.merge(state.network, state.average_params)
    return normalize.returns(state.normalizer, at(network, normalize.observations(state.normalizer, obs), tau))


def at(network: FullyParameterizedNetwork, obs: Observation, tau: Float[Array, "M"]) -> Float[Array, "M A"]:
    """Z_{tau^_i}(x, .) where tau lies in (tau_i, tau_{i+1}], of one normalised observation."""
    _, proposed, Z = network(network.psi(obs))
    return Z[jnp.searchsorted(proposed[1:-1], tau)]


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on q."""
    network = nnx.merge(state.network, state.params)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        q = values(network, normalize.observations(state.normalizer, obs))
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
        _, tau, Z, _, _, Z_next, q_next = forward(params, state.target_params, state.network, batch, config)
        y = jax.vmap(losses.targets, in_axes=(0, 0, 0, None))(Z_next, q_next, batch, config.gamma)  # (B, N)
        z = jax.vmap(lambda Z, action: Z[:, action])(Z, batch.action)  # (B, N)
        return y[:, None, :] - z[:, :, None], jax.vmap(fractions.expectation)(tau, z)

    def quantiles_of(params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        return at(nnx.merge(state.network, params), obs, tau)

    def values_of(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return values(nnx.merge(state.network, params), obs)

    learner = offpolicy.learner(
        config,
        state,
        acting_policy,
        batch_loss,
        errors,
        values_of,
        quantiles_of,
        config.kappa,
        optimizer=optimizer,
    )
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("fqf", Config, init, step, policy, quantiles, measure_signals)
