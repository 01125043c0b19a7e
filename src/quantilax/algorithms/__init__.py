"""The registry of algorithms. An algorithm is a name, a training loop and a head.

`iqn`, for example, is Q-learning with implicit quantiles. `q_learning` and `pqn` take any head
through the hyperparameter `head`. Each class here holds the hyperparameters of one algorithm, and
its `PAPER` what the publication used on Atari.
"""

from quantilax import heads
from quantilax.algorithms import pqn, published, q_learning
from quantilax.errors import ConfigError, did_you_mean
from quantilax.heads import HEADS, categorical, implicit_quantile, proposed, quantile
from quantilax.hyperparameters import Huber
from quantilax.pytree import dataclass, field
from quantilax.types import Algorithm


@dataclass
class DQN(q_learning.Config, Huber):
    """DQN: Q-learning of means (Mnih et al. 2015, https://doi.org/10.1038/nature14236)."""

    head, PAPER = "scalar", published.DQN


@dataclass
class C51(q_learning.Config, categorical.Categorical):
    """C51: Q-learning with atoms (Bellemare, Dabney & Munos 2017, https://arxiv.org/abs/1707.06887)."""

    head, PAPER = "categorical", published.C51


@dataclass
class QRDQN(q_learning.Config, quantile.Quantiles):
    """QR-DQN: Q-learning with quantiles (Dabney, Rowland, Bellemare & Munos 2018, https://arxiv.org/abs/1710.10044)."""

    head, PAPER = "quantile", published.QRDQN


@dataclass
class IQN(q_learning.Config, implicit_quantile.ImplicitQuantiles):
    """IQN: Q-learning with implicit quantiles (Dabney, Ostrovski, Silver & Munos 2018, https://arxiv.org/abs/1806.06923)."""

    head, PAPER = "implicit_quantile", published.IQN


@dataclass
class FQF(q_learning.Config, proposed.Fractions):
    """FQF: Q-learning with proposed fractions (Yang et al. 2019, https://arxiv.org/abs/1911.02140)."""

    head, PAPER = "proposed", published.FQF


@dataclass
class QLearning(q_learning.Config, *heads.CONFIGS):  # type: ignore[misc]
    """Q-learning from a replay with a target network, with any head."""

    head: str = field(  # type: ignore[misc]
        "implicit_quantile", "learn the mean of the return or its distribution", choices=HEADS
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
    """Return the algorithm of this name, or raise `ConfigError` with a suggestion."""
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm '{name}'{did_you_mean(name, ALGORITHMS, 'algorithms')}")
    return ALGORITHMS[name]


def register(algorithm: Algorithm) -> Algorithm:
    """Add an algorithm of your own, so that configs and the command line find it by its name.

    Raises:
        ConfigError: if the name is taken.
    """
    if algorithm.name in ALGORITHMS:
        raise ConfigError(f"algorithm '{algorithm.name}' is registered already; choose another name")
    ALGORITHMS[algorithm.name] = algorithm
    return algorithm
