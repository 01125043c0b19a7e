"""Groups of hyperparameters, each declared once with its default, meaning, unit and range.

A config class combines groups and fields of its own. `default` gives a group's field another
default:

    @dataclass
    class Config(Loop, Optimiser):
        total_timesteps: int = default(Loop, "total_timesteps", 491_520)

The config's `PAPER` lists the values used in the publication.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from quantilax.networks import ACTIVATIONS, COMPUTE_DTYPES, TORSOS
from quantilax.pytree import dataclass, field

LEAST, MOST = 1e-16, 1e16
"""Bounds on factors and divisors; beyond them squares and quotients leave the range of 32-bit
floats."""


def default(group: type, name: str, value: Any) -> Any:
    """Declare a group's field again, with another default."""
    return dataclasses.field(default=value, metadata=group.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


@dataclass
class Loop:
    """The length of a run, its environments and its evaluations."""

    PAPER: ClassVar[Mapping[str, Any]] = {}
    """The publication's values by field, without those that have no field here."""

    total_timesteps: int = field(100_000, "environment steps of the run, over all environments, warm-up included", ge=1)
    eval_freq: int = field(5_000, "environment steps between evaluations", ge=1)
    eval_episodes: int = field(128, "episodes of an evaluation, in parallel, each counted once", ge=1)
    eval_epsilon: float = field(0.0, "probability of a random action in evaluations and in `policy`", ge=0, le=1)
    metrics: bool = field(True, "measure loss, gradient norm, ... between evaluations; costs nothing when off")
    signals: bool = field(False, "measure what `quantilax diagnose` reads, at evaluations; costs nothing when off")
    num_envs: int = field(10, "environments, one step each per iteration", ge=1)
    num_epochs: int = field(2, "gradient steps per iteration", ge=1)


@dataclass
class Replay:
    """What the replay keeps, and how batches are drawn from it."""

    buffer_size: int = field(100_000, "transitions kept; the newest replace the oldest", ge=1)
    fill_buffer: int = field(1_000, "environment steps with random actions before learning", ge=0)
    batch_size: int = field(64, "transitions per gradient step", ge=1)
    n_step: int = field(1, "n, steps of reward before the bootstrap; fewer at an episode's end", ge=1)
    prioritized: bool = field(False, "draw transitions by priority (their last error), not uniformly")
    priority_exponent: float = field(0.5, "alpha of the priorities; 0: uniform", ge=0, le=1)
    importance_exponent: float = field(
        0.4, "beta, initial correction of priorities by weights; rises to 1 at the end", ge=0, le=1
    )


@dataclass
class Optimiser:
    """Step sizes, gradient clipping, and the average of the weights."""

    learning_rate: float = field(1e-3, "initial step size of Adam", ge=0)
    learning_rate_end: float = field(1.0, "share of the step size left after linear decay; 1: constant", ge=0, le=1)
    learning_rate_fraction: float = field(
        1.0, "share of the gradient steps over which the step size decays", gt=0, le=1
    )
    weight_averaging: float = field(
        0.0,
        "decay per gradient step of the EMA of the weights, which is evaluated; lower in a run so short that"
        " the EMA would be older than an eighth of it",
        ge=0,
        lt=1,
    )
    max_grad_norm: float = field(
        float("inf"), "limit to which the gradient's global norm is clipped", gt=0, finite=False
    )


@dataclass
class Target:
    """The target network.

    Every `target_update_freq` gradient steps, theta^- <- polyak theta^- + (1 - polyak) theta.
    """

    target_update_freq: int = field(32, "gradient steps between updates of the target", ge=1)
    polyak: float = field(0.0, "share of the target kept in an update; 0: a hard copy", ge=0, le=1)
    double: bool = field(False, "the online network selects a*, the target network rates it")


@dataclass
class Munchausen:
    """Targets of the softmax policy pi, with its log-probability added to the reward."""

    munchausen: bool = field(False, "targets of the softmax policy, its log-probability added to the reward")
    munchausen_alpha: float = field(0.9, "alpha, share of t ln pi(a given x) added to the reward", ge=0, le=1)
    # Below 1e-6, exp(q / t) turns the rounding errors of q into infinities.
    munchausen_temperature: float = field(
        0.03, "t of the softmax policy, in units of return; the paper's is for rewards in [-1, 1]", ge=1e-6, le=MOST
    )
    munchausen_clip: float = field(-1.0, "l0, lower bound on t ln pi(a given x), in units of return", le=0)


@dataclass
class Huber:
    """The Huber loss of means and of quantile regression."""

    kappa: float = field(
        1.0,
        "where the Huber loss turns linear, in learned units; .inf: squared error, of means",
        ge=LEAST,
        finite=False,
    )


@dataclass
class Exploration:
    """Epsilon-greedy exploration with a linear schedule."""

    eps_start: float = field(1.0, "epsilon at environment step 0", ge=0, le=1)
    eps_end: float = field(0.04, "last epsilon", ge=0, le=1)
    exploration_fraction: float = field(0.1, "share of total_timesteps over which epsilon falls", ge=0, le=1)


OBJECTIVES = ("mean", "static_cvar", "spectral", "dynamic_cvar")


@dataclass
class RiskObjective:
    """The policy's objective; see docs/risk.md."""

    risk_objective: str = field("mean", "what is maximised: the mean, or a measure of risk", choices=OBJECTIVES)
    risk_level: float = field(
        0.25,
        "a of CVaR_a, the share of worst outcomes that counts; with `static_cvar` it can be changed after training",
        gt=0,
        le=1,
    )
    risk_levels: tuple[float, ...] = field((0.1, 1.0), "rising levels of the CVaRs that `spectral` mixes", gt=0, le=1)
    risk_weights: tuple[float, ...] = field(
        (0.5, 0.5), "weights of these CVaRs; only their proportions matter", gt=0, le=1
    )
    return_min: float = field(
        -1.0, "smallest discounted return from any state, before `reward_scale`; it bounds stocks", ge=-MOST, le=MOST
    )
    return_max: float = field(
        1.0, "largest discounted return from any state, before `reward_scale`; it bounds stocks", ge=-MOST, le=MOST
    )


@dataclass
class Task:
    """How rewards and observations enter learning."""

    gamma: float = field(0.99, "discount per environment step", ge=0, le=1)
    bootstrap_truncated: bool = field(
        True, "where a time limit cuts an episode, targets bootstrap from its successor; false: as if it ended there"
    )
    reward_scale: float = field(1.0, "factor on rewards before learning; `quantiles` undoes it", ge=LEAST, le=MOST)
    normalize_observations: bool = field(False, "learn from (x - mean) / std of all observations so far, clipped at 10")
    normalize_rewards: bool = field(
        False, "learn from rewards divided by the std of discounted returns, times `reward_scale`"
    )


@dataclass
class Network:
    """psi, the torso, and f, which maps its features to outputs."""

    torso: str = field("mlp", "layers of psi before its dense layers: none or convolutions", choices=TORSOS)
    torso_sizes: tuple[int, ...] = field((64, 64), "widths of the dense layers of psi", ge=1)
    head_sizes: tuple[int, ...] = field((64,), "widths of the hidden layers of f", ge=1)
    activation: str = field("relu", "activation of psi and f", choices=ACTIVATIONS)
    layer_norm: bool = field(False, "LayerNorm before each activation of psi and f")
    spectral_norm: bool = field(False, "divide kernels of residual blocks (`torso: impala`) by their spectral norm")
    compute_dtype: str = field(
        "float32", "type in which layers compute; `bfloat16` is for GPUs", choices=COMPUTE_DTYPES
    )
