"""Tell how runs of run.py fell.

    python investigations/0017-how-it-falls/tell.py 20000=runs/falls 100000=runs/falls-100k

Takes directories of run.py by their buffer_size and writes evaluations.parquet, former.csv and paths.parquet beside this file;
without arguments it reads those. Prints the tables of README.md, and draws docs/images/how-it-falls.png.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Bool, Float, Key
from matplotlib.figure import Figure
from scipy.stats import mannwhitneyu, wilcoxon

from quantilax.learning import rollout
from quantilax.runs.configs import load_section

HERE = Path(__file__).parent
SOLVED, CALM, EPISODES = 475.0, 10, 32
EVERY = 10
"""Steps between the states that run.py keeps."""
LEADS, BACK = (50, 100, 150), (0, 1, 2, 5, 10, 20, 30)
"""Steps before an episode's end; evaluations (of 1,000 steps) before the one that fell."""
LEAN_X, LEAN_V = jnp.array([-0.6, 0.0, 0.6]), jnp.array([-0.4, 0.0, 0.4])
LEAN_THETA = jnp.linspace(-0.2, 0.2, 81)
LONG, LONG_AT = 2_000, (30_000, 40_000, 60_000, 80_000, 100_000)
"""Steps of long episodes, and the environment steps after which they are played."""
PLACES = {0.6: "skill_0.6", 1.2: "skill_1.2"}
"""|x| from which a network is asked to keep the pole up for 200 steps, in the evaluations' table."""

SHOWN = {"off the track": (100_000, 2606, 64_000), "pole down": (20_000, 2602, 49_000)}
"""Falls of the newest weights in the picture: buffer, seed, step."""


class Player:
    """Plays CartPole-v1 from given states with given weights."""

    def __init__(self) -> None:
        """Make the section's network; compiled once."""
        self.agent = load_section(HERE.parents[1] / "configs" / "gymnax" / "cartpole.yaml", "iqn").create()
        self.state = self.agent.init(jax.random.key(0))
        self.treedef = jax.tree.structure(self.state.params)
        self.begun = self.agent.env.reset(jax.random.key(0))[0]
        self.lives = jax.jit(self._lives, static_argnums=3)
        self.lean = jax.jit(self._lean)

    def _policy_of(self, params: list[Array]) -> Any:
        return replace(self.state, average_params=jax.tree.unflatten(self.treedef, params))

    def _lives(
        self, params: list[Array], starts: Float[Array, "32 4"], key: Key[Array, ""], steps: int
    ) -> Bool[Array, "32"]:
        """Which episodes from given states go on for so many steps; there is no time limit."""
        act = self.agent.algorithm.policy(self.agent.env, self.agent.config, self._policy_of(params))
        fields = dict(zip(("x", "x_dot", "theta", "theta_dot"), starts.T, strict=True))
        env_state = jax.vmap(lambda x: self.begun.replace(**x))(fields | {"time": jnp.full(EPISODES, -steps)})

        def step(carry: Any, key: Key[Array, ""]) -> tuple[Any, None]:
            envs, lives = carry
            envs, seen = rollout.step(self.agent.env, act, envs, key)
            return (envs, lives & ~seen.terminated), None

        carry = rollout.Envs(env_state, starts, None, act.carry), jnp.ones(EPISODES, bool)
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][1]

    def _lean(self, params: list[Array]) -> Float[Array, "3"]:
        """The pole's lean at which the policy turns, as a + b x + c v near the middle: (a, b, c), by least squares.

        A cart whose pole is balanced at a lean of theta speeds up by g tan(theta): with b > 0 it runs away from the middle.
        """
        x, v, theta = jnp.meshgrid(LEAN_X, LEAN_V, LEAN_THETA, indexing="ij")
        states = jnp.stack([x, v, theta, jnp.zeros_like(x)], axis=-1)
        q = self.agent.quantiles(self._policy_of(params), states, (jnp.arange(8) + 0.5) / 8).mean(axis=-2)
        turns = -0.2 + 0.4 * (q[..., 1] < q[..., 0]).mean(axis=-1)  # (3, 3)
        terms = jnp.stack([jnp.ones_like(turns), x[..., 0], v[..., 0]], axis=-1).reshape(-1, 3)
        return jnp.linalg.lstsq(terms, turns.ravel())[0]


def starts_at(x: float) -> Float[np.ndarray, "32 4"]:
    """States at |x|, on both sides, at rest and moving out at 0.5, the pole within 0.05 of upright."""
    side, speed, theta = np.meshgrid([-1, 1], [0.0, 0.5], np.linspace(-0.05, 0.05, 8), indexing="ij")
    return np.stack([side * x, side * speed, theta, 0 * theta], axis=-1).reshape(EPISODES, 4).astype(np.float32)


def usual_starts() -> Float[np.ndarray, "32 4"]:
    """States in which episodes begin: every number within 0.05 of 0."""
    return np.random.default_rng(0).uniform(-0.05, 0.05, (EPISODES, 4)).astype(np.float32)


def weights_of(data: Any, weights: str) -> list[np.ndarray]:
    """The parameters' leaves, each with a leading axis of evaluations."""
    return [data[name] for name in data.files if name.startswith(f"['{weights}']['params']")]


def evaluations(file: Path, buffer_size: int, player: Player) -> Iterator[pl.DataFrame]:
    """A row for each evaluation of a run, of the newest and the averaged weights."""
    data = np.load(file)
    filled = np.minimum(data["['env_step']"] / buffer_size, 1.0)  # run.py counts empty slots too, as |x| < 0.2
    covered = data["['coverage']"] / filled[:, None]  # (rows, 12): shares of the replay by |x|, in steps of 0.2
    widest = np.where(covered > 0, np.arange(1, 13) * 0.2, 0).max(axis=1)
    for weights in ("newest", "average"):
        of = {k: data[f"['{weights}']['{k}']"] for k in ("lengths", "last", "died", "path", "track")}
        x, theta = np.abs(of["last"][..., 0]), np.abs(of["last"][..., 2])
        value, mean = of["track"].max(axis=-1), of["lengths"].mean(axis=1)  # (rows, 25, 5), (rows,)
        streak = [0]
        for m in mean:
            streak.append(streak[-1] + 1 if m >= SOLVED else 0)
        params = weights_of(data, weights)
        skill = {
            name: [
                np.asarray(player.lives([p[i] for p in params], starts_at(place), jax.random.key(0), 200)).mean()
                for i in range(len(mean))
            ]
            for place, name in PLACES.items()
        }
        lean = np.stack([np.asarray(player.lean([p[i] for p in params])) for i in range(len(mean))])
        long = [
            np.asarray(player.lives([p[i] for p in params], usual_starts(), jax.random.key(0), LONG)).mean()
            if step in LONG_AT
            else None
            for i, step in enumerate(data["['env_step']"])
        ]
        yield pl.DataFrame(
            {
                "buffer_size": buffer_size,
                "weights": weights,
                "seed": int(file.stem),
                "env_step": data["['env_step']"],
                "return_mean": mean,
                "streak": streak[:-1],  # evaluations in a row at 475 or more before this one
                "farthest": np.abs(of["path"][..., 0]).max(axis=1).mean(axis=1),  # |x|, mean over episodes
                "died": of["died"].sum(axis=1),
                "by_track": (of["died"] & (x > 2.4)).sum(axis=1),
                "to_the_left": (of["died"] & (of["last"][..., 0] < -2.4)).sum(axis=1),
                "by_pole": (of["died"] & (theta > 0.2094)).sum(axis=1),
                "replay_widest": widest,
                "replay_beyond_1.2": covered[:, 6:].sum(axis=1),
                "replay_terminated": data["['terminated']"] / filled,
                "value_middle": value[:, 12, 2],
                "value_edge": np.maximum(value[:, 0, 0], value[:, 24, 4]),  # of both sides, moving out at 1
                **skill,
                "lean": lean[:, 0],
                "lean_by_x": lean[:, 1],
                "lean_by_v": lean[:, 2],
                "lived_2000": long,
            },
            strict=False,
        ).with_columns(pl.col(pl.Float64, pl.Float32).cast(pl.Float32), pl.col(pl.Int64, pl.Int32).cast(pl.Int32))


def former(file: Path, fall: dict[str, Any], player: Player) -> Iterator[dict[str, Any]]:
    """Who comes through from the states on the way to the end of a fall: the network that fell, and former ones."""
    data = np.load(file)
    params = weights_of(data, fall["weights"])
    i = data["['env_step']"].tolist().index(fall["env_step"])
    lengths, died, path = (data[f"['{fall['weights']}']['{k}']"][i] for k in ("lengths", "died", "path"))
    for lead in LEADS:
        at = (lengths - lead) // EVERY - 1
        which = np.flatnonzero(died & (at >= 0))
        starts = np.zeros((EPISODES, 4), np.float32)
        starts[: len(which)] = path[at[which], which]
        for back in BACK:
            lives = player.lives([p[i - back] for p in params], jnp.asarray(starts), jax.random.key(1), 200)
            yield {k: fall[k] for k in ("buffer_size", "weights", "seed", "env_step")} | {
                "lead": lead,
                "back": back,
                "episodes": len(which),
                "lived": int(np.asarray(lives)[: len(which)].sum()),
            }


def paths(directories: dict[int, Path]) -> pl.DataFrame:
    """Where the cart was every ten steps, in each episode of the falls that the picture shows."""
    frames = []
    for name, (size, seed, step) in SHOWN.items():
        data = np.load(directories[size] / f"{seed}.npz")
        i = data["['env_step']"].tolist().index(step)
        lengths, path = data["['newest']['lengths']"][i], data["['newest']['path']"][i]
        for episode in range(EPISODES):
            kept = path[: lengths[episode] // EVERY, episode, 0]
            steps = np.arange(1, len(kept) + 1) * EVERY
            frames.append(pl.DataFrame({"fall": name, "episode": episode, "step": steps, "x": kept}))
    return pl.concat(frames)


def draw(frame: pl.DataFrame) -> None:
    """Draw the two kinds of falls."""
    figure = Figure(figsize=(10, 3.4), dpi=90, layout="constrained")
    for axes, (name, (size, seed, step)) in zip(figure.subplots(1, 2, sharey=True), SHOWN.items(), strict=True):
        for episode in range(EPISODES):
            of = frame.filter(fall=name, episode=episode)
            axes.plot(of["step"], of["x"], color="C0", alpha=0.4, linewidth=1)
            if of["step"][-1] < 500:
                axes.plot(of["step"][-1:], of["x"][-1:], "x", color="C3", markersize=5)
        axes.axhline(2.4, color="black", linestyle="--", linewidth=1)
        axes.axhline(-2.4, color="black", linestyle="--", linewidth=1)
        axes.set_title(f"{name}: seed {seed} at {step:,} steps, buffer {size:,}", fontsize=10)
        axes.set(xlabel="step of the episode", ylim=(-2.7, 2.7))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("x of the cart")
    figure.savefig(HERE.parents[1] / "docs" / "images" / "how-it-falls.png")


def line(a: Any, b: Any, c: Any) -> Float[np.ndarray, "n"]:
    """Farthest |x|, from rest at 0 within 500 steps, of a cart whose pole leans by a + b x + c v: x'' = g (a + b x + c v)."""
    a, b, c = (np.asarray(x, float) for x in (a, b, c))
    x, v, farthest = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
    for _ in range(500):
        x, v = x + 0.02 * v, v + 0.02 * 9.8 * (a + b * x + c * v)
        farthest = np.maximum(farthest, np.abs(x))
    return farthest


def falls(frame: pl.DataFrame) -> pl.DataFrame:
    """Evaluations below 475, each the first after one or more at 475 or more."""
    return frame.filter(pl.col("return_mean") < SOLVED, pl.col("streak") > 0)


def different(frame: pl.DataFrame) -> pl.DataFrame:
    """Each run once: until the smaller buffer begins to overwrite, runs with either are the same."""
    return frame.filter((pl.col("buffer_size") == 20_000) | (pl.col("env_step") > 20_000))


def is_calm() -> pl.Expr:
    """Whether an evaluation follows ten in a row at 475 or more."""
    return pl.col("streak") >= CALM


def tables(frame: pl.DataFrame, lived: pl.DataFrame) -> None:
    """Print what README.md tells."""
    print(
        "| buffer | evaluated | seeds | evaluations | fell | of seeds | episodes ended early | off the track | pole down |"
    )
    print("|" + "---|" * 9)
    for (size, weights), g in frame.group_by("buffer_size", "weights", maintain_order=True):
        for name, which in (("others after 475", ~is_calm() & (pl.col("streak") > 0)), ("calm", is_calm())):
            there = g.filter(which)
            f = falls(there)
            episodes = f"{f['died'].sum()} of {EPISODES * f.height} | {f['by_track'].sum()} | {f['by_pole'].sum()}"
            print(
                f"| {size:,} | {weights} | {g['seed'].n_unique()} | {there.height:,} {name} | {f.height} |"
                f" {f['seed'].n_unique()} | {episodes} |"
            )
    columns = [
        "replay_widest",
        "replay_beyond_1.2",
        "replay_terminated",
        "value_middle",
        "value_edge",
        *PLACES.values(),
    ]
    print("\n| buffer | evaluated | calm evaluations: mean, median | " + " | ".join(columns) + " |")
    print("|" + "---|" * (3 + len(columns)))
    for (size, weights, fell), g in (
        frame.filter(is_calm())
        .with_columns(fell=pl.col("return_mean") < SOLVED)
        .group_by("buffer_size", "weights", "fell", maintain_order=True)
    ):
        figures = " | ".join(f"{g[c].mean():.3g}, {g[c].median():.3g}" for c in columns)
        print(f"| {size:,} | {weights} | {g.height:,} that {'fell' if fell else 'did not'} | {figures} |")
    print("\n| buffer | evaluated | followed by | evaluations | farthest |x|: quartiles | AUC |")
    print("|" + "---|" * 6)
    for (size, weights), g in frame.group_by("buffer_size", "weights", maintain_order=True):
        pairs = g.with_columns(next=pl.col("return_mean").shift(-1).over("seed")).filter(
            pl.col("return_mean") >= SOLVED, pl.col("next").is_not_null()
        )
        fell, held = (
            pairs.filter(which)["farthest"].to_numpy() for which in (pl.col("next") < SOLVED, pl.col("next") >= SOLVED)
        )
        for name, there in (("a fall", fell), ("475 or more", held)):
            quartiles = " ".join(f"{q:.2f}" for q in np.quantile(there, [0.25, 0.5, 0.75])) if len(there) else ""
            auc = mannwhitneyu(fell, held).statistic / len(fell) / len(held) if len(fell) else float("nan")
            print(f"| {size:,} | {weights} | {name} | {len(there):,} | {quartiles} | {auc:.2f} |")
    tracks = falls(different(frame)).filter(pl.col("by_track") >= 5)
    one_sided = tracks.filter((pl.col("to_the_left") == 0) | (pl.col("to_the_left") == pl.col("by_track")))
    print(f"\n{tracks.height} falls with five episodes or more off the track; in {one_sided.height} all on one side")
    after = different(frame).filter(pl.col("streak") > 0)
    after = after.with_columns(
        off=pl.col("lean").abs(), line=pl.Series(line(after["lean"], after["lean_by_x"], after["lean_by_v"]))
    )
    columns = ["off", "lean_by_x", "lean_by_v", "line", "skill_0.6"]
    print("\n| evaluated | evaluations | " + " | ".join(f"{c}, quartiles | AUC" for c in columns) + " |")
    print("|" + "---|" * (2 + 2 * len(columns)))
    for weights in ("newest", "average"):
        of = after.filter(weights=weights)
        fell, held = of.filter(pl.col("return_mean") < SOLVED), of.filter(pl.col("return_mean") >= SOLVED)
        for name, g in (("below 475", fell), ("475 or more", held)):
            told = []
            for column in columns:
                quartiles = " ".join(f"{g[column].quantile(q):.3f}" for q in (0.25, 0.5, 0.75))
                auc = mannwhitneyu(fell[column], held[column]).statistic / len(fell) / len(held)
                told.append(f"{quartiles} | {auc:.2f}")
            print(f"| {weights} | {g.height:,} {name} | {' | '.join(told)} |")
        print(
            f"lines past 2.4: {(fell['line'] > 2.4).sum()} of {fell.height}, {(held['line'] > 2.4).sum()} of {held.height}"
        )
    around(frame, different(frame))
    print(
        f"\n| buffer | evaluated | policies at 475 or more | of {EPISODES} episodes of {LONG:,} steps lived | none lived in |"
    )
    print("|---|---|---|---|---|")
    asked = frame.filter(pl.col("lived_2000").is_not_null(), pl.col("return_mean") >= SOLVED)
    for (size, weights), g in asked.group_by("buffer_size", "weights", maintain_order=True):
        print(f"| {size:,} | {weights} | {g.height} | {g['lived_2000'].mean():.3f} | {(g['lived_2000'] == 0).sum()} |")
    print("\n| evaluated | from | buffer 20,000 | buffer 100,000 | p |\n|---|---|---|---|---|")
    late = (
        frame.filter(pl.col("env_step") > 90_000)
        .group_by("buffer_size", "weights", "seed")
        .agg(pl.col(PLACES.values()).mean())
    )
    for weights in ("newest", "average"):
        for place, name in PLACES.items():
            small, large = (
                late.filter(buffer_size=b, weights=weights).sort("seed")[name].to_numpy() for b in (20_000, 100_000)
            )
            p = wilcoxon(small, large).pvalue
            print(f"| {weights} | {place} | {small.mean():.2f} | {large.mean():.2f} | {p:.2f} |")
    print("\n| buffer | evaluated | steps before the end | " + " | ".join(f"{b},000 steps ago" for b in BACK) + " |")
    print("|" + "---|" * (3 + len(BACK)))
    for (size, weights, lead), g in lived.group_by("buffer_size", "weights", "lead", maintain_order=True):
        shares = [g.filter(back=b) for b in BACK]
        told = " | ".join(f"{s['lived'].sum()} of {s['episodes'].sum()}" for s in shares)
        print(f"| {size:,} | {weights} | {lead} | {told} |")


def around(frame: pl.DataFrame, once: pl.DataFrame) -> None:
    """Print the lean before, in and after falls of the newest weights, and what medians of them come to."""
    names = ("lean", "lean_by_x", "return_mean")
    near = frame.filter(weights="newest").with_columns(
        *(pl.col(name).shift(k).over("buffer_size", "seed").alias(f"{name} {k}") for name in names for k in (1, -1))
    )
    key = ["buffer_size", "seed", "env_step"]
    fell = near.join(falls(once.filter(weights="newest")).select(key), on=key)
    off = [fell[name].abs() for name in ("lean 1", "lean", "lean -1")]
    print("\n|a| before, in and after a fall, medians:", *(f"{x.median():.3f}" for x in off), end="; ")
    print(f"larger than before in {(off[1] > off[0]).sum()} of {fell.height}")
    up = fell.filter(pl.col("lean_by_x") > 0)
    before, later = ((up[f"lean_by_x {k}"] > 0).sum() for k in (1, -1))
    print(f"b above 0 in {up.height} falls, in {before} of these before, in {later} after")
    print(f"at 475 or more in the next evaluation: {(fell['return_mean -1'] >= SOLVED).sum()} of {fell.height}")
    tracks = fell.filter(pl.col("by_track") > 0)
    left = tracks["to_the_left"] * 2 > tracks["by_track"]
    print(f"the sign of a is the side in {((tracks['lean'] < 0) == left).sum()} of {tracks.height} falls")
    for a, b, c in ((0.0, 0.027, -0.121), (0.030, 0.027, -0.121), (0.030, -0.023, -0.148)):
        print(f"a = {a}, b = {b}, c = {c}: |x| = {line(a, b, c):.2f} after 500 steps")


def main() -> None:
    """Read runs, or what was read."""
    if len(sys.argv) > 1:
        player, frames, rows = Player(), [], []
        directories = {int(size): Path(path) for size, path in (item.split("=", 1) for item in sys.argv[1:])}
        paths(directories).write_parquet(HERE / "paths.parquet")
        for size, directory in directories.items():
            for file in sorted(directory.glob("*.npz")):
                found = pl.concat(evaluations(file, size, player))
                frames.append(found)
                for fall in falls(found).filter(is_calm(), pl.col("env_step") > BACK[-1] * 1_000).iter_rows(named=True):
                    rows += former(file, fall, player)
        pl.concat(frames).write_parquet(HERE / "evaluations.parquet")
        pl.DataFrame(rows).write_csv(HERE / "former.csv")
    tables(pl.read_parquet(HERE / "evaluations.parquet"), pl.read_csv(HERE / "former.csv"))
    draw(pl.read_parquet(HERE / "paths.parquet"))


if __name__ == "__main__":
    main()
