"""Start or resume a study: in this process, on a Ray cluster, or as one of several shards.

run                       plan -> create or open the directory -> lock it -> record the start
                          -> execute -> record the end
run(..., shard=(2, 8))    the same for every eighth batch of runs, from the second on, while seven
                          other processes run the rest
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from quantilax.errors import ConfigError, did_you_mean, reason
from quantilax.host import limits, locks, paths
from quantilax.host.compilation_cache import enable_compilation_cache
from quantilax.host.interrupts import Interrupted, Stop
from quantilax.runs.provenance import provenance
from quantilax.studies import machines, unfinished
from quantilax.studies.definition import Study
from quantilax.studies.execution import Plan, execute, plan
from quantilax.studies.progress import StudyProgress
from quantilax.studies.store import Store, facts_of

PLACES = ("ray",)
"""Where a study can run, other than in this process."""

Execute = Callable[[Plan, Store, StudyProgress, Stop], None]
"""(plan, store, progress, stop): runs the plan's batches."""


class Shard(NamedTuple):
    """A share of a study's runs for one of several processes, such as the tasks of a job array."""

    number: int
    """From 1 to `of`."""
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse text such as `2/8`.

        Raises:
            ConfigError: the text is not a valid pair of numbers.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ConfigError(f"--shard: expected I/N with I from 1 to N, such as 2/8, got '{text}'")
        return cls(int(number), int(of))


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    resume: bool = False,
    quiet: bool = False,
    cache: bool = False,
    on: str | None = None,
    shard: Shard | tuple[int, int] | None = None,
) -> Store:
    """Run what is left of a study, and write results as they come.

    Args:
        study: the study to run.
        out: the directory for results, new or empty; with `resume`, that of an earlier start of
            the same study. None: `studies/<name>`.
        jobs: devices to use at once, by each worker or process; None: all. A resumed study keeps
            its number. A CPU has one device, unless `quantilax.runs.use_all_cores` was called
            before.
        resume: continue in an existing directory. Finished runs are never repeated; failed variants
            are tried again.
        quiet: show no progress.
        cache: keep compiled programs in the user's cache directory.
        on: one of `PLACES`; None: this process.
        shard: (number, of): this process's share, if `of` processes work on the directory, each
            with another number from 1 on. An existing directory is resumed even without `resume`.

    Returns:
        the directory of results. Its methods return Polars frames: `records()` has a row per
        variant, seed and evaluation, `outcomes()` a row per run, `summary()` a row per variant.

    Raises:
        ConfigError: the directory is in use or of another study, or states do not fit into memory.
        RunError: results could not be written; what is written is kept.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept.
    """
    if on is not None and on not in PLACES:
        raise ConfigError(f"--on: unknown place '{on}'{did_you_mean(on, PLACES, 'places')}")
    if on is not None and shard is not None:
        raise ConfigError("--shard: cannot be combined with --on ray, which divides the runs itself; leave one out")
    out = study.directory if out is None else paths.check(out)
    if cache:
        enable_compilation_cache()
    if shard is not None:
        return _run_shard(study, out, jobs, Shard(*shard), quiet)
    if on == "ray":
        from quantilax.studies import cluster

        environment = cluster.environment()
        planned, begun = _prepare(study, out, jobs, resume)
        with cluster.connected(planned):
            execute_there = partial(cluster.execute, environment=environment, cache=cache)
            return _carry_out(planned, begun or _created(planned, out), begun, quiet, execute_there, on)
    planned, begun = _prepare(study, out, jobs, resume)
    return _carry_out(planned, begun or _created(planned, out), begun, quiet, execute)


def _prepare(study: Study, out: Path, jobs: int | None, resume: bool) -> tuple[Plan, Store | None]:
    """Plan a start, and open what an earlier one left; nothing is written."""
    begun = Store.find(out) if resume else None
    if begun is not None:
        begun.check(study)
    return plan(study, begun, jobs), begun


def _created(planned: Plan, out: Path) -> Store:
    batch_shape = planned.batch_shape
    return Store.create(out, planned.study, jobs=batch_shape.jobs, width=batch_shape.width, starts=[], status="running")


def _run_shard(study: Study, out: Path, jobs: int | None, shard: Shard, quiet: bool) -> Store:
    """Run a share of the batches; processes coordinate only through files in the directory."""
    planned = plan(study, Store.find(out), jobs)
    with locks.lock(paths.make(out), "updating", wait=True):  # the first process creates the study
        store = Store.find(out) or _created(planned, out)
    store.check(study)
    if jobs is not None and jobs != store.facts["jobs"]:
        raise ConfigError(f"--jobs: {store.path} was begun with {store.facts['jobs']}; give all shards the same number")
    store.writer = shard.number
    return _carry_out(plan(study, store, jobs, shard), store, None, quiet, execute)


def _carry_out(
    planned: Plan, store: Store, begun: Store | None, quiet: bool, execute: Execute, on: str | None = None
) -> Store:
    """Hold the directory's lock, execute the plan, and record its start and end.

    Args:
        planned: what to do.
        store: where to write.
        begun: the same directory, if an earlier start left it; None for a new one or a shard.
        quiet: show no progress.
        execute: runs the batches.
        on: one of `PLACES`, to be recorded.
    """
    progress = StudyProgress(planned.left, quiet)
    with store.lock(), Stop(progress.say) as stop:
        if begun is not None:
            _check_unchanged(begun, planned)
        if planned.left:
            _tell_differences(store, progress)
        _begin(store, planned, on)
        status = "failed"
        try:
            stop.release()
            with progress:
                execute(planned, store, progress, stop)
            # Kept states of failed batches are used when those are tried again.
            if not store.writer and not store.failures():
                unfinished.forget_all(store.path)
            status = "finished"
        except KeyboardInterrupt as error:
            status = "interrupted"
            raise _interrupted(error, store) from None
        finally:
            stop.hold()
            try:
                store.amend(lambda facts: {"status": _status(store, facts, status)})
                if store.facts["status"] == "finished":
                    _compact(store, progress)
            except (OSError, ConfigError) as error:
                progress.warn(f"{store.path}: study.json cannot be written ({reason(error)}); its status is {status}")
    return store


def _compact(store: Store, progress: StudyProgress) -> None:
    try:
        with locks.lock(store.path, "updating", wait=True):
            store.compact()
    except (OSError, ConfigError, pl.exceptions.PolarsError) as error:
        progress.warn(
            f"{store.path}: records could not be merged into one file ({reason(error)}); they are kept as they are"
        )


def _status(store: Store, facts: dict[str, Any], mine: str) -> str:
    """Return the study's status after this process.

    It is `incomplete` if runs of other shards are missing and no other shard is at work.
    """
    if not store.writer or mine != "finished":
        return mine
    failed = {failure.variant for failure in store.failures()}
    asked = {(variant, seed) for variant in facts["variants"] for seed in facts["seeds"] if variant not in failed}
    if asked <= store.finished():
        return "finished"
    return "running" if store.others_at_work() else "incomplete"


def _interrupted(error: KeyboardInterrupt, store: Store) -> Interrupted:
    """Say what is kept and how to continue."""
    signalled = error if isinstance(error, Interrupted) else Interrupted("interrupted", 2)
    return Interrupted(
        f"{signalled}: {len(store.finished())} runs are kept in {store.path}; continue with the same command"
        + ("" if store.writer else " and --resume"),
        signalled.exit_status - 128,
        signalled.at_once,
    )


def _check_unchanged(begun: Store, planned: Plan) -> None:
    """Raise `ConfigError` if another process changed the study between planning and locking."""
    now = Store.open(begun.path)
    asked = {(variant.name, seed) for variant in planned.study.variants for seed in planned.study.seeds}
    changed = [name for name in now.facts if name != "status" and now.facts[name] != begun.facts.get(name)]
    if changed or len(asked & now.finished()) != planned.finished:
        raise ConfigError(
            f"{begun.path}: another process has changed it in the meantime; run the same command again: nothing is repeated"
        )


def _tell_differences(store: Store, progress: StudyProgress) -> None:
    """Warn if the machine or its software differs from that of the previous start."""
    for start in store.facts["starts"][-1:]:
        before = {**start.get("versions", {}), **start}
        here = {name: value for name, value in machines.facts().items() if name in before}
        for line in machines.differences(before, here, "the previous start"):
            progress.warn(line)


def _begin(store: Store, planned: Plan, on: str | None) -> None:
    """Record the start, if it runs anything, and new variants and seeds."""
    study, asked = planned.study, facts_of(planned.study)

    def change(facts: dict[str, Any]) -> dict[str, Any]:
        starts = facts["starts"]
        if planned.left or planned.failures:
            shard = {"shard": store.writer} if store.writer else {}
            here = {"processor": limits.processor(), "on": on, "finished_before": planned.finished, **shard}
            starts = [*starts, {**provenance(), **here}]
        changes = [*facts.get("changes", []), *_changes(store, asked)]
        return {
            **({"changes": changes} if changes else {}),
            **{k: asked[k] for k in ("name", "question", "prediction", "solved", "base", "section")},
            "variants": {**facts["variants"], **asked["variants"]},
            "overrides": {**facts["overrides"], **asked["overrides"]},
            "seeds": [*facts["seeds"], *(seed for seed in study.seeds if seed not in facts["seeds"])],
            "status": "running",
            "starts": starts,
        }

    store.begin(change)
    for failure in planned.failures:
        store.failed(failure)


def _changes(store: Store, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield changes to the prediction and to what counts as solved, made after results existed."""
    runs = len(store.finished())
    for field in ("prediction", "solved") if runs else ():
        before, after = store.facts.get(field), asked[field]
        if before != after:
            yield {"field": field, "before": before, "after": after, "runs": runs}
