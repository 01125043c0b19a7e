"""Networks: NNX modules that are deterministic functions of one example; torsos turn observations into features, heads
features into values."""

from quantilax.networks.heads import (
    ActionHead,
    CosineEmbedding,
    FractionProposal,
    ImplicitQuantileHead,
    cosines,
    in_one_pass,
    monotone,
)
from quantilax.networks.noisy import with_noise
from quantilax.networks.torsos import ACTIVATIONS, CNN, MLP, TORSOS, linear, torso

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "TORSOS",
    "ActionHead",
    "CosineEmbedding",
    "FractionProposal",
    "ImplicitQuantileHead",
    "cosines",
    "in_one_pass",
    "linear",
    "monotone",
    "torso",
    "with_noise",
]
