"""Estimate what a study will cost, from a short timed run of its programs."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from quantilax import train
from quantilax.errors import reason
from quantilax.studies.execution import BROKEN, Batch, Group, Plan, Worker, bytes_of

MAX_TIMED = 3
"""Most groups to time; each must be compiled for it."""

LEAST_SECONDS = 0.5
"""Least duration of a timed stretch of training."""


class Cost(NamedTuple):
    """Seconds that a group takes.

    `least` assumes evaluations as short as an untrained policy's, `most` as long as possible.
    """

    compile: float
    least: float
    most: float


class Forecast(NamedTuple):
    """The cost of what is left of a study."""

    costs: list[Cost]
    """Costs of the groups that were timed."""
    groups: int
    """Number of groups with runs left."""
    total: Cost
    state_bytes: int
    """Bytes of the states of the largest batch."""
    broken: list[tuple[Group, str]]
    """Groups that failed to compile or run when timed, and why."""


def forecast(planned: Plan) -> Forecast:
    """Time the groups with the most runs left, and extrapolate to the others."""
    number = {group.number: 0 for group in planned.groups}
    for batch in planned.batches:
        number[batch.group] += 1
    left = sorted((g for g in planned.groups if number[g.number]), key=lambda g: -number[g.number])
    worker = Worker(planned.groups, planned.batch_shape)
    once: dict[int, Cost] = {}
    broken: list[tuple[Group, str]] = []
    for group in left:
        if len(once) == MAX_TIMED:
            break
        try:
            once[group.number] = _timed(worker, group)
        except BROKEN as error:
            broken.append((group, reason(error)))
    for group, _ in broken:
        left.remove(group)
        del number[group.number]
    costs = [Cost(c.compile, c.least * number[n], c.most * number[n]) for n, c in once.items()]
    scale = sum(number.values()) / max(sum(number[n] for n in once), 1)
    total = Cost(
        sum(c.compile for c in costs) / max(len(costs), 1) * len(left),
        sum(c.least for c in costs) * scale,
        sum(c.most for c in costs) * scale,
    )
    largest = max(bytes_of(group) for group in planned.groups)
    return Forecast(costs, len(left), total, largest * planned.batch_shape.runs, broken)


def _timed(worker: Worker, group: Group) -> Cost:
    """Return the seconds that one batch takes."""
    before = worker.compile_seconds
    program = worker.program(group)
    name, agent = next(iter(group.agents.items()))
    env, config, keys = worker.inputs(group, Batch(group.number, ((name, 0),)).runs)
    assert program.init is not None
    segments = train.segment_iterations(agent.config)

    start = time.perf_counter()
    state: Any = jax.block_until_ready(program.init(env, config, keys))
    init = time.perf_counter() - start

    def segment(iterations: int) -> tuple[float, int]:
        nonlocal state
        start = time.perf_counter()
        state, record = jax.block_until_ready(program.segment(env, config, state, np.int32(iterations)))
        return time.perf_counter() - start, int(np.max(record.lengths))

    segment(0)  # warm-up: the first call of a program takes longer
    evaluation, steps = segment(0)
    iterations, seconds, steps_after = 1, 0.0, steps
    while seconds < LEAST_SECONDS and iterations < sum(segments):
        iterations *= 4
        seconds, steps_after = segment(iterations)
    evaluating = evaluation * max(steps_after, 1) / max(steps, 1)
    training = max(seconds - evaluating, 0.0) / iterations * sum(segments)
    longest = evaluation * max(int(np.max(np.asarray(agent.env.max_episode_steps))) / max(steps, 1), 1)
    return Cost(
        worker.compile_seconds - before,
        init + training + evaluation * len(segments),
        init + training + longest * len(segments),
    )
