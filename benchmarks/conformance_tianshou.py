"""Side of `benchmarks.conformance`: one update of tianshou's IQN on given weights, transitions and fractions.

Runs in tianshou's environment, with its own code from the replay's windows to the gradients.
"""

import sys
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import torch
from tianshou.algorithm import IQN
from tianshou.algorithm.modelfree.iqn import IQNPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import ImplicitQuantileNetwork
from tianshou.utils.torch_utils import policy_within_training_step


def layers(model: ImplicitQuantileNetwork) -> dict[str, torch.nn.Linear]:
    """The linear layers by our names."""
    linear = {
        "psi": list(model.preprocess.modules()),
        "phi": list(model.embed_model.modules()),
        "f": list(model.last.modules()),
    }
    found = {part: [m for m in modules if isinstance(m, torch.nn.Linear)] for part, modules in linear.items()}
    (psi,), (phi,), (hidden, out) = found["psi"], found["phi"], found["f"]
    return {"psi": psi, "phi": phi, "hidden": hidden, "out": out}


def load(model: ImplicitQuantileNetwork, given: dict[str, np.ndarray], network: str) -> None:
    """Set the weights."""
    for name, layer in layers(model).items():
        layer.weight.data = torch.tensor(given[f"{network}.{name}.kernel"].T.copy())
        layer.bias.data = torch.tensor(given[f"{network}.{name}.bias"])


def update(given: dict[str, np.ndarray], n_step: int) -> dict[str, Any]:
    """Targets, loss and gradients of one update on all windows that are whole."""
    steps, observation = given["obs"].shape
    actions, num_cosines = given["online.out.bias"].size, given["online.phi.kernel"].shape[0]
    rows = np.arange(steps - n_step + 1)
    policy = IQNPolicy(
        model=ImplicitQuantileNetwork(
            preprocess_net=Net(state_shape=(observation,), hidden_sizes=[given["online.psi.bias"].size]),
            action_shape=actions,
            hidden_sizes=[given["online.hidden.bias"].size],
            num_cosines=num_cosines,
        ),
        action_space=gymnasium.spaces.Discrete(actions),
        online_sample_size=given["tau"].shape[1],
        target_sample_size=given["tau_prime"].shape[1],
    )
    algorithm = IQN(
        policy=policy,
        optim=AdamOptimizerFactory(),
        gamma=float(given["gamma"]),
        n_step_return_horizon=n_step,
        target_update_freq=1_000,
    )
    algorithm._iter = 1  # at 0 it would begin with a copy
    load(policy.model, given, "online")
    load(algorithm.model_old.module, given, "target")  # wrapped, so that it stays in its evaluation mode

    buffer = ReplayBuffer(steps)
    for t in range(steps):
        names = {"obs": "obs", "act": "action", "rew": "reward", "terminated": "terminated", "truncated": "truncated"}
        row = {theirs: given[ours][t] for theirs, ours in names.items()}
        buffer.add(Batch(**row, obs_next=given["next_obs"][t], info={}))

    asked = [given[name][rows] for name in ("tau_action", "tau_prime", "tau")]  # in the order of tianshou's draws

    def drawn(*shape: int, **_: object) -> torch.Tensor:
        tau = torch.tensor(asked.pop(0))
        assert tau.shape == shape, (tau.shape, shape)
        return tau

    algorithm.train()
    with mock.patch.object(torch, "rand", drawn), policy_within_training_step(policy):
        batch = algorithm._preprocess_batch(buffer[rows], buffer, rows)
        targets = batch.returns.detach().numpy().copy()
        loss = algorithm._update_with_batch(batch).loss
    assert not asked
    gradients = {}
    for name, layer in layers(policy.model).items():
        gradients[f"{n_step}.gradient.{name}.kernel"] = layer.weight.grad.numpy().T
        gradients[f"{n_step}.gradient.{name}.bias"] = layer.bias.grad.numpy()
    return {f"{n_step}.targets": targets, f"{n_step}.loss": np.float32(loss), **gradients}


def main() -> None:
    given = dict(np.load(sys.argv[1]))
    torch.set_num_threads(1)
    np.savez(sys.argv[2], **update(given, 1), **update(given, 3))


if __name__ == "__main__":
    main()
