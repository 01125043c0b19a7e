"""What the loops that learn values of actions share: the network, and acting by it."""

from functools import partial
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from quantilax import heads, hyperparameters
from quantilax.algorithms import objectives
from quantilax.algorithms.base import Headed, State, quantiles_of
from quantilax.heads.base import Taus
from quantilax.hyperparameters import Exploration, Loop, Munchausen, Optimiser, Task
from quantilax.learning import averaging, exploration, normalize
from quantilax.networks import WithHats, computing_in, torso
from quantilax.pytree import dataclass
from quantilax.types import Action, Carry, Environment, Legal, Metrics, Observation, Policy, num_actions


@dataclass
class Config(Headed, Loop, Optimiser, Munchausen, Exploration, Task, hyperparameters.Network):
    """What the configs of these loops share.

    An algorithm's own config adds a `head` and the groups of its hyperparameters.
    """

    def figures(self, updates_per_step: float, **own: Any) -> dict[str, Any]:
        """Return the figures of every loop's `derived`, together with a loop's own."""
        end = round(self.exploration_fraction * self.total_timesteps)
        return super().figures(updates_per_step, **own) | {"epsilon_end_at_env_step": end}

    def advice(self) -> list[str]:
        """Return lines on settings known to mislead, each with the remedy."""
        return exploration.advice(self.eps_start, self.eps_end, self.exploration_fraction) + super().advice()

    def caveats(self) -> list[str]:
        """Return a line for each way in which the learned returns are not the policy's."""
        lines, distortion = super().caveats(), getattr(self, "risk", "neutral")
        if self.munchausen:
            lines.append(
                "munchausen: the learned returns contain scaled log-probabilities and entropies of a softmax policy; they"
                " are not converted"
            )
        if distortion != "neutral":
            lines.append(
                f"risk={distortion}: the policy acts by distorted values; the learned returns are those of the policy that"
                " maximises the mean"
            )
        return lines


class Network(nnx.Module):
    """psi and the layer of the config's head."""

    def __init__(self, env: Environment, config: Any, *, rngs: nnx.Rngs) -> None:
        """Build both for the spaces of the environment."""
        make, stocks = partial(torso, config=config, rngs=rngs), objectives.weights(config)
        space = env.observation_space
        self.psi = make(space) if stocks is None else WithHats(make, space, len(stocks))
        self.head = heads.of(config).layer(self.psi.features, num_actions(env), rngs)


def init(env: Environment, config: Any, key: Key[Array, ""], optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Build the network. Return the fields that `State` has for it."""
    made = Network(env, config, rngs=nnx.Rngs(key))
    network, params = nnx.split(computing_in(made, config.compute_dtype))
    optimizer_state = optimizer.init(params)
    return {"network": network, "params": params, "average_params": params, "optimizer_state": optimizer_state}


def metrics(config: Any, state: State, measured: tuple[Array, ...]) -> Metrics:
    """Return the means of (loss, gradient norm, q, TD error), and the iteration's epsilon."""
    loss, gradient_norm, q, td_error = (x.mean() for x in measured)
    epsilon = epsilon_at(config, state.env_steps - config.steps_per_iteration)
    return Metrics(loss=loss, gradient_norm=gradient_norm, q=q, td_error=td_error, epsilon=epsilon)


def predict(network: Any, obs: Shaped[Array, "B *obs"], tau: Taus, config: Any) -> Any:
    """Return the head's predictions for a batch of observations."""
    return heads.of(config).predict(network.head, jax.vmap(network.psi)(obs), [tau])[0]


def means(predictions: Any, config: Any) -> Float[Array, "B A"]:
    """Return Q of a batch of predictions."""
    q: Float[Array, "B A"] = jax.vmap(heads.of(config).mean)(predictions)
    return q


def successors(
    target: Any,
    selector: Any,
    obs: Shaped[Array, "B *obs"],
    legal: Bool[Array, "B A"] | None,
    tau: Taus,
    tau_action: Taus,
    config: Any,
    normalizer: normalize.Normalizer,
) -> tuple[Any, Float[Array, "B A"]]:
    """Return what a network predicts at x', and the values that choose a* there.

    Args:
        target, selector: the networks that predict and that choose a*. If they are the same, both
            results come from one pass.
        obs, legal: x', normalised, and the actions that may be taken there.
        tau, tau_action: the fractions for the predictions and for the choice.
        config: of the head and the objective.
        normalizer: of the rewards.
    """
    if selector is not target:
        predictions, choosing = predict(target, obs, tau, config), predict(selector, obs, tau_action, config)
    else:
        psi = jax.vmap(target.psi)(obs)
        predictions, choosing = heads.of(config).predict(target.head, psi, [tau, tau_action])
    scores = jax.vmap(partial(objectives.score, config, normalizer))(choosing, obs)
    return predictions, exploration.masked(scores, legal)


def epsilon_at(config: Any, env_steps: Int[Array, ""]) -> Float[Array, ""]:
    """Return the scheduled epsilon of the iteration in which `env_steps` lies.

    Epsilon is the probability of a random action.
    """
    steps, duration = config.steps_per_iteration, config.exploration_fraction * config.total_timesteps
    begun = env_steps if steps == config.num_envs else env_steps // steps * steps
    return exploration.linear_schedule(config.eps_start, config.eps_end, duration, begun)


def acting(config: Any, state: Any, epsilon: Float[Array, ""] | float) -> Policy:
    """Return the epsilon-greedy policy on the objective's scores of actions, such as Q."""

    def act(obs: Observation, carry: Carry, key: Key[Array, ""], legal: Legal) -> tuple[Action, Carry]:
        values, key = acting_values(config, state, obs, key)
        return exploration.epsilon_greedy(key, values, epsilon, legal), carry

    return Policy(act)


def acting_values(
    config: Any, state: Any, obs: Observation, key: Key[Array, ""]
) -> tuple[Float[Array, "A"], Key[Array, ""]]:
    """Return what a policy compares at one observation, in learned units, and an unused key.

    These are the objective's scores of actions, such as Q.
    """
    head, network = heads.of(config), nnx.merge(state.network, state.params)
    tau, key = head.draw_acting(key)
    if config.risk_objective == "dynamic_cvar":
        (tau,) = head.worst(config.risk_level, [tau])
    psi = network.psi(objectives.inputs(config, state.normalizer, obs))
    return objectives.score(config, state.normalizer, head.predict(network.head, psi, [tau])[0], obs), key


def q(config: Any, state: State, obs: Observation, key: Key[Array, ""]) -> Float[Array, "A"]:
    """Return the values that the policy of evaluation compares, in the environment's units."""
    return normalize.returns(state.normalizer, acting_values(config, averaging.averaged(state), obs, key)[0])


def policy(env: Environment, config: Any, state: State) -> Policy:
    """Return the policy that evaluation runs.

    It uses the EMA of the weights and no noise, and is greedy except for `eval_epsilon`.
    """
    return acting(config, averaging.averaged(state), config.eval_epsilon)


def quantiles(config: Any, state: State, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
    """Return Z_tau(x, .) of the EMA of the weights, for one observation.

    The observation and Z are in the environment's units.

    Raises:
        ConfigError: if the head learns no distribution.
    """
    of_head = quantiles_of(config)
    network = nnx.merge(state.network, state.average_params)
    psi = network.psi(objectives.inputs(config, state.normalizer, obs))
    return normalize.returns(state.normalizer, of_head(network.head, psi, tau))
