"""Write `tests/contracts/tianshou.npz`: targets, loss and gradients of tianshou's IQN, for the suite to compare ours with.

python -m benchmarks.conformance

Weights, transitions and fractions are drawn here; `conformance_tianshou.py` runs tianshou on them in its own environment.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import ROOT, conformance

FILE = ROOT / "tests" / "contracts" / "tianshou.npz"
SIDE = Path(__file__).with_name("conformance_tianshou.py")

STEPS, OBSERVATION, ACTIONS = 12, 4, 3
TERMINATED, TRUNCATED = 4, 8
"""Steps at which an episode ends."""
LAYERS = {"psi": (OBSERVATION, 16), "phi": (6, 16), "hidden": (16, 8), "out": (8, ACTIONS)}
"""Inputs (for phi: cosines) and outputs of each layer."""
N, N_PRIME = 5, 7
"""Fractions in the loss, and to select; in the targets."""


def inputs() -> dict[str, Any]:
    """Draw what both sides get."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(STEPS + 1, OBSERVATION)).astype(np.float32)
    next_obs = obs[1:].copy()
    for end in (TERMINATED, TRUNCATED):  # what follows in `obs` is the first of another episode
        next_obs[end] = rng.normal(size=OBSERVATION)
    drawn = {
        "obs": obs[:-1],
        "next_obs": next_obs,
        "action": rng.integers(ACTIONS, size=STEPS),
        "reward": rng.normal(size=STEPS).astype(np.float32),
        "terminated": np.arange(STEPS) == TERMINATED,
        "truncated": np.arange(STEPS) == TRUNCATED,
        "gamma": np.float32(0.9),
    }
    for network in ("online", "target"):
        for layer, (rows, columns) in LAYERS.items():
            scale = 1 / np.sqrt(rows)
            drawn[f"{network}.{layer}.kernel"] = rng.uniform(-scale, scale, (rows, columns)).astype(np.float32)
            drawn[f"{network}.{layer}.bias"] = rng.uniform(-scale, scale, columns).astype(np.float32)
    for name, number in (("tau", N), ("tau_prime", N_PRIME), ("tau_action", N)):
        drawn[name] = rng.uniform(size=(STEPS, number)).astype(np.float32)  # one row per first step of a window
    return drawn


if __name__ == "__main__":
    conformance("tianshou", SIDE, inputs(), FILE)
