"""Times gradient steps of sbx, stable-baselines3 and sb3-contrib; runs in their environment, without quantilax.

Answers each line of the standard input with one line: microseconds per gradient step, by program.
"""

import json
import sys
import time

import sb3_contrib
import sbx
import stable_baselines3
import torch

STEPS, BATCH, FILL = 200, 256, 1_000


def main() -> None:
    torch.set_num_threads(2)
    models = {
        "sbx SAC": sbx.SAC,
        "sbx TQC": sbx.TQC,
        "stable-baselines3 SAC": stable_baselines3.SAC,
        "sb3-contrib TQC": sb3_contrib.TQC,
    }
    made = {}
    for name, model in models.items():
        settings = dict(batch_size=BATCH, learning_starts=FILL // 2, learning_rate=3e-4)
        made[name] = model("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[256, 256]), **settings)
        made[name].learn(FILL)
        made[name].train(STEPS, BATCH)
    for _ in sys.stdin:
        times = {}
        for name, model in made.items():
            start = time.perf_counter()
            model.train(STEPS, BATCH)
            times[name] = (time.perf_counter() - start) / STEPS * 1e6
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
