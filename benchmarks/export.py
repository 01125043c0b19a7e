"""Microseconds for one observation in onnxruntime, by exported policies with default networks.

python -m benchmarks.export

Policies are exported untrained, with the weights of `init`, because weights do not change the time.
onnxruntime gets one thread. A file computes action, q and quantiles, or the action alone.
"""

import argparse
import time

import jax
import numpy as np
import onnxruntime

from quantilax import ALGORITHMS, export
from quantilax.agent import create
from quantilax.export import function

CASES = {
    "DQN": ("dqn", "CartPole-v1", {}),
    "C51": ("c51", "CartPole-v1", {}),
    "QR-DQN": ("qrdqn", "CartPole-v1", {}),
    "IQN": ("iqn", "CartPole-v1", {}),
    "FQF": ("fqf", "CartPole-v1", {}),
    "PQN": ("pqn", "CartPole-v1", {}),
    "PPO": ("ppo", "CartPole-v1", {}),
    "SAC": ("sac", "Pendulum-v1", {}),
    "TD3": ("td3", "Pendulum-v1", {}),
    "TQC": ("tqc", "Pendulum-v1", {}),
    "IQN, MinAtar": ("iqn", "Breakout-MinAtar", {"torso": "minatar", "torso_sizes": (128,), "head_sizes": ()}),
}
"""Label: algorithm, environment, fields. Sizes of networks are the defaults, unless given."""
TAUS = np.array([0.05, 0.25, 0.5, 0.75, 0.95], np.float32)
SMALL = {"fill_buffer": 100, "buffer_size": 1_000}


def session(data: bytes) -> onnxruntime.InferenceSession:
    """Return a session on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def microseconds(data: bytes, observation: np.ndarray, calls: int) -> np.ndarray:
    """Return the time of each of `calls` calls, after as many that are not counted."""
    policy, taken = session(data), []
    usual = {"observation": observation, "risk": np.array(1, np.float32), "taus": TAUS}
    given = {told.name: usual[told.name] for told in policy.get_inputs()}
    for _ in range(2 * calls):
        begun = time.perf_counter()
        policy.run(None, given)
        taken.append(time.perf_counter() - begun)
    return np.array(taken[calls:]) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    calls = parser.parse_args().calls
    print("| policy | environment | all outputs: least, median | action alone: least, median | bytes: all, action |")
    print("|---|---|---|---|---|")
    for label, (name, env, fields) in CASES.items():
        config = ALGORITHMS[name].config
        small = {k: v for k, v in SMALL.items() if hasattr(config, k)}
        algo = create(ALGORITHMS[name], env, {**small, **fields})
        state, space = algo.init(jax.random.key(0)), algo.env.observation_space
        observation = np.zeros((1, *space.shape), space.number)
        files = [export.to_onnx(algo, state, outputs) for outputs in (function.OUTPUTS, ["action"])]
        taken = [microseconds(data, observation, calls) for data in files]
        cells = [f"{one.min():.0f}, {np.median(one):.0f}" for one in taken]
        print(f"| {label} | {env} | {' | '.join(cells)} | {', '.join(f'{len(d):,}' for d in files)} |", flush=True)


if __name__ == "__main__":
    main()
