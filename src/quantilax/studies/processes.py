"""A study on all processes of `jax.distributed`: each trains on its own devices the next portion that nobody has taken.

Process 0 holds the results' directory, and writes how the study stands; the others, which must see the same directory, add
files of their own to it. What a process that ends early leaves undone, process 0 runs. The processes agree by the key-value
store of JAX's coordinator alone, and never compute together: see docs/decisions/0015-one-layout-for-every-machine.md.
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from quantilax.pytree import ConfigError
from quantilax.runs import RunError
from quantilax.runs.errors import reason
from quantilax.runs.signals import Stop
from quantilax.studies import execution, machines
from quantilax.studies.definition import Study
from quantilax.studies.execution import Plan, Portion
from quantilax.studies.progress import StudyProgress
from quantilax.studies.store import Store, described

HEARTBEAT = 10
"""Seconds without a sign of life after which a process counts as dead."""

PATIENCE = 600.0
"""Seconds that processes wait for each other to plan."""

SETTLE = 30.0
"""Seconds that a shared file system may take to show what another process has created."""

UNKNOWN = (
    "--on jax: which processes there are is not known; set JAX_COORDINATOR_ADDRESS (host:port of process 0),"
    " JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start them with Slurm or Open MPI"
)

_studies = itertools.count()


def join() -> None:
    """Join the processes of `jax.distributed`, unless that was done.

    Raises:
        ConfigError: they are not known, do not answer, or JAX has begun to compute.
    """
    if jax.distributed.is_initialized():
        return
    number, mine = (_whole(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    jax.config.update("jax_enable_recoverability", True)  # one that dies does not take the others with it
    try:
        jax.distributed.initialize(num_processes=number, process_id=mine, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        raise ConfigError(UNKNOWN if "defined" in str(error) else f"--on jax: {reason(error)}") from None
    except RuntimeError as error:
        raise ConfigError(f"--on jax: {reason(error)}") from None
    atexit.register(leave)


def leave() -> None:
    """Leave the others; process 0, whose end would end them, does so last."""
    if not jax.distributed.is_initialized():
        return
    if jax.process_index() == 0:
        others = list(range(jax.process_count()))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while len(_client().get_live_nodes(others)) > 1:
                pass
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _whole(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ConfigError(f"{name}: expected a whole number, got '{text}'")
    return None if text is None else int(text)


def _client() -> Any:
    """Of the coordinator; JAX has no public name for it."""
    from jax._src import distributed

    return distributed.global_state.client


class Peers:
    """The processes at work on a study."""

    def __init__(self) -> None:
        """Begin a study; all processes begin the same ones in the same order."""
        self.mine, self.number = jax.process_index(), jax.process_count()
        self.prefix = f"quantilax/{next(_studies)}/"
        self.client = _client()

    def put(self, name: str, text: str) -> None:
        """Say something to all."""
        self.client.key_value_set(self.prefix + name, text, allow_overwrite=True)

    def get(self, name: str, who: str) -> str:
        """Wait until something is said.

        Raises:
            RunError: `who` does not say it.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return str(self.client.key_value_try_get(self.prefix + name))
            except jax.errors.JaxRuntimeError as error:
                if "NOT_FOUND" not in str(error) or time.monotonic() > end:
                    raise RunError(f"--on jax: {who} does not answer: {reason(error)}") from None
            time.sleep(0.1)

    def count(self, name: str, by: int) -> int:
        """Add to a number that all share, and return it."""
        return int(self.client.key_value_increment(self.prefix + name, by))

    def taking(self, portions: list[Portion]) -> Iterator[Portion]:
        """Take the next portion that nobody has taken."""
        while (taken := self.count("taken", 1)) <= len(portions):
            yield portions[taken - 1]

    def gather(self) -> int:
        """Wait until each process that lives is here, and return their number."""
        return len(self.client.get_live_nodes(list(range(self.number))))


class SharedProgress(StudyProgress):
    """Progress of the whole study, seen whenever this process has finished a portion."""

    def __init__(self, runs: int, quiet: bool, peers: Peers) -> None:
        """Prepare for so many runs."""
        super().__init__(runs, quiet)
        self.peers = peers

    def finished(self, portion: Any, rows: list[dict[str, Any]]) -> None:
        """Show the last evaluation of each run of a portion."""
        self.done = self.peers.count("done", len(portion.runs)) - len(portion.runs)
        super().finished(portion, rows)


def run(study: Study, out: Path, jobs: int | None, resume: bool, quiet: bool) -> Store:
    """Run what is left of a study on all processes; see `quantilax.studies.execution.run`."""
    join()
    peers = Peers()
    try:
        planned, begun = execution.prepare(study, out, jobs, resume)
    except (ConfigError, RunError) as error:
        peers.put("go" if peers.mine == 0 else f"plan/{peers.mine}", json.dumps({"error": str(error)}))
        raise
    progress = SharedProgress(planned.left, quiet, peers)
    if peers.mine > 0:
        peers.put(f"plan/{peers.mine}", json.dumps(_agreed(planned)))
        if refusal := json.loads(peers.get("go", "process 0"))["error"]:
            raise ConfigError(f"process 0: {refusal}")
        return _help(peers, planned, out, progress)

    def lead(planned: Plan, store: Store, progress: StudyProgress, stop: Stop) -> None:
        peers.put("go", json.dumps({"error": ""}))
        execution.execute(planned, store, progress, stop, peers.taking(planned.portions))
        living = stop.wait_for(peers.gather)
        if left := _left(planned, store):
            gone = f"{peers.number - living} process(es) ended before their time"
            progress.warn(f"{gone}: {sum(len(portion.runs) for portion in left)} run(s) begin again here")
            execution.execute(replace(planned, failures=[]), store, progress, stop, left)

    try:
        _agree(peers, planned, progress)
        return execution.carry_out(planned, begun, out, progress, lead, "jax")
    except (ConfigError, RunError) as error:
        peers.put("go", json.dumps({"error": str(error)}))
        raise


def _help(peers: Peers, planned: Plan, out: Path, progress: StudyProgress) -> Store:
    """Run portions beside process 0."""
    store = _opened(out)
    store.writer = peers.mine
    with Stop(progress.say) as stop:
        try:
            stop.release()
            with progress:
                execution.execute(replace(planned, failures=[]), store, progress, stop, peers.taking(planned.portions))
            stop.wait_for(peers.gather)
        except KeyboardInterrupt as error:
            leave()
            raise execution.interrupted(error, store) from None
        finally:
            stop.hold()
    return store


def _opened(out: Path) -> Store:
    end = time.monotonic() + SETTLE
    while (store := Store.find(out)) is None and time.monotonic() < end:
        time.sleep(0.1)
    return Store.open(out) if store is None else store


def _left(planned: Plan, store: Store) -> list[Portion]:
    """Portions that no process has finished or given up."""
    finished, failed = store.finished(), {failure.cell for failure in store.failures()}
    return [
        portion
        for portion in planned.portions
        if not finished.issuperset(portion.runs) and failed.isdisjoint(planned.groups[portion.group].agents)
    ]


def _agreed(planned: Plan) -> dict[str, Any]:
    """What processes tell each other of their plans."""
    what = json.dumps([described(planned.study)["cells"], planned.portions]).encode()
    return {
        "error": "",
        "laid": list(planned.laid),
        "runs": hashlib.sha256(what).hexdigest(),
        "machine": machines.facts(),
    }


def _agree(peers: Peers, planned: Plan, progress: StudyProgress) -> None:
    """Check that all processes have the same plan.

    Raises:
        ConfigError: they have not.
    """
    mine = _agreed(planned)
    for number in range(1, peers.number):
        who = f"process {number}"
        other = json.loads(peers.get(f"plan/{number}", who))
        if other["error"]:
            raise ConfigError(f"{who}: {other['error']}")
        if other["laid"] != mine["laid"]:
            theirs, ours = (f"{jobs} job(s) of {width} run(s)" for jobs, width in (other["laid"], mine["laid"]))
            raise ConfigError(f"--jobs: {who} is laid out as {theirs}, process 0 as {ours}; give all the same --jobs")
        if other["runs"] != mine["runs"]:
            raise ConfigError(f"{who} has other runs to do than process 0; give all the same study, --seeds and --out")
        for line in machines.differences(other["machine"], mine["machine"], who):
            progress.warn(line)
