"""Networks as NNX modules, each a deterministic function of one example.

Torsos turn observations into features; heads turn features into values.
"""

from quantilax.networks.hats import WithHats
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
from quantilax.networks.precision import COMPUTE_DTYPES, computing_in
from quantilax.networks.torsos import ACTIVATIONS, CNN, FLAT, MLP, TORSOS, linear, torso

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "COMPUTE_DTYPES",
    "FLAT",
    "MLP",
    "TORSOS",
    "ActionHead",
    "CosineEmbedding",
    "FractionProposal",
    "ImplicitQuantileHead",
    "WithHats",
    "computing_in",
    "cosines",
    "in_one_pass",
    "linear",
    "monotone",
    "torso",
    "with_noise",
]
