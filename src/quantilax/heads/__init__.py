"""Heads decide what is learned of the return. Each has its own file and an entry in `HEADS`."""

from typing import Any

from quantilax.errors import ConfigError
from quantilax.heads.base import Head
from quantilax.heads.categorical import CategoricalHead
from quantilax.heads.hl_gauss import HLGaussHead
from quantilax.heads.implicit_quantile import ImplicitQuantilesHead
from quantilax.heads.proposed import ProposedHead
from quantilax.heads.quantile import QuantileHead
from quantilax.heads.scalar import ScalarHead

__all__ = ["CONFIGS", "HEADS", "Head", "of", "register"]

HEADS: dict[str, type[Head]] = {
    head.name: head
    for head in (ScalarHead, CategoricalHead, QuantileHead, ImplicitQuantilesHead, ProposedHead, HLGaussHead)
}

_GROUPS = tuple(dict.fromkeys(group for head in HEADS.values() for group in head.configs))
CONFIGS: tuple[type, ...] = tuple(g for g in _GROUPS if not any(g in other.__mro__[1:] for other in _GROUPS))
"""Hyperparameter groups of all heads, each once, except those that another group extends."""


def register(head: type[Head]) -> type[Head]:
    """Register a head of your own, so that configs can select it by name.

    This also works as a decorator of the head's class. The config must contain the head's
    hyperparameter groups. `q_learning` and `pqn` contain `CONFIGS`; a group of your own needs a
    config class of your own, see docs/guides/custom-head.md.

    Raises:
        ConfigError: if the name is taken, or the class lacks a required method.
    """
    if head.name in HEADS:
        raise ConfigError(f"head '{head.name}' is registered already; choose another name")
    missing = sorted(getattr(head, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(
            f"head '{head.name}' has no {', '.join(missing)}; see quantilax.heads.Head for what each does"
        )
    HEADS[head.name] = head
    return head


def of(config: Any) -> Head:
    """Return the head that a config names."""
    return HEADS[config.head](config)
