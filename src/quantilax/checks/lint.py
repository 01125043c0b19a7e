"""Checks of a config before any run: misleading, contradictory or ineffective settings.

from quantilax.checks.lint import lint

for finding in lint(IQN.create(env="CartPole-v1")):
    print(finding.severity, finding.field, finding.finding, finding.evidence, finding.remedy)
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields

from quantilax import devices, pytree, switches, train
from quantilax.agent import Agent
from quantilax.checks import inert
from quantilax.checks.findings import SEVERITIES, Finding
from quantilax.checks.ranges import ranges

__all__ = ["Finding", "is_clean", "lint"]


@switches.standard()
@switches.unchecked()
def lint(
    agent: Agent,
    *,
    confirm: bool = True,
    steps: int = inert.STEPS,
    given: Iterable[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Return the findings on an agent's config, the gravest first.

    Args:
        agent: of any algorithm, including your own; the numbers in its config must be concrete.
        confirm: also run the first steps with changed fields and compare the curves. If false, only
            the program is read.
        steps: environment steps after the warm-up to compare before a field is said to change
            nothing; more steps take longer.
        given: fields that the user chose. If one has no effect, that is a warning. Of other fields
            only errors are told. None: the fields that differ from their defaults.
        progress: called with a line on what is being done.

    Raises:
        ConfigError: the states of the runs to compare exceed the machine's memory, or runs cannot
            be compiled here.
    """
    switches.check()
    trial = None
    found = [*_advice(agent), *ranges(agent)]
    if confirm:
        devices.check_memory(4, *agent.arguments())  # two runs, each with a state before and after a segment
        progress("compiling the first steps of the run")
        trial = inert.Trial(agent, steps)
        if not trial.is_repeatable():
            found.append(
                Finding(
                    "note",
                    "",
                    "two runs of the same config and seed differ here, so no curves were compared",
                    "by curves",
                    "",
                )
            )
            trial = None
    programs = inert.Programs(agent, progress)
    found += inert.findings(programs, set(_chosen(agent) if given is None else given), trial)
    if trial is not None:
        if inert.CURVE in programs.base.reaches.get("kappa", ()):
            found += _error_scale(agent, trial)
        found += _support(agent, trial)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def is_clean(findings: Iterable[Finding]) -> bool:
    """Return whether there is nothing but notes."""
    return all(finding.severity == "note" for finding in findings)


def _advice(agent: Agent) -> Iterator[Finding]:
    """Turn the advice of the loop and the algorithm on their own settings into findings."""
    names = agent.config.__dataclass_fields__
    for line in train.advice(agent.env, agent.config):
        finding, _, remedy = line.rpartition("; ")
        field = next((word for word in re.findall(r"(\w+)=", line) if word in names), "")
        yield Finding("warning", field, finding or remedy, "by arithmetic", remedy if finding else "")


def _chosen(agent: Agent) -> list[str]:
    """Fields that differ from their defaults."""
    plain = pytree.to_dict(agent.config)
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(agent.config)}
    return [name for name, value in plain.items() if value != defaults[name]]


def _error_scale(agent: Agent, trial: inert.Trial) -> Iterator[Finding]:
    """Compare kappa with the TD errors of the first steps."""
    (record, *_), kappa = trial.base(1), float(agent.config.kappa)
    if agent.algorithm.quantiles is None or record.metrics is None:
        return
    td_error = float(record.metrics.td_error)
    if not 0 < td_error < kappa / 100:
        return
    yield Finding(
        "note",
        "kappa",
        f"kappa={kappa:g} is over 100 times the mean TD error of {td_error:.2g}: the loss is a parabola everywhere,"
        " so it learns expectiles, not quantiles",
        f"measured over {int(record.env_step):,} environment steps of one seed",
        "lower kappa or change reward_scale",
    )


def _support(agent: Agent, trial: inert.Trial) -> Iterator[Finding]:
    """Compare a categorical support with the returns of the first evaluations."""
    for record, *_ in (trial.base(0), trial.base(1)):
        returns = train.returns_to_learn(agent.config, record)
        line = None if returns is None else train.uncovered(agent.config.support, returns)
        if line is not None:
            field, finding = line.split(": ", 1)
            finding, _, remedy = finding.rpartition("; ")
            yield Finding(
                "warning", field, finding, f"measured at environment step {int(record.env_step):,} of one seed", remedy
            )
            return
