"""Heads: what is learned of the return, one file each, and a line in the registry."""

from quantilax.heads import categorical, hl_gauss, implicit_quantile, proposed, quantile, scalar
from quantilax.heads.types import Head
from quantilax.pytree import ConfigError

__all__ = ["CONFIGS", "HEADS", "Head", "register"]

HEADS: dict[str, Head] = {
    module.HEAD.name: module.HEAD for module in (scalar, categorical, quantile, implicit_quantile, proposed, hl_gauss)
}

_GROUPS = tuple(dict.fromkeys(group for head in HEADS.values() for group in head.configs))
CONFIGS: tuple[type, ...] = tuple(g for g in _GROUPS if not any(g in other.__mro__[1:] for other in _GROUPS))
"""Groups of the hyperparameters of all heads, each once, without those that another extends."""


def register(head: Head) -> Head:
    """Add a head of your own, so that the hyperparameter `head` may be its name.

    Its groups of hyperparameters must be in the config: `q_learning` and `pqn` have `CONFIGS`; a group of your own needs a
    config class of your own, see docs/guides/custom-head.md.
    """
    if head.name in HEADS:
        raise ConfigError(f"head '{head.name}' is registered already; choose another name")
    HEADS[head.name] = head
    return head
