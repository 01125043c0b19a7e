"""Many simulators that step together, found by handles.

To JAX an environment is a pure function of its state, and the state of one is the seed of its
episode and the actions taken since. A live simulator is only a cache of that state. Each state
names the simulator that should stand where the state says. If it does not stand there, because the
process is another one, because the simulator was needed elsewhere, or because somebody continues
from an older state, then the actions are replayed.
"""

import contextlib
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from quantilax.simulators import Form, Maker, Simulator, SimulatorError, Step


class Rows(NamedTuple):
    """Where N simulators should stand."""

    handle: np.ndarray
    """(N, 2): number of the process and of the simulator in it."""
    seed: np.ndarray
    """(N,): seed of the episode."""
    clock: np.ndarray
    """(N,): steps since its beginning."""
    digest: np.ndarray
    """(N,): checksum of the actions since."""


class Steps(NamedTuple):
    """Results of one step of N simulators."""

    hit: np.ndarray
    """(N,): whether the simulator stood where it should. If not, the rest of the row is empty."""
    begun: np.ndarray
    """(N,): whether the simulator was reset after the step."""
    digest: np.ndarray
    next_obs: np.ndarray
    """True successors."""
    obs: np.ndarray
    """Observations to act on next: after the end of an episode the first of the next one."""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_legal: np.ndarray
    """(N, A): masks at `next_obs`; A is 0 without masks."""
    legal: np.ndarray
    """(N, A): masks at `obs`."""


class _Place:
    """A simulator and where it stands."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.seed = self.clock = self.digest = -1


class Bench:
    """Simulators of one kind in one process. All methods may be called from any thread."""

    def __init__(self, maker: Maker, form: Form, first: Iterable[Simulator] = ()) -> None:
        """Keep simulators that `maker` makes and, before those, the `first`."""
        self._maker, self._form = maker, form
        self._spare = list(first)
        self._places: OrderedDict[tuple[int, int], _Place] = OrderedDict()  # the least recently used come first
        self._capacity = 0
        self._lock = threading.RLock()

    def begin(self, handles: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Begin an episode under each of N new handles: (observations, masks)."""
        with self._lock:
            n = len(handles)
            # Between two evaluations only the simulators of training are used, so the least
            # recently used are those of the last evaluation.
            self._capacity = max(self._capacity, 2 * n)
            while self._places and len(self._places) + n > self._capacity:
                self._spare.append(self._places.popitem(last=False)[1].simulator)
            obs, legal = self._empty(n)
            for i, (key, seed) in enumerate(zip(_keys(handles), seeds.tolist(), strict=True)):
                obs[i], legal[i] = self._reset(self._place(key), seed)
            return obs, legal

    def step(self, rows: Rows, actions: np.ndarray, next_seeds: np.ndarray) -> Steps:
        """Take one step in each simulator that stands where its row says."""
        with self._lock:
            steps = self._no_steps(len(actions))
            told = zip(_keys(rows.handle), _standings(rows), actions, next_seeds.tolist(), strict=True)
            for i, (key, standing, action, next_seed) in enumerate(told):
                place = self._places.get(key)
                if place is not None and (place.seed, place.clock, place.digest) == standing:
                    self._places.move_to_end(key)
                    self._step(place, action, next_seed, steps, i)
            return steps

    def replay(
        self,
        rows: Rows,
        actions: np.ndarray,
        next_seeds: np.ndarray,
        wanted: np.ndarray,
        logs: np.ndarray,
        observations: np.ndarray,
    ) -> tuple[Steps, int]:
        """Take one step in each of the `wanted` rows after replaying its actions.

        Where the replay does not lead to the last observation, the environment is not determined by
        its seed and its actions. Such a row is cut off where it stood, and begins a new episode.

        Args:
            rows, actions, next_seeds: as for `step`.
            wanted: (N,) which rows to step.
            logs: (N, T, *action) actions since the episode's beginning.
            observations: (N, *obs) last observations.

        Returns:
            The steps, and the number of rows that were cut off.
        """
        with self._lock:
            steps, lost = self._no_steps(len(actions)), 0
            keys, standings = _keys(rows.handle), _standings(rows)
            for i in np.flatnonzero(wanted).tolist():
                key, (seed, clock, _) = keys[i], standings[i]
                if key not in self._places:
                    self._capacity += 1
                place = self._place(key)
                seen, _ = self._reset(place, seed)
                over = False
                for action in logs[i, :clock]:
                    if over:
                        break
                    found = self._advance(place, action)
                    seen, over = found.obs, (found.terminated or found.truncated) and not found.continues
                if not over and np.array_equal(seen, observations[i]):
                    self._step(place, actions[i], int(next_seeds[i]), steps, i)
                    continue
                lost += 1
                steps.next_obs[i] = observations[i]
                steps.truncated[i] = steps.hit[i] = steps.begun[i] = True
                steps.next_legal[i] = True
                steps.obs[i], steps.legal[i] = self._reset(place, int(next_seeds[i]))
            return steps, lost

    def close(self) -> None:
        """Close all simulators."""
        with self._lock:
            for simulator in [*self._spare, *(place.simulator for place in self._places.values())]:
                with contextlib.suppress(Exception):  # a user's environment may raise anything
                    simulator.close()
            self._spare, self._places, self._capacity = [], OrderedDict(), 0

    def _place(self, key: tuple[int, int]) -> _Place:
        if key not in self._places:
            self._places[key] = _Place(self._spare.pop() if self._spare else self._maker())
        self._places.move_to_end(key)
        return self._places[key]

    def _reset(self, place: _Place, seed: int) -> tuple[np.ndarray, Any]:
        place.clock = -1  # if this fails, the simulator stands nowhere
        obs, legal = place.simulator.reset(seed)
        place.seed, place.clock, place.digest = seed, 0, 0
        return self._checked(obs, "reset"), self._mask(legal, "reset")

    def _advance(self, place: _Place, action: np.ndarray) -> Step:
        clock, place.clock = place.clock, -1
        obs, reward, terminated, truncated, legal, continues = place.simulator.step(action)
        place.clock, place.digest = clock + 1, zlib.crc32(action.tobytes(), place.digest)
        reward = float(reward)
        if not math.isfinite(reward):
            raise SimulatorError(f"step returned a reward of {reward}; it must be a number")
        over = bool(terminated)
        cut = bool(truncated) or place.clock >= self._form.limit
        legal = self._mask(legal, "step", may_be_empty=over or cut)
        return Step(self._checked(obs, "step"), reward, over, cut, legal, continues and not cut)

    def _step(self, place: _Place, action: np.ndarray, next_seed: int, steps: Steps, i: int) -> None:
        obs, steps.reward[i], steps.terminated[i], steps.truncated[i], legal, continues = self._advance(place, action)
        steps.next_obs[i], steps.next_legal[i] = obs, legal
        steps.begun[i] = (steps.terminated[i] or steps.truncated[i]) and not continues
        if steps.begun[i]:
            obs, legal = self._reset(place, next_seed)
        steps.obs[i], steps.legal[i] = obs, legal
        steps.hit[i], steps.digest[i] = True, place.digest

    def _checked(self, obs: Any, of: str) -> np.ndarray:
        array, form = np.asarray(obs), self._form
        if array.shape != form.shape:
            raise SimulatorError(f"{of} returned an observation of shape {array.shape}; its space has {form.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SimulatorError(f"{of} returned an observation with NaN or infinity; it must hold numbers")
        return array.astype(form.dtype, copy=False)

    def _mask(self, legal: Any, of: str, may_be_empty: bool = False) -> Any:
        n = self._form.actions
        if n is None:
            return np.zeros(0, bool)
        mask = np.zeros(0) if legal is None else np.asarray(legal).astype(bool)
        if mask.shape != (n,):
            raise SimulatorError(f"{of} returned no mask of its {n} actions, where its first reset returned one")
        if not mask.any() and not may_be_empty:
            raise SimulatorError(f"{of} returned a mask without any legal action")
        return mask

    def _empty(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        form = self._form
        return np.zeros((n, *form.shape), form.dtype), np.zeros((n, form.actions or 0), bool)

    def _no_steps(self, n: int) -> Steps:
        (next_obs, next_legal), (obs, legal) = self._empty(n), self._empty(n)
        hit, begun, terminated, truncated = (np.zeros(n, bool) for _ in range(4))
        digest, reward = np.zeros(n, np.uint32), np.zeros(n, np.float32)
        return Steps(hit, begun, digest, next_obs, obs, reward, terminated, truncated, next_legal, legal)


def _keys(handles: np.ndarray) -> list[tuple[int, int]]:
    return [(process, number) for process, number in handles.tolist()]


def _standings(rows: Rows) -> list[tuple[int, int, int]]:
    return list(zip(rows.seed.tolist(), rows.clock.tolist(), rows.digest.tolist(), strict=True))
