"""The loop that every algorithm shares: `segment`, the scan of it (`train`) and the host's loop over it (`fit`).

A segment is the training between two evaluations and the one evaluation after it. `train` scans segments inside one XLA
program; `fit` runs the same segments one by one, so that a host can draw progress, write files and stop in between. The
length of a segment is data, not shape: segments of every length, and the evaluation before training (length 0), are one
compiled program.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from quantilax import normalize, rollout, switches, threads
from quantilax.networks import torsos
from quantilax.pytree import ConfigError
from quantilax.types import Algorithm, Config, Environment, EvalCallback, Metrics, Record, State


def evaluation_steps(config: Config) -> tuple[int, ...]:
    """Environment steps, warm-up included, at which each row of a curve is measured.

    Row 0 stands before training (after the warm-up); then follow the multiples of `eval_freq`, and the end of the run.
    Each is rounded down to whole iterations, so no run takes more than `total_timesteps`.
    """
    warmup, per = config.warmup_steps, config.steps_per_iteration
    asked = [*range(config.eval_freq, config.total_timesteps, config.eval_freq), config.total_timesteps]
    reached = {warmup + (step - warmup) // per * per for step in asked if step > warmup}
    return tuple(sorted({warmup, *reached}))


def segment_iterations(config: Config, since: int | None = None) -> list[int]:
    """Iterations before each row of the curve that is still to come.

    Args:
        config: of the run.
        since: environment step of the last row there is; None: there is none, so the first row comes after 0 iterations.
    """
    steps = evaluation_steps(config)
    rows = (steps[0], *steps) if since is None else (since, *(step for step in steps if step > since))
    return [(b - a) // config.steps_per_iteration for a, b in pairwise(rows)]


MAX_EVALUATIONS = 100_000


def check(env: Environment, config: Config) -> None:
    """Raise `ConfigError` for fields that contradict each other or the environment, in the loop or in the algorithm."""
    if config.total_timesteps // config.eval_freq > MAX_EVALUATIONS:
        raise ConfigError(f"eval_freq: {config.eval_freq} asks for over {MAX_EVALUATIONS:,} evaluations; raise it")
    config.check()
    if hasattr(config, "torso"):
        torsos.check(env.observation_space, config)


def advice(env: Environment, config: Config) -> list[str]:
    """Lines on the settings of the loop that mislead, on those of the algorithm, and on the torso for this environment."""
    lines = []
    last = evaluation_steps(config)[-1]
    if config.total_timesteps % config.eval_freq or config.eval_freq % config.steps_per_iteration:
        lines.append(
            f"eval_freq={config.eval_freq} does not divide total_timesteps={config.total_timesteps} into equal periods of"
            f" whole iterations ({config.steps_per_iteration} environment steps): evaluations are unevenly spaced and the"
            f" last is at step {last}; choose an eval_freq that divides total_timesteps and is a multiple of"
            f" {config.steps_per_iteration}"
        )
    of_torso = torsos.advice(env.observation_space, config) if hasattr(config, "torso") else []
    return lines + config.advice() + of_torso


def uncovered(support: tuple[float, float], returns: Float[np.ndarray, "*episodes"]) -> str | None:
    """Return a line on returns that a categorical support does not cover, with the remedy; None where it covers nine of ten."""
    v_min, v_max = support
    above, below = float(np.mean(returns > v_max)), float(np.mean(returns < v_min))
    if above + below <= UNCOVERED:
        return None
    return (
        f"{'v_max' if above >= below else 'v_min'}: {above + below:.0%} of the returns of an evaluation, discounted and as they"
        f" are learned, lie outside of the support from {float(v_min):g} to {float(v_max):g}: they go from"
        f" {float(returns.min()):.3g} to {float(returns.max()):.3g}; widen the support, or change reward_scale"
    )


UNCOVERED = 0.1
"""Share of an evaluation's returns outside of the support from which on it is told."""


@switches.standard()
def init(algorithm: Algorithm, env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Return the state before training, warm-up done."""
    env, config = _opaque((env, config))
    return _strong(algorithm.init(env, config, key))


_init = jax.jit(init, static_argnums=0)  # one trace serves `state_bytes` and `compile_fit`


@switches.standard()
def segment(
    algorithm: Algorithm,
    env: Environment,
    config: Config,
    state: State,
    iterations: Int[Array, ""],
    eval_callback: EvalCallback | None = None,
) -> tuple[State, Record]:
    """Run `iterations` steps of the algorithm, then evaluate.

    Evaluating is a pure observer: its key is folded from `state.evaluation_key`, which training never uses. With
    `config.metrics` off nothing reads what the algorithm measures, and XLA leaves the measuring out.
    """

    env, config = _opaque((env, config))

    def iteration(i: Int[Array, ""], carry: tuple[State, Metrics | None]) -> tuple[State, Metrics | None]:
        state, mean = carry
        state, metrics = algorithm.step(env, config, state)
        return _strong(state), jax.tree.map(
            lambda m, x: m + (x - m) / (i + 1), mean, metrics if config.metrics else None
        )

    zeros = Metrics(*(jnp.zeros(()) for _ in range(len(Metrics._fields) - len(Metrics._field_defaults))))
    state, mean = jax.lax.fori_loop(0, iterations, iteration, (state, zeros if config.metrics else None))
    metrics = None if mean is None else measured(mean, state, iterations)

    key = jax.random.fold_in(state.evaluation_key, state.env_steps)
    policy, signals, learned_returns = algorithm.policy(env, config, state), None, None
    has_support = getattr(config, "support", None) is not None
    if has_support or measures_signals(algorithm, config):
        episodes = rollout.watch(env, policy, key, config.eval_episodes, config.gamma)
        lengths, returns = episodes.lengths, episodes.returns
        if has_support:
            learned_returns = normalize.rewards(state.normalizer, episodes.discounted)
            if (moments := state.normalizer.reward) is not None:  # before the first step nothing is known of their unit
                with switches.unchecked():
                    learned_returns = jnp.where(moments.moments.number > 0, learned_returns, jnp.nan)
        if measures_signals(algorithm, config):
            keys = signal_keys(state)
            signals = _strong(algorithm.signals(env, config, state, episodes, *keys))  # type: ignore[misc]
    else:
        lengths, returns = rollout.evaluate(env, policy, key, config.eval_episodes)
    callback = None
    if eval_callback is not None:
        key = jax.random.fold_in(state.evaluation_key, ~state.env_steps)  # no step of any evaluation
        callback = _strong(eval_callback(algorithm, env, config, state, key))
    record = Record(
        env_step=state.env_steps,
        lengths=lengths,
        returns=returns,
        finite=all_finite(state.params),
        metrics=metrics,
        callback=callback,
        signals=signals,
        learned_returns=learned_returns,
    )
    return state, record


def measures_signals(algorithm: Algorithm, config: Config) -> bool:
    """Say whether records hold `quantilax.signals.Signals`."""
    return algorithm.signals is not None and getattr(config, "signals", False)


def signal_keys(state: State) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Return the key of a run's reference batch, and one for this evaluation's signals; nothing else uses them."""
    key = jax.random.fold_in(state.evaluation_key, 2**31)  # evaluations fold in steps, callbacks ~steps
    return jax.random.fold_in(key, 2**32 - 1), jax.random.fold_in(key, state.env_steps)


def measured(mean: Metrics, state: State, iterations: Int[Array, ""]) -> Metrics:
    """Add to the means over a segment what is measured at its end."""
    with switches.unchecked():
        mean = jax.tree.map(lambda x: jnp.where(iterations > 0, x, jnp.nan), mean)
    if hasattr(state, "replay"):
        mean = mean._replace(replay_fill=state.replay.size / state.replay.capacity)
    if hasattr(state, "target_params"):
        mean = mean._replace(target_distance=relative_distance(state.params, state.target_params))
    return mean


def relative_distance(params: PyTree, target_params: PyTree) -> Float[Array, ""]:
    """||theta - theta^-|| / ||theta||, all parameters as one vector."""
    return optax.tree.norm(optax.tree.sub(params, target_params)) / optax.tree.norm(params)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Say whether no number in a tree of arrays is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@switches.standard()
def train(
    algorithm: Algorithm,
    env: Environment,
    config: Config,
    key: Key[Array, ""],
    eval_callback: EvalCallback | None = None,
) -> tuple[State, Record]:
    """Run a whole training: the final state, and the records stacked into a curve with leading axis `rows`.

    Pure: `jax.jit` it, and `jax.vmap` it over keys and over every leaf of the config and the environment.
    """

    def body(state: State, iterations: Int[Array, ""]) -> tuple[State, Record]:
        return segment(algorithm, env, config, state, iterations, eval_callback)

    return jax.lax.scan(body, init(algorithm, env, config, key), jnp.array(segment_iterations(config)))


class Program(NamedTuple):
    """The two compiled functions of a run, each over a leading axis of seeds, and the shapes of what they give."""

    init: Callable[..., State] | None
    """(env, config, keys) -> state; None where the program was compiled to go on from a state."""
    segment: Callable[..., tuple[State, Record]]
    """(env, config, state, iterations) -> (state, record); the given state is donated."""
    specs: tuple[State, Record]
    """`jax.ShapeDtypeStruct` in the place of every array."""
    trace_seconds: float
    compile_seconds: float


class Layout(NamedTuple):
    """How S runs are laid over devices: `rounds` runs on each, and on the last ones copies of the last run."""

    runs: int
    rounds: int
    mesh: Mesh
    """Its only axis is `runs`."""

    @property
    def padded(self) -> int:
        """Number of runs with the copies."""
        return self.rounds * self.mesh.size

    @property
    def is_even(self) -> bool:
        """Whether the runs fill the devices, so that states can stay where they are."""
        return self.padded == self.runs

    @property
    def sharding(self) -> NamedSharding:
        """Of states and records between two segments."""
        return NamedSharding(self.mesh, P("runs") if self.is_even else P())


def layout(runs: int) -> Layout:
    """Lay runs over `switches.devices()`, on as few as give the least number of rounds."""
    devices = switches.devices()
    rounds = -(-runs // min(len(devices), runs))
    return Layout(runs, rounds, Mesh(np.array(devices[: -(-runs // rounds)]), ("runs",)))


def over_seeds(function: Callable[[Any], Any], inputs: PyTree) -> Any:
    """Apply a function along the leading axis, on all devices; on each one after another if it is a CPU, else all at once.

    See docs/decisions/0007-seeds-one-after-another-on-a-cpu.md and 0010-a-device-per-core.md.
    """

    def on_one_device(inputs: PyTree) -> Any:
        return jax.lax.map(function, inputs) if switches.platform() == "cpu" else jax.vmap(function)(inputs)

    laid = layout(jax.tree.leaves(inputs)[0].shape[0])
    if laid.mesh.size == 1:
        return on_one_device(inputs)
    if not laid.is_even:
        index = np.minimum(np.arange(laid.padded), laid.runs - 1)
        inputs = jax.tree.map(lambda x: x[index], inputs)
    sharded = jax.shard_map(on_one_device, mesh=laid.mesh, in_specs=P("runs"), out_specs=P("runs"), check_vma=False)
    return jax.tree.map(lambda x: x[: laid.runs], sharded(inputs)) if not laid.is_even else sharded(inputs)


@lru_cache(maxsize=8)
def _jitted(
    treedef: Any, algorithm: Algorithm, per_run: bool, laid: Layout, eval_callback: EvalCallback | None = None
) -> tuple[Any, Any, Sharding]:
    """Return `init` and `segment` of several runs as jitted functions, and where states lie.

    The last few are kept, one for each `treedef` of environment and config: JAX finds what it has traced and compiled by the
    function, so a second run of the same in a process, a resumed one say, is compiled once, and no more stay in memory.
    """

    def init_seeds(env: Environment, config: Config, keys: Key[Array, "S"]) -> State:
        if per_run:
            return over_seeds(lambda run: _init(algorithm, *run), (env, config, keys))
        return over_seeds(partial(_init, algorithm, env, config), keys)

    def segment_seeds(
        env: Environment, config: Config, state: State, iterations: Int[Array, ""]
    ) -> tuple[State, Record]:
        if per_run:
            return over_seeds(
                lambda run: segment(algorithm, run[0], run[1], run[2], iterations, eval_callback), (env, config, state)
            )
        return over_seeds(lambda s: segment(algorithm, env, config, s, iterations, eval_callback), state)

    placed_init: dict[str, Any] = {}
    placed_segment: dict[str, Any] = {}
    if laid.mesh.size > 1:
        everywhere = NamedSharding(laid.mesh, P())
        settings = laid.sharding if per_run else everywhere
        placed_init = {"in_shardings": (settings, settings, everywhere), "out_shardings": laid.sharding}
        placed_segment = {
            "in_shardings": (settings, settings, laid.sharding, everywhere),
            "out_shardings": laid.sharding,
        }
    return (
        jax.jit(init_seeds, **placed_init),
        jax.jit(segment_seeds, donate_argnums=2, **placed_segment),
        placed_segment.get("out_shardings", SingleDeviceSharding(laid.mesh.devices.item(0))),
    )


@switches.standard()
def run_keys(seeds: Sequence[int]) -> Key[Array, "S"]:
    """Return the key of each seed's run."""
    return jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))


def compile_fit(*arguments: Any, **options: Any) -> Program:
    """Trace and compile: `trace_fit` and what it returns."""
    return trace_fit(*arguments, **options)()


@switches.standard()
@switches.unchecked()
def trace_fit(
    algorithm: Algorithm,
    env: Environment,
    config: Config,
    keys: Key[Array, "S"],
    eval_callback: EvalCallback | None = None,
    with_init: bool = True,
    per_run: bool = False,
    while_compiling: Callable[[], Any] | None = None,
) -> Callable[[], Program]:
    """Trace `init` and `segment` for S runs, ahead of time; the function it returns compiles them, once.

    The contexts of JAX (precision of products, default device) belong to a thread and count while tracing. So call this in
    the caller's thread; compile, and call the program, in any.

    Args:
        algorithm, env, config, eval_callback: of the runs.
        keys: one for each.
        with_init: without it only the program that goes on from a state is compiled.
        per_run: the leaves of `env` and `config` have a leading axis S too; else all runs share them.
        while_compiling: called in another thread once all is traced, while Python has nothing to do.

    Raises:
        ConfigError: `jax_disable_jit` is set, or there is no device.
    """
    switches.check()
    start = time.perf_counter()
    jitted = _jitted if eval_callback is None else _jitted.__wrapped__  # what a function reads may be another by now
    structure, laid = jax.tree.structure((env, config)), layout(len(keys))
    jitted_init, jitted_segment, sharding = jitted(structure, algorithm, per_run, laid, eval_callback)
    lowered_init = jitted_init.lower(env, config, keys)
    compiled_init = threads.begin(lowered_init.compile) if with_init else None  # while Python traces the other
    iterations = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        lowered_segment = jitted_segment.lower(env, config, lowered_init.out_info, iterations)
    except BaseException:
        if compiled_init is not None:
            compiled_init()  # a process that ends while XLA compiles is aborted, and tells nothing
        raise
    trace_seconds = time.perf_counter() - start

    def compiled() -> Program:
        start = time.perf_counter()
        if while_compiling is not None:
            threads.begin(while_compiling)
        segment_program = lowered_segment.compile()
        return Program(
            init=None if compiled_init is None else switches.computing(compiled_init()),
            segment=switches.computing(segment_program),
            specs=jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                lowered_segment.out_info,
            ),
            trace_seconds=trace_seconds,
            compile_seconds=time.perf_counter() - start,
        )

    return compiled


def fit(
    env: Environment, config: Config, program: Program, state: State, since: int | None = None
) -> Iterator[tuple[State, Record]]:
    """Yield (state, record) after each segment of S seeds that is still to come.

    Each seed's curve is that of `train` with its key alone: bit for bit on a CPU (`over_seeds`). The given state and each
    yielded one are donated to the next segment: copy what must outlive the turn of the loop.

    Args:
        env, config: leaves as `leaves_as_arrays` gives them.
        program: made by `compile_fit` for the same.
        state: leading axis S, from `program.init` or from a checkpoint.
        since: the environment step at which the state stands, its evaluation done; None: evaluate before training.
    """
    for iterations in segment_iterations(config, since):
        state, record = program.segment(env, config, state, np.int32(iterations))
        yield state, record


@switches.standard()
@switches.unchecked()
def leaves_as_arrays(tree: PyTree) -> PyTree:
    """Turn the leaves into arrays of at most 32 bits a number, so that 1e-3 and an array of it share a program."""

    def array(x: Any) -> Array:
        x = jnp.float32(x) if isinstance(x, float) else jnp.asarray(x)
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))

    return _strong(jax.tree.map(array, tree))


@switches.standard()
def state_spec(algorithm: Algorithm, env: Environment, config: Config) -> State:
    """Return `jax.ShapeDtypeStruct` in the place of every array of one run's state, without running anything."""
    spec: State = _init.eval_shape(algorithm, leaves_as_arrays(env), leaves_as_arrays(config), jax.random.key(0))
    return spec


def state_bytes(algorithm: Algorithm, env: Environment, config: Config) -> dict[str, int]:
    """Bytes that one run's state takes, in all and for each of its fields, without running anything."""
    spec = state_spec(algorithm, env, config)

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return {"total": size(spec), **{name: size(getattr(spec, name)) for name in vars(spec)}}


def _opaque(tree: PyTree) -> PyTree:
    """Hide the leaves' values from XLA, so that a config closed over and one passed in compile to the same arithmetic."""
    opaque: PyTree = jax.lax.optimization_barrier(tree)
    return opaque


def _strong(tree: PyTree) -> PyTree:
    """Drop weak types, which would make a state differ from its successor."""

    def strong(x: Array) -> Array:
        return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x

    return jax.tree.map(lambda x: strong(jnp.asarray(x)), tree)
