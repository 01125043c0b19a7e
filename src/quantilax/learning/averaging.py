"""Averages of the weights over gradient steps, which policies and quantiles are made of (Polyak & Juditsky 1992; an exponential
average, as Adam's moments are).

After each gradient step `average <- w average + (1 - w) theta`, w the hyperparameter `weight_averaging`. Training goes on from
theta, acts by it, and copies it to the target network; nothing of training reads the average. With w = 0 it is theta.

In a run of N gradient steps w is at most what makes the average N / 8 gradient steps old, so that
the evaluations of a short run do not show its beginning.
"""

from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

State = TypeVar("State", bound=Any)


OLDEST = 1 / 8
"""Mean age of the average at most, as a share of the run's gradient steps."""


def update(average: PyTree, params: PyTree, weight_averaging: Float[Array, ""] | float, gradient_steps: int) -> PyTree:
    """Return the average after the gradient step that led to `params`, in a run of so many."""
    oldest = OLDEST * gradient_steps
    return optax.incremental_update(params, average, 1 - jnp.minimum(weight_averaging, oldest / (1 + oldest)))


def mean_age(weight_averaging: float, gradient_steps: int) -> float:
    """Return how many gradient steps ago the averaged weights were learned, on average: w / (1 - w)."""
    return min(weight_averaging / (1 - weight_averaging), OLDEST * gradient_steps)


def averaged(state: State) -> State:
    """Return the state with the averaged weights in the place of theta."""
    return replace(state, params=state.average_params)
