"""The commands `inspect` and `video`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from quantilax.cli.shared import CHECKPOINT, NO_CACHE, as_checkpoint, refuse_without_memory
from quantilax.errors import ConfigError

RUN = click.argument("run", type=click.Path(path_type=Path))
SEED = click.option("--seed", type=int, help="Seed of the run.  [default: its first]")
SEEDS = click.IntRange(0, 2**32 - 1)
EPISODE_SEED = click.option("--episode-seed", type=SEEDS, default=0, show_default=True, help="Seed of the episode.")
ROLLOUTS = click.option(
    "--rollouts", type=click.IntRange(min=0), default=32, show_default=True, help="Rollouts for each state and action."
)
STATES = click.option(
    "--states",
    type=click.IntRange(min=1),
    help="States with rollouts, evenly over the episode.  [default: 20; fewer with more than 6 actions]",
)


def _steps(default: int) -> Callable[..., Any]:
    return click.option(
        "--steps",
        type=click.IntRange(min=2),
        default=default,
        show_default=True,
        help="Most steps to show; of a longer episode every second, fourth, ... step is shown.",
    )


@click.command()
@RUN
@SEED
@EPISODE_SEED
@CHECKPOINT
@_steps(500)
@ROLLOUTS
@STATES
@click.option("--out", type=click.Path(path_type=Path), default=Path("inspect.html"), show_default=True)
@NO_CACHE
def inspect(
    run: Path,
    seed: int | None,
    episode_seed: int,
    checkpoint: str,
    steps: int,
    rollouts: int,
    states: int | None,
    out: Path,
    no_cache: bool,
) -> None:
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
    recording = _record(run, seed, episode_seed, checkpoint, steps, rollouts, states, no_cache)
    inside.write(recording, out)
    _tell(recording, out)


@click.command()
@RUN
@SEED
@EPISODE_SEED
@CHECKPOINT
@_steps(1_000)
@ROLLOUTS
@STATES
@click.option("--out", type=click.Path(path_type=Path), default=Path("video.gif"), show_default=True)
@click.option("--fps", type=click.IntRange(1, 50), default=25, show_default=True, help="Frames per second.")
@NO_CACHE
def video(
    run: Path,
    seed: int | None,
    episode_seed: int,
    checkpoint: str,
    steps: int,
    rollouts: int,
    states: int | None,
    out: Path,
    fps: int,
    no_cache: bool,
) -> None:
    """Play an episode with the policy of RUN, and write a video of it.

    Beside the environment it shows each action's predicted return, and value and risk over time.
    The ending of the file decides between GIF and MP4, which needs the program ffmpeg.

    \b
    quantilax video runs/x --out episode.gif
    """
    from quantilax.reports import filmed
    from quantilax.runs import pictures

    pictures.check_video(out, "--out")
    recording = _record(run, seed, episode_seed, checkpoint, steps, rollouts, states, no_cache)
    if recording.pictures is None:
        raise ConfigError(
            f"{run}: {recording.facts['environment']} draws no pictures; use quantilax inspect, which shows observations"
        )
    pictures.write_video(out, filmed.frames(recording), "--out", fps)
    _tell(recording, out)


def _check_directory(out: Path) -> None:
    """Raise `ConfigError` before an episode is played in vain."""
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
