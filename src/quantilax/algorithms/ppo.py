"""PPO: clipped policy gradient, with a value of any head, for discrete and real-valued actions.

| symbol | here | meaning |
|---|---|---|
| T, E | `num_steps`, `num_envs` | each iteration collects T steps in E environments, on policy |
| pi(a given x) | `log_pi` | softmax of the actor's outputs, or a Gaussian clipped to the bounds |
| V(x), Z(x) | `value` | mean and distribution of the return from x, by the head |
| G_t | `losses.lambda_returns` | lambda-return of the means, from V of the true successors |
| A_t | `advantage` | `G_t - V(x_t)`, which is generalised advantage estimation |
| r | `ratio` | pi(a given x) / pi_old(a given x) |

The actor raises `min(r A, clip(r, 1 - c, 1 + c) A)` and the entropy, over `num_epochs` passes of
`num_minibatches` shuffled minibatches. The value learns the head's lambda-returns by the head's
loss. A step at a time limit bootstraps from V of its true successor.

A real-valued action outside of the bounds is clipped to them, and its probability is that of all
actions beyond the bound, so pi is the distribution of what the environment receives (Fujita & Maeda
2018, https://arxiv.org/abs/1802.07564).

Sources: Schulman et al. (2017), https://arxiv.org/abs/1707.06347;
Schulman et al. (2016), https://arxiv.org/abs/1506.02438.
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
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key, PyTree, Shaped

from quantilax import heads, hyperparameters, losses, signals
from quantilax.algorithms import base, onpolicy, published
from quantilax.algorithms.actor_critic import Bounds, action_size
from quantilax.algorithms.onpolicy import Collected
from quantilax.errors import ConfigError
from quantilax.heads import HEADS
from quantilax.heads.base import Steps
from quantilax.hyperparameters import Loop, Optimiser, Task, default
from quantilax.learning import averaging, exploration, normalize, rollout
from quantilax.networks import computing_in, torso
from quantilax.pytree import dataclass, field
from quantilax.types import (
    Action,
    Algorithm,
    Box,
    Carry,
    Discrete,
    Environment,
    Legal,
    Metrics,
    Observation,
    Policy,
    Transition,
    num_actions,
)

LOG_SIGMA = (-20.0, 2.0)
"""Bounds of ln sigma of real-valued actions."""
AT_BOUND = 1 - 1e-6
"""Scaled actions of at least this size were clipped."""


@dataclass
class Config(Collected, Loop, Optimiser, Task, hyperparameters.Network, *heads.CONFIGS):  # type: ignore[misc]
    """PPO: clipped policy gradient, with a value of any head (Schulman et al. 2017, https://arxiv.org/abs/1707.06347)."""

    PAPER: ClassVar[dict[str, Any]] = published.PPO
    squared_error: ClassVar[bool] = True
    dueling: ClassVar[bool] = False
    noisy: ClassVar[bool] = False
    without_use: ClassVar[tuple[str, ...]] = ("risk_eta", "acting_tau_sampling")
    """Fields of heads that training does not use, because the policy does not act by values."""
    adam_eps: ClassVar[float] = 1e-5
    """Epsilon of Adam, as in the authors' code."""

    total_timesteps: int = default(Loop, "total_timesteps", 204_800)
    eval_freq: int = default(Loop, "eval_freq", 20_480)
    num_envs: int = default(Loop, "num_envs", 8)
    num_steps: int = field(128, "T, steps of each environment per iteration", ge=1)
    num_epochs: int = field(4, "passes over an iteration's steps", ge=1)
    num_minibatches: int = field(4, "gradient steps per pass", ge=1)
    learning_rate: float = field(1e-3, "initial step size of Adam, for actor and value", ge=0)
    learning_rate_end: float = default(Optimiser, "learning_rate_end", 0.0)
    max_grad_norm: float = default(Optimiser, "max_grad_norm", 0.5)
    lambda_: float = field(0.95, "lambda of returns and advantages: 0 is one step, 1 is Monte Carlo", ge=0, le=1)
    clip_ratio: float = field(0.2, "c, how far the ratio of probabilities counts beyond 1", gt=0)
    entropy_coefficient: float = field(0.0, "weight of the policy's entropy in the loss", ge=0)
    value_coefficient: float = field(0.5, "weight of the head's loss", ge=0)
    normalize_advantages: bool = field(True, "subtract the mean of a minibatch's advantages, divide by their std")
    head: str = field("scalar", "learn the mean of the return or its distribution", choices=HEADS)  # type: ignore[misc]
    head_sizes: tuple[int, ...] = default(hyperparameters.Network, "head_sizes", ())
    activation: str = default(hyperparameters.Network, "activation", "tanh")

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        if self.risk != "neutral":
            raise ConfigError(
                "risk: has no meaning in ppo, whose policy is no function of the values; set it to neutral"
            )
        if self.normalize_advantages and self.batch_size == 1:
            raise ConfigError(
                f"num_minibatches: {self.num_minibatches} leaves one step per minibatch, whose advantage less its mean is 0;"
                " lower it, or set normalize_advantages to false"
            )

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        told = "the learned returns are those of actions drawn from pi; evaluation takes the likeliest action"
        return [*super().caveats(), told]


class Network(nnx.Module):
    """An actor and a value, each with a torso of its own."""

    def __init__(self, env: Environment, config: Any, *, rngs: nnx.Rngs) -> None:
        """Build both for the spaces of the environment."""
        self.actor = torso(env.observation_space, config, rngs=rngs)
        n = num_actions(env) if isinstance(env.action_space, Discrete) else action_size(env)
        small = jax.nn.initializers.orthogonal(0.01)
        self.out = nnx.Linear(self.actor.features, n, kernel_init=small, dtype=jnp.float32, rngs=rngs)
        self.log_sigma = None if isinstance(env.action_space, Discrete) else nnx.Param(jnp.zeros(n))
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = heads.of(config).layer(self.psi.features, 1, rngs)

    def pi(self, obs: Observation, bounds: Bounds | None, legal: Legal) -> "Categorical | Clipped":
        """Return the policy at one observation."""
        outputs = self.out(self.actor(obs))
        if bounds is None:
            return Categorical(jax.nn.log_softmax(exploration.masked(outputs, legal)))
        assert self.log_sigma is not None
        return Clipped(outputs, jnp.clip(self.log_sigma[...], *LOG_SIGMA), bounds)


class Categorical(NamedTuple):
    """A policy over discrete actions."""

    log_p: Float[Array, "A"]
    """Logarithms of the probabilities; -inf for illegal actions."""

    def sample(self, key: Key[Array, ""]) -> Action:
        """Draw an action."""
        return jax.random.categorical(key, self.log_p).astype(jnp.int32)

    def mode(self) -> Action:
        """Return the likeliest action."""
        return jnp.argmax(self.log_p).astype(jnp.int32)

    def log_pi(self, action: Action) -> Float[Array, ""]:
        """Return ln pi(a|x)."""
        return self.log_p[action]

    def entropy(self) -> Float[Array, ""]:
        """Return the entropy in nats."""
        p = jnp.exp(self.log_p)
        return -(p * jnp.where(p > 0, self.log_p, 0.0)).sum()  # no 0 * inf, in gradients either


class Clipped(NamedTuple):
    """Independent Gaussians over scaled actions, clipped to [-1, 1]."""

    mu: Float[Array, "d"]
    log_sigma: Float[Array, "d"]
    bounds: Bounds

    def sample(self, key: Key[Array, ""]) -> Action:
        """Draw an action of the environment, flat."""
        u = self.mu + jnp.exp(self.log_sigma) * jax.random.normal(key, self.mu.shape)
        return self.bounds.unscaled(jnp.clip(u, -1, 1))

    def mode(self) -> Action:
        """Return the action of the mean."""
        return self.bounds.unscaled(jnp.clip(self.mu, -1, 1))

    def log_pi(self, action: Action) -> Float[Array, ""]:
        """Return ln pi(a|x): a density inside the bounds, the mass beyond them at the bounds."""
        a, sigma = self.bounds.scaled(action.ravel()), jnp.exp(self.log_sigma)
        inside = norm.logpdf(a, self.mu, sigma)
        low, high = norm.logcdf(-1.0, self.mu, sigma), norm.logcdf(-1.0, -self.mu, sigma)
        return jnp.where(a <= -AT_BOUND, low, jnp.where(a >= AT_BOUND, high, inside)).sum()

    def entropy(self) -> Float[Array, ""]:
        """Return the entropy of the Gaussians before they are clipped, in nats."""
        return (self.log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum()


class Rows(NamedTuple):
    """What an iteration learns from, with one leading axis T E."""

    obs: Shaped[Array, "TE *obs"]
    action: Shaped[Array, "TE *action"]
    legal: Any
    log_pi: Float[Array, "TE"]
    """ln pi_old(a|x)."""
    advantage: Float[Array, "TE"]
    target: PyTree
    """What Z(x) learns, in the head's form."""


@dataclass
class State(base.State):
    """Everything that training carries from one iteration to the next."""

    bounds: Bounds | None
    """Of real-valued actions; None if actions are discrete."""
    rows: Rows | None = None
    """Set between `observe` and `update`, else None."""
    transitions: Transition | None = None
    """The same steps, normalised, with leading axes (T, E)."""


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Build the networks and reset the environments."""
    key_params, key_reset, key_evaluation, key = jax.random.split(key, 4)
    network, params = nnx.split(computing_in(Network(env, config, rngs=nnx.Rngs(key_params)), config.compute_dtype))
    return State(
        network=network,
        params=params,
        average_params=params,
        optimizer_state=optimizer(config).init(params),
        **rollout.begin(env, config, key_reset),
        bounds=Bounds.of(env.action_space),
        key=key,
        evaluation_key=key_evaluation,
    )


def optimizer(config: Config) -> optax.GradientTransformation:
    """Return Adam, with what the head adds to it."""
    return base.optimizer(config, partial(optax.adam, eps=config.adam_eps))


def acting(env: Environment, state: State, choose: Callable[[Key[Array, ""], Any, Legal], Action]) -> Policy:
    """Return the policy that chooses an action from pi."""
    space = env.action_space

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        network = nnx.merge(state.network, state.params)
        pi = network.pi(normalize.observations(state.normalizer, obs), state.bounds, legal)
        action = choose(key, pi, legal)
        return (action.reshape(space.shape).astype(space.number) if isinstance(space, Box) else action), carry

    return Policy(act)


def act(env: Environment, config: Config, state: State) -> Policy:
    """Return the training policy, which draws from pi."""
    return acting(env, state, lambda key, pi, _: pi.sample(key))


def policy(env: Environment, config: Config, state: State) -> Policy:
    """Return the policy that evaluation runs: the mode of pi, by the EMA of the weights.

    With probability `eval_epsilon` the action is random.
    """
    random = rollout.random_action(env).act

    def choose(key: Key[Array, ""], pi: Any, legal: Legal) -> Action:
        key_explore, key_random = jax.random.split(key)
        mode, (explored, _) = pi.mode(), random(None, (), key_random, legal)
        explores = jax.random.uniform(key_explore) < config.eval_epsilon
        return jnp.where(explores, explored.reshape(mode.shape), mode)

    return acting(env, averaging.averaged(state), choose)


def observe(config: Config, state: State, transitions: Transition, key: Key[Array, ""]) -> State:
    """Compute advantages and lambda-returns of T steps in E environments, and keep them."""
    head, network, x = heads.of(config), nnx.merge(state.network, state.params), transitions
    x = normalize.transitions(state.normalizer, x)
    T, E = x.reward.shape
    flat = jax.tree.map(lambda y: y.reshape(T * E, *y.shape[2:]), x)
    key_tau, key_returns = jax.random.split(key)
    tau, tau_next = head.draw(key_tau, (T * E,), "tau_action", "tau_prime")
    v = jax.vmap(head.mean)(value(network, config, flat.obs, tau)).reshape(T, E)
    Z_next = value(network, config, flat.next_obs, tau_next)
    v_next = jax.vmap(head.mean)(Z_next).reshape(T, E)
    trace = config.lambda_ * ~(x.terminated | x.truncated)
    steps = Steps(x.reward, config.gamma * x.discount, trace)
    G = jax.vmap(losses.lambda_returns, in_axes=1, out_axes=1)(steps.reward, steps.discount, v_next, trace)
    target = head.lambda_returns(key_returns, steps, jax.tree.map(lambda y: y.reshape(T, E, *y.shape[1:]), Z_next))
    log_pi, _ = probabilities(network, state, flat.obs, flat.action, flat.legal)
    target = jax.tree.map(lambda y: y.reshape(T * E, *y.shape[2:]), target)
    rows = Rows(flat.obs, flat.action, flat.legal, log_pi, (G - v).ravel(), target)
    return replace(state, rows=rows, transitions=x)


def value(network: Any, config: Config, obs: Observation, tau: Any) -> Any:
    """Return Z(x) of a batch of observations."""
    Z = heads.of(config).predict(network.head, jax.vmap(network.psi)(obs), [tau])[0]
    return jax.vmap(lambda Z: Z.taken(0))(Z)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Make `num_epochs` passes over the observed steps, in shuffled minibatches."""
    rows, state = state.rows, replace(state, rows=None, transitions=None)

    def step(state: State, rows: Rows, key: Key[Array, ""]) -> tuple[State, Metrics]:
        arguments = config, state, rows, key
        state, (value, norm), of_steps = base.gradient_step(config, state, optimizer(config), loss, *arguments)
        means = {name: x.mean() for name, x in of_steps.items()}
        return state, Metrics(loss=value, gradient_norm=norm, epsilon=jnp.zeros(()), **means)

    state, measured = onpolicy.passes(step, config, state, rows, key)
    return state, jax.tree.map(lambda x: x.mean(), measured)


def loss(
    params: PyTree, config: Config, state: State, rows: Rows, key: Key[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, "B"]]]:
    """Return the loss of a minibatch, and the metrics of each step; `q` is V(x)."""
    c, head, network = config.clip_ratio, heads.of(config), nnx.merge(state.network, params)
    (tau,) = head.draw(key, rows.advantage.shape, "tau")
    A = rows.advantage
    if config.normalize_advantages:
        A = (A - A.mean()) / (A.std() + 1e-8)
    log_pi, entropy = probabilities(network, state, rows.obs, rows.action, rows.legal)
    ratio = jnp.exp(log_pi - rows.log_pi)
    surrogate = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - c, 1 + c) * A)
    Z, G = value(network, config, rows.obs, tau), rows.target
    q, td_error, _ = jax.vmap(head.measures)(Z, G)
    of_value = config.value_coefficient * jax.vmap(head.loss)(Z, G)
    measured = {
        "q": q,
        "td_error": td_error,
        "actor_loss": -surrogate,
        "entropy": entropy,
        "approx_kl": ratio - 1 - (log_pi - rows.log_pi),
        "clip_fraction": (jnp.abs(ratio - 1) > c).astype(jnp.float32),
    }
    return (of_value - surrogate - config.entropy_coefficient * entropy).mean(), measured


def probabilities(
    network: Any, state: State, obs: Observation, action: Action, legal: Any
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Return ln pi(a|x) and the entropy of pi(.|x) for a batch."""

    def one(obs: Observation, action: Action, legal: Legal) -> tuple[Array, Array]:
        pi = network.pi(obs, state.bounds, legal)
        return pi.log_pi(action), pi.entropy()

    return jax.vmap(one)(obs, action, legal)


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N 1"]:
    """Return quantiles of the return from x by the training policy, for one observation.

    They are those of the EMA of the weights; the observation and Z are in the environment's units.

    Raises:
        ConfigError: if the head learns no distribution.
    """
    of_head = base.quantiles_of(config)
    network = nnx.merge(state.network, state.average_params)
    return normalize.returns(
        state.normalizer, of_head(network.head, network.psi(normalize.observations(state.normalizer, obs)), tau)
    )


def q(config: Config, state: State, obs: Observation, key: Key[Array, ""]) -> Float[Array, "1"]:
    """Return V(x) by the EMA of the weights, in the environment's units."""
    head, network = heads.of(config), nnx.merge(state.network, state.average_params)
    psi, (tau, _) = network.psi(normalize.observations(state.normalizer, obs)), head.draw_acting(key)
    return normalize.returns(state.normalizer, head.mean(head.predict(network.head, psi, [tau])[0]))


def compared(params: PyTree, config: Config, state: State, rows: Rows, key: Key[Array, ""]) -> tuple[Any, Any]:
    """Return Z(x) of a minibatch, and its targets."""
    (tau,) = heads.of(config).draw(key, rows.advantage.shape, "tau")
    return value(nnx.merge(state.network, params), config, rows.obs, tau), rows.target


def policies(env: Environment, config: Config, state: State) -> tuple[Policy, Policy]:
    """Return the policy of training, and the one that takes the mode of pi."""
    return act(env, config, state), acting(env, state, lambda key, pi, legal: pi.mode())


SIGNALS = signals.Learning(
    False,
    onpolicy.draw,
    loss,
    compared,
    onpolicy.experience,
    optimizer,
    policies,
    per_action=False,
    without=("loss_ratio", "reference_error", "doomed_q", "off_policy"),
)
METRICS = ("actor_loss", "entropy", "approx_kl", "clip_fraction")
"""Metrics of the loop, besides those of every algorithm."""
ALGORITHM = Algorithm(
    "ppo", Config, init, act, observe, update, policy, quantiles, SIGNALS, actions=(Discrete, Box), q=q, metrics=METRICS
)
