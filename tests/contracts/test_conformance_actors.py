"""SAC, TD3 and PPO compared with stable-baselines3's and TQC with sb3-contrib's.

`python -m benchmarks.conformance_actors` writes their results. Weights, transitions and noise are the same on both
sides. Their conventions that differ from ours are factors, which each test names. docs/algorithms/sac.md,
td3.md and ppo.md have them too.
"""

from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from quantilax import ALGORITHMS, Box
from quantilax.algorithms import actor_critic, ppo, sac, td3
from quantilax.learning import normalize
from quantilax.types import NStep, Transition
from tests.trees import filled

pytestmark = pytest.mark.validation

THEIRS = dict(np.load(Path(__file__).with_name("sb3.npz")))
GAMMA, ALPHA = float(THEIRS["gamma"]), float(THEIRS["alpha"])
BATCH, DIM = THEIRS["action"].shape
ENV: Any = SimpleNamespace(
    observation_space=Box((THEIRS["obs"].shape[1],)), action_space=Box((DIM,), low=-1.0, high=1.0)
)
BOUNDS = actor_critic.Bounds(-jnp.ones(DIM), jnp.ones(DIM))


def mlp(name: str, torso: tuple[Any, ...], last: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """Where a network of three layers has them."""
    return {f"{name}.0": (*torso, "layers", 0), f"{name}.1": (*torso, "layers", 1), f"{name}.2": last}


OF_CRITIC: dict[str, tuple[Any, ...]] = mlp("critic", ("psi",), ("head", "out"))
OF_ACTOR: dict[str, tuple[Any, ...]] = mlp("actor", ("psi",), ("out",))


class Side:
    """Our networks with their weights, and the batch."""

    def __init__(self, name: str, actor: str, **settings: Any) -> None:
        self.config = ALGORITHMS[name].config(torso_sizes=(8, 8), gamma=GAMMA, **settings)
        kind = "quantile" if name == "tqc" else "scalar"

        def critic(which: str, i: int) -> Any:
            graph, params = nnx.split(actor_critic.Critic(ENV, self.config, rngs=nnx.Rngs(0)))
            places = {f"{kind}.{which}.{i}.{place[-1]}": path for place, path in OF_CRITIC.items()}
            return graph, filled(params, THEIRS, places)

        def of_actor(which: str) -> Any:
            outputs = 2 if name != "td3" else 1
            graph, params = nnx.split(actor_critic.Actor(ENV, self.config, outputs, rngs=nnx.Rngs(0)))
            return graph, filled(params, THEIRS, {f"{which}.{place[-1]}": path for place, path in OF_ACTOR.items()})

        def critics(which: str) -> Any:
            return jax.tree.map(lambda *x: jnp.stack(x), *(critic(which, i)[1] for i in range(2)))

        graph, params = of_actor(actor)
        target = of_actor("deterministic.target")[1] if name == "td3" else None
        self.state: Any = SimpleNamespace(
            network=actor_critic.Networks(critic("online", 0)[0], graph),
            params={"critic": critics("online"), "actor": params, "log_alpha": jnp.log(jnp.float32(ALPHA))},
            target_params={"critic": critics("target"), "actor": target},
            bounds=BOUNDS,
        )
        arrays = (jnp.asarray(THEIRS[x]) for x in ("obs", "action", "reward", "next_obs", "terminated"))
        self.batch = NStep(*arrays, truncated=jnp.zeros(BATCH, bool), steps=jnp.ones(BATCH, jnp.int32))

    def critic_step(self, y: Any, tau: Any) -> tuple[Any, Any]:
        """Return the loss of the critics and its gradient."""
        arguments = self.config, self.state, self.batch, y, tau
        return jax.value_and_grad(lambda p: actor_critic.critic_loss(p, *arguments)[0])(self.state.params["critic"])


def close(name: str, ours: Any, factor: float = 1.0, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Compare ours with theirs times a factor."""
    assert_allclose(np.asarray(ours).reshape(THEIRS[name].shape), factor * THEIRS[name], rtol, atol, err_msg=name)


def gradients_agree(name: str, gradient: Any, places: dict[str, tuple[Any, ...]], factor: float = 1.0) -> None:
    """Compare a gradient with theirs, layer by layer."""
    plain = nnx.to_pure_dict(gradient)
    for place, path in places.items():
        inner = reduce(getitem, path, plain)
        for part in ("kernel", "bias"):
            close(f"{name}.{place[-1]}.{part}", inner[part], factor, rtol=2e-4)


def critics_agree(name: str, gradient: Any, factor: float) -> None:
    for i in range(2):
        gradients_agree(f"{name}:critic.{i}", jax.tree.map(lambda x, i=i: x[i], gradient), OF_CRITIC, factor)


def with_noise(name: str) -> Callable[..., Any]:
    """`sac.actions` with the noise that they drew."""

    def actions(state: Any, params: Any, obs: Any, key: Any) -> Any:
        def one(outputs: Any, e: Any) -> Any:
            with mock.patch.object(sac.jax.random, "normal", return_value=e):
                return sac.sample(jax.random.key(0), outputs)

        return jax.vmap(one)(jax.vmap(nnx.merge(state.network.actor, params))(obs), jnp.asarray(THEIRS[name]))

    return actions


def of_soft_actor(side: Side, name: str) -> None:
    """Compare the actor's loss and gradient, whose last layer has means first."""
    with mock.patch.object(sac, "actions", with_noise("noise")):
        arguments = side.config, side.state, side.batch, jnp.float32(ALPHA), jax.random.split(jax.random.key(0))
        (value, log_pi), gradient = jax.value_and_grad(sac.actor_loss, has_aux=True)(
            side.state.params["actor"], *arguments
        )
    # Their ln(1 - a^2) is ln(1 - a^2 + 1e-6), ours is exact.
    close(f"{name}:actor_loss", value, rtol=1e-4, atol=1e-5)
    plain = nnx.to_pure_dict(gradient)
    for i in range(2):
        close(f"{name}:actor.{i}.kernel", plain["psi"]["layers"][i]["kernel"], rtol=1e-3, atol=1e-5)
    mean, log_sigma = np.split(np.asarray(plain["out"]["kernel"]), 2, axis=1)
    close(f"{name}:actor.2.kernel", mean, rtol=1e-3, atol=1e-5)
    close(f"{name}:actor.3.kernel", log_sigma, rtol=1e-3, atol=1e-5)
    loss = jax.value_and_grad(lambda x: sac.temperature_loss(x, side.config, side.state, log_pi)[0])
    value, slope = loss(side.state.params["log_alpha"])
    close(f"{name}:ent_coef_loss", value, rtol=1e-4, atol=1e-5)
    if name == "sac":
        close("sac:log_alpha", slope, rtol=1e-4, atol=1e-5)


def test_targets_losses_and_gradients_of_sac_are_theirs():
    side = Side("sac", "soft")
    with mock.patch.object(sac, "actions", with_noise("next_noise")):
        y, tau = sac.bootstrap(side.config, side.state, side.batch, jax.random.split(jax.random.key(0)))
    close("sac:targets", y, rtol=1e-4, atol=1e-5)
    value, gradient = side.critic_step(y, tau)
    close("sac:critic_loss", value, rtol=1e-4, atol=1e-5)
    critics_agree("sac", gradient, 1.0)
    of_soft_actor(side, "sac")


def test_targets_losses_and_gradients_of_tqc_are_theirs():
    """Their loss is the mean over critics and quantiles, where ours is the sum of both."""
    side = Side("tqc", "soft", num_critics=2, num_quantiles=5, top_quantiles_to_drop=1)
    with mock.patch.object(sac, "actions", with_noise("next_noise")):
        y, tau = sac.bootstrap(side.config, side.state, side.batch, jax.random.split(jax.random.key(0)))
    close("tqc:targets", np.sort(y, axis=1), rtol=1e-4, atol=1e-5)
    value, gradient = side.critic_step(y, tau)
    close("tqc:critic_loss", value, 2 * 5, rtol=1e-4, atol=1e-5)
    critics_agree("tqc", gradient, 2 * 5)
    of_soft_actor(side, "tqc")


def test_targets_losses_and_gradients_of_td3_are_theirs():
    """Their critics learn the squared error, ours half of it."""
    side = Side("td3", "deterministic.online", policy_delay=1)
    with mock.patch.object(td3.jax.random, "normal", return_value=jnp.asarray(THEIRS["next_noise"])):
        y, tau = td3.bootstrap(side.config, side.state, side.batch, jax.random.split(jax.random.key(0)))
    close("td3:targets", y)
    value, gradient = side.critic_step(y, tau)
    close("td3:critic_loss", value, 0.5)
    critics_agree("td3", gradient, 0.5)
    arguments = side.config, side.state, side.batch, jax.random.key(0)
    (value, _), gradient = jax.value_and_grad(td3.actor_loss, has_aux=True)(side.state.params["actor"], *arguments)
    close("td3:actor_loss", value)
    gradients_agree("td3:actor", gradient, OF_ACTOR)


OF_PPO = mlp("actor", ("actor",), ("out",)) | mlp("value", ("psi",), ("head", "out"))


def test_advantages_loss_and_gradients_of_ppo_are_theirs():
    """Their loss of the value is the squared error, ours half of it, so our coefficient is twice theirs.

    Advantages are not normalised here: their standard deviation divides by n - 1, ours by n.
    """
    config = ppo.Config(
        num_envs=2, num_steps=6, num_minibatches=1, gamma=GAMMA, lambda_=0.7, clip_ratio=0.1, entropy_coefficient=0.03,
        value_coefficient=0.7, normalize_advantages=False, torso_sizes=(8, 8),
    )  # fmt: skip
    graph, _ = nnx.split(ppo.Network(ENV, config, rngs=nnx.Rngs(0)))

    def weights(which: str) -> Any:
        params = nnx.split(ppo.Network(ENV, config, rngs=nnx.Rngs(0)))[1]
        params = filled(params, THEIRS, {f"{which}.{place}": path for place, path in OF_PPO.items()})
        plain = nnx.to_pure_dict(params)
        plain["log_sigma"] = jnp.asarray(THEIRS[f"{which}.log_sigma"])
        nnx.replace_by_pure_dict(params, plain)
        return params

    script = {
        name: np.swapaxes(THEIRS[f"script.{name}"], 0, 1)
        for name in ("obs", "last", "reward", "terminated", "truncated")
    }
    ended = (script["terminated"] | script["truncated"])[..., None]
    next_obs = np.where(ended, script["last"], script["obs"][1:])
    steps = Transition(
        *map(jnp.asarray, (script["obs"][:-1], THEIRS["ppo:action"], script["reward"], next_obs)),
        jnp.asarray(script["terminated"]), jnp.asarray(script["truncated"]),
    )  # fmt: skip
    nothing = normalize.init(ENV.observation_space.shape, 2, False, False, 1.0)
    state = ppo.State(
        network=graph, params=weights("acted"), average_params=None, optimizer_state=None, envs=None, normalizer=nothing,
        key=None, evaluation_key=None, env_steps=jnp.int32(0), gradient_steps=jnp.int32(0), bounds=BOUNDS,
    )  # fmt: skip
    rows = ppo.observe(config, state, steps, jax.random.key(0)).rows
    close("ppo:log_pi", rows.log_pi, rtol=1e-4, atol=1e-5)
    close("ppo:advantage", rows.advantage, rtol=1e-4, atol=1e-5)
    close("ppo:target", rows.target, rtol=1e-4, atol=1e-5)
    (value, measured), gradient = jax.value_and_grad(ppo.loss, has_aux=True)(
        weights("moved"), config, state, rows, jax.random.key(0)
    )
    close("ppo:loss", value, rtol=1e-4, atol=1e-5)
    for name in ("actor_loss", "approx_kl", "clip_fraction"):
        close(f"ppo:{name}", measured[name].mean(), rtol=1e-3, atol=1e-5)
    assert 0 < float(THEIRS["ppo:clip_fraction"]) < 1, "some ratios are clipped"
    for network in ("actor", "value"):
        places = {place: path for place, path in OF_PPO.items() if place.startswith(network)}
        gradients_agree(f"ppo:{network}", gradient, places)
    close("ppo:log_sigma", nnx.to_pure_dict(gradient)["log_sigma"], rtol=1e-3, atol=1e-5)
