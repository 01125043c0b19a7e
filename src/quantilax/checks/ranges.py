"""Fields and derived quantities outside of their usual range, by arithmetic alone.

docs/guides/lint.md gives the source of each range. A rule reads fields and derived quantities by
name; a name means the same in every algorithm. If a config does not have the name, the rule says
nothing. Advice that only one algorithm can give is in the `advice()` of its config.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from quantilax.agent import Agent
from quantilax.checks.findings import Finding, Severity

SAMPLES_PER_STEP = (1.0, 64.0)
TARGET_UPDATES = 5.0
"""Gradient steps; a target network that is faster than this is hardly one."""
TARGETS_PER_RUN = 10.0
"""Time constants of the target network that should fit into a run."""
EXPLORATION = 0.5
"""Share of the run."""
WARMUP = 0.2
"""Share of the run."""
EVAL_EPISODES = 10
LEARNING_RATE = 1e-2
TRAVEL = 0.5
"""Sum of all step sizes, which is about as far as Adam can move a weight."""
HORIZONS = (0.05, 10.0)
"""1 / (1 - gamma), divided by the longest episode."""


def ranges(agent: Agent) -> Iterator[Finding]:
    """Yield a finding for each quantity outside of its usual range or in conflict with another."""
    config, derived = agent.config, agent.config.derived()
    warmup, end = agent.evaluation_steps[0], agent.evaluation_steps[-1]
    yield from _replayed(config, derived, getattr(config, "usual_samples", SAMPLES_PER_STEP))
    yield from _target(config, derived, end - warmup)
    yield from _exploration(config, derived, warmup)
    yield from _loop(config, warmup)
    yield from _buffer(config, _number(agent.env.max_episode_steps))
    yield from _step_size(config, derived)
    yield from _horizon(_number(getattr(config, "gamma", None)), _number(agent.env.max_episode_steps))


def _told(severity: Severity, field: str, finding: str, remedy: str, **change: Any) -> Finding:
    return Finding(severity, field, finding, "by arithmetic", remedy, change or None)


def _up(value: float) -> float:
    """Round up to two digits."""
    digit = 10 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / digit - 1e-9) * digit:.2g}")


def _replayed(config: Any, derived: dict[str, Any], usual: tuple[float, float]) -> Iterator[Finding]:
    name, (low, high) = "samples_replayed_per_env_step", usual
    samples = derived.get(name)
    if samples is not None and not low <= samples <= high:
        many = samples > high
        change: dict[str, Any] = {}
        if many:
            change = {"num_epochs": max(1, math.floor(config.num_epochs * high / samples))}
        elif "batch_size" in config.__dataclass_fields__:
            change = {"batch_size": math.ceil(config.batch_size * low / samples)}
        yield _told(
            "warning",
            name,
            f"{samples:g} samples are replayed per environment step; {low:g} to {high:g} are usual",
            "fewer or smaller gradient steps per environment step"
            if many
            else "more or larger gradient steps per environment step",
            **change,
        )


def _target(config: Any, derived: dict[str, Any], learning_steps: int) -> Iterator[Finding]:
    name = "target_time_constant_env_steps"
    updates, steps = derived.get("target_time_constant_updates"), derived.get(name)
    if updates is None or steps is None or not learning_steps:
        return
    faster = _paced(config, config.gradient_steps / TARGETS_PER_RUN, math.floor)
    if steps >= learning_steps:
        yield _told(
            "error",
            name,
            f"the target stays near its initial weights: its time constant of {steps:,.0f} environment steps is at least the"
            f" {learning_steps:,} that the run learns for",
            "lower target_update_freq or polyak",
            **faster,
        )
    elif steps > learning_steps / TARGETS_PER_RUN:
        yield _told(
            "warning",
            name,
            f"the target is slow: its time constant of {steps:,.0f} environment steps fits {learning_steps / steps:.1f} times"
            f" into the {learning_steps:,} that the run learns for, and values propagate one step of the task in each",
            "lower target_update_freq or polyak",
            **faster,
        )
    if updates < TARGET_UPDATES:
        yield _told(
            "warning",
            "target_time_constant_updates",
            f"the target follows the online network within {updates:.3g} gradient steps, so it hardly stabilises learning",
            "raise target_update_freq or polyak",
            **_paced(config, TARGET_UPDATES, math.ceil),
        )


def _paced(config: Any, constant: float, rounded: Callable[[float], int]) -> dict[str, Any]:
    """Return the change that gives the target a time constant of so many gradient steps."""
    period = config.target_period
    if config.polyak > 0 and constant > period:
        return {"polyak": rounded(1e4 * (1 - period / constant)) / 1e4}
    freq = {"target_update_freq": max(1, rounded(config.target_update_freq * constant / period))}
    return freq | ({"polyak": 0.0} if config.polyak > 0 else {})


def _exploration(config: Any, derived: dict[str, Any], warmup: int) -> Iterator[Finding]:
    name = "epsilon_end_at_env_step"
    end = derived.get(name)
    if end is None or _number(getattr(config, "eps_start", None)) == _number(getattr(config, "eps_end", None)):
        return
    total = config.total_timesteps
    if total * EXPLORATION < end < total:  # the very end is reported by the algorithm
        yield _told(
            "warning",
            name,
            f"epsilon reaches eps_end at step {end:,} of {total:,}: less than half of the run is near the greedy policy",
            f"exploration_fraction of {EXPLORATION} or less",
            exploration_fraction=EXPLORATION,
        )
    if end <= warmup:
        yield _told(
            "warning",
            name,
            f"epsilon reaches eps_end at step {end:,}, within the warm-up of {warmup:,} steps: learning begins at eps_end, so"
            " the schedule has no effect",
            "a larger exploration_fraction or a shorter warm-up",
            **({"exploration_fraction": _up(2 * warmup / total)} if 0 < 2 * warmup < total else {}),
        )


def _loop(config: Any, warmup: int) -> Iterator[Finding]:
    episodes, total = config.eval_episodes, config.total_timesteps
    if episodes < EVAL_EPISODES:
        yield _told(
            "warning",
            "eval_episodes",
            f"each row of the curve is a mean over {episodes} episodes; such noise hides real falls and fakes others",
            f"eval_episodes of {EVAL_EPISODES} or more, 100 for a figure to report",
        )
    if total * WARMUP < warmup < total // config.steps_per_iteration * config.steps_per_iteration:
        yield _told(
            "warning",
            "warmup_steps",
            f"the warm-up takes {warmup:,} of {total:,} steps, {warmup / total:.0%} of the run",
            "a shorter warm-up (fill_buffer) or a longer run",
        )


def _buffer(config: Any, longest: float | None) -> Iterator[Finding]:
    size = getattr(config, "buffer_size", None)
    if size is None:
        return
    if longest is not None and size < longest * config.num_envs:
        yield _told(
            "warning",
            "buffer_size",
            f"the buffer of {size:,} transitions cannot hold one episode of the maximum length, {longest:,.0f} steps, of each"
            f" of num_envs={config.num_envs}",
            f"buffer_size of {longest * config.num_envs:,.0f} or more",
            **({"buffer_size": int(longest * config.num_envs)} if math.isfinite(longest) else {}),
        )
    elif size >= config.total_timesteps:
        yield _told(
            "note",
            "buffer_size",
            f"the buffer never drops a transition: it holds {size:,} transitions and the run makes {config.total_timesteps:,}",
            "none needed; a smaller buffer forgets early policies, which may help or harm (docs/stability.md)",
        )


def _step_size(config: Any, derived: dict[str, Any]) -> Iterator[Finding]:
    rate, steps = _number(getattr(config, "learning_rate", None)), derived.get("gradient_steps")
    if rate is None:
        return
    if rate == 0:
        finding = "learning_rate=0: nothing is learned"
        yield _told("error", "learning_rate", finding, "a learning_rate above 0", learning_rate=1e-3)
        return
    if rate > LEARNING_RATE:
        yield _told(
            "warning",
            "learning_rate",
            f"learning_rate={rate:g} is above {LEARNING_RATE:g}, larger than any known to work here",
            "1e-3 or less",
            learning_rate=LEARNING_RATE,
        )
    share = _number(getattr(config, "learning_rate_end", None))
    falling = _number(getattr(config, "learning_rate_fraction", None)) or 1.0
    mean = 1 if share is None else falling * (1 + share) / 2 + (1 - falling) * share
    travel = rate * mean * (steps or 0)
    if steps and travel < TRAVEL:
        yield _told(
            "warning",
            "learning_rate",
            f"learning_rate={rate:g} over {steps:,} gradient steps: a weight can move about {travel:.2g} in all, little"
            " compared with initial weights within +-1/sqrt(inputs)",
            "a larger learning_rate, more gradient steps or a longer run",
            **({"learning_rate": min(LEARNING_RATE, _up(rate * TRAVEL / travel))} if travel else {}),
        )


def _horizon(gamma: float | None, longest: float | None) -> Iterator[Finding]:
    if gamma is None:
        return
    if gamma >= 1:
        yield _told(
            "warning",
            "gamma",
            "gamma=1: where a time limit cuts an episode, the value bootstraps without end and has no bound",
            "gamma below 1",
            gamma=0.999,
        )
        return
    horizon = 1 / (1 - gamma)
    if longest is None or not math.isfinite(longest):
        return
    low, high = HORIZONS
    if horizon > high * longest:
        yield _told(
            "note",
            "gamma",
            f"gamma={gamma:g} looks {horizon:,.0f} steps ahead and no episode is longer than {longest:,.0f}: within an episode"
            " it hardly discounts",
            "none needed where episodes end by themselves; where a limit cuts them, values count steps that are never taken",
        )
    if horizon < low * longest:
        yield _told(
            "note",
            "gamma",
            f"gamma={gamma:g} looks {horizon:,.0f} steps ahead and episodes may take {longest:,.0f}: late rewards hardly"
            " count",
            "a larger gamma if rewards come late",
            gamma=math.floor(1e4 * (1 - 1 / (low * longest)) + 1) / 1e4,
        )


def _number(value: Any) -> float | None:
    """Return a concrete number as a float; None for anything else."""
    if value is None or isinstance(value, jax.core.Tracer) or np.size(value) != 1:
        return None
    return float(np.asarray(value).item())
