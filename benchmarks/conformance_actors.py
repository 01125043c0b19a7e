"""Write `tests/contracts/sb3.npz`: targets, losses and gradients of stable-baselines3's SAC, TD3 and PPO and of
sb3-contrib's TQC, for the suite to compare ours with.

python -m benchmarks.conformance_actors

Weights, transitions and noise are drawn here; `conformance_sb3.py` runs the two libraries on them in their environment.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import ROOT, conformance

FILE = ROOT / "tests" / "contracts" / "sb3.npz"
SIDE = Path(__file__).with_name("conformance_sb3.py")

BATCH, OBSERVATION, ACTION = 12, 3, 2
HIDDEN = 8
"""Units of each of two hidden layers, of actors, critics and values."""
CRITICS, QUANTILES = 2, 5
STEPS, ENVIRONMENTS = 6, 2
"""Of PPO's rollout."""


def network(rng: np.random.Generator, name: str, inputs: int, outputs: int) -> dict[str, Any]:
    """Draw the weights of three layers."""
    sizes, drawn = (inputs, HIDDEN, HIDDEN, outputs), {}
    for layer in range(3):
        scale = 1 / np.sqrt(sizes[layer])
        drawn[f"{name}.{layer}.kernel"] = rng.uniform(-scale, scale, sizes[layer : layer + 2]).astype(np.float32)
        drawn[f"{name}.{layer}.bias"] = rng.uniform(-scale, scale, sizes[layer + 1]).astype(np.float32)
    return drawn


def inputs() -> dict[str, Any]:
    """Draw what both sides get."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    drawn = {
        "obs": normal(BATCH, OBSERVATION),
        "next_obs": normal(BATCH, OBSERVATION),
        "action": rng.uniform(-1, 1, (BATCH, ACTION)).astype(np.float32),
        "reward": normal(BATCH),
        "terminated": rng.random(BATCH) < 0.3,
        "noise": normal(BATCH, ACTION),
        "next_noise": normal(BATCH, ACTION),
        "gamma": np.float32(0.9),
        "alpha": np.float32(0.3),
        # A script for each environment of PPO: observations, with those that end an episode apart.
        "script.obs": normal(ENVIRONMENTS, STEPS + 1, OBSERVATION),
        "script.last": normal(ENVIRONMENTS, STEPS, OBSERVATION),
        "script.reward": normal(ENVIRONMENTS, STEPS),
        "script.terminated": np.arange(STEPS) == np.array([[1], [2]]),
        "script.truncated": np.arange(STEPS) == np.array([[4], [3]]),
    }
    for kind, outputs in (("scalar", 1), ("quantile", QUANTILES)):
        for i in range(CRITICS):
            for which in ("online", "target"):
                drawn |= network(rng, f"{kind}.{which}.{i}", OBSERVATION + ACTION, outputs)
    drawn |= network(rng, "soft", OBSERVATION, 2 * ACTION)  # means, then logarithms of standard deviations
    for which in ("online", "target"):
        drawn |= network(rng, f"deterministic.{which}", OBSERVATION, ACTION)
    for which in ("acted", "moved"):
        drawn |= network(rng, f"{which}.actor", OBSERVATION, ACTION) | network(rng, f"{which}.value", OBSERVATION, 1)
        drawn[f"{which}.log_sigma"] = rng.uniform(-2.5, -1.5, ACTION).astype(np.float32)
    for layer in range(3):  # the policy has moved a little since it acted
        for part in ("kernel", "bias"):
            before = drawn[f"acted.actor.{layer}.{part}"]
            drawn[f"moved.actor.{layer}.{part}"] = before + 0.02 * normal(*before.shape)
    drawn["moved.log_sigma"] = drawn["acted.log_sigma"] + np.float32(0.05)
    return drawn


if __name__ == "__main__":
    conformance("sbx", SIDE, inputs(), FILE)
