"""Heads: what is learned of the return, one file each, and a line in the registry."""

from quantilax.heads import categorical, hl_gauss, implicit_quantile, quantile, scalar
from quantilax.heads.types import Head

__all__ = ["CONFIGS", "HEADS", "Head"]

HEADS: dict[str, Head] = {
    module.HEAD.name: module.HEAD for module in (scalar, quantile, implicit_quantile, categorical, hl_gauss)
}

CONFIGS: tuple[type, ...] = tuple(dict.fromkeys(config for head in HEADS.values() for config in head.configs))
"""Groups of the hyperparameters of all heads, each once."""
