"""Simulators of Atari 2600 games by the Arcade Learning Environment (https://ale.farama.org).

The emulator itself is deterministic. Sticky actions and idle first frames are drawn here from the
episode's seed, so that seed and actions determine an episode.
"""

from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms

from quantilax.simulators import SimulatorError, Step

SIZE = 84
NOOP, FIRE = ale_py.Action.NOOP, ale_py.Action.FIRE


def make(game: str, pictures: bool = False, **settings: Any) -> "Atari":
    """Make the simulator of a game; `quantilax.envs.atari` says what the settings mean."""
    return Atari(game, **settings)


class Atari:
    """A game as a `Simulator`; it observes single frames of 84 x 84 grey pixels."""

    def __init__(
        self,
        game: str,
        sticky: float,
        idle_frames: int,
        fire_first: bool,
        life_loss: bool,
        frame_skip: int,
        full_action_space: bool,
    ) -> None:
        """Start the emulator."""
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        rom = roms.get_rom_path(game)
        if rom is None:
            raise SimulatorError(f"there is no ROM of {game}; install ale-py again")
        self._ale.loadROM(rom)
        self.actions = self._ale.getLegalActionSet() if full_action_space else self._ale.getMinimalActionSet()
        self._sticky, self._idle_frames, self._skip = sticky, idle_frames, frame_skip
        self._fires, self._life_loss = fire_first and FIRE in self.actions, life_loss
        self._last = NOOP
        self._ale.reset_game()
        self._start = self._ale.cloneState()
        height, width = self._ale.getScreenDims()
        self._frames = np.zeros((2, height, width), np.uint8)
        # The screen is no part of a state: after restoreState it still shows the game before.
        self._opening = self._ale.getScreenGrayscale(), self._ale.getScreenRGB()
        self._is_drawn = False

    def reset(self, seed: int) -> tuple[np.ndarray, None]:
        """Begin a game."""
        self._random = np.random.default_rng(seed)
        self._last = NOOP
        self._ale.restoreState(self._start)
        if self._idle_frames:
            for _ in range(self._random.integers(1, self._idle_frames, endpoint=True)):
                self._ale.act(NOOP)
                if self._ale.game_over():
                    self._ale.restoreState(self._start)
        if self._fires:
            self._ale.act(FIRE)
        self._is_drawn = bool(self._idle_frames) or self._fires
        self._lives = self._ale.lives()
        return _resized(self._ale.getScreenGrayscale() if self._is_drawn else self._opening[0]), None

    def step(self, action: Any) -> Step:
        """Take an action for `frame_skip` frames; pixels are the larger ones of the last two."""
        wanted, reward, seen, self._is_drawn = self.actions[int(action)], 0.0, 0, True
        for frame in range(self._skip):
            if not self._sticky or self._random.random() >= self._sticky:
                self._last = wanted
            reward += self._ale.act(self._last)
            over = self._ale.game_over()
            if over or frame >= self._skip - 2:
                self._ale.getScreenGrayscale(self._frames[seen])
                seen += 1
            if over:
                break
        lost, self._lives = self._ale.lives() < self._lives, self._ale.lives()
        lives_on = self._life_loss and lost and not over
        if lives_on and self._fires:
            self._ale.act(FIRE)
        obs = _resized(self._frames[:seen].max(axis=0))
        return Step(obs, reward, over or lives_on, False, None, continues=lives_on)

    def picture(self) -> np.ndarray:
        """Return the screen in colour."""
        screen: np.ndarray = self._ale.getScreenRGB() if self._is_drawn else self._opening[1]
        return screen

    def close(self) -> None:
        """Let the emulator go, which otherwise complains when Python ends."""
        del self._ale, self._start, self._last, self.actions


def _resized(frame: np.ndarray) -> np.ndarray:
    small: np.ndarray = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return small[:, :, None]
