"""`quantilax.pytree`: leaves and statics, conversion from what users write, and refusals."""

import dataclasses
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Float

from quantilax import ALGORITHMS, pytree
from quantilax.errors import ConfigError, did_you_mean
from quantilax.hyperparameters import default

DQN, C51, QRDQN, IQN, FQF, QLEARNING, PQN, PPO, SAC, TQC, DSAC, TD3, TD3C51, D4PG = (
    algorithm.config for algorithm in ALGORITHMS.values()
)

OFF_POLICY = {
    "adam_eps",
    "eps_end",
    "eps_start",
    "eval_epsilon",
    "exploration_fraction",
    "gamma",
    "importance_exponent",
    "learning_rate",
    "learning_rate_end",
    "learning_rate_fraction",
    "max_grad_norm",
    "polyak",
    "priority_exponent",
    "reward_scale",
    "weight_averaging",
}
MUNCHAUSEN = {"munchausen_alpha", "munchausen_clip", "munchausen_temperature"}
OF_Q_LEARNING = OFF_POLICY | MUNCHAUSEN
RISK = {"return_max", "return_min", "risk_level"}
OF_HEADS = {"fraction_entropy", "fraction_learning_rate", "hl_gauss_sigma", "kappa", "risk_eta", "v_max", "v_min"}
OF_SAC = OFF_POLICY - {"eps_end", "eps_start", "exploration_fraction"} | {"target_entropy", "temperature"}
OF_TD3 = OF_SAC - {"target_entropy", "temperature"} | {"exploration_noise", "target_noise", "target_noise_clip"}
ON_POLICY = {
    "clip_ratio",
    "entropy_coefficient",
    "eval_epsilon",
    "gamma",
    "lambda_",
    "learning_rate",
    "learning_rate_end",
    "learning_rate_fraction",
    "max_grad_norm",
    "reward_scale",
    "value_coefficient",
    "weight_averaging",
}
FLOATS = {
    DQN: OF_Q_LEARNING | {"kappa"},
    C51: OF_Q_LEARNING | {"v_max", "v_min"},
    QRDQN: OF_Q_LEARNING | RISK | {"kappa"},
    IQN: OF_Q_LEARNING | RISK | {"kappa", "risk_eta"},
    FQF: OF_Q_LEARNING | {"fraction_entropy", "fraction_learning_rate", "kappa"},
    QLEARNING: OF_Q_LEARNING | RISK | OF_HEADS,
    PQN: MUNCHAUSEN
    | OF_HEADS
    | {
        "eps_end",
        "eps_start",
        "eval_epsilon",
        "exploration_fraction",
        "gamma",
        "lambda_",
        "learning_rate",
        "learning_rate_end",
        "learning_rate_fraction",
        "max_grad_norm",
        "reward_scale",
        "weight_averaging",
    },
    PPO: ON_POLICY | OF_HEADS,
    SAC: OF_SAC | OF_HEADS,
    TQC: OF_SAC | {"kappa"},
    DSAC: OF_SAC | {"kappa", "risk_eta"},
    TD3: OF_TD3 | OF_HEADS,
    TD3C51: OF_TD3 | {"v_max", "v_min"},
    D4PG: OF_TD3 | {"v_max", "v_min"},
}
"""By hand: what a study can sweep with one compiled program."""
CONFIGS = pytest.mark.parametrize("config", list(FLOATS), ids=list(ALGORITHMS))


@pytree.dataclass
class Inner:
    weight: float = 1.0
    width: int = 3


@pytree.dataclass
class Outer:
    rate: float = pytree.field(0.5, "a rate", gt=0, le=1)
    count: int = pytree.field(2, "a count", ge=1)
    flag: bool = False
    word: str = pytree.field("a", choices=("a", "b"))
    sizes: tuple[int, ...] = (1, 2)
    array: Float[Array, "3"] = pytree.field()
    inner: Inner = pytree.field()
    opaque: Any = pytree.field(None, static=True)


def outer(**fields: Any) -> Outer:
    return Outer(**{"array": jnp.arange(3.0), "inner": Inner(), **fields})


def values(f: dataclasses.Field, annotation: Any) -> st.SearchStrategy:
    """Any value that a field may take, by its annotation, bounds and choices."""
    bounds = f.metadata["bounds"]
    if f.metadata["choices"]:
        return st.sampled_from(list(f.metadata["choices"]))
    if annotation is bool:
        return st.booleans()
    if annotation in (float, tuple[float, ...]):
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        number = st.floats(
            min_value=None if low is None else float(np.float32(low)),
            max_value=None if high is None else float(np.float32(high)),
            width=32,
            exclude_min="gt" in bounds,
            exclude_max="lt" in bounds,
            allow_nan=False,
            allow_subnormal=False,  # 0 in a program
            allow_infinity=high is None and not f.metadata.get("finite", True),
        )
        return number if annotation is float else st.lists(number, max_size=4).map(tuple)
    whole = st.integers(bounds["ge"], bounds.get("le", pytree.MAX_INT32))
    return whole if annotation is int else st.lists(whole, max_size=4).map(tuple)


def configs(config: type) -> st.SearchStrategy:
    hints = typing.get_type_hints(config)
    return st.builds(config, **{f.name: values(f, hints[f.name]) for f in dataclasses.fields(config)})


ANY_CONFIG = st.one_of([configs(config) for config in FLOATS])
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@QUICK
@given(ANY_CONFIG)
def test_from_dict_reads_back_what_to_dict_gives(config):
    assert pytree.from_dict(type(config), pytree.to_dict(config)) == config


@QUICK
@given(ANY_CONFIG)
def test_a_config_survives_yaml(config):
    text = yaml.safe_dump(pytree.to_dict(config))
    assert pytree.from_dict(type(config), yaml.safe_load(text)) == config


@QUICK
@given(ANY_CONFIG)
def test_numbers_may_be_written_as_text(config):
    words = {
        name: str(value) if type(value) in (int, float) else value for name, value in pytree.to_dict(config).items()
    }
    read = pytree.from_dict(type(config), words)
    assert read == config
    assert [type(v) for v in vars(read).values()] == [type(v) for v in vars(config).values()]


@QUICK
@given(ANY_CONFIG)
def test_flattening_and_unflattening_gives_the_same_config(config):
    leaves, treedef = jax.tree.flatten(config)
    assert jax.tree.unflatten(treedef, leaves) == config


@CONFIGS
def test_the_leaves_of_a_config_are_its_floats_and_nothing_else(config):
    assert set(pytree.float_fields(config)) == FLOATS[config]
    paths = {jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(config())}
    assert paths == FLOATS[config]
    hints = typing.get_type_hints(config)
    assert {name for name, hint in hints.items() if hint is float} == FLOATS[config]


@QUICK
@given(ANY_CONFIG, st.data())
def test_the_treedef_changes_with_every_static_field_and_with_no_leaf(config, data):
    hints = typing.get_type_hints(type(config))
    f = data.draw(st.sampled_from(dataclasses.fields(config)))
    value = data.draw(values(f, hints[f.name]))
    changed = pytree.replace(config, **{f.name: value})
    same = jax.tree.structure(changed) == jax.tree.structure(config)
    assert same == (f.name in FLOATS[type(config)] or value == getattr(config, f.name))


def test_floats_arrays_and_pytrees_are_leaves_and_the_rest_is_static():
    leaves = jax.tree_util.tree_leaves_with_path(outer())
    assert [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves] == [
        "rate",
        "array",
        "inner/weight",
    ]
    structure = jax.tree.structure(outer())
    for name, value in (("count", 3), ("flag", True), ("word", "b"), ("sizes", (1,)), ("opaque", "x")):
        assert jax.tree.structure(outer(**{name: value})) != structure, name
    assert jax.tree.structure(outer(inner=Inner(width=4))) != structure
    assert jax.tree.structure(outer(rate=0.1, array=jnp.ones(3), inner=Inner(weight=2.0))) == structure


def test_only_a_new_static_value_is_a_new_program():
    traced = []

    @jax.jit
    def program(config):
        traced.append(config.batch_size)
        return config.learning_rate * config.batch_size

    assert program(IQN(learning_rate=0.5, batch_size=2)) == 1.0
    assert program(IQN(learning_rate=0.25, batch_size=2)) == 0.5
    assert traced == [2]
    assert program(IQN(learning_rate=0.25, batch_size=4)) == 1.0
    assert traced == [2, 4]


def test_vmap_maps_over_the_leaves():
    stacked = jax.tree.map(lambda *x: jnp.array(x), IQN(gamma=0.5), IQN(gamma=0.25))
    assert jax.vmap(lambda config: config.gamma * config.num_envs)(stacked).tolist() == [5.0, 2.5]


def test_a_dataclass_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        IQN().gamma = 0.5
    with pytest.raises(TypeError):
        IQN(1000)


def test_replace_changes_the_named_fields_only_and_not_the_original():
    config = IQN()
    changed = pytree.replace(config, gamma=0.5, torso_sizes=[8, 8])
    assert (changed.gamma, changed.torso_sizes) == (0.5, (8, 8))
    assert config == IQN()
    assert pytree.replace(changed, gamma=config.gamma, torso_sizes=config.torso_sizes) == config


def test_replace_takes_arrays_as_they_are():
    rates = jnp.array([1e-3, 1e-4])
    assert pytree.replace(IQN(), learning_rate=rates).learning_rate is rates
    rates = np.array([1e-3, 1e-4])
    assert pytree.replace(IQN(), learning_rate=rates).learning_rate is rates


def test_replace_takes_tracers_so_that_vmap_and_grad_go_through_it():
    def doubled(rate):
        return 2 * pytree.replace(IQN(), learning_rate=rate).learning_rate

    rates = jnp.array([0.5, 0.25])
    assert jax.vmap(doubled)(rates).tolist() == [1.0, 0.5]
    assert jax.jit(doubled)(0.5) == 1.0
    assert jax.grad(doubled)(0.5) == 2.0


def test_replace_refuses_an_array_of_which_one_value_is_out_of_range():
    with pytest.raises(ConfigError, match=r"^gamma: must be >= 0 and <= 1, got "):
        pytree.replace(IQN(), gamma=jnp.array([0.5, 1.5]))


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 4), ("torso_sizes", 8), ("double", True)], ids=["int", "tuple", "bool"]
)
def test_a_static_field_refuses_a_tracer_by_its_name(name, value):
    def build(traced):
        changed = (traced,) if name == "torso_sizes" else traced
        return pytree.replace(IQN(), **{name: changed}).gamma

    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        jax.jit(build)(jnp.array(value))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["1e5", 1e5, 100_000, "100000", "100_000", np.int64(100_000), np.float32(1e5)])
def test_whole_numbers_in_any_spelling_become_the_same_int(value):
    config = pytree.from_dict(IQN, {"total_timesteps": value})
    assert config.total_timesteps == 100_000
    assert type(config.total_timesteps) is int
    assert jax.tree.structure(config) == jax.tree.structure(IQN(total_timesteps=100_000))


@pytest.mark.parametrize("value", ["1e-3", 1e-3, "0.001", "1E-3", ".001", np.float64(1e-3)])
def test_numbers_in_any_spelling_become_the_same_float(value):
    config = pytree.from_dict(IQN, {"learning_rate": value})
    assert config.learning_rate == 1e-3
    assert type(config.learning_rate) is float


def test_a_whole_number_for_a_float_becomes_a_float():
    assert type(pytree.from_dict(IQN, {"max_grad_norm": 10}).max_grad_norm) is float


def test_gradients_may_go_unclipped():
    for value in (math.inf, ".inf", "inf"):
        value = yaml.safe_load(value) if isinstance(value, str) else value
        assert pytree.from_dict(IQN, {"max_grad_norm": value}).max_grad_norm == math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("learning_rate", "batch_size") for value in (True, False, np.True_, jnp.array(True))]
    + [("torso_sizes", [True]), ("torso_sizes", [8, False])],
    ids=str,
)
def test_a_bool_is_no_number(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: expected a"):
        pytree.from_dict(IQN, {name: value})


@pytest.mark.parametrize("name", ["learning_rate", "risk_eta", "total_timesteps", "torso_sizes"])
@pytest.mark.parametrize(
    "value", [math.nan, "nan", np.float32("nan"), jnp.array(jnp.nan)], ids=["float", "text", "np", "jnp"]
)
def test_nan_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        pytree.from_dict(IQN, {name: [8, value] if name == "torso_sizes" else value})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "fast", "learning_rate: expected a number, got 'fast'"),
        ("learning_rate", None, "learning_rate: expected a number, got None"),
        ("learning_rate", "", "learning_rate: expected a number, got ''"),
        ("learning_rate", [1e-3], "learning_rate: expected a number, got [0.001]"),
        ("learning_rate", {"a": 1}, "learning_rate: expected a number, got {'a': 1}"),
        ("learning_rate", 1j, "learning_rate: expected a number, got 1j"),
        ("learning_rate", 10**400, "learning_rate: "),
        ("learning_rate", np.array("fast"), "learning_rate: expected a number, got "),
        ("batch_size", 1.5, "batch_size: expected a whole number, got 1.5"),
        ("batch_size", "1.5", "batch_size: expected a whole number, got '1.5'"),
        ("batch_size", "many", "batch_size: expected a whole number, got 'many'"),
        ("batch_size", None, "batch_size: expected a whole number, got None"),
        ("batch_size", math.inf, "batch_size: "),
        ("batch_size", "1e400", "batch_size: "),
        ("batch_size", 10**5000, "batch_size: "),
        ("batch_size", [64], "batch_size: expected a whole number, got [64]"),
        ("double", 1, "double: expected true or false, got 1"),
        ("double", "true", "double: expected true or false, got 'true'"),
        ("risk", 1, "risk: expected text, got 1"),
        ("torso_sizes", 64, "torso_sizes: expected a list of whole numbers, got 64"),
        ("torso_sizes", "64", "torso_sizes: expected a list of whole numbers, got '64'"),
        ("torso_sizes", None, "torso_sizes: expected a list of whole numbers, got None"),
        ("torso_sizes", ["wide"], "torso_sizes: expected a list of whole numbers, got ['wide']"),
        ("torso_sizes", [[64]], "torso_sizes: expected a"),
        ("torso_sizes", [[64], [64, 64]], "torso_sizes: expected a"),
    ],
    ids=lambda x: repr(x)[:30] if not isinstance(x, int) or x < 10**300 else "huge",
)
def test_a_wrong_type_is_refused_by_its_name_and_what_was_expected(name, value, message):
    with pytest.raises(ConfigError) as caught:
        pytree.from_dict(IQN, {name: value})
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def out_of_range():
    for config in FLOATS:
        hints = typing.get_type_hints(config)
        for f in dataclasses.fields(config):
            for name, bound in f.metadata["bounds"].items():
                if bound >= pytree.MAX_INT32:
                    continue
                step = 1 if hints[f.name] is not float else 0.5
                step *= max(1, abs(bound))
                value = bound + {"gt": 0, "lt": 0, "ge": -step, "le": step}[name]
                yield pytest.param(config, f.name, name, bound, value, id=f"{config.__module__[-3:]}-{f.name}-{name}")


@pytest.mark.parametrize(("config", "name", "comparison", "bound", "value"), list(out_of_range()))
def test_a_value_out_of_range_is_refused_by_the_bound_that_it_breaks(config, name, comparison, bound, value):
    is_tuple = typing.get_type_hints(config)[name] not in (int, float)
    sign = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}[comparison]
    with pytest.raises(ConfigError) as caught:
        pytree.from_dict(config, {name: [8, value] if is_tuple else value})
    message = str(caught.value)
    assert message.startswith(f"{name}: must be ")
    assert f"{sign} {bound}" in message
    assert str(value) in message.split("got ")[1]


@pytest.mark.parametrize("name", [name for name, hint in typing.get_type_hints(IQN).items() if hint is int])
def test_a_count_beyond_the_programs_integers_is_refused(name):
    for value in (2**31, "1e30", 1e12):
        with pytest.raises(ConfigError, match=f"^{name}: must be "):
            pytree.from_dict(IQN, {name: value})


@CONFIGS
def test_every_number_but_a_distortions_strength_and_a_supports_ends_has_bounds_and_every_field_a_meaning(config):
    hints = typing.get_type_hints(config)
    for f in dataclasses.fields(config):
        assert f.metadata["doc"], f.name
        if hints[f.name] not in (bool, str) and f.name not in ("risk_eta", "v_min", "v_max"):
            assert f.metadata["bounds"], f.name


def test_a_default_is_a_valid_value_of_its_field():
    for config in FLOATS:
        assert pytree.from_dict(config, pytree.to_dict(config())) == config()
        config().check()
        assert config().advice() == []


def test_an_unknown_field_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        pytree.from_dict(IQN, {"learning_rat": 1e-3})
    assert str(caught.value) == "unknown field 'learning_rat'; did you mean 'learning_rate'?"


def test_an_unknown_field_like_no_other_is_refused_with_the_three_nearest_and_the_command_that_lists_all():
    with pytest.raises(ConfigError, match=r"^unknown field 'xyzzy'; the nearest fields are ") as caught:
        pytree.from_dict(IQN, {"xyzzy": 1})
    nearest, command = str(caught.value).split(" are ")[1].split("; ")
    assert len(set(nearest.split(", ")) & {f.name for f in dataclasses.fields(IQN)}) == 3
    assert command == "quantilax list ALGORITHM lists all"


def test_an_unknown_name_of_few_is_refused_with_all_there_are():
    assert did_you_mean("x", ["one", "two"], "numbers") == "; known numbers: one, two"


def test_replace_refuses_an_unknown_field_too():
    with pytest.raises(ConfigError, match="did you mean 'gamma'"):
        pytree.replace(IQN(), gama=0.5)


def test_an_unknown_choice_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        pytree.from_dict(IQN, {"risk": "cvr"})
    assert str(caught.value) == "risk: unknown value 'cvr'; did you mean 'cvar'?"


def test_a_required_field_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="missing field 'array'"):
        pytree.from_dict(Outer, {"count": 3})


def test_replace_takes_a_pytree_for_a_subtree():
    inner = Inner(weight=2.0)
    assert pytree.replace(outer(), inner=inner).inner is inner


def test_every_message_begins_with_where():
    for values in ({"gama": 1}, {"gamma": "x"}, {"gamma": 2}, {"risk": "cvr"}):
        with pytest.raises(ConfigError, match=r"^file\.yaml: iqn: "):
            pytree.from_dict(IQN, values, "file.yaml: iqn")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([f.name for f in dataclasses.fields(IQN)]),
    st.one_of(
        st.text(max_size=20),
        st.floats(),
        st.integers(),
        st.booleans(),
        st.none(),
        st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none()), max_size=3),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        st.binary(max_size=5),
        st.dates(),
    ),
)
def test_any_value_for_any_field_is_taken_or_refused_in_one_line_by_its_name(name, value):
    config, message = None, f"{name}: taken"
    try:
        config = pytree.from_dict(IQN, {name: value})
    except ConfigError as error:
        message = str(error)
    assert message.startswith(f"{name}: ")
    assert len(message.splitlines()) == 1
    if config is not None:
        assert pytree.from_dict(IQN, pytree.to_dict(config)) == config
        assert jax.tree.unflatten(jax.tree.structure(config), jax.tree.leaves(config)) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "max_grad_norm",
            1e-50,
            "max_grad_norm: must be > 0, got 1e-50, which is 0 in the 32 bits of a program's floats",
        ),
        ("max_grad_norm", 1.1e-38, "max_grad_norm: must be > 0, got 1.1e-38, which is 0 in the 32 bits"),
        (
            "learning_rate_fraction",
            5e-39,
            "learning_rate_fraction: must be > 0 and <= 1, got 5e-39, which is 0 in the 32",
        ),
        ("adam_eps", 5e-39, "adam_eps: must be >= 1e-16, got 5e-39$"),
        ("kappa", 1e-30, "kappa: must be >= 1e-16, got 1e-30$"),
        ("munchausen_temperature", 5e-39, r"munchausen_temperature: must be >= 1e-06 and <= 1e\+16, got 5e-39$"),
        ("munchausen_temperature", 1e38, r"munchausen_temperature: must be >= 1e-06 and <= 1e\+16, got 1e\+38$"),
        ("reward_scale", 1e38, r"reward_scale: must be >= 1e-16 and <= 1e\+16, got 1e\+38$"),
        ("reward_scale", 1e-38, r"reward_scale: must be >= 1e-16 and <= 1e\+16, got 1e-38$"),
        ("weight_averaging", 0.99999999, "weight_averaging: must be >= 0 and < 1, got 0.99999999, which is 1 in the"),
        ("reward_scale", 1e39, r"reward_scale: must be finite, got 1e\+39"),
    ],
)
def test_bounds_hold_for_the_float_of_32_bits_that_a_program_has(name, value, message):
    with pytest.raises(ConfigError, match=message):
        pytree.from_dict(IQN, {name: value})


def test_xla_computes_with_zero_in_the_place_of_subnormal_numbers_and_so_do_bounds():
    subnormal, normal = 1.17549e-38, 1.1754944e-38
    positive = jax.jit(lambda x: x > 0)
    for x in (subnormal, -subnormal, normal, -normal, 5e-39, 1.0):
        assert bool(positive(jnp.float32(x))) == (pytree.in_program(x) > 0)
    assert pytree.in_program(subnormal) == 0.0


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (C51, dict(v_min=1.0, v_max=1.00000001), "v_min: 51 atoms .* too close for floats of 32 bits"),
        (C51, dict(v_min=1e8, v_max=1e8 + 100), "v_min: 51 atoms .* too close for floats of 32 bits"),
        (C51, dict(v_min=0.0, v_max=1e-37), "v_min: 51 atoms .* too close for floats of 32 bits"),
        (C51, dict(v_max=1e38), r"v_max: must be >= -1e\+16 and <= 1e\+16, got 1e\+38"),
        (C51, dict(v_min=-1e38), "v_min: must be"),
        (C51, dict(v_min=jnp.float32(3), v_max=jnp.float32(2)), "v_min: 3.0 is not below v_max=2.0"),
        (PQN, dict(v_min=1.0, v_max=1.00000001), "v_min: 51 atoms"),
        (IQN, dict(risk="cpw", risk_eta=1e3), "risk_eta: must be > 0 and <= 100 for risk 'cpw', got 1000.0"),
        (IQN, dict(risk="cpw", risk_eta=5e-39), "risk_eta: must be > 0"),
        (IQN, dict(risk="cvar", risk_eta=5e-39), "risk_eta: must be > 0"),
    ],
)
def test_what_floats_of_32_bits_do_not_tell_apart_is_refused(config, fields, message):
    made = pytree.from_dict(config, fields)
    with pytest.raises(ConfigError, match=f"^{message}"):
        made.check()


def test_a_number_at_a_bound_that_32_bits_do_not_hold_exactly_is_within_it():
    @pytree.dataclass
    class Bounded:
        x: float = pytree.field(0.2, ge=0.1, le=0.3)

    for value in (0.1, 0.3):
        assert pytree.from_dict(Bounded, {"x": value}).x == value


def test_what_a_constructor_was_given_can_be_checked_afterwards_with_what_lies_within():
    @pytree.dataclass
    class Inner:
        x: float = pytree.field(0.2, le=1)

    @pytree.dataclass
    class Outer:
        inner: Inner
        y: float = pytree.field(0.2, ge=0)

    pytree.check(Outer(inner=Inner(x=1.0)))
    for bad, message in (
        (Outer(inner=Inner(), y=-1.0), "there: y: must be >= 0"),
        (Outer(inner=Inner(x=2.0)), "there: x"),
    ):
        with pytest.raises(ConfigError, match=message):
            pytree.check(bad, "there")


def test_fields_of_composed_groups_stand_in_the_order_of_the_groups_and_keep_what_a_default_changes():
    @pytree.dataclass
    class First:
        one: int = pytree.field(1, "one", ge=1)
        two: float = pytree.field(2.0, "two", gt=0)

    @pytree.dataclass
    class Second:
        three: str = pytree.field("a", "three", choices=("a", "b"))

    @pytree.dataclass
    class Both(First, Second):
        four: float = pytree.field(4.0, "four")
        two: float = default(First, "two", 0.5)

    assert list(pytree.defaults(Both)) == ["one", "two", "three", "four"]
    assert pytree.to_dict(Both()) == {"one": 1, "two": 0.5, "three": "a", "four": 4.0}
    assert pytree.float_fields(Both) == ("two", "four")
    assert len(jax.tree.leaves(Both())) == 2
    with pytest.raises(ConfigError, match="two: must be > 0"):
        pytree.from_dict(Both, {"two": -1})
    with pytest.raises(ConfigError, match="three: unknown value 'c'"):
        pytree.from_dict(Both, {"three": "c"})
