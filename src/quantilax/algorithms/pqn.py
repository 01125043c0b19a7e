"""PQN: parallelised Q-learning without replay or target network (Gallici et al. 2024, https://arxiv.org/abs/2407.04811).

| symbol | here | meaning |
|---|---|---|
| T, E | `num_steps`, `num_envs` | each iteration collects T steps in E environments, on policy |
| Q(x, a) | `Q` | value of an action; LayerNorm in the torso is what makes it stable without a target |
| v_t | `value` | max_a Q(x'_t, a) at the true successor |
| lambda_t | `trace` | `lambda_`, and 0 where an episode ends: t + 1 belongs to another episode |
| G_t | `targets` | r_t + gamma (1 - terminated_t) [(1 - lambda_t) v_t + lambda_t G_{t+1}] |

The loss is (Q(x_t, a_t) - G_t)^2 / 2 with G fixed, over `num_epochs` passes of `num_minibatches` shuffled parts.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import exploration, hyperparameters, losses, normalize, rollout, signals
from quantilax.networks import ACTIVATIONS, ActionHead, torso
from quantilax.pytree import MAX_INT32, ConfigError, dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, Observation, Policy, Transition, num_actions


@dataclass
class Config:
    """Hyperparameters of PQN. `paper` is what Gallici et al. (2024) used on Atari."""

    # The loop
    total_timesteps: int = hyperparameters.total_timesteps(491_520, paper=50_000_000)
    eval_freq: int = hyperparameters.eval_freq(24_576)
    eval_episodes: int = hyperparameters.eval_episodes(128)
    eval_epsilon: float = hyperparameters.eval_epsilon(0.0)
    metrics: bool = hyperparameters.metrics(True)
    signals: bool = hyperparameters.signals(False)
    num_envs: int = field(32, "E, environments", paper=128, ge=1)
    num_steps: int = field(64, "T, steps of each environment per iteration", paper=32, ge=1)
    num_epochs: int = field(4, "passes over what an iteration collected", paper=2, ge=1)
    num_minibatches: int = field(16, "gradient steps per pass", paper=32, ge=1)

    # Optimisation
    learning_rate: float = field(1e-3, "first step size of RAdam", paper=2.5e-4, ge=0)
    learning_rate_end: float = hyperparameters.learning_rate_end(0.0, paper=0.0)
    max_grad_norm: float = hyperparameters.max_grad_norm(10.0, paper=10.0)

    # Returns
    gamma: float = hyperparameters.gamma(0.99, paper=0.99)
    lambda_: float = field(0.95, "lambda of the returns: 0 is one step, 1 is Monte Carlo", paper=0.65, ge=0, le=1)

    # Exploration
    eps_start: float = hyperparameters.eps_start(1.0, paper=1.0)
    eps_end: float = hyperparameters.eps_end(0.05, paper=0.001)
    exploration_fraction: float = hyperparameters.exploration_fraction(0.2, paper=0.1)

    # The task
    bootstrap_truncated: bool = hyperparameters.bootstrap_truncated(True)
    normalize_observations: bool = hyperparameters.normalize_observations(False, paper=False)
    normalize_rewards: bool = hyperparameters.normalize_rewards(False, paper=False)

    # The network
    torso: str = hyperparameters.torso("mlp", paper="nature")
    torso_sizes: tuple[int, ...] = hyperparameters.torso_sizes((64, 64), paper=(512,))
    activation: str = field("relu", "activation of the torso", paper="relu", choices=tuple(ACTIVATIONS))
    layer_norm: bool = field(True, "LayerNorm before each activation", paper=True)
    spectral_norm: bool = hyperparameters.spectral_norm(False, paper=False)

    @property
    def warmup_steps(self) -> int:
        """Environment steps of `init`: none."""
        return 0

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of `step`."""
        return self.num_envs * self.num_steps

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the whole run."""
        return self.total_timesteps // self.steps_per_iteration * self.num_epochs * self.num_minibatches

    def derived(self) -> dict[str, Any]:
        """Figures that follow from the config, see docs/guides/derived.md."""
        updates_per_step = self.num_epochs * self.num_minibatches / self.steps_per_iteration
        return {
            "gradient_steps": self.gradient_steps,
            "updates_per_env_step": updates_per_step,
            "minibatch_size": self.steps_per_iteration // self.num_minibatches,
            "samples_replayed_per_env_step": float(self.num_epochs),
            "epsilon_end_at_env_step": round(self.exploration_fraction * self.total_timesteps),
        }

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
        if self.steps_per_iteration % self.num_minibatches:
            raise ConfigError(
                f"num_minibatches: {self.num_minibatches} does not divide num_envs * num_steps ="
                f" {self.steps_per_iteration}; choose a divisor"
            )
        if self.gradient_steps > MAX_INT32:
            raise ConfigError(f"num_epochs: {self.gradient_steps} gradient steps are more than {MAX_INT32}; lower it")
        if self.total_timesteps < self.steps_per_iteration:
            raise ConfigError(
                f"total_timesteps: {self.total_timesteps} is less than one iteration of num_envs * num_steps ="
                f" {self.steps_per_iteration} steps; raise it"
            )

    def advice(self) -> list[str]:
        """Lines on settings known to mislead, each with the remedy."""
        lines = exploration.advice(self.eps_start, self.eps_end, self.exploration_fraction)
        if not self.bootstrap_truncated:
            lines.append(rollout.ADVICE_ON_TRUNCATION)
        if not self.layer_norm:
            lines.append(
                "layer_norm=false: without a target network, LayerNorm is what keeps PQN from diverging; set it to true"
            )
        return lines


@dataclass
class State:
    """All that training carries from one iteration to the next."""

    network: nnx.GraphDef
    """The network's structure: no leaves, the same for every seed."""
    params: PyTree
    optimizer_state: PyTree
    env_state: PyTree
    """Leading axis num_envs."""
    obs: Shaped[Array, "num_envs *obs"]
    normalizer: normalize.Normalizer
    key: Key[Array, ""]
    evaluation_key: Key[Array, ""]
    """Never split: evaluations fold the step into it, so they cannot disturb training."""
    env_steps: Int[Array, ""]
    gradient_steps: Int[Array, ""]


class QNetwork(nnx.Module):
    """Q(x, .): an MLP torso and a linear head."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = ActionHead(self.psi.features, num_actions(env), rngs=rngs)

    def __call__(self, obs: Observation) -> Float[Array, "A"]:
        """Values of one observation."""
        return self.head(self.psi(obs))[0]


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the network and reset the environments."""
    key_params, key_reset, key_evaluation, key = jax.random.split(key, 4)
    network, params = nnx.split(QNetwork(env, config, rngs=nnx.Rngs(key_params)))
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key_reset, config.num_envs))
    return State(
        network=network,
        params=params,
        optimizer_state=optimizer(config).init(params),
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


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Collect T steps in each environment, compute the lambda-returns, and go over them `num_epochs` times."""
    key, key_collect, key_epochs = jax.random.split(state.key, 3)
    epsilon = epsilon_of(config, state)
    state, transitions = collect(env, config, replace(state, key=key), epsilon, key_collect)
    rows = rows_of(config, state, normalize.transitions(state.normalizer, transitions))

    def epoch(state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
        order = jax.random.permutation(key, config.steps_per_iteration).reshape(config.num_minibatches, -1)
        return jax.lax.scan(lambda s, index: update(config, s, jax.tree.map(lambda x: x[index], rows)), state, order)

    keys = jax.random.split(key_epochs, config.num_epochs)
    state, (loss, gradient_norm, q, td_error) = jax.lax.scan(epoch, state, keys)
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


def collect(
    env: Environment, config: Config, state: State, epsilon: Float[Array, ""], key: Key[Array, ""]
) -> tuple[State, Transition]:
    """T steps in each environment: the state, and transitions with leading axes (T, E)."""

    def one(state: State, key: Key[Array, ""]) -> tuple[State, Transition]:
        act = acting_policy(config, state, epsilon)
        env_state, obs, transition = rollout.collect(env, act, state.env_state, state.obs, key)
        if not config.bootstrap_truncated:
            transition = transition.ended_where_truncated()
        state = replace(
            state,
            env_state=env_state,
            obs=obs,
            normalizer=normalize.update(state.normalizer, transition, config.gamma),
            env_steps=state.env_steps + config.num_envs,
        )
        return state, transition

    return jax.lax.scan(one, state, jax.random.split(key, config.num_steps))


def rows_of(config: Config, state: State, transitions: Transition) -> tuple[Observation, Array, Array]:
    """What is learned from, with one leading axis T E: observations, actions and targets."""
    rows = (transitions.obs, transitions.action, lambda_targets(config, state, transitions))
    flat: tuple[Observation, Array, Array] = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return flat


def lambda_targets(config: Config, state: State, transitions: Transition) -> Float[Array, "T E"]:
    """G_t of every step, each cut at the end of its episode."""
    Q = nnx.merge(state.network, state.params)
    value = jax.vmap(jax.vmap(Q))(transitions.next_obs).max(axis=-1)  # (T, E)
    trace = config.lambda_ * ~(transitions.terminated | transitions.truncated)
    returns = jax.vmap(losses.lambda_returns, in_axes=1, out_axes=1)
    return returns(transitions.reward, config.gamma * transitions.discount, value, trace)


def loss(
    params: PyTree, network: nnx.GraphDef, obs: Observation, action: Int[Array, ""], target: Float[Array, ""]
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """(Q(x, a) - G)^2 / 2 of one step, and (Q(x, a), |G - Q(x, a)|)."""
    q = nnx.merge(network, params)(obs)[action]
    return 0.5 * (q - jax.lax.stop_gradient(target)) ** 2, (q, jnp.abs(target - q))


def batch_loss(
    params: PyTree, network: nnx.GraphDef, rows: tuple[Observation, Int[Array, "B"], Float[Array, "B"]]
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Mean of `loss` over a minibatch."""
    value, (q, td_error) = jax.vmap(loss, in_axes=(None, None, 0, 0, 0))(params, network, *rows)
    return value.mean(), (q.mean(), td_error.mean())


def update(config: Config, state: State, rows: PyTree) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one minibatch: state, (loss, gradient norm, mean Q, TD error)."""
    (value, (q, td_error)), gradient = jax.value_and_grad(batch_loss, has_aux=True)(state.params, state.network, rows)
    updates, optimizer_state = optimizer(config).update(gradient, state.optimizer_state)
    params = optax.apply_updates(state.params, updates)
    state = replace(state, params=params, optimizer_state=optimizer_state, gradient_steps=state.gradient_steps + 1)
    return state, (value, optax.tree.norm(gradient), q, td_error)


def optimizer(config: Config) -> optax.GradientTransformation:
    """RAdam with a linearly decaying step size, after clipping by the global norm; on one flat vector."""
    end = config.learning_rate * config.learning_rate_end
    schedule = optax.linear_schedule(config.learning_rate, end, max(config.gradient_steps, 1))
    return optax.flatten(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.radam(schedule)))


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on Q."""
    Q = nnx.merge(state.network, state.params)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        return exploration.epsilon_greedy(key, Q(normalize.observations(state.normalizer, obs)), epsilon)

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
    """Hand over what `quantilax.signals` measures with: there is no replay, so an iteration is collected and thrown away."""
    key_collect, key = jax.random.split(key)
    _, collected = collect(env, config, state, epsilon_of(config, state), key_collect)
    transitions = normalize.transitions(state.normalizer, collected)
    rows = rows_of(config, state, transitions)

    def draw(key: Key[Array, ""], size: int) -> PyTree:
        index = jax.random.randint(key, (size,), 0, config.steps_per_iteration)
        return jax.tree.map(lambda x: x[index], rows)

    def mean_loss(params: PyTree, batch: PyTree, key: Key[Array, ""]) -> Float[Array, ""]:
        return batch_loss(params, state.network, batch)[0]

    def errors(params: PyTree, batch: PyTree, key: Key[Array, ""]) -> tuple[Float[Array, "B 1 1"], Float[Array, "B"]]:
        obs, action, target = batch
        q = jax.vmap(lambda x, a: q_of(params, x)[a])(obs, action)
        return (target - q)[:, None, None], q

    def q_of(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return nnx.merge(state.network, params)(obs)

    learner = signals.Learner(
        params=state.params,
        target_params=None,
        draw=draw,
        loss=mean_loss,
        errors=errors,
        quantiles=None,
        values=q_of,
        features=lambda params, obs: nnx.merge(state.network, params).psi(obs),
        behave=acting_policy(config, state, epsilon_of(config, state)),
        greedy=acting_policy(config, state, 0.0),
        experience=signals.Experience(
            transitions.action,
            transitions.reward,
            transitions.terminated,
            transitions.truncated,
            is_there=jnp.ones_like(transitions.terminated),
        ),
        is_replay=False,
        optimizer=optimizer(config),
        optimizer_state=state.optimizer_state,
        gradient_steps=state.gradient_steps,
        adam_eps=1e-8,  # optax's for RAdam
        max_grad_norm=config.max_grad_norm,
        batch_size=config.steps_per_iteration // config.num_minibatches,
        num_quantile_samples=None,
        kappa=None,
        gamma=config.gamma,
        bootstrap_truncated=config.bootstrap_truncated,
        normalizer=state.normalizer,
    )
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("pqn", Config, init, step, policy, signals=measure_signals)
