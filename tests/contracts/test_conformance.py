"""IQN compared with tianshou's, whose results `python -m benchmarks.conformance` writes.

Weights, transitions and fractions are the same on both sides. Where the conventions differ, ours
are switched to theirs, and each switch is shown to be needed. docs/algorithms/iqn.md has the table.
"""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from quantilax import Box, Discrete
from quantilax.algorithms import IQN, q_learning, values
from quantilax.heads import implicit_quantile
from quantilax.networks import heads
from quantilax.replay import ring
from quantilax.types import NStep, Transition
from tests.trees import filled

THEIRS = dict(np.load(Path(__file__).with_name("tianshou.npz")))
N, N_PRIME = THEIRS["tau"].shape[1], THEIRS["tau_prime"].shape[1]
SPACES: Any = SimpleNamespace(
    observation_space=Box((THEIRS["obs"].shape[1],)), action_space=Discrete(THEIRS["online.out.bias"].size)
)
LAYERS = {
    "psi": ("psi", "layers", 0),
    "phi": ("head", "embedding", "linear"),
    "hidden": ("head", "f", "mlp", "layers", 0),
    "out": ("head", "f", "out"),
}
"""Where our network has each layer."""


class Switches(NamedTuple):
    """Conventions, as tianshou has them."""

    online_selects: bool = True
    """a* is chosen by the online network, at fractions of its own; the paper's and our default: by the target network."""
    first_cosine: int = 1
    """i of the first cosine; as ours. The paper prints 0."""
    mean_over_tau: bool = True
    """The loss is the sum over tau' and the mean over tau; the paper's and ours: the other way round."""
    kappa: float = 1.0
    """Theirs is 1. With another, our rewards and values are kappa times theirs: rho^kappa(kappa delta) = kappa rho^1(delta)."""
    divided_by_kappa: bool = True
    """As the paper's and ours; theirs cannot tell. Without, the loss is kappa times ours."""


THEIR_WAY = Switches()


def config(n_step: int, switches: Switches) -> IQN:
    return IQN(
        n_step=n_step,
        gamma=float(THEIRS["gamma"]),
        double=switches.online_selects,
        torso_sizes=(THEIRS["online.psi.bias"].size,),
        head_sizes=(THEIRS["online.hidden.bias"].size,),
        num_cosines=THEIRS["online.phi.kernel"].shape[0],
        num_tau_samples=N,
        num_tau_prime_samples=N_PRIME,
        num_quantile_samples=N,
        kappa=switches.kappa,
        share_tau=False,
    )


def weights(name: str, cfg: IQN) -> tuple[nnx.GraphDef, Any]:
    """Our network with one of their two sets of weights."""
    graph, params = nnx.split(values.Network(SPACES, cfg, rngs=nnx.Rngs(0)))
    places = {f"{name}.{layer}": path for layer, path in LAYERS.items()}
    return graph, filled(params, THEIRS, places)


def in_units(params: Any, unit: float) -> Any:
    """Weights of the network whose values are `unit` times as large."""
    out = "".join(f"['{step}']" for step in LAYERS["out"])
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * unit if jax.tree_util.keystr(path).startswith(out) else x, params
    )


def windows(n_step: int, gamma: float) -> NStep:
    """All whole windows of the steps, read from our replay."""
    steps = THEIRS["reward"].size
    following = np.concatenate([THEIRS["obs"][1:], THEIRS["next_obs"][-1:]])

    def row(t: int) -> Transition:
        names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
        return Transition(*(jnp.asarray(THEIRS[name][t : t + 1]) for name in names))

    replay = ring.init(jax.tree.map(lambda x: x[0], row(0)), jnp.asarray(THEIRS["obs"][:1]), steps, n_step)
    for t in range(steps):
        replay = ring.add(replay, row(t), jnp.asarray(following[t : t + 1]))
    first = jnp.arange(steps - n_step + 1)
    return ring.read(replay, first, jnp.zeros_like(first), gamma)


def ours(n_step: int, switches: Switches = THEIR_WAY) -> dict[str, np.ndarray]:
    """Targets, loss and gradients under the names that theirs have."""
    cfg = config(n_step, switches)
    graph, params = weights("online", cfg)
    target_params = in_units(weights("target", cfg)[1], cfg.kappa)
    batch = windows(n_step, cfg.gamma)
    batch = batch._replace(reward=batch.reward * cfg.kappa)
    rows = batch.reward.shape[0]
    fractions = [jnp.asarray(THEIRS[name][:rows]) for name in ("tau", "tau_prime", "tau_action")]

    def cosines(tau, n):
        return jnp.cos(jnp.pi * tau[..., None] * (switches.first_cosine + jnp.arange(n)))

    state: Any = SimpleNamespace(network=graph, target_params=target_params, normalizer=None)

    def loss(params: Any) -> Any:
        value, _ = q_learning.loss(in_units(params, cfg.kappa), cfg, state, batch, jax.random.key(0))
        value = value / cfg.kappa * (1 if switches.divided_by_kappa else cfg.kappa)
        return value * (N_PRIME / N if switches.mean_over_tau else 1)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(implicit_quantile.fractions, "draw", return_value=fractions))
        if switches.first_cosine != THEIR_WAY.first_cosine:
            patches.enter_context(mock.patch.object(heads, "cosines", cosines))
        value, gradient = jax.value_and_grad(loss)(params)
        _, y = q_learning.SIGNALS.compared(in_units(params, cfg.kappa), cfg, state, batch, jax.random.key(0))
    plain = nnx.to_pure_dict(gradient)
    found = {f"{n_step}.targets": y / cfg.kappa, f"{n_step}.loss": value}
    for layer, path in LAYERS.items():
        inner = plain
        for step in path:
            inner = inner[step]
        found |= {f"{n_step}.gradient.{layer}.{part}": inner[part] for part in ("kernel", "bias")}
    return {name: np.asarray(array) for name, array in found.items()}


@pytest.mark.parametrize("kappa", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("n_step", [1, 3])
def test_targets_loss_and_gradients_are_tianshous_to_float32(n_step, kappa):
    found = ours(n_step, THEIR_WAY._replace(kappa=kappa))
    assert set(found) == {name for name in THEIRS if name.startswith(f"{n_step}.")}
    for name, array in found.items():
        assert_allclose(array, THEIRS[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("n_step", [1, 3])
def test_windows_over_the_end_and_over_the_cut_of_an_episode_are_among_them(n_step):
    batch = windows(n_step, 0.9)
    assert batch.terminated.sum() == batch.truncated.sum() == n_step
    assert batch.steps.max() == n_step


@pytest.mark.parametrize(
    "other",
    [
        dict(online_selects=False),
        dict(first_cosine=0),
        dict(mean_over_tau=False),
        dict(divided_by_kappa=False, kappa=0.25),
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_convention_is_needed_for_that(other):
    found = ours(1, THEIR_WAY._replace(**other))
    gradient = "1.gradient.out.kernel"
    assert np.abs(found[gradient] - THEIRS[gradient]).max() > 100 * 2e-5 * np.abs(THEIRS[gradient]).max()
