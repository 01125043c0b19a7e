"""Several seeds on one or more devices: compile ahead of time, then train segment by segment.

`trace_fit` traces in the caller's thread and returns a function that may compile in any thread.
`fit` is the host's loop over the compiled segments. Between two segments the host can draw
progress, write files or stop.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key, PyTree

from quantilax import switches, train
from quantilax.errors import ConfigError
from quantilax.host import background, limits
from quantilax.types import Algorithm, Config, Environment, EvalCallback, Record, State


class Program(NamedTuple):
    """The two compiled functions of a run, and the shapes of their results.

    Each function has a leading axis of seeds.
    """

    init: Callable[..., State] | None
    """(env, config, keys) -> state; None if the program was compiled to continue from a state."""
    segment: Callable[..., tuple[State, Record]]
    """(env, config, state, iterations) -> (state, record). The given state is donated."""
    specs: tuple[State, Record]
    """State and record with `jax.ShapeDtypeStruct` in place of every array."""
    trace_seconds: float
    compile_seconds: float


class Layout(NamedTuple):
    """How S runs are distributed over devices: `rounds` runs on each.

    If the runs do not fill the last devices, copies of the last run do.
    """

    runs: int
    rounds: int
    mesh: Mesh
    """Its only axis is `runs`."""

    @property
    def padded(self) -> int:
        """Number of runs including the copies."""
        return self.rounds * self.mesh.size

    @property
    def is_even(self) -> bool:
        """Whether the runs fill the devices without copies. If so, states stay where they are."""
        return self.padded == self.runs

    @property
    def sharding(self) -> NamedSharding:
        """Sharding of states and records between two segments."""
        return NamedSharding(self.mesh, P("runs") if self.is_even else P())


def layout(runs: int) -> Layout:
    """Distribute runs over `switches.devices()`.

    It uses the fewest devices that give the smallest number of rounds.
    """
    devices = switches.devices()
    rounds = -(-runs // min(len(devices), runs))
    return Layout(runs, rounds, Mesh(np.array(devices[: -(-runs // rounds)]), ("runs",)))


def over_seeds(function: Callable[[Any], Any], inputs: PyTree) -> Any:
    """Apply a function along the leading axis, on all devices.

    On a CPU, each device takes its seeds one after another; other devices take theirs all at once.
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
    """Return `init` and `segment` of several runs as jitted functions, and the sharding of states.

    JAX finds traced and compiled programs by the identity of the function. This cache keeps the
    last few functions, one per `treedef` of environment and config. So a second run of the same
    structure in a process, such as a resumed one, is not compiled again, and memory stays bounded.
    """

    def init_seeds(env: Environment, config: Config, keys: Key[Array, "S"]) -> State:
        if per_run:
            return over_seeds(lambda run: train.initial(algorithm, *run), (env, config, keys))
        return over_seeds(partial(train.initial, algorithm, env, config), keys)

    def segment_seeds(
        env: Environment, config: Config, state: State, iterations: Int[Array, ""]
    ) -> tuple[State, Record]:
        if per_run:
            return over_seeds(
                lambda run: train.segment(algorithm, run[0], run[1], run[2], iterations, eval_callback),
                (env, config, state),
            )
        return over_seeds(lambda s: train.segment(algorithm, env, config, s, iterations, eval_callback), state)

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
    """Trace with `trace_fit` and compile at once."""
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
    """Trace `init` and `segment` for S runs; the returned function compiles them, once.

    JAX's contexts (precision of products, default device) belong to a thread and matter while
    tracing. So call this in the caller's thread. The returned function and the program may be
    called in any thread.

    Args:
        algorithm, env, config, eval_callback: those of the runs.
        keys: one key per run.
        with_init: if false, compile only the program that continues from a state.
        per_run: the leaves of `env` and `config` also have a leading axis S; otherwise all runs
            share them.
        while_compiling: called in another thread after tracing, when Python is otherwise idle.

    Raises:
        ConfigError: `jax_disable_jit` is set, or there is no device.
    """
    switches.check()
    start = time.perf_counter()
    jitted = _jitted if eval_callback is None else _jitted.__wrapped__  # a callback may read values that change
    structure, laid = jax.tree.structure((env, config)), layout(len(keys))
    jitted_init, jitted_segment, sharding = jitted(structure, algorithm, per_run, laid, eval_callback)
    lowered_init = jitted_init.lower(env, config, keys)
    compiled_init = background.call(lowered_init.compile) if with_init else None  # while Python traces segment
    iterations = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        lowered_segment = jitted_segment.lower(env, config, lowered_init.out_info, iterations)
    except BaseException:
        if compiled_init is not None:
            compiled_init()  # if the process ends while XLA compiles, it aborts without the error message
        raise
    trace_seconds = time.perf_counter() - start

    def compiled() -> Program:
        start = time.perf_counter()
        if while_compiling is not None:
            background.call(while_compiling)
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
    """Yield (state, record) after each remaining segment of S seeds.

    Each seed's curve is that of `train.train` with its key alone, on a CPU bit for bit
    (`over_seeds`). The given state and each yielded one are donated to the next segment, so copy
    what you need for longer.

    Args:
        env, config: with leaves as returned by `train.leaves_as_arrays`.
        program: from `compile_fit` for the same runs.
        state: with leading axis S, from `program.init` or a checkpoint.
        since: the environment step of the state, whose evaluation is done. None: evaluate before
            training.
    """
    for iterations in train.segment_iterations(config, since):
        state, record = program.segment(env, config, state, np.int32(iterations))
        yield state, record


def check_memory(runs: int, algorithm: Algorithm, env: Environment, config: Config) -> None:
    """Raise `ConfigError` if the states of all runs exceed the memory that this process may use.

    On a CPU only.
    """
    needed = train.state_bytes(algorithm, env, config)["total"] * runs
    if switches.platform() != "cpu":
        return
    there = limits.memory()
    if needed > there:
        raise ConfigError(
            f"the state of {runs} seed(s) takes {needed / 2**30:.1f} GiB and this process may use"
            f" {there / 2**30:.1f}; lower buffer_size or --seeds"
        )


def use_all_cores(num_seeds: int, elsewhere: bool = False, asked: bool = False) -> None:
    """Make JAX see one CPU device per core, so that seeds train side by side.

    There are no more devices than seeds. Call it before any other use of JAX. It has no effect if
    JAX has begun to compute, or if `XLA_FLAGS` set the number of devices.

    Args:
        num_seeds: how many devices can be used.
        elsewhere: the devices are on other machines, which may have more cores than this one.
        asked: the user, or an earlier start of the run, asks for this number, so a quota of
            processor time does not lower it.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has begun to compute
        there = limits.scheduled_cores() if asked else limits.usable_cores()
        jax.config.update("jax_num_cpu_devices", num_seeds if elsewhere else min(there, num_seeds))
