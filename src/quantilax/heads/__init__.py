"""Heads: what is learned of the return, one file each, and a line in the registry."""

from quantilax.heads import categorical, implicit_quantile, quantile, scalar
from quantilax.heads.types import Head

__all__ = ["HEADS", "Head"]

HEADS: dict[str, Head] = {
    module.HEAD.name: module.HEAD for module in (scalar, quantile, implicit_quantile, categorical)
}
