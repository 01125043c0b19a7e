"""Train or resume a run: the host's loop around the compiled segments, and the files it writes."""

import contextlib
import importlib
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from quantilax import devices, envs, switches, train
from quantilax.agent import Agent
from quantilax.errors import CheckpointError, ConfigError, RunError, out_of_memory, reason
from quantilax.host import paths
from quantilax.host.compilation_cache import enable_compilation_cache
from quantilax.host.interrupts import Interrupted, Stop
from quantilax.runs import checkpoints, evaluations, finite, loggers, plots
from quantilax.runs.checkpoints import Checkpoint
from quantilax.runs.directory import RunDirectory, default_path
from quantilax.runs.evaluations import Entry, Evaluation
from quantilax.runs.identity import (
    check_config,
    check_environment,
    described,
    environment,
    machine,
    tell_differences,
)
from quantilax.runs.progress import RunProgress
from quantilax.runs.provenance import provenance
from quantilax.types import Record, State

Callback = Callable[[State, Record], Any]
"""(state, record) -> true to stop. Both have a leading axis of seeds; the record is on the host."""
Watch = Callable[[list[Entry]], tuple[str, bool] | None]
"""(evaluations so far) -> a line to show and whether all is well, or None."""


class Result(NamedTuple):
    """The outcome of a run."""

    path: Path
    status: str
    """`finished`, or `stopped` by the callback."""
    env_step: int
    """Environment steps done per seed."""
    return_mean: float
    """Mean over seeds and episodes of the last evaluation."""
    seconds: float
    """Seconds of training and evaluating, over all sessions."""
    compile_seconds: float
    """Seconds of compiling in this session."""


def run(
    agent: Agent,
    out: Path | str | None = None,
    seeds: Iterable[int] = (0,),
    *,
    section: str | None = None,
    callback: Callback | None = None,
    checkpoint_every: int = 1,
    log: Iterable[str] = (),
    watch: Watch | None = None,
    quiet: bool = False,
    cache: bool = False,
) -> Result:
    """Train an agent with several seeds in one program, and write a run directory along the way.

    Args:
        agent: what to train.
        out: the run's directory, new or empty; None: a new one under `runs/`.
        seeds: the seeds to train, on the leading axis of states and records.
        section: the name of the config's section; None: that of the algorithm.
        callback: called with (state, record) after each evaluation, in the host's loop. If it
            returns true, the run ends; it can be resumed. The state's memory is reused by the next
            segment: copy what you need after the call.
        checkpoint_every: evaluations between two checkpoints; 0: only one, at the end or on Ctrl-C.
        log: `tensorboard`, `wandb`, in addition to the run's own files.
        watch: called after each evaluation, such as `quantilax.checks.watch.Watch`. Its lines are
            shown with the progress, or as warnings if not all is well.
        quiet: show no progress.
        cache: keep compiled programs in the user's cache directory, for the rest of this process.

    Raises:
        ConfigError: the directory cannot be used, or a logger is not installed.
        RunError: the loss or the parameters hold NaN or inf, memory ran out, or the last checkpoint
            could not be written.
        Interrupted: Ctrl-C or SIGTERM, after the segment ended and was saved; a
            `KeyboardInterrupt`.
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
    start = _start(0, agent)
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
        return Session(agent, directory, None, progress, callback, stop, watch).train()


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
    """Continue a run from its last readable checkpoint, as if it had never stopped.

    On the same machine, device and versions, parameters and curves end up bit for bit as those of
    the uninterrupted run (docs/guides/runs.md lists the conditions). A finished run is left as it
    is, except that tables that lack rows are completed.

    Args:
        path: the run's directory.
        total_timesteps: a larger number of environment steps extends the run. Schedules follow the
            new number from there on, so an extended run differs from one that was longer from the
            start.
        env: the environment, if it is an object of your own.
        eval_callback: the agent's, if it had one.
        callback, quiet, cache: as for `run`.
        checkpoint_every, log: as for `run`; None: as the run was begun.

    Raises:
        ConfigError: not a run directory, one in use, or a config that differs from the
            checkpoint's.
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
        agent = directory.agent(env, eval_callback)
        if total_timesteps is not None:
            agent = _extended(agent, total_timesteps)
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
                    starts=[*facts["starts"], _start(done, agent)],
                )
            except OSError as error:
                raise RunError(f"{directory.path}: cannot be written: {error.strerror}") from None
            return Session(agent, directory, checkpoint, progress, callback, stop).train()


class Session:
    """One start of a run, from compiling to the last file."""

    def __init__(
        self,
        agent: Agent,
        directory: RunDirectory,
        checkpoint: Checkpoint | None,
        progress: RunProgress,
        callback: Callback | None,
        stop: Stop,
        watch: Watch | None = None,
    ) -> None:
        """Prepare; nothing is compiled or written yet.

        Args:
            agent: what to train.
            directory: where to write, locked by the caller.
            checkpoint: where to continue from; None: start from the beginning.
            progress: shows what happens.
            callback, watch: as for `run`.
            stop: the signal handlers of this process.
        """
        self.agent, self.directory, self.checkpoint = agent, directory, checkpoint
        self.progress, self.callback, self.stop, self.watch = progress, callback, stop, watch
        self.seeds: list[int] = directory.facts["seeds"]
        self.history: list[Evaluation] = []
        self.entries: list[Entry] = []
        self.timing: dict[str, float] = {}
        """`seconds` and `compile_seconds`, as far as they are known."""
        self.is_covered = True
        """Whether all returns so far lie within the support of the head, if it has one."""
        self.saved: int | None = None
        """Environment step of the last checkpoint that was written."""
        self.unsaved_reason = ""
        """Why a checkpoint could not be written."""
        self.files = loggers.Writer(loggers.own(directory.path), progress.warn)
        """Writes the run's own files in order: tables and checkpoints."""
        others = loggers.others(directory.facts["log"], directory.path, described(agent))
        self.slow = [loggers.Writer([logger], progress.warn) for logger in others]
        self.writers = [self.files, *self.slow]

    def train(self) -> Result:
        """Train to the end or to a reason to stop, and record in `run.json` which it was."""
        status = "failed"
        with self.progress, loggers.waited_for(self.slow, self.progress.say, self.stop):
            try:
                self.stop.release()
                result = self._segments()
                status = result.status
                return result
            except KeyboardInterrupt as error:
                status = "interrupted"
                raise self._interrupted(error) from None
            except jax.errors.JaxRuntimeError as error:
                status = f"failed: {reason(error)}"
                if told := out_of_memory(error, "batch_size, eval_episodes, buffer_size or --seeds"):
                    raise RunError(f"{told}; the results so far are in {self.directory.path}") from None
                raise
            except Exception as error:
                status = f"failed: {reason(error)}"
                raise
            finally:
                self.stop.hold()
                try:
                    self.directory.update(status=status, **self.timing)
                except OSError as error:
                    self.progress.warn(f"run.json could not be written ({error.strerror}); its status is {status}")

    def _segments(self) -> Result:
        """Compile, start or restore, and run segments until the end, a signal or the callback."""
        env, config = self.agent.arguments()[1:]
        program = self._compiled()
        state = self._begun(program)
        since = self.saved = self.entries[-1].env_step if self.entries else None
        begun = time.perf_counter() - self.timing.get("seconds", 0.0)
        segments = devices.fit(env, config, program, state, since)

        def turn() -> tuple[State, Record] | None:
            for state, record in segments:
                return state, jax.device_get(record)
            return None

        with self.files.thread:
            for writer in self.writers:
                writer.begin(self.entries)
            self.stop.is_training = True
            unsaved, is_stopped, every = 0, False, self.directory.facts["checkpoint_every"]
            try:
                while not is_stopped and self.stop.requested is None:
                    if (reached := self.stop.wait_for(turn)) is None:
                        break
                    state, record = reached
                    self._evaluated(state, Evaluation(record, time.perf_counter() - begun))
                    is_stopped = self.callback is not None and bool(self.callback(state, record))
                    unsaved += 1
                    if every and unsaved >= every:
                        self.files.thread.put_large(partial(self._checkpoint, state))
                        unsaved = 0
                if unsaved:
                    self.files.thread.put_large(partial(self._checkpoint, state))
            finally:
                for writer in self.writers:
                    writer.close()
            self.stop.wait_for(self.files.thread.finish)
        return self._result()

    def _compiled(self) -> devices.Program:
        trace = partial(
            devices.trace_fit,
            *self.agent.arguments(),
            devices.run_keys(self.seeds),
            self.agent.in_program_callback,
            with_init=self.checkpoint is None,
            while_compiling=_import_ahead,
        )
        self.progress.compiling()
        program = self.stop.wait_for(self.stop.finish_first(trace))
        self.progress.compiled(program.trace_seconds, program.compile_seconds)
        self.timing["compile_seconds"] = round(program.trace_seconds + program.compile_seconds, 3)
        return program

    def _begun(self, program: devices.Program) -> State:
        """Initialise the state, or restore it and the evaluations from the checkpoint."""
        env, config = self.agent.arguments()[1:]
        if self.checkpoint is None:
            assert program.init is not None
            return self.stop.wait_for(partial(program.init, env, config, devices.run_keys(self.seeds)))
        state, self.history = evaluations.unpack(self.checkpoint, program.specs)
        self.entries = [evaluations.entry(self.seeds, row, is_first=i == 0) for i, row in enumerate(self.history)]
        self.timing["seconds"] = round(self.history[-1].seconds, 3)
        self.progress.resumed(self.entries[-1].env_step, self.history[-1].seconds)
        return state

    def _evaluated(self, state: State, evaluation: Evaluation) -> None:
        """Process an evaluation: log it, show it and check it.

        Raises:
            RunError: NaN or inf in the loss or the parameters.
        """
        self.history.append(evaluation)
        entry = evaluations.entry(self.seeds, evaluation, is_first=len(self.history) == 1)
        self.entries.append(entry)
        self.timing["seconds"] = round(evaluation.seconds, 3)
        for writer in self.writers:
            writer.log(entry)
        self.progress.evaluated(entry)
        if self.watch is not None and (told := self.watch(self.entries)) is not None:
            text, is_well = told
            (self.progress.say if is_well else self.progress.warn)(text)
        record = evaluation.record
        finite.check(self.agent, record, entry.env_step, state, self.directory)
        returns = train.returns_to_learn(self.agent.config, record) if self.is_covered else None
        if returns is not None:
            line = train.uncovered(self.agent.config.support, returns)
            self.is_covered = line is None
            if line is not None:
                self.progress.warn(f"{line} (seen at step {entry.env_step:,})")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What each checkpoint records about the run."""
        return {
            "config": described(self.agent),
            "seeds": self.seeds,
            "environment": environment(self.agent.env),
            **machine(self.agent, len(self.seeds)),
        }

    def _checkpoint(self, state: State) -> Callable[[], None]:
        """Copy what a checkpoint needs now, and return a job that writes it.

        A failure to write is reported once, and the run goes on.
        """
        packed = evaluations.pack(state, self.history)
        record, seconds = self.history[-1]
        env_step = int(record.env_step[0])
        of_state = {"rows": len(self.history), "return_mean": float(record.returns.mean()), "seconds": seconds}
        facts = self.facts | of_state

        def write() -> None:
            try:
                checkpoints.save(self.directory.checkpoints, env_step, packed, facts)
                self.saved = env_step
                if "saved" not in self.directory.facts:
                    with contextlib.suppress(OSError):  # the disk is full: the next checkpoint records it
                        self.directory.update(saved=env_step)
            except Exception as error:  # anything: the thread must survive
                if not self.unsaved_reason:
                    self.progress.warn(
                        f"the checkpoint of step {env_step:,} could not be written ({reason(error)}); the run goes on"
                    )
                self.unsaved_reason = reason(error)

        return write

    def _result(self) -> Result:
        """Draw the learning curve and return how the run ended.

        Raises:
            RunError: the last checkpoint could not be written.
            Interrupted: a signal ended the run.
        """
        stop, path = self.stop, self.directory.path
        if not self.entries:  # a signal came before the first segment ended
            raise Interrupted("ended at once", stop.requested or signal.SIGINT)
        done, last = self.entries[-1].env_step, self.agent.evaluation_steps[-1]
        if self.saved != done:
            raise RunError(
                f"the checkpoint of step {done:,} could not be written ({self.unsaved_reason}); make room, then continue from"
                f" {f'step {self.saved:,}' if self.saved is not None else 'the beginning'} with: quantilax resume"
                f" {shlex.quote(str(path))}"
            )
        title = f"{self.directory.facts['section']} on {self.agent.env.name}"
        try:
            plots.learning_curve(path / "evaluations.csv", path / "learning_curve.png", title)
        except Exception as error:  # anything, such as a full disk: the run itself is done
            self.progress.warn(f"learning_curve.png could not be drawn ({reason(error)})")
        if done < last and stop.requested is not None:
            raise Interrupted(f"stopped at step {done:,} of {last:,}", stop.requested)
        status = "finished" if done == last else "stopped"
        return Result(path, status, done, self.entries[-1].all["return_mean"], **self.timing)

    def _interrupted(self, error: KeyboardInterrupt) -> Interrupted:
        """Add to an interruption's message how to continue."""
        there = checkpoints.steps(self.directory.checkpoints)
        how = (
            f"continue from {f'step {there[-1]:,}' if there else 'the beginning'} with: quantilax resume"
            f" {shlex.quote(str(self.directory.path))}"
        )
        signalled = error if isinstance(error, Interrupted) else Interrupted("interrupted", signal.SIGINT)
        return Interrupted(f"{signalled}; {how}", signalled.exit_status - 128, signalled.at_once)


def _import_ahead() -> None:
    """Import modules that the run needs later; each takes a good part of a second."""
    for name in ("polars", "matplotlib.backends.backend_agg"):
        with contextlib.suppress(Exception):  # a failure shows where the module is needed
            importlib.import_module(name)


def _check_begins_anew(directory: RunDirectory) -> None:
    """Check that a run without checkpoints was stopped before the first one.

    Raises:
        CheckpointError: it had some; starting over would overwrite its results.
    """
    root, facts = directory.checkpoints, directory.facts
    had = "saved" in facts or facts["status"] in ("finished", "stopped")
    had |= any(start["from_env_step"] for start in facts["starts"])
    if had or os.path.islink(root):
        raise CheckpointError(
            f"{root}: has no checkpoints, although the run wrote some; restore them, or start a new run with quantilax train"
        )


def _check_options(checkpoint_every: int, log: tuple[str, ...]) -> None:
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int) or checkpoint_every < 0:
        raise ConfigError(
            f"checkpoint_every: expected a whole number of evaluations, 0 or more, got {checkpoint_every!r}"
        )
    loggers.check(log)


def _extended(agent: Agent, total_timesteps: int) -> Agent:
    """Return the agent of a longer run.

    Raises:
        ConfigError: the run would be shorter or have another warm-up.
    """
    config = agent.config
    if total_timesteps < config.total_timesteps:
        raise ConfigError(
            f"--total-timesteps: {total_timesteps} is less than the run's {config.total_timesteps}; give a larger number"
        )
    extended = agent.replace(total_timesteps=total_timesteps)
    if extended.config.warmup_steps != config.warmup_steps:
        raise ConfigError(
            f"--total-timesteps: the run ended within its warm-up of {extended.config.warmup_steps} steps and cannot be"
            " extended; start a new one with quantilax train"
        )
    return extended


def _start(env_step: int, agent: Agent) -> dict[str, Any]:
    made = provenance()
    versions = {**made["versions"], **envs.versions(agent.env)}
    return {"from_env_step": env_step, **made, "versions": versions}
