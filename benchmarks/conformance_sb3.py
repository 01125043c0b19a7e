"""Side of `benchmarks.conformance_actors`: one gradient step of SAC, TQC, TD3 and PPO on given weights and transitions.

Runs in the environment of sbx, which has stable-baselines3 and sb3-contrib, with their own `train` and
`collect_rollouts`. The step size is 0, so that each loss is taken at the given weights.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.buffers import ReplayBufferSamples
from stable_baselines3.common.logger import Logger
from torch import nn

Given = dict[str, Any]


class Scripted(gymnasium.Env[np.ndarray, np.ndarray]):
    """Shows the observations of a script, whatever is done."""

    def __init__(self, given: Given, number: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, given["obs"].shape[1:], np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, given["action"].shape[1:], np.float32)
        self.script = {
            name: given[f"script.{name}"][number] for name in ("obs", "last", "reward", "terminated", "truncated")
        }
        self.t = 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self.script["obs"][self.t], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        t, self.t = self.t, self.t + 1
        ends = bool(self.script["terminated"][t]), bool(self.script["truncated"][t])
        obs = self.script["last"][t] if any(ends) else self.script["obs"][t + 1]
        return obs, float(self.script["reward"][t]), *ends, {}


def linear(*modules: nn.Module) -> list[nn.Linear]:
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]


def load(layers: list[nn.Linear], given: Given, name: str) -> None:
    for i, layer in enumerate(layers):
        layer.weight.data = torch.tensor(given[f"{name}.{i}.kernel"].T.copy())
        layer.bias.data = torch.tensor(given[f"{name}.{i}.bias"])


def load_soft(actor: Any, given: Given) -> None:
    load(linear(actor.latent_pi), given, "soft")
    kernel, bias = given["soft.2.kernel"], given["soft.2.bias"]
    half = len(bias) // 2
    for layer, part in ((actor.mu, slice(half)), (actor.log_std, slice(half, None))):
        layer.weight.data, layer.bias.data = torch.tensor(kernel[:, part].T.copy()), torch.tensor(bias[part])


def gradients(layers: list[nn.Linear]) -> Given:
    """Gradients of layers, by number."""
    found = {}
    for i, layer in enumerate(layers):
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        found[f"{i}.kernel"], found[f"{i}.bias"] = layer.weight.grad.numpy().T.copy(), layer.bias.grad.numpy().copy()
    return found


@contextmanager
def watched(optimizer: torch.optim.Optimizer, found: Given, parts: dict[str, list[nn.Linear]]) -> Iterator[None]:
    """Keep the gradients that the optimiser sees."""
    step = optimizer.step

    def see(*arguments: Any, **others: Any) -> Any:
        for name, layers in parts.items():
            found.update({f"{name}.{layer}": x for layer, x in gradients(layers).items()})
        return step(*arguments, **others)

    with mock.patch.object(optimizer, "step", see):
        yield


def off_policy(kind: Any, given: Given, **settings: Any) -> Any:
    model = kind(
        "MlpPolicy", Scripted(given, 0), learning_rate=0.0, gamma=float(given["gamma"]), buffer_size=10, **settings
    )
    model.set_logger(Logger(None, []))
    tensors = [torch.tensor(given[name]) for name in ("obs", "action", "next_obs")]
    ends, reward = (torch.tensor(given[name].astype(np.float32))[:, None] for name in ("terminated", "reward"))
    model.replay_buffer.sample = lambda *_, **__: ReplayBufferSamples(*tensors, ends, reward)
    return model


def draws(given: Given, *names: str) -> Any:
    """A function that returns the given noise, in this order."""
    left = list(names)

    def drawn(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        e = torch.tensor(given[left.pop(0)])
        assert e.shape == shape
        return e

    return mock.patch("torch.distributions.normal._standard_normal", drawn)


def stepped(model: Any, given: Given, critics: list[Any], actor: list[nn.Linear], compares: str) -> Given:
    """Take a step: losses, gradients, and the targets that the function `compares` receives."""
    found: Given = {}
    module, function = compares.rsplit(".", 1)
    original = getattr(sys.modules[module], function) if function != "mse_loss" else nn.functional.mse_loss

    def compared(prediction: torch.Tensor, target: torch.Tensor, **others: Any) -> torch.Tensor:
        found["targets"] = target.detach().numpy().copy()
        return original(prediction, target, **others)

    of_critics = {f"critic.{i}": linear(critic) for i, critic in enumerate(critics)}
    batch = len(given["obs"])
    with (
        mock.patch(compares if function != "mse_loss" else "torch.nn.functional.mse_loss", compared),
        watched(model.critic.optimizer, found, of_critics),
        watched(model.actor.optimizer, found, {"actor": actor}),
    ):
        model.train(1, batch)
    told = model.logger.name_to_value
    for name in ("critic_loss", "actor_loss", "ent_coef_loss"):
        if f"train/{name}" in told:
            found[name] = np.float32(told[f"train/{name}"])
    return found


def sac(given: Given) -> Given:
    model = off_policy(
        stable_baselines3.SAC, given, policy_kwargs=dict(net_arch=[8, 8]), ent_coef=f"auto_{given['alpha']}"
    )
    critics, targets = model.critic.q_networks, model.critic_target.q_networks
    for i in range(2):
        load(linear(critics[i]), given, f"scalar.online.{i}")
        load(linear(targets[i]), given, f"scalar.target.{i}")
    load_soft(model.actor, given)
    with draws(given, "noise", "next_noise"):
        found = stepped(model, given, critics, linear(model.actor), "torch.nn.functional.mse_loss")
    assert model.log_ent_coef.grad is not None
    return found | {"log_alpha": model.log_ent_coef.grad.numpy().copy()}


def tqc(given: Given) -> Given:
    kwargs = dict(net_arch=[8, 8], n_quantiles=5, n_critics=2)
    settings = dict(policy_kwargs=kwargs, ent_coef=f"auto_{given['alpha']}", top_quantiles_to_drop_per_net=1)
    model = off_policy(sb3_contrib.TQC, given, **settings)
    critics, targets = model.critic.q_networks, model.critic_target.q_networks
    for i in range(2):
        load(linear(critics[i]), given, f"quantile.online.{i}")
        load(linear(targets[i]), given, f"quantile.target.{i}")
    load_soft(model.actor, given)
    with draws(given, "noise", "next_noise"):
        return stepped(model, given, critics, linear(model.actor), "sb3_contrib.tqc.tqc.quantile_huber_loss")


def td3(given: Given) -> Given:
    model = off_policy(stable_baselines3.TD3, given, policy_kwargs=dict(net_arch=[8, 8]), policy_delay=1)
    critics, targets = model.critic.q_networks, model.critic_target.q_networks
    for i in range(2):
        load(linear(critics[i]), given, f"scalar.online.{i}")
        load(linear(targets[i]), given, f"scalar.target.{i}")
    load(linear(model.actor), given, "deterministic.online")
    load(linear(model.actor_target), given, "deterministic.target")
    noise = torch.tensor(given["next_noise"])
    with mock.patch.object(torch.Tensor, "normal_", lambda self, mean, std: self.copy_(mean + std * noise)):
        return stepped(model, given, critics, linear(model.actor), "torch.nn.functional.mse_loss")


def ppo(given: Given) -> Given:
    environments, steps = given["script.reward"].shape
    env = stable_baselines3.common.vec_env.DummyVecEnv([lambda i=i: Scripted(given, i) for i in range(environments)])
    model = stable_baselines3.PPO(
        "MlpPolicy", env, learning_rate=0.0, n_steps=steps, batch_size=steps * environments, n_epochs=1,
        gamma=float(given["gamma"]), gae_lambda=0.7, clip_range=0.1, ent_coef=0.03, vf_coef=0.35, max_grad_norm=1e9,
        normalize_advantage=False, policy_kwargs=dict(net_arch=[8, 8]),
    )  # fmt: skip
    model.set_logger(Logger(None, []))
    policy = model.policy
    actor = [*linear(policy.mlp_extractor.policy_net), policy.action_net]
    value = [*linear(policy.mlp_extractor.value_net), policy.value_net]

    def weights(which: str) -> None:
        load(actor, given, f"{which}.actor")
        load(value, given, f"{which}.value")
        policy.log_std.data = torch.tensor(given[f"{which}.log_sigma"])

    weights("acted")
    model._setup_learn(steps * environments)
    _, callback = model._setup_learn(steps * environments, progress_bar=False)
    torch.manual_seed(0)
    model.collect_rollouts(env, callback, model.rollout_buffer, steps)
    buffer = model.rollout_buffer
    names = {"actions": "action", "log_probs": "log_pi", "advantages": "advantage", "returns": "target"}
    found = {ours: getattr(buffer, theirs).copy() for theirs, ours in names.items()}  # (T, E)
    assert np.abs(found["action"]).max() < 1, "at a bound the probabilities differ on purpose"
    weights("moved")
    with watched(policy.optimizer, found, {"actor": actor, "value": value}):
        model.train()
    assert policy.log_std.grad is not None
    found["log_sigma"] = policy.log_std.grad.numpy().copy()
    told = model.logger.name_to_value
    names = {
        "loss": "loss",
        "policy_gradient_loss": "actor_loss",
        "approx_kl": "approx_kl",
        "clip_fraction": "clip_fraction",
    }
    return found | {ours: np.float32(told[f"train/{theirs}"]) for theirs, ours in names.items()}


def main() -> None:
    given = dict(np.load(sys.argv[1]))
    torch.set_num_threads(1)
    found: Given = {}
    for name, run in {"sac": sac, "tqc": tqc, "td3": td3, "ppo": ppo}.items():
        found.update({f"{name}:{key}": array for key, array in run(given).items()})
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
