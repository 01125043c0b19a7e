"""What publications used, by hyperparameter: the `PAPER` of each algorithm's config.

For values of discrete actions it is what they used on Atari, for actor-critics what they used on
MuJoCo's tasks, for D4PG on the Control Suite and for FastTD3 on HumanoidBench.
"""

from typing import Any

ALL: dict[str, Any] = {
    "total_timesteps": 50_000_000,
    "learning_rate_fraction": 1.0,
    "weight_averaging": 0.0,
    "gamma": 0.99,
    "eps_start": 1.0,
    "reward_scale": 1.0,
    "torso": "nature",
    "activation": "relu",
    "compute_dtype": "float32",
    **dict.fromkeys(("normalize_observations", "normalize_rewards", "spectral_norm"), False),
}
"""What all publications have in common."""

REPLAY = ALL | {
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
    "adam_eps": 3.125e-4,
    "max_grad_norm": float("inf"),
    "target_update_freq": 10_000,
    "polyak": 0.0,
    "eps_end": 0.01,
    "exploration_fraction": 0.02,
    "exploration_repeats": 1,
    "torso_sizes": (),
    "head_sizes": (512,),
    **dict.fromkeys(("prioritized", "double", "dueling", "noisy", "layer_norm"), False),
}
"""What DQN and its descendants share."""

DQN = REPLAY | {"eval_epsilon": 0.05, "learning_rate": 2.5e-4, "kappa": 1.0, "eps_end": 0.1}
del DQN["adam_eps"]  # DQN used RMSProp
"""Mnih et al. (2015)."""

C51 = REPLAY | {"learning_rate": 2.5e-4, "num_atoms": 51, "v_min": -10.0, "v_max": 10.0}
"""Bellemare et al. (2017)."""

QRDQN = REPLAY | {"num_quantiles": 200, "kappa": 1.0, "non_crossing": False}
"""Dabney et al. (2018), https://arxiv.org/abs/1710.10044."""

IQN = REPLAY | {
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

FQF = REPLAY | {
    "fraction_learning_rate": 2.5e-9,
    "num_fractions": 32,
    "fraction_entropy": 1e-3,
    "weigh_targets": False,
    "kappa": 1.0,
    "num_cosines": 64,
}
"""Yang et al. (2019)."""

PQN = ALL | {
    "num_envs": 128,
    "num_steps": 32,
    "num_epochs": 2,
    "num_minibatches": 32,
    "learning_rate": 2.5e-4,
    "learning_rate_end": 0.0,
    "max_grad_norm": 10.0,
    "lambda_": 0.65,
    "head": "scalar",
    "eps_end": 1e-3,
    "exploration_fraction": 0.1,
    "torso_sizes": (512,),
    "head_sizes": (),
    "layer_norm": True,
}
"""Gallici et al. (2024)."""

ACTOR_CRITIC: dict[str, Any] = {
    "eval_epsilon": 0.0,
    "num_envs": 1,
    "num_epochs": 1,
    "buffer_size": 1_000_000,
    "batch_size": 256,
    "n_step": 1,
    "prioritized": False,
    "learning_rate": 3e-4,
    "learning_rate_end": 1.0,
    "weight_averaging": 0.0,
    "target_update_freq": 1,
    "polyak": 0.995,
    "num_critics": 2,
    "gamma": 0.99,
    "reward_scale": 1.0,
    "torso": "mlp",
    "activation": "relu",
    **dict.fromkeys(("normalize_observations", "normalize_rewards"), False),
}
"""What SAC, TQC and TD3 share. TD3 has other step sizes and batches."""

SAC = ACTOR_CRITIC | {
    "head": "scalar",
    "top_quantiles_to_drop": 0,
    "learn_temperature": True,
    "target_entropy": -1.0,
    "torso_sizes": (256, 256),
    "head_sizes": (),
    "layer_norm": False,
}
"""Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905."""

TQC = ACTOR_CRITIC | {
    "num_critics": 5,
    "num_quantiles": 25,
    "top_quantiles_to_drop": 2,
    "kappa": 1.0,
    "learn_temperature": True,
    "target_entropy": -1.0,
}
"""Kuznetsov et al. (2020). They dropped two quantiles in most tasks."""

DSAC = {
    "buffer_size": 1_000_000,
    "fill_buffer": 10_000,
    "batch_size": 256,
    "learning_rate": 3e-4,
    "target_update_freq": 1,
    "polyak": 0.995,
    "num_critics": 2,
    "top_quantiles_to_drop": 0,
    "num_tau_samples": 32,
    "num_tau_prime_samples": 32,
    "kappa": 1.0,
    "gamma": 0.99,
    "activation": "relu",
}
"""Ma et al. (2020), as in the authors' code for risk-neutral agents."""

TD3 = ACTOR_CRITIC | {
    "total_timesteps": 1_000_000,
    "eval_freq": 5_000,
    "eval_episodes": 10,
    "head": "scalar",
    "batch_size": 100,
    "learning_rate": 1e-3,
    "top_quantiles_to_drop": 0,
    "policy_delay": 2,
    "target_noise": 0.2,
    "target_noise_clip": 0.5,
    "exploration_noise": 0.1,
    "torso_sizes": (400, 300),
    "head_sizes": (),
    "layer_norm": False,
}
"""Fujimoto et al. (2018)."""

TD3C51 = {
    "num_envs": 128,
    "num_epochs": 2,
    "batch_size": 32_768,
    "n_step": 1,
    "learning_rate": 3e-4,
    "target_update_freq": 1,
    "polyak": 0.9,
    "num_critics": 2,
    "policy_delay": 2,
    "target_noise": 1e-3,
    "target_noise_clip": 0.5,
    "num_atoms": 101,
    "gamma": 0.99,
    "normalize_observations": True,
}
"""Seo et al. (2025), as in the authors' code for HumanoidBench."""

D4PG = {
    "buffer_size": 1_000_000,
    "batch_size": 256,
    "n_step": 5,
    "learning_rate": 1e-4,
    "num_critics": 1,
    "policy_delay": 1,
    "target_noise": 0.0,
    "exploration_noise": 0.3,
}
"""Barth-Maron et al. (2018)."""

PPO: dict[str, Any] = {
    "total_timesteps": 1_000_000,
    "num_envs": 1,
    "num_steps": 2048,
    "num_epochs": 10,
    "num_minibatches": 32,
    "learning_rate": 3e-4,
    "lambda_": 0.95,
    "clip_ratio": 0.2,
    "entropy_coefficient": 0.0,
    "head": "scalar",
    "gamma": 0.99,
    "torso": "mlp",
    "torso_sizes": (64, 64),
    "head_sizes": (),
    "activation": "tanh",
}
"""Schulman et al. (2017)."""
