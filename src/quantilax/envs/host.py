"""Environments outside of JAX as pure functions of their state, inside programs.

The state of an environment is the seed of its episode and the actions taken since. `step` is one
callback for all environments that step together, however many axes `jax.vmap` adds: seeds, runs
and copies become rows of one call. See `quantilax.simulators.bench` for what happens there.

Everything that is random is drawn from keys: each episode has a seed of its own. If simulators are
determined by seed and actions, a seed trained among others equals that seed alone, and a resumed
run equals one that was not interrupted.
"""

import atexit
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, Shaped, UInt32

from quantilax import pytree
from quantilax.envs import calls
from quantilax.errors import ConfigError, LostEpisodesWarning, reason
from quantilax.host import failures, limits
from quantilax.pytree import shown
from quantilax.simulators import Form, Maker, Simulator, SimulatorError
from quantilax.simulators.bench import Bench, Steps
from quantilax.simulators.workers import Workers
from quantilax.types import Action, Box, Discrete, Environment, Observation, TimeStep


class State(NamedTuple):
    """Where one environment stands."""

    handle: UInt32[Array, "2"]
    """The simulator that should stand there. It changes nothing about what happens."""
    seed: UInt32[Array, ""]
    """Seed of the episode."""
    clock: Int[Array, ""]
    """Steps since its beginning."""
    digest: UInt32[Array, ""]
    """Checksum of the actions since."""
    log: Shaped[Array, "T *action"]
    """The actions since, of which the first `clock` count."""
    obs: Observation
    legal: Bool[Array, "A"]
    """A is 0 without masks."""


class Simulation:
    """What all environments of one kind share; compared by its name and arguments."""

    def __init__(
        self,
        name: str,
        maker: Maker,
        observation_space: Box,
        action_space: Discrete | Box,
        max_episode_steps: int,
        masks: bool,
        workers: int = 0,
        first: Simulator | None = None,
        arguments: Mapping[str, Any] | None = None,
        observation_names: tuple[str, ...] = (),
        evaluation: "Simulation | None" = None,
    ) -> None:
        """Describe the simulators.

        Args:
            name: for messages.
            maker: makes a simulator.
            observation_space, action_space: of each.
            max_episode_steps: steps after which an episode is cut off.
            masks: whether there are masks of legal actions.
            workers: processes that simulators live in; 0: in this one.
            first: one that was made already.
            arguments: with which `make` makes these simulators again.
            observation_names: a name for each number of an observation.
            evaluation: what evaluations play, if it differs.
        """
        self.evaluation = evaluation or self
        self.arguments, self.observation_names = dict(arguments or {}), observation_names
        failures.expect()
        self.name, self.workers = name, workers
        self.observation_space, self.action_space = observation_space, action_space
        self.max_episode_steps, self.masks = max_episode_steps, masks
        self.maker, self._first = maker, first
        self._key = name, repr(sorted(self.arguments.items())), str(maker.arguments.get("env"))
        atexit.register(self.close)
        actions = action_space.n if isinstance(action_space, Discrete) and masks else None
        self._form = Form(observation_space.shape, np.dtype(observation_space.number).name, actions, max_episode_steps)
        self._bench: Bench | Workers | None = None
        self._limited: dict[int, Simulation] = {}
        self._numbers, self._process = itertools.count(), int.from_bytes(os.urandom(4))
        self._lock = threading.Lock()
        self.begin = calls.over_rows(self._begin)
        self.step = calls.over_rows(self._step)

    def with_time_limit(self, steps: int) -> "Simulation":
        """Return the same with a shorter time limit."""
        limit = min(steps, self.max_episode_steps)
        if limit not in self._limited:
            self._limited[limit] = Simulation(
                self.name,
                self.maker,
                self.observation_space,
                self.action_space,
                limit,
                self.masks,
                self.workers,
                arguments={**self.arguments, "max_episode_steps": limit},
                observation_names=self.observation_names,
                evaluation=None if self.evaluation is self else self.evaluation.with_time_limit(steps),
            )
        return self._limited[limit]

    @property
    def log_dtype(self) -> Any:
        """The smallest dtype that holds an action."""
        space = self.action_space
        return space.number if isinstance(space, Box) else np.min_scalar_type(space.n - 1)

    def bench(self) -> Bench | Workers:
        """Return where the simulators are; it is made on first use."""
        with self._lock:
            if self._bench is None:
                if self.workers:
                    self._bench = Workers(self.maker, self._form, self.workers)
                else:
                    self._bench = Bench(self.maker, self._form, [] if self._first is None else [self._first])
                    self._first = None
            return self._bench

    def close(self) -> None:
        """Close all simulators; others are made when they are needed."""
        with self._lock:
            if self._bench is not None:
                self._bench.close()
            elif self._first is not None:
                self._first.close()
            self._bench = self._first = None

    def __eq__(self, other: object) -> bool:
        """Return whether both make the same simulators."""
        return isinstance(other, Simulation) and self._key == other._key

    def __hash__(self) -> int:
        """Hash name and arguments."""
        return hash(self._key)

    def _begin(self, seeds: UInt32[Array, "N"]) -> tuple[Array, ...]:
        def begin(seeds: np.ndarray) -> tuple[np.ndarray, ...]:
            with self._lock:
                numbers = [next(self._numbers) for _ in seeds]
            handles = np.array([(self._process, number % 2**32) for number in numbers], np.uint32)
            return handles, *self.bench().begin(handles, np.asarray(seeds))

        n = seeds.shape[0]
        obs, legal = self._spec(n)
        # Not pure: two calls with the same seeds must get two handles.
        found: tuple[Array, ...] = jax.experimental.io_callback(
            self._guarded(begin), (jax.ShapeDtypeStruct((n, 2), jnp.uint32), obs, legal), seeds
        )
        return found

    def _step(self, state: State, actions: Array, next_seeds: UInt32[Array, "N"]) -> Steps:
        kind = np.dtype(actions.dtype), self.action_space.shape if isinstance(self.action_space, Box) else ()

        def step(pieces: Any) -> Steps:
            return self.bench().step(*calls.unpacked(calls.joined(pieces, shape), *kind))

        def replay(pieces: Any, wanted: Any, *others: Any) -> Steps:
            logs, observations = map(calls.joined, others, (state.log.shape, state.obs.shape))
            rows = calls.unpacked(calls.joined(pieces, shape), *kind)
            steps, lost = self.bench().replay(*rows, np.asarray(wanted), logs, observations)
            if lost:
                warnings.warn(
                    f"env: {self.name}: {lost} episode(s) could not be continued, because their seed and actions do not"
                    " lead to the same observation again; others begin in their place",
                    LostEpisodesWarning,
                    stacklevel=2,
                )
            return steps

        spec: Any = Steps(*self._spec_of_steps(next_seeds.shape[0]))
        packed = calls.packed(state.handle, state.seed, state.clock, state.digest, next_seeds, actions)
        shape = packed.shape
        # Pure, not ordered: states give the order, and JAX refuses ordered calls under vmap.
        steps: Steps = jax.pure_callback(self._guarded(step), spec, calls.pieces(packed))

        def replayed(steps: Steps) -> Steps:
            known = calls.pieces(packed), ~steps.hit, calls.pieces(state.log), calls.pieces(state.obs)
            missed = jax.pure_callback(self._guarded(replay), spec, *known)
            return jax.tree.map(
                lambda new, old: jnp.where(steps.hit.reshape(-1, *[1] * (old.ndim - 1)), old, new), missed, steps
            )

        return jax.lax.cond(steps.hit.all(), lambda steps: steps, replayed, steps)

    def _spec(self, n: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return (
            jax.ShapeDtypeStruct((n, *self._form.shape), self._form.dtype),
            jax.ShapeDtypeStruct((n, self._form.actions or 0), jnp.bool_),
        )

    def _spec_of_steps(self, n: int) -> Iterator[Any]:
        obs, legal = self._spec(n)
        flag, number = jax.ShapeDtypeStruct((n,), jnp.bool_), jax.ShapeDtypeStruct((n,), jnp.float32)
        digest = jax.ShapeDtypeStruct((n,), jnp.uint32)
        yield from (flag, flag, digest, obs, obs, number, flag, flag, legal, legal)

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Leave what a function raises for the caller of the program."""

        def guarded(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except SimulatorError as error:
                raise failures.leave(ConfigError(f"env: {self.name}: {error}")) from None
            except Exception as error:  # a user's environment may raise anything
                told = f"env: {self.name}: raised {type(error).__name__}: {reason(error)}"
                raise failures.leave(ConfigError(told)) from None

        return guarded


@pytree.dataclass
class Hosted:
    """An environment outside of JAX as an `Environment`."""

    simulation: Simulation = pytree.field(static=True)

    @property
    def name(self) -> str:
        """The name that `make` takes."""
        return self.simulation.name

    @property
    def observation_space(self) -> Box:
        """Shape, dtype and bounds of an observation."""
        return self.simulation.observation_space

    @property
    def action_space(self) -> Discrete | Box:
        """The actions that the environment takes."""
        return self.simulation.action_space

    @property
    def max_episode_steps(self) -> int:
        """The time limit."""
        return self.simulation.max_episode_steps

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments with which `make` makes it."""
        return self.simulation.arguments

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name for each number of an observation."""
        return self.simulation.observation_names

    @property
    def evaluation(self) -> "Hosted":
        """What evaluations play."""
        return Hosted(simulation=self.simulation.evaluation)

    def with_time_limit(self, steps: int) -> "Hosted":
        """Return the same environment with a shorter time limit."""
        return Hosted(simulation=self.simulation.with_time_limit(steps))

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        simulation, seed = self.simulation, _seed(key)
        handle, obs, legal = simulation.begin(seed)
        shape = simulation.action_space.shape if isinstance(simulation.action_space, Box) else ()
        log = jnp.zeros((simulation.max_episode_steps, *shape), simulation.log_dtype)
        state = State(handle, seed, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32), log, obs, legal)
        return (state, obs, legal) if simulation.masks else (state, obs)

    def step(self, key: Key[Array, ""], state: State, action: Action) -> tuple[State, TimeStep]:
        """Take one step, and reset after the last step of an episode."""
        simulation, next_seed = self.simulation, _seed(key)
        action = jnp.asarray(action, simulation.log_dtype)
        log = state.log.at[state.clock].set(action)  # before it is read: else XLA copies it
        steps = simulation.step(state._replace(log=log), action, next_seed)
        state = State(
            handle=state.handle,
            seed=jnp.where(steps.begun, next_seed, state.seed),
            clock=jnp.where(steps.begun, 0, state.clock + 1),
            digest=steps.digest,
            log=log,
            obs=steps.obs,
            legal=steps.legal,
        )
        masks = (steps.legal, steps.next_legal) if simulation.masks else (None, None)
        told = (steps.obs, steps.next_obs, steps.reward, steps.terminated, steps.truncated)
        return state, TimeStep(*told, *masks)


def state_of(tree: Any) -> State | None:
    """Return the `State` of a host environment inside that of its wrappers, if there is one."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, State))
    return next((x for x in found if isinstance(x, State)), None)


def pictures(env: Environment, seed: int, actions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pictures of an episode of a host environment, to its end.

    Args:
        env: the environment, or one of its wrappers.
        seed: of the episode.
        actions: at least those to its end.

    Raises:
        ConfigError: its simulators draw no pictures.
    """
    inner: Any = env
    while not isinstance(inner, Hosted):
        inner = inner.env
    simulation = inner.simulation
    try:
        simulator = simulation.maker(pictures=True)
        try:
            simulator.reset(seed)
            yield simulator.picture()
            for action in actions[: simulation.max_episode_steps]:
                told = simulator.step(action)
                yield simulator.picture()
                if (told.terminated or told.truncated) and not told.continues:
                    break
        finally:
            simulator.close()
    except Exception as error:  # a user's environment may raise anything
        raise ConfigError(f"--video: {env.name} draws no pictures: {reason(error)}; leave --video out") from None


def _seed(key: Key[Array, ""]) -> UInt32[Array, ""]:
    return jax.random.bits(key, dtype=jnp.uint32) >> 1  # libraries take seeds of 31 bits


MODES = ("sync", "async")


def number_of_workers(told: str, arguments: dict[str, Any]) -> int:
    """Take `vectorization_mode` and `num_workers` out of arguments; return the number of processes.

    0 means that simulators live in this process.

    Raises:
        ConfigError: one of the two is wrong.
    """
    mode, number = arguments.pop("vectorization_mode", "sync"), arguments.pop("num_workers", None)
    if mode not in MODES:
        raise ConfigError(f"env_args: vectorization_mode: expected sync or async, got {shown(mode)}")
    if number is not None and (type(number) is not int or number < 1):
        raise ConfigError(f"env_args: num_workers: expected a whole number of 1 or more, got {shown(number)}")
    if number is not None and mode == "sync":
        raise ConfigError(f"env_args: num_workers: {told} has no workers unless vectorization_mode is async; set it")
    return 0 if mode == "sync" else number or limits.usable_cores()
