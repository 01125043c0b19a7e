"""How well learned distributions predict the returns of held-out episodes.

| symbol | here | meaning |
|---|---|---|
| x, G | `Sampled` | a visited state, and the return that followed |
| Z_tau | `Z` | learned quantiles at the levels tau = 1/M, 2/M, ..., (M - 1)/M |
| F | | the learned distribution function |
| u | `u` | F(G), the probability integral transform (PIT); uniform if G has the distribution F |
| w | `weight` | number of visited states that a state stands for |

- **Coverage** at level c is the share of u in [(1 - c)/2, (1 + c)/2]: how often the central
  interval holds the return.
- **Below** tau is the share of u <= tau, which should be tau.
- **CRPS** is `integral (F(z) - 1{G <= z})^2 dz`, which is `2 integral rho_tau(G - Z_tau) dtau` with
  the quantile loss rho. It is in the returns' units, and 0 for a certain and true prediction. The
  *reference* is the CRPS of one distribution for all states: that of the returns themselves.

If a learned quantile equals G, u is drawn uniformly between F just below G and F(G), so that u is
uniform for distributions with atoms too. A network never meets an atom exactly, so differences
count as none below a tolerance: 5 % of the standard deviation of Z at the state, and at least 0.1 %
of the root mean square of all returns.

Returns of one episode depend on each other, so intervals resample episodes, or whole seeds if there
are several.

Sources: Dawid (1984) and Gneiting, Balabdaoui & Raftery (2007) on PIT; Gneiting & Raftery (2007) on
CRPS; Kuleshov, Fenner & Ermon (2018), https://arxiv.org/abs/1807.00263, on recalibration.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import arguments
from quantilax.agent import Agent
from quantilax.errors import ConfigError
from quantilax.fractions import GRID, Recalibration
from quantilax.host import paths
from quantilax.learning import rollout
from quantilax.returns import episodes
from quantilax.returns.episodes import STATES, TAIL, Sampled
from quantilax.runs import loading, recalibration
from quantilax.runs.directory import RunDirectory
from quantilax.statistics import ratio_interval, ratios
from quantilax.types import State, as_key

TAUS = GRID
M = len(TAUS) + 1
LEVELS = (0.5, 0.8, 0.95)
"""Levels of coverage, by default."""
MAX_LEVEL = 1 - 2 / M
BINS = 10
"""Number of bins of the PIT histogram."""
BELOW = tuple(np.arange(1, 20) / 20)
"""The tau at which shares below are measured."""
PERIODS = 4
"""Parts of an episode, with equally many visited states each."""
OUTSIDE = 5
"""Expected number of episodes outside of an interval, below which its coverage is not measured."""
KNOTS = 101
"""L, the number of levels of a recalibration."""
SHARE_OF_SPREAD, SHARE_OF_SIZE = 0.05, 1e-3
"""Differences up to these shares count as none: of the standard deviation of Z, and of the root
mean square of all returns. The larger of the two limits holds."""
BLOCK = 2**22
"""Upper bound on the quantiles that are held at a time."""
SMALL = 0.01
"""CRPS as a share of the returns' root mean square, below which `verdict` calls errors small."""
TOLERATED = 0.02
"""Deviation of a share that `verdict` does not report."""
FIT = 0x464954
"""Folded into a key for the episodes that a recalibration is fitted to."""


class Measured(NamedTuple):
    """Numbers with the ends of their 95% intervals; NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Part(NamedTuple):
    """What was measured at a set of states."""

    name: str
    states: int
    """Number of states kept."""
    coverage: Measured
    """(levels,)"""
    pit: Measured
    """(BINS,) shares of u in equal bins from 0 to 1."""
    below: Measured
    """(19,) shares of returns below the learned quantiles at `BELOW`."""
    crps: Measured
    """()"""
    reference: float
    """CRPS of the distribution of all returns of the part; NaN for a single episode."""
    size: float
    """Root mean square of the returns."""
    beyond: Measured
    """() share of returns outside of all learned quantiles, from 1/M to 1 - 1/M."""
    levels: np.ndarray
    """(levels,)"""

    @property
    def coverage_error(self) -> float:
        """Largest difference between a level and its coverage."""
        return float(np.abs(self.coverage.value - self.levels).max())


class Compared(NamedTuple):
    """Returns beside their predictions, for the states of one seed."""

    u: np.ndarray
    """(E, K)"""
    crps: np.ndarray
    """(E, K)"""
    excess: np.ndarray
    """(E, K) how far the return lies outside of all quantiles, below them (negative) or above, in
    standard deviations of Z; 0 inside."""
    returns: np.ndarray
    """(E, K)"""
    weight: np.ndarray
    """(E, K)"""
    time: np.ndarray
    """(E, K)"""


class Calibrated(NamedTuple):
    """What `calibrate` found for one state of training."""

    raw: Compared
    recalibrated: Compared | None
    recalibration: Recalibration | None
    """Fitted to other episodes."""
    left_out: float
    """Share of the visited states that a time limit leaves out."""


class Spread(NamedTuple):
    """Standard deviations at first states, in the environment's units."""

    within: float
    """Of the learned returns of one seed: chance within an episode (aleatoric)."""
    between: float
    """Of the learned means of different seeds: what training does not determine (epistemic)."""


class CalibratedRun(NamedTuple):
    """What `calibrate_run` found."""

    env_step: int
    """Environment steps of the checkpoint."""
    seeds: list[int]
    parts: dict[tuple[str, str], list[Part]]
    """(seed or `all`, `raw` or `recalibrated`) -> first states, all states, periods."""
    spread: Spread | None
    """None for a single seed."""
    left_out: float
    conversions: list[str]
    """What was converted before comparing."""
    caveats: list[str]
    """What was not converted."""
    file: Path | None
    """The recalibration that was written."""

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per number, for tables."""
        return [
            {"seed": seed, "distribution": distribution, "states": part.name, **row}
            for (seed, distribution), parts in self.parts.items()
            for part in parts
            for row in _rows(part)
        ]


def calibrate(
    agent: Agent,
    state: State,
    key: Any,
    episodes: int = 1_000,
    *,
    states: int = STATES,
    tail: float = TAIL,
    recalibrate: bool = False,
) -> Calibrated:
    """Compare learned returns with those of held-out episodes; `parts_of` summarises the result.

    Args:
        agent, state: of one run.
        key: another key gives other episodes; see `Agent.evaluate`.
        episodes: number of episodes; as many more are played to fit a recalibration.
        states: number of states of each episode, see `quantilax.returns.episodes.sample`.
        tail: largest weight of what would follow a time limit.
        recalibrate: fit a recalibration, and compare with it too.

    Raises:
        ConfigError: as `quantilax.returns.episodes.sample`.
    """
    key = as_key(key)
    found = _sampled(agent, state, key, episodes, states, tail)
    raw = _compared(agent, state, found)
    if not recalibrate:
        return Calibrated(raw, None, None, float(found.left_out))
    others = _sampled(agent, state, jax.random.fold_in(key, FIT), episodes, states, tail)
    fitted = fit(_compared(agent, state, others))
    corrected = dataclasses.replace(agent, recalibration=fitted)
    after = _compared(corrected, state, found, calibrated=True)
    return Calibrated(raw, after, fitted, float(found.left_out))


def calibrate_run(
    path: Path | str,
    checkpoint: str | int = "last",
    *,
    episodes: int = 1_000,
    seed: int = 0,
    levels: Sequence[float] = LEVELS,
    states: int = STATES,
    tail: float = TAIL,
    recalibrate: bool = False,
    env: Any = None,
) -> CalibratedRun:
    """Compare the learned returns of each of a run's seeds with those of held-out episodes.

    Args:
        path, checkpoint, env: as for `quantilax.load`.
        episodes: number per seed.
        seed: seed of the episodes, which differ for each seed of the run.
        levels: of coverage, above 0 and at most 0.99.
        states, tail: as for `calibrate`.
        recalibrate: fit a recalibration to as many more episodes, compare with it too, and store it
            beside the checkpoint, where `quantilax.load` finds it.

    Raises:
        ConfigError: as for `quantilax.load` and `calibrate`, a level is out of range, the episodes
            are too few for a level, or the recalibration cannot be written.
        CheckpointError: as for `quantilax.load`.
    """
    check(levels, episodes)
    directory = RunDirectory.open(paths.check(path, "run"))
    agent, all_states, seeds, env_step = loading.load_states(directory.path, checkpoint, env)
    each = [jax.tree.map(lambda x, i=i: x[i], all_states) for i in range(len(seeds))]
    key = jax.random.key(seed)
    found = [
        calibrate(agent, one, fold, episodes, states=states, tail=tail, recalibrate=recalibrate)
        for one, fold in zip(each, (jax.random.fold_in(key, number) for number in seeds), strict=True)
    ]
    parts = {}
    for distribution in ("raw", "recalibrated") if recalibrate else ("raw",):
        compared = [getattr(one, distribution) for one in found]
        periods = periods_of(compared)
        for number, one in zip(seeds, compared, strict=True):
            parts[str(number), distribution] = parts_of([one], levels, periods)
        if len(seeds) > 1:
            parts["all", distribution] = parts_of(compared, levels, periods)
    file = None
    if recalibrate:
        fitted = {n: one.recalibration for n, one in zip(seeds, found, strict=True) if one.recalibration is not None}
        with directory.lock():
            file = recalibration.write(directory.checkpoints, env_step, fitted, episodes)
    spread = None if len(seeds) == 1 else spread_of(np.stack([_at_first(agent, one, key, episodes) for one in each]))
    left_out = float(np.mean([one.left_out for one in found]))
    told = conversions(agent), caveats(agent)
    return CalibratedRun(env_step, seeds, parts, spread, left_out, *told, file)


def check(levels: Sequence[float], episodes: int) -> None:
    """Raise `ConfigError` for levels out of range, or too few episodes to measure coverage."""
    arguments.as_count("episodes", episodes)
    if not levels:
        raise ConfigError("levels: expected at least one level of coverage, such as 0.8")
    for level in levels:
        if not 0 < level <= MAX_LEVEL:
            raise ConfigError(f"levels: expected levels of coverage above 0 and at most {MAX_LEVEL:g}, got {level:g}")
    needed = int(np.ceil(round(OUTSIDE / (1 - max(levels)), 6)))
    if episodes < needed:
        raise ConfigError(
            f"episodes: {episodes} are too few for coverage at {max(levels):.3g}: fewer than {OUTSIDE} are expected outside"
            f" of the interval; play {needed} or more, or lower the levels"
        )


def compare(
    Z: np.ndarray,
    returns: np.ndarray,
    weight: np.ndarray,
    time: np.ndarray,
    *,
    share: float = SHARE_OF_SPREAD,
    least: float | None = None,
    seed: int = 0,
) -> Compared:
    """Compare returns with quantiles.

    Args:
        Z: (E, K, M - 1) quantiles at 1/M, ..., (M - 1)/M.
        returns, weight, time: (E, K), as in `Sampled`.
        share: differences that count as none, as a share of the standard deviation of Z.
        least: smallest difference that counts; None: a share `SHARE_OF_SIZE` of the returns' root
            mean square.
        seed: of the draws for quantiles that equal returns.
    """
    G, rng = np.asarray(returns, np.float64), np.random.default_rng(seed)
    smallest = SHARE_OF_SIZE * _size(G, weight) if least is None else least
    tolerance = np.maximum(share * Z.std(axis=-1), smallest)
    n = Z.shape[-1] + 1
    lower = ((G - tolerance)[..., None] > Z).sum(axis=-1)
    upper = ((G + tolerance)[..., None] >= Z).sum(axis=-1)
    u = (lower + rng.random(G.shape) * (upper - lower + 1)) / n
    delta, taus = G[..., None] - Z, np.arange(1, n) / n
    crps = 2 / n * np.where(delta > 0, taus * delta, (taus - 1) * delta).sum(axis=-1)
    scale = np.maximum(Z.std(axis=-1), smallest)
    scale = np.where(scale > 0, scale, 1.0)  # all returns are 0
    excess = np.where(upper == 0, G - Z[..., 0], np.where(lower == n - 1, G - Z[..., -1], 0.0)) / scale
    return Compared(u, crps, excess, G, weight, time)


def fit(compared: Compared) -> Recalibration:
    """Fit a recalibration to the returns of some episodes.

    The level for tau is the tau-quantile of u, weighted. Its inverse, the distribution function of
    u, is the isotonic regression of Kuleshov et al.: it is monotone by construction. It is mixed
    with the identity by one part in the number of episodes, so that levels stay apart. Where the
    tau-quantile is a return outside of all learned quantiles, its excess stands in for a level.
    """
    kept, n = compared.weight > 0, len(compared.u)
    u, excess, w = compared.u[kept], compared.excess[kept], compared.weight[kept]
    order = np.where(excess < 0, excess, np.where(excess > 0, 1 + excess, u))  # below, within, above
    taus = np.linspace(0, 1, KNOTS)
    at = np.quantile(order, taus, weights=w, method="inverted_cdf")
    levels = np.clip((n * np.clip(at, 0, 1) + taus) / (n + 1), TAUS[0], TAUS[-1])
    beyond = np.minimum(at, 0) + np.maximum(at - 1, 0)
    return Recalibration(
        jnp.asarray(levels), jnp.asarray(beyond), SHARE_OF_SIZE * _size(compared.returns, compared.weight)
    )


def periods_of(compared: Sequence[Compared]) -> list[tuple[int, int]]:
    """Divide the times of visited states into up to four periods with equally many states.

    Returns:
        The first and the last time of each; nothing if all episodes end after a step.
    """
    time, weight = (np.concatenate([getattr(one, name).ravel() for one in compared]) for name in ("time", "weight"))
    time, weight = time[weight > 0], weight[weight > 0]
    if time.max() == 0:
        return []
    inner = np.quantile(time, np.arange(1, PERIODS) / PERIODS, weights=weight, method="inverted_cdf")
    ends = np.unique([*inner, time.max()]).astype(int)
    return list(zip([0, *(ends[:-1] + 1)], ends, strict=True))


def parts_of(
    compared: Sequence[Compared], levels: Sequence[float] = LEVELS, periods: Sequence[tuple[int, int]] = ()
) -> list[Part]:
    """Measure first states, all states and periods, for one seed or for several together."""
    chosen = {"first": lambda time: time == 0, "all": lambda time: time >= 0}
    for low, high in periods:
        chosen[str(low) if low == high else f"{low}-{high}"] = lambda time, low=low, high=high: (
            (time >= low) & (time <= high)
        )  # type: ignore[misc]
    return [_part(name, compared, np.asarray(levels, float), where) for name, where in chosen.items()]


def _part(name: str, compared: Sequence[Compared], levels: np.ndarray, where: Any) -> Part:
    weights = [one.weight * where(one.time) * (one.weight > 0) for one in compared]
    per_seed = np.stack([_sums(one, w, levels) for one, w in zip(compared, weights, strict=True)])  # (S, E, Q + 1)
    units = per_seed[0] if len(compared) == 1 else per_seed.sum(axis=1)

    value, (low, high) = ratios(units.sum(axis=0)), ratio_interval(units[units[:, -1] > 0])
    ends = np.cumsum([len(levels), BINS, len(BELOW), 1])
    split = zip(*(np.split(x, ends) for x in (value, low, high)), strict=True)
    coverage, pit, below, crps, beyond = (Measured(*x) for x in split)
    G = np.concatenate([one.returns.ravel() for one in compared])
    w = np.concatenate([x.ravel() for x in weights])
    return Part(
        name,
        int((w > 0).sum()),
        coverage,
        pit,
        below,
        Measured(*(x[0] for x in crps)),
        reference_crps(G[w > 0], w[w > 0]),
        _size(G, w),
        Measured(*(x[0] for x in beyond)),
        levels,
    )


def _sums(one: Compared, weight: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the weighted sums of all quantities over the states of each episode, (E, Q + 1)."""
    u = one.u[..., None]
    low = (1 - levels) / 2
    quantities = [
        (u >= low) & (u <= 1 - low),
        np.clip(np.floor(u * BINS), 0, BINS - 1) == np.arange(BINS),
        u <= np.asarray(BELOW),
        one.crps[..., None],
        one.excess[..., None] != 0,
        np.ones_like(u),
    ]
    return (weight[..., None] * np.concatenate(quantities, axis=-1)).sum(axis=1)


def reference_crps(returns: np.ndarray, weight: np.ndarray) -> float:
    """Return the CRPS of the returns' own distribution: half the mean difference of two returns.

    NaN if there is only one.
    """
    order = np.argsort(returns)
    g, w = returns[order], weight[order]
    below, total = np.cumsum(w) - w, w.sum()
    pairs = total**2 - (w**2).sum()
    if pairs <= 0:
        return float("nan")
    mean = (w * below * g).sum() - (w * (total - below - w) * g).sum()
    return float(mean / pairs)


def spread_of(Z: np.ndarray) -> Spread:
    """Return the spread within and between seeds.

    Args:
        Z: (S, E, M - 1), quantiles of S seeds at the same E states.
    """
    within, between = Z.var(axis=-1).mean(), Z.mean(axis=-1).var(axis=0, ddof=1).mean()
    return Spread(float(np.sqrt(within)), float(np.sqrt(between)))


def verdict(part: Part) -> list[str]:
    """Return a line for each way in which the distribution is wrong beyond chance, if any.

    A deviation counts if its interval excludes the right number, and if it exceeds 2 points.
    """
    lines = []
    error = part.coverage.value - part.levels
    sure = (part.coverage.low > part.levels) | (part.coverage.high < part.levels)
    if (sure & (np.abs(error) > TOLERATED)).any():
        i = int(np.argmax(np.where(sure, np.abs(error), 0)))
        value, low, high = (x[i] for x in part.coverage)
        kind = "wide" if value > part.levels[i] else "narrow"
        lines.append(
            f"too {kind}: {part.levels[i]:.0%} intervals hold {value:.0%} of the returns ({low:.0%} to {high:.0%})"
        )
    middle = BELOW.index(0.5)
    value, low, high = (x[middle] for x in part.below)
    if abs(value - 0.5) > TOLERATED and not low <= 0.5 <= high:
        kind = "high" if value > 0.5 else "low"
        lines.append(f"too {kind}: {value:.0%} of the returns are below the median ({low:.0%} to {high:.0%})")
    if part.beyond.value > TOLERATED + 2 / M:
        lines.append(f"{part.beyond.value:.0%} of the returns lie outside of all quantiles")
    if lines and part.crps.value < SMALL * part.size:
        lines.append(f"all of this is small: the CRPS is {part.crps.value / part.size:.1%} of the size of the returns")
    return lines


def conversions(agent: Agent) -> list[str]:
    """Return a line for each thing that is converted before returns are compared."""
    config = agent.config
    lines = [f"gamma={config.gamma:g}: returns are discounted, as the learned ones"]
    if getattr(config, "reward_scale", 1.0) != 1:
        lines.append(f"reward_scale={config.reward_scale:g}: undone")
    if getattr(config, "normalize_rewards", False):
        lines.append("normalize_rewards: undone by the std at the checkpoint; it moved during training")
    if rollout.transition_spec(agent.env).raw_reward is not None:
        lines.append("wrappers: returns are of the rewards as learning receives them, not of the score")
    if not config.bootstrap_truncated:
        lines.append("bootstrap_truncated=false: returns end at the time limit, as the learned ones")
    return lines


def caveats(agent: Agent) -> list[str]:
    """Return a line for each way in which learned returns differ from those that are compared."""
    told = getattr(agent.config, "caveats", None)
    lines = list(told()) if told is not None else []
    support = getattr(agent.config, "support", None)
    if support is not None:
        low, high = (float(end) for end in support)
        lines.append(f"v_min, v_max: learned returns cannot leave {low:g} to {high:g}, in learned units")
    return lines


def _sampled(agent: Agent, state: State, key: Any, number: int, states: int, tail: float) -> Sampled:
    found: Sampled = jax.device_get(episodes.sample(agent, state, key, number, states, tail))
    return found


def _at_first(agent: Agent, state: State, key: Any, number: int) -> np.ndarray:
    """Return Z at first states, which are the same for the same key, (E, M - 1)."""
    obs, action = episodes.first(agent, state, key, number)
    return np.asarray(episodes.predicted(agent, state, obs, action, jnp.asarray(TAUS)), np.float64)


def _compared(agent: Agent, state: State, found: Sampled, calibrated: bool = False) -> Compared:
    """Compare in blocks of episodes, so that memory does not grow with the quantiles of all."""
    returns, weight, time = (np.asarray(x) for x in (found.returns, found.weight, found.time))
    number, states = returns.shape
    block, parts = max(1, BLOCK // (states * len(TAUS))), []
    for start in range(0, number, block):
        rows = slice(start, start + block)
        of_rows = found.obs[rows], found.action[rows], jnp.asarray(TAUS)
        Z = np.asarray(episodes.predicted(agent, state, *of_rows, calibrated))
        least = SHARE_OF_SIZE * _size(returns, weight)
        parts.append(compare(Z, returns[rows], weight[rows], time[rows], least=least, seed=start))
    return Compared(*map(np.concatenate, zip(*parts, strict=True)))


def _size(returns: np.ndarray, weight: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt((weight * np.square(returns, dtype=np.float64)).sum() / weight.sum()))


def _rows(part: Part) -> list[dict[str, Any]]:
    bins = (np.arange(BINS) + 0.5) / BINS
    tables = {
        "coverage": (part.levels, part.levels, part.coverage),
        "pit": (bins, np.full(BINS, 1 / BINS), part.pit),
        "below": (np.asarray(BELOW), np.asarray(BELOW), part.below),
    }
    rows = [
        {
            "quantity": quantity,
            "at": float(at),
            "expected": float(e),
            "value": float(v),
            "low": float(lo),
            "high": float(hi),
        }
        for quantity, (points, expected, measured) in tables.items()
        for at, e, v, lo, hi in zip(points, expected, *measured, strict=True)
    ]
    for quantity, measured in (("crps", part.crps), ("beyond", part.beyond)):
        v, lo, hi = map(float, measured)
        rows.append({"quantity": quantity, "at": None, "expected": None, "value": v, "low": lo, "high": hi})
    alone = {"quantity": "reference_crps", "at": None, "expected": None, "low": None, "high": None}
    return [*rows, {**alone, "value": part.reference}]
