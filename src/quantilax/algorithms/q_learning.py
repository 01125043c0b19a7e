"""Q-learning from a replay with a target network, with any head: DQN, C51, QR-DQN, IQN, FQF, ...

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `transition` | m steps; R is the sum of their discounted rewards |
| m, d | `steps`, `discount` | m is `n_step`, or less at an episode's end; d is 1 - terminated |
| Z(x, a), Q(x, a) | `prediction`, `head.mean` | what the head says of the return, and its mean |
| theta, theta^- | `params`, `target_params` | online and target network; equal at step 0 |
| a* | `a_star` | argmax of Q^-(x', .), or of the online network's Q(x', .) if `double` |
| y | `target` | what is learned: `R + gamma^m d Z^-(x', a*)`, in the head's form |

A time limit still bootstraps: d is 1 there. Refinements are switches:

- `double` (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461), `n_step`, `prioritized`,
  `dueling` and `noisy`, as in Rainbow (Hessel et al. 2018, https://arxiv.org/abs/1710.02298).
- `munchausen` (Vieillard, Pietquin & Geist 2020, https://arxiv.org/abs/2007.14430): pi is the
  softmax of Q^- at temperature t. R gains `alpha [t ln pi(a|x)]`, with the bracket clipped to [l0,
  0], and `sum_a' pi(a'|x') (Z^-(x', a') - t ln pi(a'|x'))` takes the place of `Z^-(x', a*)`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, PyTree

from quantilax import heads, losses, replay, signals
from quantilax.algorithms import values
from quantilax.algorithms.values import epsilon_at, means, policy, predict, quantiles
from quantilax.errors import ConfigError
from quantilax.hyperparameters import LEAST, Replay, Target
from quantilax.learning import exploration, normalize, rollout
from quantilax.networks import with_noise
from quantilax.pytree import dataclass, field
from quantilax.types import (
    Action,
    Algorithm,
    Carry,
    Environment,
    Legal,
    Metrics,
    NStep,
    Observation,
    Policy,
    Transition,
    num_actions,
)


@dataclass
class Config(values.Config, Replay, Target):
    """Hyperparameters of Q-learning. An algorithm's own config adds a `head` and its groups."""

    adam_eps: float = field(3.125e-4, "epsilon of Adam, added to sqrt(v)", ge=LEAST)
    exploration_repeats: int = field(
        1, "longest repeat of a random action, n with chance proportional to n^-2; 1: epsilon-greedy", ge=1
    )
    dueling: bool = field(False, "separate streams for the state's value and the actions' advantages")
    noisy: bool = field(False, "layers of f with learned noise for exploration; set epsilon to 0 then")

    @property
    def warmup_steps(self) -> int:
        """Environment steps of `init`: `fill_buffer` in whole iterations, at most the whole run."""
        return min(-(-self.fill_buffer // self.num_envs), self.total_timesteps // self.num_envs) * self.num_envs

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration: one in each environment."""
        return self.num_envs

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the whole run."""
        return (self.total_timesteps - self.warmup_steps) // self.num_envs * self.num_epochs

    def derived(self) -> dict[str, Any]:
        """Return figures that follow from the config, see docs/guides/derived.md."""
        updates_per_step = self.num_epochs / self.num_envs
        constant = self.target_update_freq / (1 - self.polyak) if self.polyak < 1 else float("inf")
        return self.figures(
            updates_per_step,
            samples_replayed_per_env_step=updates_per_step * self.batch_size,
            target_time_constant_updates=constant,
            target_time_constant_env_steps=constant / updates_per_step,
        )

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        n, envs = self.n_step, self.num_envs
        steps = "one step" if n == 1 else f"n_step={n} steps"
        if self.munchausen and heads.of(self).soft_target is None:
            raise ConfigError(f"munchausen: not defined for head={self.head}; choose another head or set it to false")
        if self.munchausen and self.double:
            raise ConfigError(
                "double: has no meaning with munchausen, whose targets select no action; set one to false"
            )
        if self.munchausen and n > 1:
            raise ConfigError(
                f"n_step: {n} with munchausen is not defined: the rewards in between would need their own"
                " log-probabilities; set n_step to 1 or munchausen to false"
            )
        for name, lacks in (("buffer_size", "cannot hold"), ("total_timesteps", "is less than")):
            if getattr(self, name) < n * envs:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} {lacks} {steps} of num_envs={envs}; raise it to {n * envs} or more"
                )
        if self.warmup_steps < (n - 1) * envs:
            raise ConfigError(
                f"fill_buffer: {self.fill_buffer} and one step of num_envs={envs} are less than {steps}, which the"
                f" first gradient step reads; raise it to {(n - 1) * envs} or more"
            )

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        lines, batch, fill = super().advice(), self.batch_size, self.fill_buffer
        if batch < 16 and self.n_step == 1:
            lines.append(
                f"batch_size={batch} with 1-step targets: gradients this noisy tend to make runs that never"
                " settle (small batches can work with n-step returns, see docs/stability.md); set batch_size to 32 or more"
            )
        if self.gradient_steps == 0:
            lines.append(
                f"fill_buffer={fill}, a warm-up of {self.warmup_steps} steps, leaves nothing of"
                f" total_timesteps={self.total_timesteps} to learn from: no gradient step is taken; lower fill_buffer or raise"
                " total_timesteps"
            )
        if fill < batch:
            lines.append(
                f"fill_buffer={fill} is smaller than batch_size={batch}: the first batches repeat"
                f" the same few transitions; set fill_buffer to {batch} or more"
            )
        if self.buffer_size < batch:
            lines.append(
                f"buffer_size={self.buffer_size} is smaller than batch_size={batch}: every batch repeats"
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
class State(values.State):
    """Everything that training carries from one iteration to the next."""

    target_params: PyTree
    priorities: replay.Priorities | None
    """Of the steps in the replay. None unless `prioritized`."""
    replay: replay.Ring
    """Steps as the environment gave them; nothing is normalised."""


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Build two equal networks, reset the environments, fill the replay with random actions."""
    key_params, key_reset, key_warmup, key_evaluation, key = jax.random.split(key, 5)
    learner = values.init(env, config, key_params, optimizer(config))
    random = rollout.random_action(env)
    if config.exploration_repeats > 1:
        random = exploration.repeating(random, 1.0, num_actions(env), config.exploration_repeats)
    begun = rollout.begin(env, config, key_reset, random.carry)
    envs = begun["envs"]
    spec, frames = rollout.transition_spec(env), env.observation_space.frames
    ring = replay.init(spec, envs.obs, config.buffer_size, config.n_step, envs.legal, frames)
    state = State(
        **learner,
        **begun,
        target_params=learner["params"],
        replay=ring,
        priorities=replay.priorities.init(ring, config.batch_size) if config.prioritized else None,
        key=key,
        evaluation_key=key_evaluation,
    )

    def warm_up(state: State, key: Key[Array, ""]) -> tuple[State, None]:
        return observe(config, *rollout.collect(env, config, lambda *_: random, state, key), key), None

    iterations = config.warmup_steps // config.num_envs
    return jax.lax.scan(warm_up, state, jax.random.split(key_warmup, iterations))[0]


def optimizer(config: Config) -> optax.GradientTransformation:
    """Return Adam, with what the head adds to it."""
    return values.optimizer(config, partial(optax.adam, eps=config.adam_eps))


def act(env: Environment, config: Config, state: State) -> Policy:
    """Return the training policy: epsilon-greedy, with random actions that repeat if asked for."""
    epsilon, longest = epsilon_at(config, state.env_steps), config.exploration_repeats
    if longest == 1:
        return behaviour(config, state, epsilon)
    return exploration.repeating(behaviour(config, state, 0.0), epsilon, num_actions(env), longest)


def behaviour(config: Config, state: State, epsilon: Float[Array, ""] | float, noise: bool = True) -> Policy:
    """Return the epsilon-greedy policy; if `noisy`, each action draws noise (if `noise`)."""
    if not config.noisy:
        return values.acting(config, state, epsilon)

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        key, key_noise = jax.random.split(key)
        params = with_noise(state.params, key_noise) if noise else state.params
        return values.acting(config, replace(state, params=params), epsilon).act(obs, carry, key, legal)

    return Policy(act)


def observe(config: Config, state: State, transitions: Transition, key: Key[Array, ""]) -> State:
    """Write one step of each environment into the replay."""
    transition = jax.tree.map(lambda x: x[0], transitions)
    ring = replay.add(state.replay, transition, state.envs.obs, state.envs.legal)
    priorities = None if state.priorities is None else replay.priorities.add(state.priorities, ring)
    return replace(state, replay=ring, priorities=priorities)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Take `num_epochs` gradient steps, each on a batch of its own."""
    state, measured = jax.lax.scan(partial(step, config), state, jax.random.split(key, config.num_epochs))
    return state, values.metrics(config, state, measured)


def step(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
    """Take a gradient step and move the target: state, (loss, gradient norm, q, TD error)."""
    key_sample, key_loss = jax.random.split(key)
    if state.priorities is not None:
        state = replace(state, priorities=replay.priorities.write(state.priorities, state.replay))
    batch, drawn = draw(config, state, key_sample, config.batch_size)
    arguments = config, state, batch, key_loss
    state, (value, norm), measured = values.gradient_step(config, state, optimizer(config), loss, *arguments)
    q, td_error, priority = measured
    priorities = state.priorities
    if priorities is not None:
        priorities = replay.priorities.remember(priorities, drawn, priority, config.priority_exponent)
    keep = jnp.where(state.gradient_steps % config.target_update_freq == 0, config.polyak, 1.0)
    target_params = optax.incremental_update(state.params, state.target_params, 1 - keep)
    return replace(state, target_params=target_params, priorities=priorities), (value, norm, q.mean(), td_error.mean())


def draw(config: Config, state: State, key: Key[Array, ""], size: int) -> tuple[NStep, Any]:
    """Draw a normalised batch. If `prioritized`, also return where it lies in the replay.

    The batch then has weights, and beta rises linearly to 1 at the end of the run.
    """
    if state.priorities is None:
        batch, drawn = replay.sample(state.replay, key, size, config.gamma), None
    else:
        beta = exploration.linear_schedule(config.importance_exponent, 1.0, config.total_timesteps, state.env_steps)
        batch, drawn = replay.priorities.sample(state.priorities, state.replay, key, size, config.gamma, beta)
    return normalize.transitions(state.normalizer, batch), drawn


def loss(
    params: PyTree, config: Config, state: State, batch: NStep, key: Key[Array, ""]
) -> tuple[Float[Array, ""], tuple[Float[Array, "B"], ...]]:
    """Return the weighted mean of the head's loss, and (q, TD error, priority) of each example.

    If `noisy`, online(x), the target network and online(x') get independent draws of noise.
    """
    head, networks = heads.of(config), (params, state.target_params, params)
    if config.noisy:
        key, *keys = jax.random.split(key, 4)
        networks = tuple(map(with_noise, networks, keys))
    predictions, y = compared(config, state.network, networks, batch, key)
    y = jax.lax.stop_gradient(y)
    value, measured = jax.vmap(head.loss)(predictions, y), jax.vmap(head.measures)(predictions, y)
    return value.mean() if batch.weight is None else (batch.weight * value).mean(), measured


def compared(
    config: Config, network: nnx.GraphDef, networks: tuple[PyTree, ...], batch: NStep, key: Key[Array, ""]
) -> tuple[Any, Any]:
    """Return the predictions for the actions taken in a normalised batch, and their targets.

    Args:
        config, batch, key: of the gradient step. Each example draws its fractions from the key.
        network: the structure of all three networks.
        networks: parameters: online for x, target, and online for selecting a*.
    """
    online, target, selector = (nnx.merge(network, params) for params in networks)
    uses = "tau", "tau_prime", "tau_action"
    tau, tau_prime, tau_action = heads.of(config).draw(key, batch.reward.shape, *uses)
    successors, q_next = values.successors(
        target, selector if config.double else target, batch.next_obs, batch.next_legal, tau_prime, tau_action, config
    )
    q_before = None
    if config.munchausen:
        q_before = exploration.masked(means(predict(target, batch.obs, tau_action, config), config), batch.legal)
    predictions = jax.vmap(lambda Z, action: Z.taken(action))(predict(online, batch.obs, tau, config), batch.action)
    return predictions, jax.vmap(partial(target_of, config))(successors, q_next, q_before, batch)


def target_of(
    config: Config, successor: Any, q_next: Float[Array, "A"], q_before: Float[Array, "A"] | None, transition: NStep
) -> Any:
    """Return y of one transition: R + gamma^m d Z^-(x', a*), or its soft form if `munchausen`.

    Args:
        config: gamma, the head, and the numbers of `munchausen`.
        successor: what the target network predicts at x'.
        q_next: values at x' of the network that selects a*; -inf for illegal actions.
        q_before: values at x of the target network, for `munchausen`; else None.
        transition: (x, a, R, x'), over m steps.
    """
    head, reward = heads.of(config), transition.reward
    discount = config.gamma**transition.steps * transition.discount
    if q_before is None:
        a_star = jnp.argmax(q_next)
        return head.target(reward, discount, successor.taken(a_star))
    t, alpha, l0 = config.munchausen_temperature, config.munchausen_alpha, config.munchausen_clip
    bonus = losses.scaled_log_softmax(q_before, t)[transition.action]
    pi = losses.soft_policy(q_next, t, masked=transition.next_legal is not None)
    return head.soft_target(reward + alpha * jnp.clip(bonus, l0, 0), discount, successor, pi)


def experience(config: Config, state: State) -> signals.Experience:
    """Return all steps in the replay."""
    rows = state.replay.rows  # (T, E)
    filled = (jnp.arange(rows.reward.shape[0]) < state.replay.iterations)[:, None]
    rewards = normalize.rewards(state.normalizer, rows.reward)
    is_there: Bool[Array, "T E"] = jnp.broadcast_to(filled, rows.reward.shape)
    return signals.Experience(rows.action, rewards, rows.terminated, rows.truncated, is_there)


def learned(params: PyTree, config: Config, state: State, batch: NStep, key: Key[Array, ""]) -> tuple[Any, Any]:
    """Return `compared` without noise."""
    return compared(config, state.network, (params, state.target_params, params), batch, key)


def explores(config: Config, state: State) -> Float[Array, ""] | float:
    """Return the current share of random actions."""
    return exploration.share_of_repeats(epsilon_at(config, state.env_steps), config.exploration_repeats)


SIGNALS = signals.Learning(True, draw, loss, learned, experience, optimizer, behaviour, explores)


def algorithm(name: str, config: type) -> Algorithm:
    """Return Q-learning with the head of a config class, under a name."""
    head = heads.HEADS.get(getattr(config, "head", ""))  # a `head` that is a field may be any head
    of_head = None if head is not None and head.quantiles is None else quantiles
    return Algorithm(name, config, init, act, observe, update, policy, of_head, SIGNALS)
