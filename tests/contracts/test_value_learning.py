"""DQN, C51 and QR-DQN against rlax's equations, and against the known bugs of other implementations."""

import warnings
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax

from quantilax import ConfigError, fractions, offpolicy
from quantilax.algorithms import c51, dqn, fqf, iqn, qrdqn
from quantilax.networks import monotone
from quantilax.replay import tree
from quantilax.types import NStep
from tests.conftest import tiny

with warnings.catch_warnings(action="ignore"):
    import rlax

MODULES = {"dqn": dqn, "c51": c51, "qrdqn": qrdqn}
CHANGES = {"dqn": dict(kappa=0.7), "c51": dict(v_min=-1.0, v_max=2.0), "qrdqn": dict(kappa=0.7)}


@pytest.fixture(params=list(MODULES))
def name(request):
    return request.param


@pytest.fixture
def algo(name):
    return tiny(name, gamma=0.9, **CHANGES[name])


@pytest.fixture
def state(algo):
    return perturbed(algo.init(jax.random.key(0)))


def perturbed(state, seed=9):
    leaves, treedef = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    other = treedef.unflatten([x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
    return replace(state, target_params=other)


def batch(terminated=False, truncated=False, steps=1, size=6):
    obs, next_obs = jax.random.normal(jax.random.key(4), (2, size, 6))
    action, reward = jnp.arange(size) % 2, jnp.linspace(-1, 1, size)
    ends = jnp.full(size, terminated), jnp.full(size, truncated)
    return NStep(obs, action, reward, next_obs, *ends, jnp.full(size, steps))


def outputs(state, params, obs):
    """What the network gives for a batch, (B, ..., A)."""
    return jax.vmap(nnx.merge(state.network, params))(obs)


def loss_of(name, state, b, config):
    batch_loss = jax.jit(MODULES[name].batch_loss)
    return batch_loss(state.params, state.target_params, state.network, b, jax.random.key(0), config)


def rlax_loss(name, state, b, config):
    """The same by rlax, one transition at a time."""
    online, target = outputs(state, state.params, b.obs), outputs(state, state.target_params, b.next_obs)
    selector = outputs(state, state.params, b.next_obs) if config.double else target
    discount = config.gamma**b.steps * b.discount
    losses = []
    for i in range(len(b.action)):
        a, r, d = b.action[i], b.reward[i], discount[i]
        if name == "dqn":
            error = rlax.double_q_learning(online[i], a, r, d, target[i], selector[i])
            losses.append(rlax.huber_loss(error, config.kappa))
        elif name == "c51":
            z = jnp.linspace(config.v_min, config.v_max, config.num_atoms)
            q = (jax.nn.softmax(selector[i], axis=0) * z[:, None]).sum(axis=0)
            losses.append(rlax.categorical_double_q_learning(z, online[i].T, a, r, d, z, target[i].T, q))
        else:
            tau = (jnp.arange(config.num_quantiles) + 0.5) / config.num_quantiles
            error = rlax.quantile_q_learning(online[i], tau, a, r, d, selector[i], target[i], config.kappa)
            losses.append(error / config.kappa)  # rlax leaves that out
    return np.mean(losses)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.filterwarnings("ignore:Rlax categorical_cross_entropy:PendingDeprecationWarning")
def test_the_loss_is_rlaxs(name, algo, state, double, terminated, steps):
    config, b = replace(algo.config, double=double), batch(terminated, steps=steps)
    value, _ = loss_of(name, state, b, config)
    assert_allclose(value, rlax_loss(name, state, b, config), rtol=1e-5)


def test_the_metrics_are_the_mean_prediction_and_the_distance_to_the_target(name):
    # From -20 to 20 no target lies beyond the support, where the projection would move its mean.
    algo = tiny(name, gamma=0.9, **(dict(v_min=-20.0, v_max=20.0) if name == "c51" else CHANGES[name]))
    state, b = perturbed(algo.init(jax.random.key(0))), batch()
    _, (q, td_error, _) = loss_of(name, state, b, algo.config)
    q, td_error = q.mean(), td_error.mean()
    reduce = (
        partial(c51.means, config=algo.config) if name == "c51" else (lambda x: x if x.ndim == 2 else x.mean(axis=1))
    )
    online, target = reduce(outputs(state, state.params, b.obs)), outputs(state, state.target_params, b.next_obs)
    taken = online[jnp.arange(6), b.action]
    assert_allclose(q, taken.mean(), rtol=1e-5)
    y = b.reward + 0.9 * reduce(target).max(axis=1)
    assert_allclose(td_error, jnp.abs(y - taken).mean(), rtol=1e-4)


@pytest.mark.parametrize(("temperature", "clip"), [(0.03, -1.0), (0.5, -1.0), (0.5, -0.1)])
def test_dqn_with_munchausen_is_m_dqn(temperature, clip):
    algo = tiny("dqn", munchausen=True, munchausen_temperature=temperature, munchausen_clip=clip)
    state, b, config = perturbed(algo.init(jax.random.key(0))), batch(), algo.config
    log_pi, log_pi_next = (
        log_softmax(np.asarray(outputs(state, state.target_params, x), np.float64) / temperature, axis=1)
        for x in (b.obs, b.next_obs)
    )
    bonus = np.maximum(temperature * log_pi[np.arange(6), b.action], clip)
    soft = np.asarray(outputs(state, state.target_params, b.next_obs)) - temperature * log_pi_next
    y = np.asarray(b.reward) + 0.9 * bonus + config.gamma * (np.exp(log_pi_next) * soft).sum(axis=1)
    delta = y - np.asarray(outputs(state, state.params, b.obs))[np.arange(6), b.action]
    expected = np.where(np.abs(delta) <= 1, delta**2 / 2, np.abs(delta) - 0.5).mean()
    assert_allclose(loss_of("dqn", state, b, config)[0], expected, rtol=1e-4)


def test_an_infinite_kappa_is_the_squared_error():
    algo = tiny("dqn", kappa=float("inf"))
    state, b = perturbed(algo.init(jax.random.key(0))), batch()
    y = b.reward + algo.config.gamma * outputs(state, state.target_params, b.next_obs).max(axis=1)
    delta = y - outputs(state, state.params, b.obs)[jnp.arange(6), b.action]
    assert float(jnp.abs(delta).max()) > 1
    assert_allclose(loss_of("dqn", state, b, algo.config)[0], (delta**2 / 2).mean(), rtol=1e-5)


def test_the_loss_depends_on_the_target_parameters_and_has_no_gradient_in_them(name, algo, state):  # bug 1
    @jax.jit
    def value(params, target_params):
        args = params, target_params, state.network, batch(), jax.random.key(0), algo.config
        return MODULES[name].batch_loss(*args)[0]

    assert float(value(state.params, state.target_params)) != float(value(state.params, state.params))
    gradients = jax.jit(jax.grad(value, argnums=(0, 1)))(state.params, state.target_params)
    of_params, of_target_params = map(jax.tree.leaves, gradients)
    for leaf in of_target_params:
        assert_array_equal(leaf, 0)
    assert any(np.abs(leaf).max() > 0 for leaf in of_params)


def test_a_cut_bootstraps_and_an_end_does_not(name, algo, state):  # bug 5
    cut, going_on, ended = (
        float(loss_of(name, state, batch(*ends), algo.config)[0])
        for ends in ((False, True), (False, False), (True, True))
    )
    assert cut == going_on != ended


def test_the_optimizer_moves_the_target_and_counts(name, algo):
    algo = tiny(name, target_update_freq=2, polyak=0.0)
    state = algo.init(jax.random.key(0))
    update = jax.jit(MODULES[name].update)
    once, _ = update(algo.config, state, jax.random.key(1))
    twice, _ = update(algo.config, once, jax.random.key(2))
    first, moved, last = (jax.tree.leaves(x) for x in (once.target_params, twice.target_params, twice.params))
    assert all(np.array_equal(a, b) for a, b in zip(first, jax.tree.leaves(state.params), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(moved, last, strict=True))
    assert int(twice.gradient_steps) == 2


@cache
def learned(name, **changes):
    """Parameters after training."""
    return tiny(name, **changes).train(jax.random.key(0))[0].params


@pytest.mark.parametrize("change", [dict(dueling=True), dict(n_step=3), dict(noisy=True)])
@pytest.mark.parametrize("name", [*MODULES, "fqf"])
def test_each_refinement_changes_what_is_learned(name, change):
    plain, refined = learned(name), learned(name, **change)
    leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in (plain, refined)]
    assert leaves[0].shape != leaves[1].shape or not np.array_equal(*leaves)
    assert all(np.isfinite(x).all() for x in leaves)


EVERY = {**MODULES, "iqn": iqn, "fqf": fqf}


@pytest.mark.parametrize("each", list(EVERY))
def test_examples_are_weighted_and_give_their_priorities(each):
    algo = tiny(each, **({"share_tau": True} if each == "iqn" else {}))  # so that an example alone draws the same
    state = perturbed(algo.init(jax.random.key(0)))
    config, b = algo.config, batch(size=4)
    run = jax.jit(partial(EVERY[each].batch_loss, state.params, state.target_params, state.network))
    alone = [run(jax.tree.map(lambda x, i=i: x[i : i + 1], b), jax.random.key(0), config) for i in range(4)]
    weight = jnp.array([1.0, 0.5, 0.0, 0.25])
    value, (_, td_error, priority) = run(b._replace(weight=weight), jax.random.key(0), config)
    assert_allclose(value, jnp.mean(weight * jnp.stack([x[0] for x in alone])), rtol=1e-4)
    assert_allclose(priority, jnp.concatenate([aux[2] for _, aux in alone]), rtol=1e-5, atol=5e-7)
    if each != "c51":
        assert_array_equal(priority, td_error)


def test_the_priority_of_c51_is_the_divergence_from_its_target():
    algo = tiny("c51", gamma=0.9)
    state, b = perturbed(algo.init(jax.random.key(0))), batch()
    *_, priority = loss_of("c51", state, b, algo.config)[1]
    logits, logits_next, q_next = jax.jit(c51.forward)(state.params, state.target_params, state.network, b, algo.config)
    targets = jax.jit(jax.vmap(c51.target, in_axes=(0, 0, 0, None)))(logits_next, q_next, b, algo.config)
    for i in range(6):
        log_q = log_softmax(np.asarray(logits[i], float)[:, int(b.action[i])])
        kl = sum(p * (np.log(p) - q) for p, q in zip(np.asarray(targets[i], float), log_q, strict=True) if p > 0)
        assert_allclose(priority[i], kl, rtol=1e-5, atol=1e-7)


def test_learned_steps_have_no_priority_by_c51_alone_and_under_vmap():
    algo = tiny("c51", gamma=1.0)
    state, b = algo.init(jax.random.key(0)), batch()
    learned = b._replace(
        action=jnp.argmax(c51.means(outputs(state, state.params, b.obs), algo.config), axis=1),
        reward=jnp.zeros(6),
        next_obs=b.obs,
    )
    alone = loss_of("c51", state, learned, algo.config)[1][-1]
    one_by_one = jax.vmap(lambda t: loss_of("c51", state, jax.tree.map(lambda x: x[None], t), algo.config)[1][-1])
    assert_allclose(np.append(alone, one_by_one(learned)), 0, atol=1e-11)


@pytest.mark.parametrize("each", list(EVERY))
def test_a_gradient_step_keeps_the_priorities_of_its_batch_and_the_next_one_writes_them(each):
    algo = tiny(each, prioritized=True, priority_exponent=0.7)
    state = algo.init(jax.random.key(0))
    update = jax.jit(EVERY[each].update)
    after, _ = update(algo.config, state, jax.random.key(1))
    kept = after.priorities
    assert bool((kept.iteration >= 0).all())
    position = kept.iteration % state.replay.rows.offset.shape[0] * 4 + kept.env
    assert_array_equal(tree.weights(kept.weights, position), 1)  # that of steps never drawn
    later, _ = update(algo.config, after, jax.random.key(2))
    greatest = {}
    for place, weight in zip(position.tolist(), kept.weight.tolist(), strict=True):
        greatest[place] = max(greatest.get(place, 0.0), weight)
    written = tree.weights(later.priorities.weights, jnp.array(list(greatest)))
    assert_allclose(written, list(greatest.values()), rtol=1e-6)


@pytest.mark.parametrize("each", list(EVERY))
def test_noisy_layers_explore_without_epsilon_and_evaluations_have_no_noise(each):
    off = {"eps_start": 0.0, "eps_end": 0.0}
    fractions = {"acting_tau_sampling": "midpoints"} if each == "iqn" else {}
    algo = tiny(each, noisy=True, **off, **fractions)
    state, _ = algo.train(jax.random.key(0))
    module, keys, obs = EVERY[each], jax.random.split(jax.random.key(1), 200), state.obs[0]
    act, quiet = (
        jax.vmap(offpolicy.behaviour(algo.config, state, 0.0, module.acting_policy, noise), in_axes=(None, 0))
        for noise in (True, False)
    )
    evaluated = jax.vmap(algo.policy(state), in_axes=(None, 0))(obs, keys)
    assert len(set(evaluated.tolist())) == 1
    assert set(quiet(obs, keys).tolist()) == set(evaluated.tolist())
    assert len(set(act(obs, keys).tolist())) == 2


@pytest.mark.parametrize("each", list(EVERY))
def test_with_double_the_action_is_selected_by_the_parameters_given_for_it(each):
    algo = tiny(each, gamma=0.9)
    state, b = perturbed(algo.init(jax.random.key(0))), batch(size=32)
    run = jax.jit(partial(EVERY[each].batch_loss, state.params, state.target_params, state.network))
    double = replace(algo.config, double=True)
    of_online = run(b, jax.random.key(0), double)
    assert_array_equal(of_online[0], run(b, jax.random.key(0), double, state.params)[0])
    by_target = run(b, jax.random.key(0), double, state.target_params)[0]
    assert_allclose(by_target, run(b, jax.random.key(0), algo.config)[0], rtol=1e-6)
    assert abs(float(by_target - of_online[0])) > 1e-4


def test_noise_is_drawn_independently_for_each_network_and_each_observation_of_the_loss():
    algo = tiny("dqn", noisy=True, double=True)
    state, drawn = algo.init(jax.random.key(0)), []

    def batch_loss(params, target_params, network, batch, key, config, selector_params):
        drawn.extend((params, target_params, selector_params))
        return dqn.batch_loss(params, target_params, network, batch, key, config, selector_params)

    offpolicy.loss(state.params, algo.config, state, batch(), jax.random.key(1), batch_loss)
    for kind, differ in (("psi", False), ("head", True)):
        leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(params[kind])]) for params in drawn]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert np.array_equal(leaves[i], leaves[j]) != differ, "all are the same weights but for the noise"
    noise = [params["head"]["out"]["bias"][...] - state.params["head"]["out"]["bias"][...] for params in drawn]
    assert len(np.unique(np.abs(noise))) == len(np.ravel(noise))


def test_quantiles_of_qr_dqn_are_the_step_function_through_its_own():
    Z = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    tau = jnp.array([0.0, 0.125, 0.25, 0.26, 0.5, 0.51, 0.99, 1.0])
    assert fractions.of_quantiles(Z, tau)[:, 0].tolist() == [1, 1, 1, 2, 2, 3, 4, 4]


def test_quantiles_of_c51_are_the_least_atoms_that_hold_the_fraction():
    config = c51.Config(num_atoms=3, v_min=-1.0, v_max=1.0)
    logits = jnp.log(jnp.array([[0.25, 1e-9], [0.25, 1e-9], [0.5, 1.0]]))
    tau = jnp.array([0.1, 0.24, 0.3, 0.49, 0.6, 1.0])
    assert c51.at(logits, tau, config).tolist() == [[-1, 1], [-1, 1], [0, 1], [0, 1], [1, 1], [1, 1]]


def test_quantiles_that_cannot_cross_do_not():
    obs, tau = jax.random.normal(jax.random.key(1), (20, 6)), (jnp.arange(5) + 0.5) / 5
    crossing = {}
    for non_crossing in (False, True):
        algo = tiny("qrdqn", non_crossing=non_crossing)
        state = perturbed(algo.init(jax.random.key(0)))
        Z = jax.jit(algo.quantiles)(replace(state, average_params=state.target_params), obs, tau)
        crossing[non_crossing] = float((jnp.diff(Z, axis=1) < 0).mean())
    assert crossing[True] == 0
    assert crossing[False] > 0.2


def test_quantiles_that_cannot_cross_can_spread_at_every_observation_from_the_start():
    algo = tiny("qrdqn", non_crossing=True)
    state = algo.init(jax.random.key(0))
    network, obs = nnx.merge(state.network, state.params), jax.random.normal(jax.random.key(1), (500, 6))
    raw = jax.vmap(lambda obs: network.head(network.psi(obs)))(obs)  # (B, N + 2, A)
    assert 0.1 < float((raw[:, -2] <= 0).mean()) < 0.9

    def spread(raw):
        return jnp.diff(monotone(raw)[jnp.array([0, -1])], axis=0).sum()

    gradient = np.asarray(jax.vmap(jax.grad(spread))(raw))
    assert (gradient[:, -2] > 0.1).all()
    assert (np.abs(gradient[:, :-2]).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("c51", dict(v_min=1.0, v_max=1.0), "v_min: 1.0 is not below v_max=1.0"),
        ("qrdqn", dict(non_crossing=True, dueling=True), "dueling: .* may cross"),
        ("dqn", dict(munchausen=True, n_step=2), "n_step: 2 with munchausen"),
    ],
    ids=["support", "crossing", "munchausen"],
)
def test_what_contradicts_itself_is_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(name, **changes)


def test_the_support_is_a_leaf():
    algo = tiny("c51")
    returns = jax.vmap(lambda v: algo.replace(v_max=v).train(jax.random.key(0))[0].params)(jnp.array([1.0, 5.0]))
    assert all(not np.array_equal(x[0], x[1]) for x in jax.tree.leaves(returns)[:1])
