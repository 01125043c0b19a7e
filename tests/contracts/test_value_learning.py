"""Q-learning by each head against rlax's equations or NumPy, and against the known bugs of other implementations."""

import warnings
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax

from quantilax import ALGORITHMS, ConfigError, ConfigWarning, fractions, heads, train
from quantilax.agent import create
from quantilax.algorithms import q_learning, values
from quantilax.envs.probes import TimeLimit
from quantilax.heads import HEADS, CategoricalHead, HLGaussHead
from quantilax.heads.base import Prediction
from quantilax.networks import monotone
from quantilax.replay import tree
from quantilax.types import NStep
from tests.conftest import OFF_POLICY, each, tiny
from tests.trees import assert_same_bits

with warnings.catch_warnings(action="ignore"):
    import rlax

CHANGES = {
    "dqn": dict(kappa=0.7),
    "c51": dict(v_min=-1.0, v_max=2.0),
    "qrdqn": dict(kappa=0.7),
    "hl_gauss": dict(num_atoms=7, v_min=-1.0, v_max=2.0),
}
RLAX_HAS = ["dqn", "c51", "qrdqn"]
EVERY = [*RLAX_HAS, "iqn", "fqf", "hl_gauss"]
"""Q-learning by each head, under a name of its own or under that of the head."""
loss_function, targets_function = jax.jit(q_learning.loss), jax.jit(q_learning.SIGNALS.compared)


def agent(name, **changes):
    """A tiny agent."""
    if name in ALGORITHMS:
        return tiny(name, **changes)
    return create(ALGORITHMS["q_learning"], "probe/corridor", {**OFF_POLICY, "head": name, **CHANGES[name], **changes})


@pytest.fixture(params=each(EVERY, first=("c51", "iqn")))
def name(request):
    return request.param


@pytest.fixture
def algo(name):
    return agent(name, gamma=0.9, **CHANGES.get(name, {}))


@pytest.fixture
def state(algo):
    return perturbed(algo.init(jax.random.key(0)))


def test_every_head_is_here():
    assert [agent(name).config.head for name in EVERY] == list(HEADS)


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
    """The outputs for a batch of a network whose numbers have a fixed meaning, (B, n, A)."""
    network = nnx.merge(state.network, params)
    return jax.vmap(lambda x: network.head(network.psi(x)))(obs)


def numpy_means(Y, config):
    """Q by what `outputs` gave, (B, A)."""
    Y = np.asarray(Y, np.float64)
    if config.head in ("categorical", "hl_gauss"):
        Y = softmax(Y, axis=1) * np.linspace(config.v_min, config.v_max, config.num_atoms)[:, None] * config.num_atoms
    return Y.mean(axis=1)


def loss_of(state, b, config):
    return loss_function(state.params, config, state, b, jax.random.key(0))


def targets_of(state, b, config):
    return targets_function(state.params, config, state, b, jax.random.key(0))[1]


def rlax_loss(name, state, b, config):
    """The same by rlax, one transition at a time."""
    online, target = outputs(state, state.params, b.obs), outputs(state, state.target_params, b.next_obs)
    selector = outputs(state, state.params, b.next_obs) if config.double else target
    discount = config.gamma**b.steps * b.discount
    losses = []
    for i in range(len(b.action)):
        a, r, d = b.action[i], b.reward[i], discount[i]
        if name == "dqn":
            error = rlax.double_q_learning(online[i, 0], a, r, d, target[i, 0], selector[i, 0])
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


@pytest.mark.parametrize("name", RLAX_HAS, indirect=True)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.filterwarnings("ignore:Rlax categorical_cross_entropy:PendingDeprecationWarning")
def test_the_loss_is_rlaxs(name, algo, state, double, terminated, steps):
    config, b = replace(algo.config, double=double), batch(terminated, steps=steps)
    value, _ = loss_of(state, b, config)
    assert_allclose(value, rlax_loss(name, state, b, config), rtol=1e-5)


@pytest.mark.parametrize("name", CHANGES, indirect=True)
def test_the_metrics_are_the_mean_prediction_and_the_distance_to_the_target(name):
    # From -20 to 20 no target lies beyond the support, where the projection would move its mean.
    wide = dict(v_min=-20.0, v_max=20.0) if name in ("c51", "hl_gauss") else CHANGES[name]
    algo = agent(name, gamma=0.9, **wide)
    state, b = perturbed(algo.init(jax.random.key(0))), batch()
    _, (q, td_error, _) = loss_of(state, b, algo.config)
    online, target = (
        numpy_means(outputs(state, params, obs), algo.config)
        for params, obs in ((state.params, b.obs), (state.target_params, b.next_obs))
    )
    taken = online[np.arange(6), b.action]
    assert_allclose(q, taken, rtol=1e-5, atol=1e-6)
    y = np.asarray(b.reward) + 0.9 * target.max(axis=1)
    assert_allclose(td_error, np.abs(y - taken), rtol=1e-4, atol=1e-5)


def numpy_projection(atoms, p, z):
    """The distribution on the support z: atoms clipped to it, their mass split between the two neighbours."""
    found, step = np.zeros(len(z)), z[1] - z[0]
    for atom, mass in zip(np.clip(atoms, z[0], z[-1]), p, strict=True):
        below = min(int((atom - z[0]) / step), len(z) - 2)
        share = (atom - z[below]) / step
        found[below] += mass * (1 - share)
        found[below + 1] += mass * share
    return found


def numpy_soft_target(Y_next, q_before, t, config):
    """The target of one transition with munchausen, from the target network's numbers at x'."""
    temperature, alpha, l0 = config.munchausen_temperature, config.munchausen_alpha, config.munchausen_clip
    q_next = numpy_means(Y_next[None], config)[0]
    pi, t_log_pi = softmax(q_next / temperature), temperature * log_softmax(q_next / temperature)
    bonus = temperature * log_softmax(q_before / temperature)[int(t.action)]
    reward = float(t.reward) + alpha * max(bonus, l0)
    discount = config.gamma * (1 - float(t.terminated))
    if config.head != "categorical":
        future = Y_next if config.head == "quantile" else q_next[None]
        return reward + discount * (pi * (future - t_log_pi)).sum(axis=1)
    z = np.linspace(config.v_min, config.v_max, config.num_atoms)
    p = softmax(Y_next, axis=0)
    return sum(pi[a] * numpy_projection(reward + discount * (z - t_log_pi[a]), p[:, a], z) for a in range(len(q_next)))


def numpy_histogram(y, config):
    """The mass that a Gaussian around y leaves to each bin, over their sum."""
    step = (config.v_max - config.v_min) / (config.num_atoms - 1)
    edges = config.v_min + step * (np.arange(config.num_atoms + 1) - 0.5)
    centre = np.clip(y, config.v_min, config.v_max)
    mass = np.diff(scipy.stats.norm.cdf(edges, centre, config.hl_gauss_sigma * step))
    return mass / mass.sum()


def numpy_loss(Y, y, config):
    """The loss of one example by the numbers of the action taken, (n,)."""
    if config.head in ("categorical", "hl_gauss"):
        p = y if config.head == "categorical" else numpy_histogram(y[0], config)
        return -(p * log_softmax(Y)).sum()
    delta, kappa = y[None, :] - Y[:, None], config.kappa
    huber = np.where(np.abs(delta) <= kappa, delta**2 / 2, kappa * (np.abs(delta) - kappa / 2))
    tau = (np.arange(len(Y)) + 0.5)[:, None] / len(Y)
    return huber.sum() if config.head == "scalar" else (np.abs(tau - (delta < 0)) * huber / kappa).mean(axis=1).sum()


@pytest.mark.parametrize("name", CHANGES, indirect=True)
@pytest.mark.parametrize(("temperature", "clip"), [(0.03, -1.0), (0.5, -1.0), (0.5, -0.1)])
@pytest.mark.parametrize("terminated", [False, True])
def test_with_munchausen_targets_are_soft_ones_and_the_loss_is_the_same(algo, state, temperature, clip, terminated):
    changes = dict(munchausen=True, munchausen_temperature=temperature, munchausen_clip=clip)
    config, b = replace(algo.config, **changes), batch(terminated)
    online, before, following = (
        np.asarray(outputs(state, params, obs), np.float64)
        for params, obs in ((state.params, b.obs), (state.target_params, b.obs), (state.target_params, b.next_obs))
    )
    q_before, losses = numpy_means(before, config), []
    targets = np.asarray(targets_of(state, b, config)).reshape(6, -1)
    for i in range(6):
        t = jax.tree.map(lambda x, i=i: x[i], b)
        y = numpy_soft_target(following[i], q_before[i], t, config)
        assert_allclose(targets[i], y, rtol=1e-4, atol=1e-5)
        losses.append(numpy_loss(online[i][:, int(t.action)], y, config))
    assert_allclose(loss_of(state, b, config)[0], np.mean(losses), rtol=1e-4)


def test_munchausen_without_bonus_and_temperature_has_the_hard_targets(algo, state):
    # As t goes to 0 the softmax becomes the argmax and t ln pi of it 0; alpha = 0 takes the bonus away.
    config = replace(algo.config, munchausen=True, munchausen_alpha=0.0, munchausen_temperature=1e-6)
    # Not jitted: with XLA's optimizations off, as here, q is computed twice, and differs by a rounding of the size of t.
    key = jax.random.key(0)
    hard, soft = (q_learning.SIGNALS.compared(state.params, c, state, batch(), key)[1] for c in (algo.config, config))
    for a, b in zip(jax.tree.leaves(hard), jax.tree.leaves(soft), strict=True):
        assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("munchausen", [False, True])
def test_targets_have_nothing_of_actions_that_are_not_legal(algo, state, munchausen):
    # With one legal action a* is that one, pi(a*) = 1 and ln pi(a*) = 0; so is ln pi(a) of the one that was taken.
    midpoints = dict(tau_sampling="midpoints") if hasattr(algo.config, "tau_sampling") else {}
    config, b = replace(algo.config, munchausen=munchausen, **midpoints), batch()
    only = jax.nn.one_hot(jnp.arange(6) // 3, 2, dtype=bool)
    b = b._replace(legal=jax.nn.one_hot(b.action, 2, dtype=bool), next_legal=only)
    head, network = heads.of(config), nnx.merge(state.network, state.target_params)
    (tau,) = head.draw(jax.random.key(1), (6,), "tau_prime")
    predictions = values.predict(network, b.next_obs, tau, config)
    expected = jax.vmap(lambda Z, a, r: head.target(r, jnp.float32(0.9), Z.taken(a)))(
        predictions, only.argmax(axis=1), b.reward
    )
    found = targets_of(state, b, config)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["hl_gauss"], indirect=True)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
def test_hl_gauss_learns_the_histogram_of_the_mean(algo, state, double, terminated):
    config, b = replace(algo.config, double=double), batch(terminated, steps=3)
    online, following, selecting = (
        np.asarray(outputs(state, params, obs), np.float64)
        for params, obs in (
            (state.params, b.obs),
            (state.target_params, b.next_obs),
            (state.params if double else state.target_params, b.next_obs),
        )
    )
    a_star = numpy_means(selecting, config).argmax(axis=1)
    q_next = numpy_means(following, config)[np.arange(6), a_star]
    y = np.asarray(b.reward) + 0.9**3 * (1 - terminated) * q_next
    assert_allclose(targets_of(state, b, config), y, rtol=1e-5, atol=1e-6)
    losses = [numpy_loss(online[i][:, int(b.action[i])], y[i : i + 1], config) for i in range(6)]
    assert_allclose(loss_of(state, b, config)[0], np.mean(losses), rtol=1e-5)

    # Another distribution of the same mean is the same target: an even one, and one with all mass at its two ends.
    config, even = replace(config, num_atoms=3), Prediction(jnp.zeros(3))
    apart = Prediction(jnp.array([0.0, -jnp.inf, 0.0]))
    head = HLGaussHead(config)
    assert_allclose(*(head.target(jnp.float32(1), jnp.float32(0.9), Z) for Z in (even, apart)), rtol=1e-6)


def test_an_infinite_kappa_is_the_squared_error():
    algo = tiny("dqn", kappa=float("inf"))
    state, b = perturbed(algo.init(jax.random.key(0))), batch()
    y = b.reward + algo.config.gamma * outputs(state, state.target_params, b.next_obs)[:, 0].max(axis=1)
    delta = y - outputs(state, state.params, b.obs)[jnp.arange(6), 0, b.action]
    assert float(jnp.abs(delta).max()) > 1
    assert_allclose(loss_of(state, b, algo.config)[0], (delta**2 / 2).mean(), rtol=1e-5)


def test_hl_gauss_trains_with_soft_targets_and_consumes_its_keys_once():
    algo = agent("hl_gauss", munchausen=True, munchausen_temperature=0.1)
    with jax.debug_key_reuse(True):
        jax.jit(partial(train.train, *algo.arguments())).trace(jax.random.key(0))
    state, record = algo.records(jax.random.key(0))
    assert int(state.gradient_steps) == algo.config.gradient_steps
    assert np.isfinite(record.metrics.loss[1:]).all()
    before = algo.init(jax.random.key(0)).params
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("munchausen", [False, True])
def test_the_loss_depends_on_the_target_parameters_and_has_no_gradient_in_them(algo, state, munchausen):  # bug 1
    config = replace(algo.config, munchausen=munchausen)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def value_and_gradients(params, target_params):
        known = replace(state, target_params=target_params)
        return q_learning.loss(params, config, known, batch(), jax.random.key(0))[0]

    value, gradients = value_and_gradients(state.params, state.target_params)
    assert float(value) != float(value_and_gradients(state.params, state.params)[0])
    of_params, of_target_params = map(jax.tree.leaves, gradients)
    for leaf in of_target_params:
        assert_array_equal(leaf, 0)
    assert any(np.abs(leaf).max() > 0 for leaf in of_params)


def test_a_cut_bootstraps_and_an_end_does_not(algo, state):  # bug 5
    cut, going_on, ended = (
        float(loss_of(state, batch(*ends), algo.config)[0]) for ends in ((False, True), (False, False), (True, True))
    )
    assert cut == going_on != ended


@pytest.mark.parametrize("name", CHANGES, indirect=True)
def test_the_optimizer_moves_the_target_and_counts(name):
    algo = agent(name, target_update_freq=2, polyak=0.0)
    state = algo.init(jax.random.key(0))
    update = jax.jit(q_learning.step)
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
@pytest.mark.parametrize("name", each([*RLAX_HAS, "fqf"], first=["dqn"]))
def test_each_refinement_changes_what_is_learned(name, change):
    plain, refined = learned(name), learned(name, **change)
    leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in (plain, refined)]
    assert leaves[0].shape != leaves[1].shape or not np.array_equal(*leaves)
    assert all(np.isfinite(x).all() for x in leaves)


def test_examples_are_weighted_and_give_their_priorities(name):
    algo = agent(name, **({"share_tau": True} if name == "iqn" else {}))  # so that an example alone draws the same
    state = perturbed(algo.init(jax.random.key(0)))
    config, b = algo.config, batch(size=4)
    alone = [loss_of(state, jax.tree.map(lambda x, i=i: x[i : i + 1], b), config) for i in range(4)]
    weight = jnp.array([1.0, 0.5, 0.0, 0.25])
    value, (_, td_error, priority) = loss_of(state, b._replace(weight=weight), config)
    assert_allclose(value, jnp.mean(weight * jnp.stack([x[0] for x in alone])), rtol=1e-4)
    assert_allclose(priority, jnp.concatenate([aux[2] for _, aux in alone]), rtol=1e-5, atol=5e-7)
    if name != "c51":
        assert_array_equal(priority, td_error)


def test_the_priority_of_c51_is_the_divergence_from_its_target():
    algo = tiny("c51", gamma=0.9)
    state, b = perturbed(algo.init(jax.random.key(0))), batch()
    *_, priority = loss_of(state, b, algo.config)[1]
    logits, targets = outputs(state, state.params, b.obs), targets_of(state, b, algo.config)
    for i in range(6):
        log_q = log_softmax(np.asarray(logits[i], float)[:, int(b.action[i])])
        kl = sum(p * (np.log(p) - q) for p, q in zip(np.asarray(targets[i], float), log_q, strict=True) if p > 0)
        assert_allclose(priority[i], kl, rtol=1e-5, atol=1e-7)


def test_learned_steps_have_no_priority_by_c51_alone_and_under_vmap():
    algo = tiny("c51", gamma=1.0)
    state, b = algo.init(jax.random.key(0)), batch()
    learned = b._replace(
        action=jnp.array(numpy_means(outputs(state, state.params, b.obs), algo.config).argmax(axis=1)),
        reward=jnp.zeros(6),
        next_obs=b.obs,
    )
    alone = loss_of(state, learned, algo.config)[1][-1]
    one_by_one = jax.vmap(lambda t: loss_of(state, jax.tree.map(lambda x: x[None], t), algo.config)[1][-1])
    assert_allclose(np.append(alone, one_by_one(learned)), 0, atol=1e-11)


def test_a_gradient_step_keeps_the_priorities_of_its_batch_and_the_next_one_writes_them(name):
    algo = agent(name, prioritized=True, priority_exponent=0.7)
    state = algo.init(jax.random.key(0))
    update = jax.jit(q_learning.step)
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


def test_noisy_layers_explore_without_epsilon_and_evaluations_have_no_noise(name):
    off = {"eps_start": 0.0, "eps_end": 0.0}
    fractions = {"acting_tau_sampling": "midpoints"} if name == "iqn" else {}
    algo = agent(name, noisy=True, **off, **fractions)
    state, _ = algo.train(jax.random.key(0))
    keys, obs = jax.random.split(jax.random.key(1), 200), state.envs.obs[0]

    def actions(noise):
        policy = q_learning.behaviour(algo.config, state, 0.0, noise)
        return jax.vmap(lambda key: policy.act(obs, policy.carry, key, None)[0])(keys)

    evaluated = jax.vmap(algo.policy(state), in_axes=(None, 0))(obs, keys)
    assert len(set(evaluated.tolist())) == 1
    assert set(actions(noise=False).tolist()) == set(evaluated.tolist())
    assert len(set(actions(noise=True).tolist())) == 2


def test_with_double_the_action_is_selected_by_the_parameters_given_for_it(name):
    algo = agent(name, gamma=0.9)
    state, b = perturbed(algo.init(jax.random.key(0))), batch(size=32)
    double, key = replace(algo.config, double=True), jax.random.key(0)

    @jax.jit
    def by_selector(state, selector, config, b, key):
        networks, head = (state.params, state.target_params, selector), heads.of(config)
        predictions, y = q_learning.compared(config, state, networks, b, key)
        return jax.vmap(head.loss)(predictions, y).mean()

    selected_by = partial(by_selector, state, config=double, b=b, key=key)
    of_online = loss_of(state, b, double)[0]
    assert_array_equal(selected_by(state.params), of_online)
    by_target = selected_by(state.target_params)
    assert_allclose(by_target, loss_of(state, b, algo.config)[0], rtol=1e-6)
    assert abs(float(by_target - of_online)) > 1e-4


def test_noise_is_drawn_independently_for_each_network_and_each_observation_of_the_loss(monkeypatch):
    algo = tiny("dqn", noisy=True, double=True)
    state, drawn, compared = algo.init(jax.random.key(0)), [], q_learning.compared

    def noted(config, network, networks, batch, key):
        drawn.extend(networks)
        return compared(config, network, networks, batch, key)

    monkeypatch.setattr(q_learning, "compared", noted)
    q_learning.loss(state.params, algo.config, state, batch(), jax.random.key(1))
    assert len(drawn) == 3
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
    config = tiny("c51", num_atoms=3, v_min=-1.0, v_max=1.0).config
    logits = jnp.log(jnp.array([[0.25, 1e-9], [0.25, 1e-9], [0.5, 1.0]]))
    tau = jnp.array([0.1, 0.24, 0.3, 0.49, 0.6, 1.0])
    found = CategoricalHead(config).quantiles(lambda psi: logits, jnp.zeros(1), tau)
    assert found.tolist() == [[-1, 1], [-1, 1], [0, 1], [0, 1], [1, 1], [1, 1]]


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


class Deadline(TimeLimit):
    """Reports the time limit as a termination."""

    def step(self, key, state, action):
        state, told = super().step(key, state, action)
        return state, told._replace(terminated=told.truncated, truncated=told.terminated)


@pytest.mark.parametrize("name", each(("dqn", "iqn", "pqn"), ["dqn"]))
def test_without_its_bootstrap_a_cut_is_learned_from_as_an_end_to_the_bit(name):
    settings = dict(gamma=0.9, learning_rate=1e-2)
    with pytest.warns(ConfigWarning, match="bootstrap_truncated=false teaches"):
        cut = tiny(name, TimeLimit(limit=4), **settings, bootstrap_truncated=False)
    state, record = cut.records(jax.random.key(0))
    ended_state, ended = tiny(name, Deadline(limit=4), **settings).records(jax.random.key(0))
    assert_same_bits((state.params, record.returns), (ended_state.params, ended.returns))
