"""The commands `check-env` and `play`."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import rich.table

from quantilax.cli.shared import table_console
from quantilax.errors import ConfigError

FIELDS = click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")


@click.command(name="check-env")
@click.argument("env")
@FIELDS
@click.option("--steps", type=click.IntRange(min=16), default=4_000, show_default=True, help="Random steps to play.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the episodes.")
def check_env(env: str, overrides: tuple[str, ...], steps: int, seed: int) -> None:
    """Check the environment ENV by playing it, and print what is wrong with it.

    FIELD is env_args or wrappers. The exit status is 1 if any finding is more severe than a note.

    \b
    quantilax check-env mypackage.envs:GridWorld
    quantilax check-env gymnasium/LunarLander-v3 "env_args={gravity: -5.0}" "wrappers=[normalize]"
    """
    from quantilax import envs
    from quantilax.checks import environment
    from quantilax.types import Discrete

    made = _made(env, overrides)
    space, actions = made.observation_space, made.action_space
    facts, found = environment.check(made, steps, seed)
    table = rich.table.Table("", "", box=None, show_header=False, pad_edge=False)
    table.add_row("environment", made.name)
    table.add_row(
        "observations", f"{_shape(space.shape)} {_dtype(space)}, from {_bound(space.low)} to {_bound(space.high)}"
    )
    is_discrete = isinstance(actions, Discrete)
    masks = ", with masks of legal actions" if envs.masks(made) else ""
    table.add_row("actions", f"{actions.n}{masks}" if is_discrete else f"{_shape(actions.shape)} {_dtype(actions)}")
    table.add_row("time limit", f"{int(made.max_episode_steps):,} steps")
    ended = f"{facts.terminated} terminated, {facts.truncated} truncated"
    table.add_row("random play", f"{facts.steps:,} steps, {facts.lengths.size} episodes ({ended})")
    if facts.lengths.size:
        table.add_row("length", f"{facts.lengths.mean():,.1f} ({facts.lengths.min():,} to {facts.lengths.max():,})")
        table.add_row(
            "return", f"{facts.returns.mean():,.4g} ({facts.returns.min():,.4g} to {facts.returns.max():,.4g})"
        )
    table_console(100, highlight=False, markup=False, emoji=False).print(table)
    if found:
        told = rich.table.Table(box=None, header_style="bold", pad_edge=False)
        for column in ("severity", "finding", "evidence", "remedy"):
            told.add_column(column, overflow="fold", ratio=None if column == "severity" else 1)
        for finding in found:
            told.add_row(finding.severity, finding.finding, finding.evidence, finding.remedy)
        table_console(140, highlight=False, markup=False, emoji=False).print(told)
    else:
        click.echo("nothing found")
    if any(finding.severity != "note" for finding in found):
        sys.exit(1)


@click.command()
@click.argument("env")
@FIELDS
@click.option("--policy", default="random", show_default=True, metavar="random|RUN", help="Policy to play.")
@click.option("--episodes", type=click.IntRange(min=1), default=1, show_default=True, help="Episodes to play.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the episodes.")
@click.option("--video", type=click.Path(path_type=Path), help="Write the first episode as .gif or .mp4.")
def play(env: str, overrides: tuple[str, ...], policy: str, episodes: int, seed: int, video: Path | None) -> None:
    """Play episodes in the environment ENV, and print their lengths and returns.

    A RUN plays in its own environment, with its wrappers. FIELD is env_args or wrappers.

    \b
    quantilax play gymnasium/LunarLander-v3 --video lander.gif
    quantilax play gymnasium/LunarLander-v3 --policy runs/x --episodes 3
    """
    from quantilax import runs
    from quantilax.runs import pictures, playing

    if video is not None:
        pictures.check_video(video, "--video")
    if policy == "random":
        made, act, begin = _made(env, overrides), None, None
    else:
        if overrides:
            raise ConfigError(f"{overrides[0]}: a run plays in its own environment; leave it out")
        algo, state, act = runs.load(policy)
        made, begin = algo.env, partial(algo.begin, state)
        if made.name != env:
            raise ConfigError(f"--policy: {policy} was trained in {made.name}, not in {env}; use that name")
    for i, episode in enumerate(playing.play(made, act, episodes, seed, begin)):
        click.echo(f"episode {i}: {len(episode.actions):,} steps, return {episode.score:g}")
        if i == 0 and video is not None:
            pictures.write_video(video, playing.pictures(made, episode), "--video")
            click.echo(f"written: {video}")


def _made(env: str, overrides: tuple[str, ...]) -> Any:
    from quantilax import envs, runs

    fields = runs.parse_overrides(overrides)
    for name in fields:
        if name not in envs.FIELDS[1:]:
            raise ConfigError(f"command line: unknown field '{name}'; known fields: {', '.join(envs.FIELDS[1:])}")
    return envs.as_environment(env, **fields)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _dtype(space: Any) -> str:
    import numpy as np

    return np.dtype(space.number).name


def _bound(bound: Any) -> str:
    import numpy as np

    low, high = np.min(bound), np.max(bound)
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"
