"""Exact optima of small problems (`quantilax.envs.finite`): static, nested and distorted greedy CVaR.

Nothing here uses the library's learning code. Returns are sums over the tree of all outcomes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from quantilax.envs.finite import END, Finite

ROUNDED = 6
"""Decimals by which discounted sums are told apart."""


class Distribution(NamedTuple):
    """A distribution with finitely many atoms, in rising order."""

    atoms: np.ndarray
    probability: np.ndarray

    def cvar(self, level: float) -> float:
        below = np.cumsum(self.probability) - self.probability
        share = np.clip(level - below, 0, self.probability)
        return float(share @ self.atoms / level)

    @property
    def mean(self) -> float:
        return float(self.probability @ self.atoms)


def distribution(atoms: dict[float, float]) -> Distribution:
    order = sorted(atoms)
    return Distribution(np.array(order), np.array([atoms[x] for x in order]))


def outcomes(env: Finite, state: int, action: int) -> list[tuple[float, float, int]]:
    p, r, to = (table[state, action] for table in env.tables)
    return [(float(p[k]), float(r[k]), int(to[k])) for k in range(len(p)) if p[k] > 0]


Rule = Callable[[int, int, float], int]
"""(state, time, discounted rewards so far) -> action."""


def returns(env: Finite, gamma: float, rule: Rule) -> Distribution:
    """The distribution of the discounted return of a policy that remembers what it earned."""
    reached, ended, t = {(0, 0.0): 1.0}, {}, 0
    while reached:
        following: dict[Any, float] = {}
        for (state, earned), chance in reached.items():
            for p, r, to in outcomes(env, state, rule(state, t, earned)):
                total = round(earned + gamma**t * r, ROUNDED)
                if to == END:
                    ended[total] = ended.get(total, 0.0) + chance * p
                else:
                    following[to, total] = following.get((to, total), 0.0) + chance * p
        reached, t = following, t + 1
    return distribution(ended)


def nodes(env: Finite, gamma: float) -> list[tuple[int, int, float]]:
    """Every (state, time, discounted rewards so far) at which some policy acts."""
    found, reached, t = [], {(0, 0.0)}, 0
    while reached:
        found += [(state, t, earned) for state, earned in sorted(reached)]
        following = set()
        for state, earned in reached:
            for action in range(env.num_actions):
                for _, r, to in outcomes(env, state, action):
                    if to != END:
                        following.add((to, round(earned + gamma**t * r, ROUNDED)))
        reached, t = following, t + 1
    return found


def attainable(env: Finite, gamma: float) -> np.ndarray:
    """All returns that any policy may obtain."""
    reached, found, t = {(0, 0.0)}, set(), 0
    while reached:
        following = set()
        for state, earned in reached:
            for action in range(env.num_actions):
                for _, r, to in outcomes(env, state, action):
                    total = round(earned + gamma**t * r, ROUNDED)
                    if to == END:
                        found.add(total)
                    else:
                        following.add((to, total))
        reached, t = following, t + 1
    return np.array(sorted(found))


class Shortfall:
    """Policies that maximise `E min(return - b, 0)`, for many thresholds b at once, by dynamic programming."""

    def __init__(self, env: Finite, gamma: float, thresholds: np.ndarray) -> None:
        self.env, self.gamma, self.b = env, gamma, thresholds
        self.actions = cache(self._actions)

    def _actions(self, state: int, t: int, earned: float) -> tuple[np.ndarray, np.ndarray]:
        """Value and best action for each threshold."""
        values = np.zeros((self.env.num_actions, len(self.b)))
        for action in range(self.env.num_actions):
            for p, r, to in outcomes(self.env, state, action):
                total = round(earned + self.gamma**t * r, ROUNDED)
                after = np.minimum(total - self.b, 0) if to == END else self.actions(to, t + 1, total)[0]
                values[action] += p * after
        return values.max(axis=0), values.argmax(axis=0)


def thresholds(env: Finite, gamma: float, most: int = 10_000) -> np.ndarray:
    """Thresholds among which the best one is: all attainable returns, or so many evenly spaced ones."""
    found = attainable(env, gamma)
    return found if len(found) <= most else np.linspace(found[0], found[-1], most)


class Optimum(NamedTuple):
    """The largest static CVaR, the threshold that attains it, and a policy that does."""

    value: float
    threshold: float
    rule: Rule


def static_cvar(env: Finite, gamma: float, levels: tuple[float, ...]) -> dict[float, Optimum]:
    """max over all policies of CVaR_a = max_b b + max_policy E min(G - b, 0) / a."""
    b = thresholds(env, gamma)
    solved = Shortfall(env, gamma, b)
    value = solved.actions(0, 0, 0.0)[0]
    found = {}
    for level in levels:
        i = int(np.argmax(b + value / level))

        def rule(state: int, t: int, earned: float, i: int = i) -> int:
            return int(solved.actions(state, t, earned)[1][i])

        found[level] = Optimum(float(b[i] + value[i] / level), float(b[i]), rule)
    return found


def nested_cvar(env: Finite, gamma: float, level: float) -> np.ndarray:
    """rho(x, a) = CVaR_a[r + gamma max_a' rho(x', a')] of all states and actions."""

    @cache
    def rho(state: int, action: int) -> float:
        atoms: dict[float, float] = {}
        for p, r, to in outcomes(env, state, action):
            value = r + (0.0 if to == END else gamma * max(rho(to, a) for a in range(env.num_actions)))
            atoms[value] = atoms.get(value, 0.0) + p
        return distribution(atoms).cvar(level)

    shape = env.tables.probability.shape[:2]
    return np.array([[rho(s, a) for a in range(shape[1])] for s in range(shape[0])])


def mean_optimal(env: Finite, gamma: float) -> list[list[Distribution]]:
    """The distribution of the return of each action, followed by the policy of the largest mean."""

    @cache
    def Z(state: int, action: int) -> Distribution:
        atoms: dict[float, float] = {}
        for p, r, to in outcomes(env, state, action):
            if to == END:
                atoms[r] = atoms.get(r, 0.0) + p
                continue
            best = max((Z(to, a) for a in range(env.num_actions)), key=lambda z: round(z.mean, 9))
            for x, q in zip(*best, strict=True):
                total = round(r + gamma * x, ROUNDED)
                atoms[total] = atoms.get(total, 0.0) + p * q
        return distribution(atoms)

    shape = env.tables.probability.shape[:2]
    return [[Z(s, a) for a in range(shape[1])] for s in range(shape[0])]


def distorted_greedy(env: Finite, gamma: float, level: float) -> Rule:
    """The policy of `risk: cvar`: greedy at each step for the CVaR of the mean-optimal policy's return."""
    Z = mean_optimal(env, gamma)
    best = [int(np.argmax([round(z.cvar(level), 9) for z in state])) for state in Z]
    return lambda state, t, earned: best[state]
