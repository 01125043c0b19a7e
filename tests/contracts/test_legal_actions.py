"""Masks of legal actions, from environment to policy: no illegal action is ever taken or learned."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import quantilax
from quantilax import ALGORITHMS, Box, ConfigError, Discrete, TimeStep, envs, pytree
from quantilax.agent import create
from quantilax.algorithms import q_learning, values
from quantilax.envs.wrappers import StickyActions
from quantilax.heads import HEADS
from quantilax.learning import exploration, rollout
from tests.conftest import TINY, each, tiny
from tests.trees import assert_same_bits

A = 5


@pytree.dataclass
class Doors:
    """Some of five doors are open, and the observation shows which. A closed one pays -100, an open one its number.

    Episodes end by chance, or are cut off after three steps; behind an end no door is open.
    """

    name = "doors"
    observation_space = Box((A,))
    action_space = Discrete(A)
    max_episode_steps = 3

    def doors(self, key):
        key, key_one = jax.random.split(key)
        is_open = jax.random.bernoulli(key, 0.3, (A,))
        return is_open.at[jax.random.randint(key_one, (), 0, A)].set(True)

    def reset(self, key):
        legal = self.doors(key)
        return (legal, jnp.zeros((), jnp.int32)), legal.astype(jnp.float32), legal

    def step(self, key, state, action):
        key_end, key_next, key_reset = jax.random.split(key, 3)
        legal, t = state
        ended, cut = jax.random.bernoulli(key_end, 0.2), t == 2
        follows = self.doors(key_next) & ~ended
        begins = jnp.where(ended | cut, self.doors(key_reset), follows)
        told = TimeStep(
            obs=begins.astype(jnp.float32),
            next_obs=follows.astype(jnp.float32),
            reward=jnp.where(legal[action], action.astype(jnp.float32), -100.0),
            terminated=ended,
            truncated=cut,
            legal=begins,
            next_legal=follows,
        )
        return (begins, jnp.where(ended | cut, 0, t + 1)), told


def collected(policy, steps=60, num_envs=8, env=None):
    """Transitions by a policy, leading axes (steps, num_envs)."""
    env = envs.as_environment(Doors() if env is None else env)
    start = rollout.reset(env, jax.random.split(jax.random.key(0), num_envs), policy.carry)
    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda: jax.lax.scan(lambda e, key: rollout.step(env, policy, e, key), start, keys)[1])()


def are_legal(transitions) -> bool:
    """Whether all actions were legal by the masks, which must agree with rewards and observations."""
    action = np.asarray(transitions.action)[..., None]
    legal = np.take_along_axis(np.asarray(transitions.legal), action, axis=-1)
    assert_array_equal(np.asarray(transitions.legal), np.asarray(transitions.obs) > 0.5)
    assert_array_equal(legal[..., 0], np.asarray(transitions.reward) >= 0)
    return bool(legal.all())


LOOPS = ("q_learning", "pqn")


def learner(loop, head, **changes):
    """A tiny agent of a loop with a head."""
    settings = {**TINY[loop], "head": head, "num_atoms": 7, "v_min": -2.0, "v_max": 9.0, **changes}
    return create(ALGORITHMS[loop], Doors(), settings)


def test_the_probe_would_show_illegal_actions():
    blind = rollout.Policy(lambda obs, carry, key, legal: (jax.random.randint(key, (), 0, A), carry))
    assert not are_legal(collected(blind))


def test_random_actions_are_any_of_the_legal_ones_with_equal_chances():
    transitions = collected(rollout.random_action(Doors()), steps=500)
    assert are_legal(transitions)
    legal, action = (np.asarray(x).reshape(-1, *x.shape[2:]) for x in (transitions.legal, transitions.action))
    chances = legal / legal.sum(axis=1, keepdims=True)
    assert_allclose(np.bincount(action, minlength=A) / len(action), chances.mean(axis=0), atol=0.03)


def test_random_actions_that_go_on_stop_where_they_are_not_legal_any_more():
    def share_that_goes_on(policy):
        """How often the action is repeated, among the steps after which it is still legal."""
        transitions = collected(policy, steps=400)
        assert are_legal(transitions)
        last, legal = np.asarray(transitions.action)[:-1], np.asarray(transitions.legal)[1:]
        goes_on = np.take_along_axis(legal, last[..., None], axis=-1)[..., 0]
        goes_on &= ~np.asarray(transitions.terminated | transitions.truncated)[:-1]
        return np.asarray(transitions.action[1:] == last)[goes_on].mean()

    once = rollout.random_action(Doors())
    assert share_that_goes_on(exploration.repeating(once, 1.0, A, 20)) > share_that_goes_on(once) + 0.15


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("head", each(HEADS, first=("implicit_quantile",)))
def test_every_pair_acts_legally_while_it_learns_and_when_it_is_evaluated(loop, head):
    _acts_legally(learner(loop, head, eval_epsilon=0.3, eps_end=0.2))


def test_ppo_acts_legally_while_it_learns_and_when_it_is_evaluated():
    _acts_legally(learner("ppo", "scalar", eval_epsilon=0.3))


def _acts_legally(algo):
    state, record = algo.records(jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert (np.asarray(record.returns) >= 0).all()
    assert np.isfinite(np.asarray(record.metrics.loss[1:])).all()
    for policy in (
        algo.algorithm.act(algo.env, algo.config, state),
        algo.algorithm.policy(algo.env, algo.config, state),
    ):
        assert are_legal(collected(policy))


@pytest.fixture(scope="module")
def trained():
    """A tiny agent and its last state."""
    algo = tiny("dqn", Doors(), gamma=0.9)
    return algo, algo.train(jax.random.key(0))[0]


REFINED = [dict(noisy=True), dict(exploration_repeats=5), dict(prioritized=True, n_step=2)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(functools.reduce(operator.or_, REFINED), id="all"),
        *(pytest.param(one, id="_".join(one), marks=pytest.mark.validation) for one in REFINED),
    ],
)
def test_the_steps_in_the_replay_are_legal_and_have_their_masks_at_cuts_too(changes):
    algo = tiny("dqn", Doors(), **changes)
    state, _ = algo.train(jax.random.key(0))
    assert (np.asarray(state.replay.rows.reward) >= 0).all()
    batch = q_learning.draw(algo.config, state, jax.random.key(1), 256)[0]
    assert_array_equal(batch.legal, np.asarray(batch.obs) > 0.5)
    goes_on = ~np.asarray(batch.terminated)
    assert np.asarray(batch.truncated)[goes_on].any()
    assert_array_equal(np.asarray(batch.next_legal)[goes_on], np.asarray(batch.next_obs)[goes_on] > 0.5)


@pytest.mark.parametrize("changes", [{}, dict(double=True), dict(munchausen=True)], ids=["max", "double", "soft"])
def test_targets_are_those_of_the_legal_actions_at_the_successor(changes, trained):
    algo, state = trained
    config = algo.replace(munchausen_temperature=0.5, **changes).config
    batch = q_learning.draw(config, state, jax.random.key(1), 64)[0]
    networks = state.params, state.target_params, state.params
    _, y = jax.jit(q_learning.compared)(config, state, networks, batch, jax.random.key(2))

    def q(params, obs):
        network = q_learning.nnx.merge(state.network, params)
        return np.asarray(values.means(values.predict(network, obs, None, config), config), np.float64)

    q_next, q_online, q_before = q(state.target_params, batch.next_obs), q(state.params, batch.next_obs), None
    if config.munchausen:
        q_before = q(state.target_params, batch.obs)
    t = config.munchausen_temperature
    for i in range(64):
        legal = np.flatnonzero(batch.next_legal[i])
        future = 0.0
        reward = float(batch.reward[i])
        if not batch.terminated[i]:
            if config.munchausen:
                t_log_pi = q_next[i, legal] - t * np.log(np.exp(q_next[i, legal] / t).sum())
                future = (np.exp(t_log_pi / t) * (q_next[i, legal] - t_log_pi)).sum()
            else:
                future = q_next[i, legal[(q_online if config.double else q_next)[i, legal].argmax()]]
        if config.munchausen:
            could = np.flatnonzero(batch.legal[i])
            bonus = q_before[i, batch.action[i]] - t * np.log(np.exp(q_before[i, could] / t).sum())
            reward += config.munchausen_alpha * np.clip(bonus, config.munchausen_clip, 0)
        assert_allclose(y[i], reward + 0.9 * future, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("munchausen", [False, True])
def test_lambda_returns_bootstrap_from_legal_actions(munchausen):
    # With lambda 0 the target of a step is its own: r + gamma v(x'), v over the legal actions.
    algo = learner("pqn", "scalar", lambda_=0.0, gamma=0.9, munchausen=munchausen, munchausen_alpha=0.0)
    env, config, state = algo.env, algo.config, algo.init(jax.random.key(0))
    algorithm = algo.algorithm
    act = lambda config, state: algorithm.act(env, config, state)  # noqa: E731
    state, seen = rollout.collect(env, config, act, state, jax.random.key(1))
    observed = algorithm.observe(config, state, seen, jax.random.key(2))
    network = q_learning.nnx.merge(state.network, state.params)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    q = np.asarray(values.means(values.predict(network, flat.next_obs, None, config), config), np.float64)
    t = config.munchausen_temperature
    for i, target in enumerate(np.asarray(observed.rows.target)):
        legal = np.flatnonzero(flat.next_legal[i])
        v = 0.0
        if not flat.terminated[i]:
            v = q[i, legal].max() + (
                t * np.log(np.exp((q[i, legal] - q[i, legal].max()) / t).sum()) if munchausen else 0
            )
        assert_allclose(target, float(flat.reward[i]) + 0.9 * v, rtol=1e-4, atol=1e-5)


@pytest.mark.validation
def test_signals_are_measured_over_legal_actions():
    _, record = tiny("iqn", Doors(), signals=True).records(jax.random.key(0))
    for name in ("policy_churn", "action_gap", "reference_error", "exploration", "start_return"):
        assert np.isfinite(np.asarray(getattr(record.signals, name))).all(), name


def test_masked_values_are_minus_infinity_unless_no_action_is_legal():
    q, legal = jnp.array([[3.0, 1.0, 2.0]] * 2), jnp.array([[False, True, True], [False] * 3])
    assert_array_equal(exploration.masked(q, legal), [[-np.inf, 1, 2], [3, 1, 2]])
    assert exploration.masked(q, None) is q


@pytest.mark.validation
def test_sticky_actions_are_legal_too():
    env = StickyActions(env=Doors(), probability=0.9)
    transitions = collected(rollout.random_action(env), steps=200, env=env)
    assert (np.asarray(transitions.reward) >= 0).all()
    assert np.mean(np.asarray(transitions.action)[..., None] == np.asarray(transitions.reward)[..., None]) < 0.9


def test_a_policy_is_given_the_mask_and_refuses_to_go_without():
    algo = tiny("iqn", Doors())
    policy, key = algo.policy(algo.init(jax.random.key(0))), jax.random.key(1)
    one = jnp.arange(A) == 3
    assert int(policy(jnp.zeros(A), key, one)) == 3
    for legal, line in (
        (None, "legal: the environment has masks of legal actions; pass that of the observation"),
        (jnp.ones(A + 1, bool), r"legal: expected 5 bools, one per action, got bool of shape \(6,\)"),
        (jnp.ones(A), "legal: expected 5 bools, one per action, got float32"),
    ):
        with pytest.raises(ConfigError, match=line):
            policy(jnp.zeros(A), key, legal)
    without = tiny("iqn")
    with pytest.raises(ConfigError, match="legal: the environment has no masks"):
        without.policy(without.init(jax.random.key(0)))(jnp.zeros(6), key, one)


def changed(**fields):
    """Doors with changed fields in their time steps; `reset` changes the results of a reset."""
    of_reset = fields.pop("reset", lambda *x: x)

    @pytree.dataclass
    class Wrong(Doors):
        def reset(self, key):
            return of_reset(*super().reset(key))

        def step(self, key, state, action):
            state, told = super().step(key, state, action)
            return state, told._replace(**fields)

    return Wrong()


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (changed(legal=jnp.ones(A + 1, bool)), r"doors: TimeStep.legal must have shape \(5,\), got \(6,\)"),
        (changed(next_legal=jnp.ones(A)), "doors: TimeStep.next_legal must be of type bool"),
        (changed(next_legal=None), "doors: TimeStep.next_legal is missing, and others are there"),
        (changed(reset=lambda state, obs, legal: (state, obs)), "doors: reset's mask is missing"),
        (
            changed(reset=lambda state, obs, legal: (state, obs, legal[:2])),
            r"doors: reset's mask must have shape \(5,\)",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(env, line):
    with pytest.raises(ConfigError, match=line):
        envs.as_environment(env)


def test_masks_of_real_valued_actions_are_refused():
    @pytree.dataclass
    class Continuous(Doors):
        action_space = Box((2,), low=-1.0, high=1.0)

        def step(self, key, state, action):
            return super().step(key, state, jnp.zeros((), jnp.int32))

    with pytest.raises(ConfigError, match="doors has masks of legal actions, which real-valued actions cannot have"):
        envs.as_environment(Continuous())


@pytest.mark.validation
def test_a_run_with_masks_that_was_stopped_goes_on_to_the_same_end(tmp_path):
    def stop(state, record):
        if record.env_step[0] == 120:
            raise ZeroDivisionError

    algo = tiny("dqn", Doors(), exploration_repeats=3)
    quantilax.run(algo, tmp_path / "whole", [0], quiet=True)
    with pytest.raises(ZeroDivisionError):
        quantilax.run(algo, tmp_path / "stopped", [0], callback=stop, quiet=True)
    quantilax.resume(tmp_path / "stopped", env=Doors(), quiet=True)
    whole, resumed = (quantilax.load(tmp_path / name, env=Doors()).state for name in ("whole", "stopped"))
    assert whole.envs.legal.shape == (algo.config.num_envs, A)
    assert_array_equal(whole.replay.observations.legal, np.asarray(whole.replay.observations.obs) > 0.5)
    assert_same_bits(whole, resumed)
