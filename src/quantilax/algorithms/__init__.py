"""The registry of algorithms: one file and one line each."""

from quantilax.algorithms import c51, dqn, fqf, iqn, pqn, qrdqn
from quantilax.pytree import ConfigError, did_you_mean
from quantilax.types import Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    module.ALGORITHM.name: module.ALGORITHM for module in (dqn, c51, qrdqn, iqn, fqf, pqn)
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
