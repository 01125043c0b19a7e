"""What SAC and TD3 share: critics with any head, an actor, and how the two meet.

| symbol | here | meaning |
|---|---|---|
| x, a, R, x' | `batch` | m steps; R sums their discounted rewards; a is scaled to [-1, 1] |
| Z_i(x, a) | `predictions` | what critic i of `num_critics` predicts of the return |
| psi(x, a) | `Critic.psi` | features of an observation and an action, before the head's layer |
| Z(x', a') | `successor` | what the critics together say of x', from their target networks |

`top_quantiles_to_drop` says how critics are combined. If it is 0, the least of them counts: the
minimum at each quantile, or for other heads the prediction with the smallest mean (clipped double
Q-learning). If it is above 0, the quantiles of all critics are pooled, and that many per critic are
dropped from the top (TQC).

Sources: Fujimoto, van Hoof & Meger (2018), https://arxiv.org/abs/1802.09477; Kuznetsov et al.
(2020), https://arxiv.org/abs/2005.04269.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from quantilax import heads, hyperparameters, replay, signals
from quantilax.algorithms import base, offpolicy
from quantilax.errors import ConfigError
from quantilax.hyperparameters import LEAST, Loop, Optimiser, Replay, Task, default
from quantilax.learning import averaging, normalize, rollout
from quantilax.networks import FLAT, computing_in, linear, torso
from quantilax.pytree import dataclass, field
from quantilax.types import (
    Action,
    Algorithm,
    Box,
    Carry,
    Environment,
    Legal,
    Metrics,
    NStep,
    Observation,
    Policy,
    Transition,
)


@dataclass
class Config(offpolicy.Replayed, Loop, Optimiser, Replay, Task, hyperparameters.Network):
    """What the configs of SAC and TD3 share.

    An algorithm's own config adds a `head` and the groups of its hyperparameters.
    """

    squared_error: ClassVar[bool] = True
    dueling: ClassVar[bool] = False
    noisy: ClassVar[bool] = False
    usual_samples: ClassVar[tuple[float, float]] = (16.0, 1024.0)
    """Usual range of the samples replayed per environment step, for `quantilax lint`."""

    num_envs: int = default(Loop, "num_envs", 1)
    num_epochs: int = default(Loop, "num_epochs", 1)
    batch_size: int = default(Replay, "batch_size", 256)
    learning_rate: float = field(3e-4, "initial step size of Adam, for critics, actor and temperature", ge=0)
    adam_eps: float = field(1e-8, "epsilon of Adam, added to sqrt(v)", ge=LEAST)
    target_update_freq: int = field(1, "gradient steps between updates of the target networks", ge=1)
    polyak: float = field(0.995, "share of the target networks kept in an update; 0: a hard copy", ge=0, le=1)
    num_critics: int = field(2, "critics, each with a network of its own", ge=1)
    top_quantiles_to_drop: int = field(
        0, "quantiles per critic dropped from the top of the pooled target; 0: the least of the critics", ge=0
    )
    torso_sizes: tuple[int, ...] = default(hyperparameters.Network, "torso_sizes", (256, 256))
    head_sizes: tuple[int, ...] = default(hyperparameters.Network, "head_sizes", ())

    @property
    def actor_delay(self) -> int:
        """Gradient steps of the critics per step of the actor."""
        return 1

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        head, dropped = heads.of(self), self.top_quantiles_to_drop
        if dropped and head.pooled is None:
            raise ConfigError(
                f"top_quantiles_to_drop: head={self.head} has no quantiles to drop; set it to 0, or head to quantile or"
                " implicit_quantile"
            )
        if dropped and dropped >= (n := head.num_target_numbers):
            raise ConfigError(
                f"top_quantiles_to_drop: {dropped} of {n} quantiles per critic leaves none to learn from; lower it to"
                f" {n - 1} or less"
            )

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        lines = super().advice()
        if self.torso not in FLAT and not self.head_sizes:
            lines.append(
                f"head_sizes=[] with torso={self.torso}: the action joins the last layer, so values are linear in it; set"
                " head_sizes to [256]"
            )
        return lines

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        lines, dropped = super().caveats(), self.top_quantiles_to_drop
        if dropped:
            lines.append(f"top_quantiles_to_drop={dropped}: the learned returns are too low on purpose")
        elif self.num_critics > 1:
            lines.append(
                f"num_critics={self.num_critics}: targets are the least of the critics, so the learned returns are too"
                " low on purpose"
            )
        return lines


class Critic(nnx.Module):
    """psi(x, a) and the layer of the config's head, for one action."""

    def __init__(self, env: Environment, config: Any, *, rngs: nnx.Rngs) -> None:
        """Build both for the spaces of the environment.

        If observations are flat, the action joins them. Otherwise it joins the torso's features.
        """
        space, actions = env.observation_space, action_size(env)
        self.is_flat = config.torso in FLAT
        if self.is_flat:
            space = Box((math.prod(space.shape) + actions,))
        self.psi = torso(space, config, rngs=rngs)
        features = self.psi.features + (0 if self.is_flat else actions)
        self.head = heads.of(config).layer(features, 1, rngs)

    def features(self, obs: Observation, action: Float[Array, "d"]) -> Float[Array, "features"]:
        """Return psi(x, a) of one observation and one scaled action."""
        if self.is_flat:
            return self.psi(jnp.concatenate([jnp.ravel(obs).astype(jnp.float32), action]))
        return jnp.concatenate([self.psi(obs), action])


class Actor(nnx.Module):
    """A torso and a dense layer: numbers per component of the action."""

    def __init__(self, env: Environment, config: Any, n: int, *, rngs: nnx.Rngs) -> None:
        """Build both. `n` is the number of outputs per component of the action."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.out = linear(self.psi.features, n * action_size(env), rngs, dtype=jnp.float32)
        self.n = n

    def __call__(self, obs: Observation) -> Float[Array, "n d"]:
        """Return the outputs for one observation."""
        return self.out(self.psi(obs)).reshape(self.n, -1)


class Networks(NamedTuple):
    """The structure of the networks. It has no leaves and is the same for every seed."""

    critic: nnx.GraphDef
    actor: nnx.GraphDef


class Bounds(NamedTuple):
    """Where the components of an action lie. Networks see actions scaled to [-1, 1]."""

    low: Float[Array, "d"]
    high: Float[Array, "d"]

    @classmethod
    def of(cls, space: Any) -> "Bounds | None":
        """Return the bounds of a space's flat actions; None if they are discrete."""
        if not isinstance(space, Box):
            return None
        return cls(
            *(jnp.broadcast_to(jnp.asarray(b, jnp.float32), space.shape).ravel() for b in (space.low, space.high))
        )

    def scaled(self, action: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Return actions of the environment, scaled to [-1, 1]."""
        return 2 * (action - self.low) / (self.high - self.low) - 1

    def unscaled(self, action: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Return the environment's actions for scaled ones."""
        action = self.low + (action + 1) / 2 * (self.high - self.low)
        return jnp.clip(action, self.low, self.high)  # rounding may lead beyond a bound


@dataclass
class State(offpolicy.State):
    """Everything that training carries from one iteration to the next.

    `params` has the entries `critic` (with a leading axis of critics), `actor`, and what a loop
    adds. `target_params` has the entries of which there are target networks.
    """

    bounds: Bounds

    @property
    def followed(self) -> PyTree:
        """The parameters that `target_params` follow."""
        return {name: self.params[name] for name in self.target_params}


def action_size(env: Environment) -> int:
    """Return the number of components of an action."""
    return math.prod(env.action_space.shape)  # type: ignore[union-attr]


def init(
    env: Environment, config: Any, key: Key[Array, ""], outputs: int, extra: dict[str, Any], targets: tuple[str, ...]
) -> State:
    """Build the networks, reset the environments, fill the replay with random actions.

    Args:
        env, config, key: of training.
        outputs: of the actor, per component of an action.
        extra: the loop's own entries of `params`.
        targets: entries of `params` that have a target network.
    """
    key_actor, key_critic, key_reset, key_warmup, key_evaluation, key = jax.random.split(key, 6)

    def critic(key: Key[Array, ""]) -> Any:
        return nnx.split(computing_in(Critic(env, config, rngs=nnx.Rngs(key)), config.compute_dtype))

    keys = jax.random.split(key_critic, config.num_critics)
    actor, of_actor = nnx.split(
        computing_in(Actor(env, config, outputs, rngs=nnx.Rngs(key_actor)), config.compute_dtype)
    )
    params = {"critic": jax.vmap(lambda key: critic(key)[1])(keys), "actor": of_actor, **extra}
    structure = critic(keys[0])[0]
    random, bounds = rollout.random_action(env), Bounds.of(env.action_space)
    assert bounds is not None
    state = State(
        network=Networks(structure, actor),
        params=params,
        average_params=params,
        optimizer_state={name: optimizer(config, name).init(params[name]) for name in params},
        **offpolicy.begin(env, config, key_reset, random),
        target_params={name: params[name] for name in targets},
        bounds=bounds,
        key=key,
        evaluation_key=key_evaluation,
    )
    return offpolicy.warm_up(env, config, state, key_warmup, random)


def optimizer(config: Any, name: str) -> optax.GradientTransformation:
    """Return Adam for an entry of `params`; for the critics with what their head adds to it."""
    adam = partial(optax.adam, eps=config.adam_eps)
    if name == "critic":
        return base.optimizer(config, adam)
    return base.scheduled(config, adam, config.gradient_steps // config.actor_delay)


def learn(
    config: Any, state: Any, name: str, loss: Callable[..., Any], *arguments: Any
) -> tuple[State, tuple[Array, Array], Any]:
    """Take a gradient step on `loss(params[name], *arguments) -> (value, measured)`."""
    entry, moments, of_step, measured = base.descend(
        optimizer(config, name), state.params[name], state.optimizer_state[name], loss, *arguments
    )
    optimizer_state = state.optimizer_state | {name: moments}
    return replace(state, params=state.params | {name: entry}, optimizer_state=optimizer_state), of_step, measured


def predictions(
    network: nnx.GraphDef, params: PyTree, config: Any, obs: Observation, action: Float[Array, "B d"], tau: Any
) -> Any:
    """Return Z_i(x, a) of a batch, with the leading axes (critics, B)."""

    def one(params: PyTree) -> Any:
        critic = nnx.merge(network, params)
        psi = jax.vmap(critic.features)(obs, action)
        Z = heads.of(config).predict(critic.head, psi, [tau])[0]
        return jax.vmap(lambda Z: Z.taken(0))(Z)

    return jax.vmap(one)(params)


def together(config: Any, Z: Any) -> Any:
    """Return what critics together say of one example, given the leading axis of critics."""
    head = heads.of(config)
    return head.pooled(Z, config.top_quantiles_to_drop) if config.top_quantiles_to_drop else head.least(Z)


def value(config: Any, Z: Any) -> Float[Array, ""]:
    """Return the value of one example that the actor raises, given the leading axis of critics.

    It is the least mean of the critics, or the mean of all if quantiles are pooled.
    """
    Q = jax.vmap(heads.of(config).mean)(Z)
    return Q.mean() if config.top_quantiles_to_drop else Q.min()


def targets(
    config: Any, state: State, batch: NStep, action: Float[Array, "B d"], bonus: Float[Array, "B"] | float, tau: Any
) -> Any:
    """Return y of a batch: R + gamma^m d (Z(x', a') + bonus), in the head's form.

    Args:
        config, state, batch: of the gradient step; the batch is normalised.
        action: a', scaled.
        bonus: what is added to the return from x'.
        tau: fractions at which the target networks predict.
    """
    head, network = heads.of(config), state.network.critic
    Z = predictions(network, state.target_params["critic"], config, batch.next_obs, action, tau)
    successor = jax.vmap(partial(together, config), in_axes=1)(Z)
    discount = config.gamma**batch.steps * batch.discount
    return jax.lax.stop_gradient(jax.vmap(head.target)(batch.reward + discount * bonus, discount, successor))


def critic_loss(
    params: PyTree, config: Any, state: State, batch: NStep, y: Any, tau: Any
) -> tuple[Float[Array, ""], tuple[Float[Array, "B"], ...]]:
    """Return the sum over critics of the head's weighted mean loss, and (q, TD error, priority)."""
    head = heads.of(config)
    Z = predictions(state.network.critic, params, config, batch.obs, batch.action, tau)
    value = jax.vmap(jax.vmap(head.loss), in_axes=(0, None))(Z, y)  # (critics, B)
    measured = jax.vmap(jax.vmap(head.measures), in_axes=(0, None))(Z, y)
    value = value.sum(axis=0)
    value = value.mean() if batch.weight is None else (batch.weight * value).mean()
    return value, jax.tree.map(lambda x: x.mean(axis=0), measured)


def draw(config: Any, state: State, key: Key[Array, ""], size: int | None = None) -> tuple[State, NStep, Any]:
    """Return the state, a normalised batch with scaled actions, and where it lies in the replay.

    The batch has `size` transitions, or `config.batch_size`.
    """
    size = config.batch_size if size is None else size
    if state.priorities is not None:
        state = replace(state, priorities=replay.priorities.write(state.priorities, state.replay))
    batch, drawn = offpolicy.draw(config, state, key, size)
    action = state.bounds.scaled(batch.action.reshape(size, -1))
    return state, batch._replace(action=action), drawn


def finish(config: Any, state: State, drawn: Any, priority: Float[Array, "B"]) -> State:
    """End a gradient step: remember priorities, move the target networks and the EMA.

    Args:
        config, state: after the steps of critics and actor.
        drawn, priority: where the batch lies in the replay, and its priorities.
    """
    priorities, steps = state.priorities, state.gradient_steps + 1
    if priorities is not None:
        priorities = replay.priorities.remember(priorities, drawn, priority, config.priority_exponent)
    keep = jnp.where(steps % config.target_period == 0, config.polyak, 1.0)
    average = averaging.update(state.average_params, state.params, config.weight_averaging, config.gradient_steps)
    return replace(
        state,
        target_params=optax.incremental_update(state.followed, state.target_params, 1 - keep),
        average_params=average,
        priorities=priorities,
        gradient_steps=steps,
    )


def update(step: Callable[..., Any], config: Any, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Take `num_epochs` gradient steps, each on a batch of its own."""
    state, measured = jax.lax.scan(partial(step, config), state, jax.random.split(key, config.num_epochs))
    return state, jax.tree.map(lambda x: x.mean(), measured)


def acting(
    env: Environment,
    state: State,
    choose: Callable[[Key[Array, ""], Float[Array, "n d"]], Float[Array, "d"]],
    epsilon: Float[Array, ""] | float = 0.0,
) -> Policy:
    """Return the policy that chooses a scaled action from the actor's outputs.

    With probability `epsilon` the action is drawn from the whole box instead.
    """
    space = env.action_space
    assert isinstance(space, Box)

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        key_act, key_explore, key_random = jax.random.split(key, 3)
        actor = nnx.merge(state.network.actor, state.params["actor"])
        action = choose(key_act, actor(normalize.observations(state.normalizer, obs)))
        explored = jax.random.uniform(key_random, action.shape, minval=-1.0, maxval=1.0)
        action = jnp.where(jax.random.uniform(key_explore) < epsilon, explored, action)
        return state.bounds.unscaled(action).reshape(space.shape).astype(space.number), carry

    return Policy(act)


def greedy(outputs: Float[Array, "n d"]) -> Float[Array, "d"]:
    """Return the greedy action, scaled: tanh of the actor's first outputs."""
    return jnp.tanh(outputs[0])


def policy(env: Environment, config: Any, state: State) -> Policy:
    """Return the policy that evaluation runs, by the EMA of the weights and without noise."""
    return acting(env, averaging.averaged(state), lambda _, outputs: greedy(outputs), config.eval_epsilon)


def quantiles(config: Any, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N 1"]:
    """Return quantiles of the return for the greedy action, the mean of the critics'.

    They are those of the EMA of the weights; the observation and Z are in the environment's units.

    Raises:
        ConfigError: if the head learns no distribution.
    """
    base.quantiles_of(config)  # refuses heads without quantiles
    x = normalize.observations(state.normalizer, obs)
    action = greedy(nnx.merge(state.network.actor, state.average_params["actor"])(x))
    return normalize.returns(
        state.normalizer, quantiles_at(config, state, state.average_params["critic"], x, action, tau)[:, None]
    )


def quantiles_at(
    config: Any, state: State, params: PyTree, obs: Observation, action: Float[Array, "d"], tau: Float[Array, "N"]
) -> Float[Array, "N"]:
    """Return the mean of the critics' quantiles for a scaled action, in learned units."""

    def one(params: PyTree) -> Float[Array, "N 1"]:
        critic = nnx.merge(state.network.critic, params)
        Z: Float[Array, "N 1"] = heads.of(config).quantiles(critic.head, critic.features(obs, action), tau)
        return Z

    return jax.vmap(one)(params).mean(axis=0)[:, 0]


class Learner(signals.Learner):
    """What signals need from critics and actor: means over the critics, at the greedy action."""

    def values(self, params: PyTree, obs: Observation) -> Float[Array, "1"]:
        """Q(x, a) of the greedy action."""
        return self.value(params, obs[None], self.act(params, obs)[None])

    def act(self, params: PyTree, obs: Observation) -> Float[Array, "d"]:
        """Return the greedy action of one observation, scaled."""
        return greedy(nnx.merge(self.state.network.actor, params["actor"])(obs))

    def value(self, params: PyTree, obs: Observation, action: Float[Array, "B d"]) -> Float[Array, "B"]:
        """Q(x, a) of a batch of scaled actions."""
        return jax.vmap(jax.vmap(self.head.mean))(self.at_midpoints(params, obs, action)).mean(axis=0)

    def at_midpoints(self, params: PyTree, obs: Observation, action: Float[Array, "B d"]) -> Any:
        """Z_i(x, a) of a batch of scaled actions."""
        tau = signals.midpoints(signals.NUM_FRACTIONS)
        return predictions(self.state.network.critic, params["critic"], self.config, obs, action, tau)

    def quantiles(self, params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N 1"]:
        """Z of the greedy action."""
        action = self.act(params, obs)
        return quantiles_at(self.config, self.state, params["critic"], obs, action, tau)[:, None]

    def scaled(self, action: Array) -> Float[Array, "B d"]:
        """Return a batch of the environment's actions, scaled."""
        return self.state.bounds.scaled(action.reshape(action.shape[0], -1))

    def taken(self, params: PyTree, steps: Transition) -> Float[Array, "B"]:
        """Q(x, a) of the actions taken."""
        return self.value(params, steps.obs, self.scaled(steps.action))

    def quantiles_taken(self, params: PyTree, steps: Transition, tau: Float[Array, "N"]) -> Float[Array, "B N"]:
        """Z of the actions taken."""
        of_one = partial(quantiles_at, self.config, self.state, params["critic"], tau=tau)
        return jax.vmap(lambda x, a: of_one(x, a))(steps.obs, self.scaled(steps.action))

    def departure(self, batch: Any) -> Float[Array, "B"]:
        """How far the actions of a drawn batch are from the greedy ones, in half widths."""
        greedy_actions = jax.vmap(partial(self.act, self.params))(batch.obs)
        return jnp.abs(batch.action.reshape(greedy_actions.shape) - greedy_actions).mean(axis=-1)

    def ahead(self, params: PyTree, obs: Observation, legal: Any) -> Float[Array, "B"]:
        """Return the mean of what targets bootstrap from."""
        action, bonus = self.next_action(params, obs)
        Z = jax.vmap(partial(together, self.config), in_axes=1)(self.at_midpoints(params, obs, action))
        return jax.vmap(self.head.mean)(Z) + bonus

    def next_action(self, params: PyTree, obs: Observation) -> tuple[Float[Array, "B d"], Float[Array, "B"] | float]:
        """Return the action that targets bootstrap from, and the bonus of SAC."""
        return jax.vmap(partial(self.act, params))(obs), 0.0

    def features(self, steps: Transition) -> Float[Array, "B F"]:
        """psi(x, a) of the first critic."""
        first = jax.tree.map(lambda x: x[0], self.state.params["critic"])
        critic = nnx.merge(self.state.network.critic, first)
        return jax.vmap(critic.features)(steps.obs, self.scaled(steps.action))


def learning(
    bootstrap: Callable[..., tuple[Any, Any]], act: Callable[..., Policy], learner: type[Learner]
) -> signals.Learning:
    """Return what signals need from a loop.

    Args:
        bootstrap: (config, state, batch, keys) -> (targets, fractions of the predictions).
        act: the policy of training.
        learner: the loop's subclass of `Learner`.
    """

    def loss(params: PyTree, config: Any, state: State, batch: NStep, key: Key[Array, ""]) -> tuple[Any, Any]:
        return critic_loss(params, config, state, batch, *bootstrap(config, state, batch, jax.random.split(key)))

    def compared(params: PyTree, config: Any, state: State, batch: NStep, key: Key[Array, ""]) -> tuple[Any, Any]:
        """Each critic's predictions, with the targets that they share, on one axis."""
        y, tau = bootstrap(config, state, batch, jax.random.split(key))
        Z = predictions(state.network.critic, params, config, batch.obs, batch.action, tau)
        y = jax.tree.map(lambda x: jnp.broadcast_to(x, (config.num_critics, *x.shape)), y)
        flat: tuple[Any, Any] = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (Z, y))
        return flat

    def drawn(config: Any, state: State, key: Key[Array, ""], size: int) -> tuple[NStep, Any]:
        _, batch, place = draw(config, state, key, size)
        return batch, place

    def policies(env: Environment, config: Any, state: State) -> tuple[Policy, Policy]:
        return act(env, config, state), acting(env, state, lambda _, outputs: greedy(outputs))

    return signals.Learning(
        True,
        drawn,
        loss,
        compared,
        offpolicy.experience,
        partial(optimizer, name="critic"),
        policies,
        learner,
        per_action=False,
        entry="critic",
    )


def q(config: Any, state: State, obs: Observation, key: Key[Array, ""]) -> Float[Array, "1"]:
    """Return Q of the greedy action, the mean of the critics', in the environment's units.

    It is the mean at the fractions that a policy acts on, by the EMA of the weights.
    """
    head, state = heads.of(config), averaging.averaged(state)
    x, (tau, _) = normalize.observations(state.normalizer, obs), head.draw_acting(key)
    action = greedy(nnx.merge(state.network.actor, state.params["actor"])(x))

    def one(params: PyTree) -> Float[Array, "1"]:
        critic = nnx.merge(state.network.critic, params)
        Q: Float[Array, 1] = head.mean(head.predict(critic.head, critic.features(x, action), [tau])[0])
        return Q

    return normalize.returns(state.normalizer, jax.vmap(one)(state.params["critic"]).mean(axis=0))


def algorithm(
    name: str,
    config: type,
    init: Callable[..., State],
    act: Callable[..., Policy],
    update: Callable[..., tuple[State, Metrics]],
    measured: signals.Learning,
    metrics: tuple[str, ...],
) -> Algorithm:
    """Return an algorithm whose quantiles are those of the greedy action."""
    return Algorithm(
        name,
        config,
        init,
        act,
        offpolicy.observe,
        update,
        policy,
        quantiles,
        measured,
        actions=(Box,),
        q=q,
        metrics=metrics,
    )
