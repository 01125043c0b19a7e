"""Side of `benchmarks.solution`: QR-DQN of sb3-contrib (it has no IQN) with the settings that RL Baselines3 Zoo tuned.

Source of the settings: repository DLR-RM/rl-baselines3-zoo, hyperparams/qrdqn.yml, CartPole-v1, commit 04640c9. They are
for 50,000 steps; here the budget differs, and epsilon falls over the same 8,000 steps.

Evaluations: 20 greedy episodes, one after another, by its own `EvalCallback`.
"""

from typing import Any

from sb3_contrib import QRDQN
from solution_report import asked, evaluation, versions
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

EVAL_FREQ = 5_000
EVAL_EPISODES = 20
EXPLORATION_STEPS = 8_000  # exploration_fraction: 0.16 of 50,000
SETTINGS: dict[str, Any] = dict(
    learning_rate=2.3e-3,
    batch_size=64,
    buffer_size=100_000,
    learning_starts=1_000,
    gamma=0.99,
    target_update_interval=10,
    train_freq=256,
    gradient_steps=128,
    exploration_final_eps=0.04,
    policy_kwargs=dict(net_arch=[256, 256], n_quantiles=10),
)


class Report(BaseCallback):
    """Called after each evaluation."""

    def _on_step(self) -> bool:
        evaluation(self.num_timesteps, self.parent.last_mean_reward)
        return True


def main() -> None:
    _, seed, total_timesteps, _ = asked()
    model = QRDQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=1, seed=seed),
        exploration_fraction=min(1.0, EXPLORATION_STEPS / total_timesteps),
        seed=seed,
        device="cpu",
        **SETTINGS,
    )
    evaluations = EvalCallback(
        make_vec_env("CartPole-v1", n_envs=1, seed=seed + 1_000),
        callback_after_eval=Report(),
        n_eval_episodes=EVAL_EPISODES,
        eval_freq=EVAL_FREQ,
        deterministic=True,
        verbose=0,
    )
    model.learn(total_timesteps, callback=evaluations)
    versions("sb3-contrib", "torch", "gymnasium")


if __name__ == "__main__":
    main()
