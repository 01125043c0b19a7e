"""The agents that users create: an algorithm with an environment and a config, frozen.

from quantilax import IQN

algo = IQN.create(env="CartPole-v1", total_timesteps=50_000)
state, (lengths, returns) = algo.train(jax.random.key(0))
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from quantilax import algorithms, arguments, envs, fractions, pytree, switches, train
from quantilax.errors import ConfigError
from quantilax.learning import rollout
from quantilax.types import (
    Action,
    Algorithm,
    Box,
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
    """A setting known to mislead, with a remedy."""


class Curve(NamedTuple):
    """One row per evaluation: `lengths, returns = curve`. `Agent.records` returns more."""

    lengths: Int[Array, "rows episodes"]
    returns: Float[Array, "rows episodes"]


@dataclasses.dataclass(frozen=True)
class _OfAgent:
    """Adapts a function of (agent, state, key) to (algorithm, env, config, state, key).

    Two adapters are equal if their functions are.
    """

    function: Callable[["Agent", State, Key[Array, ""]], PyTree]

    def __call__(
        self, algorithm: Algorithm, env: Environment, config: Any, state: State, key: Key[Array, ""]
    ) -> PyTree:
        return self.function(Agent(algorithm=algorithm, env=env, config=config, eval_callback=None), state, key)


EVALUATION = 0x45564C55
"""Folded into the key of `Agent.evaluate`, so that its episodes do not use the keys from which a
run with the same key drew its weights.

Training splits its key into a few keys, never into so many that they reach this number."""

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
    """An algorithm, an environment and a config, made by `IQN.create(...)`.

    A pytree whose leaves are the floats of the config and the environment.
    """

    algorithm: Algorithm = pytree.field(static=True)
    env: Any
    config: Any
    eval_callback: Callable[..., PyTree] | None = pytree.field(None, static=True)
    """A pure function (agent, state, key) -> pytree, called inside the program at each evaluation;
    see `records`."""
    recalibration: fractions.Recalibration | None = None
    """A correction of the quantiles. `quantilax.load` reads what `quantilax calibrate RUN
    --recalibrate` fitted; it holds for that checkpoint and seed alone."""

    def train(self, key: Key[Array, ""] | Shaped[Array, "2"]) -> tuple[State, Curve]:
        """Train from scratch in one XLA program: return the final state and the curve.

        Row 0 of the curve is measured before training; `evaluation_steps` gives the step of each
        row. `jax.jit(jax.vmap(algo.train))(keys)` trains several seeds at once.
        """
        state, record = self.records(key)
        return state, Curve(record.lengths, record.returns)

    def records(self, key: Key[Array, ""] | Shaped[Array, "2"]) -> tuple[State, Record]:
        """Train as `train` does: return the final state and every row's record.

        A record holds the step, lengths, returns, metrics and callback. `record.callback` is what
        `eval_callback` returned, stacked over the rows. To add anything to the curve that can be
        computed from a state, pass an `eval_callback` to `create` or `replace`.
        """
        return _train(*self.arguments(), as_key(key), self.in_program_callback)

    def init(self, key: Key[Array, ""] | Shaped[Array, "2"]) -> State:
        """Return the state before training, after the warm-up."""
        return _init(*self.arguments(), as_key(key))

    def step(self, state: State) -> tuple[State, Metrics]:
        """Run one iteration: collect steps in every environment, then take the gradient steps."""
        return _step(*self.arguments(), arguments.one_state(state))

    def policy(self, state: State) -> Callable[..., Action]:
        """Return the policy that evaluation runs: (observation, key) -> action.

        It takes one observation; use `jax.vmap` for several. If the environment has masks, the
        policy is (observation, key, legal) -> action.

        Observations may be arrays or lists of the space's shape. If the space holds integers or
        bools, floats are refused, for example a picture scaled to 0..1. Under `jax.jit` the checks
        add nothing to the program.

        Raises:
            ConfigError: the state is that of several runs. The policy raises it for an observation
                of another shape or with numbers outside of the space, and for a mask that is
                missing or does not fit.
        """
        state, masks = arguments.one_state(state), envs.masks(self.env)

        @switches.standard()
        def act(obs: Observation, key: Key[Array, ""] | Shaped[Array, "2"], legal: Legal = None) -> Action:
            legal = arguments.as_legal(self.env.action_space, masks, legal)
            obs = arguments.as_observation(self.env.observation_space, obs)
            policy = self.algorithm.policy(self.env, self.config, state)
            return policy.act(obs, policy.carry, as_key(key), legal)[0]

        return act

    @switches.standard()
    def begin(self, state: State, env_state: PyTree, obs: Observation) -> tuple[PyTree, Observation]:
        """Set the first stock at the beginning of an episode; return (environment's state, obs).

        With `risk_objective: static_cvar` or `spectral`, the first stock depends on `risk_level`.
        For other agents nothing changes. In a loop of your own, call this after `env.reset`;
        `evaluate` does so by itself.

        Args:
            state: the state of one run.
            env_state, obs: of one environment, `Agent.env`, after its reset.

        Raises:
            ConfigError: the state is that of several runs.
        """
        begin = self.algorithm.policy(self.env, self.config, arguments.one_state(state)).begin
        return (env_state, obs) if begin is None else begin(env_state, obs)

    def evaluate(
        self, state: State, key: Key[Array, ""] | Shaped[Array, "2"], episodes: int = 128
    ) -> tuple[Int[Array, "E"], Float[Array, "E"]]:
        """Play `episodes` episodes with the policy of a state: return (lengths, returns).

        The episodes run in parallel, each to its end.

        Args:
            state: the state of one run.
            key: another key gives other episodes. The key of a training may be reused: the episodes
                use none of the keys drawn from it.
            episodes: E; each new number compiles a new program.

        Raises:
            ConfigError: the state is that of several runs, or the number of episodes is below 1.
        """
        episodes = arguments.as_count("episodes", episodes)
        return _evaluate(*self.arguments(), arguments.one_state(state), as_key(key), episodes)

    @switches.standard()
    def quantiles(
        self, state: State, obs: Shaped[Array, "*batch obs"], taus: Float[Array, "N"], calibrated: bool = False
    ) -> Float[Array, "*batch N A"]:
        """Quantiles Z of the discounted return for every action, in the environment's units.

        SAC and TD3 give those of the policy's action, and PPO those of the state, with A = 1.

        Args:
            state: the state of one run (use `jax.vmap` for several).
            obs: one observation, or several with any number of leading axes; checked as `policy`
                does.
            taus: fractions in [0, 1].
            calibrated: correct them by `recalibration`.

        Raises:
            ConfigError: the algorithm has no quantiles, the state is that of several runs, an
                observation has another shape or numbers outside of the space, a fraction is outside
                of [0, 1], or there is no recalibration.
        """
        Z = self.algorithm.quantiles
        if Z is None:
            raise ConfigError(f"{self.algorithm.name} learns expected values, no quantiles; use iqn, fqf, qrdqn or c51")
        state, taus = arguments.one_state(state), arguments.as_fractions(taus)
        correction = self.recalibration
        if calibrated and correction is None:
            raise ConfigError(
                "calibrated: there is no recalibration; run quantilax calibrate RUN --recalibrate, then load the run"
            )
        obs = arguments.as_observations(self.env.observation_space, obs)
        shape = self.env.observation_space.shape
        batch = obs.shape[: obs.ndim - len(shape)]

        def one(x: Observation) -> Float[Array, "N A"]:
            learned = partial(Z, self.config, state, x)
            return correction.quantiles(learned, taus) if calibrated and correction is not None else learned(taus)

        z = jax.vmap(one)(obs.reshape(-1, *shape))
        return z.reshape(*batch, *z.shape[1:])

    def replace(self, **changes: Any) -> "Agent":
        """Return an agent with other hyperparameters or another `eval_callback`.

        Floats may be tracers, so `jax.vmap` can sweep them.
        """
        eval_callback = _callable(changes.pop("eval_callback", self.eval_callback))
        config: Any = pytree.replace(self.config, **changes)
        env = _played(self.algorithm, self.env, config)
        return dataclasses.replace(self, env=env, config=config, eval_callback=eval_callback)

    @property
    def in_program_callback(self) -> EvalCallback | None:
        """`eval_callback` in the form that `quantilax.train` takes."""
        return None if self.eval_callback is None else _OfAgent(self.eval_callback)

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Environment steps, including the warm-up, at which the curve's rows are measured."""
        return train.evaluation_steps(self.config)

    def arguments(self) -> tuple[Algorithm, Environment, Any]:
        """(algorithm, env, config) as `quantilax.train` takes them, with arrays as leaves.

        Raises:
            ConfigError: a hyperparameter is an array of several numbers, or there is no device.
        """
        switches.devices()  # raises one clear error if JAX finds no device
        for name in pytree.float_fields(type(self.config)):
            shape = jnp.shape(getattr(self.config, name))
            if shape:
                raise ConfigError(
                    f"{name}: expected one number, got an array of shape {shape}; map over it with jax.vmap"
                )
        return self.algorithm, train.leaves_as_arrays(self.env), train.leaves_as_arrays(self.config)


def _played(algorithm: Algorithm, env: Environment, config: Any) -> Environment:
    """Return the environment that an agent plays, after the checks of environment and config."""
    train.check(env, config)
    return env if algorithm.environment is None else algorithm.environment(env, config)


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
    env_args: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] | None = None,
) -> Agent:
    """Build an agent from a YAML section, check it, and warn of settings known to mislead.

    Raises:
        ConfigError: in one line, prefixed with `where`.
    """
    try:
        environment = envs.as_environment(env, env_args, wrappers)
        config: Any = pytree.from_dict(algorithm.config, hyperparameters)
        _check_actions(environment, algorithm)
        environment = _played(algorithm, environment, config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    numbers = [getattr(config, name) for name in pytree.float_fields(algorithm.config)]
    concrete = all(isinstance(number, float) for number in numbers)
    for line in train.advice(environment, config) if concrete else []:
        warnings.warn(f"{where}: {line}" if where else line, ConfigWarning, stacklevel=3)
    return Agent(algorithm=algorithm, env=environment, config=config, eval_callback=_callable(eval_callback))


def _check_actions(env: Environment, algorithm: Algorithm) -> None:
    space, another = env.action_space, "choose another (quantilax list --environments)"
    if not isinstance(space, algorithm.actions):
        kinds = ("discrete", "continuous") if isinstance(space, Discrete) else ("continuous", "discrete")
        raise ConfigError(
            f"env: {env.name} has {kinds[0]} actions and {algorithm.name} needs {kinds[1]} ones; {another}"
        )
    if not isinstance(space, Box):
        return
    rollout.random_action(env)  # raises if the actions have no bounds
    if not jnp.issubdtype(space.number, jnp.floating):
        raise ConfigError(f"env: {env.name}'s actions are whole numbers in a box; {algorithm.name} needs real numbers")
    width = np.subtract(space.high, space.low, dtype=np.float64)
    if not ((width > 0) & (width < np.finfo(np.float32).max)).all():
        raise ConfigError(
            f"env: {env.name}'s action_space needs each low below its high, and both of moderate size; got"
            f" {space.low} and {space.high}"
        )


class Creator(NamedTuple):
    """Makes agents of one algorithm."""

    algorithm: Algorithm

    def create(
        self,
        env: Any,
        *,
        env_args: Mapping[str, Any] | None = None,
        wrappers: Sequence[Any] | None = None,
        eval_callback: Callable[[Agent, State, Key[Array, ""]], PyTree] | None = None,
        **hyperparameters: Any,
    ) -> Agent:
        """Return an agent for an environment.

        Args:
            env: a name, a gymnax environment, a function that makes a gymnasium environment, or an
                object of your own (`quantilax.types.Environment` says what it needs).
            env_args: arguments with which a named environment is made.
            wrappers: entries such as `flatten` or `{"frame_stack": {"frames": 4}}`, the innermost
                first; see `quantilax.envs.wrappers`.
            eval_callback: a pure function (agent, state, key) -> pytree; see `Agent.records`.
            hyperparameters: fields of the algorithm's `Config`; the others keep their defaults.

        Raises:
            ConfigError: an unknown field, a wrong type, a value out of range, or an unsuitable
                environment.

        Warns:
            ConfigWarning: settings known to mislead, with a remedy.
        """
        return create(
            self.algorithm, env, hyperparameters, eval_callback=eval_callback, env_args=env_args, wrappers=wrappers
        )


DQN = Creator(algorithms.get("dqn"))
C51 = Creator(algorithms.get("c51"))
QRDQN = Creator(algorithms.get("qrdqn"))
IQN = Creator(algorithms.get("iqn"))
FQF = Creator(algorithms.get("fqf"))
PQN = Creator(algorithms.get("pqn"))
QLearning = Creator(algorithms.get("q_learning"))
PPO = Creator(algorithms.get("ppo"))
SAC = Creator(algorithms.get("sac"))
TQC = Creator(algorithms.get("tqc"))
DSAC = Creator(algorithms.get("dsac"))
TD3 = Creator(algorithms.get("td3"))
TD3C51 = Creator(algorithms.get("td3_c51"))
D4PG = Creator(algorithms.get("d4pg"))
