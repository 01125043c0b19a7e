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

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import exploration, fractions, losses, normalize, replay, risk, rollout, signals
from quantilax.networks import ACTIVATIONS, MLP, ImplicitQuantileHead, in_one_pass
from quantilax.pytree import MAX_INT32, ConfigError, dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, NStep, Observation, Policy, num_actions


@dataclass
class Config:
    """Hyperparameters of IQN. Defaults are practical; `paper` is what Dabney et al. (2018) used on Atari."""

    # The loop
    total_timesteps: int = field(100_000, "environment steps of the run, warm-up included", paper=50_000_000, ge=1)
    eval_freq: int = field(5_000, "environment steps between evaluations", paper=250_000, ge=1)
    eval_episodes: int = field(128, "episodes of an evaluation, in parallel, each counted once", ge=1)
    eval_epsilon: float = field(0.0, "probability of a random action in evaluations", paper=0.001, ge=0, le=1)
    metrics: bool = field(True, "measure loss, gradient norm, ... between evaluations; off, it costs nothing")
    signals: bool = field(False, "measure what `quantilax diagnose` reads, at evaluations; off, it costs nothing")
    num_envs: int = field(10, "environments, one step each per iteration", paper=1, ge=1)
    num_epochs: int = field(2, "gradient steps per iteration", paper=0.25, ge=1)

    # Replay
    buffer_size: int = field(100_000, "transitions kept", paper=1_000_000, ge=1)
    fill_buffer: int = field(1_000, "environment steps with random actions before learning", paper=50_000, ge=0)
    batch_size: int = field(64, "transitions in a gradient step", paper=32, ge=1)
    n_step: int = field(1, "n, steps of reward before the bootstrap; fewer at an episode's end", paper=1, ge=1)

    # Optimisation
    learning_rate: float = field(1e-3, "first step size of Adam", paper=5e-5, ge=0)
    learning_rate_end: float = field(1.0, "share of learning_rate left at the end; 1: constant", paper=1.0, ge=0, le=1)
    adam_eps: float = field(3.125e-4, "epsilon of Adam, added to sqrt(v)", paper=3.125e-4, gt=0)
    max_grad_norm: float = field(
        float("inf"), "the gradient's global norm is clipped to it; .inf: never", paper=float("inf"), gt=0, finite=False
    )

    # Target network: every `target_update_freq` gradient steps, theta^- <- polyak theta^- + (1 - polyak) theta
    target_update_freq: int = field(32, "gradient steps between two moves of the target", paper=10_000, ge=1)
    polyak: float = field(0.0, "share of the target kept in a move; 0: a hard copy", paper=0.0, ge=0, le=1)

    # The distribution
    num_tau_samples: int = field(8, "N, fractions of the online network in the loss", paper=64, ge=1)
    num_tau_prime_samples: int = field(8, "N', fractions of the target network in the loss", paper=64, ge=1)
    num_quantile_samples: int = field(32, "K, fractions in the mean that chooses an action", paper=32, ge=1)
    tau_sampling: str = field(
        "uniform", "how tau, tau' and tau'' are drawn in the loss", paper="uniform", choices=tuple(fractions.SAMPLERS)
    )
    share_tau: bool = field(False, "the examples of a batch share one draw of fractions", paper=False)
    acting_tau_sampling: str = field(
        "uniform",
        "how the K fractions of the acting policy are drawn",
        paper="uniform",
        choices=tuple(fractions.SAMPLERS),
    )
    kappa: float = field(1.0, "where the Huber loss becomes linear, in units of return", paper=1.0, gt=0)
    double: bool = field(False, "the online network selects a*, the target network rates it", paper=False)
    munchausen: bool = field(False, "M-IQN: targets of the softmax policy, its log-probability added to the reward")
    munchausen_alpha: float = field(0.9, "alpha, share of t ln pi(a|x) added to the reward; 0: soft IQN", ge=0, le=1)
    munchausen_temperature: float = field(0.03, "t of the softmax policy, in units of return", gt=0)
    munchausen_clip: float = field(-1.0, "l0, the least that t ln pi(a|x) counts, in units of return", le=0)
    risk: str = field(
        "neutral",
        "distortion of the acting policy's fractions",
        paper="neutral",
        choices=tuple(risk.DISTORTIONS),
    )
    risk_eta: float = field(
        1.0, "strength of the distortion: cvar (0, 1], cpw > 0; wang and power: < 0 averse, > 0 seeks risk"
    )

    # Exploration
    eps_start: float = field(1.0, "first epsilon", paper=1.0, ge=0, le=1)
    eps_end: float = field(0.04, "last epsilon", paper=0.01, ge=0, le=1)
    exploration_fraction: float = field(
        0.1, "share of total_timesteps over which epsilon falls", paper=0.02, ge=0, le=1
    )

    # The task
    gamma: float = field(0.99, "discount per environment step", paper=0.99, ge=0, le=1)
    bootstrap_truncated: bool = field(
        True, "targets of a step that a time limit cuts off go on from its successor; false: as if it had ended there"
    )
    normalize_observations: bool = field(False, "learn from (x - mean) / std of all observations so far", paper=False)
    normalize_rewards: bool = field(False, "learn from rewards over the std of discounted returns so far", paper=False)

    # The network
    torso_sizes: tuple[int, ...] = field((64, 64), "widths of the layers of psi", ge=1)
    head_sizes: tuple[int, ...] = field((64,), "widths of the hidden layers of f", paper=(512,), ge=1)
    num_cosines: int = field(64, "n, cosines in the embedding of a fraction", paper=64, ge=1)
    activation: str = field("relu", "activation of psi and f", paper="relu", choices=tuple(ACTIVATIONS))
    layer_norm: bool = field(False, "LayerNorm before each activation of psi and f", paper=False)

    @property
    def warmup_steps(self) -> int:
        """Environment steps of `init`: `fill_buffer` in whole iterations, no more than the run has."""
        return min(-(-self.fill_buffer // self.num_envs), self.total_timesteps // self.num_envs) * self.num_envs

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of `step`."""
        return self.num_envs

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the whole run."""
        return (self.total_timesteps - self.warmup_steps) // self.num_envs * self.num_epochs

    def derived(self) -> dict[str, Any]:
        """Figures that follow from the config, see docs/guides/derived.md."""
        updates_per_step = self.num_epochs / self.num_envs
        constant = self.target_update_freq / (1 - self.polyak) if self.polyak < 1 else float("inf")
        return {
            "gradient_steps": self.gradient_steps,
            "updates_per_env_step": updates_per_step,
            "samples_replayed_per_env_step": updates_per_step * self.batch_size,
            "target_time_constant_updates": constant,
            "target_time_constant_env_steps": constant / updates_per_step,
            "epsilon_end_at_env_step": round(self.exploration_fraction * self.total_timesteps),
        }

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        risk.check(self.risk, self.risk_eta)
        if self.munchausen and self.double:
            raise ConfigError(
                "double: has no meaning with munchausen, whose targets select no action; set one to false"
            )
        if self.munchausen and self.n_step > 1:
            raise ConfigError(
                f"n_step: {self.n_step} with munchausen is not defined: the rewards on the way would need their own"
                " log-probabilities; set n_step to 1 or munchausen to false"
            )
        if self.gradient_steps > MAX_INT32:
            raise ConfigError(f"num_epochs: {self.gradient_steps} gradient steps are more than {MAX_INT32}; lower it")
        steps = "one step" if self.n_step == 1 else f"n_step={self.n_step} steps"
        if self.buffer_size < self.n_step * self.num_envs:
            raise ConfigError(
                f"buffer_size: {self.buffer_size} cannot hold {steps} of num_envs={self.num_envs}; raise it to"
                f" {self.n_step * self.num_envs} or more"
            )
        if self.total_timesteps < self.n_step * self.num_envs:
            raise ConfigError(
                f"total_timesteps: {self.total_timesteps} is less than {steps} of num_envs={self.num_envs}; raise it to"
                f" {self.n_step * self.num_envs} or more"
            )
        if self.warmup_steps < (self.n_step - 1) * self.num_envs:
            raise ConfigError(
                f"fill_buffer: {self.fill_buffer} and one step of num_envs={self.num_envs} are less than {steps}, which the"
                f" first gradient step reads; raise it to {(self.n_step - 1) * self.num_envs} or more"
            )

    def advice(self) -> list[str]:
        """Lines on settings known to mislead, each with the remedy."""
        lines = exploration.advice(self.eps_start, self.eps_end, self.exploration_fraction)
        if self.batch_size < 16 and self.n_step == 1:
            lines.append(
                f"batch_size={self.batch_size} with 1-step targets: gradients this noisy tend to make runs that never"
                " settle (small batches can serve with n-step returns, see docs/stability.md); set batch_size to 32 or more"
            )
        if self.fill_buffer >= self.total_timesteps:
            lines.append(
                f"fill_buffer={self.fill_buffer} leaves nothing of total_timesteps={self.total_timesteps} to learn from:"
                " no gradient step is taken; lower fill_buffer or raise total_timesteps"
            )
        if not self.bootstrap_truncated:
            lines.append(rollout.ADVICE_ON_TRUNCATION)
        if self.fill_buffer < self.batch_size:
            lines.append(
                f"fill_buffer={self.fill_buffer} is smaller than batch_size={self.batch_size}: the first batches repeat"
                f" the same few transitions; set fill_buffer to {self.batch_size} or more"
            )
        if self.buffer_size < self.batch_size:
            lines.append(
                f"buffer_size={self.buffer_size} is smaller than batch_size={self.batch_size}: every batch repeats"
                " transitions; raise buffer_size"
            )
        if self.target_update_freq > 1 and self.polyak > 0:
            lines.append(
                f"polyak={self.polyak} and target_update_freq={self.target_update_freq} are both active: every"
                f" {self.target_update_freq} gradient steps the target keeps {self.polyak} of itself, so it lags twice;"
                " set target_update_freq=1 for a soft target or polyak=0 for a hard one"
            )
        return lines


@dataclass
class State:
    """All that training carries from one iteration to the next."""

    network: nnx.GraphDef
    """The network's structure: no leaves, the same for every seed."""
    params: PyTree
    target_params: PyTree
    optimizer_state: PyTree
    replay: replay.Ring
    """Steps as the environment gave them, nothing normalised."""
    env_state: PyTree
    """Leading axis num_envs."""
    obs: Shaped[Array, "num_envs *obs"]
    normalizer: normalize.Normalizer
    key: Key[Array, ""]
    evaluation_key: Key[Array, ""]
    """Never split: evaluations fold the step into it, so they cannot disturb training."""
    env_steps: Int[Array, ""]
    gradient_steps: Int[Array, ""]


class ImplicitQuantileNetwork(nnx.Module):
    """psi and f(psi * phi(tau)); see `quantilax.networks`."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        inputs = math.prod(env.observation_space.shape)
        self.psi = MLP(inputs, config.torso_sizes, config.activation, config.layer_norm, rngs=rngs)
        self.Z = ImplicitQuantileHead(
            self.psi.features,
            num_actions(env),
            config.head_sizes,
            config.num_cosines,
            config.activation,
            config.layer_norm,
            rngs=rngs,
        )


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    key_params, key_reset, key_warmup, key_evaluation, key = jax.random.split(key, 5)
    network, params = nnx.split(ImplicitQuantileNetwork(env, config, rngs=nnx.Rngs(key_params)))
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key_reset, config.num_envs))
    state = State(
        network=network,
        params=params,
        target_params=params,
        optimizer_state=optimizer(config).init(params),
        replay=replay.init(rollout.transition_spec(env), obs, config.buffer_size, config.n_step),
        env_state=env_state,
        obs=obs,
        normalizer=normalize.init(
            env.observation_space.shape,
            config.num_envs,
            config.normalize_observations,
            config.normalize_rewards,
        ),
        key=key,
        evaluation_key=key_evaluation,
        env_steps=jnp.zeros((), jnp.int32),
        gradient_steps=jnp.zeros((), jnp.int32),
    )

    def random_action(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        return jax.random.randint(key, (), 0, num_actions(env))

    def warm_up(state: State, key: Key[Array, ""]) -> tuple[State, None]:
        return collect(env, config, state, random_action, key), None

    iterations = config.warmup_steps // config.num_envs
    return jax.lax.scan(warm_up, state, jax.random.split(key_warmup, iterations))[0]


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    key, key_collect, key_updates = jax.random.split(state.key, 3)
    epsilon = epsilon_of(config, state)
    state = collect(env, config, replace(state, key=key), acting_policy(config, state, epsilon), key_collect)

    def update_once(state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
        return update(config, state, key)

    keys = jax.random.split(key_updates, config.num_epochs)
    state, (loss, gradient_norm, q, td_error) = jax.lax.scan(update_once, state, keys)
    metrics = Metrics(
        loss=loss.mean(),
        gradient_norm=gradient_norm.mean(),
        q=q.mean(),
        td_error=td_error.mean(),
        epsilon=epsilon,
    )
    return state, metrics


def epsilon_of(config: Config, state: State) -> Float[Array, ""]:
    """Probability of a random action, by the schedule."""
    duration = config.exploration_fraction * config.total_timesteps
    return exploration.linear_schedule(config.eps_start, config.eps_end, duration, state.env_steps)


def collect(env: Environment, config: Config, state: State, act: Policy, key: Key[Array, ""]) -> State:
    """One step of each environment into the replay."""
    env_state, obs, transition = rollout.collect(env, act, state.env_state, state.obs, key)
    if not config.bootstrap_truncated:
        transition = transition.ended_where_truncated()
    return replace(
        state,
        replay=replay.add(state.replay, transition, obs),
        env_state=env_state,
        obs=obs,
        normalizer=normalize.update(state.normalizer, transition, config.gamma),
        env_steps=state.env_steps + config.num_envs,
    )


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
    y = targets(Z_next, Z_action, Z_before, transition, config)
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
    """R + gamma^m Z_next at a*, the best action by Z_action; with `munchausen` its soft form."""
    q_next, reward = Z_action.mean(axis=0), transition.reward
    if Z_before is None:
        a_star = jnp.argmax(q_next)
        future = Z_next[:, a_star]  # (N',)
    else:
        t = config.munchausen_temperature
        t_log_pi = losses.scaled_log_softmax(q_next, t)
        future = (Z_next - t_log_pi) @ jnp.exp(t_log_pi / t)  # (N',)
        bonus = losses.scaled_log_softmax(Z_before.mean(axis=0), t)[transition.action]
        reward = reward + config.munchausen_alpha * jnp.clip(bonus, config.munchausen_clip, 0)
    gamma_m = config.gamma**transition.steps
    return reward + gamma_m * transition.discount * future


def batch_loss(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    key: Key[Array, ""],
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Mean of `loss` over a batch; every example draws its own fractions, or shares them (`share_tau`)."""
    tau, Z, Z_next, Z_action, Z_before = forward(params, target_params, network, batch, key, config)
    value, (q, td_error) = jax.vmap(loss, in_axes=(0, 0, 0, 0, 0, 0, None))(
        Z, Z_next, Z_action, Z_before, tau, batch, config
    )
    return value.mean(), (q.mean(), td_error.mean())


def forward(
    params: PyTree,
    target_params: PyTree,
    network: nnx.GraphDef,
    batch: NStep,
    key: Key[Array, ""],
    config: Config,
) -> Any:
    """Return tau, Z, Z_next, Z_action and Z_before of a batch, as `loss` takes them."""
    online, target = nnx.merge(network, params), nnx.merge(network, target_params)
    shape = () if config.share_tau else batch.reward.shape
    numbers = config.num_tau_samples, config.num_tau_prime_samples, config.num_quantile_samples
    tau, tau_prime, tau_action = fractions.draw(key, config.tau_sampling, shape, numbers)

    psi_next = jax.vmap(target.psi)(batch.next_obs)  # (B, features)
    if config.double:
        Z_next = target.Z(psi_next, tau_prime)  # (B, N', A)
        Z_action = online.Z(jax.vmap(online.psi)(batch.next_obs), tau_action)  # (B, K, A)
    else:
        Z_next, Z_action = in_one_pass(target.Z, psi_next, tau_prime, tau_action)
    Z_before = target.Z(jax.vmap(target.psi)(batch.obs), tau_action) if config.munchausen else None  # (B, K, A)
    Z = online.Z(jax.vmap(online.psi)(batch.obs), tau)  # (B, N, A)
    return jnp.broadcast_to(tau, Z.shape[:-1]), Z, Z_next, Z_action, Z_before


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move: state, (loss, gradient norm, mean Z, TD error)."""
    key_sample, key_loss = jax.random.split(key)
    batch = replay.sample(state.replay, key_sample, config.batch_size, config.gamma)
    batch = normalize.transitions(state.normalizer, batch)
    (value, (q, td_error)), gradient = jax.value_and_grad(batch_loss, has_aux=True)(
        state.params, state.target_params, state.network, batch, key_loss, config
    )
    updates, optimizer_state = optimizer(config).update(gradient, state.optimizer_state)
    params = optax.apply_updates(state.params, updates)

    gradient_steps = state.gradient_steps + 1
    keep = jnp.where(gradient_steps % config.target_update_freq == 0, config.polyak, 1.0)
    target_params = optax.incremental_update(params, state.target_params, 1 - keep)
    state = replace(
        state,
        params=params,
        target_params=target_params,
        optimizer_state=optimizer_state,
        gradient_steps=gradient_steps,
    )
    return state, (value, optax.tree.norm(gradient), q, td_error)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a linear schedule of its step size, after clipping by the global norm; on one flat vector."""
    end = config.learning_rate * config.learning_rate_end
    schedule = optax.linear_schedule(config.learning_rate, end, max(config.gradient_steps, 1))
    adam = optax.adam(schedule, eps=config.adam_eps)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam))


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Z_tau(x, .) of the online network, for one observation; observation and Z in the environment's units."""
    online = nnx.merge(state.network, state.params)
    return normalize.returns(state.normalizer, online.Z(online.psi(normalize.observations(state.normalizer, obs)), tau))


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on the mean over K samples of Z_beta(tau), beta the risk distortion."""

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        key_tau, key_epsilon = jax.random.split(key)
        (tau,) = fractions.draw(key_tau, config.acting_tau_sampling, (), (config.num_quantile_samples,))
        tau = risk.DISTORTIONS[config.risk](tau, config.risk_eta)
        q = quantiles(config, state, obs, tau).mean(axis=0)  # (A,)
        return exploration.epsilon_greedy(key_epsilon, q, epsilon)

    return act


def policy(env: Environment, config: Config, state: State) -> Policy:
    """Return the policy that evaluation runs: greedy but for `eval_epsilon`."""
    return acting_policy(config, state, config.eval_epsilon)


def measure_signals(
    env: Environment,
    config: Config,
    state: State,
    episodes: rollout.Episodes,
    reference_key: Key[Array, ""],
    key: Key[Array, ""],
) -> signals.Signals:
    """Hand over what `quantilax.signals` measures with."""

    def draw(key: Key[Array, ""], size: int) -> NStep:
        return normalize.transitions(state.normalizer, replay.sample(state.replay, key, size, config.gamma))

    def mean_loss(params: PyTree, batch: NStep, key: Key[Array, ""]) -> Float[Array, ""]:
        return batch_loss(params, state.target_params, state.network, batch, key, config)[0]

    def errors(
        params: PyTree, batch: NStep, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B N N_prime"], Float[Array, "B"]]:
        _, Z, Z_next, Z_action, Z_before = forward(params, state.target_params, state.network, batch, key, config)
        y = jax.vmap(targets, in_axes=(0, 0, 0, 0, None))(Z_next, Z_action, Z_before, batch, config)  # (B, N')
        z = jax.vmap(lambda Z, action: Z[:, action])(Z, batch.action)  # (B, N)
        return y[:, None, :] - z[:, :, None], z.mean(axis=1)

    def quantiles_of(params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        network = nnx.merge(state.network, params)
        return network.Z(network.psi(obs), tau)

    rows = state.replay.rows  # (T, E)
    filled = (jnp.arange(rows.reward.shape[0]) < state.replay.iterations)[:, None]
    learner = signals.Learner(
        params=state.params,
        target_params=state.target_params,
        draw=draw,
        loss=mean_loss,
        errors=errors,
        quantiles=quantiles_of,
        values=lambda params, obs: quantiles_of(params, obs, signals.midpoints(signals.NUM_FRACTIONS)).mean(axis=0),
        features=lambda params, obs: nnx.merge(state.network, params).psi(obs),
        behave=acting_policy(config, state, epsilon_of(config, state)),
        greedy=acting_policy(config, state, 0.0),
        experience=signals.Experience(
            rows.action,
            normalize.rewards(state.normalizer, rows.reward),
            rows.terminated,
            rows.truncated,
            is_there=jnp.broadcast_to(filled, rows.reward.shape),
        ),
        is_replay=True,
        optimizer=optimizer(config),
        optimizer_state=state.optimizer_state,
        gradient_steps=state.gradient_steps,
        adam_eps=config.adam_eps,
        max_grad_norm=config.max_grad_norm,
        batch_size=config.batch_size,
        num_quantile_samples=config.num_quantile_samples,
        kappa=config.kappa,
        gamma=config.gamma,
        bootstrap_truncated=config.bootstrap_truncated,
        normalizer=state.normalizer,
    )
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("iqn", Config, init, step, policy, quantiles, measure_signals)
