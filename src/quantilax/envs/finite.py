"""Small decision problems with finitely many outcomes, on which measures of risk disagree.

| name | what it shows |
|---|---|
| `risk/two_stage` | after a loss, static CVaR gambles; caution at each step does not |
| `risk/levels` | no single policy is optimal at all levels (after Godbout & Durand 2025) |
| `risk/gambler` | stakes fall with the level, and depend on what was won so far |
| `risk/inventory` | a shop orders goods against a random demand |
| `risk/windy_grid` | a path along a cliff, with wind, against safe detours with tolls |

All end after a few steps, so that the best policy for any measure can be computed exactly from
`outcomes`. Observations are one-hot, episodes begin in state 0. A problem of your own is a subclass
with `name`, `num_actions`, `max_episode_steps` and `outcomes`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from quantilax import pytree
from quantilax.types import Box, Discrete, TimeStep

END = -1
"""The successor of a last step."""


class Outcome(NamedTuple):
    """What may follow from an action in a state."""

    probability: float
    reward: float
    successor: int
    """A state, or `END`."""


class Tables(NamedTuple):
    """The outcomes of all states and actions; impossible ones have probability 0."""

    probability: Float[np.ndarray, "S A K"]
    reward: Float[np.ndarray, "S A K"]
    successor: Int[np.ndarray, "S A K"]


@pytree.dataclass
class Finite(ABC):
    """A problem given by its outcomes."""

    name: ClassVar[str]
    num_actions: ClassVar[int]
    max_episode_steps: ClassVar[int]

    @abstractmethod
    def outcomes(self) -> list[list[list[Outcome]]]:
        """Return the outcomes of each action in each state."""

    @property
    def tables(self) -> Tables:
        """The outcomes as arrays."""
        return _tables(self)

    @property
    def observation_space(self) -> Box:
        """The state, one-hot."""
        return Box((len(self.tables.probability),), low=0.0, high=1.0)

    @property
    def action_space(self) -> Discrete:
        """Numbered from 0."""
        return Discrete(self.num_actions)

    def reset(self, key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, "S"]]:
        """Begin an episode in state 0."""
        return jnp.zeros((), jnp.int32), jax.nn.one_hot(0, self.observation_space.shape[0])

    def step(
        self, key: Key[Array, ""], state: Int[Array, ""], action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], TimeStep]:
        """Draw an outcome."""
        probability, reward, successor = (jnp.asarray(table)[state, action] for table in self.tables)
        k = jnp.sum(jax.random.uniform(key) >= jnp.cumsum(probability)[:-1])
        state, ended = jnp.maximum(successor[k], 0), successor[k] == END
        size = self.observation_space.shape[0]
        told = TimeStep(
            obs=jax.nn.one_hot(state, size),  # state 0 after the end
            next_obs=jax.nn.one_hot(successor[k], size),  # zeros at the end
            reward=reward[k],
            terminated=ended,
            truncated=jnp.zeros((), bool),
        )
        return state, told


@functools.cache
def _tables(env: Finite) -> Tables:
    outcomes = env.outcomes()
    longest = max(len(found) for state in outcomes for found in state)
    shape = (len(outcomes), env.num_actions, longest)
    made = Tables(np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.full(shape, END, np.int32))
    for s, state in enumerate(outcomes):
        for a, found in enumerate(state):
            for k, outcome in enumerate(found):
                for table, value in zip(made, outcome, strict=True):
                    table[s, a, k] = value
    return made


@pytree.dataclass
class TwoStage(Finite):
    """First a loss or a gain, whatever is done; then nothing, or a gamble that pays on average.

    Actions of the second step: 0 takes the sure 0, 1 gambles for +6 or -2 with equal chances.
    """

    name = "risk/two_stage"
    num_actions = 2
    max_episode_steps = 2

    def outcomes(self) -> list[list[list[Outcome]]]:
        """Return the outcomes of each action in each state."""
        first = [Outcome(0.25, -4.0, 1), Outcome(0.75, 2.0, 2)]
        second = [[Outcome(1.0, 0.0, END)], [Outcome(0.5, -2.0, END), Outcome(0.5, 6.0, END)]]
        return [[first, first], second, second]


@pytree.dataclass
class Levels(Finite):
    """A choice among three gambles after a random start; which one is best depends on the level.

    Action 0 is sure, action 1 loses rarely, and action 2 loses often and gains most.
    """

    name = "risk/levels"
    num_actions = 3
    max_episode_steps = 2

    def outcomes(self) -> list[list[list[Outcome]]]:
        """Return the outcomes of each action in each state."""
        first = [Outcome(0.05, -4.0, 1), Outcome(0.2, 0.0, 2), Outcome(0.75, 2.0, 3)]
        sure = [Outcome(1.0, 0.0, END)]
        rare_loss = [Outcome(0.2, -2.0, END), Outcome(0.8, 1.0, END)]
        large_gain = [Outcome(0.3, -1.0, END), Outcome(0.7, 4.0, END)]
        return [[first] * 3, *[[sure, rare_loss, large_gain]] * 3]


@pytree.dataclass
class Gambler(Finite):
    """Four rounds of a favourable game, from a capital of 5 up to at most 10.

    Action i stakes i, or less where the capital or the limit of 10 allows less. A stake is won with
    probability 0.75.
    """

    name = "risk/gambler"
    num_actions = 4
    max_episode_steps = 4
    start: ClassVar[int] = 5
    limit: ClassVar[int] = 10
    chance: ClassVar[float] = 0.75

    def outcomes(self) -> list[list[list[Outcome]]]:
        """Return the outcomes of each action in each state."""

        def of(t: int, capital: int, action: int) -> Iterator[tuple[float, float, int]]:
            stake = min(action, capital, self.limit - capital)
            yield self.chance, stake, capital + stake
            yield 1 - self.chance, -stake, capital - stake

        return _timed(self, self.start, range(self.limit + 1), of)


@pytree.dataclass
class Inventory(Finite):
    """A shop orders goods for each of four weeks before the demand of the week is known.

    Action i orders i units, as far as there is room. A unit costs 2 and sells for 4, and keeping
    one to the next week costs 0.5. Goods left at the end are worth nothing.
    """

    name = "risk/inventory"
    num_actions = 5
    max_episode_steps = 4
    room: ClassVar[int] = 4
    demand: ClassVar[dict[int, float]] = {0: 0.4, 2: 0.4, 4: 0.2}

    def outcomes(self) -> list[list[list[Outcome]]]:
        """Return the outcomes of each action in each state."""

        def of(t: int, goods: int, action: int) -> Iterator[tuple[float, float, int]]:
            order = min(action, self.room - goods)
            for demand, probability in self.demand.items():
                sold = min(goods + order, demand)
                left = goods + order - sold
                yield probability, 4.0 * sold - 2.0 * order - 0.5 * left, left

        return _timed(self, 0, range(self.room + 1), of)


@pytree.dataclass
class WindyGrid(Finite):
    """A path of six steps along a cliff, with four lanes.

    Actions 0, 1 and 2 steer towards the cliff, straight on and away from it. Then wind carries one
    lane towards the cliff with probability 0.1. Beyond lane 0 is the cliff, where the path ends
    with -9. A step to lane i costs i, and the path begins on lane 1.
    """

    name = "risk/windy_grid"
    num_actions = 3
    max_episode_steps = 6
    lanes: ClassVar[int] = 4
    wind: ClassVar[float] = 0.1
    fall: ClassVar[float] = -9.0

    def outcomes(self) -> list[list[list[Outcome]]]:
        """Return the outcomes of each action in each state."""

        def of(t: int, lane: int, action: int) -> Iterator[tuple[float, float, int]]:
            for probability, carried in ((1 - self.wind, 0), (self.wind, 1)):
                to = min(lane + action - 1, self.lanes - 1) - carried
                yield (probability, self.fall, END) if to < 0 else (probability, -float(to), to)

        return _timed(self, 1, range(self.lanes), of)


def _timed(env: Finite, start: int, values: range, of: Any) -> list[list[list[Outcome]]]:
    """Return outcomes of a problem whose state is the time and a number.

    Args:
        env: the problem.
        start: the number at time 0, the only one there.
        values: the numbers at other times.
        of: (time, number, action) -> (probability, reward, next number or `END`) of each outcome.
    """
    states = [(0, start), *((t, x) for t in range(1, env.max_episode_steps) for x in values)]
    index = {state: i for i, state in enumerate(states)}

    def made(t: int, x: int, action: int) -> list[Outcome]:
        last = t + 1 == env.max_episode_steps
        return [
            Outcome(p, reward, END if last or following == END else index[t + 1, following])
            for p, reward, following in of(t, x, action)
        ]

    return [[made(t, x, action) for action in range(env.num_actions)] for t, x in states]


PROBLEMS: dict[str, type[Finite]] = {env.name: env for env in (TwoStage, Levels, Gambler, Inventory, WindyGrid)}
