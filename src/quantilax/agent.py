"""What users hold: a frozen view of an algorithm, an environment and a config.

from quantilax import IQN

algo = IQN.create(env="CartPole-v1", total_timesteps=50_000)
state, (lengths, returns) = algo.train(jax.random.key(0))
"""

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import algorithms, arguments, envs, pytree, switches, train
from quantilax.errors import ConfigError
from quantilax.learning import rollout
from quantilax.types import (
    Algorithm,
    Discrete,
    Environment,
    EvalCallback,
    Legal,
    Metrics,
    Observation,
    Record,
    State,
    as_key,
)


class ConfigWarning(UserWarning):
    """A setting known to mislead, with the remedy."""


class Curve(NamedTuple):
    """One row per evaluation: `lengths, returns = curve`; see `Agent.records` for more."""

    lengths: Int[Array, "rows episodes"]
    returns: Float[Array, "rows episodes"]


@dataclasses.dataclass(frozen=True)
class _OfAgent:
    """A function of (agent, state, key) as one of (algorithm, env, config, state, key); equal where the function is."""

    function: Callable[["Agent", State, Key[Array, ""]], PyTree]

    def __call__(
        self, algorithm: Algorithm, env: Environment, config: Any, state: State, key: Key[Array, ""]
    ) -> PyTree:
        return self.function(Agent(algorithm=algorithm, env=env, config=config, eval_callback=None), state, key)


EVALUATION = 0x45564C55
"""Folded into the key of `Agent.evaluate`: training splits its key into a few, never into so many.

Without it the episodes of a key would be drawn from the keys that the weights of a run of the same key were drawn from."""

_init = switches.checked(jax.jit(train.init, static_argnums=0))
_train = switches.checked(jax.jit(train.train, static_argnums=(0, 4)))


@switches.checked
@partial(jax.jit, static_argnums=(0, 5))
@switches.standard()
def _evaluate(
    algorithm: Algorithm, env: Environment, config: Any, state: State, key: Key[Array, ""], episodes: int
) -> tuple[Int[Array, "E"], Float[Array, "E"]]:
    key = jax.random.fold_in(key, EVALUATION)
    return rollout.evaluate(env, algorithm.policy(env, config, state), key, episodes)


@switches.checked
@partial(jax.jit, static_argnums=0)
@switches.standard()
def _step(algorithm: Algorithm, env: Environment, config: Any, state: State) -> tuple[State, Metrics]:
    return train.step(algorithm, env, config, state)


@pytree.dataclass
class Agent:
    """An algorithm on an environment with a config: `IQN.create(...)` makes one. A pytree whose leaves are floats."""

    algorithm: Algorithm = pytree.field(static=True)
    env: Any
    config: Any
    eval_callback: Callable[..., PyTree] | None = pytree.field(None, static=True)
    """A pure function (agent, state, key) -> pytree, called inside the program at each evaluation; see `records`."""

    def train(self, key: Key[Array, ""] | Shaped[Array, "2"]) -> tuple[State, Curve]:
        """Train from scratch in one XLA program: the final state and the curve, row 0 before training.

        `jax.jit(jax.vmap(algo.train))(keys)` trains several seeds at once; the steps of the rows are `evaluation_steps`.
        """
        state, record = self.records(key)
        return state, Curve(record.lengths, record.returns)

    def records(self, key: Key[Array, ""] | Shaped[Array, "2"]) -> tuple[State, Record]:
        """Train as `train` does: the final state, and every row's record (step, lengths, returns, metrics, callback).

        `record.callback` holds what `eval_callback` returned, stacked: give one to `create` or `replace` to have anything
        that can be computed from a state in the curve.
        """
        return _train(*self.arguments(), as_key(key), self.in_program_callback)

    def init(self, key: Key[Array, ""] | Shaped[Array, "2"]) -> State:
        """Return the state before training, warm-up done."""
        return _init(*self.arguments(), as_key(key))

    def step(self, state: State) -> tuple[State, Metrics]:
        """Run one iteration: collect once per environment, then the gradient steps."""
        return _step(*self.arguments(), arguments.one_state(state))

    def policy(self, state: State) -> Callable[..., Int[Array, ""]]:
        """Return the policy that evaluation runs: (observation, key) -> action, for one observation; `jax.vmap` it for more.

        Of an environment with masks it is (observation, key, legal) -> action.

        Observations may be arrays or lists of the space's shape. Those of a space of integers or bools are never made of
        floats: a picture scaled to 0..1 is refused. Under `jax.jit` the checks add nothing to the program.

        Raises:
            ConfigError: a state of several runs; from the policy: another shape, or numbers that the space does not have; no
                mask or one that does not fit.
        """
        state, masks = arguments.one_state(state), envs.masks(self.env)

        @switches.standard()
        def act(obs: Observation, key: Key[Array, ""] | Shaped[Array, "2"], legal: Legal = None) -> Int[Array, ""]:
            legal = arguments.as_legal(self.env.action_space, masks, legal)
            obs = arguments.as_observation(self.env.observation_space, obs)
            policy = self.algorithm.policy(self.env, self.config, state)
            return policy.act(obs, policy.carry, as_key(key), legal)[0]

        return act

    def evaluate(
        self, state: State, key: Key[Array, ""] | Shaped[Array, "2"], episodes: int = 128
    ) -> tuple[Int[Array, "E"], Float[Array, "E"]]:
        """Play `episodes` episodes with the policy of a state, in parallel, each to its end: (lengths, returns).

        Args:
            state: of one run.
            key: other keys, other episodes; that of a training will do too, which draws from none of theirs.
            episodes: E; a new number is a new program.

        Raises:
            ConfigError: a state of several runs, a number of episodes below 1.
        """
        episodes = arguments.as_count("episodes", episodes)
        return _evaluate(*self.arguments(), arguments.one_state(state), as_key(key), episodes)

    @switches.standard()
    def quantiles(
        self, state: State, obs: Shaped[Array, "*batch obs"], taus: Float[Array, "N"]
    ) -> Float[Array, "*batch N A"]:
        """Quantiles Z of the discounted return at fractions `taus` in [0, 1], for every action, in the environment's units.

        Args:
            state: of one run (map over several with `jax.vmap`).
            obs: one observation, or any number of leading axes of them; checked as `policy` checks it.
            taus: the fractions.

        Raises:
            ConfigError: an algorithm without quantiles, a state of several runs, another shape, numbers that the space does
                not have, a fraction outside of [0, 1].
        """
        Z = self.algorithm.quantiles
        if Z is None:
            raise ConfigError(f"{self.algorithm.name} learns expected values, no quantiles; use iqn, fqf, qrdqn or c51")
        state, taus = arguments.one_state(state), arguments.as_fractions(taus)
        obs = arguments.as_observations(self.env.observation_space, obs)
        shape = self.env.observation_space.shape
        batch = obs.shape[: obs.ndim - len(shape)]
        z = jax.vmap(lambda x: Z(self.config, state, x, taus))(obs.reshape(-1, *shape))
        return z.reshape(*batch, *z.shape[1:])

    def replace(self, **changes: Any) -> "Agent":
        """Return an agent with hyperparameters, or its `eval_callback`, changed.

        Floats may be tracers, so `jax.vmap` sweeps them.
        """
        eval_callback = _callable(changes.pop("eval_callback", self.eval_callback))
        config: Any = pytree.replace(self.config, **changes)
        train.check(self.env, config)
        return Agent(algorithm=self.algorithm, env=self.env, config=config, eval_callback=eval_callback)

    @property
    def in_program_callback(self) -> EvalCallback | None:
        """`eval_callback` in the form that `quantilax.train` takes."""
        return None if self.eval_callback is None else _OfAgent(self.eval_callback)

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Environment steps, warm-up included, at which the rows of the curve are measured."""
        return train.evaluation_steps(self.config)

    def arguments(self) -> tuple[Algorithm, Environment, Any]:
        """(algorithm, env, config) as the functions of `quantilax.train` take them, every leaf an array.

        Raises:
            ConfigError: a hyperparameter that is an array of several numbers, or no device to compute on.
        """
        switches.devices()  # else JAX says in many ways, and in none, that there are none
        for name in pytree.float_fields(type(self.config)):
            shape = jnp.shape(getattr(self.config, name))
            if shape:
                raise ConfigError(
                    f"{name}: expected one number, got an array of shape {shape}; map over it with jax.vmap"
                )
        return self.algorithm, train.leaves_as_arrays(self.env), train.leaves_as_arrays(self.config)


def _callable(function: Any) -> Any:
    if function is not None and not callable(function):
        raise ConfigError(f"eval_callback: expected a function (agent, state, key) -> pytree, got {function!r}")
    return function


def create(
    algorithm: Algorithm,
    env: Any,
    hyperparameters: dict[str, Any],
    where: str = "",
    eval_callback: Callable[[Agent, State, Key[Array, ""]], PyTree] | None = None,
) -> Agent:
    """Build an agent from what a YAML section holds, check it, and warn of settings known to mislead.

    Raises:
        ConfigError: one line, prefixed with `where`.
    """
    try:
        environment = envs.as_environment(env)
        config: Any = pytree.from_dict(algorithm.config, hyperparameters)
        if not isinstance(environment.action_space, Discrete):
            raise ConfigError(
                f"env: {environment.name} has continuous actions and {algorithm.name} needs discrete ones;"
                " choose another environment (quantilax list)"
            )
        train.check(environment, config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    numbers = [getattr(config, name) for name in pytree.float_fields(algorithm.config)]
    concrete = all(isinstance(number, float) for number in numbers)
    for line in train.advice(environment, config) if concrete else []:
        warnings.warn(f"{where}: {line}" if where else line, ConfigWarning, stacklevel=3)
    return Agent(algorithm=algorithm, env=environment, config=config, eval_callback=_callable(eval_callback))


class Creator(NamedTuple):
    """Makes agents of one algorithm."""

    algorithm: Algorithm

    def create(
        self,
        env: Any,
        *,
        eval_callback: Callable[[Agent, State, Key[Array, ""]], PyTree] | None = None,
        **hyperparameters: Any,
    ) -> Agent:
        """Return an agent for an environment: a name, a gymnax environment, or an object of your own.

        Args:
            env: see `quantilax.types.Environment` for what an object of your own needs.
            eval_callback: a pure function (agent, state, key) -> pytree; see `Agent.records`.
            hyperparameters: fields of the algorithm's `Config`; the rest keep their defaults.

        Raises:
            ConfigError: an unknown field, a wrong type, a value out of range, an environment that does not fit.

        Warns:
            ConfigWarning: settings known to mislead, with the remedy.
        """
        return create(self.algorithm, env, hyperparameters, eval_callback=eval_callback)


DQN = Creator(algorithms.get("dqn"))
C51 = Creator(algorithms.get("c51"))
QRDQN = Creator(algorithms.get("qrdqn"))
IQN = Creator(algorithms.get("iqn"))
FQF = Creator(algorithms.get("fqf"))
PQN = Creator(algorithms.get("pqn"))
QLearning = Creator(algorithms.get("q_learning"))
