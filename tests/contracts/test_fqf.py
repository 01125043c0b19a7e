"""FQF against an independent evaluation of the paper's equations.

What it shares with the other algorithms is tested with them.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax

from quantilax import heads, train
from quantilax.algorithms import q_learning
from quantilax.types import NStep
from tests.conftest import tiny
from tests.hlo import copies_in_loops

N, B = 4, 5


def perturbed(params, seed):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([x + 0.7 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def parts(params):
    """The parameters by their names in the paper."""
    return {"psi": params["psi"], "Z": params["head"]["Z"], "proposal": params["head"]["proposal"]}


@pytest.fixture
def algo():
    return tiny("fqf", gamma=0.9, kappa=0.7, fraction_entropy=0.3)


@pytest.fixture
def state(algo):
    state = algo.init(jax.random.key(0))
    return replace(state, params=perturbed(state.params, 8), target_params=perturbed(state.params, 9))


def batch(terminated=False, steps=1):
    obs, next_obs = jax.random.normal(jax.random.key(4), (2, B, 6))
    ends = jnp.full(B, terminated), jnp.zeros(B, bool)
    return NStep(obs, jnp.arange(B) % 2, jnp.linspace(-1, 1, B), next_obs, *ends, jnp.full(B, steps))


def loss_of(state, params, b, config):
    return jax.jit(q_learning.loss)(params, config, state, b, jax.random.key(0))


gradient_of = jax.jit(jax.grad(lambda params, state, b, config: loss_of(state, params, b, config)[0]))


class Numpy:
    """The network in double precision, written from the paper alone."""

    def __init__(self, params):
        self.p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(params))

    def psi(self, x):
        layer = self.p["psi"]["layers"][0]
        return np.maximum(np.asarray(x, np.float64) @ layer["kernel"] + layer["bias"], 0)

    def Z(self, psi, tau):
        embedding, (hidden, out) = (
            self.p["head"]["Z"]["embedding"]["linear"],
            (self.p["head"]["Z"]["f"]["mlp"]["layers"][0], self.p["head"]["Z"]["f"]["out"]),
        )
        cos = np.cos(np.pi * np.outer(tau, np.arange(1, 9)))
        phi = np.maximum(cos @ embedding["kernel"] + embedding["bias"], 0)
        h = np.maximum((psi * phi) @ hidden["kernel"] + hidden["bias"], 0)
        return h @ out["kernel"] + out["bias"]

    def shares(self, psi):
        layer = self.p["head"]["proposal"]["linear"]
        logits = psi @ layer["kernel"] + layer["bias"]
        p = np.exp(logits - logits.max())
        return p / p.sum()

    def at(self, x):
        """(shares, tau_0 .. tau_N, Z at the centres) of an observation."""
        psi = self.psi(x)
        p = self.shares(psi)
        tau = np.concatenate([[0], np.cumsum(p)])
        return p, tau, self.Z(psi, (tau[1:] + tau[:-1]) / 2)


def numpy_targets(target, online, b, i, config):
    """(tau', targets) of one transition."""
    _, tau_prime, Z_next = target.at(b.next_obs[i])
    d = config.gamma ** int(b.steps[i]) * (1 - float(b.terminated[i]))
    if config.munchausen:
        _, tau_before, Z_before = target.at(b.obs[i])
        t = config.munchausen_temperature
        log_pi, log_pi_next = (
            log_softmax(np.diff(f) @ Z / t) for f, Z in ((tau_before, Z_before), (tau_prime, Z_next))
        )
        bonus = config.munchausen_alpha * max(t * log_pi[int(b.action[i])], config.munchausen_clip)
        soft = ((Z_next - t * log_pi_next) * np.exp(log_pi_next)).sum(axis=1)
        return tau_prime, float(b.reward[i]) + bonus + d * soft
    _, tau_selects, Z_selects = (online if config.double else target).at(b.next_obs[i])
    a_star = sum((tau_selects[j + 1] - tau_selects[j]) * Z_selects[j] for j in range(N)).argmax()
    return tau_prime, float(b.reward[i]) + d * Z_next[:, a_star]


def numpy_loss(state, b, i, config):
    """(loss, q, TD error) of one transition, in loops."""
    online, target = Numpy(state.params), Numpy(state.target_params)
    tau_prime, y = numpy_targets(target, online, b, i, config)
    p, tau, Z = online.at(b.obs[i])
    z = Z[:, int(b.action[i])]
    total = 0.0
    for j in range(N):
        for k in range(N):
            delta = y[k] - z[j]
            huber = 0.5 * delta**2 if abs(delta) <= config.kappa else config.kappa * (abs(delta) - 0.5 * config.kappa)
            weight = tau_prime[k + 1] - tau_prime[k] if config.weigh_targets else 1 / N
            total += weight * abs((tau[j] + tau[j + 1]) / 2 - (delta < 0)) * huber / config.kappa
    total += config.fraction_entropy * (np.log(N) + (p * np.log(p)).sum())
    q = (np.diff(tau) * z).sum()
    return total, q, abs((np.diff(tau_prime) * y).sum() - q)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize(("steps", "weigh_targets"), [(1, False), (3, False), (3, True)])
def test_the_loss_is_the_papers_but_for_the_weights_of_targets(algo, state, double, terminated, steps, weigh_targets):
    config, b = replace(algo.config, double=double, weigh_targets=weigh_targets), batch(terminated, steps)
    value, (q, td_error, _) = loss_of(state, state.params, b, config)
    expected = np.array([numpy_loss(state, b, i, config) for i in range(B)])
    assert_allclose(value, expected[:, 0].mean(), rtol=1e-4)
    assert_allclose(q, expected[:, 1], rtol=1e-3, atol=1e-5)
    assert_allclose(td_error, expected[:, 2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("temperature", "clip"), [(0.03, -1.0), (0.5, -1.0), (0.5, -0.1)])
def test_the_loss_with_munchausen_has_soft_targets_between_the_same_fractions(algo, state, temperature, clip):
    changes = dict(munchausen=True, munchausen_temperature=temperature, munchausen_clip=clip)
    config, b = replace(algo.config, **changes), batch()
    value, (_, td_error, _) = loss_of(state, state.params, b, config)
    expected = np.array([numpy_loss(state, b, i, config) for i in range(B)])
    assert_allclose(value, expected[:, 0].mean(), rtol=1e-4)
    assert_allclose(td_error, expected[:, 2], rtol=1e-3, atol=1e-5)


def test_double_changes_which_network_selects(algo, state):
    values = [loss_of(state, state.params, batch(), replace(algo.config, double=d))[0] for d in (False, True)]
    assert not np.allclose(*values, rtol=1e-3)


def test_the_proposal_is_moved_by_the_gradient_of_the_paper_and_by_nothing_else(algo, state):
    b, config = batch(), algo.config
    gradient = parts(gradient_of(state.params, state, b, config))["proposal"]["linear"]
    online = Numpy(state.params)
    kernel, bias = 0.0, 0.0
    for i in range(B):
        psi, (p, tau, Z) = online.psi(b.obs[i]), online.at(b.obs[i])
        a = int(b.action[i])
        at_tau, at_hat = online.Z(psi, tau[1:-1])[:, a], Z[:, a]
        of_tau = 2 * at_tau - at_hat[1:] - at_hat[:-1]
        of_p = np.array([of_tau[k:].sum() for k in range(N)])  # tau_i sums p_0, ..., p_{i-1}
        of_p += config.fraction_entropy * (np.log(p) + 1)  # of -H
        of_logits = p * (of_p - (p * of_p).sum())
        kernel, bias = kernel + np.outer(psi, of_logits) / B, bias + of_logits / B
    assert np.abs(kernel).max() > 0.01
    assert_allclose(gradient["kernel"][...], kernel, rtol=1e-3, atol=1e-5)
    assert_allclose(gradient["bias"][...], bias, rtol=1e-3, atol=1e-5)


def test_all_else_is_moved_by_quantile_regression_at_these_fractions_alone(algo, state):
    b, config = batch(), algo.config
    gradient = parts(gradient_of(state.params, state, b, config))
    online, target = Numpy(state.params), Numpy(state.target_params)
    tau_hat = jnp.array([(tau[1:] + tau[:-1]) / 2 for _, tau, _ in map(online.at, b.obs)], jnp.float32)
    tau_prime, y = (
        jnp.array(x, jnp.float32)
        for x in zip(*(numpy_targets(target, online, b, i, config) for i in range(B)), strict=True)
    )
    widths = jnp.diff(tau_prime)[:, None, :]  # (B, 1, N)

    def loss(params):
        network = nnx.merge(state.network, params)
        z = jax.vmap(lambda x, tau, a: network.head.Z(network.psi(x), tau)[:, a])(b.obs, tau_hat, b.action)  # (B, N)
        delta = y[:, None, :] - z[:, :, None]
        huber = jnp.where(jnp.abs(delta) <= 0.7, delta**2 / 2, 0.7 * (jnp.abs(delta) - 0.35))
        return (widths * jnp.abs(tau_hat[:, :, None] - (delta < 0)) * huber / 0.7).sum(axis=(1, 2)).mean()

    expected = parts(jax.grad(loss)(state.params))
    for name in ("psi", "Z"):
        for got, want in zip(jax.tree.leaves(gradient[name]), jax.tree.leaves(expected[name]), strict=True):
            assert np.abs(want).max() > 1e-3
            assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_the_target_network_has_no_gradient(algo, state):
    def value(target_params):
        return loss_of(replace(state, target_params=target_params), state.params, batch(), algo.config)[0]

    assert float(value(state.target_params)) != float(value(state.params))
    for leaf in jax.tree.leaves(jax.grad(value)(state.target_params)):
        assert_array_equal(leaf, 0)


def test_fractions_of_a_network_rise_from_0_to_1_and_q_is_the_sum_weighted_by_them(algo, state):
    obs = jax.random.normal(jax.random.key(1), (50, 6))
    state = replace(state, average_params=state.params)
    online = nnx.merge(state.network, state.params)
    (proposal,) = heads.of(algo.config).predict(online.head, jax.vmap(online.psi)(obs), [None])
    tau, Z = proposal.tau, proposal.Y
    assert tau.shape == (50, N + 1)
    assert (np.diff(tau) > 0).all()
    assert_array_equal(tau[:, [0, -1]], np.broadcast_to([0, 1], (50, 2)))
    assert np.asarray(tau).std(axis=0)[1:-1].min() > 0.01, "each observation has its own"
    weighted = (np.diff(tau)[..., None] * np.asarray(Z)).sum(axis=1)
    actions = jax.vmap(algo.policy(state))(obs, jax.random.split(jax.random.key(2), 50))
    assert_array_equal(actions, weighted.argmax(axis=1))

    quantiles = jax.vmap(algo.quantiles, in_axes=(None, 0, 0))
    inside = tau[:, :-1] + jnp.array([0.01, 0.5, 0.99])[:, None, None] * jnp.diff(tau)  # of each step, (3, 50, N)
    for at in (*inside, tau[:, 1:]):  # a step has its upper end
        assert_array_equal(quantiles(state, obs, at), Z)


class ByHand(nnx.Module):
    """Fractions 0, .9, 1; Z of action 0 is tau, of action 1 always .6."""

    def __init__(self):
        self.unused = nnx.Param(jnp.zeros(1))

    def psi(self, obs):
        return jnp.zeros(1)

    @property
    def head(self):
        return self

    def proposal(self, psi):
        return jnp.log(jnp.broadcast_to(jnp.array([0.9, 0.1]), (*psi.shape[:-1], 2)))

    def Z(self, psi, tau):
        return jnp.stack([tau, jnp.full_like(tau, 0.6)], axis=-1)


def test_widths_of_fractions_count_in_acting_and_in_a_star():
    # Centres .45 and .95: weighted .9 * .45 + .1 * .95 = .5 is below .6, the plain mean .7 above.
    algo = tiny("fqf", num_fractions=2, gamma=1.0, fraction_entropy=0.0)
    graphdef, params = nnx.split(ByHand())
    weights = dict.fromkeys(("params", "average_params", "target_params"), params)
    state = replace(algo.init(jax.random.key(0)), network=graphdef, **weights)
    assert int(algo.policy(state)(jnp.zeros(6), jax.random.key(0))) == 1
    b = jax.tree.map(lambda x: x[:1], batch())._replace(reward=jnp.zeros(1), action=jnp.ones(1, int))
    value, (q, td_error, _) = loss_of(state, params, b, algo.config)
    assert_allclose(q, [0.6], rtol=1e-6)
    assert_allclose([value, *td_error], 0, atol=1e-6)  # all targets are .6, as predicted


def first_step(algo, state):
    """The gradient step of one batch: (change of each parameter, its gradient)."""
    b, config = batch(), algo.config
    gradient = gradient_of(state.params, state, b, config)
    optimizer = q_learning.optimizer(config)
    return parts(optimizer.update(gradient, optimizer.init(state.params))[0]), parts(gradient)


def test_the_proposal_takes_steps_of_rmsprop_and_the_rest_of_adam(state):
    algo = tiny("fqf", fraction_learning_rate=0.02, learning_rate=0.1, adam_eps=0.5, max_grad_norm=1e-3)
    step, gradient = first_step(algo, state)
    for g, s in zip(jax.tree.leaves(gradient["proposal"]), jax.tree.leaves(step["proposal"]), strict=True):
        assert_allclose(s, -0.02 * g / np.sqrt(0.05 * np.square(g) + 1e-5), rtol=1e-4)  # v = (1 - .95) g^2; not clipped
    rest = {name: gradient[name] for name in ("psi", "Z")}
    scale = 1e-3 / np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(rest)))
    assert scale < 0.1
    for g, s in zip(jax.tree.leaves(rest), jax.tree.leaves({n: step[n] for n in rest}), strict=True):
        assert_allclose(s, -0.1 * scale * g / (np.abs(scale * g) + 0.5), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("still", "moving"), [("learning_rate", "proposal"), ("fraction_learning_rate", "Z")])
def test_each_learning_rate_moves_its_own_part(still, moving):
    algo = tiny("fqf", **{still: 0.0})
    start = algo.init(jax.random.key(0))
    state, _ = jax.jit(q_learning.step)(algo.config, start, jax.random.key(1))
    for name in ("psi", "Z", "proposal"):
        same = [
            np.array_equal(a, b)
            for a, b in zip(*(jax.tree.leaves(parts(s.params)[name]) for s in (start, state)), strict=True)
        ]
        expected = (name == "proposal") == (moving == "proposal")
        assert all(same) != expected


def test_the_targets_proposal_moves_with_the_target():
    algo = tiny("fqf", target_update_freq=2, polyak=0.0)
    state = algo.init(jax.random.key(0))
    update = jax.jit(q_learning.step)
    once, _ = update(algo.config, state, jax.random.key(1))
    twice, _ = update(algo.config, once, jax.random.key(2))
    kernel = [parts(s.target_params)["proposal"]["linear"]["kernel"][...] for s in (state, once, twice)]
    assert_array_equal(kernel[0], kernel[1])
    assert_array_equal(kernel[2], parts(twice.params)["proposal"]["linear"]["kernel"][...])
    assert not np.array_equal(kernel[1], kernel[2])


def test_psi_and_z_begin_as_those_of_iqn_do():
    ours, iqns = (tiny(name).init(jax.random.key(3)).params for name in ("fqf", "iqn"))
    for a, b in ((ours["psi"], iqns["psi"]), (ours["head"]["Z"], iqns["head"])):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert_array_equal(x, y)


def test_training_copies_no_replay_in_its_loops():
    algo = tiny("fqf", buffer_size=54_321, n_step=3, prioritized=True)
    algorithm, env, config = algo.arguments()
    ring = jax.eval_shape(algo.init, jax.random.key(0)).replay
    rows, slots = ring.rows.reward.shape[0], ring.observations.shape[0]
    program = jax.jit(partial(train.train, algorithm, env, config)).lower(jax.random.key(0)).compile()
    assert copies_in_loops(program, rows) == copies_in_loops(program, slots) == 0
    assert copies_in_loops(program, -(-rows * 4 // 32)) == 0  # rows of the sum tree


@pytest.mark.validation
def test_adams_signals_are_those_of_adam_and_not_of_the_proposals_optimiser(algo):
    algo = algo.replace(signals=True)
    state, record = algo.records(jax.random.key(0))
    v = np.asarray(optax.tree.get(state.optimizer_state, "ScaleByAdamState").nu, np.float64)
    assert v.size == sum(x.size for name in ("psi", "Z") for x in jax.tree.leaves(parts(state.params)[name]))
    scale = np.sqrt(v[v > 0] / (1 - 0.999 ** int(state.gradient_steps)))
    assert_allclose(record.signals.adam_scale[-1], np.median(scale), rtol=1e-3)
