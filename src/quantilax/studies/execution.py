"""Running a study: cells with one treedef share a compiled program, whose runs go through it in portions of one size.

The width of a `vmap` and the number of devices decide the low bits of a run's numbers, and learning amplifies them. So both
are chosen once per study and written down (`jobs` devices, `width` runs on each at a time), every portion is filled up to
them with copies of its last run, and a run's numbers do not depend on what else is in its portion: the same study gives the
same records however it is split, interrupted or distributed.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import devices, switches, train
from quantilax.agent import Agent, ConfigWarning
from quantilax.pytree import ConfigError, did_you_mean
from quantilax.runs import Interrupted, evaluations, limits
from quantilax.runs.conditions import enable_compilation_cache, processor
from quantilax.runs.directory import provenance
from quantilax.runs.errors import reason
from quantilax.runs.evaluations import Evaluation
from quantilax.runs.signals import Stop
from quantilax.studies import machines, unfinished
from quantilax.studies.definition import Study
from quantilax.studies.progress import StudyProgress
from quantilax.studies.store import Failure, Store, described
from quantilax.studies.unfinished import Unfinished
from quantilax.types import Record

PLACES = ("ray", "jax")
"""Where else than in this process alone a study can run: a Ray cluster, the processes of `jax.distributed`."""

BROKEN = (jax.errors.JaxRuntimeError, jax.errors.JAXTypeError, TypeError, ValueError, ArithmeticError)
"""What a group raises that cannot be compiled or run."""

MEMORY_SHARE = 0.6
"""Of an accelerator's memory: what the states of a portion may take; the rest is for what the program needs besides."""


class Group(NamedTuple):
    """Cells that one compiled program serves."""

    number: int
    agents: dict[str, Agent]
    """By cell."""

    @property
    def evaluations(self) -> int:
        """Rows of each run's curve."""
        return len(next(iter(self.agents.values())).evaluation_steps)


class Portion(NamedTuple):
    """Runs that go through the program together."""

    group: int
    runs: tuple[tuple[str, int], ...]
    """(cell, seed)"""


class Layout(NamedTuple):
    """How the runs of a study are laid out; part of what decides its numbers."""

    jobs: int
    """Devices used at once (a CPU's cores are devices)."""
    width: int
    """Runs on each of them at a time: more than one only in a `vmap`, so not on a CPU."""

    @property
    def runs(self) -> int:
        """Runs in a portion."""
        return self.jobs * self.width


def groups(study: Study) -> tuple[list[Group], list[Failure]]:
    """Sort a study's cells by treedef; those that cannot be built are failures."""
    found: dict[Any, dict[str, Agent]] = {}
    failures = []
    for cell in study.cells:
        try:
            with warnings.catch_warnings(category=ConfigWarning, action="ignore"):
                agent = study.create(cell)
            algorithm, env, config = agent.arguments()
            found.setdefault((algorithm, jax.tree.structure((env, config))), {})[cell.name] = agent
        except ConfigError as error:
            failures.append(Failure(cell.name, str(error)))
    return [Group(i, agents) for i, agents in enumerate(found.values())], failures


def layout(study: Study, sorted_groups: list[Group], jobs: int | None) -> Layout:
    """Choose how runs are laid over the devices.

    Args:
        study: what is to be run.
        sorted_groups: its groups.
        jobs: devices to use; None: all that the runs can fill.

    Raises:
        ConfigError: more jobs than devices, or states that do not fit into the memory.
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
    at_once = jobs if switches.platform() == "cpu" else 1  # cores share a memory, accelerators have one each
    if needed * width * at_once > there * share:
        raise ConfigError(
            f"{study.where}: cell '{heaviest}': the state of {at_once * width} run(s) takes"
            f" {needed * width * at_once / 2**30:.1f} GiB and there are {there * share / 2**30:.1f}; lower its buffer_size"
            + (" or --jobs" if at_once > 1 else "")
        )
    return Layout(jobs, width)


def bytes_of(group: Group) -> int:
    """Bytes of one run's state."""
    return train.state_bytes(*next(iter(group.agents.values())).arguments())["total"]


def portions(study: Study, sorted_groups: list[Group], laid: Layout, finished: set[tuple[str, int]]) -> list[Portion]:
    """What is left to run, group by group, seed by seed: early results cover all cells of a group."""
    found = []
    for group in sorted_groups:
        runs = [(cell, seed) for seed in study.seeds for cell in group.agents if (cell, seed) not in finished]
        found += [Portion(group.number, tuple(runs[i : i + laid.runs])) for i in range(0, len(runs), laid.runs)]
    return found


class Worker:
    """Runs portions of a study; compiles a group's program when its first portion comes."""

    def __init__(self, sorted_groups: list[Group], laid: Layout, kept: Unfinished | None = None) -> None:
        """Prepare; all workers of a study have the same groups and layout.

        Args:
            sorted_groups, laid: of the study.
            kept: keeps states of portions; None: an interruption loses a portion.
        """
        self.groups = sorted_groups
        self.laid = laid
        self.kept = kept
        self.current: tuple[int, Callable[[], devices.Program]] | None = None
        self.compile_seconds = 0.0

    def traced(self, group: Group) -> Callable[[], devices.Program]:
        """Trace, unless it is the program of the portion before; the function it returns compiles, when first called."""
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
        """Trace and compile, unless it is the program of the portion before."""
        return self.traced(group)()

    @switches.standard()
    @switches.unchecked()
    def inputs(self, group: Group, runs: tuple[tuple[str, int], ...]) -> tuple[Any, Any, Any]:
        """(env, config, keys) with a leading axis of runs, filled up to the layout's number."""
        runs = (*runs, *[runs[-1]] * (self.laid.runs - len(runs)))
        arguments = [group.agents[cell].arguments()[1:] for cell, _ in runs]
        env, config = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
        return env, config, devices.run_keys([seed for _, seed in runs])

    def prepared(self, portion: Portion) -> Callable[[], list[dict[str, Any]]]:
        """Trace the program of a portion, under this thread's contexts of JAX.

        The function it returns compiles and trains, in any thread: a row for each run and each evaluation.
        """
        group = self.groups[portion.group]
        compiled, inputs = self.traced(group), self.inputs(group, portion.runs)

        def rows() -> list[dict[str, Any]]:
            evaluations = self.evaluations(portion, compiled(), inputs)
            return [row for i, one in enumerate(evaluations) for row in rows_of(portion, one, i == 0)]

        return rows

    def evaluations(
        self, portion: Portion, program: devices.Program, inputs: tuple[Any, Any, Any]
    ) -> Iterator[Evaluation]:
        """Train the runs of a portion, from scratch or from where they were, and yield all their evaluations as they come."""
        group = self.groups[portion.group]
        env, config, keys = inputs
        kept, found = self.kept, None
        if kept is not None:
            made_by = unfinished.origin(next(iter(group.agents.values())))
            found = kept.find(portion.runs, made_by, program)
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
                kept.keep(portion.runs, made_by, state, history)
                start += time.perf_counter() - before

    def rows(self, portion: Portion) -> list[dict[str, Any]]:
        """Train the runs of a portion: a row for each of them and each evaluation."""
        return self.prepared(portion)()


def rows_of(portion: Portion, evaluation: Evaluation, is_first: bool) -> list[dict[str, Any]]:
    """Rows of one evaluation; a run whose parameters are no longer finite has no return."""
    number = len(portion.runs)
    mine: Record = jax.tree.map(lambda x: np.asarray(x)[:number], evaluation.record)
    entry = evaluations.entry([seed for _, seed in portion.runs], Evaluation(mine, evaluation.seconds), is_first)
    rows = []
    for (cell, _), row, is_finite in zip(portion.runs, entry.seeds, mine.finite.tolist(), strict=True):
        returns = {} if is_finite else dict.fromkeys(("return_mean", "return_std", "return_min"), math.nan)
        rows.append({"cell": cell, **row, **returns, "finite": is_finite})
    return rows


@dataclass(frozen=True)
class Plan:
    """What a start of a study is going to do."""

    study: Study
    groups: list[Group]
    failures: list[Failure]
    laid: Layout
    portions: list[Portion]
    finished: int
    """Runs that are there already."""

    @property
    def left(self) -> int:
        """Runs to do."""
        return sum(len(portion.runs) for portion in self.portions)


def plan(study: Study, store: Store | None = None, jobs: int | None = None) -> Plan:
    """Find out what is to be done, and how it is laid out; `store` holds what a former start has finished."""
    switches.check()
    sorted_groups, failures = groups(study)
    if not sorted_groups:
        raise ConfigError(f"{failures[0].reason}; and no other cell can be run")
    if store is None:
        laid, finished = layout(study, sorted_groups, jobs), set()
    else:
        laid, finished = Layout(store.facts["jobs"], store.facts["width"]), store.finished()
    left = portions(study, sorted_groups, laid, finished)
    there = len(switches.devices())
    if store is not None and left and (laid.jobs > there or (laid.jobs < there and switches.platform() != "cpu")):
        raise ConfigError(
            f"{store.path}: was begun with {laid.jobs} jobs and this process has {there} device(s), which would"
            f" change its numbers; use the machine it was begun on, or begin anew with another --out"
        )
    asked = {(cell.name, seed) for cell in study.cells for seed in study.seeds}
    return Plan(study, sorted_groups, failures, laid, left, len(asked & finished))


Execute = Callable[[Plan, Store, StudyProgress, Stop], None]
"""(plan, store, progress, stop): runs the portions."""


def run(
    study: Study,
    out: Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    quiet: bool = False,
    cache: bool = False,
    on: str | None = None,
) -> Store:
    """Run what is left of a study, and write results as they come.

    Args:
        study: what is asked.
        out: the results' directory: new or empty, or with `resume` that of a former start of the same study.
        jobs: devices to use at once, by each worker or process; None: all. A resumed study keeps its number.
        resume: go on with what is there; finished runs are never repeated, failed cells are tried again.
        quiet: show no progress.
        cache: keep compiled programs in the user's cache directory.
        on: one of `PLACES`; None: this process.

    Raises:
        ConfigError: a directory of another study or one that is in use, states that do not fit into the memory.
        RunError: results could not be written; what is written is kept.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept.
    """
    if on is not None and on not in PLACES:
        raise ConfigError(f"--on: unknown place '{on}'{did_you_mean(on, PLACES, 'places')}")
    if cache:
        enable_compilation_cache()
    if on == "ray":
        from quantilax.studies import cluster

        environment = cluster.environment()
        planned, begun = prepare(study, out, jobs, resume)
        with cluster.connected(planned):
            execute_there = partial(cluster.execute, environment=environment, cache=cache)
            return carry_out(planned, begun, out, StudyProgress(planned.left, quiet), execute_there, on)
    if on == "jax":
        from quantilax.studies import processes

        return processes.run(study, out, jobs, resume, quiet)
    planned, begun = prepare(study, out, jobs, resume)
    return carry_out(planned, begun, out, StudyProgress(planned.left, quiet), execute)


def prepare(study: Study, out: Path, jobs: int | None, resume: bool) -> tuple[Plan, Store | None]:
    """Plan a start, and open what a former one left; nothing is written."""
    begun = Store.find(out) if resume else None
    if begun is not None:
        begun.check(study)
    return plan(study, begun, jobs), begun


def carry_out(
    planned: Plan, begun: Store | None, out: Path, progress: StudyProgress, execute: Execute, on: str | None = None
) -> Store:
    """Create the results' directory, or go on in it, and hold its lock while the plan is executed."""
    store = begun or Store.create(
        out, planned.study, jobs=planned.laid.jobs, width=planned.laid.width, starts=[], status="running"
    )
    with store.lock(), Stop(progress.say) as stop:
        if begun is not None:
            _check_unchanged(begun, planned)
            if planned.left:
                _tell_differences(begun, progress)
        _begin(store, planned, on)
        status = "failed"
        try:
            stop.release()
            with progress:
                execute(planned, store, progress, stop)
            if not store.failures():  # what a failed portion has kept is gone on with when it is tried again
                unfinished.forget_all(store.path)
            status = "finished"
        except KeyboardInterrupt as error:
            status = "interrupted"
            raise interrupted(error, store) from None
        finally:
            stop.hold()
            try:
                store.update(status=status)
            except OSError as error:
                progress.warn(f"{store.path}: study.json cannot be written ({reason(error)}); its status is {status}")
    return store


def _check_unchanged(begun: Store, planned: Plan) -> None:
    """Raise `ConfigError` where another process has worked on the study between the plan and the lock."""
    now = Store.open(begun.path)
    asked = {(cell.name, seed) for cell in planned.study.cells for seed in planned.study.seeds}
    changed = [name for name in now.facts if name != "status" and now.facts[name] != begun.facts.get(name)]
    if changed or len(asked & now.finished()) != planned.finished:
        raise ConfigError(
            f"{begun.path}: another process has worked on it meanwhile; give the same command again: nothing is repeated"
        )


def _tell_differences(begun: Store, progress: StudyProgress) -> None:
    """Warn where this machine, or what is installed on it, is another than that of the start before."""
    for start in begun.facts["starts"][-1:]:
        before = {**start.get("versions", {}), **start}
        here = {name: value for name, value in machines.facts().items() if name in before}
        for line in machines.differences(before, here, "the start before"):
            progress.warn(line)


def interrupted(error: KeyboardInterrupt, store: Store) -> Interrupted:
    """Say what is kept and how to go on."""
    signalled = error if isinstance(error, Interrupted) else Interrupted("interrupted", 2)
    return Interrupted(
        f"{signalled}: {len(store.finished())} runs are kept in {store.path}; go on with the same command and --resume",
        signalled.exit_status - 128,
        signalled.at_once,
    )


def _begin(store: Store, planned: Plan, on: str | None) -> None:
    """Note the start if it runs anything, and cells and seeds that a former one did not have."""
    study = planned.study
    starts = store.facts["starts"]
    if planned.left or planned.failures:
        starts = [*starts, {**provenance(), "processor": processor(), "on": on, "finished_before": planned.finished}]
    asked = described(study)
    seeds = [*store.facts["seeds"], *(seed for seed in study.seeds if seed not in store.facts["seeds"])]
    changes = [*store.facts.get("changes", []), *_changes(store, asked)]
    store.begin(
        **({"changes": changes} if changes else {}),
        **{k: asked[k] for k in ("name", "question", "prediction", "solved", "base", "section")},
        cells={**store.facts["cells"], **asked["cells"]},
        overrides={**store.facts["overrides"], **asked["overrides"]},
        seeds=seeds,
        status="running",
        starts=starts,
    )
    for failure in planned.failures:
        store.failed(failure)


def _changes(store: Store, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give what is said otherwise than before results were there: a prediction, and what counts as solved."""
    runs = len(store.finished())
    for field in ("prediction", "solved") if runs else ():
        before, after = store.facts.get(field), asked[field]
        if before != after:
            yield {"field": field, "before": before, "after": after, "runs": runs}


def execute(
    planned: Plan,
    store: Store,
    progress: StudyProgress,
    stop: Stop,
    portions: Iterable[Portion] | None = None,
) -> None:
    """Run portions, else all, in this process; a group that cannot be compiled or run is noted, and the rest goes on."""
    tell_failures(planned, progress)

    kept = Unfinished(store.path, described(planned.study)["cells"], planned.laid, progress.warn, progress.say)
    worker, broken = Worker(planned.groups, planned.laid, kept), set[int]()
    for portion in planned.portions if portions is None else portions:
        if portion.group in broken:
            continue
        try:
            progress.began(portion, len(planned.groups))
            rows = stop.wait_for(stop.finish_first(partial(worker.prepared, portion)))
        except BROKEN as error:
            broken.add(portion.group)
            give_up(planned.groups[portion.group], reason(error), store, progress)
            continue
        except KeyboardInterrupt:
            kept.close()  # the thread that trains may live on
            raise
        store.write(rows)
        kept.forget(portion.runs)
        progress.finished(portion, rows)


def tell_failures(planned: Plan, progress: StudyProgress) -> None:
    """Warn of the cells that cannot be built."""
    for failure in planned.failures:
        progress.warn(f"cell '{failure.cell}' cannot be run: {failure.reason}")


def give_up(group: Group, why: str, store: Store, progress: StudyProgress) -> None:
    """Note that the cells of a group cannot be run."""
    for cell in group.agents:
        store.failed(Failure(cell, why))
        progress.warn(f"cell '{cell}' failed: {why}; the others go on")
