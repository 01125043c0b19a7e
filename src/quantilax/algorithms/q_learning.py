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
- `risk_objective`, see `quantilax.algorithms.objectives`: a* and the policy maximise a measure of
  risk instead of Q.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from quantilax import heads, losses, replay, signals
from quantilax.algorithms import base, objectives, offpolicy, values
from quantilax.algorithms.offpolicy import Replayed, State, observe
from quantilax.algorithms.values import epsilon_at, means, predict, quantiles
from quantilax.errors import ConfigError
from quantilax.hyperparameters import LEAST, Replay, Target
from quantilax.learning import exploration, rollout
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
    num_actions,
)


@dataclass
class Config(Replayed, values.Config, Replay, Target):
    """Hyperparameters of Q-learning. An algorithm's own config adds a `head` and its groups."""

    adam_eps: float = field(3.125e-4, "epsilon of Adam, added to sqrt(v)", ge=LEAST)
    exploration_repeats: int = field(
        1, "longest repeat of a random action, n with chance proportional to n^-2; 1: epsilon-greedy", ge=1
    )
    dueling: bool = field(False, "separate streams for the state's value and the actions' advantages")
    noisy: bool = field(False, "layers of f with learned noise for exploration; set epsilon to 0 then")

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        objectives.check(self)
        if self.munchausen and heads.of(self).soft_target is None:
            raise ConfigError(f"munchausen: not defined for head={self.head}; choose another head or set it to false")
        if self.munchausen and self.double:
            raise ConfigError(
                "double: has no meaning with munchausen, whose targets select no action; set one to false"
            )
        if self.munchausen and self.n_step > 1:
            raise ConfigError(
                f"n_step: {self.n_step} with munchausen is not defined: the rewards in between would need their own"
                " log-probabilities; set n_step to 1 or munchausen to false"
            )


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Build two equal networks, reset the environments, fill the replay with random actions."""
    key_params, key_reset, key_warmup, key_evaluation, key = jax.random.split(key, 5)
    learner = values.init(env, config, key_params, optimizer(config))
    random = rollout.random_action(env)
    if config.exploration_repeats > 1:
        random = exploration.repeating(random, 1.0, num_actions(env), config.exploration_repeats)
    state = State(
        **learner,
        **offpolicy.begin(env, config, key_reset, random),
        target_params=learner["params"],
        key=key,
        evaluation_key=key_evaluation,
    )
    return offpolicy.warm_up(env, config, state, key_warmup, random)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Return Adam, with what the head adds to it."""
    return base.optimizer(config, partial(optax.adam, eps=config.adam_eps))


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


def policy(env: Environment, config: Config, state: State) -> Policy:
    """Return the policy that evaluation runs, see `values.policy`.

    With stocks, episodes begin with the stocks for the config's level of risk.
    """
    acts = values.policy(env, config, state)
    if objectives.weights(config) is None:
        return acts
    return acts._replace(begin=beginning(config, state, *objectives.mixture(config)))


def policy_at(env: Environment, config: Config, state: State, level: Float[Array, ""]) -> Policy:
    """Return the policy for CVaR at another level than the config's, with the same weights.

    With stocks, episodes begin with the stocks for CVaR at this level. If the mean was maximised,
    the policy is greedy for the CVaR of the learned returns, as with `risk: cvar`.

    Raises:
        ConfigError: there is no such policy.
    """
    if config.risk_objective == "dynamic_cvar":
        raise ConfigError("risk_objective: dynamic_cvar learns for one level; train with static_cvar to choose later")
    if objectives.weights(config) is not None:
        return values.policy(env, config, state)._replace(begin=beginning(config, state, level[None], jnp.ones(1)))
    if heads.of(config).worst is None:
        raise ConfigError(f"head: {config.head} has no policy for a level of risk; train quantile or implicit_quantile")
    greedy: Any = {"risk_objective": "dynamic_cvar", "risk_level": level}
    return values.policy(env, replace(config, **greedy), state)


def beginning(config: Config, state: State, levels: Float[Array, "L"], shares: Float[Array, "L"]) -> Callable[..., Any]:
    """Return `Policy.begin` for a mixture of CVaRs."""
    network = nnx.merge(state.network, state.average_params)

    def Z(obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:  # noqa: N802 the paper's name
        psi = network.psi(objectives.inputs(config, state.normalizer, obs))
        found: Float[Array, "N A"] = base.quantiles_of(config)(network.head, psi, tau)
        return found

    def begin(env_state: Any, obs: Observation) -> tuple[Any, Observation]:
        c = objectives.first_stock(config, state.normalizer, Z, obs, levels, shares)
        return objectives.stock(config).begin(env_state, obs, c)

    return begin


def draw(config: Config, state: State, key: Key[Array, ""], size: int) -> tuple[NStep, Any]:
    """Draw a batch as `offpolicy.draw` does, with new stocks if there are stocks."""
    if objectives.weights(config) is None:
        return offpolicy.draw(config, state, key, size)
    key, key_stock = jax.random.split(key)
    batch, drawn = offpolicy.draw(config, state, key, size)
    return objectives.relabelled(config, state.normalizer, batch, key_stock), drawn


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
    state, (value, norm), measured = base.gradient_step(config, state, optimizer(config), loss, *arguments)
    q, td_error, priority = measured
    priorities = state.priorities
    if priorities is not None:
        priorities = replay.priorities.remember(priorities, drawn, priority, config.priority_exponent)
    keep = jnp.where(state.gradient_steps % config.target_update_freq == 0, config.polyak, 1.0)
    target_params = optax.incremental_update(state.params, state.target_params, 1 - keep)
    return replace(state, target_params=target_params, priorities=priorities), (value, norm, q.mean(), td_error.mean())


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
    predictions, y = compared(config, state, networks, batch, key)
    y = jax.lax.stop_gradient(y)
    value, measured = jax.vmap(head.loss)(predictions, y), jax.vmap(head.measures)(predictions, y)
    return value.mean() if batch.weight is None else (batch.weight * value).mean(), measured


def compared(
    config: Config, state: State, networks: tuple[PyTree, ...], batch: NStep, key: Key[Array, ""]
) -> tuple[Any, Any]:
    """Return the predictions for the actions taken in a normalised batch, and their targets.

    Args:
        config, state, batch, key: of the gradient step. Each example draws its fractions from the
            key.
        networks: parameters: online for x, target, and online for selecting a*.
    """
    online, target, selector = (nnx.merge(state.network, params) for params in networks)
    uses = "tau", "tau_prime", "tau_action"
    tau, tau_prime, tau_action = heads.of(config).draw(key, batch.reward.shape, *uses)
    if config.risk_objective == "dynamic_cvar":
        level = config.risk_level  # type: ignore[attr-defined]
        tau_prime, tau_action = heads.of(config).worst(level, [tau_prime, tau_action])
    chooses = selector if config.double else target
    successors, q_next = values.successors(
        target, chooses, batch.next_obs, batch.next_legal, tau_prime, tau_action, config, state.normalizer
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

    With `dynamic_cvar` the CVaR of Z^-(x', a*) takes the place of Z^-(x', a*).

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
        chosen = successor.taken(jnp.argmax(q_next))
        if config.risk_objective == "dynamic_cvar":  # its fractions are those of the worst share
            chosen = chosen._replace(Y=chosen.Y.mean(axis=0, keepdims=True))
        return head.target(reward, discount, chosen)
    t, alpha, l0 = config.munchausen_temperature, config.munchausen_alpha, config.munchausen_clip
    bonus = losses.scaled_log_softmax(q_before, t)[transition.action]
    pi = losses.soft_policy(q_next, t, masked=transition.next_legal is not None)
    return head.soft_target(reward + alpha * jnp.clip(bonus, l0, 0), discount, successor, pi)


def learned(params: PyTree, config: Config, state: State, batch: NStep, key: Key[Array, ""]) -> tuple[Any, Any]:
    """Return `compared` without noise."""
    return compared(config, state, (params, state.target_params, params), batch, key)


def policies(env: Environment, config: Config, state: State) -> tuple[Policy, Policy]:
    """Return the policy of training without repeats, and the greedy one without noise."""
    epsilon = exploration.share_of_repeats(epsilon_at(config, state.env_steps), config.exploration_repeats)
    return behaviour(config, state, epsilon), behaviour(config, state, 0.0, noise=False)


SIGNALS = signals.Learning(True, draw, loss, learned, offpolicy.experience, optimizer, policies)


def algorithm(name: str, config: type) -> Algorithm:
    """Return Q-learning with the head of a config class, under a name."""
    head = heads.HEADS.get(getattr(config, "head", ""))  # a `head` that is a field may be any head
    of_head = None if head is not None and head.quantiles is None else quantiles
    plays = objectives.environment
    return Algorithm(name, config, init, act, observe, update, policy, of_head, SIGNALS, environment=plays, q=values.q)
