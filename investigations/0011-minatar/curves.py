"""Draw docs/images/minatar.png, PQN on the games of MinAtar, and print the table of its README.

python investigations/0011-minatar/curves.py
"""

from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from quantilax import statistics

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "images" / "minatar.png"
YOUNG_AND_TIAN = {"Asterix": 17, "Breakout": 10, "Freeway": 50, "Seaquest": 20, "SpaceInvaders": 43}
"""DQN after 5M frames, returns of training episodes: another protocol, docs/guides/environments.md."""
STEPS = 10_027_008


def main() -> None:
    """Draw the interquartile mean over the seeds, its pointwise 95% interval, and the lowest seed dotted."""
    records = pl.read_parquet(HERE / "evaluations.parquet").with_columns(
        pl.lit("pqn").alias("cell"), pl.lit(True).alias("finite")
    )
    figure = Figure(figsize=(12, 6.5), dpi=100, layout="constrained")
    panels = figure.subplots(2, 3).flat
    print(
        "| game | frames | return there (95% interval) | lowest and highest seed | at 1,253,376 | frames of an episode |"
    )
    print("|---|---|---|---|---|---|")
    for axes, (name, part) in zip(panels, records.group_by("env", maintain_order=True), strict=False):
        game = str(name[0]).removesuffix("-MinAtar")
        curve = statistics.learning_curves(part)
        steps, lowest = curve["env_step"], [min(returns) for returns in curve["returns"]]
        (line,) = axes.plot(steps, curve["iqm"], label=f"pqn ({curve['n'][0]} seeds)")
        axes.fill_between(steps, curve["iqm_low"], curve["iqm_high"], color=line.get_color(), alpha=0.2, linewidth=0)
        axes.plot(steps, lowest, color=line.get_color(), linestyle=":", linewidth=1)
        axes.axhline(YOUNG_AND_TIAN[game], color="gray", linewidth=1, linestyle="--", label="DQN, Young & Tian")
        axes.set_title(f"{game}-MinAtar", fontsize=10)
        axes.set(xlabel="frames", ylabel="mean return of an evaluation", xlim=(0, STEPS))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
        last, early = curve.row(-1, named=True), curve.filter(pl.col("env_step") == 1_253_376).row(0, named=True)
        length = part.filter(pl.col("env_step") == last["env_step"])["length_mean"].mean()
        cells = [
            game,
            f"{last['env_step']:,}",
            f"{last['iqm']:.1f} ({last['iqm_low']:.1f} to {last['iqm_high']:.1f})",
            f"{min(last['returns']):.1f}, {max(last['returns']):.1f}",
            f"{early['iqm']:.1f} ({early['iqm_low']:.1f} to {early['iqm_high']:.1f})",
            f"{length:,.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    panels[-1].set_axis_off()
    figure.savefig(PICTURE)
    print(f"\n{PICTURE.name}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
