"""Side of `benchmarks.solution`: IQN of tianshou with the settings of its own test on CartPole-v1.

Source of the settings: repository thu-ml/tianshou, test/discrete/test_iqn.py, commit 03132cc. Otherwise than there: no
early stop at a return of 195, an evaluation every 5,000 steps instead of 10,000, and greedy evaluations (the test acts at
random with probability 0.05 in them). The 640 steps that the test collects before training are counted.

Evaluations: 100 greedy episodes in 100 environments.
"""

import gymnasium
import numpy as np
import torch
from solution_report import asked, evaluation, versions
from tianshou.algorithm import IQN
from tianshou.algorithm.modelfree.iqn import IQNPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import ImplicitQuantileNetwork
from tianshou.utils.torch_utils import policy_within_training_step

EVAL_FREQ = 5_000
EVAL_EPISODES = 100
NUM_ENVS = 10
BATCH_SIZE = 64
WARMUP_STEPS = BATCH_SIZE * NUM_ENVS
EPSILON = 0.1


def environments(number: int, seed: int) -> DummyVectorEnv:
    """Return environments as its test makes them."""
    made = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(number)])
    made.seed(seed)
    return made


def main() -> None:
    _, seed, total_timesteps, _ = asked()
    np.random.seed(seed)  # noqa: NPY002  as its test does
    torch.manual_seed(seed)
    train_envs, test_envs = environments(NUM_ENVS, seed), environments(EVAL_EPISODES, seed)
    space = gymnasium.make("CartPole-v1").action_space
    policy = IQNPolicy(
        model=ImplicitQuantileNetwork(
            preprocess_net=Net(state_shape=(4,), action_shape=64, hidden_sizes=[64, 64], softmax=False),
            action_shape=2,
            num_cosines=64,
        ),
        action_space=space,
        sample_size=32,
        online_sample_size=8,
        target_sample_size=8,
        eps_training=EPSILON,
        eps_inference=0.0,
    )
    algorithm = IQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=3e-3),
        gamma=0.9,
        n_step_return_horizon=3,
        target_update_freq=320,
    )
    buffer = VectorReplayBuffer(20_000, buffer_num=NUM_ENVS)
    train_collector = Collector[CollectStats](algorithm, train_envs, buffer, exploration_noise=True)
    test_collector = Collector[CollectStats](algorithm, test_envs, exploration_noise=True)
    with policy_within_training_step(policy):
        train_collector.reset()
        train_collector.collect(n_step=WARMUP_STEPS)

    def set_epsilon(epoch: int, env_step: int) -> None:
        policy.set_eps_training(EPSILON * (1 - 0.9 * min(max(env_step - 10_000, 0) / 40_000, 1)))

    trainer = algorithm.create_trainer(
        OffPolicyTrainerParams(
            training_collector=train_collector,
            test_collector=test_collector,
            max_epochs=-(-total_timesteps // EVAL_FREQ),
            epoch_num_steps=EVAL_FREQ,
            collection_step_num_env_steps=10,
            test_step_num_episodes=EVAL_EPISODES,
            batch_size=BATCH_SIZE,
            training_fn=set_epsilon,
            update_step_num_gradient_steps_per_sample=0.1,
            verbose=False,
            show_progress=False,
        )
    )
    trainer.reset()
    for epoch in range(1, trainer.params.max_epochs + 1):
        stats = trainer.execute_epoch()
        evaluation(WARMUP_STEPS + epoch * EVAL_FREQ, stats.test_collect_stat.returns_stat.mean)
    versions("tianshou", "torch", "gymnasium")


if __name__ == "__main__":
    main()
