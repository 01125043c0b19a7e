"""What publications used, by hyperparameter: the `PAPER` of each algorithm's config."""

from typing import Any

ATARI: dict[str, Any] = {
    "total_timesteps": 50_000_000,
    "eval_freq": 250_000,
    "eval_epsilon": 1e-3,
    "num_envs": 1,
    "num_epochs": 0.25,
    "buffer_size": 1_000_000,
    "fill_buffer": 50_000,
    "batch_size": 32,
    "n_step": 1,
    "learning_rate": 5e-5,
    "learning_rate_end": 1.0,
    "learning_rate_fraction": 1.0,
    "weight_averaging": 0.0,
    "adam_eps": 3.125e-4,
    "max_grad_norm": float("inf"),
    "target_update_freq": 10_000,
    "polyak": 0.0,
    "eps_start": 1.0,
    "eps_end": 0.01,
    "exploration_fraction": 0.02,
    "exploration_repeats": 1,
    "gamma": 0.99,
    "reward_scale": 1.0,
    "torso": "nature",
    "torso_sizes": (),
    "head_sizes": (512,),
    "activation": "relu",
    "compute_dtype": "float32",
    **dict.fromkeys(("prioritized", "double", "dueling", "noisy", "layer_norm", "spectral_norm"), False),
    **dict.fromkeys(("normalize_observations", "normalize_rewards"), False),
}
"""What the publications of DQN's descendants share."""

DQN = {name: value for name, value in ATARI.items() if name != "adam_eps"} | {
    "eval_epsilon": 0.05,
    "learning_rate": 2.5e-4,
    "kappa": 1.0,
    "eps_end": 0.1,
}
"""Mnih et al. (2015), whose optimiser was RMSProp."""

C51 = ATARI | {"learning_rate": 2.5e-4, "num_atoms": 51, "v_min": -10.0, "v_max": 10.0}
"""Bellemare et al. (2017)."""

QRDQN = ATARI | {"num_quantiles": 200, "kappa": 1.0, "non_crossing": False}
"""Dabney et al. (2018), https://arxiv.org/abs/1710.10044."""

IQN = ATARI | {
    "num_tau_samples": 64,
    "num_tau_prime_samples": 64,
    "num_quantile_samples": 32,
    "tau_sampling": "uniform",
    "share_tau": False,
    "acting_tau_sampling": "uniform",
    "kappa": 1.0,
    "risk": "neutral",
    "num_cosines": 64,
}
"""Dabney et al. (2018), https://arxiv.org/abs/1806.06923."""

FQF = ATARI | {
    "fraction_learning_rate": 2.5e-9,
    "num_fractions": 32,
    "fraction_entropy": 1e-3,
    "weigh_targets": False,
    "kappa": 1.0,
    "num_cosines": 64,
}
"""Yang et al. (2019)."""

PQN: dict[str, Any] = {
    "total_timesteps": 50_000_000,
    "num_envs": 128,
    "num_steps": 32,
    "num_epochs": 2,
    "num_minibatches": 32,
    "learning_rate": 2.5e-4,
    "learning_rate_end": 0.0,
    "learning_rate_fraction": 1.0,
    "weight_averaging": 0.0,
    "max_grad_norm": 10.0,
    "gamma": 0.99,
    "lambda_": 0.65,
    "head": "scalar",
    "eps_start": 1.0,
    "eps_end": 1e-3,
    "exploration_fraction": 0.1,
    "reward_scale": 1.0,
    "normalize_observations": False,
    "normalize_rewards": False,
    "torso": "nature",
    "torso_sizes": (512,),
    "head_sizes": (),
    "activation": "relu",
    "layer_norm": True,
    "spectral_norm": False,
    "compute_dtype": "float32",
}
"""Gallici et al. (2024)."""
