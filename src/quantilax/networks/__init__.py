"""Networks: NNX modules that are deterministic functions of one example; torsos turn observations into features, heads
features into values."""

from quantilax.networks.heads import CosineEmbedding, ImplicitQuantileHead, QHead, cosines
from quantilax.networks.torsos import ACTIVATIONS, MLP, linear

__all__ = ["ACTIVATIONS", "MLP", "CosineEmbedding", "ImplicitQuantileHead", "QHead", "cosines", "linear"]
