"""Draw docs/images/minatar.png and minatar-off-policy.png, and print the tables of 0011-minatar and 0012-minatar-off-policy.

python -m investigations.minatar
"""

from pathlib import Path

import numpy as np
import polars as pl

from investigations.curves import IMAGES, draw, finish, picture, save, stored
from quantilax import statistics

HERE = Path(__file__).parent
PUBLISHED = {"Asterix": 17, "Breakout": 10, "Freeway": 50, "Seaquest": 20, "SpaceInvaders": 43}
"""DQN of Young & Tian (2019) after 5M frames, returns of training episodes: another protocol, docs/guides/environments.md."""
FILES = {"SpaceInvaders": "space_invaders"}
"""Name of a game's config, where it is not that of the game in small letters."""
OFF_POLICY = ("dqn", "qrdqn", "iqn", "m_iqn")
ELSEWHERE = {("Freeway", "m_iqn"): ("0015-munchausen-freeway/eps", "adam_eps_1e-5")}
"""Study and variant of a section that is not the base of one in 0012-minatar-off-policy any more."""


def told(x: float, low: float | None, high: float | None) -> str:
    """`9.1 (8.2 to 9.9)`; of one seed there is no interval."""
    return f"{x:.1f}" if low is None else f"{x:.1f} ({low:.1f} to {high:.1f})"


def table(titles: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    for row in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(row)} |")


def pqn() -> None:
    """PQN with its sections' settings."""
    figure, panels = picture()
    rows = []
    for axes, (game, published) in zip(panels, PUBLISHED.items(), strict=False):
        records = stored(HERE / "0011-minatar" / FILES.get(game, game.lower()) / "validation")
        if records is None:
            continue
        curve = draw(axes, "pqn", records)
        axes.axhline(published, color="gray", linewidth=1, linestyle="--", label="DQN, Young & Tian, 5M frames")
        axes.set(xlim=(0, 10_027_008), ylim=(0, None))
        finish(axes, f"{game}-MinAtar", "frames", lambda x, _: f"{x / 1e6:g}M", loc="lower right")
        last, early = curve.row(-1, named=True), curve.filter(pl.col("env_step") == 1_253_376).row(0, named=True)
        length = records.filter(pl.col("env_step") == last["env_step"])["length_mean"].mean()
        row = [
            game,
            str(last["n"]),
            told(last["iqm"], last["iqm_low"], last["iqm_high"]),
            f"{min(last['returns']):.1f}, {max(last['returns']):.1f}",
            told(early["iqm"], early["iqm_low"], early["iqm_high"]),
            f"{length:,.0f}",
        ]
        rows.append(row)
    save(figure, panels[len(PUBLISHED) :], IMAGES / "minatar.png")
    titles = ["game", "seeds", "return at the end (95% interval)", "lowest and highest seed"]
    table([*titles, "at 1,253,376 frames", "frames of an episode"], rows)


def _seeds(labels: list[str]) -> str:
    """`10 seeds` from `dqn (10 seeds)` and the like; `4 to 10 seeds` where they differ."""
    numbers = sorted({int(label.split(" (")[1].split()[0]) for label in labels if label.endswith(" seeds)")})
    return f"{' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))} seeds"


def off_policy() -> None:
    """The four with a replay, on held-out seeds."""
    figure, panels = picture()
    ends: dict[str, dict[str, np.ndarray]] = {section: {} for section in OFF_POLICY}
    shown: dict[str, list[str]] = {section: [] for section in OFF_POLICY}
    for axes, (game, published) in zip(panels, PUBLISHED.items(), strict=False):
        for section in OFF_POLICY:
            usual = f"0012-minatar-off-policy/{FILES.get(game, game.lower())}-{section}", "base"
            study, variant = ELSEWHERE.get((game, section), usual)
            records = stored(HERE / study / "validation")
            if records is None:
                shown[section].append("-")
                continue
            last = draw(axes, section, records.filter(variant=variant)).row(-1, named=True)
            ends[section][game] = np.array(last["returns"])
            shown[section].append(told(last["iqm"], last["iqm_low"], last["iqm_high"]))
        axes.axhline(published, color="gray", linewidth=1, linestyle="--", label="DQN, Young & Tian, 5M frames")
        axes.set(xlim=(0, 300_000), ylim=(0, None))
        handles, labels = axes.get_legend_handles_labels()
        finish(axes, f"{game}-MinAtar, {_seeds(labels)}", "frames", lambda x, _: f"{x / 1e3:g}k")
        axes.get_legend().remove()
    panels[-1].legend(handles, [label.split(" (")[0] for label in labels], loc="center", fontsize=10)
    save(figure, panels[len(PUBLISHED) :], IMAGES / "minatar-off-policy.png")
    table(["section", *PUBLISHED], [[section, *shown[section]] for section in OFF_POLICY])

    compared = [(x, y) for i, x in enumerate(OFF_POLICY) for y in OFF_POLICY[:i]]
    games = [game for game in PUBLISHED if all(game in ends[section] for section in OFF_POLICY)]
    pairs = {(x, y): [(ends[x][game], ends[y][game]) for game in games] for x, y in compared}
    p_values = statistics.holm([statistics.rank_test(pairs[both]) for both in compared])
    rows = []
    for both, p in zip(compared, p_values, strict=True):
        by_game = [statistics.improvement(*pair) for pair in pairs[both]]
        low, high = statistics.improvement_interval(pairs[both])
        chance = f"{np.mean(by_game):.2f} ({low:.2f} to {high:.2f})"
        rows.append([*both, chance, f"{p:.3f}", *(f"{share:.2f}" for share in by_game)])
    table(["section", "above", "chance that it is (95% interval)", "p, Holm over six", *games], rows)


if __name__ == "__main__":
    pqn()
    off_policy()
