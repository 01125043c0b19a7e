"""Find hyperparameters without effect, by the program and by its curves; see docs/guides/lint.md.

By the program: a leaf does not reach the curve (lengths and returns), or all values of a static
field give the same program. By curves: the first steps stay the same, bit for bit.
"""

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from quantilax import heads, switches, train
from quantilax.agent import Agent
from quantilax.checks.dependence import dependence, fingerprint, value_hash
from quantilax.checks.findings import Finding, Severity

LOOP = ("total_timesteps", "eval_freq", "eval_episodes")  # how long to run: not examined
CURVE = "the curve"
TRIAL_STEPS = 256  # environment steps after the warm-up, in every comparison
STEPS = 1_000  # environment steps after the warm-up, before a field counts as without effect
TRIAL_EPISODES = 8
# On a CPU compiling takes longer than running the few steps.
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Program(NamedTuple):
    """What `train` does with a config."""

    reaches: dict[str, set[str]]
    """For each leaf of the config, the outputs that it may influence."""
    curve: tuple[bytes, set[str]]
    """A hash of what the curve needs, and the outputs measured beside it."""


def program(agent: Agent, every_output: bool = False) -> Program:
    """Trace `train` and analyse it, for every output or for the curve alone; compiles nothing."""
    algorithm, *inputs = *agent.arguments(), jax.random.key(0)
    run = partial(train.train, algorithm, eval_callback=agent.in_program_callback)
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(*inputs)
    outputs: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(shapes)[0]):
        outputs.setdefault(_output(path), []).append(i)
    groups = outputs if every_output else {CURVE: outputs[CURVE]}
    needs = dict(zip(groups, dependence(jaxpr, groups.values()), strict=True))
    reaches: dict[str, set[str]] = {}
    for i, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(inputs)[0]):
        if path[0].idx == 1:
            reaches.setdefault(path[1].name, set()).update(output for output in groups if i in needs[output])
    measured = {output for output in outputs if not output.endswith(" of the state")}
    return Program(reaches, (fingerprint(jaxpr, outputs[CURVE]), measured))


def _output(path: tuple[Any, ...]) -> str:
    """Return the name of an output of `train`."""
    names = [jax.tree_util.keystr((part,), simple=True) for part in path]
    if path[0].idx == 0:
        return f"{[*names, 'all'][1]} of the state"
    if names[1] in ("lengths", "returns"):
        return CURVE
    return f"the {names[1][:-1]} {names[2]}" if names[1] in ("metrics", "signals") and names[2:] else names[1]


def alternatives(agent: Agent, name: str) -> list[Any]:
    """Return other values of a field that its config accepts, in the order in which to try them."""
    return [value for value in candidates(agent, name) if _is_legal(agent, {name: value})]


def candidates(agent: Agent, name: str) -> list[Any]:
    """Return other values for a field's kind, legal or not; docs/guides/lint.md lists them."""
    value, metadata = getattr(agent.config, name), agent.config.__dataclass_fields__[name].metadata
    bounds, other = metadata.get("bounds", {}), metadata.get("choices") or ()
    if isinstance(value, bool):
        other = [not value]
    elif isinstance(value, int):
        other = [2 * value, value // 2, value + 1, value - 1]
    elif isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        other = [tuple(v + 1 for v in value), value + value[-1:], value[:-1]] if value else [(1,)]
    elif isinstance(value, tuple):
        other = [(value[0] / 2, *value[1:])] if value else []
    elif _is_number(value):
        value, low, high = float(value), bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        other = [value / 2, value / 1000, 2 * value] if value else [1.0, -1.0]
        if low is not None and high is not None and high - low <= 1:
            other = [value + (high - low) / 2, value - (high - low) / 2]
        elif np.isinf(value):
            other = [1e-3, 1.0]
    return [v for v in dict.fromkeys(other) if v != value]


class Programs:
    """The programs of an agent and of its variants, each traced once."""

    def __init__(self, agent: Agent, progress: Callable[[str], None]) -> None:
        """Trace the agent's own program."""
        self.agent, self.base, self.progress = agent, program(agent, every_output=True), progress
        self._known: dict[Any, Program | None] = {(): self.base}
        self.statics = [name for name in agent.config.__dataclass_fields__ if name not in self.base.reaches]

    def of(self, changes: dict[str, Any]) -> Program | None:
        """Return the agent's program with static fields changed; None if that fails."""
        key = tuple(sorted(changes.items()))
        if key not in self._known:
            self.progress(f"tracing with {', '.join(f'{k}={v}' for k, v in key)}")
            self._known[key] = None
            with suppress(Exception):  # of the config, or of a user's algorithm without checks
                self._known[key] = program(self.agent.replace(**changes))
        return self._known[key]

    def matters(self, name: str, value: Any, changes: dict[str, Any]) -> bool:
        """Return whether a field (a static one at `value`) affects the curve, given changes."""
        one, other = self.of(changes), self.of({**changes, name: value} if name in self.statics else changes)
        is_another = one is not None and other is not None and one.curve != other.curve
        return is_another if name in self.statics else one is not None and CURVE in one.reaches.get(name, ())

    def accepted(self, changes: dict[str, Any]) -> dict[str, Any] | None:
        """Return changes, with the fields at their defaults that the config refuses beside them."""
        if _is_legal(self.agent, changes):
            return changes
        config, fields = self.agent.config, self.agent.config.__dataclass_fields__
        others = (fields[name] for name in self.statics if name not in (*LOOP, *changes))
        reset = {field.name: field.default for field in others if getattr(config, field.name) != field.default}
        if not _is_legal(self.agent, {**changes, **reset}):
            return None
        for name in list(reset):
            fewer = {other: value for other, value in reset.items() if other != name}
            reset = fewer if _is_legal(self.agent, {**changes, **fewer}) else reset
        return {**changes, **reset}

    def variants(self, kinds: Any, changes: dict[str, Any], among: Collection[str]) -> Iterator[dict[str, Any]]:
        """Yield `changes` with one field of `among` of these kinds, then other values of texts."""
        for kind, first, last in ((kinds, 0, 1), (str, 1, None)):
            for name in among:
                if isinstance(getattr(self.agent.config, name), kind) and name not in (*LOOP, *changes):
                    variants = (self.accepted({**changes, name: value}) for value in candidates(self.agent, name))
                    yield from itertools.islice((one for one in variants if one and self.of(one)), first, last)

    def enabling(self, name: str, value: Any) -> dict[str, Any] | None:
        """Find a change, or another head and a change, with which a field matters; or None."""
        kinds = bool | str | tuple if name in self.statics else object
        others = alternatives(self.agent, "head") if "head" in self.statics else []
        own = [head for head in others if any(name in c.__dataclass_fields__ for c in heads.HEADS[head].configs)]  # type: ignore[attr-defined]
        group = next((own for own in map(inspect.get_annotations, type(self.agent.config).__mro__) if name in own), {})
        near, far = [one for one in self.statics if one in group], [one for one in self.statics if one not in group]
        tried: Any = self.variants(kinds, {}, near), ({"head": head} for head in own), self.variants(kinds, {}, far)
        tried = itertools.chain(*tried, *(self.variants(str, {"head": head}, self.statics) for head in own or others))
        return next((c for c in tried if name not in c and self.matters(name, value, c)), None)


class Trial:
    """The first steps of a run; one compiled program serves all values of float fields."""

    def __init__(self, agent: Agent, steps: int = STEPS) -> None:
        """Prepare a trial of so many steps after the warm-up; nothing is compiled yet."""
        self.agent, self.steps = agent.replace(eval_episodes=min(TRIAL_EPISODES, agent.config.eval_episodes)), steps
        options = QUICKLY_COMPILED if switches.platform() == "cpu" else None
        self._init = jax.jit(partial(train.init, agent.algorithm), compiler_options=options)
        self._segment = jax.jit(partial(train.segment, agent.algorithm), compiler_options=options)
        self._base, self._rows = self.rows({}), list[tuple[Any, ...]]()

    def rows(self, changes: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Yield (record, hashes of curve, of weights) of a run with float fields changed."""
        _, env, config = self.agent.replace(**changes).arguments()
        state = self._init(env, config, jax.random.key(0))
        for iterations in self.iterations():
            state, record = self._segment(env, config, state, np.int32(iterations))
            average = getattr(state, "average_params", None)  # the state of a user's algorithm may have none
            curve, weights = (record.lengths, record.returns), jax.tree.leaves((state.params, average))
            yield jax.device_get(record), *(list(map(value_hash, bits)) for bits in (curve, weights))

    def iterations(self) -> list[int]:
        """Return the iterations before each evaluation; runs that differ stop after the second."""
        per, left = self.agent.config.steps_per_iteration, sum(train.segment_iterations(self.agent.config))
        first = min(max(2, -(-TRIAL_STEPS // per)), left)
        last = max(first, min(-(-self.steps // per), left))
        doubled = itertools.takewhile(lambda end: end < last, (first << k for k in itertools.count()))
        return np.diff([0, first // 2, *doubled, last]).tolist()

    def base(self, number: int) -> tuple[Any, ...]:
        """Return a row of the unchanged run."""
        self._rows += itertools.islice(self._base, max(0, number + 1 - len(self._rows)))
        return self._rows[number]

    def is_repeatable(self) -> bool:
        """Return whether a repeated run gives the same bits."""
        return self.equal_until(self.rows({}), 2) is not None

    def equal_until(self, run: Iterable[Any], rows: int | None = None, weights: bool = True) -> int | None:
        """Return the step up to which a run equals the base, weights included if asked, or None."""
        step = None
        for number, row in enumerate(itertools.islice(run, rows)):
            if row[1 : 2 + weights] != self.base(number)[1 : 2 + weights]:
                return None
            step = int(row[0].env_step)
        return step


def findings(programs: Programs, given: Collection[str], trial: Trial | None) -> list[Finding]:
    """Find fields without effect: warnings for those in `given`, errors if nothing enables them."""
    agent, inert, unknown, unseen = programs.agent, list[Finding](), list[Finding](), list[Finding]()
    for name in (name for name in agent.config.__dataclass_fields__ if name not in LOOP):
        legal, is_static = alternatives(agent, name), name in programs.statics
        if any(programs.matters(name, value, {}) for value in legal or [None]):
            if trial is not None and name in given and legal and not is_static:
                programs.progress(f"comparing curves with {name} changed")
                unseen += _unseen(agent, name, trial)
            continue
        others = [value for value in legal if not is_static or programs.of({name: value}) is not None]
        if others or not is_static:
            inert += _inert(programs, name, others, name in given, trial)
        elif name in given and (legal or not candidates(agent, name)):  # otherwise the config refuses all other values
            finding = f"{name}={_shown(getattr(agent.config, name))} was not examined: no other legal value is known"
            unknown.append(Finding("note", name, finding, "none", ""))
    return [*inert, *unknown, *unseen]


def _inert(programs: Programs, name: str, others: list[Any], is_given: bool, trial: Trial | None) -> list[Finding]:
    """Make the finding on a field that the curve does not need, if it is worth telling."""
    agent, changes = programs.agent, {name: next(iter(others), None)}
    severity: Severity = "warning"
    enabled_by, reaches = programs.enabling(name, changes[name]), sorted(programs.base.reaches.get(name, ()))
    finding, evidence = f"{name}={_shown(getattr(agent.config, name))} has no effect on the curve", "by the program"
    finding += f"; it reaches only {', '.join(reaches)}" if reaches else ""
    is_without_use = enabled_by is None and name in getattr(agent.config, "without_use", ())
    if not is_given and (is_without_use or enabled_by is not None):
        return []
    if is_without_use:
        remedy = f"omit it: {agent.algorithm.name} trains without it"
    elif enabled_by is None:
        severity, finding = "error", f"{finding}, whatever other field is changed"
        remedy = f"check the line of {agent.algorithm.name} that should use it"
    else:
        fields = " and ".join(f"{field}={_shown(value)}" for field, value in enabled_by.items())
        remedy = f"takes effect with {fields}, for example; otherwise omit it"
    if trial is not None and others:
        programs.progress(f"confirming that {name} changes nothing")
        run = Trial(agent.replace(**changes)).rows({}) if name in programs.statics else trial.rows(changes)
        step, changed = trial.equal_until(run, 2, weights=False), f"with {name}={_shown(others[0])}"
        if step is None:
            evidence += f"; but the curve {changed} differs, if only in low bits: please report this"
        else:
            evidence += f"; confirmed: curves {changed} are equal, bit for bit, over {step:,} environment steps"
    return [Finding(severity, name, finding, evidence, remedy)]


def _unseen(agent: Agent, name: str, trial: Trial) -> list[Finding]:
    """Report a field that the program needs if no other value changes the curve or the weights."""
    others, total = alternatives(agent, name), agent.evaluation_steps[-1]
    ends = (trial.equal_until(trial.rows({name: other})) for other in others)
    equal: list[Any] = list(itertools.takewhile(lambda end: end is not None, ends))
    if len(equal) < len(others):
        return []
    until = min([total, *equal])
    value, values = _shown(getattr(agent.config, name)), " and ".join(_shown(value) for value in others)
    steps = f"the first {until:,} of {total:,} environment steps"
    proof = "" if until >= total else "; not a proof: it may act later; use --steps to look further"
    evidence = f"by equal curves with {name}={values}, bit for bit, of one seed{proof}"
    remedy = "check whether another field hides it or delays its effect"
    return [Finding("note", name, f"{name}={value} changes neither curve nor weights in {steps}", evidence, remedy)]


def _is_legal(agent: Agent, changes: dict[str, Any]) -> bool:
    try:
        agent.replace(**changes)
    except Exception:  # of the config, or of a user's algorithm without checks
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, float | np.ndarray | jax.Array) and not np.ndim(value)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return f"{float(value):g}" if _is_number(value) else str(value).lower() if isinstance(value, bool) else str(value)
