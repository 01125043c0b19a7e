"""Training a run, or going on with one: the host's loop around the compiled segments, and the files it leaves."""

import contextlib
import importlib
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from quantilax import devices, switches, train
from quantilax.agent import Agent
from quantilax.pytree import ConfigError
from quantilax.runs import checkpoints, evaluations, finite, loggers, paths, plots
from quantilax.runs.background import Background
from quantilax.runs.beside import Beside
from quantilax.runs.checkpoints import Checkpoint
from quantilax.runs.conditions import (
    check_config,
    check_environment,
    described,
    enable_compilation_cache,
    environment,
    extended,
    load_agent,
    machine,
    tell_differences,
)
from quantilax.runs.directory import RunDirectory, default_path, provenance
from quantilax.runs.errors import CheckpointError, RunError, reason
from quantilax.runs.evaluations import Evaluation
from quantilax.runs.progress import RunProgress
from quantilax.runs.signals import Interrupted, Stop
from quantilax.types import Record, State

Callback = Callable[[State, Record], Any]
"""(state, record) -> true to stop. Both have a leading axis of seeds; the record is on the host."""


class Result(NamedTuple):
    """What a run came to."""

    path: Path
    status: str
    """`finished`, or `stopped` by the callback."""
    env_step: int
    """Environment steps done per seed."""
    return_mean: float
    """Mean over seeds and episodes of the last evaluation."""
    seconds: float
    """Of training and evaluating, in all sessions."""
    compile_seconds: float
    """Of this session."""


def run(
    agent: Agent,
    out: Path | str | None = None,
    seeds: Iterable[int] = (0,),
    *,
    section: str | None = None,
    callback: Callback | None = None,
    checkpoint_every: int = 1,
    log: Iterable[str] = (),
    quiet: bool = False,
    cache: bool = False,
) -> Result:
    """Train an agent with several seeds in one program, and write a run directory as results come.

    Args:
        agent: what to train.
        out: the run's directory, new or empty; None: a new one under `runs/`.
        seeds: a run each, on the leading axis of states and records.
        section: the name of the config's section; None: that of the algorithm.
        callback: called after each evaluation, in the host's loop, with (state, record); true ends the run, which can be
            resumed. The state is donated to the next segment: copy what must outlive the call.
        checkpoint_every: evaluations between two checkpoints; 0: one at the end (or on Ctrl-C) only.
        log: `tensorboard`, `wandb`, beside the run's own files.
        quiet: show no progress.
        cache: keep compiled programs in the user's cache directory, for this process from now on.

    Raises:
        ConfigError: a directory that cannot be used, a logger that is not installed.
        RunError: NaN or inf in the loss or the parameters, no memory left, the last checkpoint could not be written.
        Interrupted: Ctrl-C or SIGTERM, after the segment was ended and saved; a `KeyboardInterrupt`.
    """
    seeds, log = [int(seed) for seed in seeds], tuple(log)
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(f"seeds: expected different whole numbers from 0 to 2^32 - 1, got {seeds}")
    _check_options(checkpoint_every, log)
    switches.check()
    section = section or agent.algorithm.name
    directory = RunDirectory.create(paths.check(out) if out is not None else default_path(agent.env.name, section))
    if cache:
        enable_compilation_cache()
    progress = RunProgress(agent.evaluation_steps[-1], quiet)
    start = _start(0)
    with directory.lock(), Stop(progress.say) as stop:
        try:
            directory.write_config(section, agent)
            directory.update(
                section=section,
                seeds=seeds,
                status="running",
                checkpoint_every=checkpoint_every,
                log=list(log),
                devices=devices.layout(len(seeds)).mesh.size,
                starts=[start],
            )
        except OSError as error:
            raise RunError(f"{directory.path}: cannot be written: {error.strerror}; choose another directory") from None
        return _train(agent, directory, None, progress, callback, stop)


def resume(
    path: Path | str,
    *,
    total_timesteps: int | None = None,
    env: Any = None,
    eval_callback: Callable[..., PyTree] | None = None,
    callback: Callback | None = None,
    checkpoint_every: int | None = None,
    log: Iterable[str] | None = None,
    quiet: bool = False,
    cache: bool = False,
) -> Result:
    """Go on with a run from its last readable checkpoint, as if it had never stopped.

    On the same machine, device and versions the end is that of the uninterrupted run, bit for bit: parameters and curves
    (docs/guides/runs.md says what that needs). A finished run is left as it is, but for tables that lack rows.

    Args:
        path: the run's directory.
        total_timesteps: a larger number of environment steps extends the run. Schedules follow the new number from there
            on, so an extended run is not the run that had been longer from the start.
        env: the environment, where it is an object of your own.
        eval_callback: that of the agent, where it had one.
        callback, quiet, cache: as for `run`.
        checkpoint_every, log: as for `run`; None: as the run was begun.

    Raises:
        ConfigError: no run directory, one in use, a config that differs from the checkpoint's.
        CheckpointError: no checkpoint can be read; nothing is deleted.
        RunError, Interrupted: as for `run`.
    """
    directory = RunDirectory.open(paths.check(path, "run"))
    facts = directory.facts
    every = facts.get("checkpoint_every", 1) if checkpoint_every is None else checkpoint_every
    log = tuple(dict.fromkeys(facts.get("log", ())) if log is None else log)
    _check_options(every, log)
    switches.check()
    if cache:
        enable_compilation_cache()
    with directory.lock():
        agent = load_agent(directory.path, env, eval_callback)
        if total_timesteps is not None:
            agent = extended(agent, total_timesteps)
        progress = RunProgress(agent.evaluation_steps[-1], quiet)
        checkpoint, done = None, 0
        if not checkpoints.steps(directory.checkpoints):
            _check_begins_anew(directory)
        else:
            checkpoint = checkpoints.find(directory.checkpoints, "last", progress.warn)
            check_config(checkpoint, agent, facts["seeds"])
            if env is None:
                check_environment(checkpoint, agent)
            done = checkpoint.facts["env_step"]
            is_done = done >= agent.evaluation_steps[-1] and facts["status"] == "finished"
            if is_done and loggers.are_whole(directory.path, checkpoint.facts["rows"], len(facts["seeds"])):
                seconds = facts.get("seconds", math.nan)
                return Result(directory.path, "finished", done, checkpoint.facts["return_mean"], seconds, 0.0)
            tell_differences(checkpoint, agent, progress)
        with Stop(progress.say) as stop:
            try:
                directory.write_config(facts["section"], agent)
                directory.update(
                    status="running",
                    checkpoint_every=every,
                    log=list(log),
                    starts=[*facts["starts"], _start(done)],
                )
            except OSError as error:
                raise RunError(f"{directory.path}: cannot be written: {error.strerror}") from None
            return _train(agent, directory, checkpoint, progress, callback, stop)


def _check_begins_anew(directory: RunDirectory) -> None:
    """Check that a run without checkpoints was stopped before the first one.

    Raises:
        CheckpointError: it had some, and to begin anew would write over what it came to.
    """
    root, facts = directory.checkpoints, directory.facts
    had = "saved" in facts or facts["status"] in ("finished", "stopped")
    had |= any(start["from_env_step"] for start in facts["starts"])
    if had or os.path.islink(root):
        raise CheckpointError(
            f"{root}: holds no checkpoint, though the run had some; put them back, or begin a new run with quantilax train"
        )


def _train(
    agent: Agent,
    directory: RunDirectory,
    checkpoint: Checkpoint | None,
    progress: RunProgress,
    callback: Callback | None,
    stop: Stop,
) -> Result:
    """Train, with loggers that are waited for when all else is done."""
    others = loggers.others(directory.facts["log"], directory.path, described(agent))
    with progress, Beside(others, progress, stop) as beside:
        logger = loggers.Guarded([*loggers.own(directory.path), beside], progress.warn)
        return _told(agent, directory, checkpoint, progress, callback, stop, logger)


def _told(
    agent: Agent,
    directory: RunDirectory,
    checkpoint: Checkpoint | None,
    progress: RunProgress,
    callback: Callback | None,
    stop: Stop,
    logger: loggers.Guarded,
) -> Result:
    """Train to the end or to a reason to stop, and say in `run.json` which it was."""
    status = "failed"
    timing: dict[str, float] = {}
    try:
        stop.release()
        with Background() as background:
            result = _loop(agent, directory, checkpoint, progress, callback, stop, logger, background, timing)
        status = result.status
        return result
    except KeyboardInterrupt as error:
        status = "interrupted"
        there = checkpoints.steps(directory.checkpoints)
        how = (
            f"go on from {f'step {there[-1]:,}' if there else 'the beginning'} with: quantilax resume"
            f" {shlex.quote(str(directory.path))}"
        )
        of_signal = error if isinstance(error, Interrupted) else Interrupted("interrupted", signal.SIGINT)
        raise Interrupted(f"{of_signal}; {how}", of_signal.exit_status - 128, of_signal.at_once) from None
    except jax.errors.JaxRuntimeError as error:
        status = f"failed: {reason(error)}"
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            "the device's memory does not suffice; lower batch_size, eval_episodes, buffer_size or --seeds;"
            f" what was written so far is in {directory.path}"
        ) from None
    except Exception as error:
        status = f"failed: {reason(error)}"
        raise
    finally:
        stop.hold()
        try:
            directory.update(status=status, **timing)
        except OSError as error:
            progress.warn(f"run.json could not be written ({error.strerror}); its status is {status}")


def _loop(
    agent: Agent,
    directory: RunDirectory,
    checkpoint: Checkpoint | None,
    progress: RunProgress,
    callback: Callback | None,
    stop: Stop,
    logger: loggers.Guarded,
    background: Background,
    timing: dict[str, float],
) -> Result:
    """Compile, restore, and run segments; fills `timing` as it goes."""
    seeds: list[int] = directory.facts["seeds"]
    algorithm, env, config = agent.arguments()
    keys = devices.run_keys(seeds)
    trace_fit = partial(
        devices.trace_fit,
        algorithm,
        env,
        config,
        keys,
        agent.in_program_callback,
        with_init=checkpoint is None,
        while_compiling=_import_ahead,
    )
    program = stop.wait_for(stop.finish_first(trace_fit))
    progress.compiled(program.trace_seconds, program.compile_seconds)
    timing["compile_seconds"] = round(program.trace_seconds + program.compile_seconds, 3)

    history: list[Evaluation] = []
    if checkpoint is None:
        since = None
        assert program.init is not None
        state = stop.wait_for(partial(program.init, env, config, keys))
    else:
        since = checkpoint.facts["env_step"]
        state, history = evaluations.unpack(checkpoint, program.specs)
        timing["seconds"] = round(history[-1].seconds, 3)
        progress.resumed(since, history[-1].seconds)
    entries = [evaluations.entry(seeds, row, is_first=i == 0) for i, row in enumerate(history)]
    background.put(partial(logger.begin, list(entries)))
    saver = _Saver(agent, directory, progress.warn, since)

    start = time.perf_counter() - timing.get("seconds", 0.0)
    segments = devices.fit(env, config, program, state, since)
    last, every = agent.evaluation_steps[-1], directory.facts["checkpoint_every"]
    unsaved, is_stopped, is_covered = 0, False, True

    def turn() -> tuple[State, Record] | None:
        for state, record in segments:
            return state, jax.device_get(record)
        return None

    stop.is_training = True
    try:
        while not is_stopped and stop.requested is None and (reached := stop.wait_for(turn)) is not None:
            state, record = reached
            history.append(Evaluation(record, time.perf_counter() - start))
            entries.append(evaluations.entry(seeds, history[-1], is_first=len(history) == 1))
            timing["seconds"] = round(history[-1].seconds, 3)
            background.put(partial(logger.log, entries[-1]))
            progress.evaluated(entries[-1])
            finite.check(agent, record, entries[-1].env_step, state, directory)
            if is_covered and record.learned_returns is not None:
                line = train.uncovered(agent.config.support, np.asarray(record.learned_returns))
                is_covered = line is None
                if line is not None:
                    progress.warn(f"{line} (seen at step {entries[-1].env_step:,})")
            is_stopped = callback is not None and bool(callback(state, record))
            unsaved += 1
            if every and unsaved >= every:
                background.put_large(partial(saver.job, state, history))
                unsaved = 0
        if unsaved:
            background.put_large(partial(saver.job, state, history))
    finally:
        background.put(logger.close)
    stop.wait_for(background.finish)
    if not entries:  # a signal before the first segment
        raise Interrupted("ended at once", stop.requested or signal.SIGINT)
    done = entries[-1].env_step
    if saver.saved != done:
        raise RunError(
            f"the checkpoint of step {done:,} could not be written ({saver.reason}); make room, then go on from"
            f" {f'step {saver.saved:,}' if saver.saved is not None else 'the beginning'} with: quantilax resume"
            f" {shlex.quote(str(directory.path))}"
        )
    _draw(agent, directory, progress)
    if done < last and stop.requested is not None:
        raise Interrupted(f"stopped at step {done:,} of {last:,}", stop.requested)
    status = "finished" if done == last else "stopped"
    return Result(directory.path, status, done, entries[-1].all["return_mean"], **timing)


class _Saver:
    """Makes jobs that write checkpoints; one that fails is told, and the run goes on."""

    def __init__(
        self, agent: Agent, directory: RunDirectory, warn: Callable[[str], None], saved: int | None = None
    ) -> None:
        self.directory, self.warn, self.saved = directory, warn, saved
        self.reason = ""
        seeds = directory.facts["seeds"]
        self.facts = {
            "config": described(agent),
            "seeds": seeds,
            "environment": environment(agent.env),
            **machine(agent, len(seeds)),
        }

    def job(self, state: State, history: list[Evaluation]) -> Callable[[], None]:
        """Copy what is to be written now; the returned job writes it."""
        packed = evaluations.pack(state, history)
        record, seconds = history[-1]
        env_step = int(record.env_step[0])
        facts = {**self.facts, "rows": len(history), "return_mean": float(record.returns.mean()), "seconds": seconds}

        def write() -> None:
            try:
                checkpoints.save(self.directory.checkpoints, env_step, packed, facts)
                self.saved = env_step
                if "saved" not in self.directory.facts:
                    with contextlib.suppress(OSError):  # the disk is full: the next one notes it
                        self.directory.update(saved=env_step)
            except Exception as error:  # whatever it was: the thread must live
                if not self.reason:
                    self.warn(
                        f"the checkpoint of step {env_step:,} could not be written ({reason(error)}); the run goes on"
                    )
                self.reason = reason(error)

        return write


def _import_ahead() -> None:
    """Import what a run needs later on: each takes a good part of a second."""
    for name in ("polars", "matplotlib.backends.backend_agg"):
        with contextlib.suppress(Exception):  # whatever it is, those who need the module meet it
            importlib.import_module(name)


def _check_options(checkpoint_every: int, log: tuple[str, ...]) -> None:
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int) or checkpoint_every < 0:
        raise ConfigError(
            f"checkpoint_every: expected a whole number of evaluations, 0 or more, got {checkpoint_every!r}"
        )
    loggers.check(log)


def _start(env_step: int) -> dict[str, Any]:
    return {"from_env_step": env_step, **provenance()}


def _draw(agent: Agent, directory: RunDirectory, progress: RunProgress) -> None:
    title = f"{directory.facts['section']} on {agent.env.name}"
    try:
        plots.learning_curve(directory.path / "evaluations.csv", directory.path / "learning_curve.png", title)
    except Exception as error:  # whatever it is, as where the disk was full and the table is not whole: the run is done
        progress.warn(f"learning_curve.png could not be drawn ({reason(error)})")
