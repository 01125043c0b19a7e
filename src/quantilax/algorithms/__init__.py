"""The registry of algorithms: a name, a loop and a head.

`iqn` is Q-learning with implicit quantiles; `q_learning` and `pqn` take any head, by the hyperparameter `head`.
"""

from typing import Any, ClassVar

from quantilax import heads
from quantilax.algorithms import pqn, published, q_learning
from quantilax.heads import HEADS, categorical, implicit_quantile, proposed, quantile
from quantilax.hyperparameters import LEAST, Huber
from quantilax.pytree import ConfigError, dataclass, did_you_mean, field
from quantilax.types import Algorithm


@dataclass
class DQN(q_learning.Config, Huber):
    """Hyperparameters of DQN; `PAPER` is what Mnih et al. (2015) used on Atari."""

    head: ClassVar[str] = "scalar"
    PAPER: ClassVar[dict[str, Any]] = published.DQN
    kappa: float = field(
        1.0, "where the Huber loss becomes linear, in units of return; .inf: squared error", ge=LEAST, finite=False
    )


@dataclass
class C51(q_learning.Config, categorical.Categorical):
    """Hyperparameters of C51; `PAPER` is what Bellemare et al. (2017) used on Atari."""

    head: ClassVar[str] = "categorical"
    PAPER: ClassVar[dict[str, Any]] = published.C51


@dataclass
class QRDQN(q_learning.Config, quantile.Quantiles):
    """Hyperparameters of QR-DQN; `PAPER` is what Dabney et al. (2018) used on Atari."""

    head: ClassVar[str] = "quantile"
    PAPER: ClassVar[dict[str, Any]] = published.QRDQN


@dataclass
class IQN(q_learning.Config, implicit_quantile.ImplicitQuantiles):
    """Hyperparameters of IQN; `PAPER` is what Dabney et al. (2018) used on Atari."""

    head: ClassVar[str] = "implicit_quantile"
    PAPER: ClassVar[dict[str, Any]] = published.IQN


@dataclass
class FQF(q_learning.Config, proposed.Fractions):
    """Hyperparameters of FQF; `PAPER` is what Yang et al. (2019) used on Atari."""

    head: ClassVar[str] = "proposed"
    PAPER: ClassVar[dict[str, Any]] = published.FQF


@dataclass
class QLearning(q_learning.Config, *heads.CONFIGS):  # type: ignore[misc]
    """Hyperparameters of Q-learning with any head."""

    head: str = field(  # type: ignore[misc]
        "implicit_quantile", "what is learned of the return", choices=HEADS
    )


ALGORITHMS: dict[str, Algorithm] = {
    "dqn": q_learning.algorithm("dqn", DQN),
    "c51": q_learning.algorithm("c51", C51),
    "qrdqn": q_learning.algorithm("qrdqn", QRDQN),
    "iqn": q_learning.algorithm("iqn", IQN),
    "fqf": q_learning.algorithm("fqf", FQF),
    "q_learning": q_learning.algorithm("q_learning", QLearning),
    "pqn": pqn.ALGORITHM,
}


def get(name: str) -> Algorithm:
    """Return the algorithm of that name, or raise `ConfigError` with a suggestion."""
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm '{name}'{did_you_mean(name, ALGORITHMS, 'algorithms')}")
    return ALGORITHMS[name]


def register(algorithm: Algorithm) -> Algorithm:
    """Add an algorithm of your own, so that configs and the command line find it by its name."""
    if algorithm.name in ALGORITHMS:
        raise ConfigError(f"algorithm '{algorithm.name}' is registered already; choose another name")
    ALGORITHMS[algorithm.name] = algorithm
    return algorithm
