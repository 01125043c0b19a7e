"""The commands `inspect` and `video`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from quantilax.cli.shared import CHECKPOINT, NO_CACHE, as_checkpoint, refuse_without_memory
from quantilax.errors import ConfigError

SEEDS = click.IntRange(0, 2**32 - 1)


def _of_an_episode(steps: int) -> Callable[..., Any]:
    """Add the options of both commands; `_record` takes them."""
    options = (
        click.argument("run", type=click.Path(path_type=Path)),
        click.option("--seed", type=int, help="Seed of the run.  [default: its first]"),
        click.option("--episode-seed", type=SEEDS, default=0, show_default=True, help="Seed of the episode."),
        CHECKPOINT,
        click.option(
            "--steps",
            type=click.IntRange(min=2),
            default=steps,
            show_default=True,
            help="Most steps to show; a longer episode shows every second, fourth, ... step.",
        ),
        click.option(
            "--rollouts",
            type=click.IntRange(min=0),
            default=32,
            show_default=True,
            help="Rollouts for each state and action.",
        ),
        click.option(
            "--states",
            type=click.IntRange(min=1),
            help="States with rollouts, evenly over the episode.  [default: 20; fewer with more than 6 actions]",
        ),
        NO_CACHE,
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@_of_an_episode(steps=500)
@click.option("--out", type=click.Path(path_type=Path), default=Path("inspect.html"), show_default=True)
def inspect(out: Path, **asked: Any) -> None:
    """Play an episode with the policy of RUN, and write a page that looks inside it.

    The page shows the environment, each action's predicted return, and value and risk over time,
    step by step. Where the environment is in JAX it also shows the returns of rollouts from the
    same state. It is one file that needs no network.

    \b
    quantilax inspect runs/x
    quantilax inspect runs/x --seed 2 --episode-seed 7 --out episode.html
    """
    from quantilax.reports import inside

    if out.suffix != ".html":
        raise ConfigError(f"--out: {out} must end with .html")
    _check_directory(out)
    recording = _record(**asked)
    inside.write(recording, out)
    _tell(recording, out)


@click.command()
@_of_an_episode(steps=1_000)
@click.option("--out", type=click.Path(path_type=Path), default=Path("video.gif"), show_default=True)
@click.option("--fps", type=click.IntRange(1, 50), default=25, show_default=True, help="Frames per second.")
def video(out: Path, fps: int, **asked: Any) -> None:
    """Play an episode with the policy of RUN, and write a video of it.

    Beside the environment it shows each action's predicted return, and value and risk over time.
    The ending of the file decides between GIF and MP4, which needs the program ffmpeg.

    \b
    quantilax video runs/x --out episode.gif
    """
    from quantilax.reports import filmed
    from quantilax.runs import pictures

    pictures.check_video(out, "--out")
    recording = _record(**asked)
    if recording.pictures is None:
        raise ConfigError(
            f"{asked['run']}: {recording.facts['environment']} draws no pictures; use quantilax inspect, which shows"
            " observations"
        )
    pictures.write_video(out, filmed.frames(recording), "--out", fps)
    _tell(recording, out)


def _check_directory(out: Path) -> None:
    """Raise `ConfigError` if the page cannot be written, before an episode is played."""
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a directory; name a file in it")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out: {out} cannot be written: its directory does not exist")


def _record(
    run: Path,
    seed: int | None,
    episode_seed: int,
    checkpoint: str,
    steps: int,
    rollouts: int,
    states: int | None,
    no_cache: bool,
) -> Any:
    from quantilax import runs
    from quantilax.returns import recording

    which = as_checkpoint(checkpoint)
    if not no_cache:
        runs.enable_compilation_cache()
    with refuse_without_memory("--rollouts or --states"):
        return recording.record(
            run,
            which,
            seed=seed,
            episode_seed=episode_seed,
            stops=steps,
            rollouts=rollouts,
            rollout_stops=states,
        )


def _tell(recording: Any, out: Path) -> None:
    facts = recording.facts
    click.echo(
        f"seed {facts['seed']}, step {facts['env_step']:,}: {facts['length']:,} steps, return {facts['score']:g}"
    )
    click.echo(f"written: {out}")
