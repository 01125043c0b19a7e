"""Draw docs/images/curves.png: what the held-out seeds of docs/benchmarks.md did, section by section.

python -m investigations.curves
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantilax.studies import tables
from quantilax.studies.store import Store

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
PANELS = {
    "CartPole-v1, algorithms with a replay": {
        "iqn": "0018-validated-again/cartpole-iqn",
        "qrdqn": "0008-neighbours/qrdqn",
        "fqf": "0008-neighbours/fqf",
        "c51": "0008-neighbours/c51",
        "dqn": "0008-neighbours/dqn",
        "rainbow": "0008-neighbours/rainbow",
        "rainbow_iqn": "0008-neighbours/rainbow_iqn",
    },
    "CartPole-v1, no replay": {"pqn": "0018-validated-again/cartpole-pqn", "ppo": "0020-actor-critics/cartpole-ppo"},
    "Acrobot-v1": {"iqn": "0018-validated-again/acrobot-iqn"},
    "MountainCar-v0": {"iqn": "0018-validated-again/mountain-car-iqn"},
    "Pendulum-v1": {name: f"0020-actor-critics/pendulum-{name}" for name in ("sac", "td3", "tqc", "dsac")},
    "Breakout-MinAtar, a tenth of pqn's steps": {
        "pqn": "0009-pqn-heads/breakout",
        "pqn_categorical": "0009-pqn-heads/breakout",
    },
}
VARIANTS = {"pqn_categorical": "categorical"}
"""Of the study, where it is not `base`."""


def stored(directory: Path) -> pl.DataFrame | None:
    """All evaluations of a study, by the directory that it has or had; None where there is no such study."""
    store = Store.find(directory)
    return None if store is None else store.records()


def draw(axes: Axes, name: str, records: pl.DataFrame) -> pl.DataFrame:
    """Draw a section: the interquartile mean over the seeds, its pointwise 95% interval, the lowest seed dotted.

    Returns:
        The curve, as `quantilax.studies.tables.learning_curves` gives it.
    """
    curve = tables.learning_curves(records)
    steps, lowest = curve["env_step"], [min(returns) for returns in curve["returns"]]
    (line,) = axes.plot(steps, curve["iqm"], label=f"{name} ({curve['n'][0]} seeds)")
    axes.fill_between(steps, curve["iqm_low"], curve["iqm_high"], color=line.get_color(), alpha=0.2, linewidth=0)
    axes.plot(steps, lowest, color=line.get_color(), linestyle=":", linewidth=1)
    return curve


def finish(axes: Axes, title: str, xlabel: str, steps: Callable[..., str] | str, **legend: Any) -> None:
    """Title, axes, grid and legend of a panel; `steps` writes a number of steps."""
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=xlabel, ylabel="mean return of an evaluation")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(steps)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, **legend)


def picture() -> tuple[Figure, list[Axes]]:
    """A figure of six panels."""
    figure = Figure(figsize=(12, 6.5), dpi=90, layout="constrained")
    return figure, list(figure.subplots(2, 3).flat)


def save(figure: Figure, unused: list[Axes], file: Path) -> None:
    """Blank the panels that nothing is in, and write the picture."""
    for axes in unused:
        axes.set_axis_off()
    figure.savefig(file)
    print(f"{file.name}: {file.stat().st_size:,} bytes")


def main() -> None:
    """Draw what is there."""
    figure, panels = picture()
    for axes, (title, sections) in zip(panels, PANELS.items(), strict=False):
        for name, study in sections.items():
            records = stored(HERE / study / "validation")
            if records is not None:
                draw(axes, name, records.filter(records["variant"] == VARIANTS.get(name, "base")))
        finish(axes, title, "environment steps", "{x:,.0f}")
    save(figure, panels[len(PANELS) :], IMAGES / "curves.png")


if __name__ == "__main__":
    main()
