"""Exponential moving average (EMA) of the weights, from which policies and quantiles are made.

After each gradient step `average <- w average + (1 - w) theta`, where w is the hyperparameter
`weight_averaging`. Training never reads the average: it continues from theta, acts by theta and
copies theta to the target network. With w = 0 the average is theta.

In a run of N gradient steps, w is capped so that the average is at most N / 8 gradient steps old.
Without the cap, evaluations of a short run would show its beginning.

Source: Polyak & Juditsky (1992), with an exponential average like that of Adam's moments.
"""

from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

State = TypeVar("State", bound=Any)


OLDEST = 1 / 8
"""Largest mean age of the average, as a share of the run's gradient steps."""


def update(average: PyTree, params: PyTree, weight_averaging: Float[Array, ""] | float, gradient_steps: int) -> PyTree:
    """Return the average after the gradient step that led to `params`, in a run of this length."""
    oldest = OLDEST * gradient_steps
    return optax.incremental_update(params, average, 1 - jnp.minimum(weight_averaging, oldest / (1 + oldest)))


def mean_age(weight_averaging: float, gradient_steps: int) -> float:
    """Return the mean age of the averaged weights in gradient steps: w / (1 - w), after the cap."""
    return min(weight_averaging / (1 - weight_averaging), OLDEST * gradient_steps)


def averaged(state: State) -> State:
    """Return the state with the averaged weights in place of theta."""
    return replace(state, params=state.average_params)
