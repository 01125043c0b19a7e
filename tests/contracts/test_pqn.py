"""PQN against an independent evaluation of its equations, and its settings."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax

from quantilax import PQN, ConfigError, ConfigWarning, fractions, heads, train
from quantilax.algorithms import base, pqn, values
from quantilax.heads import HLGaussHead
from quantilax.learning import rollout
from tests.conftest import each, tiny

HEADS = {
    "scalar": {},
    "hl_gauss": dict(num_atoms=7, v_min=-2.0, v_max=3.0),
    "quantile": dict(num_quantiles=5, kappa=0.4),
    "implicit_quantile": dict(num_tau_samples=4, num_tau_prime_samples=3, num_quantile_samples=5, num_cosines=8),
    "categorical": dict(num_atoms=7, v_min=-2.0, v_max=3.0),
    "proposed": dict(num_fractions=4, num_cosines=8, fraction_learning_rate=1e-3, kappa=0.4),
}
DISTRIBUTIONS = list(HEADS)[2:]
lambda_targets = jax.jit(pqn.lambda_targets)


@jax.jit
def collect(env, config, state, key):
    """What an iteration collects with random actions."""
    return rollout.collect(env, config, lambda config, state: values.acting(config, state, 1.0), state, key)


def with_head(head, **changes):
    settings = dict(gamma=0.9, lambda_=0.7, num_steps=64, num_minibatches=4, eval_freq=256)
    return tiny("pqn", head=head, **{**settings, **HEADS[head], **changes})


@pytest.fixture
def algo():
    return with_head("scalar")


def y_values(state, obs, tau=None):
    """What the network gives for a batch, (B, n, A), with a head that proposes no fractions."""
    network = nnx.merge(state.network, state.params)
    one = (lambda x: network.head(network.psi(x))) if tau is None else (lambda x: network.head(network.psi(x), tau))
    return np.asarray(jax.vmap(one)(obs), np.float64)


def q_values(state, obs):
    return y_values(state, obs)[:, 0]


def collected(algo):
    """A state, and what it collects with random actions: some episodes end, some are cut."""
    state = algo.init(jax.random.key(0))
    state, t = collect(algo.env, algo.config, state, jax.random.key(1))
    assert t.terminated.any()
    assert t.truncated.any()
    return state, t


def test_targets_are_lambda_returns_of_the_true_successors_cut_at_the_end_of_episodes(algo):  # bug 9
    state, t = collected(algo)
    targets = lambda_targets(algo.config, state, t, jax.random.key(2))
    ended = np.asarray(t.terminated | t.truncated)
    for e in range(algo.config.num_envs):
        g, values = None, q_values(state, t.next_obs[:, e]).max(axis=-1)
        for i in reversed(range(algo.config.num_steps)):
            v = values[i]
            alive = 0.9 * (1 - float(t.terminated[i, e]))
            last = g is None or ended[i, e]
            g = float(t.reward[i, e]) + alive * (v if last else 0.3 * v + 0.7 * g)
            assert_allclose(targets[i, e], g, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "clip"), [(0.3, -1.0), (0.05, -0.1)])
def test_targets_with_munchausen_are_soft_lambda_returns_cut_at_the_end_of_episodes(temperature, clip):
    algo = with_head("scalar", munchausen=True, munchausen_temperature=temperature, munchausen_clip=clip)
    state, t = collected(algo)
    targets = lambda_targets(algo.config, state, t, jax.random.key(2))
    T, E = t.reward.shape
    gamma, lambda_, alpha = algo.config.gamma, algo.config.lambda_, algo.config.munchausen_alpha
    for e in range(E):
        q, q_next = q_values(state, t.obs[:, e]), q_values(state, t.next_obs[:, e])
        b = temperature * log_softmax(q / temperature, axis=-1)[np.arange(T), np.asarray(t.action[:, e])]
        pi = softmax(q_next / temperature, axis=-1)
        v = (pi * (q_next - temperature * log_softmax(q_next / temperature, axis=-1))).sum(axis=-1)
        for s in reversed(range(T)):
            reward = float(t.reward[s, e]) + alpha * max(b[s], clip)
            if t.terminated[s, e]:
                g = reward
            elif t.truncated[s, e] or s == T - 1:
                g = reward + gamma * v[s]
            else:
                g = reward + gamma * ((1 - lambda_) * v[s] + lambda_ * (g - b[s + 1]))
            assert_allclose(targets[s, e], g, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", DISTRIBUTIONS)
def test_munchausen_is_refused_with_a_head_for_distributions(head):
    with pytest.raises(
        ConfigError, match=f"munchausen: not defined here for the returns of head={head}; set head to scalar"
    ):
        with_head(head, munchausen=True)


def test_each_step_is_learned_from_once_per_epoch_in_an_order_of_its_own(algo, monkeypatch):
    config = algo.config
    n, size = config.steps_per_iteration, config.derived()["minibatch_size"]
    assert size * config.num_minibatches == n
    state, t = collected(algo)
    observed = jax.jit(pqn.observe)(config, state, t, jax.random.key(2))
    assert_array_equal(observed.rows.obs, np.reshape(t.obs, (n, -1)))
    assert_array_equal(observed.rows.action, np.ravel(t.action))

    def note(config, state, optimizer, loss, _, given, rows, key):
        seen = jax.lax.dynamic_update_slice(state.params, rows, (state.gradient_steps * size,))
        noted = replace(state, params=seen, gradient_steps=state.gradient_steps + 1)
        return noted, (jnp.zeros(()),) * 2, (jnp.zeros(size),) * 2

    monkeypatch.setattr(base, "gradient_step", note)
    begun = replace(observed, params=jnp.full(config.num_epochs * n, -1), rows=jnp.arange(n))
    state, _ = pqn.update(config, begun, jax.random.key(0))
    assert int(state.gradient_steps) == config.num_epochs * config.num_minibatches
    epochs = np.asarray(state.params).reshape(config.num_epochs, n)
    assert len(epochs) > 1
    assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(n), epochs.shape))
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(n))}) == len(epochs) + 1


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_categorical_targets_are_mixtures_cut_at_the_end_of_episodes(lambda_):
    algo = with_head("categorical", lambda_=lambda_)
    state, t = collected(algo)
    targets = np.asarray(lambda_targets(algo.config, state, t, jax.random.key(2)))
    assert_allclose(targets.sum(axis=-1), 1, rtol=1e-5)
    ended, z = np.asarray(t.terminated | t.truncated), np.linspace(-2, 3, 7)
    for e in range(algo.config.num_envs):
        g, logits = None, y_values(state, t.next_obs[:, e])
        for i in reversed(range(algo.config.num_steps)):
            p = softmax(logits[i], axis=0)  # (M, A)
            p = p[:, (z @ p).argmax()]
            mixture = p if g is None or ended[i, e] else (1 - lambda_) * p + lambda_ * g
            atoms = np.clip(float(t.reward[i, e]) + 0.9 * (1 - float(t.terminated[i, e])) * z, -2, 3)
            g = np.zeros(7)
            for atom, mass in zip(atoms, mixture, strict=True):  # to the two neighbours, by distance
                low = min(int((atom + 2) / (5 / 6)), 5)
                share = (atom - z[low]) / (5 / 6)
                g[low] += mass * (1 - share)
                g[low + 1] += mass * share
            assert_allclose(targets[i, e], g, rtol=1e-3, atol=1e-5)


def test_quantile_targets_without_lambda_are_the_successors_quantiles_and_with_lambda_1_the_return_that_was_had():
    algo = with_head("quantile", lambda_=0.0)
    state, t = collected(algo)
    one_step = np.asarray(lambda_targets(algo.config, state, t, jax.random.key(2)))
    Z = np.stack([y_values(state, obs) for obs in t.next_obs])  # (T, E, N, A)
    best = np.take_along_axis(Z, Z.mean(axis=2).argmax(axis=-1)[:, :, None, None], axis=-1)[..., 0]
    discount = 0.9 * (1 - np.asarray(t.terminated, float))
    assert_allclose(one_step, np.asarray(t.reward)[..., None] + discount[..., None] * best, rtol=1e-4, atol=1e-5)

    whole = np.asarray(lambda_targets(with_head("quantile", lambda_=1.0).config, state, t, jax.random.key(2)))
    ended, g = np.asarray(t.terminated | t.truncated), None
    for i in reversed(range(len(ended))):
        last = best[i] if g is None else np.where(ended[i][:, None], best[i], g)
        g = np.asarray(t.reward[i])[:, None] + discount[i][:, None] * last
        assert_allclose(whole[i], g, rtol=1e-4, atol=1e-5)


def with_uneven_fractions(state):
    """The proposal begins with even ones."""
    network = nnx.merge(state.network, state.params)
    kernel = network.head.proposal.linear.kernel
    kernel[...] = jax.random.normal(jax.random.key(7), kernel.shape)
    return replace(state, params=nnx.state(network))


def steps_of(algo, state, obs):
    """(widths, Z) of the step functions of proposed fractions for a batch: (B, N), (B, N, A)."""
    network = nnx.merge(state.network, state.params)
    (proposal,) = heads.of(algo.config).predict(network.head, jax.vmap(network.psi)(obs), [None])
    return np.diff(np.asarray(proposal.tau, np.float64)), np.asarray(proposal.Y, np.float64)


def learned_means(algo, state, obs):
    """Q for a batch, written out for each head, (B, A)."""
    if algo.config.head == "proposed":
        widths, Z = steps_of(algo, state, obs)
        assert widths.std() > 0.05
        return np.einsum("bn,bna->ba", widths, Z)
    tau = None if algo.config.head == "quantile" else (jnp.arange(512) + 0.5) / 512
    return y_values(state, obs, tau).mean(axis=1)


@pytest.mark.parametrize(  # draws of 5, 64 and 32 chains
    ("head", "draws"), [("quantile", 400), ("implicit_quantile", 100), ("proposed", 150)]
)
def test_the_mean_of_the_drawn_targets_is_the_lambda_return_of_the_means(head, draws):
    algo = with_head(head, num_quantile_samples=512, num_tau_prime_samples=64, num_fractions=32)
    state, t = collected(algo)
    if head == "proposed":
        state = with_uneven_fractions(state)
    head_of = heads.of(algo.config)

    @jax.jit
    @jax.vmap
    def means_of_targets(key):
        G = pqn.lambda_targets(algo.config, state, t, key)
        return jax.vmap(jax.vmap(head_of.expected))(G)

    keys = jax.random.split(jax.random.key(3), draws)
    drawn = np.asarray(means_of_targets(keys), np.float64).mean(axis=0)
    ended = np.asarray(t.terminated | t.truncated)
    for e in range(algo.config.num_envs):
        g, best = None, learned_means(algo, state, t.next_obs[:, e]).max(axis=-1)
        for i in reversed(range(algo.config.num_steps)):
            v = best[i]
            last = g is None or ended[i, e]
            g = float(t.reward[i, e]) + 0.9 * (1 - float(t.terminated[i, e])) * (v if last else 0.3 * v + 0.7 * g)
            assert_allclose(drawn[i, e], g, atol=0.03)


def test_targets_of_proposed_fractions_without_lambda_are_draws_from_the_successors_step_function():
    algo = with_head("proposed", lambda_=0.0)
    state, t = collected(algo)
    state, draws = with_uneven_fractions(state), 500
    keys = jax.random.split(jax.random.key(3), draws)
    y, tau = jax.jit(jax.vmap(partial(pqn.lambda_targets, algo.config, state, t)))(keys)
    assert_array_equal(tau, np.broadcast_to(np.linspace(0, 1, 5, dtype=np.float32), tau.shape))  # all count alike
    y = np.moveaxis(np.asarray(y), 0, 2).reshape(*t.reward.shape, -1)  # (T, E, draws N)
    for e in range(algo.config.num_envs):
        widths, Z = steps_of(algo, state, t.next_obs[:, e])
        a_star = np.einsum("tn,tna->ta", widths, Z).argmax(axis=-1)
        for i in range(algo.config.num_steps):
            outcomes = float(t.reward[i, e]) + 0.9 * (1 - float(t.terminated[i, e])) * Z[i, :, a_star[i]]
            off = np.abs(y[i, e][:, None] - outcomes)
            assert off.min(axis=1).max() < 1e-5
            if not t.terminated[i, e]:
                assert_allclose((off < 1e-5).mean(axis=0), widths[i], atol=0.06)


class ByHand(nnx.Module):
    """A network that gives Y whatever it sees, and proposes the widths .2, .3 and .5."""

    def __init__(self, Y):
        self.Y = nnx.Param(jnp.asarray(Y, jnp.float32))

    def psi(self, obs):
        return obs

    @property
    def head(self):
        return self

    def __call__(self, psi, tau=None):
        return jnp.broadcast_to(self.Y[...], (*psi.shape[:-1], *self.Y.shape))

    def Z(self, psi, tau):
        return self(psi)[..., : tau.shape[-1], :]

    def proposal(self, psi):
        return jnp.log(jnp.broadcast_to(jnp.array([0.2, 0.3, 0.5]), (*psi.shape[:-1], 3)))


def test_the_loss_of_each_head_is_that_of_its_paper():
    Y, action = np.array([[0.3, -1.0], [2.0, 0.5], [-0.4, 1.5]]), 1
    y, key = np.array([1.0, -0.6]), jax.random.key(0)

    def loss(head, Y, target, **changes):
        config = with_head(head, **changes).config
        network, params = nnx.split(ByHand(Y))
        target = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32)[None], target)
        rows = pqn.Rows(jnp.zeros((1, 6)), jnp.array([action]), target)
        value, (q, error) = pqn.loss(params, config, SimpleNamespace(network=network), rows, key)
        return value, (q[0], error[0])

    value, (q, error) = loss("scalar", Y[:1], 3.0)
    assert_allclose([value, q, error], [8.0, -1.0, 4.0], rtol=1e-6)  # (3 + 1)^2 / 2

    delta = y[None, :] - Y[:, 1:]  # (N, N')
    huber = np.where(np.abs(delta) <= 0.4, delta**2 / 2, 0.4 * (np.abs(delta) - 0.2))
    (drawn,) = fractions.draw(key, "uniform", (1,), (3,))
    taus = {"quantile": np.array([1, 3, 5]) / 6, "implicit_quantile": np.asarray(drawn[0])}
    for head, tau in taus.items():
        value, (q, error) = loss(head, Y, y, kappa=0.4, num_quantiles=3, num_tau_samples=3)
        assert_allclose(value, (np.abs(tau[:, None] - (delta < 0)) * huber / 0.4).mean(axis=1).sum(), rtol=1e-5)
        assert_allclose([q, error], [1 / 3, abs(0.2 - 1 / 3)], rtol=1e-5)

    targets = heads.proposed.Targets(y, np.array([0, 0.5, 1]))
    value, (q, error) = loss("proposed", Y, targets, num_fractions=3, fraction_entropy=0.1)
    p, tau = np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.35, 0.75])
    of_quantiles = (np.abs(tau[:, None] - (delta < 0)) * huber / 0.4).mean(axis=1).sum()
    assert_allclose(value, of_quantiles + 0.1 * (np.log(3) + p @ np.log(p)), rtol=1e-5)
    assert_allclose([q, error], [0.7, 0.5], rtol=1e-5)  # .2 * -1 + .3 * .5 + .5 * 1.5

    value, (q, error) = loss("hl_gauss", Y, 0.4, num_atoms=3, v_min=-1.0, v_max=1.0, hl_gauss_sigma=0.75)
    cdf = scipy.stats.norm.cdf([-1.5, -0.5, 0.5, 1.5], 0.4, 0.75)  # ends of the bins around -1, 0, 1
    assert_allclose(value, -(np.diff(cdf) / (cdf[-1] - cdf[0]) * log_softmax(Y[:, 1])).sum(), rtol=1e-5)
    mean = softmax(Y[:, 1]) @ [-1, 0, 1]
    assert_allclose([q, error], [mean, abs(0.4 - mean)], rtol=1e-5)

    p = np.array([0.2, 0.5, 0.3])
    value, (q, error) = loss("categorical", Y, p, num_atoms=3, v_min=-1.0, v_max=1.0)
    assert_allclose(value, -(p * log_softmax(Y[:, 1])).sum(), rtol=1e-5)
    mean = softmax(Y[:, 1]) @ [-1, 0, 1]
    assert_allclose([q, error], [mean, abs(0.1 - mean)], rtol=1e-5)


@pytest.mark.parametrize(("v_min", "v_max"), [(-10.0, 10.0), (1e4, 1e4 + 10)])
def test_the_histogram_of_hl_gauss_sums_to_one_and_its_mean_is_the_target_but_at_the_ends(v_min, v_max):
    config = with_head("hl_gauss", num_atoms=51, v_min=v_min, v_max=v_max).config
    inside = np.linspace(v_min, v_max, 51)[3:-3] + 0.1
    p = np.asarray(jax.vmap(lambda g: HLGaussHead(config).histogram(g))(jnp.float32(inside)), np.float64)
    assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert_allclose(p @ np.linspace(v_min, v_max, 51), np.float32(inside), atol=2e-3)
    beyond = HLGaussHead(config).histogram(jnp.float32(v_max + 100))
    assert_allclose(beyond, HLGaussHead(config).histogram(jnp.float32(v_max)))
    assert int(beyond.argmax()) == 50


def test_soft_returns_go_with_hl_gauss():
    _, record = with_head("hl_gauss", munchausen=True, munchausen_temperature=0.1).records(jax.random.key(0))
    assert np.isfinite(record.metrics.loss[1:]).all()


@pytest.mark.parametrize("head", list(HEADS))
def test_the_gradient_does_not_flow_through_the_target(head):
    algo = with_head(head)
    state, t = collected(algo)
    rows = jax.jit(pqn.observe)(algo.config, state, t, jax.random.key(2)).rows

    def value(params, target):
        return pqn.loss(params, algo.config, state, rows._replace(target=target), jax.random.key(3))[0]

    of_params, of_target = jax.jit(jax.grad(value, argnums=(0, 1)))(state.params, rows.target)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(of_target))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(of_params))


@pytest.mark.parametrize("head", each(["hl_gauss", *DISTRIBUTIONS], first=["quantile"]))
def test_each_head_consumes_its_keys_once(head):
    algo = with_head(head, signals=True)
    with jax.debug_key_reuse(True):
        jax.jit(partial(train.train, *algo.arguments())).trace(jax.random.key(0))


@pytest.mark.validation  # in `make test` test_loops_and_heads.py has the same of smaller batches
@pytest.mark.parametrize("head", ["hl_gauss", *DISTRIBUTIONS])
def test_each_head_trains_and_measures_signals(head):
    algo = with_head(head, signals=True)
    state, record = algo.records(jax.random.key(0))
    assert int(state.gradient_steps) == algo.config.gradient_steps
    assert np.isfinite(record.metrics.loss[1:]).all()
    assert head == "hl_gauss" or np.isfinite(record.signals.calibration).all()
    before = algo.init(jax.random.key(0)).params
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("head", each(DISTRIBUTIONS, first=["categorical", "implicit_quantile"]))
def test_quantiles_rise_with_their_fractions_and_their_mean_is_what_the_policy_maximises(head):
    algo = with_head(head, num_quantile_samples=2000)
    state = algo.init(jax.random.key(4))
    taus = (jnp.arange(2000) + 0.5) / 2000
    candidates = jax.random.normal(jax.random.key(5), (32, 6))
    Z = np.asarray(algo.quantiles(state, candidates, taus))
    assert Z.shape == (32, 2000, 2)
    clearest = np.abs(Z.mean(axis=1) @ [1, -1]).argmax()
    obs, Z = candidates[clearest], Z[clearest]
    if head == "categorical":
        assert (np.diff(Z, axis=0) >= 0).all()
        assert np.abs(Z[..., None] - np.linspace(-2, 3, 7)).min(axis=-1).max() < 1e-5
    gap = abs(Z.mean(axis=0) @ [1, -1])
    assert gap > 10 * (Z[:, 0] - Z[:, 1]).std() / 2000**0.5  # else the choice among drawn fractions says nothing
    assert int(algo.policy(state)(obs, jax.random.key(6))) == Z.mean(axis=0).argmax()


def test_the_scalar_head_has_no_quantiles_and_says_which_have():
    algo = with_head("scalar")
    state = algo.init(jax.random.key(0))
    with pytest.raises(
        ConfigError,
        match="head: scalar learns expected values, no quantiles; choose categorical, quantile, implicit_quantile or prop",
    ):
        algo.quantiles(state, jnp.ones(6), jnp.array([0.5]))


def test_returns_are_compared_with_the_support_from_when_their_unit_is_known_on():
    told = with_head("categorical", normalize_rewards=True).records(jax.random.key(0))[1].learned_returns
    assert np.isnan(told[0]).all()  # nothing was collected yet
    assert np.isfinite(told[1:]).all()


def test_an_empty_support_is_refused():
    with pytest.raises(ConfigError, match=r"v_min: 2\.0 is not below v_max=1\.0"):
        with_head("categorical", v_min=2.0, v_max=1.0)


def test_the_learning_rate_falls_to_its_end():
    config = tiny("pqn", learning_rate=1e-2, learning_rate_end=0.0, max_grad_norm=float("inf")).config
    optimizer = pqn.optimizer(config)
    update, state, sizes = jax.jit(optimizer.update), optimizer.init(jnp.zeros(1)), []
    for _ in range(config.gradient_steps + 1):
        updates, state = update(jnp.array([1.0]), state)
        sizes.append(abs(float(updates[0])))
    assert sizes[0] > 0
    assert sizes[-1] == 0


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="num_minibatches: 3 does not divide num_envs \\* num_steps = 32"):
        tiny("pqn", num_minibatches=3)
    with pytest.raises(ConfigError, match="total_timesteps: 16 is less than one iteration"):
        tiny("pqn", total_timesteps=16, eval_freq=16)


def test_leaving_layer_norm_out_warns():
    with pytest.warns(ConfigWarning, match="layer_norm=false"):
        PQN.create(env="probe/corridor", layer_norm=False)


def test_targets_follow_the_parameters_of_the_iteration(algo):
    state, t = collected(algo)
    other = replace(state, params=jax.tree.map(lambda x: x + 0.1, state.params))
    of_state, of_other = (lambda_targets(algo.config, s, t, jax.random.key(2)) for s in (state, other))
    assert not np.allclose(of_state, of_other)
