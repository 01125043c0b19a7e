"""Draw docs/images/curves.png: what the held-out seeds of docs/benchmarks.md did, section by section.

python investigations/curves.py
"""

from pathlib import Path

from matplotlib.figure import Figure

from quantilax import statistics
from quantilax.studies.store import Store

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "curves.png"
PANELS = {
    "CartPole-v1, algorithms with a replay": {
        "iqn": "0005-solved/iqn-6",
        "qrdqn": "0008-neighbours/qrdqn",
        "fqf": "0008-neighbours/fqf",
        "c51": "0008-neighbours/c51",
        "dqn": "0008-neighbours/dqn",
        "rainbow": "0008-neighbours/rainbow",
        "rainbow_iqn": "0008-neighbours/rainbow_iqn",
    },
    "CartPole-v1, no replay": {"pqn": "0005-solved/pqn"},
    "Acrobot-v1": {"iqn": "0007-three-tasks/acrobot-section"},
    "MountainCar-v0": {"iqn": "0007-three-tasks/mountain-car-section"},
    "Breakout-MinAtar, a tenth of pqn's steps": {
        "pqn": "0009-pqn-heads/breakout",
        "pqn_categorical": "0009-pqn-heads/breakout",
    },
}
CELLS = {"pqn_categorical": "categorical"}
"""Of the study, where it is not `base`."""


def main() -> None:
    """Draw what is there: the interquartile mean over the seeds, its pointwise 95% interval, the lowest seed dotted."""
    figure = Figure(figsize=(12, 6.5), dpi=100, layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (title, sections) in zip(panels, PANELS.items(), strict=False):
        for name, study in sections.items():
            directory = HERE / study / "validation"
            if not any(directory.glob("records/*.parquet")):
                continue
            records = Store.open(directory).records()
            curve = statistics.learning_curves(records.filter(records["cell"] == CELLS.get(name, "base")))
            steps, lowest = curve["env_step"], [min(returns) for returns in curve["returns"]]
            (line,) = axes.plot(steps, curve["iqm"], label=f"{name} ({curve['n'][0]} seeds)")
            axes.fill_between(
                steps, curve["iqm_low"], curve["iqm_high"], color=line.get_color(), alpha=0.2, linewidth=0
            )
            axes.plot(steps, lowest, color=line.get_color(), linestyle=":", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="environment steps", ylabel="mean return of an evaluation")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in panels[len(PANELS) :]:
        axes.set_axis_off()
    figure.savefig(PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
