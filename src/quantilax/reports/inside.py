"""A page that looks inside a run: an episode, step by step, with the returns that it predicts.

The page is one HTML file that needs no network. Numbers are in it as JSON. Large arrays are 16-bit
integers between the lowest and the highest of their numbers, which is finer than a pixel.
"""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from quantilax.errors import ConfigError
from quantilax.host.files import write_whole
from quantilax.reports.pages import environment, source
from quantilax.returns.recording import CVAR, NEGLIGIBLE, TAUS, Recording
from quantilax.runs.pictures import enlarged

MAX_BYTES = 3_000_000
"""Most bytes of all pictures of a page; if they take more, they are made smaller."""
SIZES = (480, 320, 240, 160, 96)
"""Widths and heights that pictures are scaled down to, one after another."""
SMALL = 256
"""Pictures up to this width and height are shown with sharp pixels."""
MAX_NUMBERS = 64
"""Most numbers of an observation that are listed."""
ROLLED = (
    "Rollouts go on from the same state of the environment, with new random numbers: one action first, then the"
    " evaluation policy. If a prediction is right, their discounted returns are draws from it.",
    "The band around the rollouts holds their true distribution as a whole with a probability of 95% (the inequality of"
    " Dvoretzky, Kiefer and Wolfowitz).",
)
NONE = 65_535
"""Stands for NaN among 16-bit integers."""


def page(recording: Recording) -> str:
    """Return the page of a recording."""
    facts = recording.facts
    style = "".join(source(name) for name in ("figure.css", "report.css", "inside.css"))
    script = source("inside.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    frames = None if recording.pictures is None else _frames(recording.pictures)
    is_listed = recording.pictures is None or len(recording.names) <= MAX_NUMBERS
    names = recording.names[:MAX_NUMBERS] if is_listed else []
    data = json.dumps(_data(recording, frames, names), separators=(",", ":"), allow_nan=False)
    return (
        environment(autoescape=True)
        .get_template("inside.html.j2")
        .render(
            facts=facts,
            title=heading(recording),
            chips=_chips(recording),
            meaning=[*recording.meaning, *([] if recording.rollouts is None else ROLLED)],
            caveats=recording.caveats,
            has_frames=frames is not None,
            has_rollouts=recording.rollouts is not None,
            names=names,
            hidden=len(recording.names) - len(names),
            stops=len(recording.steps),
            style=Markup(style),
            script=Markup(script),
            digest=digest,
            data=Markup(data.replace("<", "\\u003c")),
        )
    )


def write(recording: Recording, out: Path) -> None:
    """Write the page of a recording.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_whole(out, page(recording))
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}; choose another file") from None


def heading(recording: Recording) -> str:
    """Return what was played, in a few words."""
    return f"{recording.facts['algorithm'].upper()} on {recording.facts['environment']}"


def _chips(recording: Recording) -> list[str]:
    facts = recording.facts
    ended = "cut off by the time limit" if facts["truncated"] else "to its end"
    chips = [
        f"seed {facts['seed']}",
        f"checkpoint at step {facts['env_step']:,}",
        f"episode seed {facts['episode_seed']}",
        f"{facts['length']:,} steps, {ended}",
        f"score {facts['score']:.5g}",
        f"discount {facts['gamma']:g}",
    ]
    every = int(recording.steps[1] - recording.steps[0]) if len(recording.steps) > 1 else 1
    return chips if every == 1 else [*chips, f"one step in {every} is shown"]


def _data(recording: Recording, frames: dict[str, Any] | None, names: list[str]) -> dict[str, Any]:
    """Return what the page's script reads."""
    played = recording.rollouts
    weight = np.zeros((0, 0, 0)) if played is None else played.weight
    cut = (weight > NEGLIGIBLE).sum(axis=2)
    return {
        "facts": recording.facts,
        "taus": TAUS.round(6).tolist(),
        "worst": CVAR,
        "steps": recording.steps.tolist(),
        "rows": recording.rows,
        "legal": None if recording.legal.all() else recording.legal.astype(int).tolist(),
        "taken": recording.taken.tolist(),
        "actions": recording.actions,
        "quantiles": _packed(recording.quantiles),
        "rewards": _short(recording.rewards),
        "earned": _short(recording.earned),
        "rollouts": None
        if played is None
        else {
            "stops": played.stops.tolist(),
            "number": played.returns.shape[2],
            "returns": _packed(played.returns),
            "cut": cut.tolist(),
            "weight": (weight.sum(axis=2) / np.maximum(cut, 1)).round(3).tolist(),
        },
        "no_rollouts": recording.no_rollouts,
        "frames": frames,
        "names": names,
        "observations": _packed(recording.observations[:, : len(names)]) if names else None,
    }


def _short(numbers: np.ndarray) -> list[float]:
    return [float(f"{x:.6g}") for x in numbers]


def _packed(numbers: np.ndarray) -> dict[str, Any]:
    """Return numbers as 16-bit integers between the lowest and the highest, in base64."""
    finite = numbers[np.isfinite(numbers)].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scaled = (np.clip(numbers, low, high) - low) / ((high - low) or 1.0) * (NONE - 1)
    words = np.where(np.isnan(numbers), NONE, np.nan_to_num(scaled).round()).astype("<u2")
    return {"low": low, "high": high, "data": base64.b64encode(words.tobytes()).decode()}


def _frames(pictures: list[np.ndarray]) -> dict[str, Any]:
    """Return pictures as data addresses, each distinct one once, and their order."""
    height, width = pictures[0].shape[:2]
    small = max(height, width) <= SMALL
    distinct: dict[bytes, int] = {}
    order = [distinct.setdefault(picture.tobytes(), len(distinct)) for picture in pictures]
    first = {number: t for t, number in reversed(list(enumerate(order)))}
    kept = [pictures[first[number]] for number in range(len(distinct))]
    for size in SIZES:
        encoded = [_encoded(picture, size, small) for picture in kept]
        if sum(map(len, encoded)) * 4 / 3 <= MAX_BYTES:
            break
    kind = "png" if small else "webp"
    images = [f"data:image/{kind};base64,{base64.b64encode(one).decode()}" for one in encoded]
    return {"width": width, "height": height, "small": small, "images": images, "order": order}


def _encoded(picture: np.ndarray, size: int, small: bool) -> bytes:
    stream, image = io.BytesIO(), enlarged(picture, 0)
    if small:
        image.save(stream, "PNG", optimize=True)
    else:
        image.thumbnail((size, size))
        image.save(stream, "WEBP", quality=80, method=2)
    return stream.getvalue()
