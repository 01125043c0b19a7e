"""Measures of risk against exact optima: the oracle by brute force, stocks, the nested CVaR, and what is learned."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import IQN, QRDQN, ConfigError, envs, heads, pytree
from quantilax.agent import create
from quantilax.algorithms import ALGORITHMS, objectives, q_learning
from quantilax.envs.finite import PROBLEMS
from quantilax.envs.stock import Stock
from quantilax.heads.base import Prediction
from quantilax.learning import normalize, risk, rollout
from quantilax.returns import frontier
from quantilax.types import NStep, Policy
from tests import exact
from tests.conftest import TINY, each, tiny

LEVELS = (0.05, 0.1, 0.25, 0.5)
SMALL = [("risk/two_stage", 0.9), ("risk/levels", 1.0)]
PLAIN = normalize.init((1,), 1, False, False)


# The oracle


@pytest.mark.parametrize(("name", "gamma"), SMALL)
def test_the_oracle_finds_the_best_of_all_policies(name, gamma):
    env = PROBLEMS[name]()
    nodes = [node for node in exact.nodes(env, gamma) if node[1] > 0]  # the first action has no effect in these
    policies = []
    for actions in itertools.product(range(env.num_actions), repeat=len(nodes)):
        chosen = dict(zip(nodes, actions, strict=True))
        policies.append(exact.returns(env, gamma, lambda s, t, e, chosen=chosen: chosen.get((s, t, e), 0)))
    for level, optimum in exact.static_cvar(env, gamma, LEVELS).items():
        assert_allclose(optimum.value, max(z.cvar(level) for z in policies), atol=1e-6)
        assert_allclose(exact.returns(env, gamma, optimum.rule).cvar(level), optimum.value, atol=1e-6)


def test_no_policy_of_risk_levels_is_optimal_at_all_levels():
    env = PROBLEMS["risk/levels"]()
    optimum = exact.static_cvar(env, 1.0, LEVELS)
    for actions in itertools.product(range(3), repeat=3):
        obtained = exact.returns(env, 1.0, lambda s, t, e, actions=actions: actions[s - 1])
        assert any(obtained.cvar(level) < optimum[level].value - 0.1 for level in LEVELS)


@pytest.mark.parametrize("name", each(PROBLEMS, ["risk/windy_grid"]))
def test_a_problems_steps_have_the_outcomes_of_its_tables(name):
    env = envs.make(name)
    keys = jax.random.split(jax.random.key(0), 4_000)
    state, action = jnp.zeros((), jnp.int32), jnp.array(1)
    _, told = jax.vmap(lambda key: env.step(key, state, action))(keys)
    expected = {}
    for p, r, _ in exact.outcomes(env, 0, 1):
        expected[round(r, 4)] = expected.get(round(r, 4), 0) + p
    values, counts = np.unique(np.round(np.asarray(told.reward, float), 4), return_counts=True)
    found = dict(zip(values.tolist(), counts / 4_000, strict=True))
    assert found == pytest.approx(expected, abs=0.03)


# Measures


def test_cvar_is_the_mean_of_the_worst_share_and_that_on_the_border_counts_in_part():
    z = jnp.array([3.0, -1.0, 0.0, 8.0])
    for level, expected in ((0.25, -1.0), (0.5, -0.5), (0.375, -2 / 3), (1.0, 2.5), (0.01, -1.0)):
        assert_allclose(risk.cvar_of(z, level), expected, rtol=1e-6)


@pytest.mark.parametrize("level", [0.1, 0.25, 1.0])
def test_the_nested_operator_contracts_to_the_nested_optimum(level):
    env, gamma = PROBLEMS["risk/levels"](), 0.9
    copies = 20  # all probabilities are multiples of 1 / 20
    p, r, to = env.tables
    drawn = jnp.asarray(
        [
            [np.repeat(np.arange(p.shape[-1]), np.round(p[s, a] * copies).astype(int)) for a in range(3)]
            for s in range(4)
        ]
    )
    reward, successor = (jnp.take_along_axis(jnp.asarray(x), drawn, axis=-1) for x in (r, to))

    def operator(rho):
        value = jnp.where(successor < 0, 0.0, rho.max(axis=1)[successor])
        return jnp.apply_along_axis(partial(risk.cvar_of, level=level), -1, reward + gamma * value)

    one, other = 10 * jax.random.normal(jax.random.key(0), (2, 4, 3))
    for _ in range(3):
        distance = jnp.abs(one - other).max()
        one, other = operator(one), operator(other)
        assert float(jnp.abs(one - other).max()) <= gamma * float(distance) + 1e-5
    assert_allclose(one, exact.nested_cvar(env, gamma, level), atol=1e-5)


def test_the_target_of_the_nested_cvar_is_a_number_from_the_worst_share():
    config = tiny("qrdqn", risk_objective="dynamic_cvar", risk_level=0.4, gamma=0.5).config
    head = heads.of(config)
    Z = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]])  # 5 quantiles of 2 actions
    (worst,) = head.predict(lambda psi: Z, jnp.zeros(1), head.worst(0.4, [None]))
    ends = jnp.array(False), jnp.array(False)
    step = NStep(jnp.zeros(1), jnp.array(0), jnp.array(1.0), jnp.zeros(1), *ends, jnp.array(1))
    y = q_learning.target_of(config, worst, jnp.array([0.0, 1.0]), None, step)
    assert_allclose(y, [1.0 + 0.5 * 0.5], rtol=1e-6)  # the worst two of five are 0 and 1


# Stocks


def stocked(gamma=0.9, number=1):
    return Stock(env=envs.make("risk/two_stage"), gamma=gamma, low=-50.0, high=50.0, number=number)


def test_the_stock_plus_the_return_to_go_is_the_return_minus_the_threshold():
    env = stocked()
    policy = Policy(rollout.random_action(env).act, begin=lambda state, obs: env.begin(state, obs, jnp.array([1.5])))
    began = rollout.begun(policy, rollout.reset(env, jax.random.split(jax.random.key(0), 8)))

    def one(now, key):
        return rollout.step(env, policy, now, key)

    _, seen = jax.lax.scan(one, began, jax.random.split(jax.random.key(1), 2))
    c = jax.vmap(jax.vmap(env.of))(seen.obs)[..., 0]  # (T, E)
    r, final = seen.reward, jax.vmap(env.of)(seen.next_obs[1])[:, 0]
    G = r[0] + 0.9 * r[1]
    assert_allclose(c[0], 1.5, rtol=1e-5)
    assert_allclose(0.9 * (c[1] + r[1]), G + 1.5, rtol=1e-4)
    assert_allclose(0.9**2 * final, G + 1.5, rtol=1e-4)


@pytest.mark.parametrize("number", [1, 3])
def test_stocks_are_drawn_over_their_range_and_fall(number):
    env = stocked(number=number)
    c = np.asarray(env.draw(jax.random.key(0), 2_000))
    assert c.shape == (2_000, number)
    assert (np.diff(c, axis=1) <= 0).all()
    assert_allclose(np.quantile(c, [0.1, 0.5, 0.9]), [-40, 0, 40], atol=4)
    shown = jax.vmap(lambda x: env.shown(jnp.zeros(3), x))(c)
    assert shown.shape == (2_000, 3 + number)
    assert (np.abs(shown) <= 1).all()
    assert_allclose(jax.vmap(env.of)(shown), c, atol=1e-4)


def test_a_picture_shows_its_stock_as_a_channel():
    env = Stock(env=envs.make("Breakout-MinAtar"), gamma=0.9, low=-2.0, high=2.0)
    _, obs = env.reset(jax.random.key(0))
    assert obs.shape == env.observation_space.shape == (10, 10, 5)
    assert len(np.unique(obs[..., -1])) == 1


def test_learning_draws_new_stocks_and_what_follows_from_them():
    algo = tiny("qrdqn", "risk/two_stage", risk_objective="static_cvar", gamma=0.9, reward_scale=0.5, return_max=8.0,
                return_min=-6.0)  # fmt: skip
    state = algo.init(jax.random.key(0))
    batch, _ = q_learning.draw(algo.config, state, jax.random.key(1), 64)
    again, _ = q_learning.draw(algo.config, state, jax.random.key(2), 64)
    wrapper = objectives.stock(algo.config)
    c, after = (jax.vmap(wrapper.of)(x)[:, 0] for x in (batch.obs, batch.next_obs))
    assert_allclose(after, np.clip((c + batch.reward / 0.5) / 0.9, -8, 6), atol=1e-4)
    assert len(np.unique(c)) == 64
    assert not np.isin(jax.vmap(wrapper.of)(again.obs), c).any()


def test_the_first_stocks_of_a_bandit_are_those_of_the_best_action():
    # Whatever the stock, action 0 is a gamble and action 1 is safe: the best mixture takes the better one.
    gamble, safe = jnp.linspace(-1.0, 2.0, objectives.FRACTIONS), jnp.full(objectives.FRACTIONS, 0.3)
    Z = jnp.stack([gamble, safe], axis=1)
    for shares in ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9)):
        fields = dict(risk_objective="spectral", risk_levels=(0.2, 1.0), risk_weights=shares, return_max=2.0)
        config = pytree.from_dict(ALGORITHMS["qrdqn"].config, fields)
        levels, weights = objectives.mixture(config)
        c = objectives.first_stock(config, PLAIN, lambda obs, tau: Z, jnp.zeros(3), levels, weights)
        seen = objectives.stock(config).shown(jnp.zeros(1), c)
        action = int(objectives.score(config, PLAIN, Prediction(Z), seen).argmax())
        worth = [float(weights @ jnp.stack([risk.cvar_of(z, a) for a in levels])) for z in (gamble, safe)]
        assert action == int(np.argmax(worth)), (shares, worth)


# What is learned

FAST = dict(num_quantiles=20, batch_size=32, kappa=0.02, torso_sizes=(32,), head_sizes=(32,), total_timesteps=8_000,
            eval_freq=8_000, eval_episodes=8, num_envs=16, num_epochs=6, fill_buffer=1_000, learning_rate=4e-3,
            learning_rate_end=0.0, target_update_freq=25, exploration_fraction=0.5, metrics=False)  # fmt: skip


@pytest.fixture(scope="module")
def static():
    """An agent with stocks on the two-stage problem, and its state."""
    algo = QRDQN.create("risk/two_stage", risk_objective="static_cvar", gamma=1.0, reward_scale=0.15, return_min=-6.0,
                        return_max=8.0, **FAST)  # fmt: skip
    return algo, algo.train(jax.random.key(0))[0]


@pytest.fixture(scope="module")
def obtained(static):
    """The exact distribution of the return of the agent's policy at each level."""
    algo, state = static
    env, gamma, wrapper = algo.env.env, float(algo.config.gamma), algo.env
    nodes = exact.nodes(env, gamma)
    s, t, earned = (np.array(x) for x in zip(*nodes, strict=True))
    one_hot = jax.nn.one_hot(s, env.observation_space.shape[0])

    def actions(level):
        policy = q_learning.policy_at(wrapper, algo.config, state, level)
        _, first = policy.begin((None, None), wrapper.shown(one_hot[0], jnp.zeros(1)))
        c = jnp.clip((wrapper.of(first) + earned[:, None]) / gamma ** t[:, None], wrapper.low, wrapper.high)
        return jax.vmap(lambda x: policy.act(x, (), jax.random.key(0), None)[0])(jax.vmap(wrapper.shown)(one_hot, c))

    chosen = np.asarray(jax.jit(jax.vmap(actions))(jnp.array((*LEVELS, 1.0))))
    found = {}
    for level, of_level in zip((*LEVELS, 1.0), chosen, strict=True):
        by_node = dict(zip(nodes, of_level.tolist(), strict=True))
        found[level] = exact.returns(env, gamma, lambda s, t, e, by_node=by_node: by_node[s, t, e])
    return found


def test_one_agent_is_optimal_at_every_level_where_distorted_greed_is_not(obtained):
    env = PROBLEMS["risk/two_stage"]()
    optimum = exact.static_cvar(env, 1.0, LEVELS)
    regret = {level: optimum[level].value - obtained[level].cvar(level) for level in LEVELS}
    greedy = exact.returns(env, 1.0, exact.distorted_greedy(env, 1.0, 0.25)).cvar(0.25)
    assert max(regret.values()) < 0.02 * 14, regret
    assert optimum[0.25].value - greedy > 0.1 * 14


def test_among_actions_of_the_same_cvar_the_agent_takes_that_of_the_largest_mean(obtained):
    # After a gain nothing can be lost that counts at 10 %, so it gambles there: a mean of 2 instead of 0.5.
    assert_allclose(obtained[0.1].mean, 2.0, atol=1e-6)


def test_the_frontier_is_what_the_policies_obtain(static, obtained):
    for point in frontier.frontier(*static, jax.random.key(5), (0.25, 1.0), 1_000):
        exactly = obtained[point.level]
        assert point.mean_low - 0.2 < exactly.mean < point.mean_high + 0.2
        assert point.cvar_low - 0.3 < exactly.cvar(point.level) < point.cvar_high + 0.3
        assert point.score == pytest.approx(point.mean, abs=1e-4)  # gamma is 1


def test_evaluations_begin_with_the_stock_for_the_level(static):
    algo, state = static
    averse, neutral = (
        algo.replace(risk_level=level).evaluate(state, jax.random.key(3), 200)[1] for level in (0.1, 1.0)
    )
    assert float(averse.min()) == -4.0  # never gambles after the loss
    assert float(neutral.min()) == -6.0


def test_nested_cvar_is_learned_and_obeyed():
    level, gamma = 0.25, 0.9
    algo = QRDQN.create("risk/levels", risk_objective="dynamic_cvar", risk_level=level, gamma=gamma, reward_scale=0.15,
                        **FAST)  # fmt: skip
    state, _ = algo.train(jax.random.key(0))
    expected = exact.nested_cvar(PROBLEMS["risk/levels"](), gamma, level)
    obs, tau = jnp.eye(4), (jnp.arange(400) + 0.5) / 400
    rho = risk.cvar_of(jnp.moveaxis(algo.quantiles(state, obs, tau), 1, 0), level)
    assert_allclose(rho, expected, atol=0.4)
    chosen = jax.vmap(algo.policy(state), (0, None))(obs, jax.random.key(0))
    assert_allclose(np.take_along_axis(expected, np.asarray(chosen)[:, None], 1)[:, 0], expected.max(axis=1), atol=1e-6)


@pytest.mark.validation
def test_a_mixture_of_the_mean_and_the_worst_is_learned():
    algo = QRDQN.create("risk/two_stage", risk_objective="spectral", risk_levels=(0.1, 1.0), risk_weights=(0.7, 0.3),
                        gamma=1.0, reward_scale=0.15, return_min=-6.0, return_max=8.0, **FAST)  # fmt: skip
    state, _ = algo.train(jax.random.key(0))
    returns = np.asarray(algo.evaluate(state, jax.random.key(1), 4_000)[1], float)
    env, worth = PROBLEMS["risk/two_stage"](), lambda z: 0.7 * z.cvar(0.1) + 0.3 * z.mean
    policies = [
        exact.returns(env, 1.0, lambda s, t, e, chosen=(0, *chosen): chosen[s])
        for chosen in itertools.product((0, 1), repeat=2)
    ]
    values, counts = np.unique(returns, return_counts=True)
    obtained = exact.Distribution(values, counts / len(returns))
    assert worth(obtained) == pytest.approx(max(map(worth, policies)), abs=0.25)


# Refusals, and that nothing changes without


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(risk_level=0.0), "risk_level: must be > 0 and <= 1, got 0.0"),
        (dict(risk_level=1.5), "risk_level: must be > 0 and <= 1, got 1.5"),
        (dict(return_max=-1.0), "return_min: -1.0 is not below return_max=-1.0; set both"),
        (dict(gamma=0.0), "gamma: must be > 0 with risk_objective=static_cvar"),
        (dict(n_step=3), "n_step: is not defined with risk_objective=static_cvar: .*; set it to 1"),
        (dict(munchausen=True), "munchausen: is not defined with risk_objective=static_cvar: .*; set it to false"),
        (dict(signals=True), "signals: is not defined with risk_objective=static_cvar"),
        (dict(risk="cvar", risk_eta=0.5), "risk: cvar distorts what the policy maximises with risk_objective"),
        (dict(risk_objective="spectral", risk_levels=(0.5, 0.1)), "risk_levels: .* must be rising levels"),
        (dict(risk_objective="spectral", risk_weights=(1.0,)), r"risk_levels: .* one for each of risk_weights=\[1.0\]"),
        (dict(risk_objective="spectral", risk_levels=(0.0, 1.0)), "risk_levels: must be > 0 and <= 1"),
        (dict(risk_objective="cvar"), "risk_objective: unknown value 'cvar'"),
    ],
)
def test_what_is_not_defined_is_refused_in_one_line(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        create(ALGORITHMS["iqn"], "probe/corridor", {**TINY["iqn"], "risk_objective": "static_cvar", **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["scalar", "categorical", "hl_gauss", "proposed"])
def test_other_heads_are_refused(head):
    fields = {**TINY["q_learning"], "head": head, "risk_objective": "static_cvar"}
    refusal = f"risk_objective: static_cvar is not defined for head={head}; choose quantile or implicit_quantile"
    with pytest.raises(ConfigError, match=refusal):
        create(ALGORITHMS["q_learning"], "probe/corridor", fields)


def test_levels_and_agents_without_a_frontier_are_refused_in_one_line():
    for name, level, message in (
        ("iqn", 0.0, "levels: must be > 0 and <= 1, got 0.0"),
        ("iqn", 1.01, "levels: must be > 0 and <= 1, got 1.01"),
        ("pqn", 0.5, "pqn: has no policy for a level of risk; train iqn"),
    ):
        with pytest.raises(ConfigError, match=message):
            frontier.frontier(tiny(name), None, jax.random.key(0), (level,), 2)
    for name, fields, message in (
        ("c51", {}, "head: categorical has no policy for a level"),
        ("iqn", dict(risk_objective="dynamic_cvar"), "risk_objective: dynamic_cvar learns for one level"),
    ):
        other = tiny(name, **fields)
        with pytest.raises(ConfigError, match=message):
            q_learning.policy_at(other.env, other.config, None, jnp.array(0.5))


def test_the_mean_is_maximised_whatever_the_other_fields_of_risk():
    plain, other = tiny("qrdqn"), tiny("qrdqn", risk_level=0.1, return_min=-9.0, return_max=9.0)
    states = [jax.device_get(x.init(jax.random.key(0))) for x in (plain, other)]
    for a, b in zip(*map(jax.tree.leaves, (states[0].params, states[1].params)), strict=True):
        assert_array_equal(a, b)
    after = [x.step(state)[0].params for x, state in zip((plain, other), states, strict=True)]
    for a, b in zip(*map(jax.tree.leaves, after), strict=True):
        assert_array_equal(a, b)
    assert not isinstance(plain.env, Stock)


def test_the_stock_comes_and_goes_with_the_objective():
    algo = IQN.create("probe/corridor", risk_objective="static_cvar", gamma=0.9)
    assert isinstance(algo.env, Stock)
    assert float(algo.replace(gamma=0.8).env.gamma) == 0.8
    assert not isinstance(algo.replace(risk_objective="mean").env, Stock)
    assert envs.fields_of(algo.env) == {"env": "probe/corridor"}
