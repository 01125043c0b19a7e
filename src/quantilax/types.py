"""The types that all modules share: environments, transitions, policies, algorithms, records.

Symbols in shapes: `E` environments (or episodes), `B` batch, `N` and `N'` fractions, `A` actions.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

Observation: TypeAlias = PyTree
EnvState: TypeAlias = PyTree
State: TypeAlias = Any
Config: TypeAlias = Any

Carry: TypeAlias = PyTree
"""What a policy remembers within an episode, such as the memory of a recurrent torso; () if it has
no memory."""
Legal: TypeAlias = Bool[Array, "A"] | None
"""Mask of the actions that may be taken; None means all of them."""
Action: TypeAlias = Shaped[Array, "*action"]


class Policy(NamedTuple):
    """How to act in one environment; `quantilax.learning.rollout` runs it in several."""

    act: Callable[[Observation, Carry, Key[Array, ""], Legal], tuple[Action, Carry]]
    """(observation, carry, key, legal) -> (action, carry)."""
    carry: Carry = ()
    """The carry before the first step of an episode."""
    before: Callable[[Carry, Key[Array, ""], Bool[Array, "E A"] | None], Carry] | None = None
    """(carry, key, legal) -> carry, all with the leading axis E. It runs once before E environments
    act, and draws what is drawn for all of them together."""
    begin: Callable[[EnvState, Observation], tuple[EnvState, Observation]] | None = None
    """(state, observation) -> the same, of one environment at the beginning of an evaluation's
    episode. It makes a choice once per episode, such as the first stock of `risk_objective`."""


class Discrete(NamedTuple):
    """The actions 0, 1, ..., n - 1."""

    n: int


class Box(NamedTuple):
    """Arrays of one shape whose entries are real numbers (or pixels) between bounds."""

    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    low: Any = -math.inf
    """Lower bound: one number for all entries, or an array of `shape`."""
    high: Any = math.inf
    """Upper bound, in the same form."""
    frames: int = 1
    """Observations of a row that are joined along the last axis, the newest last, with zeros before
    the first of an episode. The replay then stores each once."""

    @property
    def number(self) -> Any:
        """`dtype` as it is inside programs: `float` becomes float32, unless JAX uses 64 bits."""
        return jax.dtypes.canonicalize_dtype(self.dtype)


class TimeStep(NamedTuple):
    """The result of one step of one environment."""

    obs: Observation
    """The observation to act on next. After the last step of an episode it is the first of the next
    episode."""
    next_obs: Observation
    """The true successor. After the last step of an episode it is the observation at which the
    episode terminated or was cut off."""
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    """The episode ended by the rules of the task. Nothing follows, so the remaining return is 0."""
    truncated: Bool[Array, ""]
    """The episode was cut off, for example by a time limit. The remaining return is that of
    `next_obs`."""
    legal: Legal = None
    """Mask of the actions that may be taken at `obs`, at least one; None: always all."""
    next_legal: Legal = None
    """The same at `next_obs`, with arbitrary values if the step terminated. None if `legal` is
    None."""
    raw_reward: Float[Array, ""] | None = None
    """The reward that learning curves add up, if a wrapper changed `reward` for learning; None: the
    same."""


class Transition(NamedTuple):
    """One step of experience (x, a, r, x'), batched with leading axes."""

    obs: Observation
    action: Shaped[Array, "..."]
    """If an action has axes of its own, they come after those of the batch."""
    reward: Float[Array, "*batch"]
    next_obs: Observation
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    legal: Bool[Array, "*batch A"] | None = None
    """The actions that could be taken at `obs`."""
    next_legal: Bool[Array, "*batch A"] | None = None
    """The same at `next_obs`."""
    raw_reward: Float[Array, "*batch"] | None = None
    """The reward that learning curves add up; None: `reward`."""

    @property
    def score(self) -> Float[Array, "*batch"]:
        """The reward that learning curves add up."""
        return self.reward if self.raw_reward is None else self.raw_reward

    @property
    def discount(self) -> Float[Array, "*batch"]:
        """1 - terminated. A step at a time limit still bootstraps, from `next_obs`."""
        return 1.0 - jnp.asarray(self.terminated, jnp.float32)

    def ended_where_truncated(self) -> "Transition":
        """Mark each truncation as a termination, so that no transition bootstraps from it."""
        return self._replace(
            terminated=self.terminated | self.truncated, truncated=jnp.zeros_like(self.truncated, dtype=bool)
        )


class NStep(NamedTuple):
    """Experience (x, a, R, x') over m = `steps` steps, batched with leading axes.

    m is n, or less if the episode ended earlier.
    """

    obs: Observation
    action: Shaped[Array, "..."]
    """The action of the first step. If it has axes of its own, they come after those of the batch.
    """
    reward: Float[Array, "*batch"]
    """R = r_0 + gamma r_1 + ... + gamma^(m-1) r_{m-1}."""
    next_obs: Observation
    """The true successor of the last step, with arbitrary values if that step terminated."""
    terminated: Bool[Array, "*batch"]
    """Whether the last step terminated."""
    truncated: Bool[Array, "*batch"]
    """Whether the last step was cut off."""
    steps: Int[Array, "*batch"]
    weight: Float[Array, "*batch"] | None = None
    """Weight of the example in the loss if it was drawn by priority; None means 1."""
    legal: Bool[Array, "*batch A"] | None = None
    """The actions that could be taken at `obs`."""
    next_legal: Bool[Array, "*batch A"] | None = None
    """The same at `next_obs`."""

    @property
    def discount(self) -> Float[Array, "*batch"]:
        """1 - terminated. The return from `next_obs` is multiplied by gamma^m times this."""
        return 1.0 - jnp.asarray(self.terminated, jnp.float32)


@runtime_checkable
class Environment(Protocol):
    """A pytree with these members. Its leaves, such as physics, may vary; its treedef is static.

    After the last step of an episode, `step` resets by itself and still returns the true successor
    as `TimeStep.next_obs`. `terminated` and `truncated` may both be true; `terminated` then counts.
    """

    @property
    def name(self) -> str:
        """The name used in error messages, run directories and plots."""

    @property
    def observation_space(self) -> Box:
        """Shape and dtype of an observation."""

    @property
    def action_space(self) -> Discrete | Box:
        """The actions that the environment takes."""

    @property
    def max_episode_steps(self) -> Int[Array, ""] | int:
        """Upper bound on the length of an episode. Evaluations rely on it to end."""

    def reset(self, key: Key[Array, ""]) -> tuple[EnvState, Observation] | tuple[EnvState, Observation, Legal]:
        """Begin an episode: (state, observation[, legal]).

        `legal` is the mask of legal actions, if the environment has masks.
        """

    def step(self, key: Key[Array, ""], state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        """Take one step, and reset after the last step of an episode."""


class Metrics(NamedTuple):
    """Metrics of the training between two evaluations.

    Most are means over the gradient steps (NaN if there were none); some are measured at the end.
    Learned units are those of rewards after scaling and normalisation.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Global norm before clipping."""
    q: Float[Array, ""]
    """Mean predicted return of the batch's transitions, in learned units."""
    td_error: Float[Array, ""]
    """Mean over the batch of |expected target - expected prediction|, in learned units."""
    epsilon: Float[Array, ""]
    """Probability of a random action in training."""
    actor_loss: Float[Array, ""] | None = None
    """Loss of the actor, without PPO's bonus for entropy; None if the algorithm has no actor."""
    entropy: Float[Array, ""] | None = None
    """Entropy of the policy in nats, of scaled actions; None if the policy is not random."""
    temperature: Float[Array, ""] | None = None
    """alpha, the weight of the entropy; None if the algorithm has none."""
    approx_kl: Float[Array, ""] | None = None
    """Estimate of KL(pi_old, pi), the mean of r - 1 - ln r with r = pi / pi_old; None without such
    a ratio."""
    clip_fraction: Float[Array, ""] | None = None
    """Share of the steps whose ratio r lies beyond the clipping; None without such a ratio."""
    replay_fill: Float[Array, ""] | None = None
    """Share of the replay that is filled at the end; None if the algorithm has no replay."""
    target_distance: Float[Array, ""] | None = None
    """||theta - theta^-|| / ||theta|| at the end; None if the algorithm has no target network."""


AT_THE_END = ("replay_fill", "target_distance")
"""Metrics that are measured at the evaluation, before training too. The others are means."""


class Record(NamedTuple):
    """The output of a segment: one evaluation, and the metrics of the training before it."""

    env_step: Int[Array, ""]
    """Environment steps taken so far, including the warm-up."""
    lengths: Int[Array, "E"]
    returns: Float[Array, "E"]
    finite: Bool[Array, ""]
    """Whether no parameter is NaN or infinite."""
    metrics: Metrics | None
    """None if the config says `metrics: false`."""
    callback: PyTree = None
    """What the agent's `eval_callback` returned; None without a callback."""
    signals: PyTree = None
    """A `quantilax.signals.Signals`; None unless the config says `signals: true`."""
    learned_returns: Float[Array, "E"] | None = None
    """Discounted returns in learned units; None unless `config.support` bounds them."""


EvalCallback: TypeAlias = Callable[["Algorithm", Environment, Config, State, Key[Array, ""]], PyTree]
"""(algorithm, env, config, state, key) -> a pytree that is added to the curve. It must be pure,
because it runs inside the compiled program."""


class Algorithm(NamedTuple):
    """A config class and pure functions, which `quantilax.train` combines into a training loop.

    An iteration takes `steps_per_iteration` environment steps with `act`, passes them to `observe`,
    and ends with `update`.

    The config class is a `quantilax.pytree.dataclass` with the fields of
    `quantilax.hyperparameters.Loop`, `gamma` and `bootstrap_truncated`. Its properties are

    - `warmup_steps`: environment steps that `init` takes,
    - `steps_per_iteration`,
    - `gradient_steps`: of the whole run,

    and its methods are

    - `check()`: raises `ConfigError` for fields that contradict each other,
    - `derived()`: name -> a quantity that follows from the config,
    - `advice()`: lines on settings known to mislead.

    The state class extends `quantilax.learning.rollout.State`. If it has `replay` or
    `target_params`, `Metrics.replay_fill` or `Metrics.target_distance` is measured.
    """

    name: str
    config: type
    init: Callable[[Environment, Config, Key[Array, ""]], State]
    """Creates networks, replay and environments, and runs the warm-up."""
    act: Callable[[Environment, Config, State], Policy]
    """The policy that training acts with."""
    observe: Callable[[Config, State, Transition, Key[Array, ""]], State]
    """(config, state, transitions, key) -> state. It takes in the transitions of an iteration, with
    leading axes (T, E)."""
    update: Callable[[Config, State, Key[Array, ""]], tuple[State, Metrics]]
    """The gradient steps of an iteration."""
    policy: Callable[[Environment, Config, State], Policy]
    """The policy that evaluation runs."""
    quantiles: Callable[[Config, State, Observation, Float[Array, "N"]], Float[Array, "N A"]] | None = None
    """(config, state, observation, fractions) -> Z, for one observation; None if the algorithm is
    not distributional."""
    signals: Any = None
    """A `quantilax.signals.Learning`, from which signals are measured if the config says `signals:
    true`; None if the algorithm has no signals."""
    environment: Callable[[Environment, Config], Environment] | None = None
    """(environment, config) -> the environment that agents play, for configs that add to
    observations."""
    actions: tuple[type, ...] = (Discrete,)
    """Kinds of action spaces that it can act in: `Discrete`, `Box` or both."""
    q: Callable[[Config, State, Observation, Key[Array, ""]], Float[Array, "A"]] | None = None
    """(config, state, observation, key) -> the values that the policy of evaluation compares, or
    with A = 1 that of its action or of the observation, in the environment's units; None if the
    algorithm has none."""
    metrics: tuple[str, ...] = ()
    """The optional metrics that its `update` measures."""


def no_action(space: Discrete | Box) -> Array:
    """Return an action of zeros, with the shape and dtype of every action of the space."""
    return jnp.zeros((), jnp.int32) if isinstance(space, Discrete) else jnp.zeros(space.shape, space.number)


def num_actions(env: Environment) -> int:
    """Return the number of actions of an environment.

    Raises:
        TypeError: the environment has continuous actions.
    """
    space = env.action_space
    if not isinstance(space, Discrete):
        raise TypeError(f"{env.name} has continuous actions")
    return space.n


def as_key(key: Key[Array, ""] | Shaped[Array, "2"]) -> Key[Array, ""]:
    """Return a typed key for a typed key (`jax.random.key`) or a raw one (`jax.random.PRNGKey`).

    Raises:
        TypeError: `key` is neither; a batch of keys needs `jax.vmap`.
    """
    try:
        array = jnp.asarray(key)
        typed = jax.random.wrap_key_data(array) if array.dtype == jnp.uint32 else array
    except (TypeError, ValueError):  # not an array, or raw keys with the wrong number of words
        typed = None
    if typed is None or not jnp.issubdtype(typed.dtype, jax.dtypes.prng_key):
        given = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"expected a key from jax.random.key(seed), got {given}")
    if typed.ndim:
        raise TypeError(
            f"expected one key, got {typed.shape[0]}; map over several with jax.vmap, as jax.vmap(algo.train)(keys) does"
        )
    return typed
