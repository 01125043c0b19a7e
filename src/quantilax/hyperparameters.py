"""Hyperparameters that several algorithms have: one name, one meaning, one range each.

An algorithm's config gives its own default and the value of its paper:

    num_envs: int = hyperparameters.num_envs(10, paper=1)
"""

from typing import Any, Protocol

import jax
import numpy as np

from quantilax.networks import ACTIVATIONS, COMPUTE_DTYPES, TORSOS
from quantilax.pytree import ConfigError, field

LEAST, MOST = 1e-16, 1e16
"""Bounds of what other numbers are multiplied or divided by: beyond them squares and quotients leave the floats of 32 bits."""


class Declared(Protocol):
    """A hyperparameter without its default."""

    def __call__(self, default: Any, paper: Any = None) -> Any:
        """Declare it as a field of a config."""


def hyperparameter(doc: str, **bounds: Any) -> Declared:
    """What `pytree.field` takes, but for the default and the paper's value."""

    def declare(default: Any, paper: Any = None) -> Any:
        return field(default, doc, paper=paper, **bounds)

    return declare


# The loop
total_timesteps = hyperparameter("environment steps of the run, warm-up included", ge=1)
eval_freq = hyperparameter("environment steps between evaluations", ge=1)
eval_episodes = hyperparameter("episodes of an evaluation, in parallel, each counted once", ge=1)
eval_epsilon = hyperparameter("probability of a random action in evaluations", ge=0, le=1)
metrics = hyperparameter("measure loss, gradient norm, ... between evaluations; off, it costs nothing")
signals = hyperparameter("measure what `quantilax diagnose` reads, at evaluations; off, it costs nothing")
num_envs = hyperparameter("environments, one step each per iteration", ge=1)
num_epochs = hyperparameter("gradient steps per iteration", ge=1)

# Replay
buffer_size = hyperparameter("transitions kept", ge=1)
fill_buffer = hyperparameter("environment steps with random actions before learning", ge=0)
batch_size = hyperparameter("transitions in a gradient step", ge=1)
n_step = hyperparameter("n, steps of reward before the bootstrap; fewer at an episode's end", ge=1)
prioritized = hyperparameter("draw transitions by priority, of their last error, instead of evenly")
priority_exponent = hyperparameter("alpha of the priorities; 0: even", ge=0, le=1)
importance_exponent = hyperparameter(
    "beta, how far weights make up for it at first; it rises to 1 at the end", ge=0, le=1
)

# Optimisation
learning_rate = hyperparameter("first step size of Adam", ge=0)
learning_rate_end = hyperparameter("share of learning_rate left at the end of its fall; 1: constant", ge=0, le=1)
learning_rate_fraction = hyperparameter("share of the gradient steps over which the learning rate falls", gt=0, le=1)
weight_averaging = hyperparameter(
    "share that the weights' average keeps in a gradient step; policies are made of it; 0: the last weights", ge=0, lt=1
)
# v is 0 for gradients below 3e-18: a smaller epsilon would make large steps of what rounding leaves of them.
adam_eps = hyperparameter("epsilon of Adam, added to sqrt(v)", ge=LEAST)
max_grad_norm = hyperparameter("the gradient's global norm is clipped to it; .inf: never", gt=0, finite=False)

# Target network: every `target_update_freq` gradient steps, theta^- <- polyak theta^- + (1 - polyak) theta
target_update_freq = hyperparameter("gradient steps between two moves of the target", ge=1)
polyak = hyperparameter("share of the target kept in a move; 0: a hard copy", ge=0, le=1)

# Targets
kappa = hyperparameter("where the Huber loss becomes linear, in units of return", ge=LEAST)
double = hyperparameter("the online network selects a*, the target network rates it")
munchausen_alpha = hyperparameter("alpha, share of t ln pi(a|x) added to the reward; 0: no bonus", ge=0, le=1)
# Below 1e-6, exp(q / t) makes infinities of what q is rounded by.
munchausen_temperature = hyperparameter("t of the softmax policy, in units of return", ge=1e-6, le=MOST)
munchausen_clip = hyperparameter("l0, the least that t ln pi(a|x) counts, in units of return", le=0)

# Exploration
eps_start = hyperparameter("first epsilon", ge=0, le=1)
eps_end = hyperparameter("last epsilon", ge=0, le=1)
exploration_repeats = hyperparameter(
    "the most steps for which a random action is repeated, n with chances in proportion to n^-2; 1: epsilon-greedy",
    ge=1,
)
exploration_fraction = hyperparameter("share of total_timesteps over which epsilon falls", ge=0, le=1)

# The task
gamma = hyperparameter("discount per environment step", ge=0, le=1)
bootstrap_truncated = hyperparameter(
    "targets of a step that a time limit cuts off go on from its successor; false: as if it had ended there"
)
normalize_observations = hyperparameter("learn from (x - mean) / std of all observations so far")
reward_scale = hyperparameter("what rewards are multiplied by before anything is learned from them", ge=LEAST, le=MOST)
normalize_rewards = hyperparameter("learn from rewards over the std of discounted returns so far, times reward_scale")

# The network
torso = hyperparameter("what psi does before its dense layers: nothing, or convolutions of that name", choices=TORSOS)
torso_sizes = hyperparameter("widths of the dense layers of psi", ge=1)
head_sizes = hyperparameter("widths of the hidden layers of f", ge=1)
activation = hyperparameter("activation of psi and f", choices=tuple(ACTIVATIONS))
layer_norm = hyperparameter("LayerNorm before each activation of psi and f")
compute_dtype = hyperparameter(
    "type of number in which the layers compute; bfloat16 is for GPUs", choices=tuple(COMPUTE_DTYPES)
)
spectral_norm = hyperparameter("kernels of the residual blocks of psi are divided by their spectral norm")
noisy = hyperparameter("layers of f with learned noise, which explores; epsilon is best 0 then")
dueling = hyperparameter("a stream for the state's value and one for the actions' advantages")


def check_support(v_min: Any, v_max: Any, num_atoms: int) -> None:
    """Raise `ConfigError` for a categorical support that is empty, or whose atoms floats of 32 bits do not tell apart."""
    if any(isinstance(v, jax.core.Tracer) or np.ndim(v) for v in (v_min, v_max)):  # in a sweep
        return
    if v_min >= v_max:
        raise ConfigError(f"v_min: {v_min} is not below v_max={v_max}; lower it")
    for name, v in (("v_min", v_min), ("v_max", v_max)):
        if abs(v) > MOST:
            raise ConfigError(f"{name}: must be >= {-MOST} and <= {MOST}, got {v}; change reward_scale")
    low, high = np.float32(v_min), np.float32(v_max)
    atoms = low + (high - low) * np.linspace(0, 1, num_atoms, dtype=np.float32)
    if not (np.diff(atoms) >= LEAST).all():
        raise ConfigError(
            f"v_min: {num_atoms} atoms from {v_min} to {v_max} are too close for floats of 32 bits to tell them apart; lower"
            " num_atoms or widen the support"
        )
