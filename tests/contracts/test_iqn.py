"""IQN against an independent evaluation of the paper's equations, and against the known bugs of other implementations.

What holds for the replay of each head is asked of DQN, which compiles sooner.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax

from quantilax import IQN, ConfigError, ConfigWarning, fractions, replay, train
from quantilax.algorithms import q_learning
from quantilax.types import NStep
from tests.conftest import tiny
from tests.hlo import copies_in_loops


def perturbed(params, scale=0.5, seed=9):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.fixture
def algo():
    return tiny("iqn", gamma=0.9, kappa=0.7)


@pytest.fixture
def state(algo):
    state = algo.init(jax.random.key(0))
    return replace(state, target_params=perturbed(state.params))


def transition(terminated=False, truncated=False, steps=1):
    obs, next_obs = jax.random.normal(jax.random.key(4), (2, 6))
    ends = jnp.array(terminated), jnp.array(truncated)
    return NStep(obs, jnp.array(1), jnp.array(0.5), next_obs, *ends, jnp.array(steps))


def numpy_network(params):
    """Z(x, tau) in numpy, written from the paper alone."""
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(params))

    def dense(layer, x):
        return x @ layer["kernel"].astype(np.float64) + layer["bias"]

    def Z(x, tau):
        psi = np.maximum(dense(p["psi"]["layers"][0], np.asarray(x, np.float64)), 0)
        cos = np.cos(np.pi * np.outer(tau, np.arange(1, 9)))
        phi = np.maximum(dense(p["head"]["embedding"]["linear"], cos), 0)
        hidden = np.maximum(dense(p["head"]["f"]["mlp"]["layers"][0], psi * phi), 0)
        return dense(p["head"]["f"]["out"], hidden)

    return Z


def numpy_loss(state, t, taus, config):
    """The loss of one transition in numpy, written from the papers alone; `taus`: tau, tau' and tau''."""
    tau, tau_prime, tau_action = (np.asarray(x, np.float64) for x in taus)
    online, target = numpy_network(state.params), numpy_network(state.target_params)
    z, reward = online(t.obs, tau)[:, int(t.action)], float(t.reward)
    if config.munchausen:
        temperature = config.munchausen_temperature
        log_pi, log_pi_next = (
            log_softmax(target(x, tau_action).mean(axis=0) / temperature) for x in (t.obs, t.next_obs)
        )
        soft = target(t.next_obs, tau_prime) - temperature * log_pi_next
        z_next = (np.exp(log_pi_next) * soft).sum(axis=1)
        bonus = max(temperature * log_pi[int(t.action)], config.munchausen_clip)
        reward += config.munchausen_alpha * bonus
    else:
        a_star = (online if config.double else target)(t.next_obs, tau_action).mean(axis=0).argmax()
        z_next = target(t.next_obs, tau_prime)[:, a_star]
    total = 0.0
    for i in range(len(tau)):
        for j in range(len(tau_prime)):
            delta = reward + config.gamma ** int(t.steps) * (1 - float(t.terminated)) * z_next[j] - z[i]
            k = config.kappa
            huber = 0.5 * delta**2 if abs(delta) <= k else k * (abs(delta) - 0.5 * k)
            total += abs(tau[i] - (delta < 0)) * huber / k
    return total / len(tau_prime)


NUMBERS = 4, 3, 5
"""N, N' and K of `tiny("iqn")`."""


loss_function = jax.jit(q_learning.loss)


def loss_of_one(state, t, key, config):
    return loss_function(state.params, config, state, batch_of(t), key)[0]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_loss_is_the_papers(algo, state, double, terminated, steps):
    config = replace(algo.config, double=double)
    for seed in range(5):
        key, t = jax.random.key(seed), transition(terminated, steps=steps)
        taus = [tau[0] for tau in fractions.draw(key, "uniform", (1,), NUMBERS)]
        assert_allclose(loss_of_one(state, t, key, config), numpy_loss(state, t, taus, config), rtol=1e-4)


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize(("temperature", "clip"), [(0.03, -1.0), (0.5, -1.0), (2.0, -1.0), (0.5, -0.1)])
def test_the_loss_with_munchausen_is_that_of_its_paper(algo, state, terminated, temperature, clip):
    config = replace(algo.config, munchausen=True, munchausen_temperature=temperature, munchausen_clip=clip)
    for seed in range(5):
        key = jax.random.key(seed)
        t = transition(terminated)._replace(action=jnp.array(seed % 2))  # the better action and the worse
        taus = [tau[0] for tau in fractions.draw(key, "uniform", (1,), NUMBERS)]
        assert_allclose(loss_of_one(state, t, key, config), numpy_loss(state, t, taus, config), rtol=1e-4)


def test_munchausen_without_bonus_and_temperature_is_iqn(algo, state):
    # As t goes to 0 the softmax becomes the argmax and t ln pi of it 0; alpha = 0 takes the bonus away.
    config = replace(algo.config, munchausen=True, munchausen_alpha=0.0, munchausen_temperature=1e-6)
    for seed in range(5):
        key = jax.random.key(seed)
        batch = batch_of(transition())
        values = (q_learning.loss(state.params, c, state, batch, key)[0] for c in (algo.config, config))
        assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"), [({"double": True}, "double: "), ({"n_step": 2}, "n_step: 2 with munch")]
)
def test_what_munchausen_does_not_define_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        tiny("iqn", munchausen=True, **fields)


def test_double_changes_which_network_selects(algo, state):
    values = [
        [loss_of_one(state, transition(), jax.random.key(s), c) for s in range(20)]
        for c in (algo.config, replace(algo.config, double=True))
    ]
    assert not np.allclose(*values)


def loss_of(algo, state, batch):
    def value(params, target_params):
        known = replace(state, target_params=target_params)
        return q_learning.loss(params, algo.config, known, batch, jax.random.key(0))[0]

    return value


def batch_of(*transitions):
    return jax.tree.map(lambda *x: jnp.stack(x), *transitions)


def test_the_loss_depends_on_the_target_parameters(algo, state):  # bug 1
    value = loss_of(algo, state, batch_of(transition(), transition()))
    assert float(value(state.params, state.target_params)) != float(
        value(state.params, perturbed(state.params, 1.0, 3))
    )


def test_the_loss_has_no_gradient_in_the_target_parameters(algo, state):  # bug 1
    value = loss_of(algo, state, batch_of(transition(), transition()))
    for leaf in jax.tree.leaves(jax.grad(value, argnums=1)(state.params, state.target_params)):
        assert_array_equal(leaf, 0)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.grad(value)(state.params, state.target_params)))


def test_a_terminal_transition_does_not_depend_on_the_target_parameters(algo, state):
    value = loss_of(algo, state, batch_of(transition(terminated=True)))
    assert float(value(state.params, state.target_params)) == float(value(state.params, state.params))


def test_a_truncated_transition_bootstraps_from_its_true_successor(algo, state):  # bug 5
    cut, going_on = (loss_of(algo, state, batch_of(transition(truncated=t))) for t in (True, False))
    assert float(cut(state.params, state.target_params)) == float(going_on(state.params, state.target_params))
    ended = loss_of(algo, state, batch_of(transition(terminated=True, truncated=True)))
    assert float(ended(state.params, state.target_params)) != float(cut(state.params, state.target_params))


def test_the_target_equals_the_online_network_at_step_0(algo):  # bugs 2 and 3: warm-up included
    state = algo.init(jax.random.key(0))
    assert int(state.env_steps) == 40
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.target_params), strict=True):
        assert_array_equal(a, b)


def targets_by_hand(algo, updates):
    """Run single updates and move the target as the config's comment says."""
    state, update = algo.init(jax.random.key(0)), jax.jit(q_learning.step)
    expected = state.params
    for n in range(1, updates + 1):
        state, _ = update(algo.config, state, jax.random.key(n))
        if n % algo.config.target_update_freq == 0:
            p = algo.config.polyak
            expected = jax.tree.map(lambda t, o, p=p: p * t + (1 - p) * o, expected, state.params)
    return state.target_params, expected


@pytest.mark.parametrize(("polyak", "period"), [(0.9, 1), (0.0, 1), (0.0, 3)])
def test_the_target_moves_once_per_gradient_step_by_polyak_or_by_hard_copies(polyak, period):  # bug 3
    got, expected = targets_by_hand(tiny("iqn", polyak=polyak, target_update_freq=period), 7)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_target_moves_with_gradient_steps_not_with_iterations(algo):  # bug 3
    # Six gradient steps in one iteration (num_epochs) with a period of three: two copies, the last with the final weights.
    algo = tiny("iqn", num_epochs=6, polyak=0.0, target_update_freq=3)
    state, _ = algo.step(algo.init(jax.random.key(0)))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.target_params), strict=True):
        assert_array_equal(a, b)


def test_gradients_are_clipped_by_their_global_norm():  # bug 4
    optimizer = q_learning.optimizer(tiny("iqn", max_grad_norm=5.0).config)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init(params))
    moments = [x for x in jax.tree.leaves(state) if x.shape == (2,)]
    assert_allclose(
        moments[0], [0.1 * 3, 0.1 * 4], rtol=1e-5
    )  # (1 - b1) times the gradient scaled to norm 5: direction kept


def test_the_epsilon_of_adam_and_the_learning_rate_reach_the_step():
    config = tiny("iqn", max_grad_norm=float("inf"), learning_rate=0.1, learning_rate_end=1.0, adam_eps=3.0).config
    optimizer = q_learning.optimizer(config)
    updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
    assert_allclose(updates, -0.1 * 4 / (4 + 3.0), rtol=1e-5)  # Adam's first step: lr g / (|g| + eps)


def test_the_learning_rate_falls_linearly_to_its_end():
    algo = tiny("iqn", learning_rate=1.0, learning_rate_end=0.2, adam_eps=1e-8)
    optimizer, n = q_learning.optimizer(algo.config), algo.config.gradient_steps
    state, sizes = optimizer.init(jnp.zeros(1)), []
    for _ in range(n + 1):
        updates, state = optimizer.update(jnp.array([1.0]), state)
        sizes.append(-float(updates[0]))
    assert_allclose(sizes[0], 1.0, rtol=1e-4)
    assert_allclose(sizes[n // 2], 0.6, rtol=1e-2)
    assert_allclose(sizes[n], 0.2, rtol=1e-4)


@pytest.mark.parametrize("risk", ["cvar", "wang", "power", "cpw"])
def test_risk_distortion_does_not_reach_the_loss(state, risk):  # bug 7
    neutral, averse = tiny("iqn"), tiny("iqn", risk=risk, risk_eta=0.3)
    values = [
        loss_of(algo, state, batch_of(transition()))(state.params, state.target_params) for algo in (neutral, averse)
    ]
    assert float(values[0]) == float(values[1])


def test_an_averse_policy_prefers_the_safe_action_of_equal_mean():
    # A risky action of mean .5 (quantiles from -1 to 2) against a safe one that always gives .4.
    neutral = tiny("iqn", num_quantile_samples=2000)
    network = ByHand()
    graphdef, params = nnx.split(network)
    state = replace(neutral.init(jax.random.key(0)), network=graphdef, average_params=params)
    act = {
        risk: tiny("iqn", num_quantile_samples=2000, risk=risk, risk_eta=0.25).policy(state)
        for risk in ("neutral", "cvar")
    }
    obs = jnp.zeros(6)
    assert int(act["neutral"](obs, jax.random.key(0))) == 0
    assert int(act["cvar"](obs, jax.random.key(0))) == 1


class ByHand(nnx.Module):
    """Z of action 0: -1 + 3 tau; of action 1: always .4."""

    def __init__(self):
        self.unused = nnx.Param(jnp.zeros(1))

    def psi(self, obs):
        return jnp.zeros(1)

    def head(self, psi, tau):
        return jnp.stack([-1 + 3 * tau, jnp.full_like(tau, 0.4)], axis=-1) + self.unused[...] * 0


def test_a_star_is_the_argmax_of_the_mean_not_of_each_quantile(state):  # bug 8
    # Action 0 has mean .5, action 1 always .4: every target is a quantile of action 0, also where it lies below .4.
    algo = tiny("iqn", num_quantile_samples=4000, num_tau_prime_samples=50, num_tau_samples=1, gamma=1.0)
    graphdef, params = nnx.split(ByHand())
    t = transition()._replace(reward=jnp.array(0.0))
    key = jax.random.key(0)
    state = replace(state, network=graphdef, target_params=params)
    value, (z, *_) = q_learning.loss(params, algo.config, state, batch_of(t), key)
    (tau,), (tau_prime,), _ = fractions.draw(key, "uniform", (1,), (1, 50, 4000))
    delta = (-1 + 3 * np.asarray(tau_prime)) - 0.4  # Z(x, a=1) = .4
    huber = np.where(np.abs(delta) <= 1, 0.5 * delta**2, np.abs(delta) - 0.5)
    assert_allclose(value, (np.abs(float(tau[0]) - (delta < 0)) * huber).mean(), rtol=1e-4)
    assert float(z[0]) == pytest.approx(0.4)


@pytest.mark.parametrize("sampler", fractions.SAMPLERS)
@pytest.mark.parametrize("share", [False, True])
def test_each_example_draws_its_own_fractions_unless_they_are_shared(algo, state, share, sampler):
    config = replace(algo.config, share_tau=share, tau_sampling=sampler)
    batch = [transition()._replace(obs=jnp.full(6, x)) for x in jnp.linspace(-1, 1, 8)]
    key = jax.random.key(0)
    taus = fractions.draw(key, sampler, () if share else (8,), NUMBERS)
    sets = [[np.broadcast_to(tau, (8, tau.shape[-1]))[i] for tau in taus] for i in range(8)]
    assert len({s[0].tobytes() for s in sets}) == (1 if share or sampler == "midpoints" else 8)
    value, _ = q_learning.loss(state.params, config, state, batch_of(*batch), key)
    expected = np.mean([numpy_loss(state, t, s, config) for t, s in zip(batch, sets, strict=True)])
    assert_allclose(value, expected, rtol=1e-4)


def test_the_acting_policy_draws_its_fractions_as_told(state):
    # Action 0 has mean .5 and is spread from -1 to 2; action 1 always gives .4: only midpoints never err.
    graphdef, params = nnx.split(ByHand())
    chosen = {}
    for sampler in ("uniform", "midpoints"):
        algo = tiny("iqn", acting_tau_sampling=sampler, eval_epsilon=0.0)
        act = algo.policy(replace(state, network=graphdef, average_params=params))
        chosen[sampler] = {int(act(jnp.zeros(6), jax.random.key(seed))) for seed in range(20)}
    assert chosen == {"uniform": {0, 1}, "midpoints": {0}}


def test_quantiles_take_any_number_of_leading_axes(algo, state):
    taus = jnp.array([0.1, 0.5, 0.9])
    obs = jax.random.normal(jax.random.key(0), (2, 3, 6))
    Z = algo.quantiles(state, obs, taus)
    assert Z.shape == (2, 3, 3, 2)
    assert algo.quantiles(state, obs[0, 0], taus).shape == (3, 2)
    assert_allclose(Z[1, 2], numpy_network(state.params)(obs[1, 2], taus), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="expected observations"):
        algo.quantiles(state, obs[..., :5], taus)


def test_an_algorithm_without_quantiles_says_so():
    algo = tiny("dqn")
    with pytest.raises(ConfigError, match="dqn learns expected values, no quantiles; use iqn"):
        algo.quantiles(algo.init(jax.random.key(0)), jnp.zeros(6), jnp.array([0.5]))


def test_warm_up_fills_the_replay_with_random_actions_and_counts_its_steps():
    algo = tiny("iqn", fill_buffer=90, buffer_size=100)
    state = algo.init(jax.random.key(0))
    assert int(state.env_steps) == int(state.replay.size) == 92  # whole iterations of four environments
    share = np.asarray(state.replay.rows.action)[:23].mean()
    assert 0.3 < share < 0.7
    assert int(state.gradient_steps) == 0


def test_the_replay_holds_what_the_environment_gave_also_with_normalisation():
    algo = tiny("dqn", normalize_observations=True, normalize_rewards=True)
    ring = algo.train(jax.random.key(0))[0].replay
    assert set(np.unique(ring.observations)) == {0.0, 1.0}
    assert set(np.unique(ring.rows.reward)) <= {0.0, 1.0}


@pytest.mark.parametrize(("n", "prioritized"), [(1, True), pytest.param(3, False, marks=pytest.mark.validation)])
def test_training_copies_no_replay_in_its_loops(n, prioritized):  # bug 10, and docs/decisions/0002
    algo = tiny("dqn", buffer_size=54_321, n_step=n, prioritized=prioritized)
    algorithm, env, config = algo.arguments()
    ring = jax.eval_shape(algo.init, jax.random.key(0)).replay
    rows, slots = ring.rows.reward.shape[0], ring.observations.shape[0]
    assert 54_321 / 4 < rows < slots
    for seeds in (None, 3):
        run, key = partial(train.train, algorithm, env, config), jax.random.key(0)
        if seeds:
            run, key = jax.vmap(run), jax.random.split(key, seeds)
        program = jax.jit(run).lower(key).compile()
        assert copies_in_loops(program, rows) == copies_in_loops(program, slots) == 0
        assert copies_in_loops(program, -(-rows * 4 // 32)) == 0  # rows of the sum tree


@pytest.mark.parametrize("normalize_rewards", [False, True])
def test_an_update_learns_from_n_steps_of_the_replay_with_its_own_discount(monkeypatch, normalize_rewards):
    algo = tiny("dqn", n_step=3, gamma=0.5, normalize_rewards=normalize_rewards)
    state, _ = algo.train(jax.random.key(0))
    ring, seen = state.replay, []
    monkeypatch.setattr(q_learning, "loss", lambda params, *args: seen.append(args[2]) or loss_of_params(params))
    q_learning.step(algo.config, state, jax.random.key(1))
    batch = replay.sample(ring, jax.random.split(jax.random.key(1))[0], algo.config.batch_size, 0.5)
    assert set(np.unique(batch.steps)) > {3}
    assert_array_equal(seen[0].steps, batch.steps)
    std = np.sqrt(state.normalizer.reward.moments.variance + 1e-8) if normalize_rewards else 1
    assert_allclose(seen[0].reward, batch.reward / std, rtol=1e-6)


def loss_of_params(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), (jnp.zeros(1),) * 3


GOOD = dict(env="probe/corridor")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(batch_size=8), "batch_size=8 with 1-step targets"),
        (dict(fill_buffer=32), "fill_buffer=32 is smaller than batch_size=64"),
        (dict(fill_buffer=100_000), "no gradient step is taken"),
        (dict(polyak=0.9, target_update_freq=100), "both active"),
        (dict(eval_freq=7_000), "does not divide"),
        (dict(buffer_size=40), "buffer_size=40 is smaller than batch_size=64"),
        (dict(exploration_fraction=1.0), "exploration never ends"),
        (dict(eps_end=0.5), "exploration never ends"),
    ],
)
def test_a_setting_known_to_mislead_warns_once_with_the_remedy(settings, words):
    with pytest.warns(ConfigWarning, match=words) as caught:
        algo = IQN.create(**GOOD, **settings)
    assert len(caught) == 1
    assert any(remedy in str(caught[0].message) for remedy in ("set ", "raise ", "lower ", "choose "))
    algo.replace(learning_rate=1e-4)  # no second warning: it would be an error here


def test_the_settings_of_the_investigation_and_the_defaults_do_not_warn():
    IQN.create(**GOOD)
    IQN.create(
        env="CartPole-v1", num_envs=10, batch_size=64, num_epochs=5, buffer_size=100_000, fill_buffer=5_000,
        learning_rate=3e-4, max_grad_norm=10, total_timesteps=100_000, eval_freq=5_000, target_update_freq=1, polyak=0.95,
        num_tau_samples=64, num_tau_prime_samples=64, kappa=1.0, eps_start=1, eps_end=0.01, exploration_fraction=0.5,
        gamma=0.99, normalize_observations=False,
    )  # fmt: skip


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="buffer_size: 5 cannot hold one step of num_envs=10"):
        IQN.create(**GOOD, buffer_size=5, batch_size=16)
    with pytest.raises(ConfigError, match="total_timesteps: 5 is less than one step of num_envs=10"):
        IQN.create(**GOOD, total_timesteps=5)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(buffer_size=49), "buffer_size: 49 cannot hold n_step=5 steps of num_envs=10; raise it to 50 or more"),
        (
            dict(total_timesteps=49),
            "total_timesteps: 49 is less than n_step=5 steps of num_envs=10; raise it to 50 or more",
        ),
        (
            dict(fill_buffer=30),
            "fill_buffer: 30 and one step of num_envs=10 are less than n_step=5 steps, which the first gradient step reads;"
            " raise it to 40 or more",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::quantilax.ConfigWarning")
def test_what_is_too_small_for_n_steps_is_refused_and_the_least_that_is_not_is_enough(settings, line):
    least = dict(buffer_size=50, fill_buffer=40, total_timesteps=50, eval_freq=50, eval_episodes=1, n_step=5)
    with pytest.raises(ConfigError) as caught:
        IQN.create(**GOOD, **{**least, **settings})
    assert str(caught.value) == line
    algo = IQN.create(**GOOD, **least)
    state, _ = algo.step(algo.init(jax.random.key(0)))
    assert int(state.replay.size) == 50
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
