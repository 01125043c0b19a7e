"""Averages of the weights over gradient steps, which policies and quantiles are made of (Polyak & Juditsky 1992; an exponential
average, as Adam's moments are).

After each gradient step `average <- w average + (1 - w) theta`, w the hyperparameter `weight_averaging`. Training goes on from
theta, acts by it, and copies it to the target network; nothing of training reads the average. With w = 0 it is theta.
"""

from dataclasses import replace
from typing import Any, TypeVar

import optax
from jaxtyping import Array, Float, PyTree

State = TypeVar("State", bound=Any)


def update(average: PyTree, params: PyTree, weight_averaging: Float[Array, ""] | float) -> PyTree:
    """Return the average after the gradient step that led to `params`."""
    return optax.incremental_update(params, average, 1 - weight_averaging)


def mean_age(weight_averaging: float) -> float:
    """Return how many gradient steps ago the averaged weights were learned, on average: w / (1 - w)."""
    return weight_averaging / (1 - weight_averaging)


def advice(weight_averaging: float, gradient_steps: int) -> list[str]:
    """Lines on averages that are as long as the run."""
    age = mean_age(weight_averaging)
    if gradient_steps > 20 and age > gradient_steps / 5:
        return [
            f"weight_averaging={weight_averaging:g} evaluates weights that are {age:,.0f} gradient steps old on average, of"
            f" {gradient_steps:,} in all: evaluations lag far behind what is learned; set it to"
            f" {1 - 20 / gradient_steps:.6g} or less"
        ]
    return []


def averaged(state: State) -> State:
    """Return the state with the averaged weights in the place of theta."""
    return replace(state, params=state.average_params)
