"""The registry of algorithms. An algorithm is a name, a training loop and a head.

`iqn`, for example, is Q-learning with implicit quantiles. `q_learning` and `pqn` take any head
through the hyperparameter `head`. Each class here holds the hyperparameters of one algorithm, and
its `PAPER` what the publication used.
"""

from quantilax import heads
from quantilax.algorithms import actor_critic, ppo, pqn, published, q_learning, sac, td3
from quantilax.errors import ConfigError, did_you_mean
from quantilax.heads import HEADS, categorical, implicit_quantile, proposed, quantile
from quantilax.hyperparameters import Huber, Replay, RiskObjective, default
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
class QRDQN(q_learning.Config, RiskObjective, quantile.Quantiles):
    """QR-DQN: Q-learning with quantiles (Dabney, Rowland, Bellemare & Munos 2018, https://arxiv.org/abs/1710.10044)."""

    head, PAPER = "quantile", published.QRDQN


@dataclass
class IQN(q_learning.Config, RiskObjective, implicit_quantile.ImplicitQuantiles):
    """IQN: Q-learning with implicit quantiles (Dabney, Ostrovski, Silver & Munos 2018, https://arxiv.org/abs/1806.06923)."""

    head, PAPER = "implicit_quantile", published.IQN


@dataclass
class FQF(q_learning.Config, proposed.Fractions):
    """FQF: Q-learning with proposed fractions (Yang et al. 2019, https://arxiv.org/abs/1911.02140)."""

    head, PAPER = "proposed", published.FQF


@dataclass
class QLearning(q_learning.Config, RiskObjective, *heads.CONFIGS):  # type: ignore[misc]
    """Q-learning from a replay with a target network, with any head."""

    head: str = field(  # type: ignore[misc]
        "implicit_quantile", "learn the mean of the return or its distribution", choices=HEADS
    )


@dataclass
class SAC(sac.Config, *heads.CONFIGS):  # type: ignore[misc]
    """SAC: soft actor-critic, with any head (Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905)."""

    PAPER = published.SAC
    head: str = field("scalar", "learn the mean of the return or its distribution", choices=HEADS)  # type: ignore[misc]


@dataclass
class TQC(sac.Config, quantile.Quantiles):
    """TQC: SAC with truncated quantiles (Kuznetsov et al. 2020, https://arxiv.org/abs/2005.04269)."""

    head, PAPER = "quantile", published.TQC
    num_critics: int = default(actor_critic.Config, "num_critics", 5)
    num_quantiles: int = default(quantile.Quantiles, "num_quantiles", 25)
    top_quantiles_to_drop: int = default(actor_critic.Config, "top_quantiles_to_drop", 2)


@dataclass
class DSAC(sac.Config, implicit_quantile.ImplicitQuantiles):
    """DSAC: SAC with implicit quantiles, `risk` included (Ma et al. 2020, https://arxiv.org/abs/2004.14547)."""

    head, PAPER = "implicit_quantile", published.DSAC


@dataclass
class TD3(td3.Config, *heads.CONFIGS):  # type: ignore[misc]
    """TD3: a deterministic actor, with any head (Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477)."""

    PAPER = published.TD3
    head: str = field("scalar", "learn the mean of the return or its distribution", choices=HEADS)  # type: ignore[misc]


@dataclass
class TD3C51(td3.Config, categorical.Categorical):
    """TD3 with two critics of atoms, as in FastTD3 (Seo et al. 2025, https://arxiv.org/abs/2505.22642)."""

    head, PAPER = "categorical", published.TD3C51


@dataclass
class D4PG(td3.Config, categorical.Categorical):
    """D4PG: one critic of atoms, returns over several steps (Barth-Maron et al. 2018, https://arxiv.org/abs/1804.08617)."""

    head, PAPER = "categorical", published.D4PG
    n_step: int = default(Replay, "n_step", 5)
    num_critics: int = default(actor_critic.Config, "num_critics", 1)
    policy_delay: int = default(td3.Config, "policy_delay", 1)
    target_noise: float = default(td3.Config, "target_noise", 0.0)
    exploration_noise: float = default(td3.Config, "exploration_noise", 0.3)


ALGORITHMS: dict[str, Algorithm] = {
    "dqn": q_learning.algorithm("dqn", DQN),
    "c51": q_learning.algorithm("c51", C51),
    "qrdqn": q_learning.algorithm("qrdqn", QRDQN),
    "iqn": q_learning.algorithm("iqn", IQN),
    "fqf": q_learning.algorithm("fqf", FQF),
    "q_learning": q_learning.algorithm("q_learning", QLearning),
    "pqn": pqn.ALGORITHM,
    "ppo": ppo.ALGORITHM,
    "sac": sac.algorithm("sac", SAC),
    "tqc": sac.algorithm("tqc", TQC),
    "dsac": sac.algorithm("dsac", DSAC),
    "td3": td3.algorithm("td3", TD3),
    "td3_c51": td3.algorithm("td3_c51", TD3C51),
    "d4pg": td3.algorithm("d4pg", D4PG),
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
