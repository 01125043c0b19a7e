"""Run a study on a Ray cluster: workers train batches, and the starting process writes their rows.

Each worker is an actor: a process with its own JAX, laid out as the study requires, that keeps its
group's compiled program between batches. If a worker dies, its batch is run again. See
docs/decisions/0015-one-layout-for-every-machine.md.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import jax

from quantilax import switches
from quantilax.errors import ConfigError, RunError, reason
from quantilax.host.compilation_cache import enable_compilation_cache
from quantilax.host.interrupts import Stop
from quantilax.runs import extensions
from quantilax.studies import machines
from quantilax.studies.definition import Study
from quantilax.studies.execution import BROKEN, Batch, BatchShape, Plan, Worker, give_up, groups, tell_failures
from quantilax.studies.progress import StudyProgress
from quantilax.studies.store import Store

MAX_DEATHS = 3
"""Number of workers that may die running one batch before its group is given up; also the number
that may die in a row while they prepare."""

PAUSE = 0.1
"""Seconds between two checks for results; waiting inside Ray would keep signals from Python."""

LOOK_FOR_NODES = 5.0
"""Seconds between two checks of which nodes the cluster has."""

PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


def environment() -> dict[str, str]:
    """Return the JAX and XLA settings for workers, and leave the accelerators' memory to them.

    Call this before JAX computes anything. On a cluster of one machine, JAX's default would let
    the planning process take most of the first accelerator's memory.
    """
    mine = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    chosen = {
        name.upper(): str(value) for name, value in switches.facts().items() if value is not None
    }  # includes values set by JAX's context managers
    os.environ[PREALLOCATE] = "false"
    return {PREALLOCATE: "true", **mine, **chosen}


@contextlib.contextmanager
def connected(planned: Plan) -> Iterator[None]:
    """Connect to the Ray cluster of `RAY_ADDRESS` or `ray start`, else start one on this machine.

    Raises:
        ConfigError: Ray is not installed, the cluster does not answer, or no node has room for a
            worker.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import ray
        except ImportError:
            raise ConfigError("--on ray needs the extra: pip install 'quantilax[ray]'") from None
    is_mine = not ray.is_initialized()
    if is_mine:
        _begin()
    try:
        if not room(planned.batch_shape):
            needs = " and ".join(f"{number} {name}(s)" for name, number in _needs(planned.batch_shape).items())
            raise ConfigError(f"--jobs: no node of the Ray cluster has {needs} for a worker; lower it, or add a node")
        yield
    finally:
        if is_mine:
            ray.shutdown()


def _begin() -> None:
    """Call `ray.init` quietly, and restore this process's SIGTERM handler afterwards."""
    import ray

    _answers(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--on ray: {reason(error)}; start a cluster with 'ray start', or unset RAY_ADDRESS (if the cluster"
            " requires a token: RAY_AUTH_MODE=token)"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _answers(address: str) -> None:
    """Raise `ConfigError` if a host:port address does not answer; Ray would try for 15 minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS: {address} does not answer ({reason(error)}); start a cluster with 'ray start', or unset it"
        ) from None


def _needs(batch_shape: BatchShape) -> dict[str, int]:
    """Return what a worker takes of its node: its cores, or its accelerators and one core."""
    return {"CPU": batch_shape.jobs} if switches.platform() == "cpu" else {"CPU": 1, "GPU": batch_shape.jobs}


def room(batch_shape: BatchShape) -> int:
    """Return how many workers fit on the cluster's nodes, ignoring other work."""
    import ray

    needs, nodes = _needs(batch_shape), (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(int(min(node.get(name, 0) // number for name, number in needs.items())) for node in nodes)


class RayWorker:
    """A worker in a process of its own, on some node of the cluster."""

    def begin(self, files: list[extensions.File], preparing: bytes) -> dict[str, Any]:
        """Run the user's files, then call `prepare` with its arguments.

        The arguments are pickled because they may refer to what the files define.

        Raises:
            ConfigError: a file fails here, or the machine cannot be set up.
        """
        extensions.run(files)
        return self.prepare(*pickle.loads(preparing))

    def prepare(self, study: Study, batch_shape: BatchShape, backend: str, cache: bool) -> dict[str, Any]:
        """Set up JAX as the study is laid out, and return what affects results on this machine.

        Raises:
            ConfigError: the machine does not have the devices for this layout.
        """
        with contextlib.suppress(RuntimeError):  # XLA_FLAGS set the number of devices already
            jax.config.update("jax_num_cpu_devices", batch_shape.jobs)
        if cache:
            enable_compilation_cache()
        here, there = switches.platform(), len(switches.devices())
        if here != backend or there < batch_shape.jobs or (there > batch_shape.jobs and here != "cpu"):
            raise ConfigError(
                f"it has {there} device(s) of kind {here}, but the study's layout needs {batch_shape.jobs} of {backend}"
            )
        self.worker = Worker(groups(study)[0], batch_shape)
        return machines.facts()

    def rows(self, batch: Batch) -> tuple[list[dict[str, Any]], str]:
        """Train a batch; return its rows and "", or no rows and why its group cannot be run."""
        try:
            return self.worker.rows(batch), ""
        except BROKEN as error:
            return [], reason(error) or type(error).__name__


def beginning(planned: Plan, cache: bool) -> tuple[list[extensions.File], bytes]:
    """Return the arguments of `RayWorker.begin`."""
    import ray

    preparing = (planned.study, planned.batch_shape, switches.platform(), cache)
    return list(extensions.FILES.values()), ray.cloudpickle.dumps(preparing)


class Pool:
    """The workers of a study, and what each is working on."""

    def __init__(self, planned: Plan, environment: dict[str, str], cache: bool) -> None:
        """Prepare; no worker is started yet."""
        import ray

        self.ray, self.batch_shape = ray, planned.batch_shape
        needs = _needs(planned.batch_shape)
        self.worker: Any = ray.remote(RayWorker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            runtime_env={"env_vars": environment},
        )
        self.beginning = beginning(planned, cache)
        self.groups: dict[Any, int | None] = {}
        """Each worker, and the group whose program it has compiled."""
        self.at: dict[Any, tuple[Any, Batch | None]] = {}
        """For each pending Ray result, the worker and its batch; None while the worker prepares."""
        self.unusable = 0
        self.looked = -LOOK_FOR_NODES

    def hire(self, most: int) -> None:
        """Start workers until there are `most`, as far as the cluster has room."""
        if len(self.groups) < most and time.monotonic() - self.looked >= LOOK_FOR_NODES:
            self.looked = time.monotonic()
            for _ in range(min(most, room(self.batch_shape) - self.unusable) - len(self.groups)):
                worker = self.worker.remote()
                self.groups[worker] = None
                self.at[worker.begin.remote(*self.beginning)] = worker, None

    def idle(self) -> list[Any]:
        """Return the workers that are waiting for a batch."""
        busy = {worker for worker, _ in self.at.values()}
        return [worker for worker in self.groups if worker not in busy]

    def give(self, worker: Any, batch: Batch) -> None:
        """Let a worker train a batch."""
        self.groups[worker] = batch.group
        self.at[worker.rows.remote(batch)] = worker, batch

    def come(self) -> list[Any]:
        """Return the pending results that are ready."""
        waiting = list(self.at)
        return self.ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if waiting else []

    def dismiss(self, worker: Any) -> None:
        """Stop a worker, if it is still there."""
        self.groups.pop(worker, None)
        self.looked = -LOOK_FOR_NODES
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(worker)


class Scheduler:
    """Runs one start of a study on a pool."""

    def __init__(self, planned: Plan, store: Store, progress: StudyProgress, pool: Pool) -> None:
        """Prepare; `pool` has no workers yet."""
        self.planned, self.store, self.progress, self.pool = planned, store, progress, pool
        self.left: dict[int, deque[Batch]] = {}
        for batch in planned.batches:
            self.left.setdefault(batch.group, deque()).append(batch)
        self.begun = set[int]()
        self.broken = set[int]()
        self.deaths = Counter[Batch | None]()
        self.here = machines.facts()
        self.told = set[str]()

    def work(self) -> None:
        """Run all batches."""
        while True:
            for worker in self.pool.idle():
                if (batch := self.next(self.pool.groups[worker])) is not None:
                    if batch.group not in self.begun:
                        self.begun.add(batch.group)
                        self.progress.began(batch, len(self.planned.groups))
                    self.pool.give(worker, batch)
            waiting = sum(map(len, self.left.values()))
            at = sum(batch is not None for _, batch in self.pool.at.values())
            if not waiting and not at:
                return
            self.pool.hire(waiting + at)
            come = self.pool.come()
            for reference in come:
                self.take(reference)
            if not come:
                time.sleep(PAUSE)

    def next(self, group: int | None) -> Batch | None:
        """Remove and return the next batch, of the group that the worker has compiled if possible.

        Otherwise it is of the group with the most batches left per worker.
        """
        if group not in self.left:
            at = Counter(self.pool.groups.values())
            group = max(self.left, key=lambda g: len(self.left[g]) / (1 + at[g]), default=None)
        if group is None:
            return None
        batch = self.left[group].popleft()
        if not self.left[group]:
            del self.left[group]
        return batch

    def take(self, reference: Any) -> None:
        """Handle a result that is ready, or a worker's failure."""
        worker, batch = self.pool.at.pop(reference)
        errors = self.pool.ray.exceptions
        try:
            given = self.pool.ray.get(reference)
        except errors.RayTaskError as error:
            if batch is not None:
                raise error.cause from None
            self.pool.unusable += 1
            self.lost(worker, f"a worker cannot be used: {reason(error.cause)}")
        except errors.RayError as error:
            self.deaths[batch] += 1
            again = "" if batch is None else f" during {len(batch.runs)} run(s)"
            self.lost(worker, f"a worker died{again} ({type(error).__name__})")
            self.after_death(batch)
        else:
            if batch is None:
                self.deaths[None] = 0
                self.tell(machines.differences(given, self.here, "a worker's machine"))
            else:
                self.finished(batch, *given)

    def finished(self, batch: Batch, rows: list[dict[str, Any]], why: str) -> None:
        """Write the rows of a batch, or give up its group."""
        if not why:
            self.store.write(rows)
            self.progress.finished(batch, rows)
        else:
            self.give_up(batch.group, why)

    def after_death(self, batch: Batch | None) -> None:
        """Queue a batch again, unless too many workers died running it."""
        deaths = self.deaths[batch]
        if batch is None:
            if deaths >= MAX_DEATHS:
                raise RunError(f"{deaths} workers in a row died before they could begin; Ray's logs may say why")
        elif deaths >= MAX_DEATHS:
            self.give_up(batch.group, f"{deaths} workers died during its runs, perhaps out of memory")
        elif batch.group not in self.broken:
            self.left.setdefault(batch.group, deque()).appendleft(batch)
            self.progress.say(f"{len(batch.runs)} run(s) start again")

    def give_up(self, group: int, why: str) -> None:
        """Record, once, that a group cannot be run."""
        self.left.pop(group, None)
        if group not in self.broken:
            self.broken.add(group)
            give_up(self.planned.groups[group], why, self.store, self.progress)

    def lost(self, worker: Any, line: str) -> None:
        """Stop a worker that is no longer usable; raise `RunError` if no other is left."""
        self.pool.dismiss(worker)
        self.progress.warn(line)
        if not self.pool.groups and room(self.planned.batch_shape) <= self.pool.unusable:
            raise RunError(f"{line}; no other worker is left; continue with --resume")

    def tell(self, lines: Iterator[str]) -> None:
        """Warn of each difference once."""
        for line in lines:
            if line not in self.told:
                self.told.add(line)
                self.progress.warn(line)


def execute(
    planned: Plan,
    store: Store,
    progress: StudyProgress,
    stop: Stop,
    *,
    environment: dict[str, str],
    cache: bool,
) -> None:
    """Run all batches on the cluster; a group that cannot be run is recorded, and the rest goes on.

    Raises:
        RunError: no worker can be used, or none lives long enough to begin.
    """
    tell_failures(planned, progress)
    pool = Pool(planned, environment, cache)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # Ray prints deaths of workers
        try:
            Scheduler(planned, store, progress, pool).work()
        finally:
            for worker in list(pool.groups):
                pool.dismiss(worker)
