"""The ring against a simulation in plain Python that keeps every episode whole."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import Transition, envs, replay
from quantilax.learning import rollout
from tests.hlo import copies_in_loops

GAMMA = 0.9


class Simulation:
    """Environments whose observations are numbered, each number once: what was seen when, in Python.

    `cut` and `terminated` are the chances that a step is truncated and that it terminates; both may happen.
    """

    def __init__(self, num_envs: int, terminated: float, cut: float, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.chances, self.number = (terminated, cut), 0
        self.obs = [self.new() for _ in range(num_envs)]
        self.steps: list[list[dict]] = [[] for _ in range(num_envs)]

    def new(self) -> int:
        self.number += 1
        return self.number

    def step(self) -> tuple[Transition, jax.Array]:
        batch, following = [], []
        for e, obs in enumerate(self.obs):
            terminated, cut = self.rng.random(2) < self.chances
            next_obs, action, reward = self.new(), int(self.rng.integers(100)), float(self.rng.normal())
            self.obs[e] = self.new() if terminated or cut else next_obs
            batch.append(
                dict(obs=obs, action=action, reward=reward, next_obs=next_obs, terminated=terminated, truncated=cut)
            )
            self.steps[e].append(batch[-1])
            following.append(self.obs[e])
        arrays = {k: np.array([step[k] for step in batch]) for k in batch[0]}
        obs, next_obs = observation(arrays.pop("obs")), observation(arrays.pop("next_obs"))
        reward = jnp.asarray(arrays.pop("reward"), jnp.float32)
        return Transition(obs, next_obs=next_obs, reward=reward, **jax.tree.map(jnp.asarray, arrays)), observation(
            following
        )

    def live(self, capacity: int, slots: int) -> list[tuple[int, int]]:
        """(iteration, environment) of each step that is still to be had, the newest first.

        An environment keeps the newest `slots` of its observations: that of each step, the successor of each step that was cut
        off, and the one to act on next. A step needs its own and its successor, and one that is lost takes all the older along.
        """
        found = []
        for i in reversed(range(len(self.steps[0]))):
            for e in reversed(range(len(self.steps))):
                cuts = sum(step["truncated"] and not step["terminated"] for step in self.steps[e][i:])
                since = len(self.steps[e]) - i + cuts  # observations stored after this step's own
                if len(found) == capacity or since >= slots:
                    return found
                found.append((i, e))
        return found

    def n_step(self, iteration: int, e: int, n: int) -> tuple:
        """What must be sampled: (obs, action, return, next_obs or None where it does not count, flags, steps)."""
        total = 0.0
        for m, step in enumerate(self.steps[e][iteration : iteration + n], start=1):
            total += GAMMA ** (m - 1) * step["reward"]
            if step["terminated"] or step["truncated"]:
                break
        first = self.steps[e][iteration]
        next_obs = None if step["terminated"] else step["next_obs"]
        return first["obs"], first["action"], total, next_obs, step["terminated"], step["truncated"], m


def observation(numbers) -> dict[str, jax.Array]:
    """A pytree that spells out a number: bytes, and floats of another shape."""
    numbers = np.asarray(numbers)
    digits = np.stack([numbers // 256, numbers % 256], axis=-1)
    return {"bytes": jnp.asarray(digits, jnp.uint8), "floats": jnp.asarray(numbers[..., None, None], jnp.float32)}


def number(obs: dict[str, jax.Array]) -> np.ndarray:
    digits, floats = np.asarray(obs["bytes"], int), np.asarray(obs["floats"])[..., 0, 0]
    assert_array_equal(digits[..., 0] * 256 + digits[..., 1], floats)
    return floats.astype(int)


added = jax.jit(replay.add, donate_argnums=0)
sampled = jax.jit(replay.sample, static_argnums=2)


class Play(NamedTuple):
    simulation: Simulation
    ring: replay.Ring

    @property
    def slots(self) -> int:
        return self.ring.observations["bytes"].shape[0]


def started(num_envs: int, capacity: int, n: int = 1, terminated: float = 0.1, cut: float = 0.02) -> Play:
    simulation = Simulation(num_envs, terminated, cut)
    example = jax.tree.map(lambda x: x[0], Simulation(1, 0, 0).step()[0])
    return Play(simulation, replay.init(example, observation(simulation.obs), capacity, n))


def played(play: Play, iterations: int) -> Play:
    ring = play.ring
    for _ in range(iterations):
        ring = added(ring, *play.simulation.step())
    return play._replace(ring=ring)


def identified(play: Play, key: int = 0, batch: int = 2048) -> list[tuple[int, int]]:
    """Sample, find each step by its observation, and check all the rest of it against the simulation."""
    n = play.ring.n_step
    got = jax.device_get(sampled(play.ring, jax.random.key(key), batch, GAMMA))
    where = {s["obs"]: (i, e) for e, steps in enumerate(play.simulation.steps) for i, s in enumerate(steps)}
    steps = []
    for obs, action, reward, next_obs, terminated, truncated, m in zip(
        number(got.obs),
        got.action,
        got.reward,
        number(got.next_obs),
        got.terminated,
        got.truncated,
        got.steps,
        strict=True,
    ):
        assert obs in where, "never written"
        steps.append(where[obs])
        expected = play.simulation.n_step(*steps[-1], n)
        assert (obs, action, terminated, truncated, m) == (*expected[:2], *expected[4:])
        assert reward == pytest.approx(expected[2], abs=1e-5)
        assert expected[3] in (None, next_obs)
    return steps


CASES = [
    # environments, capacity, n, chance that a step terminates, and that it is cut off
    (1, 40, 1, 0.1, 0.02),
    (3, 100, 1, 0.1, 0.02),  # 34 iterations, the oldest of which counts in part
    (3, 100, 3, 0.1, 0.05),
    (4, 90, 5, 0.05, 0.1),
    (2, 61, 3, 0.2, 0.5),
    (3, 50, 5, 0.0, 1.0),  # every step is cut off
    (3, 50, 5, 0.5, 1.0),  # every step is cut off, half of them terminate as well
    (5, 5, 1, 0.1, 1.0),  # the smallest there is
    (5, 15, 3, 0.1, 1.0),
    (2, 700, 3, 0.02, 0.02),  # blocks of offsets come round
]


@pytest.mark.parametrize(
    ("num_envs", "capacity", "n", "terminated", "cut"),
    [pytest.param(*case, marks=() if case in CASES[1:9:2] else pytest.mark.validation) for case in CASES],
)
def test_all_live_steps_and_no_others_are_sampled_each_with_its_true_return_and_successor(
    num_envs, capacity, n, terminated, cut
):
    play = played(started(num_envs, capacity, n, terminated, cut), n)
    for stage, iterations in enumerate((0, 1, 7, 50, capacity, 3 * capacity, 1)):
        play = played(play, iterations)
        live = play.simulation.live(capacity, play.slots)
        assert int(play.ring.size) == len(live) >= n * num_envs
        readable = {(i, e) for i, e in live if i + n <= len(play.simulation.steps[0])}
        batch = 20 * len(readable)  # misses one with a chance of e^-20
        assert set(identified(play, stage, batch)) == readable


@pytest.mark.parametrize("limit", [32, 100])
def test_time_limits_of_32_steps_or_more_cost_no_step(limit):
    capacity = 2000
    play = started(1, capacity, cut=0, terminated=0)
    transition, obs = play.simulation.step()

    def one(ring, t):
        ring = replay.add(ring, transition._replace(truncated=t[None] % limit == limit - 1), obs)
        return ring, ring.size

    _, sizes = jax.lax.scan(one, play.ring, jnp.arange(3 * capacity))
    assert_array_equal(sizes, np.minimum(np.arange(3 * capacity) + 1, capacity))


def test_where_more_is_cut_off_than_there_is_room_for_the_oldest_steps_go_and_come_back_later():
    play = played(started(2, 200, terminated=0, cut=1), 300)
    assert int(play.ring.size) == 2 * ((play.slots - 1) // 2)  # two slots each, and one to act on
    play.simulation.chances = (0.0, 0.0)
    assert int(played(play, 300).ring.size) == 200


@pytest.mark.parametrize("n", [1, 3])
def test_sampling_gives_each_step_the_same_chance(n):
    play = played(started(3, 20, n, cut=0), 50)
    readable = 20 - 3 * (n - 1)
    steps, counts = np.unique(identified(play, batch=1000 * readable), axis=0, return_counts=True)
    assert len(steps) == readable
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < {20: 43.8, 14: 34.5}[readable]  # 99.9% quantiles with 19 and 13 degrees of freedom


def test_n_steps_with_a_cut_inside_bootstrap_from_the_true_successor_with_the_discount_of_the_steps_taken():
    # Rewards 1, 2, 4, 8; the second step is cut off: R = 1 + .5 * 2 of two steps, then 2 of one, then 4 + .5 * 8 of two.
    def step(i: int) -> tuple[Transition, jax.Array]:
        cut = jnp.array([i == 1])
        obs, following = jnp.array([10.0 * i]), jnp.array([10.0 * (i + 1)])
        next_obs = jnp.where(cut, -1.0, following)
        return Transition(obs, jnp.array([i]), jnp.array([2.0**i]), next_obs, jnp.array([False]), cut), following

    ring = replay.init(jax.tree.map(lambda x: x[0], step(0)[0]), jnp.array([0.0]), 10, n_step=2)
    for i in range(4):
        ring = added(ring, *step(i))
    batch = sampled(ring, jax.random.key(0), 100, 0.5)
    rows = {int(a): row for a, *row in zip(batch.action, batch.reward, batch.next_obs, batch.steps, strict=True)}
    assert {a: [float(x) for x in row] for a, row in rows.items()} == {0: [2, -1, 2], 1: [2, -1, 1], 2: [8, 40, 2]}


def test_discounts_of_0_and_1_and_traced_ones_are_taken_as_they_are():
    play = played(started(1, 30, n=3, terminated=0, cut=0), 20)

    def first_and_all(gamma):
        return replay.sample(play.ring, jax.random.key(0), 8, gamma)

    batch = jax.vmap(first_and_all)(jnp.array([0.0, 1.0]))
    rewards = {
        s["obs"]: [x["reward"] for x in play.simulation.steps[0][i : i + 3]]
        for i, s in enumerate(play.simulation.steps[0])
    }
    expected = [rewards[obs] for obs in number(batch.obs)[0]]
    assert_allclose(batch.reward, [[x[0] for x in expected], [sum(x) for x in expected]], rtol=1e-5)


def stored(example: Transition, capacity: int) -> int:
    """Bytes of `capacity` steps with each observation once."""
    return capacity * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(example._replace(next_obs=None)))


FRAMES = Transition(
    obs=jax.ShapeDtypeStruct((10, 10, 4), jnp.uint8),
    action=jax.ShapeDtypeStruct((), jnp.int32),
    reward=jax.ShapeDtypeStruct((), jnp.float32),
    next_obs=jax.ShapeDtypeStruct((10, 10, 4), jnp.uint8),
    terminated=jax.ShapeDtypeStruct((), bool),
    truncated=jax.ShapeDtypeStruct((), bool),
)
EXAMPLES = {name: rollout.transition_spec(envs.make(name)) for name in ("CartPole-v1", "probe/bimodal")} | {
    "frames": FRAMES
}


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize(("num_envs", "capacity"), [(1, 1000), (10, 1000), (10, 100_000), (7, 12_345), (64, 1_000_000)])
def test_the_ring_takes_at_most_a_tenth_more_bytes_than_what_it_stores_in_its_own_dtypes(example, num_envs, capacity):
    example = EXAMPLES[example]
    obs = jax.ShapeDtypeStruct((num_envs, *example.obs.shape), example.obs.dtype)
    ring = jax.eval_shape(partial(replay.init, example, capacity=capacity), obs)
    assert ring.observations.dtype == example.obs.dtype
    for field in ("action", "reward", "terminated", "truncated"):
        assert getattr(ring.rows, field).dtype == getattr(example, field).dtype
    told = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(ring))
    assert stored(example, capacity) < told < 1.1 * stored(example, capacity)


ROWS, SLOTS = 3087, 3186
"""Of 12,345 steps of four environments: a quarter, rounded up; a 32nd, and three more."""


def loop(read_first: bool, ring: replay.Ring, key: jax.Array):
    def read(ring: replay.Ring, key: jax.Array) -> jax.Array:
        return replay.sample(ring, key, 8, GAMMA).next_obs.sum()

    def body(ring: replay.Ring, key: jax.Array):
        before = read(ring, key) if read_first else 0
        obs, flags = jax.random.normal(key, (4, 2)), jnp.array([False, True, False, True])
        step = Transition(obs, jnp.arange(4), obs[:, 0], obs + 1, flags, ~flags)
        ring = replay.add(ring, step, obs)
        return ring, before if read_first else read(ring, key)

    return jax.lax.scan(body, ring, jax.random.split(key, 10))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("seeds", [None, 3])
def test_writing_before_reading_copies_no_buffer_in_a_loop_and_reading_first_does(seeds, n):
    example = rollout.transition_spec(envs.make("probe/terminal"))

    def copies(read_first: bool, axis: int) -> int:
        run, key = partial(loop, read_first), jax.random.key(0)
        ring = replay.init(example, jnp.zeros((4, 2)), 12_345, n)
        assert (ring.rows.action.shape[0], ring.observations.shape[0]) == (ROWS, SLOTS)
        if seeds:
            run, key = jax.vmap(run), jax.random.split(key, seeds)
            ring = jax.tree.map(lambda x: jnp.stack([x] * seeds), ring)
        return copies_in_loops(jax.jit(run, donate_argnums=0).lower(ring, key).compile(), axis)

    for axis in (ROWS, SLOTS):
        assert copies(False, axis) == 0
        assert copies(True, axis) > 0  # so that the count above can fail


def test_whole_rings_come_back_from_their_written_parts_and_go_on_alike():
    plays = [played(started(2, 500, cut=cut), 300) for cut in (0.0, 0.2)]  # wrapped, with different cursors
    early = [played(started(2, 500, cut=cut), 30) for cut in (0.0, 0.2)]
    for one, two in (plays, early):
        rings = jax.tree.map(lambda *x: jnp.stack(x), one.ring, two.ring)
        part = replay.compact(rings)
        back = replay.expand(part, jax.eval_shape(lambda x: x, rings))
        assert jax.tree.structure(back) == jax.tree.structure(rings)
        jax.tree.map(assert_array_equal, back, rings)
    assert part.rows.action.shape == (2, 30, 2)
    assert part.observations["bytes"].shape == (2, int(early[1].ring.cursor.max()) + 1, 2, 2)
    again = played(early[1]._replace(ring=jax.tree.map(lambda x: jnp.asarray(x[1]), back)), 600)
    identified(again)
