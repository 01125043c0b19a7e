"""How runs are laid over devices, compiled ahead of time and trained segment by segment, with an axis of seeds.

`trace_fit` traces in the caller's thread, what it returns compiles in any, and `fit` is the host's loop over the compiled
segments: it draws progress, writes files and can stop in between.
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
    compiled_init = background.call(lowered_init.compile) if with_init else None  # while Python traces the other
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
    """Yield (state, record) after each segment of S seeds that is still to come.

    Each seed's curve is that of `train.train` with its key alone: bit for bit on a CPU (`over_seeds`). The given state and each
    yielded one are donated to the next segment: copy what must outlive the turn of the loop.

    Args:
        env, config: leaves as `train.leaves_as_arrays` gives them.
        program: made by `compile_fit` for the same.
        state: leading axis S, from `program.init` or from a checkpoint.
        since: the environment step at which the state stands, its evaluation done; None: evaluate before training.
    """
    for iterations in train.segment_iterations(config, since):
        state, record = program.segment(env, config, state, np.int32(iterations))
        yield state, record


def check_memory(runs: int, algorithm: Algorithm, env: Environment, config: Config) -> None:
    """Raise `ConfigError` where the states of all runs are larger than the memory that this process may use (CPU only)."""
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
    """Make JAX see a device per core, as far as there are seeds to fill them, so that seeds train side by side.

    For CPUs; to be called before anything else of JAX. Without effect where JAX has begun to compute, or where `XLA_FLAGS`
    say how many devices there are.

    Args:
        num_seeds: how many devices can be filled.
        elsewhere: they are for other machines, which may have more cores than there are here.
        asked: the user, or a run that was begun, wants that number: a quota of processor time does not lower it.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has begun to compute
        there = limits.scheduled_cores() if asked else limits.usable_cores()
        jax.config.update("jax_num_cpu_devices", num_seeds if elsewhere else min(there, num_seeds))
