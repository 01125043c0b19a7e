"""Networks: NNX modules that are deterministic functions of one example; torsos turn observations into features, heads
features into values."""

from quantilax.networks.heads import CosineEmbedding, ImplicitQuantileHead, QHead, cosines, in_one_pass
from quantilax.networks.torsos import ACTIVATIONS, MLP, linear

__all__ = ["ACTIVATIONS", "MLP", "CosineEmbedding", "ImplicitQuantileHead", "QHead", "cosines", "in_one_pass", "linear"]
