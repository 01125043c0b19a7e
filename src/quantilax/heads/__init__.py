"""Heads: what is learned of the return, one file each, and a line in the registry."""

from quantilax.heads import categorical, hl_gauss, implicit_quantile, proposed, quantile, scalar
from quantilax.heads.types import Head

__all__ = ["CONFIGS", "HEADS", "Head"]

HEADS: dict[str, Head] = {
    module.HEAD.name: module.HEAD for module in (scalar, categorical, quantile, implicit_quantile, proposed, hl_gauss)
}

_GROUPS = tuple(dict.fromkeys(group for head in HEADS.values() for group in head.configs))
CONFIGS: tuple[type, ...] = tuple(g for g in _GROUPS if not any(g in other.__mro__[1:] for other in _GROUPS))
"""Groups of the hyperparameters of all heads, each once, without those that another extends."""
