"""The frontier of risk: what one agent obtains at several levels of CVaR.

| symbol | meaning |
|---|---|
| L, E | levels, episodes of each |
| a | a level: the share of worst episodes that counts |
| G | discounted return of an episode, of the rewards that learning receives |
| CVaR_a | mean of the worst share a of the G |

All levels use the weights of one training. An agent with `risk_objective: static_cvar` or
`spectral` begins an episode with the stock for the level. One that maximises the mean is greedy for
the CVaR of the returns that it learned, as with `risk: cvar`; see docs/risk.md.
"""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from quantilax import arguments, statistics, switches
from quantilax.agent import EVALUATION, Agent
from quantilax.algorithms import q_learning
from quantilax.errors import ConfigError
from quantilax.host import paths
from quantilax.learning import rollout
from quantilax.runs.loading import load_states
from quantilax.types import Algorithm, Environment, State, as_key

LEVELS = tuple(i / 20 for i in range(1, 21))
"""Levels of a frontier by default: 5 %, 10 %, ..., 100 %."""


class Point(NamedTuple):
    """What the policy for one level obtained, with 95% intervals over its episodes."""

    level: float
    """a."""
    mean: float
    """Mean of the discounted returns."""
    mean_low: float
    mean_high: float
    cvar: float
    """Their CVaR at the level."""
    cvar_low: float
    cvar_high: float
    score: float
    """Mean of the undiscounted returns that learning curves show."""


def frontier(
    agent: Agent, state: State, key: Key[Array, ""], levels: Sequence[float] = LEVELS, episodes: int = 1_000
) -> list[Point]:
    """Play episodes with the policy for each level of CVaR, in one program.

    The same random numbers are used at each level, so that differences between levels vary less.

    Args:
        agent, state: of one run of Q-learning, with head `quantile` or `implicit_quantile`.
        key: another key gives other episodes.
        levels: in (0, 1].
        episodes: E, of each level.

    Raises:
        ConfigError: a level is outside of (0, 1], the agent has no policy for a level, the state is
            that of several runs, or the number of episodes is below 2.
    """
    for level in levels:
        if not 0 < level <= 1:
            raise ConfigError(f"levels: must be > 0 and <= 1, got {level}")
    episodes = arguments.as_count("episodes", episodes)
    if episodes < 2 or not levels:
        raise ConfigError("episodes: an interval needs at least 2 episodes, and at least one level")
    if "risk_objective" not in {field.name for field in dataclasses.fields(agent.config)}:
        raise ConfigError(
            f"{agent.algorithm.name}: has no policy for a level of risk; train iqn, qrdqn, or q_learning with one of"
            " their heads"
        )
    given = *agent.arguments(), arguments.one_state(state), as_key(key)
    G, scores = (np.asarray(x, np.float64).T for x in _play(*given, jnp.array(levels), episodes))  # (E, L)
    values = _measures(G[None], np.array(levels))[0]  # (2, L)
    low, high = statistics.interval(
        partial(_measures, levels=np.array(levels)), G, resamples=statistics.QUICK_RESAMPLES
    )
    columns = values[0], low[0], high[0], values[1], low[1], high[1], scores.mean(axis=0)
    return [Point(float(level), *map(float, row)) for level, *row in zip(levels, *columns, strict=True)]


def _measures(G: Float[np.ndarray, "B E L"], levels: Float[np.ndarray, "L"]) -> Float[np.ndarray, "B 2 L"]:
    """Return the mean and the CVaR at each level."""
    cvars = [statistics.cvar(G[..., i], level, axis=1) for i, level in enumerate(levels)]
    return np.stack([G.mean(axis=1), np.stack(cvars, axis=-1)], axis=1)


@switches.checked
@partial(jax.jit, static_argnums=(0, 6))
@switches.standard()
def _play(
    algorithm: Algorithm,
    env: Environment,
    config: Any,
    state: State,
    key: Key[Array, ""],
    levels: Float[Array, "L"],
    episodes: int,
) -> tuple[Float[Array, "L E"], Float[Array, "L E"]]:
    key = jax.random.fold_in(key, EVALUATION)

    def of_level(level: Float[Array, ""]) -> tuple[Float[Array, "E"], Float[Array, "E"]]:
        policy = q_learning.policy_at(env, config, state, level)
        played = rollout.watch(env, policy, key, episodes, config.gamma)
        return played.discounted, played.returns

    # One after another. On a CPU, all levels at once need three times as long, for lack of cache.
    return jax.lax.map(of_level, levels)


def of_run(
    path: Path | str,
    checkpoint: str | int = "last",
    *,
    levels: Sequence[float] = LEVELS,
    episodes: int = 1_000,
    seed: int = 0,
    env: Any = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[int, list[Point]]:
    """Return the frontier of each of a run's seeds.

    Args:
        path, checkpoint, env: as for `quantilax.load`.
        levels, episodes: as for `frontier`.
        seed: of the episodes.
        tell: called with a line before each seed of the run.

    Raises:
        ConfigError, CheckpointError: as for `quantilax.load` and `frontier`.
    """
    agent, states, seeds, _ = load_states(paths.check(path, "run"), checkpoint, env)
    found = {}
    for i, number in enumerate(seeds):
        tell(f"seed {number}: {episodes:,} episodes at each of {len(levels)} levels")
        state = jax.tree.map(lambda x, i=i: x[i], states)
        found[number] = frontier(agent, state, jax.random.key(seed), levels, episodes)
    return found


def write(found: dict[int, list[Point]], table: Path) -> None:
    """Write frontiers by seed as CSV: a row per seed and level."""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", *Point._fields))
        writer.writerows((seed, *point) for seed, points in found.items() for point in points)


def draw(found: dict[int, list[Point]], picture: Path, title: str) -> None:
    """Draw mean and CVaR over the level, and the mean over the CVaR, for each seed.

    Args:
        found: frontiers by seed.
        picture: the file to write; its suffix gives the format.
        title: title of the picture.
    """
    from matplotlib.figure import Figure  # slow (half a second): imported only if needed

    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, points in enumerate(found.values()):
        column = {name: np.array([getattr(point, name) for point in points]) for name in Point._fields}
        for name, color, label in (("mean", "C0", "mean"), ("cvar", "C1", "CVaR at the level")):
            left.plot(column["level"], column[name], color=color, label=label if number == 0 else None)
            ends = column[f"{name}_low"], column[f"{name}_high"]
            left.fill_between(column["level"], *ends, color=color, alpha=0.18, linewidth=0)
        right.plot(column["cvar"], column["mean"], color="0.7", linewidth=1, zorder=1)
        dots = right.scatter(column["cvar"], column["mean"], c=column["level"], cmap="viridis", s=18, vmin=0, vmax=1)
    left.set(xlabel="level", ylabel="discounted return")
    left.legend(fontsize=8)
    right.set(xlabel="CVaR at the level", ylabel="mean")
    figure.colorbar(dots, ax=right, label="level")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(picture)
