"""The equations against numbers derived by hand, loops as the papers print them, and rlax as an independent oracle."""

import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logsumexp, rel_entr

from quantilax import losses
from quantilax.algorithms import DQN, QRDQN, q_learning
from quantilax.heads.base import Prediction
from quantilax.types import NStep

with warnings.catch_warnings():  # its dependencies warn on import; that is why it is an oracle only
    warnings.simplefilter("ignore")
    import rlax

THETA = np.array([-0.5, 0.25, 2.0], np.float32)
TAU = np.array([0.1, 0.5, 0.9], np.float32)
TARGETS = np.array([-1.0, 0.25, 1.5, 3.0], np.float32)


@pytest.mark.parametrize(("kappa", "expected"), [(1.0, [0, 0.5, 1.5, 2.5]), (2.0, [0, 0.5, 2.0, 4.0])])
def test_huber_is_a_parabola_up_to_kappa_and_a_line_after(kappa, expected):
    assert_allclose(losses.huber(jnp.array([0.0, 1.0, -2.0, 3.0]), kappa), expected)


@pytest.mark.parametrize(("kappa", "expected"), [(1.0, 0.82578125), (0.5, 1.0375), (2.0, 0.5484375)])
def test_quantile_regression_gives_the_numbers_derived_by_hand(kappa, expected):
    assert_allclose(losses.quantile_regression(THETA, TAU, TARGETS, kappa), expected, rtol=1e-6)


@pytest.mark.parametrize(("tau", "undivided"), [([0.2, 0.7], 2.5), ([0.0, 0.4], 8.5 / 3)])
def test_quantile_regression_divides_by_kappa(tau, undivided):
    z, targets = jnp.array([-1.0, 3.0]), jnp.array([-3.0, 4.0, 2.0])
    assert_allclose(losses.quantile_regression(z, jnp.array(tau), targets, 2.0), undivided / 2, rtol=1e-6)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 5.0])
def test_quantile_regression_is_the_double_sum_of_the_paper(kappa):
    rng = np.random.default_rng(0)
    z, tau, targets = rng.normal(size=7) * 3, rng.uniform(size=7), rng.normal(size=5) * 3
    total = 0.0
    for i in range(7):  # 1/N' sum_i sum_j |tau_i - 1{delta < 0}| L_kappa(delta) / kappa
        for j in range(5):
            delta = targets[j] - z[i]
            huber = 0.5 * delta**2 if abs(delta) <= kappa else kappa * (abs(delta) - 0.5 * kappa)
            total += abs(tau[i] - (delta < 0)) * huber / kappa / 5
    arrays = (jnp.asarray(x, jnp.float32) for x in (z, tau, targets))
    assert_allclose(losses.quantile_regression(*arrays, kappa), total, rtol=1e-5)


def test_weighted_targets_count_as_if_they_were_repeated():
    repeated = jnp.array([-1.0, 0.25, 0.25, 0.25])
    weighted = losses.quantile_regression(THETA, TAU, repeated[:2], 0.7, jnp.array([0.25, 0.75]))
    assert_allclose(weighted, losses.quantile_regression(THETA, TAU, repeated, 0.7), rtol=1e-6)


def test_quantile_regression_agrees_with_rlax():
    rng = np.random.default_rng(1)
    for kappa in (0.5, 1.0, 2.0):
        z, tau, targets = (
            jnp.asarray(x, jnp.float32) for x in (rng.normal(size=6), rng.uniform(size=6), rng.normal(size=9))
        )
        # One state, one action; rlax leaves the division by kappa out, and takes the mean over taus too: times N.
        oracle = rlax.quantile_q_learning(
            z[:, None], tau, jnp.array(0), jnp.array(0.0), jnp.array(1.0), targets[:, None], targets[:, None], kappa
        )
        ours = losses.quantile_regression(z, tau, targets, kappa)
        assert_allclose(ours * kappa, oracle, rtol=1e-5)


def test_the_gradient_vanishes_at_the_true_quantiles():
    # With kappa -> 0 the minimiser over z of the loss at tau is the tau-quantile of the targets.
    targets = jnp.linspace(-2.0, 5.0, 1001)
    tau = jnp.array([0.1, 0.5, 0.8])
    gradient = jax.grad(lambda z: losses.quantile_regression(z, tau, targets, 1e-3))(jnp.quantile(targets, tau))
    assert_allclose(gradient, 0, atol=2e-3)


# tau = 0, 1/4, 1/2, 1; Z(1/4) = 1, Z(1/2) = 3; Z at the centres 1/8, 3/8, 3/4: 0.5, 2, 5.
FRACTIONS, AT_FRACTIONS, AT_CENTRES = [0.0, 0.25, 0.5, 1.0], [1.0, 3.0], [0.5, 2.0, 5.0]


def test_the_loss_of_fractions_is_0_with_the_gradient_derived_by_hand_and_none_in_the_quantiles():
    args = tuple(jnp.array(x) for x in (FRACTIONS, AT_FRACTIONS, AT_CENTRES))
    value, gradients = jax.value_and_grad(losses.fraction_proposal, argnums=(0, 1, 2))(*args)
    assert float(value) == 0
    # 2 * 1 - 2 - 0.5 = -0.5 and 2 * 3 - 5 - 2 = -1; the ends 0 and 1 stay.
    assert gradients[0].tolist() == [0, -0.5, -1, 0]
    assert all((np.asarray(g) == 0).all() for g in gradients[1:])


QUANTILE_FUNCTIONS = {
    "exponential": lambda w: -np.log1p(-w),
    "cubic": lambda w: 20 * (w - 0.4) ** 3 + w,
    "steep": lambda w: np.exp(4 * w),
}


def wasserstein_to_steps(F, tau):
    """int |F - steps|, the steps F at the centres between fractions: by the midpoint rule, in double precision."""
    n = 20_000
    total = 0.0
    for low, high in pairwise(tau):
        w = low + (np.arange(n) + 0.5) / n * (high - low)
        total += np.abs(F(w) - F((low + high) / 2)).mean() * (high - low)
    return total


@pytest.mark.parametrize("name", QUANTILE_FUNCTIONS)
def test_the_gradient_of_fractions_is_that_of_the_wasserstein_distance(name):
    F, h = QUANTILE_FUNCTIONS[name], 1e-4
    tau = np.array([0, 0.1, 0.35, 0.5, 0.8, 1.0])
    args = (jnp.asarray(x, jnp.float32) for x in (tau, F(tau[1:-1]), F((tau[1:] + tau[:-1]) / 2)))
    gradient = jax.grad(losses.fraction_proposal)(*args)[1:-1]
    differences = []
    for i in range(1, 5):
        step = h * np.eye(6)[i]
        differences.append((wasserstein_to_steps(F, tau + step) - wasserstein_to_steps(F, tau - step)) / (2 * h))
    assert np.abs(differences).max() > 0.05
    assert_allclose(gradient, differences, rtol=1e-3, atol=1e-4)


def test_descending_the_loss_of_fractions_finds_the_best_ones():
    # Z(w) = w^2 in two steps: 2 t^2 = (t / 2)^2 + ((1 + t) / 2)^2, that is 6 t^2 - 2 t - 1 = 0, t = (1 + sqrt(7)) / 6.
    t = 0.2
    for _ in range(200):
        tau = jnp.array([0.0, t, 1.0])
        t -= 0.2 * float(jax.grad(losses.fraction_proposal)(tau, tau[1:-1] ** 2, ((tau[1:] + tau[:-1]) / 2) ** 2)[1])
    assert_allclose(t, (1 + 7**0.5) / 6, rtol=1e-4)


def test_the_entropy_is_that_of_the_shares():
    assert_allclose(losses.entropy(jnp.log(jnp.full(5, 0.2))), np.log(5), rtol=1e-6)
    # 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2
    assert_allclose(losses.entropy(jnp.log(jnp.array([0.5, 0.25, 0.25]))), 1.5 * np.log(2), rtol=1e-6)


def test_the_scaled_log_softmax_is_scipys_and_keeps_its_precision_for_small_temperatures():
    q = jnp.array([3.0, 1.0, 2.5])
    assert_allclose(losses.scaled_log_softmax(q, 0.7), 0.7 * log_softmax(np.array([3.0, 1.0, 2.5]) / 0.7), rtol=1e-6)
    # softmax(q / 1e-6) is 1 for the first, so t ln pi = q - max q
    assert_allclose(losses.scaled_log_softmax(q, 1e-6), [0.0, -2.0, -0.5], atol=1e-6)


REWARD = jnp.array([1.0, 0.0, -1.0, 0.0, 1.0])
DISCOUNT = jnp.array([0.5, 0.9, 1.0, 0.5, 0.8])
VALUE = jnp.array([3.0, 1.0, 5.0, -5.0, 3.0])


def test_lambda_returns_give_the_numbers_derived_by_hand():
    returns = losses.lambda_returns(REWARD, DISCOUNT, VALUE, jnp.full(5, 0.75))
    assert_allclose(returns, [1.6460547, 0.72281253, 0.7375, 0.65, 3.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("atoms", "probabilities", "support", "expected"),
    [
        ([0, 1, 2, 3, 4], [0.1, 0.2, 0.1, 0.3, 0.3], [3, 4, 5, 6, 7], [0.7, 0.3, 0, 0, 0]),
        ([8, 9, 10, 12, 14], [0.1, 0.2, 0.4, 0.1, 0.2], [0, 4, 8, 12, 16], [0, 0, 0.45, 0.45, 0.1]),
    ],
)
def test_a_projected_distribution_is_that_of_the_fixtures(atoms, probabilities, support, expected):
    arrays = (jnp.array(x, jnp.float32) for x in (atoms, probabilities, support))
    assert_allclose(losses.categorical_projection(*arrays), expected, atol=1e-6)


def test_a_projection_keeps_the_mass_and_within_the_support_the_mean_and_agrees_with_rlax():
    rng = np.random.default_rng(3)
    support = jnp.linspace(-3.0, 5.0, 11)
    for width in (2.5, 20.0):
        atoms = jnp.sort(jnp.asarray(1 + width * rng.uniform(-1, 1, size=9), jnp.float32))
        p = jnp.asarray(rng.dirichlet(np.ones(9)), jnp.float32)
        projected = losses.categorical_projection(atoms, p, support)
        assert_allclose(projected.sum(), 1, rtol=1e-5)
        assert_allclose(projected, rlax.categorical_l2_project(atoms, p, support), atol=1e-5)
        if width < 4:
            assert_allclose(projected @ support, atoms @ p, rtol=1e-4)


def in_double_precision(atoms, probabilities, support):
    """The projection by a loop, on the points of the support as they are."""
    atoms, probabilities, support = (np.asarray(x, np.float64) for x in (atoms, probabilities, support))
    projected = np.zeros(len(support))
    for atom, mass in zip(np.clip(atoms, support[0], support[-1]), probabilities, strict=True):
        upper = min(max(np.searchsorted(support, atom), 1), len(support) - 1)
        share = (atom - support[upper - 1]) / (support[upper] - support[upper - 1])
        projected[upper - 1] += (1 - share) * mass
        projected[upper] += share * mass
    return projected


SUPPORTS = [(-10.0, 10.0), (1e4, 1e4 + 10), (-1e4 - 10, -1e4), (1e6, 1e6 + 100), (-1e-6, 1e-6), (-1e30, 1e30)]


@pytest.mark.parametrize("ends", SUPPORTS)
def test_a_projection_keeps_the_mass_wherever_the_support_lies(ends):
    support = losses.support(*map(jnp.float32, ends), 51)
    rng, width = np.random.default_rng(0), ends[1] - ends[0]
    p = jnp.asarray(rng.dirichlet(np.ones(51)), jnp.float32)
    assert_allclose(losses.categorical_projection(support, p, support), p, rtol=1e-6)
    for atoms in (ends[0] + width * rng.uniform(-0.2, 1.2, size=51), np.full(51, -np.inf), np.full(51, np.inf)):
        atoms = jnp.asarray(atoms, jnp.float32)
        projected = losses.categorical_projection(atoms, p, support)
        assert_allclose(projected.sum(), 1, rtol=1e-6)
        # What is left is the rounding of the support: its gaps are not quite alike.
        uneven = 1e-6 + 2 * np.spacing(np.float32(max(map(abs, ends)))) / (width / 50)
        assert_allclose(projected, in_double_precision(atoms, p, support), atol=uneven * p.max())


def test_categorical_lambda_returns_keep_the_mass_over_many_steps_far_from_0():
    support = losses.support(jnp.float32(1e4), jnp.float32(1e4 + 10), 51)
    p = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(51), size=64), jnp.float32)
    still = losses.categorical_lambda_returns(jnp.zeros(64), jnp.ones(64), p, jnp.ones(64), support)
    assert_allclose(still, np.broadcast_to(p[-1], (64, 51)), rtol=1e-5)  # nothing happens: the last step's goes back
    moving = losses.categorical_lambda_returns(jnp.full(64, 100.3), jnp.full(64, 0.99), p, jnp.full(64, 0.9), support)
    assert_allclose(moving.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-4, 1e-2, 1.0, 30.0])
def test_the_divergence_is_that_of_double_precision_however_near_the_two_are(apart):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 51)) * 3
    p = jax.nn.softmax(jnp.asarray(logits, jnp.float32)).at[:, 0].set(0)
    log_q = jax.nn.log_softmax(jnp.asarray(logits + apart * rng.normal(size=(200, 51)), jnp.float32))
    p = p / p.sum(axis=1, keepdims=True) if apart >= 1 else p.at[:, 0].set(jnp.exp(log_q[:, 0]))
    kl = np.asarray(jax.vmap(losses.kl_divergence)(p, log_q))
    exact_p, exact_q = np.asarray(p, np.float64), np.exp(np.asarray(log_q, np.float64))
    exact = (rel_entr(exact_p, exact_q) - exact_p + exact_q).sum(axis=1)
    assert (kl >= 0).all()
    # Not 1e-7 of the logarithms, but of how far the two are apart, of which KL is the square.
    assert (np.abs(kl - exact) < 1e-6 * exact + 5e-7 * np.sqrt(exact) + 1e-13).all()


def test_the_divergence_of_a_distribution_from_itself_is_0():
    log_p = jnp.log(jnp.array([0.5, 0.1, 0.3, 0.1]))
    assert float(losses.kl_divergence(jnp.exp(log_p), log_p)) == 0
    assert_allclose(losses.kl_divergence(jnp.array([0.0, 1.0]), jnp.array([0.0, -200.0])), 200)  # q is 0 in 32 bits


def test_lambda_returns_agree_with_rlax():
    rng = np.random.default_rng(2)
    arguments = [jnp.asarray(x, jnp.float32) for x in (rng.normal(size=20), rng.uniform(size=20), rng.normal(size=20))]
    trace = jnp.asarray(rng.uniform(size=20), jnp.float32)
    oracle = rlax.lambda_returns(*arguments, lambda_=trace)
    assert_allclose(losses.lambda_returns(*arguments, trace), oracle, rtol=1e-5, atol=1e-6)


def step(action=0, reward=0.0, terminated=False, steps=1):
    """A transition without its observations."""
    ends = jnp.array(terminated), jnp.array(False)
    return NStep(None, jnp.array(action), jnp.float32(reward), None, *ends, jnp.array(steps, jnp.int32))


def test_hard_targets_are_those_of_the_action_of_largest_value():
    # 2 + 0.5^3 Z(., 1); at an end 2.
    Z = Prediction(jnp.array([[8.0, 16.0], [0.0, -8.0]]), jnp.array([0.25, 0.75]))
    config = QRDQN(gamma=0.5, num_quantiles=2)
    for terminated, expected in ((False, [4.0, 1.0]), (True, [2.0, 2.0])):
        y = q_learning.target_of(config, Z, jnp.array([-1.0, 1.0]), None, step(0, 2.0, terminated, steps=3))
        assert y.tolist() == expected


def test_the_soft_policy_gives_no_chance_to_values_of_minus_infinity():
    for t in (1e-6, 0.03, 2.0):
        q = jnp.array([-jnp.inf, 1.0, -jnp.inf, 1.5])
        t_log_pi, pi = jax.jit(losses.soft_policy)(q, t)
        assert np.isfinite(t_log_pi).all()
        assert np.asarray(t_log_pi)[[0, 2]].tolist() == np.asarray(pi)[[0, 2]].tolist() == [0, 0]
        alone = losses.soft_policy(jnp.array([1.0, 1.5]), t)
        for found, expected in zip((t_log_pi, pi), alone, strict=True):
            assert_allclose(np.asarray(found)[[1, 3]], expected, rtol=1e-6)
        assert_allclose(pi.sum(), 1, rtol=1e-6)
        only = losses.soft_policy(jnp.array([-jnp.inf, -3.0]), t)
        assert [x.tolist() for x in only] == [[0, 0], [0, 1]]


def test_soft_targets_and_soft_lambda_returns_of_actions_that_cannot_be_taken_are_those_without_them():
    q_next, q_before = jax.random.normal(jax.random.key(0), (2, 5, 2))

    def with_a_third(q):
        return jnp.concatenate([q, jnp.full((5, 1), -jnp.inf)], axis=1)

    action, trace, numbers = jnp.array([0, 1, 1, 1, 0]), jnp.full(5, 0.75), (0.3, 0.9, -1.0)
    two, three = (
        losses.munchausen_lambda_returns(REWARD, DISCOUNT, *values, action, trace, *numbers)
        for values in ((q_next, q_before), (with_a_third(q_next), with_a_third(q_before)))
    )
    assert_allclose(three, two, rtol=1e-6)

    config = QRDQN(munchausen=True, munchausen_temperature=0.3, num_quantiles=4)
    Z = jax.random.normal(jax.random.key(1), (4, 3))
    two, three = (
        q_learning.target_of(config, Prediction(Z[:, : len(q)]), q, before, step()._replace(next_legal=jnp.isfinite(q)))
        for q, before in ((q_next[0], q_before[0]), (with_a_third(q_next)[0], with_a_third(q_before)[0]))
    )
    assert_allclose(three, two, rtol=1e-6)


def test_soft_lambda_returns_are_munchausen_targets_without_lambda_and_plain_ones_without_temperature_and_bonus():
    q_next, q_before = jax.random.normal(jax.random.key(0), (2, 5, 3))
    action = jnp.array([0, 2, 1, 1, 0])
    soft = losses.munchausen_lambda_returns(REWARD, DISCOUNT, q_next, q_before, action, jnp.zeros(5), 0.3, 0.9, -1.0)
    numbers = dict(munchausen_temperature=0.3, munchausen_alpha=0.9, munchausen_clip=-1.0)
    for t in range(5):
        config = DQN(gamma=float(DISCOUNT[t]), munchausen=True, **numbers)
        oracle = q_learning.target_of(
            config, Prediction(q_next[t][None]), q_next[t], q_before[t], step(action[t], REWARD[t])
        )
        assert_allclose(soft[t], oracle, rtol=1e-5, atol=1e-6)

    greedy, trace = q_before.argmax(axis=-1), jnp.full(5, 0.75)
    hard = losses.munchausen_lambda_returns(REWARD, DISCOUNT, q_next, q_before, greedy, trace, 1e-6, 0.0, -1.0)
    assert_allclose(hard, losses.lambda_returns(REWARD, DISCOUNT, q_next.max(axis=-1), trace), rtol=1e-4)


@pytest.mark.parametrize("trace", [0.0, 0.5, 1.0])
def test_soft_lambda_returns_of_the_true_values_are_these_whatever_was_done_and_hard_ones_are_lower(trace):
    # Q - t ln pi is the soft value of a state for every action, so actions at random on the way do not bias the return.
    rng, gamma, t = np.random.default_rng(0), 0.9, 0.3
    successor, reward = rng.integers(4, size=(4, 3)), rng.normal(size=(4, 3))
    soft = hard = np.zeros((4, 3))
    for _ in range(500):
        soft = reward + gamma * (t * logsumexp(soft / t, axis=-1))[successor]
        hard = reward + gamma * hard.max(axis=-1)[successor]
    x, a = [0], rng.integers(3, size=30)
    for action in a:
        x.append(successor[x[-1], action])
    x, following = np.array(x[:-1]), np.array(x[1:])
    steps = jnp.asarray(reward[x, a]), jnp.full(30, gamma)
    returns = losses.munchausen_lambda_returns(
        *steps, jnp.asarray(soft[following]), jnp.asarray(soft[x]), jnp.asarray(a), jnp.full(30, trace), t, 0.0, -1.0
    )
    assert_allclose(returns, soft[x, a], rtol=1e-4, atol=1e-5)
    of_max = losses.lambda_returns(*steps, jnp.asarray(hard[following].max(axis=-1)), jnp.full(30, trace))
    assert_allclose((of_max - hard[x, a]).max(), 0, atol=1e-4)
    assert (np.asarray(of_max - hard[x, a]).mean() < -0.1) == (trace > 0)


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo():
    one_step = losses.lambda_returns(REWARD, DISCOUNT, VALUE, jnp.zeros(5))
    assert_allclose(one_step, REWARD + DISCOUNT * VALUE)
    g = float(VALUE[-1])
    for t in reversed(range(5)):
        g = float(REWARD[t] + DISCOUNT[t] * g)
    assert_allclose(losses.lambda_returns(REWARD, DISCOUNT, VALUE, jnp.ones(5))[0], g, rtol=1e-6)


def test_a_zero_trace_cuts_the_return_from_the_next_episode():
    trace = jnp.array([0.9, 0.9, 0.0, 0.9, 0.9])  # step 2 is the last of its episode
    other = losses.lambda_returns(REWARD.at[3:].set(100.0), DISCOUNT, VALUE.at[3:].set(-100.0), trace)
    assert_allclose(other[:3], losses.lambda_returns(REWARD, DISCOUNT, VALUE, trace)[:3])


LAMBDA = dict(reward=[1.0, 0.0, -1.0, 0.0], trace=[0.75, 0.75, 0.0, 0.75])


def mixture(n_step_returns):
    """Weights of the 1, 2, ..-step returns from the first step of `LAMBDA`: an episode ends with its third."""
    return dict(zip([0.25, 0.75 * 0.25, 0.75**2], n_step_returns, strict=True))


def test_draws_of_a_lambda_return_come_from_the_mixture_of_the_n_step_returns():
    # Undiscounted, every successor worth 10, 20, 30 for sure: the returns are 1 + 10, 1 + 0 + 20 and 1 + 0 - 1 + 30.
    values, chains = jnp.array([10.0, 20.0, 30.0, 40.0]), 40_000
    draws = jnp.broadcast_to(values[:, None], (4, chains))
    u = jax.random.uniform(jax.random.key(0), draws.shape)
    reward, trace = (jnp.array(LAMBDA[name]) for name in ("reward", "trace"))
    G = np.asarray(losses.lambda_return_draws(reward, jnp.ones(4), draws, trace, u))
    for weight, value in mixture([11, 21, 30]).items():
        assert_allclose((G[0] == value).mean(), weight, atol=0.01)  # four standard errors of the largest: 0.0099
    assert set(np.unique(G[0])) == {11, 21, 30}
    expected = losses.lambda_returns(reward, jnp.ones(4), values, trace)
    assert_allclose(G.mean(axis=1), expected, atol=0.2)
    assert (G[3] == 40).all()


def test_categorical_lambda_returns_are_the_mixture_where_atoms_fall_on_atoms():
    support = jnp.arange(0.0, 41.0)
    p = jax.nn.one_hot(jnp.array([10, 20, 30, 40]), 41)
    reward, trace = (jnp.array(LAMBDA[name]) for name in ("reward", "trace"))
    G = np.asarray(losses.categorical_lambda_returns(reward, jnp.ones(4), p, trace, support))
    expected = np.zeros(41)
    for weight, value in mixture([11, 21, 30]).items():
        expected[value] = weight
    assert_allclose(G[0], expected, atol=1e-6)
    assert_allclose(G.sum(axis=1), 1, rtol=1e-6)


def test_the_mean_of_categorical_lambda_returns_is_the_lambda_return_of_the_means():
    support = jnp.linspace(-20, 20, 51)  # wide enough that nothing is cut off
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (5, 51)) - jnp.abs(support) / 2)
    reward, discount = jnp.array([1.0, 0, -1, 0, 1]), jnp.array([0.5, 0.9, 1, 0.5, 0.8])
    trace = jnp.array([0.75, 0.75, 0, 0.75, 0.75])
    G = losses.categorical_lambda_returns(reward, discount, p, trace, support)
    assert_allclose(G @ support, losses.lambda_returns(reward, discount, p @ support, trace), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "m"), [(5, 1), (5, 4), (50, 4), (6, 3)])
def test_without_the_largest_the_others_remain_in_their_order(n, m):
    rng = np.random.default_rng(n + m)
    for z in (rng.normal(size=n), np.zeros(n), np.arange(n)[::-1]):
        z = np.asarray(z, np.float32)
        kept = np.asarray(losses.without_largest(jnp.asarray(z), m))
        assert_array_equal(np.sort(kept), np.sort(z)[: n - m])
        if len(set(z)) == n:
            assert_array_equal(kept, z[np.isin(z, kept)])
