"""What adapters of JAX libraries share.

Checked arguments, the reset after a last step, and the interface of physics that brax and
MuJoCo Playground have in common.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from quantilax import pytree, switches
from quantilax.errors import ConfigError
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, TimeStep


def arguments(given: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return `defaults` with what was given instead.

    Args:
        given: the arguments of a user.
        defaults: every argument that exists. The type of a default is that of the argument; whole
            numbers are at least 1.
        name: the environment, for messages.

    Raises:
        ConfigError: an argument is unknown, or has another type.
    """
    for argument, value in given.items():
        if argument not in defaults:
            known = ", ".join(sorted(defaults))
            raise ConfigError(f"env_args: unknown argument '{argument}'; {name} takes {known}")
        kind = type(defaults[argument])
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is int and fits:
            fits = 1 <= value <= MAX_INT32
        if not fits:
            raise ConfigError(
                f"env_args: {argument}: expected a value such as {defaults[argument]!r}, got {shown(value)}"
            )
    return {argument: type(default)(given.get(argument, default)) for argument, default in defaults.items()}


def changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the arguments that differ from their defaults, by name."""
    return tuple(sorted((name, value) for name, value in values.items() if value != defaults[name]))


def strong(tree: PyTree) -> PyTree:
    """Return a state whose arrays have strong types, which a loop needs to carry it."""

    def one(leaf: Any) -> Array:
        array = jnp.asarray(leaf)
        typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return array if typed else jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map(one, tree)


def select(done: Bool[Array, ""], first: PyTree, successor: PyTree) -> PyTree:
    """Return the first state of the next episode after a last step, else the successor."""
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), first, successor)


@pytree.dataclass
class Physics:
    """A task of brax or MuJoCo Playground as an `Environment`.

    The adapter counts the steps, because the libraries leave that to wrappers that overwrite the
    last observation. A state is the library's, and the steps of the episode so far.
    """

    library: str
    env: Any = pytree.field(static=True)
    task: str
    episode_length: int
    """Steps after which an episode is cut off."""
    args: tuple[tuple[str, Any], ...] = ()
    """The arguments of `make` that differ from their defaults."""

    @property
    def name(self) -> str:
        """The name that `quantilax.envs.make` takes."""
        return f"{self.library}/{self.task}"

    @property
    def env_args(self) -> dict[str, Any]:
        """The arguments of `make` that differ from their defaults."""
        return dict(self.args)

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is cut off."""
        return self.episode_length

    @property
    def observation_space(self) -> Box:
        """A vector without bounds."""
        return Box(_shape(self.env))

    @property
    def action_space(self) -> Box:
        """A number from -1 to 1 for each actuator."""
        return Box((self.env.action_size,), jnp.float32, -1, 1)

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Array]:
        """Begin an episode."""
        with _deprecated():
            first = strong(self.env.reset(key))
        return (first, jnp.zeros((), jnp.int32)), first.obs

    def step(self, key: Key[Array, ""], state: PyTree, action: Float[Array, "A"]) -> tuple[PyTree, TimeStep]:
        """Take one step. If the simulation fails (NaN), the episode terminates with zeros."""
        inner, steps = jax.tree.map(lambda leaf: leaf, state)  # the libraries write into dicts of a state
        with _deprecated():
            told = strong(self.env.step(inner, action))
        failed = ~(jnp.isfinite(told.obs).all() & jnp.isfinite(told.reward))
        next_obs = jnp.where(failed, 0, told.obs)
        terminated = (told.done > 0) | failed
        truncated = ~terminated & (steps + 1 >= self.episode_length)
        state, obs = select(terminated | truncated, self.reset(key), ((told, steps + 1), next_obs))
        return state, TimeStep(
            obs=obs,
            next_obs=next_obs,
            reward=jnp.where(failed, 0, told.reward),
            terminated=terminated,
            truncated=truncated,
        )


@contextlib.contextmanager
def _deprecated() -> Iterator[None]:
    """Hide that brax reads fields of MJX by deprecated names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@cache
def _shape(env: Any) -> tuple[int, ...]:
    """Return the shape of an observation."""
    with switches.standard(), _deprecated():
        shape: tuple[int, ...] = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape
    return shape


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what libraries print and warn of while they are imported or load a model."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Let a library load a model of MuJoCo without warnings, which MuJoCo also writes to a file."""
    import mujoco  # type: ignore[import-untyped,import-not-found,unused-ignore]

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with switches.standard(), jax.ensure_compile_time_eval(), quiet():
            yield
    finally:
        mujoco.set_mju_user_warning(before)
