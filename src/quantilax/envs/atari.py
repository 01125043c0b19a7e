"""Adapter for Atari 2600 games by the Arcade Learning Environment (https://ale.farama.org).

`atari/Pong` shows 84 x 84 grey pixels, the last four frames together. Each action lasts for four
frames of the emulator. Rewards are clipped to -1..1 for learning; learning curves show the score.

| argument | `preset: dopamine` (default) | `preset: envpool` | meaning |
|---|---|---|---|
| `sticky` | 0.25 | 0 | probability per frame that the emulator repeats the last action |
| `idle_frames` | 0 | 30 | an episode begins with 1 to this many frames without action |
| `fire_first` | false | true | press FIRE at the beginning, and after a lost life if `life_loss` |
| `life_loss` | false | true | a lost life ends an episode for learning; evaluations play on |
| `frame_skip` | 4 | 4 | frames per action |
| `frame_stack` | 4 | 4 | frames in an observation |
| `clip_reward` | true | true | clip rewards to -1..1 for learning |
| `full_action_space` | false | false | all 18 actions instead of those that the game uses |
| `max_episode_steps` | 27,000 | 27,000 | time limit in actions |

`vectorization_mode` and `num_workers` are those of `quantilax.envs.gymnasium`.

Sources: Machado et al. (2018), https://arxiv.org/abs/1709.06009, and Castro et al. (2018),
https://arxiv.org/abs/1812.06110, for `dopamine`; Mnih et al. (2015),
https://doi.org/10.1038/nature14236, and Weng et al. (2022), https://arxiv.org/abs/2206.10558, for
`envpool`.
"""

from functools import cache
from typing import Any

import numpy as np
from ale_py import roms

from quantilax import pytree
from quantilax.envs.host import Hosted, Simulation, number_of_workers
from quantilax.envs.wrappers import ClipReward, FrameStack
from quantilax.errors import ConfigError, did_you_mean
from quantilax.simulators import Maker, SimulatorError, atari
from quantilax.types import Box, Discrete, Environment


@pytree.dataclass
class Settings:
    """The arguments of a game, with the defaults of the preset `dopamine`."""

    sticky: float = pytree.field(0.25, "probability that a frame repeats the last action", ge=0, lt=1)
    idle_frames: int = pytree.field(0, "most frames without action at the beginning", ge=0)
    fire_first: bool = pytree.field(False, "press FIRE at the beginning")
    life_loss: bool = pytree.field(False, "a lost life ends an episode for learning")
    frame_skip: int = pytree.field(4, "frames per action", ge=1)
    frame_stack: int = pytree.field(4, "frames in an observation", ge=1)
    clip_reward: bool = pytree.field(True, "clip rewards to -1..1 for learning")
    full_action_space: bool = pytree.field(False, "all 18 actions")
    max_episode_steps: int = pytree.field(27_000, "time limit in actions", ge=1)


PRESETS: dict[str, dict[str, Any]] = {
    "dopamine": {},
    "envpool": {"sticky": 0.0, "idle_frames": 30, "fire_first": True, "life_loss": True},
}


@cache
def _games() -> dict[str, str]:
    """Return names such as `SpaceInvaders`, with the ids of their ROMs."""
    ids = sorted(roms.get_all_rom_ids())
    return {"".join(part.capitalize() for part in one.split("_")): one for one in ids}


def names() -> tuple[str, ...]:
    """Return the names of the games."""
    return tuple(_games())


def make(name: str, **env_args: Any) -> Environment:
    """Return a game; the module lists the arguments.

    Raises:
        ConfigError: there is no such game, or an argument is wrong.
    """
    if name not in _games():
        known = [f"atari/{one}" for one in names()]
        hint = did_you_mean(f"atari/{name}", known, "games", "quantilax list --environments atari")
        raise ConfigError(f"unknown environment 'atari/{name}'{hint}")
    arguments = dict(env_args)
    preset, workers = arguments.pop("preset", "dopamine"), number_of_workers(f"atari/{name}", arguments)
    if preset not in PRESETS:
        raise ConfigError(f"env_args: preset: unknown preset '{preset}'{did_you_mean(preset, PRESETS, 'presets')}")
    settings = pytree.from_dict(Settings, {**PRESETS[preset], **arguments}, "env_args")
    key = name, repr(sorted(env_args.items()))
    if key not in _MADE:
        _MADE[key] = _simulation(name, settings, workers, env_args)
    env: Environment = Hosted(simulation=_MADE[key])
    if settings.clip_reward:
        env = ClipReward(env=env, low=-1.0, high=1.0)
    return FrameStack(env=env, frames=settings.frame_stack) if settings.frame_stack > 1 else env


_MADE: dict[tuple[str, str], Simulation] = {}
"""One object per game and arguments, because it is part of the treedef."""


def _simulation(name: str, settings: Settings, workers: int, env_args: dict[str, Any]) -> Simulation:
    of_adapter = ("frame_stack", "clip_reward", "max_episode_steps")
    arguments = {key: value for key, value in vars(settings).items() if key not in of_adapter}
    maker = Maker("quantilax.simulators.atari", {"game": _games()[name], **arguments})
    try:
        first: Any = maker()
    except SimulatorError as error:
        raise ConfigError(f"env: atari/{name}: {error}") from None
    evaluation = None
    if settings.life_loss:
        evaluation = _simulation(name, pytree.replace(settings, life_loss=False), workers, env_args)
    return Simulation(
        f"atari/{name}",
        maker,
        Box((atari.SIZE, atari.SIZE, 1), np.uint8, 0, 255),
        Discrete(len(first.actions)),
        settings.max_episode_steps,
        masks=False,
        workers=workers,
        first=first,
        arguments=env_args,
        evaluation=evaluation,
    )
