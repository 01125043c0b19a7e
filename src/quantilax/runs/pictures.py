"""Pictures of environments, and files of moving pictures.

A picture is an array of bytes, (height, width, 3). Simulators draw their own. This module draws
gymnax's classic control from the environment's state, and observations that are grids.
"""

import itertools
import math
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quantilax.envs.wrappers import Wrapper
from quantilax.errors import ConfigError
from quantilax.types import Discrete, Environment

PALETTE = np.array(
    [
        (0, 0, 0),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    np.uint8,
)
"""Colours of a grid's channels, which the colour-blind can tell apart (Okabe and Ito 2008)."""

PAPER, INK, ACCENT, GROUND = (250, 250, 248), (40, 46, 54), (213, 94, 0), (176, 182, 188)
WIDTH, HEIGHT = 400, 260
"""Size of a drawing of classic control, in pixels."""
SHARPER = 3
"""Drawings are made this many times larger and scaled down, which smooths their edges."""


class _Drawing:
    """A drawing with axes from (`left`, `bottom`), with x up to `right` and y upwards."""

    def __init__(self, left: float, right: float, bottom: float) -> None:
        from PIL import Image, ImageDraw  # matplotlib brings it

        self._image = Image.new("RGB", (WIDTH * SHARPER, HEIGHT * SHARPER), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._left, self._bottom, self.unit = left, bottom, WIDTH * SHARPER / (right - left)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x - self._left) * self.unit, HEIGHT * SHARPER - (y - self._bottom) * self.unit

    def line(self, points: Iterable[tuple[float, float]], colour: tuple[int, int, int], pixels: float) -> None:
        """Draw a line with round ends through points."""
        places, width = [self._at(*point) for point in points], round(pixels * SHARPER)
        self._draw.line(places, fill=colour, width=width, joint="curve")
        for x, y in (places[0], places[-1]):
            self._draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=colour)

    def box(self, x: float, y: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        """Draw a box around a point."""
        left, top = self._at(x - width / 2, y + height / 2)
        right, bottom = self._at(x + width / 2, y - height / 2)
        self._draw.rounded_rectangle([left, top, right, bottom], radius=4 * SHARPER, fill=colour)

    def dot(self, x: float, y: float, pixels: float, colour: tuple[int, int, int]) -> None:
        """Draw a dot with a radius in pixels."""
        (px, py), r = self._at(x, y), pixels * SHARPER
        self._draw.ellipse([px - r, py - r, px + r, py + r], fill=colour)

    def array(self) -> np.ndarray:
        """Return the picture."""
        from PIL import Image

        return np.asarray(self._image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def _cart_pole(state: Any, params: Any) -> np.ndarray:
    edge, x, theta = float(params.x_threshold), float(state.x), float(state.theta)
    drawing, pole = _Drawing(-1.15 * edge, 1.15 * edge, -0.9), 2 * float(params.length)
    drawing.line([(-1.15 * edge, 0), (1.15 * edge, 0)], GROUND, 2)
    for end in (-edge, edge):
        drawing.line([(end, -0.12), (end, 0.12)], GROUND, 2)
    drawing.box(x, 0.0, 0.6, 0.34, INK)
    drawing.line([(x, 0.1), (x + pole * math.sin(theta), 0.1 + pole * math.cos(theta))], ACCENT, 9)
    drawing.dot(x, 0.1, 4, PAPER)
    return drawing.array()


def _mountain_car(state: Any, params: Any) -> np.ndarray:
    low, high = float(params.min_position), float(params.max_position)
    drawing = _Drawing(low, high, -0.05)

    def ground(x: float) -> float:
        return 0.45 * math.sin(3 * x) + 0.55

    drawing.line([(x, ground(x)) for x in np.linspace(low, high, 120)], GROUND, 3)
    goal, x = float(params.goal_position), float(state.position)
    drawing.line([(goal, ground(goal)), (goal, ground(goal) + 0.17)], INK, 2)
    drawing.line([(goal, ground(goal) + 0.17), (goal + 0.07, ground(goal) + 0.14)], ACCENT, 6)
    up = math.atan(3 * 0.45 * math.cos(3 * x))
    drawing.dot(x - 0.035 * math.sin(up), ground(x) + 0.035 * math.cos(up), 9, ACCENT)
    return drawing.array()


def _acrobot(state: Any, params: Any) -> np.ndarray:
    one, both = float(state.joint_angle1), float(state.joint_angle1) + float(state.joint_angle2)
    upper, lower = float(params.link_length_1), float(params.link_length_2)
    drawing = _Drawing(-3.4, 3.4, -2.21)
    elbow = upper * math.sin(one), -upper * math.cos(one)
    hand = elbow[0] + lower * math.sin(both), elbow[1] - lower * math.cos(both)
    drawing.line([(-3.4, 1.0), (3.4, 1.0)], GROUND, 2)
    drawing.line([(0, 0), elbow], INK, 9)
    drawing.line([elbow, hand], ACCENT, 9)
    for x, y in ((0.0, 0.0), elbow):
        drawing.dot(x, y, 6, GROUND)
    return drawing.array()


def _pendulum(state: Any, params: Any) -> np.ndarray:
    theta, drawing = float(state.theta), _Drawing(-2.0, 2.0, -1.3)
    drawing.line([(0, 0), (math.sin(theta), math.cos(theta))], ACCENT, 14)
    drawing.dot(0, 0, 5, INK)
    return drawing.array()


DRAWINGS = {
    "CartPole": _cart_pole,
    "MountainCar": _mountain_car,
    "ContinuousMountainCar": _mountain_car,
    "Acrobot": _acrobot,
    "Pendulum": _pendulum,
}
"""Drawings by the class of an environment of gymnax."""


def innermost(env: Any) -> Any:
    """Return the environment inside all wrappers."""
    while isinstance(env, Wrapper):
        env = env.env
    return env


ACTIONS = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "coast", "right"),
    "Acrobot": ("torque -1", "torque 0", "torque +1"),
    "LunarLander": ("nothing", "left engine", "main engine", "right engine"),
}
"""What actions do, by the name of an environment without its library and version."""
OF_MINATAR = ("nothing", "left", "up", "right", "down", "fire")


def action_names(env: Environment) -> list[str] | None:
    """Return a name for each action; None if actions are not discrete."""
    if not isinstance(env.action_space, Discrete):
        return None
    inner, name = innermost(env), env.name.partition("/")[2] or env.name
    names: Any = ACTIONS.get(name.partition("-")[0])
    if name.endswith("-MinAtar"):
        names = [OF_MINATAR[int(i)] for i in inner.env.action_set]
    elif env.name.startswith("atari/"):
        names = [action.name.lower() for action in inner.simulation.maker().actions]
    known = names is not None and len(names) == env.action_space.n
    return list(names) if known else [f"action {i}" for i in range(env.action_space.n)]


def classic(env: Environment) -> Any:
    """Return a function that draws a state of an environment of gymnax; None if there is none.

    The state is that of the environment, inside those of its wrappers.
    """
    inner = innermost(env)
    of_gymnax = type(getattr(inner, "env", None))
    is_classic = of_gymnax.__module__.startswith("gymnax.environments.classic_control")
    draw: Any = DRAWINGS.get(of_gymnax.__name__) if is_classic else None
    if draw is None:
        return None
    cls = type(jax.eval_shape(inner.reset, jax.random.key(0))[0])

    def drawn(state: Any) -> np.ndarray:
        found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, cls))
        return draw(next(x for x in found if isinstance(x, cls)), inner.params)

    return drawn


def grid(obs: np.ndarray) -> np.ndarray:
    """Return the picture of an observation (height, width, channels), a pixel per cell.

    A cell has the colour of its largest channel, and is black where no channel exceeds a half.
    """
    planes = np.concatenate([np.full((*obs.shape[:2], 1), 0.5), obs.astype(float)], axis=2)
    return PALETTE[planes.argmax(axis=2) % len(PALETTE)]


def enlarged(picture: np.ndarray, least: int = 200) -> Any:
    """Return a picture as a `PIL.Image`; a small one has each pixel repeated, to about `least`."""
    from PIL import Image

    image = Image.fromarray(np.asarray(picture, np.uint8))
    factor = max(1, least // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def write_video(path: Path, frames: Iterator[np.ndarray], option: str, frames_per_second: int = 30) -> None:
    """Write frames as an animated GIF, or as MP4 by the program ffmpeg.

    Args:
        path: ends with .gif or .mp4.
        frames: all of one size; small ones are enlarged.
        option: the option of the command line that named the file, for messages.
        frames_per_second: of the video.

    Raises:
        ConfigError: the name has another ending, the file cannot be written, or there is no ffmpeg.
    """
    check_video(path, option)
    images = map(enlarged, frames)
    try:
        if path.suffix == ".gif":
            _write_gif(path, images, frames_per_second)
        else:
            _write_mp4(path, images, frames_per_second)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written: {error.strerror or error}") from None


def check_video(path: Path, option: str) -> None:
    """Raise `ConfigError` if `write_video` could not write a file of this name."""
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"{option}: {path} must end with .gif or .mp4")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError(f"{option}: {path}: MP4 needs the program ffmpeg; install it, or name a .gif")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written: its directory does not exist")


def _write_gif(path: Path, images: Iterator[Any], frames_per_second: int) -> None:
    from PIL import Image

    # Without dithering, what does not move stays the same, and files are half as large.
    few = (image.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for image in images)
    first = next(few)
    first.save(path, save_all=True, append_images=few, duration=round(1000 / frames_per_second), loop=0)


def _write_mp4(path: Path, images: Iterator[Any], frames_per_second: int) -> None:
    first = next(images)
    size = first.width // 2 * 2, first.height // 2 * 2  # the colours of H.264 have half the resolution
    command = ["ffmpeg", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}"]
    command += ["-r", str(frames_per_second), "-i", "-", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    told = b""
    try:
        for image in itertools.chain([first], images):
            process.stdin.write(image.crop((0, 0, *size)).tobytes())
    except BrokenPipeError:
        pass  # the error output of ffmpeg says why
    finally:
        _, told = process.communicate()
    if process.returncode:
        lines = told.decode(errors="replace").strip().splitlines() or [f"ffmpeg ended with {process.returncode}"]
        raise OSError(lines[-1])
