"""Play single episodes, and make pictures of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from quantilax.envs import host
from quantilax.envs.wrappers import of_evaluation
from quantilax.errors import ConfigError
from quantilax.learning import rollout
from quantilax.types import Environment

PALETTE = np.array(
    [
        (0, 0, 0),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    np.uint8,
)
"""Colours of a picture's channels, which the colour-blind can tell apart (Okabe and Ito 2008)."""


class Episode(NamedTuple):
    """One episode."""

    observations: list[np.ndarray]
    """From the first to the last."""
    actions: list[np.ndarray]
    score: float
    """The return, in the rewards that learning curves show."""
    simulated: tuple[int, np.ndarray] | None
    """Seed of the simulator's episode and its actions, if the environment has a simulator."""


def play(env: Environment, act: Callable[..., Any] | None, episodes: int, seed: int) -> Iterator[Episode]:
    """Play episodes one after another.

    Args:
        env: the environment; `evaluation`, if it has one, is played.
        act: (observation, key[, mask]) -> action; None: random actions.
        episodes: how many.
        seed: of the play.
    """
    env = of_evaluation(env)
    random = rollout.random_action(env)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    choose = (
        jax.jit(lambda obs, key, *legal: random.act(obs, (), key, *(legal or (None,)))[0])
        if act is None
        else jax.jit(act)
    )
    key = jax.random.key(seed)
    for _ in range(episodes):
        key, key_reset = jax.random.split(key)
        state, obs, *legal = reset(key_reset)
        begun, observations, actions, score, done = host.state_of(state), [np.asarray(obs)], [], 0.0, False
        while not done:
            key, key_act, key_step = jax.random.split(key, 3)
            action = choose(obs, key_act, *legal)
            state, told = step(key_step, state, action)
            obs, legal = told.obs, [] if told.legal is None else [told.legal]
            actions.append(np.asarray(action))
            observations.append(np.asarray(told.next_obs))
            score += float(told.reward if told.raw_reward is None else told.raw_reward)
            done = bool(told.terminated | told.truncated)
        ended = host.state_of(state)
        simulated = None if begun is None or ended is None else (int(begun.seed), np.asarray(ended.log))
        yield Episode(observations, actions, score, simulated)


def pictures(env: Environment, episode: Episode) -> Iterator[np.ndarray]:
    """Yield a picture (height, width, 3) for each observation of an episode.

    Raises:
        ConfigError: neither the simulator nor the observations give pictures.
    """
    if episode.simulated is not None:
        yield from host.pictures(env, *episode.simulated)
        return
    for obs in episode.observations:
        if obs.ndim != 3:
            raise ConfigError(f"--video: {env.name} has no pictures: its observations are not grids; leave --video out")
        planes = np.concatenate([np.full((*obs.shape[:2], 1), 0.5), obs.astype(float)], axis=2)
        yield PALETTE[planes.argmax(axis=2) % len(PALETTE)]


def write_gif(path: Path, frames: Iterator[np.ndarray], frames_per_second: int = 30) -> None:
    """Write an animated GIF; small pictures are enlarged.

    Raises:
        ConfigError: the file cannot be written.
    """
    from PIL import Image  # matplotlib brings it

    images = []
    for frame in frames:
        image = Image.fromarray(np.asarray(frame, np.uint8))
        factor = max(1, 200 // max(image.size))
        images.append(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST))
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / frames_per_second), loop=0)
    except OSError as error:
        raise ConfigError(f"--video: {path} cannot be written: {error.strerror or error}") from None
