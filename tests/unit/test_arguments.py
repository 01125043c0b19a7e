"""Users' arguments to agents are taken without loss, or refused in one line that says what is expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import IQN, Box, ConfigError, arguments, train
from quantilax.types import as_key

FLOATS, PIXELS, BITS = Box((2,)), Box((2,), jnp.uint8), Box((2,), jnp.bool_)
TAKERS = (arguments.as_observation, arguments.as_observations)
AGENT = IQN.create(env="probe/terminal", torso_sizes=(4,), head_sizes=(4,), num_cosines=4, fill_buffer=100)
STATE = train.state_spec(*AGENT.arguments())
KEY = jax.eval_shape(lambda: jax.random.key(0))


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize(
    ("space", "obs", "values"),
    [
        (FLOATS, [1, 0.5], [1, 0.5]),
        (FLOATS, (True, False), [1, 0]),
        (FLOATS, np.array([3, 4]), [3, 4]),
        (FLOATS, np.array([3, 4], np.float16), [3, 4]),
        (FLOATS, [jnp.float32(3), jnp.float32(4)], [3, 4]),
        (PIXELS, [0, 255], [0, 255]),
        (PIXELS, np.array([0, 255]), [0, 255]),
        (PIXELS, jnp.array([0, 255], jnp.int16), [0, 255]),
        (PIXELS, [True, False], [1, 0]),
        (BITS, np.array([0, 1], np.uint8), [0, 1]),
        (Box((), float), 2.5, 2.5),
    ],
)
def test_an_observation_is_taken_in_any_form_that_holds_its_numbers(take, space, obs, values):
    taken = take(space, obs)
    assert taken.dtype == space.number
    np.testing.assert_array_equal(taken, values)


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (PIXELS, np.array([0.2, 0.9]), "obs: expected uint8, got float64; .* whole numbers from 0 to 255, as uint8"),
        (PIXELS, [0.2, 0.9], "obs: expected uint8, got float64"),
        (PIXELS, jnp.array([3.0, 4.0]), "obs: expected uint8, got float32"),
        (Box((2,), jnp.int32), jnp.array([3.0, 4.0]), "obs: expected int32, got float32"),
        (BITS, np.array([1.0, 0.0]), "obs: expected bool, got float64"),
        (PIXELS, [3, 256], "obs: expected uint8, from 0 to 255, got 256"),
        (PIXELS, jnp.array([3, -1]), "obs: expected uint8, from 0 to 255, got -1"),
        (BITS, [0, 2], "obs: expected bool, from 0 to 1, got 2"),
        (FLOATS, jnp.zeros(3), r"obs: expected .*shape \((..., )?2,?\), got shape \(3,\)"),
        (FLOATS, 1.0, r"obs: expected .*shape \((..., )?2,?\), got shape \(\)"),
        (FLOATS, [], r"obs: expected .*shape \((..., )?2,?\), got shape \(0,\)"),
        (FLOATS, [1, [2, 3]], "obs: expected an array of numbers, got "),
        (FLOATS, ["a", "b"], "obs: expected an array of numbers, got "),
        (FLOATS, np.array(["a", "b"]), "obs: expected an array of numbers, got "),
        (FLOATS, np.array([1, None]), "obs: expected an array of numbers, got "),
        (FLOATS, [1, 10**30], "obs: expected an array of numbers, got "),
        (FLOATS, [1, 1j], "obs: expected an array of numbers, got "),
        (FLOATS, None, "obs: expected an array of numbers, got None"),
        (FLOATS, {"a": 1}, "obs: expected an array of numbers, got "),
        (FLOATS, jax.random.key(0), "obs: expected an array of numbers, got "),
    ],
)
def test_what_is_no_observation_of_the_space_is_refused_in_one_line(take, space, obs, message):
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        take(space, obs)
    assert "\n" not in str(error.value)


def test_several_observations_are_for_quantiles_and_the_policy_tells_of_vmap():
    assert arguments.as_observations(FLOATS, jnp.zeros((5, 3, 2))).shape == (5, 3, 2)
    with pytest.raises(
        ConfigError, match=r"one observation of shape \(2,\), got shape \(5, 2\); for several, jax.vmap"
    ):
        arguments.as_observation(FLOATS, jnp.zeros((5, 2)))


@pytest.mark.parametrize("take", TAKERS)
def test_types_and_shapes_are_checked_while_tracing_and_values_left_alone(take):
    for space, kind, shape in ((PIXELS, jnp.float32, (2,)), (PIXELS, jnp.uint8, (3,))):
        with pytest.raises(ConfigError, match=r"^obs: expected"):
            jax.eval_shape(lambda x, space=space: take(space, x), jax.ShapeDtypeStruct(shape, kind))
    assert jax.eval_shape(lambda x: take(PIXELS, x), jax.ShapeDtypeStruct((2,), jnp.int32)).dtype == jnp.uint8
    assert jax.eval_shape(arguments.as_fractions, jax.ShapeDtypeStruct((3,), jnp.float32)).shape == (3,)


@pytest.mark.parametrize("taus", [[0, 1], np.linspace(0, 1, 5), jnp.array([0.5]), (1 + 1e-9,)])
def test_fractions_are_taken_in_any_form(taus):
    np.testing.assert_array_equal(arguments.as_fractions(taus), np.asarray(taus, np.float32))


@pytest.mark.parametrize(
    ("taus", "message"),
    [
        ([0.5, 1.5], "expected fractions from 0 to 1, got 1.5"),
        ([-0.1], "expected fractions from 0 to 1, got -0.1"),
        (jnp.array([0.5, jnp.nan]), "expected fractions from 0 to 1, got nan"),
        (0.5, r"expected fractions of shape \(N,\), got float64 of shape \(\)"),
        ([[0.5]], r"expected fractions of shape \(N,\), got float64 of shape \(1, 1\)"),
        ([True], "expected fractions of shape .* got bool"),
        ([0.1, [0.5]], "expected an array of numbers"),
        (["0.5"], "expected an array of numbers"),
        (None, "expected an array of numbers, got None"),
    ],
)
def test_what_is_no_fraction_is_refused_in_one_line(taus, message):
    with pytest.raises(ConfigError, match=f"^taus: {message}") as error:
        arguments.as_fractions(taus)
    assert "\n" not in str(error.value)


def asked(agent, of_state):
    """What an agent answers with a state, traced only: policy, quantiles, evaluate, step."""
    obs, taus = jnp.zeros(2), jnp.array([0.5])
    yield lambda: jax.eval_shape(lambda s, k: agent.policy(s)(obs, k), of_state, KEY)
    yield lambda: jax.eval_shape(lambda s: agent.quantiles(s, obs, taus), of_state)
    yield lambda: jax.eval_shape(lambda s, k: agent.evaluate(s, k, 2), of_state, KEY)
    yield lambda: jax.eval_shape(agent.step, of_state)


def test_a_state_of_several_runs_is_refused_with_the_remedy_and_vmap_is_one():
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), STATE)
    for ask in asked(AGENT, several):
        with pytest.raises(ConfigError, match=r"^state: expected that of one run, got 3 .*jax\.vmap"):
            ask()
    Z = jax.eval_shape(jax.vmap(lambda s: AGENT.quantiles(s, [1, 0], [0.1, 0.9])), several)
    assert Z.shape == (3, 2, 1)


@pytest.mark.parametrize("state", [None, (1, 2), {}])
def test_what_is_no_state_is_refused_by_what_it_is(state):
    for ask in asked(AGENT, state):
        with pytest.raises(ConfigError, match=f"^state: expected the state of a run, .* got {type(state).__name__}"):
            ask()


@pytest.mark.parametrize("episodes", [0, -1, 2.0, "5", True, None, 10**12])
def test_a_number_of_episodes_that_is_none_is_refused(episodes):
    with pytest.raises(ConfigError, match=r"^episodes: expected a whole number from 1 to 2147483647, got "):
        AGENT.evaluate(STATE, KEY, episodes)


def test_the_checks_add_nothing_to_a_program():
    def checked(state, obs, key):
        return AGENT.policy(state)(obs, key)

    def unchecked(state, obs, key):
        return AGENT.algorithm.policy(AGENT.env, AGENT.config, state).act(obs, (), key, None)[0]

    obs = jax.ShapeDtypeStruct((2,), jnp.float32)
    programs = [str(jax.make_jaxpr(f)(STATE, obs, KEY)) for f in (checked, unchecked)]
    assert programs[0] == programs[1]

    def checked_quantiles(state, obs, taus):
        return AGENT.quantiles(state, obs, taus)

    def unchecked_quantiles(state, obs, taus):
        z = jax.vmap(lambda x: AGENT.algorithm.quantiles(AGENT.config, state, x, taus))(obs.reshape(-1, 2))
        return z.reshape(5, *z.shape[1:])

    shapes = STATE, jax.ShapeDtypeStruct((5, 2), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
    programs = [str(jax.make_jaxpr(f)(*shapes)) for f in (checked_quantiles, unchecked_quantiles)]
    assert programs[0] == programs[1]


@pytest.mark.parametrize(
    ("key", "given"),
    [
        (0, "int"),
        (None, "NoneType"),
        ("x", "str"),
        (jnp.zeros(3, jnp.uint32), r"uint32\[3\]"),
        (np.uint32(1), "uint32"),
    ],
)
def test_what_is_no_key_is_refused_by_what_it_is(key, given):
    with pytest.raises(TypeError, match=rf"^expected a key from jax.random.key\(seed\), got {given}"):
        as_key(key)


def test_several_keys_are_refused_with_the_remedy():
    for keys in (jax.random.split(jax.random.key(0), 4), jnp.zeros((4, 2), jnp.uint32)):
        with pytest.raises(TypeError, match=r"^expected one key, got 4; map over several with jax.vmap"):
            as_key(keys)
