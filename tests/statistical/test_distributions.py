"""Learned distributions and values against the known ones of the probes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from quantilax import C51, DQN, FQF, IQN, PQN, QRDQN, envs
from quantilax.algorithms import values
from tests.conftest import each

pytestmark = pytest.mark.optimized

TAUS = (jnp.arange(100) + 0.5) / 100

LEARNER = dict(
    total_timesteps=24_000,
    eval_freq=24_000,
    eval_episodes=1,
    num_envs=8,
    num_epochs=1,
    fill_buffer=800,
    batch_size=64,
    learning_rate=3e-3,
    learning_rate_end=0.05,
    polyak=0.95,
    target_update_freq=1,
    kappa=0.05,  # nearly the plain quantile loss: a Huber parabola of width 1 would move the quantiles
    num_tau_samples=16,
    num_tau_prime_samples=16,
    torso_sizes=(32,),
    head_sizes=(32,),
    num_cosines=32,
)


IMPLICIT = ("num_tau_samples", "num_tau_prime_samples", "num_cosines")
NEIGHBOUR = {name: value for name, value in LEARNER.items() if name not in IMPLICIT}
WITHOUT_KAPPA = {name: value for name, value in NEIGHBOUR.items() if name != "kappa"}
ON_POLICY = dict(
    total_timesteps=65_536,
    eval_freq=65_536,
    eval_episodes=1,
    num_envs=8,
    num_steps=32,
    num_minibatches=8,
    torso_sizes=(32,),
    learning_rate=3e-3,
    eps_start=0.2,
    eps_end=0.2,  # both actions are tried to the end
)
LEARNERS = {
    "iqn": (IQN, LEARNER),
    "qrdqn": (QRDQN, {**NEIGHBOUR, "num_quantiles": 50}),
    "qrdqn that cannot cross": (QRDQN, {**NEIGHBOUR, "num_quantiles": 50, "non_crossing": True}),
    "fqf": (FQF, {**NEIGHBOUR, "num_cosines": 32, "num_fractions": 16, "fraction_learning_rate": 1e-4}),
    "c51": (C51, {**WITHOUT_KAPPA, "num_atoms": 61, "v_min": -1.5, "v_max": 6.0}),
    # Drawn by priority, transitions are not as frequent as they happen; weights with beta = 1 from the start make up for it.
    "iqn by priority": (IQN, {**LEARNER, "prioritized": True, "importance_exponent": 1.0}),
    "rainbow": (
        C51,
        {**WITHOUT_KAPPA, "num_atoms": 61, "v_min": -1.5, "v_max": 6.0, "double": True, "dueling": True, "noisy": True}
        | {"prioritized": True, "importance_exponent": 1.0, "n_step": 3},
    ),
    "pqn of quantiles": (PQN, {**ON_POLICY, "head": "quantile", "num_quantiles": 50, "kappa": 0.05}),
    "pqn of implicit quantiles": (
        PQN,
        {**ON_POLICY, "head": "implicit_quantile", "kappa": 0.05, "num_cosines": 32}
        | {"num_tau_samples": 16, "num_tau_prime_samples": 16, "head_sizes": (32,)},
    ),
    "pqn of atoms": (PQN, {**ON_POLICY, "head": "categorical", "num_atoms": 61, "v_min": -1.5, "v_max": 6.0}),
}


@cache
def learned(name, gamma, learner="iqn", **changes):
    """(estimated, true) quantiles at TAUS, each (100, actions)."""
    env = envs.make(name)
    creator, settings = LEARNERS[learner]
    algo = creator.create(env=env, gamma=gamma, **{**settings, **changes})
    state, _ = algo.train(jax.random.key(0))
    _, obs = env.reset(jax.random.key(1))
    return np.asarray(algo.quantiles(state, obs, TAUS)), np.asarray(env.quantile_function(TAUS, gamma))


def wasserstein(a, b):
    return np.abs(a - b).mean(axis=0)


@pytest.mark.parametrize("learner", each(LEARNERS, ["iqn"]))
def test_both_modes_of_a_bimodal_return_are_recovered_not_only_its_mean(learner):
    Z, true = learned("probe/bimodal", 0.9, learner)
    distance = wasserstein(Z, true)
    # The distribution that has the right mean and nothing else lies 1.5 away from -1 or 2 with equal chances.
    assert_allclose(wasserstein(np.full_like(true, true.mean(axis=0)), true), [1.5, 0], atol=1e-6)
    assert distance[0] < 0.2
    assert distance[1] < 0.05
    assert_allclose(Z[[5, 25, 40], 0], -1, atol=0.25)
    assert_allclose(Z[[60, 75, 94], 0], 2, atol=0.25)
    assert_allclose(Z.mean(axis=0), true.mean(axis=0), atol=0.15)


@pytest.mark.validation
def test_quantiles_that_cannot_cross_find_both_modes_with_every_one_of_twelve_seeds():
    # With the ReLU of the paper for the scale seven of the twelve collapse to one number, 1.5 away, and prefer the safe arm.
    env = envs.make("probe/bimodal")
    settings = {**LEARNERS["qrdqn that cannot cross"][1], "total_timesteps": 8_000, "eval_freq": 8_000}
    algo = QRDQN.create(env=env, gamma=0.9, **settings)
    _, obs = env.reset(jax.random.key(1))

    def quantiles(seed):
        return algo.quantiles(algo.train(jax.random.key(seed))[0], obs, TAUS)

    Z = np.asarray(jax.jit(partial(jax.lax.map, quantiles))(jnp.arange(12)))  # (12, 100, 2)
    true = np.asarray(env.quantile_function(TAUS, 0.9))
    assert np.abs(Z - true).mean(axis=1).max() < 0.2
    assert (Z.mean(axis=1).argmax(axis=1) == 0).all()


BOOTSTRAPS = [
    ("iqn", {"n_step": 1}),
    *(
        pytest.param(*case, marks=pytest.mark.validation)
        for case in [
            ("pqn of quantiles", {"lambda_": 0.7}),
            ("iqn", {"n_step": 3}),
            ("qrdqn", {"n_step": 1}),
            ("fqf", {"n_step": 1}),
            ("c51", {"n_step": 1}),
            ("iqn by priority", {"n_step": 1}),
            ("rainbow", {"n_step": 3}),
            ("pqn of quantiles", {"lambda_": 0.0}),
            ("pqn of implicit quantiles", {"lambda_": 0.7}),
            ("pqn of atoms", {"lambda_": 0.7}),
        ]
    ),
]


@pytest.mark.parametrize(("learner", "changes"), BOOTSTRAPS)
@pytest.mark.validation
def test_a_return_that_only_bootstrapping_gives_is_recovered(learner, changes):
    gamma = 0.8
    Z, true = learned("probe/geometric", gamma, learner, **changes)
    spread = wasserstein(np.full_like(true, true.mean()), true)[0]
    assert spread > 0.9  # what knowing only the mean would give
    assert wasserstein(Z, true)[0] < 0.15
    assert_allclose(Z.mean(), 1 / (1 - gamma * 0.7), rtol=0.05)  # sum of (gamma (1 - p))^n


@pytest.mark.validation
def test_targets_of_uneven_fractions_count_by_their_widths():
    # Fractions that moved are uneven; with all targets alike the mean of a bootstrapped return is 5 % too large.
    gamma, true = 0.8, 1 / (1 - 0.8 * 0.7)
    means = {w: learned("probe/geometric", gamma, "fqf", weigh_targets=w)[0].mean() for w in (True, False)}
    assert_allclose(means[True], true, rtol=0.035)
    assert means[False] > 1.035 * true


@pytest.mark.parametrize("normalize_rewards", each([False, True], [False]))
def test_quantiles_are_in_the_environments_units(normalize_rewards):
    env = envs.probes.Bimodal(low=-100.0, high=200.0, safe=25.0)
    algo = IQN.create(
        env=env, **{**LEARNER, "kappa": 0.05 if normalize_rewards else 5.0, "normalize_rewards": normalize_rewards}
    )
    if not normalize_rewards:
        algo = algo.replace(learning_rate=3e-2)
    state, _ = algo.train(jax.random.key(0))
    Z = algo.quantiles(state, jnp.ones(1), jnp.array([0.2, 0.8]))
    assert_allclose(Z[:, 0], [-100, 200], rtol=0.15)


def value(create, name, gamma):
    """Mean predicted value of what the last segment learned from."""
    algo = create(name, gamma)
    _, record = algo.records(jax.random.key(0))
    return float(record.metrics.q[-1])


def iqn(name, gamma, n_step=1):
    return IQN.create(env=name, gamma=gamma, n_step=n_step, **{**LEARNER, "eval_freq": 4_000, "kappa": 1.0})


def iqn_over_3_steps(name, gamma):
    return iqn(name, gamma, n_step=3)


def dqn(name, gamma):
    return DQN.create(env=name, gamma=gamma, **{**NEIGHBOUR, "eval_freq": 4_000, "kappa": 1.0})


def c51(name, gamma):
    support = dict(num_atoms=61, v_min=-1.0, v_max=14.0)
    return C51.create(env=name, gamma=gamma, **{**WITHOUT_KAPPA, "eval_freq": 4_000, **support})


def qrdqn(name, gamma):
    return QRDQN.create(env=name, gamma=gamma, **{**NEIGHBOUR, "eval_freq": 4_000, "kappa": 1.0})


def fqf(name, gamma):
    return FQF.create(env=name, gamma=gamma, **{**LEARNERS["fqf"][1], "eval_freq": 4_000, "kappa": 1.0})


def pqn(name, gamma):
    return PQN.create(
        env=name, gamma=gamma, total_timesteps=40_960, eval_freq=10_240, eval_episodes=1, num_envs=8, num_steps=16,
        num_minibatches=4, num_epochs=4, torso_sizes=(32,), learning_rate=3e-3,
    )  # fmt: skip


CREATORS = each([dqn, c51, qrdqn, iqn, iqn_over_3_steps, fqf, pqn], [dqn])


@pytest.mark.parametrize("create", CREATORS)
def test_a_time_limit_is_no_death(create):
    # 1 / (1 - .9) = 10; stored as death, the values of the four steps would average 2.3.
    assert value(create, "probe/time_limit", 0.9) == pytest.approx(10, rel=0.04)


@pytest.mark.parametrize("create", CREATORS)
def test_nothing_is_bootstrapped_over_the_end_of_an_episode(create):
    # First step gamma, second 1: .75 on average; with the next episode's value leaking in it would be far above.
    assert value(create, "probe/terminal", 0.5) == pytest.approx(0.75, rel=0.04)


def munchausen_values(cells, gamma, alpha, t, clip):
    """(cells, 2) of the corridor, by iteration to the fixed point of Vieillard, Pietquin & Geist (2020), equation 2."""
    Q = np.zeros((cells + 1, 2))  # the last row is behind the right end
    for _ in range(2_000):
        logits = Q / t - (Q / t).max(axis=1, keepdims=True)
        log_pi = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        V = (np.exp(log_pi) * (Q - t * log_pi)).sum(axis=1)
        V[cells] = 0
        following = np.stack([np.maximum(np.arange(cells) - 1, 0), np.arange(cells) + 1], axis=1)
        reward = (following == cells).astype(float)
        Q[:cells] = reward + alpha * np.clip(t * log_pi[:cells], clip, 0) + gamma * V[following]
    return Q[:cells]


@pytest.mark.parametrize("creator", each([DQN, IQN], []))
def test_munchausen_values_are_the_fixed_point_of_its_equation(creator):
    cells, gamma, fixed = 3, 0.8, dict(munchausen_alpha=0.5, munchausen_temperature=0.3, munchausen_clip=-0.4)
    true = munchausen_values(cells, gamma, *fixed.values())
    plain = munchausen_values(cells, gamma, 0.0, 1e-3, 0.0)
    assert_allclose(plain[:, 1], [gamma**2, gamma, 1], atol=1e-3)  # its limit is the usual optimum
    without_bonus, unclipped = (
        munchausen_values(cells, gamma, *other) for other in ((0.0, 0.3, -0.4), (0.5, 0.3, -9.0))
    )
    assert min(np.abs(true - other).max() for other in (plain, without_bonus, unclipped)) > 0.1
    settings = {
        **(LEARNER if creator is IQN else NEIGHBOUR),
        "kappa": 1.0,
        "eps_end": 0.05,
        "exploration_fraction": 0.5,
    }
    algo = creator.create(env=envs.probes.Corridor(cells=cells), gamma=gamma, munchausen=True, **fixed, **settings)
    state, _ = algo.train(jax.random.key(0))
    network = nnx.merge(state.network, state.average_params)
    observations = jnp.eye(cells)
    if creator is IQN:
        Q = jnp.stack([algo.quantiles(state, obs, TAUS).mean(axis=0) for obs in observations])
    else:
        Q = values.means(values.predict(network, observations, None, algo.config), algo.config)
    assert_allclose(Q, true, atol=0.03)
