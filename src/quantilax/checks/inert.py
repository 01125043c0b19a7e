"""Hyperparameters that nothing depends on: found in the program of `train`, and by curves that stay equal.

Two ways, of different strength:

- **By the program.** The curve (lengths and returns) is computed from the config's leaves; a leaf with no path to it cannot
  change it. A static field is none of the program's inputs; it is changed, the program traced anew, and the two compared as
  far as the curve needs them. Nothing is compiled for this.
- **By curves.** The first steps of the run are made with the field as it is and changed, with everything else equal. A
  field that the program rules out must leave the curve as it is, bit for bit: this confirms it. A field that the program
  does not rule out and that changes neither curve nor weights is told too, as what it is: nothing seen so far.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from quantilax import heads, pytree, switches, train
from quantilax.agent import Agent
from quantilax.checks.dependence import dependence, fingerprint
from quantilax.checks.findings import Finding, Severity
from quantilax.errors import ConfigError
from quantilax.types import Record, State

LOOP = ("total_timesteps", "eval_freq", "eval_episodes")
"""Fields that say how long to run and how much to measure: not looked at here."""

CURVE = "the curve"
OF_THE_STATE = " of the state"
TRIAL_STEPS = 256
"""Environment steps after the warm-up that every comparison takes."""
STEPS = 1_000
"""Environment steps after the warm-up before a field is said to change nothing."""
TRIAL_EPISODES = 8
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""On a CPU, where compiling takes longer than the few steps."""


class Program(NamedTuple):
    """What the program of `train` says of a config."""

    reaches: dict[str, frozenset[str]]
    """For each field that is a leaf, the outputs that it may influence: the curve, metrics, parts of the final state."""
    curve: bytes
    """Hash of all that the curve needs."""
    measured: frozenset[str]
    """Outputs other than the final state."""


def program(agent: Agent) -> Program:
    """Trace `train` and read it; nothing is compiled."""
    algorithm, env, config = agent.arguments()

    def run(env: Any, config: Any, key: Any) -> tuple[State, Record]:
        return train.train(algorithm, env, config, key, agent.in_program_callback)

    inputs = env, config, jax.random.key(0)
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(*inputs)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(inputs)[0]]
    outputs = [_output(path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    reaches: dict[str, set[str]] = {path[1].name: set() for path in paths if path[0].idx == 1}
    for output, positions in zip(outputs, dependence(jaxpr), strict=True):
        for path in (paths[i] for i in positions if paths[i][0].idx == 1):
            reaches[path[1].name].add(output)
    curve = fingerprint(jaxpr, [i for i, output in enumerate(outputs) if output == CURVE])
    measured = frozenset(output for output in outputs if not output.endswith(OF_THE_STATE))
    return Program({name: frozenset(found) for name, found in reaches.items()}, curve, measured)


def _output(path: tuple[Any, ...]) -> str:
    """What an output of `train` is called."""
    names = [jax.tree_util.keystr((part,), simple=True) for part in path]
    if path[0].idx == 0:
        return (names[1] if len(names) > 1 else "all") + OF_THE_STATE
    if names[1] in ("lengths", "returns"):
        return CURVE
    measured = {"metrics": "metric", "signals": "signal"}
    return f"the {measured[names[1]]} {names[2]}" if names[1] in measured and len(names) > 2 else names[1]


def alternatives(agent: Agent, name: str) -> list[Any]:
    """Other legal values of a field, the one to try first in front: `candidates` that the config takes."""
    return [value for value in candidates(agent, name) if changed(agent, {name: value}) is not None]


def candidates(agent: Agent, name: str) -> list[Any]:
    """Other values of a field by its kind, the one to try first in front.

    A choice: each other one. A switch: the other way. A whole number: its double, its half, one more, one less. A list of
    whole numbers: each one more, the last twice, the last left out; [1] for an empty one. A number between two bounds: half
    of the range up, half of it down. Any other number: its half, its thousandth, its double; 0 becomes 1 and -1, infinity
    0.001 and 1.
    """
    value = getattr(agent.config, name)
    choices = agent.config.__dataclass_fields__[name].metadata.get("choices")
    other: list[Any] = []
    if choices:
        other = list(choices)
    elif isinstance(value, bool):
        other = [not value]
    elif isinstance(value, int):
        other = [2 * value, value // 2, value + 1, value - 1]
    elif isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        other = [tuple(v + 1 for v in value), value + value[-1:], value[:-1]] if value else [(1,)]
    elif _is_number(value):
        other = _other_numbers(agent.config.__dataclass_fields__[name].metadata.get("bounds", {}), float(value))
    return [v for v in dict.fromkeys(other) if v != value]


def _other_numbers(bounds: dict[str, float], value: float) -> list[float]:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None and high - low <= 1:
        half = (high - low) / 2
        return [value + half, value - half]
    if math.isinf(value):
        return [1e-3, 1.0]
    return [value / 2, value / 1000, 2 * value] if value else [1.0, -1.0]


def changed(agent: Agent, changes: dict[str, Any]) -> Agent | None:
    """Return the agent with fields changed, or None where its config refuses them."""
    try:
        return agent.replace(**changes)
    except ConfigError:
        return None


class Programs:
    """The program of an agent and of its variants, each traced once."""

    def __init__(self, agent: Agent, progress: Callable[[str], None]) -> None:
        """Trace the agent's own."""
        self.agent = agent
        self._progress = progress
        self._known: dict[Any, Program | None] = {(): program(agent)}
        self.statics = [f.name for f in dataclasses.fields(agent.config) if f.name not in self.base.reaches]

    @property
    def base(self) -> Program:
        """That of the agent as it is."""
        found = self._known[()]
        assert found is not None
        return found

    def of(self, **changes: Any) -> Program | None:
        """Return that of the agent with static fields changed, or None where there is none."""
        key = tuple(sorted(changes.items()))
        if key not in self._known:
            self._progress(f"tracing with {', '.join(f'{k}={v}' for k, v in key)}")
            agent = changed(self.agent, changes)
            try:
                self._known[key] = None if agent is None else program(agent)
            except Exception:  # an algorithm of the user's that does not check what it cannot do
                self._known[key] = None
        return self._known[key]

    def other_values(self, name: str, **changes: Any) -> Iterator[Any]:
        """Other values of a static field that have a program, with further fields changed."""
        return (value for value in alternatives(self.agent, name) if self.of(**{name: value}, **changes) is not None)

    def heads_of(self, name: str) -> list[str]:
        """Other heads that the config may have, of whose hyperparameters this field is one."""
        others = alternatives(self.agent, "head") if "head" in self.statics else []
        return [h for h in others if any(name in group.__dataclass_fields__ for group in heads.HEADS[h].configs)]  # type: ignore[attr-defined]

    def choices(self, **changes: Any) -> Iterator[tuple[str, Any]]:
        """Every other value of each choice, with further fields changed."""
        names = [name for name in self.statics if name not in LOOP and name not in changes]
        names = [name for name in names if isinstance(getattr(self.agent.config, name), str)]
        yield from ((name, value) for name in names for value in self.other_values(name, **changes))

    def variants(self) -> Iterator[tuple[str, Any]]:
        """Fields and values that may bring a leaf to life: one other value of each static field, then all choices."""
        names = [name for name in self.statics if name not in LOOP]
        yield from ((name, value) for name in names for value in itertools.islice(self.other_values(name), 1))
        yield from self._other_choices(names)

    def modes(self) -> Iterator[tuple[str, Any]]:
        """Fields and values that may bring a static field to life: one of each that is no number, then all choices."""
        names = [name for name in self.statics if name not in LOOP]
        modes = (name for name in names if isinstance(getattr(self.agent.config, name), bool | str | tuple))
        yield from ((name, value) for name in modes for value in itertools.islice(self.other_values(name), 1))
        yield from self._other_choices(names)

    def _other_choices(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        """All values of each choice but its own and the first other one."""
        choices = (name for name in names if isinstance(getattr(self.agent.config, name), str))
        yield from ((name, value) for name in choices for value in itertools.islice(self.other_values(name), 1, None))


class Inert(NamedTuple):
    """A field that the curve does not need in this setting."""

    name: str
    reaches: tuple[str, ...]
    """Outputs other than the curve that a leaf reaches."""
    enabled_by: tuple[str, Any] | None
    """Another field and a value of it with which this one reaches the curve."""
    other: Any
    """A value to compare curves with; None where there is none."""
    head: str | None = None
    """Another head that it takes beside `enabled_by`."""


def by_program(programs: Programs) -> tuple[list[Inert], list[str]]:
    """Fields that the curve does not need, and static fields of which no other value is known.

    A static field whose other values are all refused here, as a torso is that does not fit the environment, is neither.
    """
    agent, base = programs.agent, programs.base
    found, unknown = [], []
    for name, reaches in base.reaches.items():
        if CURVE not in reaches and name not in LOOP:
            enabled = next(((n, v) for n, v in programs.variants() if _reaches_curve(programs, name, {n: v})), None)
            other, head = next(iter(alternatives(agent, name)), None), None
            if enabled is None:
                with_head = ((h, one) for h in programs.heads_of(name) for one in programs.choices(head=h))
                both = (x for x in with_head if _reaches_curve(programs, name, {"head": x[0], x[1][0]: x[1][1]}))
                head, enabled = next(both, (None, None))
            found.append(Inert(name, tuple(sorted(reaches)), enabled, other, head))
    for name in programs.statics:
        if name in LOOP:
            continue
        values = programs.other_values(name)
        other = next(values, None)
        if other is None:
            if alternatives(agent, name) or not candidates(agent, name):  # else each is refused, with the reason
                unknown.append(name)
        elif all(_is_same(programs, {name: value}, {}) for value in itertools.chain([other], values)):
            enabled = next(((n, v) for n, v in programs.modes() if _matters(programs, {name: other}, n, v)), None)
            found.append(Inert(name, (), enabled, other))
    order = list(agent.config.__dataclass_fields__)
    return sorted(found, key=lambda inert: order.index(inert.name)), unknown


def _reaches_curve(programs: Programs, leaf: str, changes: dict[str, Any]) -> bool:
    variant = programs.of(**changes)
    return variant is not None and CURVE in variant.reaches.get(leaf, ())


def _is_same(programs: Programs, a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Say whether two variants have a program each, the same as far as the curve needs it, and measure the same.

    A switch that adds something to what is measured, as `metrics` does, has that effect and need have no other.
    """
    one, other = programs.of(**a), programs.of(**b)
    return one is not None and other is not None and (one.curve, one.measured) == (other.curve, other.measured)


def _matters(programs: Programs, changes: dict[str, Any], name: str, value: Any) -> bool:
    """Say whether static fields that change nothing alone change something beside another field."""
    both = {**changes, name: value}
    return name not in changes and programs.of(**both) is not None and not _is_same(programs, both, {name: value})


class Row(NamedTuple):
    """What a trial has come to at one of its evaluations."""

    env_step: int
    curve: tuple[bytes, ...]
    weights: tuple[bytes, ...]
    td_error: float | None
    learned_returns: np.ndarray | None


class Trial:
    """The first steps of a run, all floats of the config in one compiled program.

    Only `eval_episodes` is another: schedules, buffer and warm-up are those of the run.
    """

    def __init__(self, agent: Agent, steps: int = STEPS) -> None:
        """Compile nothing yet; `steps` are those after the warm-up before a field is said to change nothing."""
        self.steps = steps
        self.agent = agent.replace(eval_episodes=min(TRIAL_EPISODES, agent.config.eval_episodes))
        options = QUICKLY_COMPILED if switches.platform() == "cpu" else None
        self._init = jax.jit(partial(train.init, agent.algorithm), compiler_options=options)
        self._segment = jax.jit(partial(train.segment, agent.algorithm), compiler_options=options)
        self._rows: list[Row] = []
        self._base = self.rows({})

    def rows(self, changes: dict[str, Any]) -> Iterator[Row]:
        """Run with floats changed."""
        _, env, config = self.agent.replace(**changes).arguments()
        state = self._init(env, config, jax.random.key(0))
        for iterations in self.iterations():
            state, record = self._segment(env, config, state, jnp.int32(iterations))
            yield Row(
                int(record.env_step),
                _bytes((record.lengths, record.returns)),
                _bytes(
                    (state.params, getattr(state, "average_params", None))
                ),  # those of one's own may have no average
                None if record.metrics is None else float(record.metrics.td_error),
                None if record.learned_returns is None else np.asarray(record.learned_returns),
            )

    def iterations(self) -> list[int]:
        """Iterations before each evaluation: two for every comparison, then for those that are still equal."""
        per, left = self.agent.config.steps_per_iteration, sum(train.segment_iterations(self.agent.config))
        first = min(max(2, -(-TRIAL_STEPS // per)), left)
        last = max(first, min(-(-self.steps // per), left))
        ends = [first // 2, first]
        while ends[-1] < last:
            ends.append(min(2 * ends[-1], last))
        return [b - a for a, b in itertools.pairwise([0, *ends])]

    def base(self, number: int) -> Row:
        """Row of the run with nothing changed."""
        while len(self._rows) <= number:
            self._rows.append(next(self._base))
        return self._rows[number]

    def is_repeatable(self) -> bool:
        """Say whether the same run gives the same bits again."""
        return self.equal_until({}, brief=True) is not None

    def equal_until(self, changes: dict[str, Any], brief: bool, weights: bool = True) -> int | None:
        """Compare with the run with nothing changed: the environment step up to which all is equal; None: something differs.

        Args:
            changes: floats of the config.
            brief: only as far as every comparison goes.
            weights: compare the parameters too, not the curves alone.
        """
        return self.compare(self.rows(changes), brief, weights)

    def compare(self, rows: Iterable[Row], brief: bool, weights: bool) -> int | None:
        """Compare rows with those of the run with nothing changed, as `equal_until` does."""
        step = None
        for number, row in enumerate(itertools.islice(rows, 2 if brief else None)):
            base = self.base(number)
            if row.curve != base.curve or (weights and row.weights != base.weights):
                return None
            step = row.env_step
        return step


def _bytes(tree: PyTree) -> tuple[bytes, ...]:
    def raw(x: Any) -> bytes:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return tuple(raw(x) for x in jax.tree.leaves(tree))


def findings(
    programs: Programs, given: Iterable[str], trial: Trial | None, progress: Callable[[str], None]
) -> list[Finding]:
    """Look for fields without effect.

    Args:
        programs: of an agent with numbers, no tracers, in its config.
        given: fields that the user chose; one without effect there is worth a warning.
        trial: to compare curves with; None: only the program is read.
        progress: called with what is being done.
    """
    agent, given = programs.agent, set(given)
    inert, unknown = by_program(programs)
    told = [_inert_finding(programs, one, one.name in given, trial, progress) for one in inert]
    for name in unknown:
        told.append(
            Finding(
                "note",
                name,
                f"{name}={_shown(getattr(agent.config, name))} was not examined: no other legal value is known",
                "none",
                "",
            )
        )
    if trial is not None:
        names = {one.name for one in inert}
        for name in pytree.float_fields(type(agent.config)):
            if name not in names and _is_number(getattr(agent.config, name)):
                progress(f"comparing curves with {name} changed")
                told += _unseen(agent, name, trial)
    return told


def _inert_finding(
    programs: Programs, inert: Inert, given: bool, trial: Trial | None, progress: Callable[[str], None]
) -> Finding:
    agent, name, value = programs.agent, inert.name, getattr(programs.agent.config, inert.name)
    finding = f"{name}={_shown(value)} has no effect on the curve"
    if inert.reaches:
        finding += f"; it reaches only {', '.join(inert.reaches)}"
    if inert.enabled_by is not None:
        other_field, other_value = inert.enabled_by
        severity: Severity = "warning" if given else "note"
        with_head = "" if inert.head is None else f"head={inert.head} and "
        remedy = f"it takes effect with {with_head}{other_field}={_shown(other_value)}, for one; else leave it out"
    else:
        severity = "error"
        finding += ", nor where other fields are changed one at a time"
        remedy = f"look into {agent.algorithm.name} for the line that should use it"
    evidence = "by the program"
    if trial is not None and inert.other is not None:
        progress(f"confirming that {name} changes nothing")
        step = _confirmed(programs, inert, trial)
        evidence += (
            f"; confirmed: with {name}={_shown(inert.other)} equal curves, bit for bit, over {step:,} environment steps"
            if step is not None
            else f"; but the curve with {name}={_shown(inert.other)} differs, if only in low bits: please report this"
        )
    return Finding(severity, name, finding, evidence, remedy)


def _confirmed(programs: Programs, inert: Inert, trial: Trial) -> int | None:
    changes = {inert.name: inert.other}
    if inert.name not in programs.statics:
        return trial.equal_until(changes, brief=True, weights=False)
    return trial.compare(Trial(programs.agent.replace(**changes)).rows({}), brief=True, weights=False)


def _unseen(agent: Agent, name: str, trial: Trial) -> list[Finding]:
    """Say so where a field that the program needs changes neither curve nor weights, whatever it is changed to."""
    steps, others = [], alternatives(agent, name)
    for other in others:
        step = trial.equal_until({name: other}, brief=False)
        if step is None:
            return []
        steps.append(step)
    if not steps:
        return []
    total = agent.evaluation_steps[-1]
    whole = min(steps) >= total
    return [
        Finding(
            "note",
            name,
            f"{name}={_shown(getattr(agent.config, name))} changes neither curve nor weights in the first {min(steps):,} of"
            f" {total:,} environment steps",
            f"by equal curves with {name}={' and '.join(_shown(v) for v in others)}, bit for bit, of one seed"
            + ("" if whole else "; no proof: it may act later, and --steps looks further"),
            "look whether another field's value hides it, or what it waits for",
        )
    ]


def _is_number(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer) and not value.shape
    return isinstance(value, float) or is_array


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return f"{float(value):g}" if _is_number(value) else str(value).lower() if isinstance(value, bool) else str(value)
