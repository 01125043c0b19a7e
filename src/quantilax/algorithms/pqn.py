"""PQN: parallelised Q-learning without replay or target network.

| symbol | here | meaning |
|---|---|---|
| T, E | `num_steps`, `num_envs` | each iteration collects T steps in E environments, on policy |
| Y | `Y` | output of the network for each action, (n, A): depends on `head` |
| Q(x, a) | `means(Y)` | value of an action |
| v_t, Z_t | | max_a Q(x'_t, a) at the true successor; distribution of that action's return |
| lambda_t | `trace` | `lambda_`, and 0 where an episode ends: t + 1 belongs to another one |
| G_t | `target` | r_t + gamma (1 - terminated_t) [(1 - lambda_t) v_t + lambda_t G_{t+1}] |

Y is Q, N quantiles, N quantiles at tau, or the logits of M atoms. LayerNorm in the torso is what
keeps Q stable without a target network.

The loss is (Q(x_t, a_t) - G_t)^2 / 2 with G fixed, over `num_epochs` passes of `num_minibatches`
shuffled minibatches. With `munchausen`, G_t is the return of the softmax policy, whose
log-probability is added to the reward, see `losses.munchausen_lambda_returns`.

If the head learns a distribution, G_t is a distribution too: that of
`r_t + gamma (1 - terminated_t) X`, where X is G_{t+1} with probability lambda_t and Z_t otherwise.
The quantile heads learn from draws of it by IQN's loss, the categorical head by cross-entropy.

Source: Gallici et al. (2024), https://arxiv.org/abs/2407.04811.
"""

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import heads, signals
from quantilax.algorithms import base, onpolicy, published, values
from quantilax.algorithms.onpolicy import Collected
from quantilax.algorithms.values import epsilon_at, means, policy, predict, quantiles
from quantilax.errors import ConfigError
from quantilax.heads import HEADS
from quantilax.heads.base import Steps
from quantilax.hyperparameters import Exploration, Loop, Network, Optimiser, default
from quantilax.learning import exploration, normalize, rollout
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm, Environment, Metrics, Policy, Transition


@dataclass
class Config(Collected, values.Config, *heads.CONFIGS):  # type: ignore[misc]
    """PQN: parallelised Q-learning without replay or target network (Gallici et al. 2024, https://arxiv.org/abs/2407.04811)."""

    PAPER: ClassVar[dict[str, Any]] = published.PQN
    squared_error: ClassVar[bool] = True
    dueling: ClassVar[bool] = False
    noisy: ClassVar[bool] = False

    total_timesteps: int = default(Loop, "total_timesteps", 491_520)
    eval_freq: int = default(Loop, "eval_freq", 24_576)
    num_envs: int = field(32, "E, environments", ge=1)
    num_steps: int = field(64, "T, steps of each environment per iteration", ge=1)
    num_epochs: int = field(4, "passes over an iteration's transitions", ge=1)
    num_minibatches: int = field(16, "gradient steps per pass", ge=1)

    learning_rate: float = field(1e-3, "initial step size of RAdam", ge=0)
    learning_rate_end: float = default(Optimiser, "learning_rate_end", 0.0)
    max_grad_norm: float = default(Optimiser, "max_grad_norm", 10.0)
    lambda_: float = field(
        0.95, "lambda of the returns: 0 is one step, 1 is Monte Carlo within the T steps", ge=0, le=1
    )

    head: str = field(  # type: ignore[misc]
        "scalar", "learn the mean of the return or its distribution", choices=HEADS
    )

    eps_end: float = default(Exploration, "eps_end", 0.05)
    exploration_fraction: float = default(Exploration, "exploration_fraction", 0.2)
    head_sizes: tuple[int, ...] = default(Network, "head_sizes", ())
    layer_norm: bool = default(Network, "layer_norm", True)

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        if self.munchausen and heads.of(self).soft_lambda_returns is None:
            raise ConfigError(
                f"munchausen: not defined here for the returns of head={self.head}; set head to scalar or hl_gauss, or"
                " munchausen to false"
            )

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        lines = super().advice()
        if not self.layer_norm:
            lines.append(
                "layer_norm=false: without a target network, LayerNorm is what keeps PQN from diverging; set it to true"
            )
        return lines

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        lines = super().caveats()
        if self.lambda_ and self.eps_end:
            lines.append(
                f"lambda_={self.lambda_:g}: the rewards along the way are those of the exploring policy (epsilon"
                f" {self.eps_end:g} at the end), without correction"
            )
        return lines


class Rows(NamedTuple):
    """What an iteration learns from, with one leading axis T E."""

    obs: Shaped[Array, "TE *obs"]
    action: Int[Array, "TE"]
    target: PyTree
    """G of each step, in the head's form."""
    legal: Any = None
    """Masks of the legal actions, for the signals; None: all are."""


@dataclass
class State(base.State):
    """Everything that training carries from one iteration to the next."""

    rows: Rows | None = None
    """Set between `observe` and `update`, else None."""
    transitions: Transition | None = None
    """The same steps, normalised, with leading axes (T, E)."""


def init(env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Build the network and reset the environments."""
    key_params, key_reset, key_evaluation, key = jax.random.split(key, 4)
    learner, begun = values.init(env, config, key_params, optimizer(config)), rollout.begin(env, config, key_reset)
    return State(**learner, **begun, key=key, evaluation_key=key_evaluation)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Return RAdam, with what the head adds to it."""
    return base.optimizer(config, optax.radam)


def act(env: Environment, config: Config, state: State) -> Policy:
    """Return the epsilon-greedy policy on Q. Epsilon is constant within an iteration."""
    return values.acting(config, state, epsilon_at(config, state.env_steps))


def observe(config: Config, state: State, transitions: Transition, key: Key[Array, ""]) -> State:
    """Compute the lambda-returns of T steps in E environments, and keep them for `update`."""
    transitions = normalize.transitions(state.normalizer, transitions)
    targets = lambda_targets(config, state, transitions, key)
    rows = Rows(transitions.obs, transitions.action, targets, transitions.legal)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return replace(state, rows=flat, transitions=transitions)


def lambda_targets(config: Config, state: State, transitions: Transition, key: Key[Array, ""]) -> Any:
    """Return G_t of every step in the head's form, with leading axes (T, E).

    Each G_t is cut at the end of its episode.
    """
    head, network = heads.of(config), nnx.merge(state.network, state.params)
    key_next, key_returns = jax.random.split(key)
    T, E = transitions.reward.shape
    flat = jax.tree.map(lambda x: x.reshape(T * E, *x.shape[2:]), transitions)
    tau, tau_action = head.draw(key_next, (T * E,), "tau_prime", "tau_action")
    Z_next, q_next = values.successors(
        network, network, flat.next_obs, flat.next_legal, tau, tau_action, config, state.normalizer
    )
    trace = config.lambda_ * ~(transitions.terminated | transitions.truncated)
    steps = Steps(transitions.reward, config.gamma * transitions.discount, trace)
    if config.munchausen:
        q_before = exploration.masked(means(predict(network, flat.obs, None, config), config), flat.legal)
        q_next, q_before = (q.reshape(T, E, -1) for q in (q_next, q_before))
        masked = transitions.next_legal is not None
        return head.soft_lambda_returns(steps, q_next, q_before, transitions.action, masked)
    chosen = jax.vmap(lambda Z, q: Z.taken(q.argmax()))(Z_next, q_next)
    chosen = jax.tree.map(lambda x: x.reshape(T, E, *x.shape[1:]), chosen)
    return head.lambda_returns(key_returns, steps, chosen)


def update(config: Config, state: State, key: Key[Array, ""]) -> tuple[State, Metrics]:
    """Make `num_epochs` passes over the observed steps, in shuffled minibatches."""
    rows, state = state.rows, replace(state, rows=None, transitions=None)

    def step(state: State, rows: Rows, key: Key[Array, ""]) -> tuple[State, tuple[Array, ...]]:
        arguments = config, state, rows, key
        state, of_step, (q, td_error) = base.gradient_step(config, state, optimizer(config), loss, *arguments)
        return state, (*of_step, q.mean(), td_error.mean())

    state, measured = onpolicy.passes(step, config, state, rows, key)
    return state, values.metrics(config, state, measured)


def loss(
    params: PyTree, config: Config, state: State, rows: Rows, key: Key[Array, ""]
) -> tuple[Float[Array, ""], tuple[Float[Array, "B"], Float[Array, "B"]]]:
    """Return the mean of the head's loss over a minibatch, and (q, |mean of G - q|) of each step.

    Each step has fractions of its own.
    """
    head, (predictions, G) = heads.of(config), compared(params, config, state, rows, key)
    G = jax.lax.stop_gradient(G)
    q, td_error, _ = jax.vmap(head.measures)(predictions, G)
    return jax.vmap(head.loss)(predictions, G).mean(), (q, td_error)


def compared(params: PyTree, config: Config, state: State, rows: Rows, key: Key[Array, ""]) -> tuple[Any, Any]:
    """Return the predictions for the actions taken, and their targets."""
    (tau,) = heads.of(config).draw(key, rows.action.shape, "tau")
    predictions = predict(nnx.merge(state.network, params), rows.obs, tau, config)
    return jax.vmap(lambda Z, action: Z.taken(action))(predictions, rows.action), rows.target


def policies(env: Environment, config: Config, state: State) -> tuple[Policy, Policy]:
    """Return the policy of training, and the greedy one."""
    return act(env, config, state), values.acting(config, state, 0.0)


SIGNALS = signals.Learning(False, onpolicy.draw, loss, compared, onpolicy.experience, optimizer, policies)
ALGORITHM = Algorithm("pqn", Config, init, act, observe, update, policy, quantiles, SIGNALS, q=values.q)
