"""The loop of algorithms that learn from a replay and have a target network: DQN, C51, QR-DQN, IQN, FQF.

An algorithm's file has its network, its loss and its acting policy (and its optimiser, where that is not `adam`), and calls
what stands here. Its config has the hyperparameters that are read here; theta and theta^- are `params` and `target_params`,
equal at step 0, and so is the average of theta that evaluation runs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import averaging, exploration, normalize, packing, replay, rollout, signals
from quantilax.envs.vector import Mapped
from quantilax.hyperparameters import LEAST, Exploration, Loop, Network, Optimiser, Replay, Target, Task
from quantilax.networks import computing_in, with_noise
from quantilax.pytree import MAX_INT32, ConfigError, dataclass, field
from quantilax.types import Config, Environment, Metrics, NStep, Observation, Policy, num_actions

Losses: TypeAlias = tuple[Float[Array, ""], tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]]
"""The weighted mean of a batch's losses, and (q, |mean of the target - q|, priority) of each example."""
BatchLoss: TypeAlias = Callable[..., Losses]
"""(params, target_params, network, batch, key, config, selector_params=None) -> loss; what is in the batch is normalised.

The last, given if `noisy` only, are the online network's with another draw of noise: where it selects actions at x'.
"""


@dataclass
class SharedConfig(Loop, Replay, Optimiser, Target, Exploration, Task, Network):
    """The hyperparameters that all of these algorithms have."""

    adam_eps: float = field(3.125e-4, "epsilon of Adam, added to sqrt(v)", ge=LEAST)
    exploration_repeats: int = field(
        1,
        "the most steps for which a random action is repeated, n with chances in proportion to n^-2; 1: epsilon-greedy",
        ge=1,
    )
    dueling: bool = field(False, "a stream for the state's value and one for the actions' advantages")
    noisy: bool = field(False, "layers of f with learned noise, which explores; epsilon is best 0 then")

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
            "average_age_env_steps": averaging.mean_age(self.weight_averaging) / updates_per_step,
            "epsilon_end_at_env_step": round(self.exploration_fraction * self.total_timesteps),
        }

    def check(self) -> None:
        """Raise `ConfigError` for fields that contradict each other."""
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
        lines += averaging.advice(self.weight_averaging, self.gradient_steps)
        lines += normalize.advice(self.normalize_rewards, self.reward_scale)
        if self.batch_size < 16 and self.n_step == 1:
            lines.append(
                f"batch_size={self.batch_size} with 1-step targets: gradients this noisy tend to make runs that never"
                " settle (small batches can serve with n-step returns, see docs/stability.md); set batch_size to 32 or more"
            )
        if self.gradient_steps == 0:
            lines.append(
                f"fill_buffer={self.fill_buffer}, a warm-up of {self.warmup_steps} steps, leaves nothing of"
                f" total_timesteps={self.total_timesteps} to learn from: no gradient step is taken; lower fill_buffer or raise"
                " total_timesteps"
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
    average_params: PyTree
    """What evaluation runs, see `quantilax.averaging`."""
    optimizer_state: PyTree
    priorities: replay.Priorities | None
    """Of the steps in the replay; None unless `prioritized`."""
    replay: replay.Ring
    """Steps as the environment gave them, nothing normalised."""
    env_state: PyTree
    """Leading axis num_envs."""
    obs: Shaped[Array, "num_envs *obs"]
    repeats: exploration.Repeats | None
    """Random actions that go on; None where they last for one step, `exploration_repeats: 1`."""
    normalizer: normalize.Normalizer
    key: Key[Array, ""]
    evaluation_key: Key[Array, ""]
    """Never split: evaluations fold the step into it, so they cannot disturb training."""
    env_steps: Int[Array, ""]
    gradient_steps: Int[Array, ""]


ActingPolicy: TypeAlias = Callable[[Config, State, Float[Array, ""] | float], Policy]
"""(config, state, epsilon) -> policy."""
Update: TypeAlias = Callable[[Config, State, Key[Array, ""]], tuple[State, tuple[Array, ...]]]
"""(config, state, key) -> (state, (loss, gradient norm, mean q, TD error)): one gradient step."""
Optimizer: TypeAlias = Callable[[Config], optax.GradientTransformation]
"""config -> what turns gradients into steps."""


class MakesNetwork(Protocol):
    """A class of networks: `psi` makes features of one normalised observation."""

    def __call__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
        """Make the network for the environment's spaces."""


def check_munchausen(config: Config) -> None:
    """Raise `ConfigError` for what `munchausen` does not go with."""
    if config.munchausen and config.double:
        raise ConfigError("double: has no meaning with munchausen, whose targets select no action; set one to false")
    if config.munchausen and config.n_step > 1:
        raise ConfigError(
            f"n_step: {config.n_step} with munchausen is not defined: the rewards on the way would need their own"
            " log-probabilities; set n_step to 1 or munchausen to false"
        )


def adam(config: Config) -> optax.GradientTransformation:
    """Adam with a linear schedule of its step size, after clipping by the global norm; small arrays as one vector."""
    end = config.learning_rate * config.learning_rate_end
    duration = config.learning_rate_fraction * config.gradient_steps
    schedule = partial(exploration.linear_schedule, config.learning_rate, end, duration)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return packing.packed(optax.chain(clip, optax.adam(schedule, eps=config.adam_eps)))


def init(
    env: Environment, config: Config, key: Key[Array, ""], network: MakesNetwork, optimizer: Optimizer = adam
) -> State:
    """Make the networks (target = online), reset the environments, fill the replay with random actions."""
    key_params, key_reset, key_warmup, key_evaluation, key = jax.random.split(key, 5)
    made = network(env, config, rngs=nnx.Rngs(key_params))
    graphdef, params = nnx.split(computing_in(made, getattr(config, "compute_dtype", "float32")))
    env_state, obs = Mapped(env=env).reset(jax.random.split(key_reset, config.num_envs))
    ring = replay.init(rollout.transition_spec(env), obs, config.buffer_size, config.n_step)
    state = State(
        network=graphdef,
        params=params,
        target_params=params,
        average_params=params,
        optimizer_state=optimizer(config).init(params),
        replay=ring,
        priorities=replay.priorities.init(ring, config.batch_size) if config.prioritized else None,
        env_state=env_state,
        obs=obs,
        repeats=exploration.no_repeats(config.num_envs) if config.exploration_repeats > 1 else None,
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

    act = rollout.random_action(env)

    def warm_up(state: State, key: Key[Array, ""]) -> tuple[State, None]:
        return collect(env, config, state, act, 1.0, key), None

    iterations = config.warmup_steps // config.num_envs
    return jax.lax.scan(warm_up, state, jax.random.split(key_warmup, iterations))[0]


def step(
    env: Environment, config: Config, state: State, acting_policy: ActingPolicy, update: Update
) -> tuple[State, Metrics]:
    """Take one step in each environment, then `num_epochs` gradient steps."""
    key, key_collect, key_updates = jax.random.split(state.key, 3)
    epsilon = epsilon_of(config, state)
    act = behaviour(config, state, epsilon if state.repeats is None else 0.0, acting_policy)
    state = collect(env, config, replace(state, key=key), act, epsilon, key_collect)

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


def epsilon_of(config: Config, state: Any) -> Float[Array, ""]:
    """Probability of a random action, by the schedule."""
    duration = config.exploration_fraction * config.total_timesteps
    return exploration.linear_schedule(config.eps_start, config.eps_end, duration, state.env_steps)


def behaviour(
    config: Config, state: State, epsilon: Float[Array, ""] | float, acting_policy: ActingPolicy, noise: bool = True
) -> Policy:
    """How training acts: if `noisy` with a draw of noise for each action; without `noise` the same but for that."""
    if not config.noisy:
        return acting_policy(config, state, epsilon)

    def act(obs: Observation, key: Key[Array, ""]) -> Int[Array, ""]:
        key, key_noise = jax.random.split(key)
        params = with_noise(state.params, key_noise) if noise else state.params
        return acting_policy(config, replace(state, params=params), epsilon)(obs, key)

    return act


def collect(
    env: Environment, config: Config, state: State, act: Policy, epsilon: Float[Array, ""] | float, key: Key[Array, ""]
) -> State:
    """One step of each environment into the replay: by `act`, or by a random action that goes on."""
    repeats, instead = state.repeats, None
    if repeats is not None:
        key, key_repeats = jax.random.split(key)
        repeats = exploration.begin_repeats(key_repeats, repeats, epsilon, num_actions(env), config.exploration_repeats)
        instead = repeats.left > 0, repeats.action
    env_state, obs, transition = rollout.collect(env, act, state.env_state, state.obs, key, instead)
    if repeats is not None:
        repeats = exploration.end_step(repeats, transition.terminated | transition.truncated)
    if not config.bootstrap_truncated:
        transition = transition.ended_where_truncated()
    ring, priorities = replay.add(state.replay, transition, obs), state.priorities
    return replace(
        state,
        replay=ring,
        priorities=None if priorities is None else replay.priorities.add(priorities, ring),
        env_state=env_state,
        obs=obs,
        repeats=repeats,
        normalizer=normalize.update(state.normalizer, transition, config.gamma),
        env_steps=state.env_steps + config.num_envs,
    )


def update(
    config: Config, state: State, key: Key[Array, ""], batch_loss: BatchLoss, optimizer: Optimizer = adam
) -> tuple[State, tuple[Array, ...]]:
    """One gradient step on one batch, and the target's move: state, (loss, gradient norm, mean q, TD error)."""
    key_sample, key_loss = jax.random.split(key)
    priorities = state.priorities
    if priorities is None:
        batch = draw(config, state, key_sample, config.batch_size)
    else:
        priorities = replay.priorities.write(priorities, state.replay)
        batch, drawn = draw_by_priority(config, state, priorities, key_sample, config.batch_size)
    (value, (q, td_error, priority)), gradient = jax.value_and_grad(loss, has_aux=True)(
        state.params, config, state, batch, key_loss, batch_loss
    )
    updates, optimizer_state = optimizer(config).update(gradient, state.optimizer_state)
    params = optax.apply_updates(state.params, updates)

    if priorities is not None:
        priorities = replay.priorities.remember(priorities, drawn, priority, config.priority_exponent)
    gradient_steps = state.gradient_steps + 1
    keep = jnp.where(gradient_steps % config.target_update_freq == 0, config.polyak, 1.0)
    target_params = optax.incremental_update(params, state.target_params, 1 - keep)
    state = replace(
        state,
        params=params,
        target_params=target_params,
        average_params=averaging.update(state.average_params, params, config.weight_averaging),
        optimizer_state=optimizer_state,
        priorities=priorities,
        gradient_steps=gradient_steps,
    )
    return state, (value, optax.tree.norm(gradient), q.mean(), td_error.mean())


def loss(
    params: PyTree, config: Config, state: State, batch: NStep, key: Key[Array, ""], batch_loss: BatchLoss
) -> Losses:
    """`batch_loss`, if `noisy` with independent draws of noise for online(x), for the target network and for online(x')."""
    if not config.noisy:
        return batch_loss(params, state.target_params, state.network, batch, key, config)
    key, *keys = jax.random.split(key, 4)
    online, target, selector = map(with_noise, (params, state.target_params, params), keys)
    return batch_loss(online, target, state.network, batch, key, config, selector)


def networks(
    network: nnx.GraphDef, params: PyTree, target_params: PyTree, selector_params: PyTree | None = None
) -> tuple[Any, Any, Any]:
    """Return the online network, the target network, and the online one where it selects: the first, unless given apart."""
    online, target = nnx.merge(network, params), nnx.merge(network, target_params)
    return online, target, online if selector_params is None else nnx.merge(network, selector_params)


def draw(config: Config, state: State, key: Key[Array, ""], size: int) -> NStep:
    """Draw a batch from the replay, normalised, as training draws it."""
    if state.priorities is not None:
        return draw_by_priority(config, state, state.priorities, key, size)[0]
    return normalize.transitions(state.normalizer, replay.sample(state.replay, key, size, config.gamma))


def draw_by_priority(
    config: Config, state: State, priorities: replay.Priorities, key: Key[Array, ""], size: int
) -> tuple[NStep, tuple[Array, Array]]:
    """Draw a normalised batch with its weights, and where it lies; beta rises linearly to 1 at the end of the run."""
    beta = exploration.linear_schedule(config.importance_exponent, 1.0, config.total_timesteps, state.env_steps)
    batch, drawn = replay.priorities.sample(priorities, state.replay, key, size, config.gamma, beta)
    return normalize.transitions(state.normalizer, batch), drawn


def weighted_mean(loss: Float[Array, "B"], batch: NStep) -> Float[Array, ""]:
    """Mean over a batch, each example by its weight."""
    return loss.mean() if batch.weight is None else (batch.weight * loss).mean()


def learner(
    config: Config,
    state: State,
    acting_policy: ActingPolicy,
    batch_loss: BatchLoss,
    errors: Callable[[PyTree, NStep, Key[Array, ""]], tuple[Float[Array, "B N N_prime"], Float[Array, "B"]]],
    values: Callable[[PyTree, Observation], Float[Array, "A"]],
    quantiles: Callable[[PyTree, Observation, Float[Array, "N"]], Float[Array, "N A"]] | None,
    kappa: Float[Array, ""] | float | None = None,
    num_quantile_samples: int | None = None,
    optimizer: Optimizer = adam,
) -> signals.Learner:
    """What `signals.measure` needs of an algorithm; see `signals.Learner` for the arguments."""

    def mean_loss(params: PyTree, batch: NStep, key: Key[Array, ""]) -> Float[Array, ""]:
        return loss(params, config, state, batch, key, batch_loss)[0]

    rows = state.replay.rows  # (T, E)
    filled = (jnp.arange(rows.reward.shape[0]) < state.replay.iterations)[:, None]
    return signals.Learner(
        params=state.params,
        average_params=state.average_params,
        target_params=state.target_params,
        draw=lambda key, size: draw(config, state, key, size),
        loss=mean_loss,
        errors=errors,
        quantiles=quantiles,
        values=values,
        features=lambda params, obs: nnx.merge(state.network, params).psi(obs),
        behave=behaviour(
            config,
            state,
            exploration.share_of_repeats(epsilon_of(config, state), config.exploration_repeats),
            acting_policy,
        ),
        greedy=behaviour(config, state, 0.0, acting_policy, noise=False),
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
        num_quantile_samples=num_quantile_samples,
        kappa=kappa,
        gamma=config.gamma,
        bootstrap_truncated=config.bootstrap_truncated,
        normalizer=state.normalizer,
    )
