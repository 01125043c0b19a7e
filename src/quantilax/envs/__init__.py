"""Environments: an adapter per library, probes with known returns, and checks of the contract.

The contract is `quantilax.types.Environment`.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import pytree, switches
from quantilax.envs import classes, finite, probes
from quantilax.envs import wrappers as wrapping
from quantilax.envs.stock import Stock
from quantilax.errors import ConfigError, did_you_mean, reason
from quantilax.pytree import MAX_INT32, shown
from quantilax.types import Box, Discrete, Environment, TimeStep, no_action

__all__ = [
    "FIELDS",
    "LIBRARIES",
    "as_environment",
    "fields_of",
    "is_known",
    "libraries",
    "make",
    "masks",
    "name_of",
    "names_of",
    "versions",
]

MAX_ACTIONS = 2**24
"""Most actions; a random action is made from a uniform float, which has no more values."""
MASKS = ("legal", "next_legal")
MEMBERS = ("name", "observation_space", "action_space", "max_episode_steps", "reset", "step")


class Identity:
    """Wraps an object so that it is compared by identity, whatever its own `==` does."""

    def __init__(self, value: Any) -> None:
        """Wrap the object."""
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Return whether both wrap the same object."""
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        """Hash the object's identity."""
        return id(self.value)


@pytree.dataclass
class Opaque:
    """Wraps an environment object that is not a pytree, which makes it static as a whole.

    A compiled program keeps the object's values at the time of compilation. To change a value, make
    a new object.
    """

    env: Identity = pytree.field(static=True)

    def __getattr__(self, member: str) -> Any:
        """Return a member of the contract from the object."""
        if member not in MEMBERS:
            raise AttributeError(member)
        return getattr(self.env.value, member)


class Library(NamedTuple):
    """A library of environments: `quantilax.envs.<name>` has `make` and `names`."""

    package: str
    """What is imported. The extra of quantilax that installs it is called like the library."""
    what: str
    """What it has, in a few words."""
    distributions: tuple[str, ...] = ()
    """What pip calls the packages on which its steps depend; (): `package`."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages on which its steps depend."""
        return {name: importlib.metadata.version(name) for name in self.distributions or (self.package,)}

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.package) is not None


LIBRARIES = {
    "gymnasium": Library("gymnasium", "Box2D, MuJoCo, toy text, and what others registered"),
    "atari": Library("ale_py", "the games of the Arcade Learning Environment (GPL)", ("ale-py",)),
    "navix": Library("navix", "MiniGrid in JAX"),
    "jumanji": Library("jumanji", "combinatorial tasks in JAX"),
    "pgx": Library("pgx", "games in JAX"),
    "xminigrid": Library("xminigrid", "grid worlds in JAX"),
    "craftax": Library("craftax", "Crafter, and a larger game of its kind, in JAX"),
    "brax": Library("brax", "robots in JAX, with continuous actions", ("brax", "mujoco", "mujoco-mjx")),
    "playground": Library(
        "mujoco_playground",
        "the DeepMind Control Suite in JAX, with continuous actions",
        ("playground", "mujoco", "mujoco-mjx"),
    ),
}
"""Libraries whose environments have names such as `gymnasium/LunarLander-v3`."""

OWN: dict[str, Mapping[str, type[Environment]]] = {"probes": probes.PROBES, "risk": finite.PROBLEMS}
"""Our own environments by library, as `names_of` takes them."""
OURS = {name: env for library in OWN.values() for name, env in library.items()}


def versions(env: Environment) -> dict[str, str]:
    """Return the versions of the library's packages on which an environment's steps depend."""
    library = env.name.partition("/")[0]
    return LIBRARIES[library].versions if library in LIBRARIES else {}


FIELDS = ("env", "env_args", "wrappers")
"""Fields of a section that say which environment to make."""


@switches.standard()
def make(name: str, env_args: Mapping[str, Any] | None = None, wrappers: Sequence[Any] | None = None) -> Environment:
    """Return the environment with a name.

    Args:
        name: a probe (`probe/...`), an environment of gymnax, one of another library
            (`gymnasium/LunarLander-v3`, `atari/Pong`), or a class or function of your own
            (`module:Class`).
        env_args: arguments for the library or for the class.
        wrappers: entries such as `flatten` or `{frame_stack: {frames: 4}}`, in the order in which
            they are applied; see `quantilax.envs.wrappers`.

    Raises:
        ConfigError: there is no such environment or wrapper, with a suggestion; or an argument does
            not fit.
    """
    if env_args is not None and not isinstance(env_args, Mapping):
        raise ConfigError(f"env_args: expected arguments such as '{{continuous: true}}', got {shown(env_args)}")
    if wrappers is not None and (isinstance(wrappers, str) or not isinstance(wrappers, Sequence)):
        raise ConfigError(f"wrappers: expected a list such as '[flatten]', got {shown(wrappers)}")
    return _wrapped(_bare(name, dict(env_args or {})), wrappers)


def _wrapped(env: Environment, wrappers: Sequence[Any] | None) -> Environment:
    for entry in wrappers or ():
        env = wrapping.wrap(env, entry)
    return env


def _bare(name: str, arguments: dict[str, Any]) -> Environment:
    library, _, rest = name.partition("/")
    if ":" in name:
        return _of_user(name, arguments)
    if library in LIBRARIES:
        found: Environment = _module(library).make(rest, **arguments)
        return found
    if name in OURS:
        return pytree.from_dict(OURS[name], arguments, "env_args")
    for own, found_there in OWN.items():
        if library == own.removesuffix("s"):
            raise ConfigError(f"unknown environment '{name}'{did_you_mean(name, found_there, own)}")
    if rest:
        raise ConfigError(f"unknown library '{library}'{did_you_mean(library, LIBRARIES, 'libraries')}")
    from quantilax.envs import gymnax  # slow (seconds): imported only if needed

    return gymnax.make(name, **arguments)


def _module(library: str) -> Any:
    """Return the adapter of a library.

    Raises:
        ConfigError: the library is not installed, or cannot be imported.
    """
    found = LIBRARIES[library]
    if not found.is_installed:
        raise ConfigError(f"env: {library} is not installed; install it with: pip install 'quantilax[{library}]'")
    try:
        return importlib.import_module(f"quantilax.envs.{library}")
    except ImportError as error:
        raise ConfigError(f"env: {library} cannot be imported: {reason(error)}; install it again") from None


@switches.standard()
def masks(env: Environment) -> bool:
    """Return whether an environment has masks of legal actions."""
    return len(jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0))) == 3


@switches.standard()
def names_of(library: str) -> tuple[str, ...]:
    """Return the names of a library's environments, as `make` takes them.

    Raises:
        ConfigError: there is no such library, or it is not installed.
    """
    if library in OWN:
        return tuple(OWN[library])
    if library == "gymnax":
        from quantilax.envs import gymnax

        return gymnax.names()
    if library not in LIBRARIES:
        raise ConfigError(f"unknown library '{library}'{did_you_mean(library, libraries(), 'libraries')}")
    return tuple(f"{library}/{name}" for name in _module(library).names())


def libraries() -> dict[str, tuple[str, bool]]:
    """Return what each library has, and whether it is installed."""
    ours = {
        "gymnax": ("classic control and MinAtar", True),
        "probes": ("tiny tasks with known returns", True),
        "risk": ("small problems on which measures of risk disagree", True),
    }
    return {**ours, **{name: (library.what, library.is_installed) for name, library in LIBRARIES.items()}}


def is_known(name: str) -> bool:
    """Return whether a name is that of an environment, or has the form `module:Class`."""
    from quantilax.envs import gymnax

    return ":" in name or name in OURS or name.partition("/")[0] in LIBRARIES or name in gymnax.names()


def name_of(env: Environment) -> str:
    """Return a name for which `make` returns this environment again, with `fields_of`.

    If there is none, return the environment's own `name`.
    """
    found: str = fields_of(env)["env"]
    return found


def fields_of(env: Environment) -> dict[str, Any]:
    """Return the fields of a section that make this environment again: some of `FIELDS`.

    If no name makes it, `env` is the environment's own `name`. A stock around it is left out,
    because the config's `risk_objective` puts it there.
    """
    entries: list[Any] = []
    inner: Any = env.env if isinstance(env, Stock) else env
    while True:
        for name, arguments in _candidates(inner):
            with contextlib.suppress(ConfigError):
                if classes.are_equal(_like(inner, make(name, arguments)), inner):
                    args = {"env_args": arguments} if arguments else {}
                    return {"env": name, **args, **({"wrappers": entries} if entries else {})}
        entry = wrapping.entry_of(inner) if isinstance(inner, wrapping.Wrapper) else None
        if entry is None:
            return {"env": env.name}
        entries.insert(0, entry)
        inner = inner.env


def _candidates(env: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and arguments with which `make` may make an environment."""
    for (name, _), (_, arguments, made) in _OF_USER.items():
        if made is env:
            yield name, arguments
    registered = getattr(env, "registered", None)  # None: `env` is not an adapter
    inner: Any = env if registered is None else env.env
    cls = type(inner.env.value if isinstance(inner, Opaque) else inner)
    candidates = [env.name, classes.name_of(cls)]
    if not registered and cls.__module__.split(".")[0] not in ("quantilax", "gymnax"):
        candidates.reverse()
    arguments = probes.arguments(env) if type(env) in OURS.values() else getattr(env, "env_args", {})
    yield from ((name, dict(arguments)) for name in candidates if name)


def _like(env: Any, made: Any) -> Any:
    """Return an environment that was made, under the name by which another was registered."""
    registered = getattr(env, "registered", None)
    if registered is None or not hasattr(made, "registered"):
        return made
    return dataclasses.replace(made, registered=registered)


_OF_USER: dict[tuple[str, str], tuple[Any, dict[str, Any], Environment]] = {}
"""(name, text of arguments) -> (class or function, arguments, environment).

One object serves all, because compiled programs belong to one object if it is not a pytree."""


def _of_user(name: str, arguments: dict[str, Any]) -> Environment:
    """Return the environment of a class or function of the user's."""
    found, key = classes.find(name), (name, repr(sorted(arguments.items())))
    if key not in _OF_USER or _OF_USER[key][0] is not found:
        of_gymnasium = {one: arguments[one] for one in arguments if one in OF_GYMNASIUM}
        is_class = isinstance(found, type) and not _is_of_gymnasium(found)
        made = classes.construct(found, name, arguments if is_class else _without(arguments, of_gymnasium))
        if _is_of_gymnasium(type(made)):
            env: Environment = _module("gymnasium").make(name, **arguments)
        elif of_gymnasium and not is_class:
            raise ConfigError(
                f"env_args: {next(iter(of_gymnasium))}: is only for environments of gymnasium; leave it out"
            )
        else:
            env = as_environment(made)
        _OF_USER[key] = found, arguments, env
    return _OF_USER[key][2]


OF_GYMNASIUM = ("vectorization_mode", "num_workers", "max_episode_steps")
"""Arguments that the adapter of gymnasium takes itself."""


def _is_of_gymnasium(cls: type) -> bool:
    return any(base.__module__ == "gymnasium.core" for base in cls.__mro__)


def _without(arguments: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


def as_environment(
    env: Any, env_args: Mapping[str, Any] | None = None, wrappers: Sequence[Any] | None = None
) -> Environment:
    """Return an environment that fulfils the contract.

    Args:
        env: a name for `make`, an environment of gymnax, which gets its adapter, a function that
            makes an environment of gymnasium, or any other object, which is checked.
        env_args: for `make`, if a name is given, or for the function.
        wrappers: entries as for `make`.

    Raises:
        ConfigError: the object lacks a member or has one of the wrong kind, or its `reset` or
            `step` returns something that the contract does not allow.
    """
    if isinstance(env, str):
        made = make(env, env_args, wrappers)
        _check_members(made)  # gymnax also knows environments that users registered
        return made
    if (isinstance(env, type) and _is_of_gymnasium(env)) or inspect.isfunction(env):
        env, env_args = _module("gymnasium").make(env, **(env_args or {})), None
    if env_args:
        raise ConfigError("env_args: are for environments that a name or a function makes; make the object with them")
    if wrappers:
        return _wrapped(as_environment(env), wrappers)
    if hasattr(env, "step_env") and hasattr(env, "default_params"):
        from quantilax.envs import gymnax

        env = gymnax.Gymnax(env=env, params=env.default_params)
    if _is_of_gymnasium(type(env)):
        raise ConfigError(
            f"env: {type(env).__name__} is one environment of gymnasium, and training needs several; give its name, such as"
            " 'gymnasium/CartPole-v1', or a function that makes one"
        )
    missing = [member for member in MEMBERS if not hasattr(env, member)]
    if missing:
        raise ConfigError(
            f"env: {type(env).__name__} has no '{missing[0]}'; give a name, a gymnax environment, or an object or module:Class"
            f" with {', '.join(MEMBERS)}"
        )
    if jax.tree_util.all_leaves([env]):  # not registered as a pytree
        env = Opaque(env=Identity(env))
    _check_contract(env)
    return env


def _check_members(env: Environment) -> None:
    if not isinstance(env.name, str):
        raise ConfigError(f"env: an environment's name must be text, got {shown(env.name)}")
    _check_spaces(env)
    if not _is_limit(env.max_episode_steps):
        raise ConfigError(
            f"env: {env.name}'s max_episode_steps must be a whole number from 1 to {MAX_INT32}, so that evaluations end;"
            f" got {shown(env.max_episode_steps)}"
        )


@switches.standard()
def _check_contract(env: Environment) -> None:
    _check_members(env)
    space, actions = env.observation_space, env.action_space
    pytree.check(env, f"env: {env.name}")

    def one_step(env: Environment, key: jax.Array) -> Any:
        _check_spaces(env)
        key, key_step = jax.random.split(key)  # `jax_debug_key_reuse` allows each key once
        state, obs, *legal = env.reset(key)
        action = no_action(actions)
        return (state, obs, *legal), env.step(key_step, state, action)

    try:
        leaves = jax.tree.map(jnp.asarray, env)  # training traces them, whatever their type
        (state, obs, *legal), (next_state, time_step) = jax.eval_shape(one_step, leaves, jax.random.key(0))
    except ConfigError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"env: {env.name}'s reset or step does not fit the contract: {reason}") from error
    if not isinstance(time_step, TimeStep):
        raise ConfigError(f"env: {env.name}'s step must return (state, quantilax.types.TimeStep)")
    if _kinds(state) != _kinds(next_state):
        raise ConfigError(f"env: {env.name}'s state changes its structure, shapes or dtypes from reset to step")
    of_masks: list[tuple[str, Any, tuple[int, ...], Any]] = []
    told = {"reset's mask": legal[0] if legal else None, **{f"TimeStep.{x}": getattr(time_step, x) for x in MASKS}}
    if any(mask is not None for mask in told.values()):
        if not isinstance(actions, Discrete):
            raise ConfigError(f"env: {env.name} has masks of legal actions, which real-valued actions cannot have")
        missing = [label for label, mask in told.items() if mask is None]
        if missing:
            raise ConfigError(
                f"env: {env.name}: {missing[0]} is missing, and others are there; with masks reset returns (state,"
                " observation, mask) and a TimeStep has legal and next_legal"
            )
        of_masks = [(label, mask, (actions.n,), np.bool_) for label, mask in told.items()]
    for label, value, shape, kind in (
        *of_masks,
        ("reset's observation", obs, space.shape, space.number),
        ("TimeStep.obs", time_step.obs, space.shape, space.number),
        ("TimeStep.next_obs", time_step.next_obs, space.shape, space.number),
        ("TimeStep.reward", time_step.reward, (), np.floating),
        ("TimeStep.terminated", time_step.terminated, (), np.bool_),
        ("TimeStep.truncated", time_step.truncated, (), np.bool_),
    ):
        if not hasattr(value, "shape") or value.shape != tuple(shape):
            raise ConfigError(
                f"env: {env.name}: {label} must have shape {tuple(shape)}, got {getattr(value, 'shape', value)}"
            )
        if not jnp.issubdtype(value.dtype, kind):
            wanted = getattr(kind, "__name__", kind)
            raise ConfigError(f"env: {env.name}: {label} must be of type {wanted}, got {value.dtype}")


def _check_spaces(env: Environment) -> None:
    """Check the spaces.

    While tracing, this finds sizes that depend on a leaf of the environment.
    """
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, Box) or not isinstance(actions, Discrete | Box):
        raise ConfigError(
            f"env: {env.name}'s observation_space must be a quantilax.types.Box and its action_space a Discrete or Box"
        )
    if isinstance(actions, Discrete) and not (_is_size(actions.n) and actions.n <= MAX_ACTIONS):
        raise ConfigError(
            f"env: {env.name}: the n of a Discrete must be an int from 1 to {MAX_ACTIONS}, got {shown(actions.n)}"
        )
    for box in (space, actions):
        if not isinstance(box, Box):
            continue
        if not isinstance(box.shape, tuple) or not all(_is_size(size) for size in box.shape):
            raise ConfigError(
                f"env: {env.name}: the shape of a Box must be a tuple such as (4,), got {shown(box.shape)}; its sizes"
                " are ints of 1 or more"
            )
        if not _is_number(box):
            raise ConfigError(
                f"env: {env.name}: the dtype of a Box must be that of real numbers or bools, such as jnp.float32, got"
                f" {shown(box.dtype)}"
            )
        if not _are_bounds(box):
            raise ConfigError(
                f"env: {env.name}: the bounds of a Box must be numbers, or arrays of its shape, with low <= high; got"
                f" {shown(box.low)} and {shown(box.high)}"
            )


def _are_bounds(box: Box) -> bool:
    """Return whether `low` and `high` are numbers that fit the shape, with low <= high."""
    try:
        low, high = np.asarray(box.low), np.asarray(box.high)
        fits = all(np.broadcast_shapes(end.shape, box.shape) == box.shape for end in (low, high))
        return fits and bool((low <= high).all())
    except (TypeError, ValueError):
        return False


def _kinds(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.dtype, leaf.shape) for leaf in leaves]


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _is_number(box: Box) -> bool:
    try:
        kinds = [jnp.issubdtype(box.number, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)]
    except (TypeError, ValueError):
        return False
    return box.dtype is not None and any(kinds)


def _is_limit(value: Any) -> bool:
    if isinstance(value, jax.core.Tracer):
        return value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    try:
        limit = np.asarray(value)
    except (TypeError, ValueError):
        return False
    return limit.shape == () and limit.dtype.kind in "iuf" and bool(1 <= limit <= MAX_INT32 and limit == int(limit))
