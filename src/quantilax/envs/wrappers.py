"""Wrappers: small environments around another one, for JAX and host environments alike.

| in YAML | what it does |
|---|---|
| `sticky_actions: {probability: 0.25}` | repeats the last action with some probability |
| `action_repeat: {times: 4}` | repeats each action, and adds the rewards |
| `time_limit: {steps: 1000}` | cuts episodes off, as truncations |
| `scale_reward: {factor: 0.1}` | multiplies rewards for learning |
| `clip_reward: {low: -1, high: 1}` | clips rewards for learning |
| `frame_stack: {frames: 4}` | shows the last observations together |
| `flatten` | turns observations into vectors |
| `one_hot` | turns whole numbers in observations into vectors of 0 and 1 |
| `normalize` | maps bounded observations to 0..1 |

`wrappers: [sticky_actions, {frame_stack: {frames: 4}}]` applies them in this order, the first next
to the environment. Rewards that a wrapper changes are for learning only: learning curves show
`TimeStep.raw_reward`.
"""

import dataclasses
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from quantilax import pytree
from quantilax.errors import ConfigError, did_you_mean
from quantilax.types import Box, Discrete, Environment, Observation, TimeStep, no_action


@pytree.dataclass
class Wrapper:
    """An environment around another one; by itself it changes nothing."""

    env: Environment

    @property
    def name(self) -> str:
        """That of the wrapped environment."""
        return self.env.name

    @property
    def observation_space(self) -> Box:
        """That of the wrapped environment."""
        return self.env.observation_space

    @property
    def action_space(self) -> Discrete | Box:
        """That of the wrapped environment."""
        return self.env.action_space

    @property
    def max_episode_steps(self) -> Int[Array, ""] | int:
        """That of the wrapped environment."""
        return self.env.max_episode_steps

    @property
    def env_args(self) -> dict[str, Any]:
        """Those of the wrapped environment."""
        found: dict[str, Any] = getattr(self.env, "env_args", {})
        return found

    @property
    def evaluation(self) -> "Wrapper":
        """The same around the environment that evaluations play."""
        return replace(self, env=of_evaluation(self.env))

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        return self.env.reset(key)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        return self.env.step(key, state, action)


def of_evaluation(env: Environment) -> Environment:
    """Return the environment that evaluations play; it differs if learning ends episodes early."""
    found: Environment = getattr(env, "evaluation", env)
    return found


@pytree.dataclass
class StickyActions(Wrapper):
    """Repeats the last action with `probability`, unseen in observations.

    The action before the first is 0. As in MinAtar, the last action is kept over the end of an
    episode. If the environment has masks, a last action that is no longer legal is not repeated.

    Source: Machado et al. (2018), https://arxiv.org/abs/1709.06009, section 5.
    """

    probability: float = pytree.field(0.1, "probability that the last action is taken instead", ge=0, le=1)

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        state, obs, *legal = self.env.reset(key)
        return ((state, no_action(self.env.action_space), *legal), obs, *legal)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step with the given action or the last one."""
        key, key_sticky = jax.random.split(key)
        inner, last, *legal = state
        repeats = jax.random.bernoulli(key_sticky, self.probability)
        if legal:
            repeats &= legal[0][last]
        action = jnp.where(repeats, last, action).astype(last.dtype)
        inner, time_step = self.env.step(key, inner, action)
        return (inner, action, *([time_step.legal] if legal else [])), time_step


@pytree.dataclass
class ActionRepeat(Wrapper):
    """Takes each action `times` times, or to the end of the episode, and adds the rewards."""

    times: int = pytree.field(4, "steps of the wrapped environment in one step", ge=1)

    @property
    def max_episode_steps(self) -> Int[Array, ""]:
        """That of the wrapped environment, in steps of this one."""
        return -(-jnp.asarray(self.env.max_episode_steps) // self.times)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take up to `times` steps."""

        def again(carry: tuple[Any, TimeStep], key: Key[Array, ""]) -> tuple[tuple[Any, TimeStep], None]:
            state, so_far = carry
            done = so_far.terminated | so_far.truncated
            next_state, next_step = self.env.step(key, state, action)
            rewards = {name: _sum(getattr(so_far, name), getattr(next_step, name)) for name in ("reward", "raw_reward")}
            new = (next_state, next_step._replace(**rewards))
            return jax.tree.map(lambda old, new: jnp.where(done, old, new), carry, new), None

        keys = jax.random.split(key, self.times)
        return jax.lax.scan(again, self.env.step(keys[0], state, action), keys[1:])[0]


@pytree.dataclass
class TimeLimit(Wrapper):
    """Cuts episodes off after `steps`, as truncations."""

    steps: int = pytree.field(1000, "longest episode, in steps", ge=1)

    @property
    def max_episode_steps(self) -> Int[Array, ""]:
        """The shorter of this limit and that of the wrapped environment."""
        return jnp.minimum(jnp.asarray(self.env.max_episode_steps), self.steps)

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        state, *seen = self.env.reset(key)
        return ((state, jnp.zeros((), jnp.int32)), *seen)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        key, key_reset = jax.random.split(key)
        inner, clock = state
        inner, told = self.env.step(key, inner, action)
        ended, cut = told.terminated | told.truncated, clock + 1 >= self.steps
        first, obs, *legal = tuple(self.env.reset(key_reset))
        begins = cut & ~ended
        inner, obs = jax.tree.map(lambda new, old: jnp.where(begins, new, old), (first, obs), (inner, told.obs))
        mask = None if told.legal is None else jnp.where(begins, legal[0], told.legal)
        clock = jnp.where(ended | cut, 0, clock + 1)
        return (inner, clock), told._replace(obs=obs, truncated=told.truncated | cut, legal=mask)


@pytree.dataclass
class ScaleReward(Wrapper):
    """Multiplies rewards by `factor` for learning."""

    factor: float = pytree.field(1.0, "what rewards are multiplied by")

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        state, told = self.env.step(key, state, action)
        return state, _rewarded(told, self.factor * told.reward)


@pytree.dataclass
class ClipReward(Wrapper):
    """Clips rewards to `low` .. `high` for learning."""

    low: float = pytree.field(-1.0, "lowest reward")
    high: float = pytree.field(1.0, "highest reward")

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        state, told = self.env.step(key, state, action)
        return state, _rewarded(told, jnp.clip(told.reward, self.low, self.high))


@pytree.dataclass
class FrameStack(Wrapper):
    """Shows the last `frames` observations along the last axis, the newest last.

    Before the first observation of an episode there are zeros. The replay stores each observation
    once and stacks them when it is read.
    """

    frames: int = pytree.field(4, "observations that are shown together", ge=1)

    @property
    def observation_space(self) -> Box:
        """The stacked observations."""
        space = self.env.observation_space
        if not space.shape:
            raise ConfigError(f"frame_stack: {self.name} observes one number; put flatten before it")
        if space.frames != 1:
            raise ConfigError(f"frame_stack: the observations of {self.name} are stacked already; leave one out")
        low, high = (self._bound(bound, space.shape) for bound in (space.low, space.high))
        low = np.minimum(low, 0) if np.ndim(low) else min(low, 0)  # zeros come before the first observation
        high = np.maximum(high, 0) if np.ndim(high) else max(high, 0)
        shape = (*space.shape[:-1], space.shape[-1] * self.frames)
        return Box(shape, space.dtype, low, high, self.frames)

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        state, obs, *legal = self.env.reset(key)
        stack = self._push(None, obs)
        return ((state, stack), stack, *legal)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        inner, stack = state
        inner, told = self.env.step(key, inner, action)
        next_obs = self._push(stack, told.next_obs)
        stack = jnp.where(told.terminated | told.truncated, self._push(None, told.obs), next_obs)
        return (inner, stack), told._replace(obs=stack, next_obs=next_obs)

    def _push(self, stack: Observation | None, obs: Observation) -> Observation:
        kept = obs.shape[-1] * (self.frames - 1)
        before = jnp.zeros((*obs.shape[:-1], kept), obs.dtype) if stack is None else stack[..., obs.shape[-1] :]
        return jnp.concatenate([before, obs], axis=-1)

    def _bound(self, bound: Any, shape: tuple[int, ...]) -> Any:
        return bound if np.ndim(bound) == 0 else np.tile(np.broadcast_to(bound, shape), self.frames)


@pytree.dataclass
class Encode(Wrapper):
    """A wrapper that only changes each observation, by `encode`."""

    def encode(self, obs: Observation) -> Observation:
        """Return what is shown for an observation."""
        raise NotImplementedError

    def reset(self, key: Key[Array, ""]) -> Any:
        """Begin an episode."""
        state, obs, *legal = self.env.reset(key)
        return (state, self.encode(obs), *legal)

    def step(self, key: Key[Array, ""], state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Take one step."""
        state, told = self.env.step(key, state, action)
        return state, told._replace(obs=self.encode(told.obs), next_obs=self.encode(told.next_obs))


@pytree.dataclass
class Flatten(Encode):
    """Turns each observation into a vector."""

    @property
    def observation_space(self) -> Box:
        """A vector."""
        space = self.env.observation_space
        low, high = (
            bound if np.ndim(bound) == 0 else np.ravel(np.broadcast_to(bound, space.shape))
            for bound in (space.low, space.high)
        )
        return Box((int(np.prod(space.shape, dtype=int)),), space.dtype, low, high)

    def encode(self, obs: Observation) -> Observation:
        """Return a vector."""
        return jnp.ravel(obs)


@pytree.dataclass
class OneHot(Encode):
    """Turns each whole number of an observation into a vector of 0 and 1, along a last axis."""

    @property
    def observation_space(self) -> Box:
        """Zeros and ones."""
        return Box((*self.env.observation_space.shape, self._range()[1]), jnp.bool_, 0, 1)

    def encode(self, obs: Observation) -> Observation:
        """Return the vectors."""
        low, number = self._range()
        return jax.nn.one_hot(jnp.asarray(obs, jnp.int32) - low, number, dtype=jnp.bool_)

    def _range(self) -> tuple[int, int]:
        space = self.env.observation_space
        low, high = np.min(space.low), np.max(space.high)
        if not jnp.issubdtype(space.number, jnp.integer) or not np.isfinite([low, high]).all() or high - low >= 1024:
            raise ConfigError(
                f"one_hot: the observations of {self.name} are not whole numbers between bounds less than 1,024 apart;"
                " leave one_hot out"
            )
        return int(low), int(high) - int(low) + 1


@pytree.dataclass
class Normalize(Encode):
    """Maps observations from their bounds to 0..1.

    For observations without bounds, `normalize_observations` keeps running moments.
    """

    @property
    def observation_space(self) -> Box:
        """Real numbers from 0 to 1."""
        space = self.env.observation_space
        ends = np.concatenate([np.ravel(space.low), np.ravel(space.high)]).astype(float)
        if not np.isfinite(ends).all() or np.max(np.abs(ends)) > 1e30:
            raise ConfigError(
                f"normalize: the observations of {self.name} have no bounds; set normalize_observations: true instead"
            )
        return Box(space.shape, jnp.float32, 0.0, 1.0, space.frames)

    def encode(self, obs: Observation) -> Observation:
        """Return numbers from 0 to 1."""
        space = self.env.observation_space
        low, high = (np.asarray(bound, np.float32) for bound in (space.low, space.high))
        return (jnp.asarray(obs, jnp.float32) - low) / np.where(high > low, high - low, 1)


WRAPPERS: dict[str, type[Wrapper]] = {
    "sticky_actions": StickyActions,
    "action_repeat": ActionRepeat,
    "time_limit": TimeLimit,
    "scale_reward": ScaleReward,
    "clip_reward": ClipReward,
    "frame_stack": FrameStack,
    "flatten": Flatten,
    "one_hot": OneHot,
    "normalize": Normalize,
}


def wrap(env: Environment, entry: Any) -> Environment:
    """Return an environment inside the wrapper that an entry of `wrappers` names.

    Args:
        env: the environment.
        entry: a name, or `{name: {field: value}}`.

    Raises:
        ConfigError: there is no such wrapper or field, or the wrapper does not fit the environment.
    """
    name, arguments = (entry, {}) if isinstance(entry, str) else _only_item(entry)
    if name not in WRAPPERS:
        raise ConfigError(f"wrappers: unknown wrapper '{name}'{did_you_mean(name, WRAPPERS, 'wrappers')}")
    cls = WRAPPERS[name]
    fields = [field.name for field in dataclasses.fields(cls) if field.name != "env"]
    for key in arguments:
        if key not in fields:
            hint = did_you_mean(key, fields, "fields") if fields else "; it has none"
            raise ConfigError(f"wrappers: {name}: unknown field '{key}'{hint}")
    converted = pytree.convert(cls, arguments, f"wrappers: {name}")
    if cls is TimeLimit and (limited := _limited(env, converted.get("steps", 1000))) is not None:
        return limited
    made = cls(env=env, **converted)
    made.observation_space  # noqa: B018  it checks whether the wrapper fits
    return made


def _limited(env: Any, steps: int) -> Environment | None:
    """Return a host environment, inside its wrappers, with a time limit of its own.

    `TimeLimit` resets at each step, in case that the episode ends there, and a simulator takes long
    for that. None: the environment is of JAX, or a wrapper between counts other steps.
    """
    if hasattr(env, "with_time_limit"):
        limited: Environment = env.with_time_limit(steps)
        return limited
    inner = _limited(env.env, steps) if isinstance(env, Wrapper) and not isinstance(env, ActionRepeat) else None
    return None if inner is None else replace(env, env=inner)


def entry_of(env: Wrapper) -> str | dict[str, Any] | None:
    """Return the entry of `wrappers` from which `wrap` makes a wrapper; None if there is none."""
    names = {cls: name for name, cls in WRAPPERS.items()}
    if type(env) not in names:
        return None
    values = {f.name: getattr(env, f.name) for f in dataclasses.fields(env) if f.name != "env"}
    name = names[type(env)]
    return {name: {key: _plain(value) for key, value in values.items()}} if values else name


def _only_item(entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"wrappers: expected names, or entries such as 'frame_stack: {{frames: 4}}', got {entry!r}")
    (name, arguments), *_ = entry.items()
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise ConfigError(f"wrappers: {name}: expected fields such as '{{frames: 4}}', got {arguments!r}")
    return str(name), arguments


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else float(f"{float(value):.7g}")


def _rewarded(told: TimeStep, reward: Any) -> TimeStep:
    raw = told.reward if told.raw_reward is None else told.raw_reward
    return told._replace(reward=jnp.asarray(reward, jnp.float32), raw_reward=raw)


def _sum(one: Any, other: Any) -> Any:
    return None if one is None else one + other
