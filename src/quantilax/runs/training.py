"""Training a run: the host's loop around the compiled segments, and the files it leaves."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from quantilax import train
from quantilax.agent import Agent
from quantilax.pytree import ConfigError
from quantilax.runs import plots
from quantilax.runs.directory import RunDirectory
from quantilax.runs.progress import RunProgress


class RunError(RuntimeError):
    """A run that cannot go on; what it wrote is kept."""


class Result(NamedTuple):
    """What a finished run comes to."""

    return_mean: float
    """Mean over seeds and episodes of the last evaluation."""
    seconds: float
    """Without compiling."""
    compile_seconds: float


def run(agent: Agent, name: str, seeds: list[int], directory: RunDirectory, quiet: bool = False) -> Result:
    """Train an agent with several seeds at once, and write the run's files as results come.

    Args:
        agent: what to train.
        name: the section's name.
        seeds: one run per seed, vmapped.
        directory: an empty run directory.
        quiet: show no progress.

    Raises:
        RunError: NaN or inf in the loss, or no memory left; see `check_memory` for what can be known before.
    """
    try:
        return _run(agent, name, seeds, directory, quiet)
    except KeyboardInterrupt:
        directory.write_run(seeds=seeds, status="interrupted")
        raise
    except jax.errors.JaxRuntimeError as error:
        directory.write_run(seeds=seeds, status=f"failed: {str(error).splitlines()[0]}")
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            "the device's memory does not suffice; lower batch_size, eval_episodes, buffer_size or --seeds;"
            f" what was written so far is in {directory.path}"
        ) from None


def _run(agent: Agent, name: str, seeds: list[int], directory: RunDirectory, quiet: bool) -> Result:
    algorithm, env, config = agent._arguments()
    directory.write_config(name, agent)
    directory.write_run(seeds=seeds, status="running")
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))

    with RunProgress(agent.evaluation_steps[-1], quiet) as progress:
        program = train.compile_fit(algorithm, env, config, keys)
        progress.compiled(program.trace_seconds, program.compile_seconds)
        start = time.perf_counter()
        for state, record in train.fit(env, config, keys, program):
            record = jax.device_get(record)
            seconds = time.perf_counter() - start
            directory.write_evaluation(seeds, record, seconds)
            progress.evaluated(record, seconds)
            _check_finite(record.metrics.loss, seeds, int(record.env_step[0]), state.gradient_steps, directory)

    directory.write_parameters(params=nnx.to_pure_dict(state.params), normalizer=state.normalizer)
    title = f"{name} on {agent.env.name}"
    plots.learning_curve(directory.path / "evaluations.csv", directory.path / "learning_curve.png", title)
    compile_seconds = program.trace_seconds + program.compile_seconds
    directory.write_run(
        seeds=seeds, status="finished", seconds=round(seconds, 3), compile_seconds=round(compile_seconds, 3)
    )
    return Result(float(record.returns.mean()), seconds, compile_seconds)


def check_memory(agent: Agent, num_seeds: int) -> None:
    """Raise `ConfigError` where the state of all seeds is larger than the machine's memory (CPU only)."""
    needed = train.state_bytes(*agent._arguments())["total"] * num_seeds
    if jax.default_backend() != "cpu":
        return
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"the state of {num_seeds} seed(s) takes {needed / 2**30:.1f} GiB and this machine has"
            f" {there / 2**30:.1f}; lower buffer_size or --seeds"
        )


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, so that a second start takes no compiling.

    `JAX_COMPILATION_CACHE_DIR` names another place; a place that cannot be written to is left alone.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantilax" / "xla"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _check_finite(
    loss: np.ndarray, seeds: list[int], env_step: int, gradient_steps: jax.Array, directory: RunDirectory
) -> None:
    bad = ~np.isfinite(loss) & (np.asarray(gradient_steps) > 0)
    if bad.any():
        names = ", ".join(str(seed) for seed, is_bad in zip(seeds, bad, strict=True) if is_bad)
        directory.write_run(seeds=seeds, status="failed: loss is not finite")
        raise RunError(
            f"the loss is {loss[bad][0]} at environment step {env_step} (seed {names}); try a lower learning_rate or"
            f" max_grad_norm; what was written so far is in {directory.path}"
        )
