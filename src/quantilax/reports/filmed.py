"""Frames of a video that looks inside a run: the environment beside the predicted returns."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quantilax.reports.inside import SMALL, heading
from quantilax.returns.recording import TAUS, Recording

ACCENT, INK, MUTED, GRID, PAPER = "#0a5fa5", "#1a1f26", "#59636e", "#e3e7ec", "#ffffff"
"""Colours of the pages."""
SIZE, DPI = (9.0, 5.4), 100
WINDOW = 20
"""Stops on either side over which the axis of returns is smoothed."""
ENDS = (0.05, 0.25, 0.5, 0.75, 0.95)


def frames(recording: Recording) -> Iterator[np.ndarray]:
    """Yield a frame (height, width, 3) for each stop of a recording that has pictures."""
    assert recording.pictures is not None
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor=PAPER)
    canvas = FigureCanvasAgg(figure)
    film = _Film(figure, recording)
    for part in film.moving:
        part.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    for t in range(len(recording.steps)):
        film.show(t)
        canvas.restore_region(still)
        for part in film.moving:
            figure.draw_artist(part)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


class _Film:
    """The parts of a frame that change from stop to stop."""

    def __init__(self, figure: Figure, recording: Recording) -> None:
        assert recording.pictures is not None
        self.recording, self.quantiles = recording, _at(recording.quantiles)
        self.lows, self.highs = _window(recording)
        style: dict[str, Any] = {"fontsize": 9, "color": MUTED}
        figure.text(0.02, 0.945, heading(recording), fontsize=13, color=INK, weight="bold")
        self.words = figure.text(0.98, 0.945, "", ha="right", **style)

        axes = figure.add_axes((0.02, 0.4, 0.42, 0.52))
        axes.set_axis_off()
        first = recording.pictures[0]
        sharp = "nearest" if max(first.shape[:2]) <= SMALL else "antialiased"
        self.picture = axes.imshow(first, interpolation=sharp)

        self.rows = rows = figure.add_axes((0.48, 0.46, 0.5, 0.42))
        rows.set_title("Return from here, for each action", loc="left", fontsize=10, color=INK)
        number = len(recording.rows)
        rows.set_ylim(number - 0.4, -0.6)
        rows.set_yticks([])
        wide = [rows.plot([], [], color=ACCENT, linewidth=1.5)[0] for _ in range(number)]
        narrow = [rows.plot([], [], color=ACCENT, linewidth=7, alpha=0.4, solid_capstyle="butt")[0] for _ in wide]
        self.lines = list(zip(wide, narrow, strict=True))
        self.medians = rows.plot([], [], "|", color=ACCENT, markersize=11, markeredgewidth=2)[0]
        self.means = rows.plot([], [], "D", color=INK, markersize=5)[0]
        self.dots = rows.plot([], [], "o", color=INK, markersize=3.5, alpha=0.25, markeredgewidth=0)[0]
        place = rows.get_yaxis_transform()
        self.names = [
            rows.text(0.005, a - 0.3, name, transform=place, fontsize=9, color=INK, va="center")
            for a, name in enumerate(recording.rows)
        ]
        self.rolled = rows.text(1.0, 1.03, "", transform=rows.transAxes, ha="right", **style)

        self.time = figure.add_axes((0.07, 0.08, 0.91, 0.25))
        self._draw_time()
        self.cursor = self.time.axvline(0, color=INK, linewidth=1.2)
        for part in (rows, self.time):
            part.tick_params(labelsize=8, colors=MUTED, length=0)
            part.grid(color=GRID)
            part.set_axisbelow(True)
            part.spines[:].set_visible(False)

    @property
    def moving(self) -> list[Artist]:
        """What is drawn anew for each frame."""
        return [self.words, self.picture, self.rows, self.cursor]

    def _draw_time(self) -> None:
        recording, time = self.recording, self.time
        steps, taken = recording.steps, (np.arange(len(recording.steps)), recording.taken)
        time.set_title("Value and risk", loc="left", fontsize=10, color=INK)
        ends = self.quantiles[taken]
        time.fill_between(steps, ends[:, 0], ends[:, -1], color=ACCENT, alpha=0.16, linewidth=0, label="5 to 95%")
        time.plot(steps, recording.means[taken], color=ACCENT, linewidth=2, label="predicted mean")
        time.plot(steps, recording.cvars[taken], "--", color=ACCENT, linewidth=1.2, label="CVaR 10%")
        time.plot(steps, recording.earned, ":", color=INK, linewidth=1.5, label="earned by this episode")
        if (played := recording.rollouts) is not None:
            returns = played.returns[np.arange(len(played.stops)), recording.taken[played.stops]]
            time.plot(steps[played.stops], returns.mean(axis=1), "o", color=INK, markersize=3.5, label="rollouts, mean")
        time.set_xlim(steps[0], max(steps[-1], 1))
        time.legend(
            loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=5, fontsize=8, frameon=False, labelcolor=MUTED,
            borderpad=0, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip

    def show(self, t: int) -> None:
        """Change the frame to a stop."""
        recording = self.recording
        assert recording.pictures is not None
        self.picture.set_data(recording.pictures[t])
        self.words.set_text(f"step {recording.steps[t]}   {recording.actions[t]}   reward {recording.rewards[t]:g}")
        legal = recording.legal[t]
        for a, ((wide, narrow), (low, first, _, third, high)) in enumerate(
            zip(self.lines, self.quantiles[t], strict=True)
        ):
            wide.set_data([low, high], [a, a])
            narrow.set_data([first, third], [a, a])
            for part in (wide, narrow):
                part.set_visible(bool(legal[a]))
            is_taken = a == recording.taken[t] and len(legal) > 1
            self.names[a].set_text(recording.rows[a] + (", taken" if is_taken else "" if legal[a] else ", not legal"))
            self.names[a].set_fontweight("bold" if is_taken else "normal")
        there = np.flatnonzero(legal)
        self.medians.set_data(self.quantiles[t, there, 2], there)
        self.means.set_data(recording.means[t, there], there)
        if (played := recording.rollouts) is not None:
            s = int(np.searchsorted(played.stops, t, side="right")) - 1
            self.dots.set_data(
                played.returns[s].ravel(), np.repeat(np.arange(len(legal)) + 0.25, played.returns.shape[2])
            )
            self.rolled.set_text(f"dots: rollouts from step {recording.steps[played.stops[s]]}")
        self.rows.set_xlim(self.lows[t], self.highs[t])
        self.cursor.set_xdata([recording.steps[t]] * 2)


def _at(quantiles: np.ndarray) -> np.ndarray:
    """Return the quantiles at `ENDS`, (T, A, 5)."""
    places = np.interp(ENDS, TAUS, np.arange(len(TAUS)))
    low = places.astype(int)
    between: np.ndarray = quantiles[..., low] + (places - low) * (quantiles[..., low + 1] - quantiles[..., low])
    return between


def _window(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """Return ends of the axis of returns at each stop, which move slowly."""
    values = np.where(recording.legal[..., None], recording.quantiles, np.nan)
    low, high = np.nanmin(values, axis=(1, 2)), np.nanmax(values, axis=(1, 2))
    if (played := recording.rollouts) is not None:
        for s, (t, end) in enumerate(zip(played.stops, [*played.stops[1:], len(low)], strict=True)):
            low[t:end] = np.minimum(low[t:end], np.nanmin(played.returns[s]))
            high[t:end] = np.maximum(high[t:end], np.nanmax(played.returns[s]))
    reach = [slice(max(t - WINDOW, 0), t + WINDOW + 1) for t in range(len(low))]
    lows, highs = np.array([low[part].min() for part in reach]), np.array([high[part].max() for part in reach])
    lows, highs = (np.array([ends[part].mean() for part in reach]) for ends in (lows, highs))
    margin = 0.04 * (highs - lows) + 1e-6
    return lows - margin, highs + margin
