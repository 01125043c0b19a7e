"""What holds for every registered algorithm; a new one is picked up from the registry."""

import sys
import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantilax import ALGORITHMS, Box, ConfigError, ConfigWarning, Discrete, Metrics, pytree, train
from quantilax.agent import _train, create
from quantilax.algorithms import pqn, q_learning
from quantilax.checks import dependence
from quantilax.envs.probes import Bimodal, Corridor, Regulator
from quantilax.heads import HEADS
from quantilax.learning import rollout
from quantilax.learning.exploration import mean_repeats
from quantilax.networks import FLAT, TORSOS
from quantilax.types import AT_THE_END, no_action
from tests.conftest import FIRST, PROBE, TINY, each, tiny
from tests.trees import assert_same_bits, raw, weights_norm
from tests.unit.test_torsos import Pixels

MEASURED = each([name for name, algorithm in ALGORITHMS.items() if algorithm.signals is not None])
"""Names of algorithms that measure signals."""
CONVOLUTIONS = [torso for torso in TORSOS if torso not in FLAT]


def is_discrete(name):
    return ALGORITHMS[name].actions[0] is Discrete


@pytree.dataclass
class Pays(Regulator):
    """Pays `value` in the only step of an episode."""

    value: float = 1.0

    def step(self, key, state, action):
        state, time_step = super().step(key, state, action)
        return state, time_step._replace(reward=jnp.asarray(self.value, jnp.float32))


class PixelsPushed(Pixels):
    """Pixels with real-valued actions."""

    action_space = Box((1,), low=-1.0, high=1.0)

    def step(self, key, state, action):
        return super().step(key, state, (action[0] > 0).astype(jnp.int32))


def assert_close(a, b):
    for x, y in zip(raw(a), raw(b), strict=True):
        assert_allclose(x, y, rtol=2e-4, atol=1e-5)


def short(name, **changes):
    """A tiny agent with one segment of training, in episodes so short that random actions are paid within them."""
    env = Corridor(cells=2) if is_discrete(name) else Regulator(limit=4)
    return tiny(name, env, total_timesteps=TINY[name]["eval_freq"], **changes)


shared = pytest.mark.parametrize("name", each(first=["pqn"]))
"""For claims on code that both loops share: in `make test` with the loop that compiles sooner."""


def test_the_curve_has_a_row_before_training_and_one_per_evaluation(algo):
    state, (lengths, returns) = algo.train(jax.random.key(0))
    rows = len(algo.evaluation_steps)
    assert returns.shape == lengths.shape == (rows, algo.config.eval_episodes)
    assert algo.evaluation_steps[-1] == int(state.env_steps) <= algo.config.total_timesteps
    assert rows > 3


def test_the_steps_of_the_rows_are_exact(algo):
    _, record = algo.records(jax.random.key(0))
    assert record.env_step.tolist() == list(algo.evaluation_steps)


def test_raw_keys_and_typed_keys_give_the_same_run(algo):
    assert_same_bits(algo.train(jax.random.key(5)), algo.train(jax.random.PRNGKey(5)))


@shared
def test_raw_keys_vmap_too(name):
    raw_keys, keys = (jax.random.split(key(5), 3) for key in (jax.random.PRNGKey, jax.random.key))
    assert_same_bits(*(jax.vmap(short(name).train)(x) for x in (raw_keys, keys)))


def test_a_batch_of_keys_without_vmap_is_refused_with_the_remedy(algo):
    with pytest.raises(TypeError, match=r"jax\.vmap\(algo\.train\)"):
        algo.train(jax.random.split(jax.random.key(0), 3))


def test_vmap_over_seeds_equals_a_loop(name):
    # Over a short run: the width of a vmap changes low bits, and learning amplifies them.
    algo, keys = short(name), jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(algo.train)(keys)[0].params
    for i, key in enumerate(keys):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), algo.train(key)[0].params)


def test_different_seeds_differ_in_weights_and_experience(algo):
    a, b = (algo.init(jax.random.key(seed)) for seed in (0, 1))
    assert any(not np.array_equal(x, y) for x, y in zip(raw(a.params), raw(b.params), strict=True))
    a, b = (algo.train(jax.random.key(seed))[0] for seed in (0, 1))
    experience = "replay" if hasattr(a, "replay") else "envs"
    differ = [
        not np.array_equal(x, y) for x, y in zip(raw(getattr(a, experience)), raw(getattr(b, experience)), strict=True)
    ]
    assert any(differ)


@shared
def test_evaluations_draw_new_episodes_each_time(name):
    env = "probe/bimodal" if is_discrete(name) else "probe/regulator"
    algo = tiny(name, env=env, eval_episodes=64, learning_rate=0.0, eval_epsilon=1.0)
    _, (_, returns) = algo.train(jax.random.key(0))
    assert len({tuple(row) for row in returns.tolist()}) == len(algo.evaluation_steps)


def is_negative(algo, field: str) -> bool:
    """Say whether a field takes no positive numbers."""
    return algo.config.__dataclass_fields__[field].metadata["bounds"].get("le") == 0


def test_a_sweep_over_floats_is_one_program(algo):
    algo.train(jax.random.key(0))
    before = _train.__wrapped__._cache_size()
    for field in pytree.float_fields(type(algo.config)):
        algo.replace(**{field: getattr(algo.config, field)}).train(jax.random.key(0))
        algo.replace(**{field: jnp.float32(-0.5 if is_negative(algo, field) else 0.5)}).train(jax.random.key(0))
    assert _train.__wrapped__._cache_size() == before


@shared
def test_a_static_field_is_another_program(name):
    tiny(name).train(jax.random.key(0))
    before = _train.__wrapped__._cache_size()
    tiny(name, num_epochs=3).train(jax.random.key(0))
    assert _train.__wrapped__._cache_size() == before + 1


def test_every_float_field_vmaps(name):
    algo = short(name)
    fields = pytree.float_fields(type(algo.config))
    values = dict(zip(fields, jnp.linspace(0.2, 0.9, 2 * len(fields)).reshape(-1, 2), strict=True))
    values = {field: -x if is_negative(algo, field) else x for field, x in values.items()}

    def params(values):
        return algo.replace(**values).train(jax.random.key(0))[0].params

    together = jax.vmap(params)(values)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), params({k: v[i] for k, v in values.items()}))


@shared
def test_the_leaves_of_an_environment_vmap(name):
    def returns(value):
        made = Bimodal(safe=value, low=value, high=value) if is_discrete(name) else Pays(value=value, limit=1)
        return tiny(name, env=made, eval_episodes=64).train(jax.random.key(0))[1].returns

    values = jnp.array([1.0, -3.0])
    assert_allclose(jax.vmap(returns)(values), jnp.broadcast_to(values[:, None, None], jax.vmap(returns)(values).shape))


def test_keys_are_consumed_once(name):
    with jax.debug_key_reuse(True):
        jax.jit(partial(train.train, *short(name).arguments())).trace(jax.random.key(0))


def test_the_reuse_of_a_key_would_be_noticed():
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: jax.random.uniform(key) + jax.random.normal(key)).trace(jax.random.key(0))


def test_a_returned_state_goes_on_outside_the_program_that_made_it(algo):
    state, _ = algo.train(jax.random.key(0))
    later, metrics = algo.step(state)
    assert int(later.env_steps) == int(state.env_steps) + algo.config.steps_per_iteration
    assert np.isfinite(metrics.loss)
    assert jax.tree.structure(later) == jax.tree.structure(state)


def test_a_state_keeps_its_structure_dtypes_and_shapes(algo):
    state = algo.init(jax.random.key(0))
    later, _ = algo.step(state)
    assert jax.tree.structure(state) == jax.tree.structure(later)
    assert [(x.shape, x.dtype) for x in raw(state)] == [(x.shape, x.dtype) for x in raw(later)]


def test_the_policy_maps_one_observation_and_a_key_to_an_action(algo):
    act = jax.jit(algo.policy(algo.init(jax.random.key(0))))
    obs = jnp.zeros(algo.env.observation_space.shape)
    action = act(obs, jax.random.key(1))
    expected = no_action(algo.env.action_space)
    assert (action.shape, action.dtype) == (expected.shape, expected.dtype)
    keys = jax.random.split(jax.random.PRNGKey(1), 5)
    assert jax.vmap(act, in_axes=(None, 0))(obs, keys).shape == (5, *expected.shape)


@pytest.mark.parametrize("switch", ["normalize_observations", "normalize_rewards"])
def test_normalisation_runs_and_matters(name, switch):
    on, off = (short(name, **{switch: value}).train(jax.random.key(0))[0] for value in (True, False))
    assert any(not np.array_equal(a, b) for a, b in zip(raw(on.params), raw(off.params), strict=True))
    assert all(np.isfinite(x).all() for x in raw(on.params))


@pytest.mark.parametrize(
    "name",
    each([name for name, one in ALGORITHMS.items() if hasattr(one.config, "exploration_repeats")], first=[]),
)
def test_random_actions_are_repeated_in_training_as_in_the_warm_up_where_that_is_asked_for(name):
    def same_as_before(**changes):
        size = dict(num_envs=10, total_timesteps=1_000, eval_freq=500, buffer_size=1_000, fill_buffer=500)
        with warnings.catch_warnings(action="ignore", category=ConfigWarning):  # that exploration never ends
            algo = tiny(name, "CartPole-v1", **size, **changes)
        state, _ = algo.train(jax.random.key(0))
        rows = state.replay.rows
        goes_on = ~np.asarray(rows.terminated | rows.truncated)[:-1]
        same = np.asarray(rows.action[1:] == rows.action[:-1])
        return state, same[:50][goes_on[:50]].mean(), same[50:][goes_on[50:]].mean()

    random = dict(eps_start=1.0, eps_end=1.0, exploration_fraction=0.0)
    _, *once = same_as_before(**random)
    assert_allclose(once, 0.5, atol=0.1)
    state, *often = same_as_before(**random, exploration_repeats=20)
    # A step goes on with a repeat of mean length m with probability 1 - 1/m, else any of two actions is taken.
    assert_allclose(often, 1 - 0.5 / mean_repeats(20), atol=0.1)
    (repeats, _) = state.envs.carry
    assert repeats.left.shape == (10,)

    state, *_ = same_as_before(eps_start=0.0, eps_end=0.0, exploration_repeats=20)
    assert not state.envs.carry[0].left.any()  # those of the warm-up have ended with their episodes


def test_an_unknown_field_is_refused_with_a_suggestion(name):
    with pytest.raises(ConfigError, match="unknown field 'learning_rat'; did you mean 'learning_rate'"):
        tiny(name, learning_rat=1e-3)
    with pytest.raises(ConfigError, match="unknown field 'gama'; did you mean 'gamma'"):
        tiny(name).replace(gama=0.9)


def test_actions_of_another_kind_are_refused(name):
    kinds = ALGORITHMS[name].actions
    for kind, env, message in (
        (Box, "Pendulum-v1", f"Pendulum-v1 has continuous actions and {name} needs discrete ones"),
        (Discrete, "probe/corridor", f"probe/corridor has discrete actions and {name} needs continuous ones"),
    ):
        if kind not in kinds:
            with pytest.raises(ConfigError, match=message):
                tiny(name, env=env)


def test_metrics_are_means_over_the_segment_and_nan_before_training(algo):
    _, record = algo.records(jax.random.key(0))
    for name, row in record.metrics._asdict().items():
        if name in Metrics._field_defaults and name not in AT_THE_END:
            assert (row is not None) == (name in algo.algorithm.metrics), name
        if row is not None:
            assert np.isnan(row[0]) == (name not in AT_THE_END)
            assert np.isfinite(row[1:]).all()
    assert bool((jnp.diff(record.metrics.epsilon[1:]) <= 0).all())


def test_every_field_says_what_it_means(name):
    fields = ALGORITHMS[name].config.__dataclass_fields__.values()
    assert [f.name for f in fields if not f.metadata["doc"]] == []


def test_what_follows_from_a_config_is_told(algo):
    derived = algo.config.derived()
    state, _ = algo.train(jax.random.key(0))
    assert derived["gradient_steps"] == int(state.gradient_steps)
    steps = algo.evaluation_steps
    assert_allclose(derived["updates_per_env_step"], derived["gradient_steps"] / (steps[-1] - steps[0]))


@pytest.mark.parametrize("optimizer", [q_learning.optimizer, pqn.optimizer], ids=["adam", "radam"])
def test_the_learning_rate_falls_over_a_share_of_the_gradient_steps_and_stays(optimizer):
    name = "pqn" if optimizer is pqn.optimizer else "iqn"
    config = tiny(name, learning_rate_end=0.2, learning_rate_fraction=0.5).config
    n = config.derived()["gradient_steps"]
    falling, constant = (steps_of(optimizer(c), n) for c in (config, replace(config, learning_rate_end=1.0)))
    expected = 1 - 0.8 * np.minimum(np.arange(n) / (n / 2), 1)
    assert_allclose(falling / constant, expected, rtol=1e-5)


def steps_of(optimizer, n):
    """Sizes of n steps along the same gradient."""
    update, state, sizes = jax.jit(optimizer.update), optimizer.init(jnp.zeros(1)), []
    for _ in range(n):
        updates, state = update(jnp.array([1.0]), state)
        sizes.append(float(updates[0]))
    return np.array(sizes)


def moved(params, by):
    return jax.tree.map(lambda x: x + by, params)


def test_without_averaging_the_average_is_the_weights_bit_for_bit(algo):
    state, _ = algo.train(jax.random.key(0))
    assert_same_bits(state.average_params, state.params)


def test_the_average_of_the_weights_moves_once_per_gradient_step(name):
    algo = still(name, weight_averaging=0.7)
    state = algo.init(jax.random.key(0))
    state, _ = algo.step(replace(state, average_params=moved(state.params, 1.0)))
    k = int(state.gradient_steps)
    assert k > 1
    for average, theta in zip(raw(state.average_params), raw(state.params), strict=True):
        assert_allclose(average - theta, 0.7**k, rtol=1e-4)


def test_the_average_of_a_short_run_is_no_older_than_an_eighth_of_it(name):
    algo = still(name, weight_averaging=0.999)
    state = algo.init(jax.random.key(0))
    state, _ = algo.step(replace(state, average_params=moved(state.params, 1.0)))
    oldest = algo.config.gradient_steps / 8
    keeps = (oldest / (1 + oldest)) ** int(state.gradient_steps)
    for average, theta in zip(raw(state.average_params), raw(state.params), strict=True):
        assert_allclose(average - theta, keeps, rtol=1e-4)
    figures = algo.config.derived()
    assert figures["average_age_env_steps"] == pytest.approx(oldest / figures["updates_per_env_step"])


def test_rewards_that_are_scaled_twice_warn(name):
    tiny(name, normalize_rewards=True)
    tiny(name, reward_scale=0.04)
    with pytest.warns(ConfigWarning, match=r"reward_scale=0\.04 multiplies what normalize_rewards divides"):
        tiny(name, normalize_rewards=True, reward_scale=0.04)


def still(name, **changes):
    """The algorithm with weights that stay where they are."""
    rates = dict(learning_rate=0.0) | (dict(fraction_learning_rate=0.0) if name == "fqf" else {})
    return tiny(name, **rates, **changes)


def test_the_average_of_the_weights_follows_what_is_learned(name):
    once = dict(num_epochs=1, total_timesteps=4096, eval_freq=4096)
    once |= dict(num_minibatches=1) if name in ("pqn", "ppo") else {}
    algo = tiny(name, weight_averaging=0.7, **once)
    state = algo.init(jax.random.key(0))
    expected = [np.asarray(x, np.float64) for x in raw(state.params)]
    for _ in range(4):
        state, _ = algo.step(state)
        expected = [0.7 * average + 0.3 * theta for average, theta in zip(expected, raw(state.params), strict=True)]
    for average, oracle in zip(raw(state.average_params), expected, strict=True):
        assert_allclose(average, oracle, rtol=1e-4, atol=1e-6)


def test_training_does_not_read_the_average_of_the_weights(name):
    algo = tiny(name, weight_averaging=0.7)
    state = algo.init(jax.random.key(0))
    with_another, _ = algo.step(replace(state, average_params=moved(state.params, 1.0)))
    as_it_is, _ = algo.step(state)
    assert_same_bits(replace(with_another, average_params=None), replace(as_it_is, average_params=None))


def test_policy_evaluation_and_quantiles_are_of_the_averaged_weights(algo):
    state, _ = algo.train(jax.random.key(0))
    key = jax.random.key(1)
    others = jax.tree.map(lambda x: jax.random.normal(key, x.shape), state.params)
    averaged, learned = replace(state, average_params=others), replace(state, params=others)
    both = replace(averaged, params=others)
    obs = rollout.reset(algo.env, jax.random.split(key, 5)).obs
    answers = [algo.evaluate, jax.jit(lambda state, key: jax.vmap(algo.policy(state), (0, None))(obs, key))]
    if HEADS[algo.config.head].quantiles is not None:
        answers.append(jax.jit(lambda state, key: algo.quantiles(state, obs, jnp.array([0.1, 0.9]))))
    for answer in answers:
        assert_same_bits(answer(averaged, key), answer(both, key))
        assert_same_bits(answer(learned, key), answer(state, key))
    if len(answers) == 3:
        assert not np.array_equal(answers[2](averaged, key), answers[2](state, key))


@pytest.mark.parametrize("name", MEASURED)
def test_measuring_signals_consumes_keys_once(name):
    algo = tiny(name, signals=True, total_timesteps=TINY[name]["eval_freq"])
    with jax.debug_key_reuse(True):
        jax.jit(partial(train.train, *algo.arguments())).trace(jax.random.key(0))


def test_replay_fill_and_target_distance_are_measured_where_there_is_one(algo):
    state, record = algo.records(jax.random.key(0))
    metrics = record.metrics
    assert (metrics.replay_fill is None) == (not hasattr(state, "replay"))
    assert (metrics.target_distance is None) == (not hasattr(state, "target_params"))
    if metrics.replay_fill is not None:
        capacity = state.replay.capacity
        full = 1.0 if is_discrete(algo.algorithm.name) else metrics.replay_fill[-1]  # cuts take room of their own
        assert_allclose(metrics.replay_fill, np.minimum(np.array(algo.evaluation_steps) / capacity, full), rtol=1e-6)
    if metrics.target_distance is not None:
        assert metrics.target_distance[0] == 0  # no gradient step yet
        flat = [np.concatenate([np.ravel(x) for x in raw(tree)]) for tree in (state.followed, state.target_params)]
        assert_allclose(
            metrics.target_distance[-1], np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]), rtol=1e-5
        )


@shared
def test_an_eval_callback_maps_over_seeds_and_compiles_once(name):
    env = PROBE[ALGORITHMS[name].actions[0]]
    algo = create(ALGORITHMS[name], env, TINY[name], eval_callback=weights_norm)
    keys = jax.random.split(jax.random.key(0), 3)
    _, record = jax.jit(jax.vmap(algo.records))(keys)
    assert record.callback["norm"].shape == (3, len(algo.evaluation_steps))
    algo.records(keys[0])
    programs = _train.__wrapped__._cache_size()
    algo.replace(gamma=0.5).records(keys[0])
    assert _train.__wrapped__._cache_size() == programs


def test_an_eval_callback_that_is_no_function_is_refused(algo):
    with pytest.raises(ConfigError, match="eval_callback: expected a function"):
        algo.replace(eval_callback=3)


def test_evaluating_an_agent_plays_as_many_episodes_as_asked_with_keys_of_ones_own(algo):
    state, _ = algo.train(jax.random.key(0))
    lengths, returns = algo.evaluate(state, jax.random.key(1), episodes=37)
    assert lengths.shape == returns.shape == (37,)
    again = algo.evaluate(state, jax.random.key(1), episodes=37)
    assert_same_bits((lengths, returns), again)


def test_parameters_that_are_not_finite_are_told_at_the_end_of_the_segment(algo):
    params = algo.init(jax.random.key(0)).params
    assert train.all_finite(params)
    assert not train.all_finite(jax.tree.map(lambda x: x.at[...].set(jnp.inf), params))
    _, record = algo.replace(learning_rate=3e38).records(jax.random.key(0))
    assert record.finite.tolist() == [True] + [False] * (len(algo.evaluation_steps) - 1)


@pytest.mark.parametrize("name", MEASURED)
def test_signals_switched_off_leave_the_program_as_if_there_were_none(name):
    on, off, without = tiny(name, signals=True), tiny(name), tiny(name)
    object.__setattr__(without, "algorithm", off.algorithm._replace(signals=None))
    programs = [lowered(algo) for algo in (off, without, on)]
    assert programs[0] == programs[1]
    assert len(programs[0]) < len(programs[2])


def lowered(algo) -> str:
    """The segment as XLA is given it."""
    algorithm, env, config = algo.arguments()
    state = jax.eval_shape(partial(train.init, algorithm, env, config), jax.random.key(0))
    return jax.jit(partial(train.segment, algorithm, env)).lower(config, state, jnp.array(5)).as_text()


@pytest.mark.parametrize("name", each(("dqn", "iqn", "pqn"), ["dqn"]))
def test_metrics_switched_off_leave_nothing_in_the_program(name, monkeypatch):
    def programs() -> list[bytes]:
        return [computed(tiny(name, metrics=metrics)) for metrics in (True, False)]

    on, off = programs()
    module = sys.modules[ALGORITHMS[name].update.__module__]
    with_metrics = module.loss

    def without(*args):
        value, measured = with_metrics(*args)
        return value, jax.tree.map(jnp.zeros_like, measured)

    monkeypatch.setattr(module, "loss", without)
    jax.clear_caches()
    on_without, off_without = programs()
    assert off == off_without, "something is still measured"
    assert on != on_without


def computed(algo) -> bytes:
    """A digest of the equations that the segment's outputs need."""
    algorithm, env, config = algo.arguments()
    state = jax.eval_shape(partial(train.init, algorithm, env, config), jax.random.key(0))
    program = jax.make_jaxpr(partial(train.segment, algorithm, env))(config, state, jnp.array(5))
    return dependence.fingerprint(program, range(len(program.out_avals)))


@pytest.mark.parametrize("name", each(("dqn", "iqn", "pqn"), ["iqn"]))
def test_a_config_closed_over_and_metrics_switched_off_leave_training_as_it_is(name):
    on, off = tiny(name), tiny(name, metrics=False)
    closed_over = jax.jit(partial(train.train, *off.arguments()))
    state, record = closed_over(jax.random.key(0))
    assert record.metrics is None
    measured_state, measured = on.records(jax.random.key(0))
    assert_same_bits((state, record), (measured_state, measured._replace(metrics=None)))


TORSOS_FIRST = {("iqn", "minatar"), ("pqn", "minatar"), ("iqn", "nature")}


@pytest.mark.parametrize(
    ("name", "torso"),
    [
        pytest.param(name, torso, marks=() if (name, torso) in TORSOS_FIRST else pytest.mark.validation)
        for name in ALGORITHMS
        for torso in (CONVOLUTIONS if name in FIRST else CONVOLUTIONS[:1])
    ],
)
def test_every_algorithm_learns_from_pixels_and_so_does_every_torso(name, torso):
    square = (Pixels if is_discrete(name) else PixelsPushed)((36, 36, 1) if torso == "nature" else (12, 12, 1))
    algo = tiny(name, square, torso=torso, spectral_norm=torso == "impala")
    step, start = jax.jit(algo.step), algo.init(jax.random.key(0))
    state = start
    for _ in range(3):
        state, metrics = step(state)
        assert np.isfinite(metrics.loss)
    before, after = (raw(jax.tree.leaves(s.params)) for s in (start, state))
    assert all(np.isfinite(x).all() for x in after)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "each kernel and bias is learned"
    obs = square.reset(jax.random.key(1))[1]
    action = jax.jit(algo.policy(state))(obs, jax.random.key(2))
    assert int(action) in (0, 1) if is_discrete(name) else abs(float(action[0])) <= 1
    if hasattr(state, "replay"):
        assert state.replay.observations.dtype == jnp.uint8


@shared
@pytest.mark.parametrize("torso", each(["mlp", "minatar"], first=["mlp"]))
def test_in_bfloat16_states_are_as_in_float32_and_nearly_the_same_is_learned(name, torso):
    settings = dict(torso=torso, layer_norm=True, weight_averaging=0.5)
    if torso == "minatar":
        settings["env"] = (Pixels if is_discrete(name) else PixelsPushed)((12, 12, 1))
    wide, narrow = (tiny(name, compute_dtype=d, **settings) for d in ("float32", "bfloat16"))
    start = wide.init(jax.random.key(0))
    same = narrow.init(jax.random.key(0))
    assert_close(start.params, same.params)
    assert [x.dtype for x in raw(start)] == [x.dtype for x in raw(same)]
    (one, a), (other, b) = wide.step(start), narrow.step(same)
    assert [x.dtype for x in raw((one, a))] == [x.dtype for x in raw((other, b))]
    assert_allclose(a.loss, b.loss, rtol=0.2)  # not only rounded: where two actions are near a tie, another is taken
    assert_allclose(a.gradient_norm, b.gradient_norm, rtol=0.2)
    assert float(a.loss) != float(b.loss)

    text = jax.jit(narrow.step).lower(same).as_text()
    rounded = [line for line in text.splitlines() if "dot_general" in line and "bf16" in line]
    assert len(rounded) >= 3, "acting, and learning forwards and backwards"
    assert all(line.count("bf16") == 3 for line in rounded), "both operands and the result"
