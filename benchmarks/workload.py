"""The workloads that benchmarks share."""

from typing import Any

TEST_3: dict[str, Any] = dict(
    num_envs=10,
    batch_size=64,
    num_epochs=5,
    buffer_size=100_000,
    fill_buffer=5_000,
    learning_rate=3e-4,
    max_grad_norm=10,
    total_timesteps=20_000,
    eval_freq=5_000,
    target_update_freq=1,
    polyak=0.95,
    num_tau_samples=64,
    num_tau_prime_samples=64,
    kappa=1.0,
    eps_start=1,
    eps_end=0.01,
    exploration_fraction=0.5,
    gamma=0.99,
    normalize_observations=False,
)
"""The investigation's Test 3 with a shorter budget: 15,000 steps of learning, 7,500 updates."""

UPDATES = (TEST_3["total_timesteps"] - TEST_3["fill_buffer"]) // TEST_3["num_envs"] * TEST_3["num_epochs"]
