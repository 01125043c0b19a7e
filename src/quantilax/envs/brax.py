"""Adapter for brax 0.14 (https://github.com/google/brax): robots in JAX, with continuous actions.

brax's wrappers reset to a stored first state and overwrite the last observation, so the adapter
steps the bare environment. docs/environments/brax.md has the tasks.
"""

import inspect
from functools import cache
from typing import Any

from quantilax.envs import adapters
from quantilax.errors import ConfigError, did_you_mean, reason
from quantilax.types import Environment

with adapters.quiet():  # jaxopt, which brax imports, warns that it is no longer maintained
    from brax import envs  # type: ignore[import-untyped,import-not-found,unused-ignore]

LIMIT = 1_000
"""Steps after which brax's own training cuts an episode off."""
BACKENDS = ("spring", "positional", "generalized", "mjx")
"""brax's simulations. The first is the default, because it is the fastest on a CPU in most
tasks."""
REFUSED = {
    "fast": "it is a stand-in for brax's own tests",
    "swimmer": "its simulation of water calls JAX by an argument that JAX no longer has",
}
"""Tasks that cannot be used, and why."""
HIDDEN = ("use_contact_forces",)
"""Arguments of brax's classes that `make` does not take, because brax does not implement them."""


@cache
def _environment(name: str, args: tuple[tuple[str, Any], ...]) -> Any:
    """Return brax's object, one per name and arguments because it is part of the treedef."""
    with adapters.loading():
        return envs.get_environment(name, **dict(args))


@cache
def _parameters(name: str) -> dict[str, Any]:
    """Return the arguments of a task's class that are numbers or switches, with their defaults."""
    found = inspect.signature(envs._envs[name]).parameters
    kinds = (int, float, bool)
    return {key: one.default for key, one in found.items() if type(one.default) in kinds and key not in HIDDEN}


def make(name: str, **env_args: Any) -> Environment:
    """Return the task of brax with that name.

    Args:
        name: as in `names()`.
        env_args: `backend`, one of `BACKENDS`; `episode_length`; and numbers and switches of the
            task's own class, such as `ctrl_cost_weight` of ant.

    Raises:
        ConfigError: the name or an argument is unknown, or the task cannot be used.
    """
    if name in REFUSED:
        raise ConfigError(f"env: brax/{name} cannot be used: {REFUSED[name]}; choose {', '.join(names())}")
    if name not in names():
        raise ConfigError(f"unknown environment 'brax/{name}'{did_you_mean(name, names(), 'tasks')}")
    defaults = {"backend": BACKENDS[0], "episode_length": LIMIT, **_parameters(name)}
    given = adapters.arguments(env_args, defaults, f"brax/{name}")
    if given["backend"] not in BACKENDS:
        raise ConfigError(f"env_args: backend: expected {', '.join(BACKENDS)}, got '{given['backend']}'")
    length = given.pop("episode_length")
    try:
        env = _environment(name, tuple(sorted(given.items())))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"env_args: brax/{name} refuses these arguments: {reason(error)}") from None
    args = adapters.changed({**given, "episode_length": length}, defaults)
    return adapters.Physics(library="brax", env=env, task=name, episode_length=length, args=args)


def names() -> tuple[str, ...]:
    """Names of the tasks that can be used, including those that you registered with brax."""
    return tuple(sorted(set(envs._envs) - set(REFUSED)))
