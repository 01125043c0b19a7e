"""The types that the rooms of the house hand to each other.

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
"""What a policy remembers of an episode, such as the memory of a recurrent torso; () where it remembers nothing."""
Legal: TypeAlias = Bool[Array, "A"] | None
"""Mask of the actions that may be taken; None: all of them."""
Action: TypeAlias = Shaped[Array, "*action"]


class Policy(NamedTuple):
    """How to act, in one environment; `quantilax.learning.rollout` plays it in several."""

    act: Callable[[Observation, Carry, Key[Array, ""], Legal], tuple[Action, Carry]]
    """(observation, carry, key, legal) -> (action, carry)."""
    carry: Carry = ()
    """What it remembers before the first step of an episode."""
    before: Callable[[Carry, Key[Array, ""], Bool[Array, "E A"] | None], Carry] | None = None
    """(carry, key, legal) -> carry, all with the leading axis E: what is drawn for E environments at once, before they act."""


class Discrete(NamedTuple):
    """Actions 0, 1, ..., n - 1."""

    n: int


class Box(NamedTuple):
    """Arrays of real numbers (or of pixels) of one shape, between bounds."""

    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    low: Any = -math.inf
    """Smallest numbers: one for all, or an array of `shape`."""
    high: Any = math.inf
    """Largest numbers, likewise."""

    @property
    def number(self) -> Any:
        """`dtype` as programs have it: `float` is float32 there, unless JAX computes in 64 bits."""
        return jax.dtypes.canonicalize_dtype(self.dtype)


class TimeStep(NamedTuple):
    """What one step of one environment gives."""

    obs: Observation
    """The observation to act on next: after a last step, the first of the next episode."""
    next_obs: Observation
    """The true successor: after a last step, the terminal (or cut-off) observation."""
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    """The episode ended by its own rules: nothing follows, the return to come is 0."""
    truncated: Bool[Array, ""]
    """The episode was cut off (a time limit): the return to come is that of `next_obs`."""
    legal: Legal = None
    """The actions that may be taken at `obs`, one at least; None: all, always."""
    next_legal: Legal = None
    """The same at `next_obs`; anything where that terminated. None where `legal` is."""


class Transition(NamedTuple):
    """One step of experience (x, a, r, x'); batched with leading axes."""

    obs: Observation
    action: Shaped[Array, "..."]
    """Its own axes, where it has some, come after those of the batch."""
    reward: Float[Array, "*batch"]
    next_obs: Observation
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    legal: Bool[Array, "*batch A"] | None = None
    """The actions that could be taken at `obs`."""
    next_legal: Bool[Array, "*batch A"] | None = None
    """The same at `next_obs`."""

    @property
    def discount(self) -> Float[Array, "*batch"]:
        """1 - terminated: a time limit still bootstraps, from `next_obs`."""
        return 1.0 - jnp.asarray(self.terminated, jnp.float32)

    def ended_where_truncated(self) -> "Transition":
        """The same with every cut told as an end, so that nothing bootstraps from it."""
        return self._replace(
            terminated=self.terminated | self.truncated, truncated=jnp.zeros_like(self.truncated, dtype=bool)
        )


class NStep(NamedTuple):
    """Experience (x, a, R, x') over `steps` = m steps: n, or fewer where the episode ended; batched with leading axes."""

    obs: Observation
    action: Shaped[Array, "..."]
    """That of the first step; its own axes come after those of the batch."""
    reward: Float[Array, "*batch"]
    """R = r_0 + gamma r_1 + ... + gamma^(m-1) r_{m-1}."""
    next_obs: Observation
    """The true successor of the last step; anything where that terminated."""
    terminated: Bool[Array, "*batch"]
    """Of the last step."""
    truncated: Bool[Array, "*batch"]
    """Of the last step."""
    steps: Int[Array, "*batch"]
    weight: Float[Array, "*batch"] | None = None
    """Of the example in the loss, where it was drawn by priority; None: 1."""
    legal: Bool[Array, "*batch A"] | None = None
    """The actions that could be taken at `obs`."""
    next_legal: Bool[Array, "*batch A"] | None = None
    """The same at `next_obs`."""

    @property
    def discount(self) -> Float[Array, "*batch"]:
        """1 - terminated: the return from `next_obs` counts gamma^m times it."""
        return 1.0 - jnp.asarray(self.terminated, jnp.float32)


@runtime_checkable
class Environment(Protocol):
    """An environment is a pytree with these members; its leaves (physics, say) may vary, its treedef is static.

    `step` resets by itself after a last step, and still gives the true successor as `TimeStep.next_obs`. Both flags may
    be true at once; `terminated` then wins.
    """

    @property
    def name(self) -> str:
        """What error messages, run directories and plots call it."""

    @property
    def observation_space(self) -> Box:
        """Shape and dtype of an observation."""

    @property
    def action_space(self) -> Discrete | Box:
        """The actions it takes."""

    @property
    def max_episode_steps(self) -> Int[Array, ""] | int:
        """No episode is longer than this; evaluation relies on it to end."""

    def reset(self, key: Key[Array, ""]) -> tuple[EnvState, Observation] | tuple[EnvState, Observation, Legal]:
        """Begin an episode: (state, observation), and the mask of legal actions where time steps have one."""

    def step(self, key: Key[Array, ""], state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        """Take one step, and reset after a last one."""


class Metrics(NamedTuple):
    """Means over the gradient steps between two evaluations (NaN where there was none), and the state at their end."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Global norm before clipping."""
    q: Float[Array, ""]
    """Mean predicted return of the transitions in the batch, in the units that the network learns."""
    td_error: Float[Array, ""]
    """Mean over the batch of |expected target - expected prediction|, in the same units."""
    epsilon: Float[Array, ""]
    """Exploration: probability of a random action."""
    replay_fill: Float[Array, ""] | None = None
    """At the end: share of the replay that is filled; None where the algorithm has no replay."""
    target_distance: Float[Array, ""] | None = None
    """At the end: ||theta - theta^-|| / ||theta||; None where the algorithm has no target network."""


class Record(NamedTuple):
    """What a segment leaves behind: one evaluation, and the metrics of the training before it."""

    env_step: Int[Array, ""]
    """Environment steps taken so far, warm-up included."""
    lengths: Int[Array, "E"]
    returns: Float[Array, "E"]
    finite: Bool[Array, ""]
    """No parameter is NaN or infinite."""
    metrics: Metrics | None
    """None where the config says `metrics: false`."""
    callback: PyTree = None
    """What the agent's `eval_callback` returned; None without one."""
    signals: PyTree = None
    """A `quantilax.signals.Signals`; None unless the config says `signals: true`."""
    learned_returns: Float[Array, "E"] | None = None
    """Discounted returns in the units that are learned; None unless these have bounds, `config.support`."""


EvalCallback: TypeAlias = Callable[["Algorithm", Environment, Config, State, Key[Array, ""]], PyTree]
"""(algorithm, env, config, state, key) -> whatever is to stand in the curve, pure: it runs inside the program."""


class Algorithm(NamedTuple):
    """An algorithm is a config and pure functions; `quantilax.train` composes them to a loop.

    An iteration takes `steps_per_iteration` environment steps by `act`, shows them to `observe`, and ends with `update`.

    The config class is a `quantilax.pytree.dataclass` with the fields of `quantilax.hyperparameters.Loop`, `gamma` and
    `bootstrap_truncated`, the properties `warmup_steps` (environment steps that `init` takes), `steps_per_iteration` and
    `gradient_steps` (of the whole run), and the methods `check()` (raises `ConfigError` for fields that contradict each
    other), `derived()` (name -> figure, what follows from it) and `advice()` (lines on settings known to mislead).

    The state class extends `quantilax.learning.rollout.State`; where it has a `replay` or `target_params`, their fill and
    distance are measured.
    """

    name: str
    config: type
    init: Callable[[Environment, Config, Key[Array, ""]], State]
    """Networks, replay, environments, warm-up included."""
    act: Callable[[Environment, Config, State], Policy]
    """How training acts."""
    observe: Callable[[Config, State, Transition, Key[Array, ""]], State]
    """(config, state, transitions, key) -> state: takes in what an iteration collected, leading axes (T, E)."""
    update: Callable[[Config, State, Key[Array, ""]], tuple[State, Metrics]]
    """The gradient steps of an iteration."""
    policy: Callable[[Environment, Config, State], Policy]
    """The policy that evaluation runs."""
    quantiles: Callable[[Config, State, Observation, Float[Array, "N"]], Float[Array, "N A"]] | None = None
    """(config, state, observation, fractions) -> Z, for one observation; None: the algorithm is not distributional."""
    signals: Any = None
    """A `quantilax.signals.Learning`, what signals are measured with where the config's `signals` is true; None: they
    cannot be."""


def no_action(space: Discrete | Box) -> Array:
    """Return an action of zeros: its shape and dtype are those of every action of the space."""
    return jnp.zeros((), jnp.int32) if isinstance(space, Discrete) else jnp.zeros(space.shape, space.number)


def num_actions(env: Environment) -> int:
    """Return the number of actions of an environment with discrete ones."""
    space = env.action_space
    if not isinstance(space, Discrete):
        raise TypeError(f"{env.name} has continuous actions")
    return space.n


def as_key(key: Key[Array, ""] | Shaped[Array, "2"]) -> Key[Array, ""]:
    """Return a typed key for a typed key (`jax.random.key`) or a raw one (`jax.random.PRNGKey`).

    Raises:
        TypeError: where `key` is neither; a batch of keys needs `jax.vmap`.
    """
    try:
        array = jnp.asarray(key)
        typed = jax.random.wrap_key_data(array) if array.dtype == jnp.uint32 else array
    except (TypeError, ValueError):  # no array, or raw keys with another number of words
        typed = None
    if typed is None or not jnp.issubdtype(typed.dtype, jax.dtypes.prng_key):
        given = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"expected a key from jax.random.key(seed), got {given}")
    if typed.ndim:
        raise TypeError(
            f"expected one key, got {typed.shape[0]}; map over several with jax.vmap, as jax.vmap(algo.train)(keys) does"
        )
    return typed
