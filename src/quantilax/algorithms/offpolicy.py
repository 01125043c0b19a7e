"""What the loops that learn from a replay share: figures, checks, the warm-up, drawing batches."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from quantilax import replay, signals
from quantilax.algorithms import base
from quantilax.errors import ConfigError
from quantilax.learning import exploration, normalize, rollout
from quantilax.pytree import dataclass
from quantilax.types import Environment, NStep, Policy, Transition


class Replayed(base.Headed):
    """A config whose loop learns from a replay, with a target network.

    It comes before the groups `Loop`, `Replay` and those of the target among the bases.
    """

    if TYPE_CHECKING:  # fields of the groups, for mypy; at run time these would replace their types
        total_timesteps: int
        num_envs: int
        num_epochs: int
        fill_buffer: int
        buffer_size: int
        batch_size: int
        n_step: int
        prioritized: bool
        importance_exponent: float
        target_update_freq: int
        polyak: float

    @property
    def warmup_steps(self) -> int:
        """Environment steps of `init`: `fill_buffer` in whole iterations, at most the whole run."""
        return min(-(-self.fill_buffer // self.num_envs), self.total_timesteps // self.num_envs) * self.num_envs

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration: one in each environment."""
        return self.num_envs

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the whole run."""
        return (self.total_timesteps - self.warmup_steps) // self.num_envs * self.num_epochs

    @property
    def target_period(self) -> int:
        """Gradient steps between updates of the target network."""
        return self.target_update_freq

    def derived(self) -> dict[str, Any]:
        """Return figures that follow from the config, see docs/guides/derived.md."""
        updates_per_step = self.num_epochs / self.num_envs
        constant = self.target_period / (1 - self.polyak) if self.polyak < 1 else float("inf")
        return self.figures(
            updates_per_step,
            samples_replayed_per_env_step=updates_per_step * self.batch_size,
            target_time_constant_updates=constant,
            target_time_constant_env_steps=constant / updates_per_step,
        )

    def check(self) -> None:
        """Raise `ConfigError` if fields contradict each other."""
        super().check()
        n, envs = self.n_step, self.num_envs
        steps = "one step" if n == 1 else f"n_step={n} steps"
        for name, lacks in (("buffer_size", "cannot hold"), ("total_timesteps", "is less than")):
            if getattr(self, name) < n * envs:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} {lacks} {steps} of num_envs={envs}; raise it to {n * envs} or more"
                )
        if self.warmup_steps < (n - 1) * envs:
            raise ConfigError(
                f"fill_buffer: {self.fill_buffer} and one step of num_envs={envs} are less than {steps}, which the"
                f" first gradient step reads; raise it to {(n - 1) * envs} or more"
            )

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        lines, batch, fill = super().advice(), self.batch_size, self.fill_buffer
        if batch < 16 and self.n_step == 1:
            lines.append(
                f"batch_size={batch} with 1-step targets: gradients this noisy tend to make runs that never"
                " settle (small batches can work with n-step returns, see docs/stability.md); set batch_size to 32 or more"
            )
        if self.gradient_steps == 0:
            lines.append(
                f"fill_buffer={fill}, a warm-up of {self.warmup_steps} steps, leaves nothing of"
                f" total_timesteps={self.total_timesteps} to learn from: no gradient step is taken; lower fill_buffer or raise"
                " total_timesteps"
            )
        if fill < batch:
            lines.append(
                f"fill_buffer={fill} is smaller than batch_size={batch}: the first batches repeat"
                f" the same few transitions; set fill_buffer to {batch} or more"
            )
        if self.buffer_size < batch:
            lines.append(
                f"buffer_size={self.buffer_size} is smaller than batch_size={batch}: every batch repeats"
                " transitions; raise buffer_size"
            )
        if self.target_update_freq > 1 and self.polyak > 0:
            lines.append(
                f"polyak={self.polyak} and target_update_freq={self.target_update_freq} are both active: every"
                f" {self.target_update_freq} gradient steps the target keeps {self.polyak} of itself, so it lags twice;"
                " set target_update_freq=1 for a soft target or polyak=0 for a hard one"
            )
        return lines

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        lines, config = super().caveats(), self
        if config.n_step > 1:
            lines.append(
                f"n_step={config.n_step}: the first {config.n_step} rewards are those of older policies that explored,"
                " without correction"
            )
        if config.prioritized and config.importance_exponent < 1:
            lines.append(
                "prioritized: transitions are not drawn as often as they happen; weights make up for it only at the end"
            )
        return lines


@dataclass
class State(base.State):
    """Everything that training carries from one iteration to the next."""

    target_params: PyTree
    priorities: replay.Priorities | None
    """Of the steps in the replay. None unless `prioritized`."""
    replay: replay.Ring
    """Steps as the environment gave them; nothing is normalised."""


def begin(env: Environment, config: Any, key: Key[Array, ""], policy: Policy) -> dict[str, Any]:
    """Reset the environments. Return the fields of `State` for them and for an empty replay.

    `policy` is the one of the warm-up.
    """
    begun = rollout.begin(env, config, key, policy.carry)
    envs = begun["envs"]
    spec, frames = rollout.transition_spec(env), env.observation_space.frames
    ring = replay.init(spec, envs.obs, config.buffer_size, config.n_step, envs.legal, frames)
    priorities = replay.priorities.init(ring, config.batch_size) if config.prioritized else None
    return {**begun, "replay": ring, "priorities": priorities}


def warm_up(env: Environment, config: Any, state: Any, key: Key[Array, ""], policy: Policy) -> Any:
    """Return the state after the steps of the warm-up, taken by a policy."""

    def one(state: Any, key: Key[Array, ""]) -> tuple[Any, None]:
        return observe(config, *rollout.collect(env, config, lambda *_: policy, state, key), key), None

    iterations = config.warmup_steps // config.num_envs
    return jax.lax.scan(one, state, jax.random.split(key, iterations))[0]


def observe(config: Any, state: Any, transitions: Transition, key: Key[Array, ""]) -> Any:
    """Write one step of each environment into the replay."""
    transition = jax.tree.map(lambda x: x[0], transitions)
    ring = replay.add(state.replay, transition, state.envs.obs, state.envs.legal)
    priorities = None if state.priorities is None else replay.priorities.add(state.priorities, ring)
    return replace(state, replay=ring, priorities=priorities)


def draw(config: Any, state: Any, key: Key[Array, ""], size: int) -> tuple[NStep, Any]:
    """Draw a normalised batch. If `prioritized`, also return where it lies in the replay.

    The batch then has weights, and beta rises linearly to 1 at the end of the run.
    """
    if state.priorities is None:
        batch, drawn = replay.sample(state.replay, key, size, config.gamma), None
    else:
        beta = exploration.linear_schedule(config.importance_exponent, 1.0, config.total_timesteps, state.env_steps)
        batch, drawn = replay.priorities.sample(state.priorities, state.replay, key, size, config.gamma, beta)
    return normalize.transitions(state.normalizer, batch), drawn


def experience(config: Any, state: Any) -> signals.Experience:
    """Return all steps in the replay."""
    rows = state.replay.rows  # (T, E)
    filled = (jnp.arange(rows.reward.shape[0]) < state.replay.iterations)[:, None]
    rewards = normalize.rewards(state.normalizer, rows.reward)
    is_there: Bool[Array, "T E"] = jnp.broadcast_to(filled, rows.reward.shape)
    return signals.Experience(rows.action, rewards, rows.terminated, rows.truncated, is_there)
