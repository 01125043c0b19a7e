"""What the loops share that learn values of actions by a head: the network, its optimiser, acting."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from quantilax import averaging, exploration, normalize, packing, rollout
from quantilax.heads import HEADS
from quantilax.heads.types import Taus
from quantilax.networks import computing_in, torso
from quantilax.pytree import ConfigError, dataclass
from quantilax.types import Action, Carry, Config, Environment, Legal, Metrics, Observation, Policy, num_actions


class Network(nnx.Module):
    """psi, and the layer of the config's head."""

    def __init__(self, env: Environment, config: Config, *, rngs: nnx.Rngs) -> None:
        """Make both for the environment's spaces."""
        self.psi = torso(env.observation_space, config, rngs=rngs)
        self.head = HEADS[config.head].layer(self.psi.features, num_actions(env), config, rngs=rngs)


@dataclass
class State(rollout.State):
    """A network, the average of its weights, and the optimiser's moments."""

    network: nnx.GraphDef
    """The network's structure: no leaves, the same for every seed."""
    average_params: PyTree
    """What evaluation runs, see `quantilax.averaging`."""
    optimizer_state: PyTree


def init(
    env: Environment, config: Config, key: Key[Array, ""], optimizer: optax.GradientTransformation
) -> dict[str, Any]:
    """Make the network: fields of `State`."""
    made = Network(env, config, rngs=nnx.Rngs(key))
    network, params = nnx.split(computing_in(made, config.compute_dtype))
    optimizer_state = optimizer.init(params)
    return {"network": network, "params": params, "average_params": params, "optimizer_state": optimizer_state}


def check(config: Config) -> None:
    """Raise `ConfigError` for a contradiction in the hyperparameters of any head, or if those of the chosen one are missing."""
    for head in HEADS.values():
        missing = [group.__name__ for group in head.configs if not isinstance(config, group)]
        if not missing:
            head.check(config)
        elif head.name == config.head:
            raise ConfigError(
                f"head: {head.name} needs hyperparameters that this algorithm's config lacks ({', '.join(missing)});"
                " choose an algorithm whose config class extends them"
            )


def advice(config: Config) -> list[str]:
    """Lines on settings that mislead in any of the loops."""
    lines = exploration.advice(config.eps_start, config.eps_end, config.exploration_fraction)
    lines += averaging.advice(config.weight_averaging, config.gradient_steps)
    lines += normalize.advice(config.normalize_rewards, config.reward_scale)
    return lines if config.bootstrap_truncated else [*lines, rollout.ADVICE_ON_TRUNCATION]


def optimizer(config: Config, rule: Callable[..., optax.GradientTransformation]) -> optax.GradientTransformation:
    """`scheduled`, and what the head adds to it."""
    return HEADS[config.head].optimizer(scheduled(config, rule), config)


def scheduled(config: Config, rule: Callable[..., optax.GradientTransformation]) -> optax.GradientTransformation:
    """`rule` with the config's schedule of step sizes, after clipping by the global norm; small arrays as one vector."""
    end = config.learning_rate * config.learning_rate_end
    duration = config.learning_rate_fraction * config.gradient_steps
    schedule = partial(exploration.linear_schedule, config.learning_rate, end, duration)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return packing.packed(optax.chain(clip, rule(schedule)))


def gradient_step(
    config: Config, state: Any, optimizer: optax.GradientTransformation, loss: Callable[..., Any], *arguments: Any
) -> tuple[Any, tuple[Array, Array], Any]:
    """One step on `loss(params, *arguments) -> (value, measured)`: state, (value, gradient norm), measured."""
    (value, measured), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, *arguments)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state)
    params = optax.apply_updates(state.params, updates)
    state = replace(
        state,
        params=params,
        average_params=averaging.update(state.average_params, params, config.weight_averaging),
        optimizer_state=optimizer_state,
        gradient_steps=state.gradient_steps + 1,
    )
    return state, (value, optax.tree.norm(gradient)), measured


def metrics(config: Config, state: State, measured: tuple[Array, ...]) -> Metrics:
    """Means of (loss, gradient norm, q, TD error), and the epsilon by which the iteration acted."""
    loss, gradient_norm, q, td_error = (x.mean() for x in measured)
    epsilon = epsilon_at(config, state.env_steps - config.steps_per_iteration)
    return Metrics(loss=loss, gradient_norm=gradient_norm, q=q, td_error=td_error, epsilon=epsilon)


def predict(network: Any, obs: Shaped[Array, "B *obs"], tau: Taus, config: Config) -> Any:
    """What the head says at a batch of observations."""
    return HEADS[config.head].predict(network.head, jax.vmap(network.psi)(obs), [tau], config)[0]


def means(predictions: Any, config: Config) -> Float[Array, "B A"]:
    """Q of a batch of predictions."""
    q: Float[Array, "B A"] = jax.vmap(HEADS[config.head].mean, in_axes=(0, None))(predictions, config)
    return q


def successors(
    target: Any,
    selector: Any,
    obs: Shaped[Array, "B *obs"],
    legal: Bool[Array, "B A"] | None,
    tau: Taus,
    tau_action: Taus,
    config: Config,
) -> tuple[Any, Float[Array, "B A"]]:
    """What a network says of the returns from x' at tau, and the values by which another, or the same, chooses a* there.

    Args:
        target, selector: the networks; in one pass if they are the same.
        obs, legal: x', and the actions that may be taken there.
        tau, tau_action: the fractions of each.
        config: of the head.
    """
    if selector is not target:
        predictions, choosing = predict(target, obs, tau, config), predict(selector, obs, tau_action, config)
    else:
        psi = jax.vmap(target.psi)(obs)
        predictions, choosing = HEADS[config.head].predict(target.head, psi, [tau, tau_action], config)
    return predictions, exploration.masked(means(choosing, config), legal)


def epsilon_at(config: Config, env_steps: Int[Array, ""]) -> Float[Array, ""]:
    """Probability of a random action by the schedule, in the iteration in which `env_steps` stands."""
    steps, duration = config.steps_per_iteration, config.exploration_fraction * config.total_timesteps
    begun = env_steps if steps == config.num_envs else env_steps // steps * steps
    return exploration.linear_schedule(config.eps_start, config.eps_end, duration, begun)


def acting(config: Config, state: Any, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy on Q."""
    head = HEADS[config.head]

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        network = nnx.merge(state.network, state.params)
        tau, key = head.draw_acting(key, config)
        psi = network.psi(normalize.observations(state.normalizer, obs))
        q = head.mean(head.predict(network.head, psi, [tau], config)[0], config)
        return exploration.epsilon_greedy(key, q, epsilon, legal), carry

    return Policy(act)


def policy(env: Environment, config: Config, state: State) -> Policy:
    """The policy that evaluation runs: averaged weights, greedy but for `eval_epsilon`, noisy layers without noise."""
    return acting(config, averaging.averaged(state), config.eval_epsilon)


def quantiles(config: Config, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Z_tau(x, .) of the averaged weights, for one observation; observation and Z in the environment's units.

    Raises:
        ConfigError: with a head that learns no distribution.
    """
    of_head = HEADS[config.head].quantiles
    if of_head is None:
        *others, last = (name for name, head in HEADS.items() if head.quantiles is not None)
        raise ConfigError(
            f"head: {config.head} learns expected values, no quantiles; choose {', '.join(others)} or {last}"
        )
    network = nnx.merge(state.network, state.average_params)
    psi = network.psi(normalize.observations(state.normalizer, obs))
    return normalize.returns(state.normalizer, of_head(network.head, psi, tau, config))
