"""Run a study: variants with one treedef share a compiled program, which takes runs in batches.

All batches of a study have one size. The width of a `vmap` and the number of devices decide the
low bits of a run's results, and learning amplifies them. So both are chosen once per study and
recorded (`jobs` devices, `width` runs on each at a time), and every batch is filled up with copies
of its last run. A run's results do not depend on the other runs in its batch. The same study
therefore gives the same records however it is split, interrupted or distributed.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import devices, switches, train
from quantilax.agent import Agent, ConfigWarning
from quantilax.errors import ConfigError, reason
from quantilax.host import limits
from quantilax.host.interrupts import Stop
from quantilax.runs import evaluations
from quantilax.runs.evaluations import Evaluation
from quantilax.studies import unfinished
from quantilax.studies.definition import Study
from quantilax.studies.progress import StudyProgress
from quantilax.studies.store import Failure, Store, facts_of
from quantilax.studies.unfinished import Unfinished
from quantilax.types import Record

BROKEN = (jax.errors.JaxRuntimeError, jax.errors.JAXTypeError, TypeError, ValueError, ArithmeticError)
"""Errors of a group that cannot be compiled or run."""

MEMORY_SHARE = 0.6
"""Share of an accelerator's memory for the states of a batch; the program needs the rest."""


class Group(NamedTuple):
    """Variants that share one compiled program."""

    number: int
    agents: dict[str, Agent]
    """Agents by variant."""

    @property
    def evaluations(self) -> int:
        """Rows in each run's curve."""
        return len(next(iter(self.agents.values())).evaluation_steps)


class Batch(NamedTuple):
    """Runs that go through the program together."""

    group: int
    runs: tuple[tuple[str, int], ...]
    """(variant, seed)"""


class BatchShape(NamedTuple):
    """How a study's runs are laid out, which affects their results."""

    jobs: int
    """Devices used at once (the cores of a CPU are devices)."""
    width: int
    """Runs on each device at a time. More than one needs a `vmap`, so it is 1 on a CPU."""

    @property
    def runs(self) -> int:
        """Runs in a batch."""
        return self.jobs * self.width


def groups(study: Study) -> tuple[list[Group], list[Failure]]:
    """Group a study's variants by treedef; return groups, and failures for what cannot be built."""
    found: dict[Any, dict[str, Agent]] = {}
    failures = []
    for variant in study.variants:
        try:
            with warnings.catch_warnings(category=ConfigWarning, action="ignore"):
                agent = study.create(variant)
            algorithm, env, config = agent.arguments()
            found.setdefault((algorithm, jax.tree.structure((env, config))), {})[variant.name] = agent
        except ConfigError as error:
            failures.append(Failure(variant.name, str(error)))
    return [Group(i, agents) for i, agents in enumerate(found.values())], failures


def layout(study: Study, sorted_groups: list[Group], jobs: int | None) -> BatchShape:
    """Choose how runs are laid out over the devices.

    Args:
        study: the study to run.
        sorted_groups: its groups.
        jobs: devices to use; None: as many as the runs can fill.

    Raises:
        ConfigError: there are more jobs than devices, or the states do not fit into memory.
    """
    devices = switches.devices()
    most = max((len(group.agents) for group in sorted_groups), default=1) * len(study.seeds)
    if jobs is not None and jobs > len(devices):
        raise ConfigError(f"--jobs: {jobs} is more than the {len(devices)} device(s) of this process; lower it")
    jobs = min(jobs or len(devices), most)
    heaviest, needed = max(
        ((name, bytes_of(group)) for group in sorted_groups for name in group.agents), key=lambda x: x[1]
    )
    if switches.platform() == "cpu":
        there, share, width = limits.memory(), 1.0, 1
    else:
        there = int((devices[0].memory_stats() or {}).get("bytes_limit", 0)) or limits.memory()
        share, jobs = MEMORY_SHARE, jobs if jobs < len(devices) else len(devices)
        width = max(1, min(math.ceil(most / jobs), int(there * share / max(needed, 1))))
    at_once = jobs if switches.platform() == "cpu" else 1  # cores share memory, accelerators have their own
    if needed * width * at_once > there * share:
        raise ConfigError(
            f"{study.where}: variant '{heaviest}': the state of {at_once * width} run(s) takes"
            f" {needed * width * at_once / 2**30:.1f} GiB, but only {there * share / 2**30:.1f} are available;"
            " lower its buffer_size" + (" or --jobs" if at_once > 1 else "")
        )
    return BatchShape(jobs, width)


def bytes_of(group: Group) -> int:
    """Return the bytes of one run's state."""
    return train.state_bytes(*next(iter(group.agents.values())).arguments())["total"]


def batches(
    study: Study, sorted_groups: list[Group], batch_shape: BatchShape, finished: set[tuple[str, int]]
) -> list[Batch]:
    """Return the batches left to run, by group and then seed: early results cover all variants."""
    found = []
    for group in sorted_groups:
        runs = [(variant, seed) for seed in study.seeds for variant in group.agents if (variant, seed) not in finished]
        found += [
            Batch(group.number, tuple(runs[i : i + batch_shape.runs])) for i in range(0, len(runs), batch_shape.runs)
        ]
    return found


class Worker:
    """Runs batches of a study; compiles a group's program when its first batch arrives."""

    def __init__(self, sorted_groups: list[Group], batch_shape: BatchShape, kept: Unfinished | None = None) -> None:
        """Prepare; all workers of a study have the same groups and layout.

        Args:
            sorted_groups, batch_shape: groups and layout of the study.
            kept: stores states of unfinished batches; None: an interruption loses the batch.
        """
        self.groups = sorted_groups
        self.batch_shape = batch_shape
        self.kept = kept
        self.current: tuple[int, Callable[[], devices.Program]] | None = None
        self.compile_seconds = 0.0

    def traced(self, group: Group) -> Callable[[], devices.Program]:
        """Trace a group's program, unless the previous batch used it.

        The returned function compiles the program when first called.
        """
        if self.current is None or self.current[0] != group.number:
            self.current = None
            first = next(iter(group.agents.items()))[0]
            inputs = self.inputs(group, ((first, 0),))
            compiled = devices.trace_fit(group.agents[first].algorithm, *inputs, per_run=True)

            @lru_cache(maxsize=1)
            def program() -> devices.Program:
                program = compiled()
                self.compile_seconds += program.trace_seconds + program.compile_seconds
                return program

            self.current = group.number, program
        return self.current[1]

    def program(self, group: Group) -> devices.Program:
        """Trace and compile a group's program, unless the previous batch used it."""
        return self.traced(group)()

    @switches.standard()
    @switches.unchecked()
    def inputs(self, group: Group, runs: tuple[tuple[str, int], ...]) -> tuple[Any, Any, Any]:
        """Return (env, config, keys) with a leading axis of runs, filled up to the batch's size."""
        runs = (*runs, *[runs[-1]] * (self.batch_shape.runs - len(runs)))
        arguments = [group.agents[variant].arguments()[1:] for variant, _ in runs]
        env, config = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
        return env, config, devices.run_keys([seed for _, seed in runs])

    def prepared(self, batch: Batch) -> Callable[[], list[dict[str, Any]]]:
        """Trace the program of a batch, under the JAX contexts of the calling thread.

        The returned function compiles and trains, in any thread. It returns a row for each run and
        evaluation.
        """
        group = self.groups[batch.group]
        compiled, inputs = self.traced(group), self.inputs(group, batch.runs)

        def rows() -> list[dict[str, Any]]:
            evaluations = self.evaluations(batch, compiled(), inputs)
            return [row for i, one in enumerate(evaluations) for row in rows_of(batch, one, i == 0)]

        return rows

    def evaluations(self, batch: Batch, program: devices.Program, inputs: tuple[Any, Any, Any]) -> Iterator[Evaluation]:
        """Train the runs of a batch, from scratch or a kept state; yield all their evaluations."""
        group = self.groups[batch.group]
        env, config, keys = inputs
        kept, found = self.kept, None
        if kept is not None:
            made_by = unfinished.origin(next(iter(group.agents.values())))
            found = kept.find(batch.runs, made_by, program)
        if found is None:
            assert program.init is not None
            found = program.init(env, config, keys), []
        begun, history = found
        yield from history
        since = int(history[-1].record.env_step[0]) if history else None
        start = time.perf_counter() - (history[-1].seconds if history else 0.0)
        for state, record in devices.fit(env, config, program, begun, since):
            history.append(Evaluation(jax.device_get(record), time.perf_counter() - start))
            yield history[-1]
            if kept is not None:
                if kept.is_closed:
                    return
                before = time.perf_counter()
                kept.keep(batch.runs, made_by, state, history)
                start += time.perf_counter() - before

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Train the runs of a batch; return a row for each run and evaluation."""
        return self.prepared(batch)()


def rows_of(batch: Batch, evaluation: Evaluation, is_first: bool) -> list[dict[str, Any]]:
    """Return the rows of one evaluation; a run with non-finite parameters has NaN as return."""
    number = len(batch.runs)
    mine: Record = jax.tree.map(lambda x: np.asarray(x)[:number], evaluation.record)
    entry = evaluations.entry([seed for _, seed in batch.runs], Evaluation(mine, evaluation.seconds), is_first)
    rows = []
    for (variant, _), row, is_finite in zip(batch.runs, entry.seeds, mine.finite.tolist(), strict=True):
        returns = {} if is_finite else dict.fromkeys(("return_mean", "return_std", "return_min"), math.nan)
        rows.append({"variant": variant, **row, **returns, "finite": is_finite})
    return rows


@dataclass(frozen=True)
class Plan:
    """What a start of a study will do."""

    study: Study
    groups: list[Group]
    failures: list[Failure]
    batch_shape: BatchShape
    batches: list[Batch]
    finished: int
    """Number of runs that earlier starts finished."""

    @property
    def left(self) -> int:
        """Number of runs to do."""
        return sum(len(batch.runs) for batch in self.batches)


def plan(study: Study, store: Store | None = None, jobs: int | None = None, shard: tuple[int, int] = (1, 1)) -> Plan:
    """Find out what is left to run, and how it is laid out.

    Args:
        study: the study to run.
        store: holds what earlier starts finished; None: nothing is finished.
        jobs: devices to use; None: all, or as many as the study was begun with.
        shard: (number, of): plan only this share of the runs.

    Raises:
        ConfigError: no variant can be run, or the devices do not fit the layout.
    """
    switches.check()
    sorted_groups, failures = groups(study)
    if not sorted_groups:
        raise ConfigError(f"{failures[0].reason}; and no other variant can be run")
    if store is None:
        batch_shape, finished = layout(study, sorted_groups, jobs), set()
    else:
        batch_shape, finished = BatchShape(store.facts["jobs"], store.facts["width"]), store.finished()
    number, of = shard
    every = batches(study, sorted_groups, batch_shape, set() if of > 1 else finished)[number - 1 :: of]
    mine = ((batch.group, tuple(run for run in batch.runs if run not in finished)) for batch in every)
    left = [Batch(group, runs) for group, runs in mine if runs]
    there = len(switches.devices())
    if (
        store is not None
        and left
        and (batch_shape.jobs > there or (batch_shape.jobs < there and switches.platform() != "cpu"))
    ):
        raise ConfigError(
            f"{store.path}: was begun with {batch_shape.jobs} jobs, but this process has {there} device(s), which would"
            f" change its results; use the machine it was begun on, or start again with another --out"
        )
    asked = {(variant.name, seed) for variant in study.variants for seed in study.seeds}
    return Plan(study, sorted_groups, failures, batch_shape, left, len(asked & finished))


def execute(
    planned: Plan,
    store: Store,
    progress: StudyProgress,
    stop: Stop,
    batches: Iterable[Batch] | None = None,
) -> None:
    """Run `batches`, or all that are planned, in this process.

    A group that cannot be compiled or run is recorded, and the rest goes on.
    """
    tell_failures(planned, progress)

    kept = Unfinished(store.path, facts_of(planned.study)["variants"], planned.batch_shape, progress.warn, progress.say)
    worker, broken = Worker(planned.groups, planned.batch_shape, kept), set[int]()
    for batch in planned.batches if batches is None else batches:
        if batch.group in broken:
            continue
        try:
            progress.began(batch, len(planned.groups))
            rows = stop.wait_for(stop.finish_first(partial(worker.prepared, batch)))
        except BROKEN as error:
            broken.add(batch.group)
            give_up(planned.groups[batch.group], reason(error), store, progress)
            continue
        except KeyboardInterrupt:
            kept.close()  # the training thread may live on
            raise
        store.write(rows)
        kept.forget(batch.runs)
        progress.finished(batch, rows)


def tell_failures(planned: Plan, progress: StudyProgress) -> None:
    """Warn of the variants that cannot be built."""
    for failure in planned.failures:
        progress.warn(f"variant '{failure.variant}' cannot be run: {failure.reason}")


def give_up(group: Group, why: str, store: Store, progress: StudyProgress) -> None:
    """Record that the variants of a group cannot be run."""
    for variant in group.agents:
        store.failed(Failure(variant, why))
        progress.warn(f"variant '{variant}' failed: {why}; the others go on")
