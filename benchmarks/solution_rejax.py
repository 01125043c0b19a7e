"""Side of `benchmarks.solution`: rejax with its published settings for CartPole-v1, in an environment of its own.

Source of the settings: repository keraJLi/rejax, configs/gymnax/cartpole.yaml, commit 4954fbf. The package is taken as it
is published. Its training is one program that gives its curve at the end, so a callback from inside the program tells
when each evaluation is there. Programs with callbacks are not kept in the compilation cache; with a warm cache the side
therefore runs without, and the seconds of the run are spread evenly over its evaluations.

Evaluations: 128 episodes, its own; IQN acts at random with probability 0.005 in them, as published.
"""

import time
from typing import Any

import jax
from rejax import get_algo
from solution_report import asked, evaluation, versions

IQN: dict[str, Any] = dict(
    env="CartPole-v1",
    agent_kwargs={"activation": "swish"},
    num_envs=1,
    buffer_size=100_000,
    fill_buffer=1_000,
    batch_size=1,
    num_tau_samples=64,
    num_tau_prime_samples=64,
    learning_rate=0.0003,
    num_epochs=1,
    total_timesteps=100_000,
    eval_freq=5_000,
    target_update_freq=1,
    polyak=0.99,
    kappa=1.0,
    eps_start=1,
    eps_end=0.01,
    exploration_fraction=0.5,
    gamma=0.99,
    normalize_observations=False,
)
SECTIONS: dict[str, dict[str, Any]] = {
    "iqn": IQN,
    # A comment above the section: "500 seed 0" for these.
    "iqn_noted": IQN | dict(num_envs=10, batch_size=32, learning_rate=0.001, num_epochs=5, kappa=30.0),
    "pqn": dict(
        env="CartPole-v1",
        num_envs=16,
        num_steps=128,
        num_minibatches=16,
        max_grad_norm=10,
        learning_rate=0.0003,
        num_epochs=5,
        total_timesteps=524_288,
        eval_freq=16_384,
        eps_start=1,
        eps_end=0.05,
        exploration_fraction=0.5,
        gamma=0.99,
        td_lambda=0.9,
        normalize_observations=False,
    ),
}


def reporting(evaluate: Any) -> Any:
    """Return an `eval_callback` that also reports each evaluation when it is done."""

    def evaluate_and_report(algo: Any, ts: Any, rng: Any) -> Any:
        lengths, returns = evaluate(algo, ts, rng)
        jax.debug.callback(evaluation, ts.global_step, returns.mean(), ordered=True)
        return lengths, returns

    return evaluate_and_report


def main() -> None:
    section, seed, total_timesteps, is_warm = asked()
    algo = get_algo(section[:3]).create(**{**SECTIONS[section], "total_timesteps": total_timesteps})
    key = jax.random.PRNGKey(seed)
    if is_warm:
        train = jax.jit(algo.train).lower(key).compile()
        start = time.monotonic()
        _, (_, returns) = jax.block_until_ready(train(key))
        seconds = time.monotonic() - start
        for i, row in enumerate(returns):
            evaluation(i * algo.eval_freq, row.mean(), start + seconds * i / (len(returns) - 1))
    else:
        algo = algo.replace(eval_callback=reporting(algo.eval_callback))
        jax.block_until_ready(jax.jit(algo.train)(key))
        jax.effects_barrier()
    versions("rejax", "jax", "flax", "gymnax")


if __name__ == "__main__":
    main()
