"""Diagnosis: name the likely causes of what went wrong in a run, from the signals in its files.

A cause is named if its figure leaves the range of healthy runs by more than the margin of its rule
(`quantilax.checks.rules`). Causes that explain others come first. If no cause is named, figures
that are outside by less become hints. If no cause is named and the run failed, a study that would
decide is proposed.

Every range comes from runs, and every rule was validated on other runs than those that set it:
docs/diagnosis.md.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from quantilax.agent import Agent
from quantilax.checks import figures, rules
from quantilax.checks.figures import SMALL, Config, Row, has_signals
from quantilax.checks.findings import Finding
from quantilax.checks.rules import RULES, Healthy, Range, Ranges, Rule
from quantilax.errors import ConfigError


class Outcome(NamedTuple):
    """How a run went, judged by its mean returns."""

    word: str
    """`learned`, `fell` (and did not come back), `fell and came back`, `did not learn`, or `broke`
    (its numbers are not finite)."""
    first: float
    best: float
    last: float
    fall: int | None
    """Environment step of the first evaluation that is broken, or that lies more than half of the
    way back down from the best return so far to the first one."""


class Evidence(NamedTuple):
    """A figure that supports a cause."""

    quantity: str
    median: float
    low: float
    high: float
    """`low` and `high` are the smallest and the largest median of healthy runs."""
    since: int | None
    """Environment step from which on the figure is outside its range; None if it is not, or only
    for a while."""


class Cause(NamedTuple):
    """A cause that is named, or a hint."""

    cause: str
    says: str
    score: float
    """Decades beyond the healthy limit."""
    evidence: tuple[Evidence, ...]
    """Measured figures; the first is the one that named the cause."""
    config: dict[str, Any]
    """The fields to look at with their values in the run; these are read, not measured."""
    change: dict[str, Any]
    """The smallest change worth trying."""
    remark: str
    lint: str = ""
    """What `quantilax lint` finds about these fields. If `evidence` is empty, this alone names the
    cause."""


class Diagnosis(NamedTuple):
    """The diagnosis of one seed."""

    seed: int
    outcome: Outcome
    causes: tuple[Cause, ...]
    near: tuple[Cause, ...]
    """Hints, not findings: if no cause is named, those whose figure is outside its healthy range by
    less than their rule's margin. The farthest outside comes first."""
    study: dict[str, Any] | None
    """Variants to try, in the form of a study's file, if the run failed and no cause is named."""
    unranged: dict[str, float]
    """Medians of the figures that no cause was judged by: their ranges were not measured for this
    kind of loop."""
    unjudged: tuple[str, ...] = ()
    """Causes that this run could not have shown, and why."""
    healthy: str = ""
    """The healthy runs of the section itself by whose ranges it was judged; empty if there are
    none."""


def diagnose(
    run: pl.DataFrame,
    config: Config,
    findings: Iterable[Finding] = (),
    own: Healthy | None = None,
) -> list[Diagnosis]:
    """Name the causes in the evaluations of a run, for each of its seeds.

    Args:
        run: rows as in `evaluations.parquet`; of a study, the rows of one variant. Without the
            columns of the signals only `sparse_reward` is judged.
        config: the section that was run, with every field.
        findings: what `quantilax lint` finds in the config. Warnings and errors with a change that
            mends them are causes as well.
        own: healthy runs of the same section. Their ranges pass over those of `healthy.csv`, and
            causes with a field in which the run differs from them come first.

    Raises:
        ConfigError: there are too few evaluations.
    """
    wrong = [one for one in findings if one.change and one.severity != "note"]
    found = []
    for (seed,), rows in run.sort("seed", "env_step").group_by("seed", maintain_order=True):
        if rows.height < MIN_ROWS:
            raise ConfigError(
                f"has {rows.height} evaluations, but a diagnosis needs {MIN_ROWS} or more; lower eval_freq, or wait"
            )
        found.append(_diagnose(int(seed), rows, config, wrong, own or Healthy("", {}, {})))
    return found


MIN_ROWS = 4
OWN_MARGIN = 0.3
"""Decades beyond the range of a section's own healthy runs above which a cause is named: a factor
of two."""


CURVES_ONLY = (
    "signals were not measured, so sparse_reward is the only cause that was judged by figures; train again with"
    " signals=true to judge the others"
)


def _diagnose(seed: int, run: pl.DataFrame, config: Config, findings: list[Finding], own: Healthy) -> Diagnosis:
    outcome, rows = judge(run), figures.quantities(run, config)
    medians = figures.medians(rows)
    known = {name for name, median in medians.items() if not math.isnan(median)}
    ranges = {**rules.ranges(run), **own.ranges}
    judged = [rule for rule in RULES if rule.quantity in (own.ranges if rule.is_own else ranges)]
    scores = {rule: rules.score(rule, medians[rule.quantity], ranges) for rule in judged}
    unranged = {r.quantity: medians[r.quantity] for r in RULES if not (r.is_own or own.ranges or r.quantity in ranges)}
    margins = {rule: OWN_MARGIN if rule.quantity in own.ranges and not rule.is_own else rule.margin for rule in judged}
    out = [rule for rule in judged if scores[rule] > margins[rule]]
    above = list({rule.cause: rule for rule in sorted(out, key=lambda rule: scores[rule])}.values())
    outside = [rule for rule in judged if not above and scores[rule] > 0]

    def cause(rule: Rule) -> Cause:
        back = {field: own.changed[field] for field in rule.fields if field in own.changed}
        return Cause(
            rule.cause,
            rule.says,
            scores[rule],
            tuple(evidence(name, rows, medians, ranges) for name in (rule.quantity, *rule.beside) if name in known),
            {field: config[field] for field in rule.fields if field in config},
            back or {k: v for k, v in rule.change(config, medians, ranges).items() if k in config},
            rule.remark,
            "; ".join(one.finding for one in findings if set(rule.fields) & set(one.change or {})),
        )

    def order(rule: Rule) -> tuple[Any, ...]:
        return not {*own.changed} & {*rule.fields}, _depth(rule, above), -scores[rule]

    measured = tuple(map(cause, sorted(above, key=order)))
    told = {field for rule in above for field in rule.fields}
    linted = tuple(_linted(one, config) for one in findings if not told & set(one.change or {}))
    near = tuple(map(cause, sorted(outside, key=lambda rule: -scores[rule])))
    failed = outcome.word in ("fell", "did not learn", "broke")
    first = [*(one.change for one in linted), *({field: value} for field, value in own.changed.items())]
    study = None if measured or not failed else proposal(config, medians, scores, ranges, first)
    unjudged = () if unranged or own.ranges or measured or linted else tuple(_unjudged(rows, medians))
    unjudged = unjudged if has_signals(run) else (CURVES_ONLY,)
    unranged = {name: median for name, median in unranged.items() if name in known}
    return Diagnosis(
        seed, outcome, (*measured, *linted), near, study, unranged, unjudged, own.of if has_signals(run) else ""
    )


def _linted(finding: Finding, config: Config) -> Cause:
    """Return the cause that a finding of `quantilax lint` names."""
    change = finding.change or {}
    fields = {field: config[field] for field in change if field in config}
    return Cause(next(iter(change)), finding.finding, 0.0, (), fields, change, finding.remedy, finding.finding)


def _unjudged(rows: pl.DataFrame, medians: Row) -> Iterator[str]:
    """Say which rules could not have named a cause with this batch and so few evaluations."""
    (noise,) = (rule for rule in RULES if rule.cause == "noise")
    most = medians["noise_to_signal_most"]
    if math.isfinite(medians[noise.quantity]) and rules.score(noise, most, rules.healthy()) <= noise.margin:
        yield (
            f"noise cannot be judged with this batch and {rows.height} evaluations: {noise.quantity} could be {most:.3g}"
            " at most, too little to name it"
        )


def _depth(rule: Rule, named: list[Rule]) -> int:
    """Length of the longest chain of named causes that explains this one."""
    return max((1 + _depth(other, named) for other in named if rule.cause in other.explains), default=0)


def judge(run: pl.DataFrame) -> Outcome:
    """Judge how a run went."""
    returns = run["return_mean"].to_numpy()
    is_sound = np.isfinite(returns)
    if "finite" in run.columns:
        is_sound &= run["finite"].to_numpy().astype(bool)
    if not is_sound.all():
        sound = returns[is_sound] if is_sound.any() else np.array([math.nan])
        at = int(run["env_step"][int(np.argmin(is_sound))])
        return Outcome("broke", float(sound[0]), float(sound.max()), float(sound[-1]), at)
    spread = float(run["return_std"][0] or 0.0)
    first, best, last = (float(x) for x in (returns[0], returns.max(), returns[-1]))
    if best - first <= max(2 * spread, 0.05 * abs(first), SMALL) or best == first:
        return Outcome("did not learn", first, best, last, None)
    peaks = np.maximum.accumulate(returns)
    counts = peaks - first > (best - first) / 2
    falls = np.flatnonzero(counts & (returns < (first + peaks) / 2))
    if not len(falls):
        return Outcome("learned", first, best, last, None)
    fall = int(run["env_step"][int(falls[0])])
    return Outcome("fell" if last < (first + best) / 2 else "fell and came back", first, best, last, fall)


def evidence(name: str, rows: pl.DataFrame, medians: Row, ranges: Ranges) -> Evidence:
    """Compare a figure with its healthy range.

    `since` is the first step that is outside, if most of the evaluations from there on are outside.
    """
    low, high = ranges.get(name, Range(math.nan, math.nan))
    values = rows[name].to_numpy().astype(float)
    outside = (values < low) | (values > high)
    since = None
    for i in range(len(values)):
        if outside[i] and outside[i:].mean() >= MOST:
            since = int(rows["env_step"][i])
            break
    return Evidence(name, medians[name], low, high, since)


MOST = 0.75
"""Share of the evaluations from a step on that must be outside for `Evidence.since` to be that
step."""


def proposal(
    config: Config,
    medians: Row,
    scores: Mapping[Rule, float],
    ranges: Ranges,
    first: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return the variants of a study that would decide: changes for the likeliest causes.

    These are the changes in `first` (what lint advises, and the values of a section that is known
    to be healthy), and then those for the causes with the highest scores. A change of one field is
    tried as `one_at_a_time`, a change of several fields as `named`, under the name of its cause. A
    figure that was not measured proposes nothing. If room is left, the learning rate is varied.
    """
    measured = [rule for rule, score in scores.items() if math.isfinite(score)]
    alone: dict[str, list[Any]] = {}
    together: dict[str, dict[str, Any]] = {}
    for change in first:
        if len(change) == 1:
            alone |= {field: [value] for field, value in change.items()}
        else:
            together[next(iter(change))] = change
    for rule in sorted(measured, key=lambda rule: -scores[rule]):
        change = {k: v for k, v in rule.change(config, medians, ranges).items() if k in config and config[k] != v}
        if sum(map(len, alone.values())) + len(together) >= PROPOSED:
            break
        if len(change) > 1:
            together[rule.cause] = change
        for field, value in change.items() if len(change) == 1 else ():
            if value not in alone.setdefault(field, []):
                alone[field].append(value)
    room = PROPOSED - sum(map(len, alone.values())) - len(together)
    if "learning_rate" not in alone and room > 0:
        alone["learning_rate"] = [float(f"{config['learning_rate'] * x:.1g}") for x in (0.1, 3.0)][:room]
    return ({"one_at_a_time": alone} if alone else {}) | ({"named": together} if together else {})


PROPOSED = 4
"""Variants in a proposed study; with ten seeds each it stays small."""


def diagnose_run(path: Path, band: Path | None = None) -> list[Diagnosis]:
    """Diagnose the run in a directory, from its files alone.

    Args:
        path: the run's directory.
        band: the config file beside which the band of the run's section lies; None: look among
            those that come with quantilax.

    Raises:
        ConfigError: not a run directory, too few evaluations, or no ranges beside `band`.
    """
    from quantilax.host.files import read_parquet
    from quantilax.runs import RunDirectory, load_section
    from quantilax.studies.definition import plain

    RunDirectory.open(path)
    section = load_section(path / "config.yaml")
    try:
        run = read_parquet(path / "evaluations.parquet")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path / 'evaluations.parquet'}: cannot be read ({str(error).splitlines()[0]})") from None
    return _of(path, run, section.hyperparameters, _findings(section.create), _healthy(plain(section), run, band))


def _healthy(section: Config, run: pl.DataFrame, band: Path | None) -> Healthy | None:
    """Return what is known of healthy runs of the section.

    Raises:
        ConfigError: nothing, though the config file beside which to look was named.
    """
    from quantilax.checks import bands

    found = bands.healthy(section, int(run["env_step"].max() or 0), band)  # type: ignore[arg-type]
    if found is None and band is not None:
        raise ConfigError(
            f"{bands.path_of(band)}: has no ranges of signals for this run; make them with quantilax band, from a study"
            " with signals: true, or leave out --band"
        )
    return found


def diagnose_study(path: Path, band: Path | None = None) -> dict[str, list[Diagnosis]]:
    """Diagnose every finished run of a study, by variant; `band` as for `diagnose_run`.

    If some variants have signals, those without are left out.

    Raises:
        ConfigError: not a study's directory, no finished runs yet, too few evaluations, or no
            ranges beside `band`.
    """
    from quantilax.runs.configs import select
    from quantilax.studies.store import Store, with_defaults

    store = Store.open(path)
    records = store.records()
    if not records.height:
        raise ConfigError(f"{path}: has no finished run yet; continue with quantilax study --resume")
    variants = store.facts["variants"]
    parts = {str(variant): rows for (variant,), rows in records.group_by("variant", maintain_order=True)}
    measured = {variant: rows for variant, rows in parts.items() if has_signals(rows)}

    def diagnosed(variant: str, rows: pl.DataFrame) -> list[Diagnosis]:
        fields = with_defaults(variants[variant])
        findings = _findings(lambda: select({variant: fields}, path, variant).create())
        return _of(path, rows, fields, findings, _healthy(fields, rows, band))

    return {variant: diagnosed(variant, rows) for variant, rows in (measured or parts).items()}


def _findings(create: Callable[[], Agent]) -> list[Finding]:
    """Return what lint finds by arithmetic in an agent; nothing if it cannot be created here."""
    from quantilax.checks.ranges import ranges

    try:
        with warnings.catch_warnings(action="ignore"):  # `train` showed them
            return list(ranges(create()))
    except ConfigError:
        return []


def can_diagnose(records: pl.DataFrame) -> bool:
    """Return whether these evaluations have signals, and enough rows."""
    if not has_signals(records):
        return False
    return bool((records.group_by("variant", "seed").len()["len"] >= MIN_ROWS).all())


def summary(found: Mapping[str, list[Diagnosis]]) -> pl.DataFrame:
    """Summarise diagnoses in a table: one row per variant and first cause, most frequent first.

    The columns are the seeds, how they went, the evidence, and the change worth trying. The
    evidence is the figure that named the cause: the smallest and the largest median of those seeds,
    and the healthy range.
    """
    rows: list[dict[str, str]] = []
    for variant, seeds in found.items():
        groups: dict[str, list[Diagnosis]] = {}
        for one in seeds:
            groups.setdefault(one.causes[0].cause if one.causes else "", []).append(one)
        for cause, those in sorted(groups.items(), key=lambda group: -len(group[1])):
            words = [one.outcome.word for one in those]
            counts = sorted({word: words.count(word) for word in words}.items(), key=lambda x: -x[1])
            rows.append(
                {
                    "variant": variant,
                    "named first": cause or "no cause",
                    "seeds": f"{len(those)} of {len(seeds)}",
                    "how they went": ", ".join(f"{count} {word}" for word, count in counts),
                    "evidence": _span(those) if cause else "",
                    "try": _try(those[0].causes[0]) if cause else "",
                }
            )
    return pl.DataFrame(rows)


def _span(those: list[Diagnosis]) -> str:
    if not those[0].causes[0].evidence:
        return f"lint: {those[0].causes[0].lint}"
    shown = [one.causes[0].evidence[0] for one in those]
    medians = [e.median for e in shown]
    own = f"{min(medians):.3g}" + (f" to {max(medians):.3g}" if len(medians) > 1 else "")
    return f"{shown[0].quantity} {own}; in healthy runs {shown[0].low:.3g} to {shown[0].high:.3g}"


def _try(cause: Cause) -> str:
    return " ".join(_assignments(cause.change)) or cause.remark


def _assignments(fields: Mapping[str, Any]) -> list[str]:
    """FIELD=VALUE as the command line takes it."""
    return [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in fields.items()]


def _of(path: Path, run: pl.DataFrame, config: Config, findings: list[Finding], own: Healthy | None) -> list[Diagnosis]:
    try:
        return diagnose(run, config, findings, own)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def told(found: list[Diagnosis]) -> list[str]:
    """Lines for people to read: each seed, then all seeds together."""
    lines: list[str] = []
    for one in found:
        judged = [f"  judged by the ranges of {one.healthy}"] if one.healthy else []
        lines += [f"seed {one.seed}: {_outcome(one.outcome)}", *judged, *(f"  {line}" for line in _causes(one))]
    if len(found) > 1:
        lines.append("in total: " + "; ".join(sums(found)))
    return lines


def sums(found: list[Diagnosis]) -> list[str]:
    """Say how many seeds have each first cause, most frequent first."""
    first = [one.causes[0].cause if one.causes else "none" for one in found]
    counts = sorted({cause: first.count(cause) for cause in first}.items(), key=lambda x: -x[1])
    words = {"none": "no cause"}
    return [f"{words.get(cause, cause)} named first in {n} of {len(found)} seeds" for cause, n in counts]


def as_json(one: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain values; NaN becomes null."""

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return {name: plain(x) for name, x in value._asdict().items()}
        if isinstance(value, tuple | list):
            return [plain(x) for x in value]
        if isinstance(value, dict):
            return {name: plain(x) for name, x in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    made: dict[str, Any] = plain(one)
    return made


def _outcome(outcome: Outcome) -> str:
    figures = f"return {outcome.first:.4g} before training, {outcome.best:.4g} at best, {outcome.last:.4g} at the end"
    return f"{outcome.word}{'' if outcome.fall is None else f' (at step {outcome.fall:,})'}: {figures}"


def _causes(one: Diagnosis) -> list[str]:
    lines: list[str] = []
    for number, cause in enumerate(one.causes, 1):
        lines.append(f"{number}. {cause.cause}: {cause.says}")
        lines += [f"   {_evidence(e, one.outcome.fall)}" for e in cause.evidence]
        if cause.config:
            lines.append("   read from the config: " + ", ".join(_assignments(cause.config)))
        if cause.lint:
            lines.append(f"   lint: {cause.lint if cause.evidence else 'by arithmetic, without a measurement'}")
        lines.append(f"   try: {_try(cause)}")
    if one.near:
        lines.append("no cause is measured; outside the healthy range, but by too little to name one:")
        for cause in one.near:
            lines += [f"- {cause.cause}: {_evidence(cause.evidence[0], one.outcome.fall)}", f"   try: {_try(cause)}"]
    elif one.unranged and not one.causes:
        lines.append(f"neither of the causes that can be judged here is seen: {_names(rules.ANYWHERE)}")
    elif not one.causes and CURVES_ONLY not in one.unjudged:
        lines.append("every figure that the rules read is within its healthy range")
    if one.unranged:
        read = ", ".join(f"{name} {median:.3g}" for name, median in one.unranged.items())
        lines.append(f"figures without ranges, which were measured in Q-learning only: {read}")
    lines += one.unjudged
    if one.study:
        variants = yaml.safe_dump(one.study, default_flow_style=True, sort_keys=False, width=10_000).strip()
        lines.append(f"the evidence is inconclusive; a study that would decide: variants: {variants}, seeds: 10")
    return lines


def _names(quantities: Iterable[str]) -> str:
    return ", ".join(rule.cause for rule in RULES if rule.quantity in quantities)


def _evidence(e: Evidence, fall: int | None) -> str:
    text = f"{e.quantity} {e.median:.3g}"
    if not math.isnan(e.low):
        text += f", in healthy runs {e.low:.3g} to {e.high:.3g}"
    if e.since is not None:
        text += f"; outside from step {e.since:,} on"
        if fall is not None:
            text += f", {fall - e.since:,} steps before the fall" if e.since <= fall else ", after the fall"
    return text
