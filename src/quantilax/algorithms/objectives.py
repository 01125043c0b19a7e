"""Objectives of Q-learning besides the mean of the discounted return G.

| symbol | here | meaning |
|---|---|---|
| a | `risk_level` | share of the worst outcomes |
| CVaR_a | `risk.cvar_of` | mean of the worst share a: `max_b b + E min(G - b, 0) / a` |
| b | | threshold; the best one is the a-quantile of the return |
| c | `c` | stock, `c_0 = -b` and `c' = (c + r) / gamma`; see `quantilax.envs.stock` |
| u | `risk.utility` | utility of an action: `E min(c + Z(x, c, a), 0)` |

- `static_cvar` maximises CVaR_a of the whole episode's return. Networks see c, and actions are
  greedy for u, whatever a is. A level only chooses the first stock, in `first_stock`, so one agent
  serves all levels.
- `spectral` maximises `sum_i w_i CVaR_{a_i}`, with a stock c_i of each, and is greedy for
  `sum_i w_i / a_i E min(c_i + Z, 0)`.
- `dynamic_cvar` maximises the nested CVaR `rho(x, a) = CVaR_a[r + gamma max_a' rho(x', a')]`, where
  each step takes the CVaR of its own outcomes. Z is then the distribution of what is in the
  brackets, and not that of the return.

The dynamics of x do not depend on c. So `relabelled` draws new stocks whenever transitions are
drawn from the replay, and every transition teaches all levels.

Sources: Baeuerle & Ott (2011), https://doi.org/10.1007/s00186-011-0367-0; Pires et al. (2025),
https://arxiv.org/abs/2501.13028; Moghimi & Ku (2025), https://arxiv.org/abs/2501.02087.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from quantilax import fractions, heads
from quantilax.envs.stock import Stock
from quantilax.errors import ConfigError
from quantilax.learning import normalize, risk
from quantilax.learning.normalize import Normalizer
from quantilax.types import Environment, NStep, Observation

GRID = 101
"""Stocks among which `first_stock` chooses, in each coordinate."""
SWEEPS = 2
"""Passes of `first_stock` over the coordinates, if there are several stocks."""
FRACTIONS = 128
"""Quantiles of the return from a first observation that `first_stock` reads."""


def check(config: Any) -> None:
    """Raise `ConfigError` if a config contradicts its `risk_objective`."""
    c, asked = config, f"with risk_objective={config.risk_objective}"
    if c.risk_objective == "mean":
        return
    if heads.of(c).worst is None:
        raise ConfigError(
            f"risk_objective: {c.risk_objective} is not defined for head={c.head}; choose quantile or implicit_quantile"
        )
    if getattr(c, "risk", "neutral") != "neutral":
        raise ConfigError(f"risk: {c.risk} distorts what the policy maximises {asked}; set it to neutral")
    for name, neutral, why in (
        ("n_step", 1, "the steps in between were taken for other stocks or risks"),
        ("munchausen", False, "its policy is a softmax of means"),
        ("signals", False, "signals are of policies that maximise the mean"),
    ):
        if getattr(c, name) != neutral:
            raise ConfigError(f"{name}: is not defined {asked}: {why}; set it to {str(neutral).lower()}")
    if weights(c) is None:
        return
    if is_number(c.gamma) and c.gamma == 0:
        raise ConfigError(f"gamma: must be > 0 {asked}, whose stock is divided by it")
    if is_number(c.return_min) and is_number(c.return_max) and not c.return_min < c.return_max:
        raise ConfigError(f"return_min: {c.return_min} is not below return_max={c.return_max}; set both {asked}")
    if c.risk_objective == "spectral":
        levels, given = c.risk_levels, c.risk_weights
        if not levels or len(levels) != len(given) or list(levels) != sorted(set(levels)):
            raise ConfigError(
                f"risk_levels: {list(levels)} must be rising levels, one for each of risk_weights={list(given)}"
            )


def is_number(value: Any) -> bool:
    """Return whether a field holds one number, which can be compared outside of programs."""
    return isinstance(value, int | float)


def shares(config: Any) -> np.ndarray:
    """Return `risk_weights`, divided by their sum."""
    given = np.asarray(config.risk_weights, np.float32)
    return np.asarray(given / given.sum())


def weights(config: Any) -> Any:
    """Return the weight of each stock's utility; None if there are no stocks."""
    if config.risk_objective == "static_cvar":
        return np.ones(1, np.float32)
    if config.risk_objective == "spectral":
        return shares(config) / np.float32(config.risk_levels)
    return None


def stock(config: Any, env: Environment | None = None) -> Stock:
    """Return the wrapper that shows the stocks of a config, around an environment."""
    share = weights(config)
    assert share is not None
    ends = {"low": -config.return_max, "high": -config.return_min}
    return Stock(env=env, gamma=config.gamma, number=len(share), **ends)  # type: ignore[arg-type]


def environment(env: Environment, config: Any) -> Environment:
    """Return the environment that an agent with this config plays: with stocks, or without."""
    inner = env.env if isinstance(env, Stock) else env
    if weights(config) is None:
        return inner
    made = stock(config, inner)
    made.observation_space  # noqa: B018  it checks whether stocks can be shown
    return made


def inputs(config: Any, normalizer: Normalizer, obs: Observation) -> Observation:
    """Return an observation as the network sees it: normalised, except for the stocks."""
    normalized, share = normalize.observations(normalizer, obs), weights(config)
    if share is None or normalizer.observation is None:
        return normalized
    return jnp.concatenate([normalized[..., : -len(share)], obs[..., -len(share) :]], axis=-1)


def relabelled(config: Any, normalizer: Normalizer, batch: NStep, key: Key[Array, ""]) -> NStep:
    """Return a normalised batch with new random stocks, and the stocks that follow from them."""
    wrapper, rewards = stock(config), normalize.returns(normalizer, batch.reward)
    c = wrapper.draw(key, *batch.reward.shape)
    after = wrapper.after(c, rewards[:, None], batch.steps[:, None])
    shown = jax.vmap(lambda obs, c: wrapper.shown(obs[..., : -wrapper.number], c))
    return batch._replace(obs=shown(batch.obs, c), next_obs=shown(batch.next_obs, after))


def score(config: Any, normalizer: Normalizer, prediction: Any, obs: Observation) -> Float[Array, "A"]:
    """Return what is maximised over actions, given the prediction for one observation."""
    share = weights(config)
    if share is None:
        return heads.of(config).mean(prediction)
    c = normalize.rewards(normalizer, stock(config).of(obs))
    return risk.utility(c, prediction.Y, jnp.asarray(share))


def first_stock(
    config: Any,
    normalizer: Normalizer,
    Z: Callable[[Observation, Float[Array, "N"]], Float[Array, "N A"]],
    obs: Observation,
    levels: Float[Array, "L"],
    weight: Float[Array, "L"],
) -> Float[Array, "k"]:
    """Return the first stocks from which the learned return has the largest mixture of CVaRs.

    With one stock this searches the grid. With several it searches the diagonal and then each
    coordinate in turn, which may end in a local maximum.

    Args:
        config, normalizer: of the agent.
        Z: (observation, fractions) -> learned quantiles of the return.
        obs: the first observation of an episode, whatever stocks it shows.
        levels, weight: of the mixture, `sum_i weight_i CVaR_{levels_i}`.
    """
    wrapper = stock(config)
    tau = fractions.midpoints(jnp.zeros(FRACTIONS))

    def value(c: Float[Array, "k"]) -> Float[Array, ""]:
        seen = wrapper.shown(obs[..., : -wrapper.number], c)
        quantiles = Z(seen, tau)
        z = quantiles[:, jnp.argmax(score(config, normalizer, heads.base.Prediction(quantiles), seen))]
        return weight @ jax.vmap(risk.cvar_of, in_axes=(None, 0))(z, levels)

    def best(candidates: Float[Array, "G k"]) -> Float[Array, "k"]:
        return candidates[jnp.argmax(jax.lax.map(value, candidates))]

    grid = jnp.linspace(wrapper.low, wrapper.high, GRID)
    c = best(jnp.repeat(grid[:, None], wrapper.number, axis=1))
    for i in list(range(wrapper.number)) * SWEEPS if wrapper.number > 1 else []:
        c = best(jnp.repeat(c[None], GRID, axis=0).at[:, i].set(grid))
    return c


def mixture(config: Any) -> tuple[Float[Array, "L"], Float[Array, "L"]]:
    """Return levels and weights of the mixture of CVaRs that a config with stocks asks for."""
    if config.risk_objective == "spectral":
        return jnp.asarray(config.risk_levels, jnp.float32), jnp.asarray(shares(config))
    return jnp.asarray(config.risk_level)[None], jnp.ones(1)
