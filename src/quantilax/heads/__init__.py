"""Heads: what is learned of the return, one file each, and a line in the registry."""

from typing import Any

from quantilax.heads.base import Head
from quantilax.heads.categorical import CategoricalHead
from quantilax.heads.hl_gauss import HLGaussHead
from quantilax.heads.implicit_quantile import ImplicitQuantilesHead
from quantilax.heads.proposed import ProposedHead
from quantilax.heads.quantile import QuantileHead
from quantilax.heads.scalar import ScalarHead

__all__ = ["CONFIGS", "HEADS", "Head", "of"]

HEADS: dict[str, type[Head]] = {
    head.name: head
    for head in (ScalarHead, CategoricalHead, QuantileHead, ImplicitQuantilesHead, ProposedHead, HLGaussHead)
}

_GROUPS = tuple(dict.fromkeys(group for head in HEADS.values() for group in head.configs))
CONFIGS: tuple[type, ...] = tuple(g for g in _GROUPS if not any(g in other.__mro__[1:] for other in _GROUPS))
"""Groups of the hyperparameters of all heads, each once, without those that another extends."""


def of(config: Any) -> Head:
    """Return the head that a config names."""
    return HEADS[config.head](config)
