"""PQN: parallelised Q-learning without replay or target network (Gallici et al. 2024, https://arxiv.org/abs/2407.04811).

| symbol | here | meaning |
|---|---|---|
| T, E | `num_steps`, `num_envs` | each iteration collects T steps in E environments, on policy |
| Y | `Y` | what the network gives for each action, by `head`: Q, N quantiles, N quantiles at tau, logits of M atoms, (n, A) |
| Q(x, a) | `means(Y)` | value of an action; LayerNorm in the torso is what makes it stable without a target |
| v_t, Z_t | | max_a Q(x'_t, a) at the true successor; the distribution of its best action's return |
| lambda_t | `trace` | `lambda_`, and 0 where an episode ends: t + 1 belongs to another episode |
| G_t | `target` | r_t + gamma (1 - terminated_t) [(1 - lambda_t) v_t + lambda_t G_{t+1}] |

The loss is (Q(x_t, a_t) - G_t)^2 / 2 with G fixed, over `num_epochs` passes of `num_minibatches` shuffled parts. With
`munchausen` G_t is of the softmax policy, its log-probability added to the reward, see `losses.munchausen_lambda_returns`.

With a head that learns a distribution G_t is one too: that of r_t + gamma (1 - terminated_t) times G_{t+1} with probability
lambda_t, else times Z_t. The quantile heads learn from draws of it by IQN's loss, the categorical one by cross-entropy.
"""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import averaging, exploration, heads, normalize, packing, rollout, signals
from quantilax.envs.vector import Mapped
from quantilax.heads import HEADS
from quantilax.hyperparameters import Exploration, Loop, Munchausen, Network, Optimiser, Task, default
from quantilax.networks import computing_in, torso
from quantilax.pytree import MAX_INT32, ConfigError, dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, Observation, Policy, Transition, num_actions


@dataclass
class Config(Loop, Optimiser, Munchausen, *heads.CONFIGS, Exploration, Task, Network):  # type: ignore[misc]
    """Hyperparameters of PQN; `PAPER` is what Gallici et al. (2024) used on Atari."""

    PAPER: ClassVar[dict[str, Any]] = {
        "total_timesteps": 50_000_000,
        "num_envs": 128,
        "num_steps": 32,
        "num_epochs": 2,
        "num_minibatches": 32,
        "learning_rate": 2.5e-4,
        "learning_rate_end": 0.0,
        "learning_rate_fraction": 1.0,
        "weight_averaging": 0.0,
        "max_grad_norm": 10.0,
        "gamma": 0.99,
        "lambda_": 0.65,
        "head": "scalar",
        "eps_start": 1.0,
        "eps_end": 1e-3,
        "exploration_fraction": 0.1,
        "reward_scale": 1.0,
        "normalize_observations": False,
        "normalize_rewards": False,
        "torso": "nature",
        "torso_sizes": (512,),
        "head_sizes": (),
        "activation": "relu",
        "layer_norm": True,
        "spectral_norm": False,
        "compute_dtype": "float32",
    }

    total_timesteps: int = default(Loop, "total_timesteps", 491_520)
    eval_freq: int = default(Loop, "eval_freq", 24_576)
    num_envs: int = field(32, "E, environments", ge=1)
    num_steps: int = field(64, "T, steps of each environment per iteration", ge=1)
    num_epochs: int = field(4, "passes over what an iteration collected", ge=1)
    num_minibatches: int = field(16, "gradient steps per pass", ge=1)

    learning_rate: float = field(1e-3, "first step size of RAdam", ge=0)
    learning_rate_end: float = default(Optimiser, "learning_rate_end", 0.0)
    max_grad_norm: float = default(Optimiser, "max_grad_norm", 10.0)
    lambda_: float = field(
        0.95, "lambda of the returns: 0 is one step, 1 is Monte Carlo within the T steps", ge=0, le=1
    )

    head: str = field("scalar", "what is learned of the return: its mean or its distribution", choices=tuple(HEADS))

    eps_end: float = default(Exploration, "eps_end", 0.05)
    exploration_fraction: float = default(Exploration, "exploration_fraction", 0.2)
    head_sizes: tuple[int, ...] = default(Network, "head_sizes", ())
    layer_norm: bool = default(Network, "layer_norm", True)

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

    @property
    def support(self) -> tuple[float, float] | None:
        """Bounds of what the head can learn; None: there are none."""
        return HEADS[self.head].support(self)

    def derived(self) -> dict[str, Any]:
        """Figures that follow from the config, see docs/guides/derived.md."""
        updates_per_step = self.num_epochs * self.num_minibatches / self.steps_per_iteration
        return {
            "gradient_steps": self.gradient_steps,
            "updates_per_env_step": updates_per_step,
            "minibatch_size": self.steps_per_iteration // self.num_minibatches,
            "samples_replayed_per_env_step": float(self.num_epochs),
            "average_age_env_steps": averaging.mean_age(self.weight_averaging) / updates_per_step,
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
        for head in HEADS.values():
            head.check(self)
        if self.munchausen and HEADS[self.head].soft_lambda_returns is None:
            raise ConfigError(
                f"munchausen: not defined here for the returns of head={self.head}; set head to scalar or munchausen to false"
            )

    def advice(self) -> list[str]:
        """Lines on settings known to mislead, each with the remedy."""
        lines = exploration.advice(self.eps_start, self.eps_end, self.exploration_fraction)
        lines += averaging.advice(self.weight_averaging, self.gradient_steps)
        lines += normalize.advice(self.normalize_rewards, self.reward_scale)
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
    average_params: PyTree
    """What evaluation runs, see `quantilax.averaging`."""
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


class PQNetwork(nnx.Module):
    """psi, and the layer of the head."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make the network for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = HEADS[config.head].layer(self.psi.features, num_actions(env), config, rngs=rngs)


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Make the network and reset the environments."""
    key_params, key_reset, key_evaluation, key = jax.random.split(key, 4)
    made = PQNetwork(env, config, rngs=nnx.Rngs(key_params))
    network, params = nnx.split(computing_in(made, config.compute_dtype))
    env_state, obs = Mapped(env=env).reset(jax.random.split(key_reset, config.num_envs))
    return State(
        network=network,
        params=params,
        average_params=params,
        optimizer_state=optimizer(config).init(params),
        env_state=env_state,
        obs=obs,
        normalizer=normalize.init(
            env.observation_space.shape,
            config.num_envs,
            config.normalize_observations,
            config.normalize_rewards,
            config.reward_scale,
        ),
        key=key,
        evaluation_key=key_evaluation,
        env_steps=jnp.zeros((), jnp.int32),
        gradient_steps=jnp.zeros((), jnp.int32),
    )


def step(env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Collect T steps in each environment, compute the lambda-returns, and go over them `num_epochs` times."""
    key, key_collect, key_epochs, key_targets = jax.random.split(state.key, 4)
    epsilon = epsilon_of(config, state)
    state, transitions = collect(env, config, replace(state, key=key), epsilon, key_collect)
    rows = rows_of(config, state, normalize.transitions(state.normalizer, transitions), key_targets)

    def minibatch(state: State, drawn: tuple[Array, Array]) -> tuple[State, tuple[Array, ...]]:
        index, key = drawn
        return update(config, state, jax.tree.map(lambda x: x[index], rows), key)

    def epoch(state: State, keys: tuple[Array, Array]) -> tuple[State, tuple[Array, ...]]:
        key_order, key_loss = keys
        order = jax.random.permutation(key_order, config.steps_per_iteration).reshape(config.num_minibatches, -1)
        return jax.lax.scan(minibatch, state, (order, jax.random.split(key_loss, config.num_minibatches)))

    keys_order, keys_loss = jax.random.split(key_epochs, (2, config.num_epochs))
    state, (loss, gradient_norm, q, td_error) = jax.lax.scan(epoch, state, (keys_order, keys_loss))
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


def rows_of(
    config: Config, state: State, transitions: Transition, key: Key[Array, ""]
) -> tuple[Observation, Array, Array]:
    """What is learned from, with one leading axis T E: observations, actions and targets."""
    rows = (transitions.obs, transitions.action, lambda_targets(config, state, transitions, key))
    flat: tuple[Observation, Array, Array] = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return flat


def lambda_targets(
    config: Config, state: State, transitions: Transition, key: Key[Array, ""]
) -> Float[Array, "T E *n_prime"]:
    """G_t of every step, each cut at the end of its episode, as the head learns it."""
    head = HEADS[config.head]
    key_next, key_returns = jax.random.split(key)
    T, E = transitions.reward.shape
    network = nnx.merge(state.network, state.params)

    def flat(obs: Observation) -> Observation:
        return obs.reshape(T * E, *obs.shape[2:])

    Y_next, q_next = head.successor(network, flat(transitions.next_obs), key_next, config)
    discount = config.gamma * transitions.discount
    trace = config.lambda_ * ~(transitions.terminated | transitions.truncated)
    if config.munchausen:
        assert head.soft_lambda_returns is not None
        _, q_before = head.successor(network, flat(transitions.obs), key_returns, config)
        q_next, q_before = (q.reshape(T, E, -1) for q in (q_next, q_before))
        return head.soft_lambda_returns(
            transitions.reward, discount, q_next, q_before, transitions.action, trace, config
        )
    chosen = jnp.take_along_axis(Y_next, q_next.argmax(axis=-1)[:, None, None], axis=-1)[..., 0]  # (T E, n')
    return head.lambda_returns(key_returns, transitions.reward, discount, chosen.reshape(T, E, -1), trace, config)


def loss(
    Y: Float[Array, "n A"],
    tau: Float[Array, "n"],
    action: Int[Array, ""],
    target: Float[Array, "*n_prime"],
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """The loss of one step by its head, and (q = Q(x, a), |mean of G - q|).

    Args:
        Y: of the network at x.
        tau: the fractions that rows of Y stand for, where they stand for some.
        action: a.
        target: G, as `lambda_targets` gives it.
        config: head, and what its loss needs.
    """
    head = HEADS[config.head]
    q, target = head.mean(Y, config)[action], jax.lax.stop_gradient(target)
    return head.loss(Y[:, action], q, tau, target, config), (q, jnp.abs(head.expected(target, config) - q))


def batch_loss(
    params: PyTree,
    network: nnx.GraphDef,
    rows: tuple[Observation, Int[Array, "B"], Float[Array, "B *n"]],
    key: Key[Array, ""],
    config: Config,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Mean of `loss` over a minibatch, each step at fractions of its own."""
    obs, action, target = rows
    Y, tau = HEADS[config.head].learned(nnx.merge(network, params), obs, key, config)
    value, (q, td_error) = jax.vmap(loss, in_axes=(0, 0, 0, 0, None))(
        Y, jnp.broadcast_to(tau, Y.shape[:-1]), action, target, config
    )
    return value.mean(), (q.mean(), td_error.mean())


def update(config: Config, state: State, rows: PyTree, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one minibatch: state, (loss, gradient norm, mean Q, TD error)."""
    (value, (q, td_error)), gradient = jax.value_and_grad(batch_loss, has_aux=True)(
        state.params, state.network, rows, key, config
    )
    updates, optimizer_state = optimizer(config).update(gradient, state.optimizer_state)
    params = optax.apply_updates(state.params, updates)
    state = replace(
        state,
        params=params,
        average_params=averaging.update(state.average_params, params, config.weight_averaging),
        optimizer_state=optimizer_state,
        gradient_steps=state.gradient_steps + 1,
    )
    return state, (value, optax.tree.norm(gradient), q, td_error)


def optimizer(config: Config) -> optax.GradientTransformation:
    """RAdam with a linearly decaying step size, after clipping by the global norm; small arrays as one vector."""
    end = config.learning_rate * config.learning_rate_end
    duration = config.learning_rate_fraction * config.gradient_steps
    schedule = partial(exploration.linear_schedule, config.learning_rate, end, duration)
    return packing.packed(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.radam(schedule)))


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Z_tau(x, .), for one observation; observation and Z in the environment's units.

    Raises:
        ConfigError: with a head that learns no distribution.
    """
    of_head = HEADS[config.head].quantiles
    if of_head is None:
        *others, last = (name for name, head in HEADS.items() if head.quantiles is not None)
        raise ConfigError(
            f"head: {config.head} learns expected values, no quantiles; choose {', '.join(others)} or {last}"
        )
    x = normalize.observations(state.normalizer, obs)
    return normalize.returns(state.normalizer, of_head(nnx.merge(state.network, state.average_params), x, tau, config))


def acting_policy(config: Config, state: State, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on Q."""
    network = nnx.merge(state.network, state.params)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        q, key = HEADS[config.head].acting(network, normalize.observations(state.normalizer, obs), key, config)
        return exploration.epsilon_greedy(key, q, epsilon)

    return act


def policy(env: Environment, config: Config, state: State) -> Policy:
    """Return the policy that evaluation runs: of the averaged weights, greedy but for `eval_epsilon`."""
    return acting_policy(config, averaging.averaged(state), config.eval_epsilon)


def measure_signals(
    env: Environment,
    config: Config,
    state: State,
    episodes: rollout.Episodes,
    reference_key: Key[Array, ""],
    key: Key[Array, ""],
) -> signals.Signals:
    """Hand over what `quantilax.signals` measures with: there is no replay, so an iteration is collected and thrown away."""
    key_collect, key_targets, key = jax.random.split(key, 3)
    _, collected = collect(env, config, state, epsilon_of(config, state), key_collect)
    transitions = normalize.transitions(state.normalizer, collected)
    rows = rows_of(config, state, transitions, key_targets)
    head = HEADS[config.head]

    def draw(key: Key[Array, ""], size: int) -> PyTree:
        index = jax.random.randint(key, (size,), 0, config.steps_per_iteration)
        return jax.tree.map(lambda x: x[index], rows)

    def mean_loss(params: PyTree, batch: PyTree, key: Key[Array, ""]) -> Float[Array, ""]:
        return batch_loss(params, state.network, batch, key, config)[0]

    def errors(
        params: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B n n_prime"], Float[Array, "B"]]:
        obs, action, target = batch
        Y, _ = head.learned(nnx.merge(state.network, params), obs, key, config)
        q = jax.vmap(lambda Y, a: head.mean(Y, config)[a])(Y, action)
        y = jax.vmap(lambda Y, a: Y[:, a])(Y, action)  # (B, n)
        return head.errors(y, q, target, config), q

    def values(params: PyTree, obs: Observation) -> Float[Array, "A"]:
        return head.values(nnx.merge(state.network, params), obs, signals.midpoints(signals.NUM_FRACTIONS), config)

    def quantiles_of(params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        assert head.quantiles is not None
        return head.quantiles(nnx.merge(state.network, params), obs, tau, config)

    learner = signals.Learner(
        params=state.params,
        average_params=state.average_params,
        target_params=None,
        draw=draw,
        loss=mean_loss,
        errors=errors,
        quantiles=None if head.quantiles is None else quantiles_of,
        values=values,
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
        num_quantile_samples=head.acting_draws(config),
        kappa=head.kappa(config),
        gamma=config.gamma,
        bootstrap_truncated=config.bootstrap_truncated,
        normalizer=state.normalizer,
    )
    return signals.measure(env, learner, episodes, reference_key, key)


ALGORITHM = Algorithm("pqn", Config, init, step, policy, quantiles, measure_signals)
