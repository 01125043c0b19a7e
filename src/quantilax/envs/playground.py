"""Adapter for the DeepMind Control Suite of MuJoCo Playground 0.2.

MuJoCo Playground (https://github.com/google-deepmind/mujoco_playground) leaves time limits to the
wrappers of brax, so the adapter steps the bare environment. docs/environments/playground.md has the
tasks.
"""

from functools import cache
from typing import Any

from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Environment

with adapters.quiet():  # it imports brax's wrappers, and says that warp is not there
    from mujoco_playground import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        dm_control_suite,
        locomotion,
        manipulation,
    )

REFUSED = {
    **dict.fromkeys((*locomotion.ALL_ENVS, *manipulation.ALL_ENVS), "it clones a repository of robots when it is made"),
    **dict.fromkeys(("ReacherEasy", "ReacherHard"), "it calls a function that MuJoCo no longer has"),
}
"""Tasks that cannot be used, and why."""


@cache
def _environment(name: str) -> Any:
    """Return the library's object, one per name because it is part of the treedef."""
    with adapters.loading():
        return dm_control_suite.load(name, config_overrides={"impl": "jax"})  # its default is warp, for GPUs of NVIDIA


def make(name: str, **env_args: Any) -> Environment:
    """Return the task of the DeepMind Control Suite with that name.

    Args:
        name: as in `names()`.
        env_args: `episode_length`.

    Raises:
        ConfigError: the name or an argument is unknown, or the task cannot be used.
    """
    command = "quantilax list --environments playground"
    if name in REFUSED:
        raise ConfigError(
            f"env: playground/{name} cannot be used: {REFUSED[name]}; choose a task of the Control Suite ({command})"
        )
    if name not in names():
        raise ConfigError(f"unknown environment 'playground/{name}'{did_you_mean(name, names(), 'tasks', command)}")
    defaults = {"episode_length": int(dm_control_suite.get_default_config(name).episode_length)}
    given = adapters.arguments(env_args, defaults, f"playground/{name}")
    args = adapters.changed(given, defaults)
    return adapters.Physics(
        library="playground", env=_environment(name), task=name, episode_length=given["episode_length"], args=args
    )


def names() -> tuple[str, ...]:
    """Names of the tasks that can be used, including those that you registered with the suite."""
    return tuple(sorted(set(dm_control_suite.ALL_ENVS) - set(REFUSED)))
