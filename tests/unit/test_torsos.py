"""Torsos for pixels: compared with XLA's convolution and pooling; parameters, refusals and advice."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from quantilax import DQN, IQN, Box, ConfigError, ConfigWarning, Discrete, TimeStep, train
from quantilax.networks import CNN, MLP, TORSOS, computing_in, torso
from quantilax.networks.torsos import PLAIN, SECTIONS, Convolution, padded, spectral_bound, windows
from tests.conftest import each


def make(name: str, shape: tuple[int, ...], sizes=(128,), dtype=jnp.float32, **settings):
    """A torso as an algorithm asks for it."""
    fields = dict(torso=name, torso_sizes=sizes, activation="relu", layer_norm=False, spectral_norm=False)
    return torso(Box(shape, dtype), SimpleNamespace(**fields | settings), rngs=nnx.Rngs(0))


def number_of_parameters(module: nnx.Module) -> int:
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def conv(x, kernel, bias, stride: int, padding: str):
    """XLA's convolution of one example."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), padding, dimension_numbers=numbers)[0] + bias


def layer_norm(x):
    """Over the channels of each cell, with gains 1 and offsets 0."""
    return (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)


def dense(mlp: MLP, x, norm=lambda x: x):
    """Layers of an MLP, one by one."""
    for layer in mlp.layers:
        x = jnp.maximum(norm(x @ layer.kernel[...] + layer.bias[...]), 0)
    return x


SHAPES = {"minatar": [(10, 10, 4), (84, 84, 4), (38, 45, 2)], "nature": [(84, 84, 4), (38, 45, 2)]}
"""36 x 36 is the least that Nature's convolutions take; less is refused."""


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in PLAIN for shape in SHAPES[name]])
@pytest.mark.parametrize("norm", [False, True])
def test_plain_torsos_are_xlas_convolutions_and_dense_layers(name, norm, shape):
    module = make(name, shape, (12, 7), layer_norm=norm)
    obs = jax.random.normal(jax.random.key(0), shape)
    normalised = layer_norm if norm else lambda x: x

    @jax.jit
    def oracle(x):
        for layer, (_, _, stride) in zip(module.cells.layers, PLAIN[name], strict=True):
            x = jnp.maximum(normalised(conv(x, layer.kernel[...], layer.bias[...], stride, "VALID")), 0)
        assert module.cells.shape == x.shape
        return dense(module.mlp, x.ravel(), normalised)

    assert module.features == 7
    assert_allclose(jax.jit(module)(obs), oracle(obs), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(10, 10, 4), (21, 16, 3)])
def test_the_impala_torso_is_xlas_convolutions_and_pooling(norm, shape):
    module = make("impala", shape, (9,), layer_norm=norm)
    obs = jax.random.normal(jax.random.key(0), shape)

    def activation(x):
        return jnp.maximum(layer_norm(x) if norm else x, 0)

    def same(convolution, x):
        return conv(x, convolution.kernel[...], convolution.bias[...], 1, "SAME")

    @jax.jit
    def oracle(x):
        for section in module.cells.sections:
            x = same(section.convolution, x)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), "SAME")
            for block in section.blocks:
                first, second = block.convolutions
                x = x + same(second, activation(same(first, activation(x))))
        x = activation(x)
        assert module.cells.shape == x.shape
        return dense(module.mlp, x.ravel(), layer_norm if norm else lambda x: x)

    assert_allclose(jax.jit(module)(obs), oracle(obs), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "rows"), [(3, 1, 10), (3, 2, 10), (3, 2, 7), (8, 4, 84), (4, 2, 9), (5, 3, 2)]
)
def test_padding_is_xlas(size, stride, rows):
    x = jax.random.normal(jax.random.key(0), (rows, rows + 1, 2))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 2, 3))
    in_windows = jax.jit(lambda x: jnp.concatenate(windows(padded(x, size, stride, 0.0), size, stride), axis=-1))
    ours = in_windows(x) @ kernel.reshape(-1, 3)
    assert_allclose(ours, conv(x, kernel, 0.0, stride, "SAME"), rtol=1e-4, atol=1e-4)


def test_a_convolution_has_the_gradients_of_xlas():
    layer = Convolution(2, 3, 3, 2, padded=True, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), (5, 9, 8, 2))

    def ours(params, x):
        return jnp.sin(jax.vmap(nnx.merge(graphdef, params))(x)).sum()

    def xlas(params, x):
        layer = nnx.merge(graphdef, params)
        return jnp.sin(jax.vmap(lambda x: conv(x, layer.kernel[...], layer.bias[...], 2, "SAME"))(x)).sum()

    gradients = [jax.tree.leaves(jax.jit(jax.grad(f, argnums=(0, 1)))(params, x)) for f in (ours, xlas)]
    assert len(gradients[0]) == 3
    for a, b in zip(*gradients, strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_torsos_have_the_parameters_of_their_papers():
    # Breakout of MinAtar: 3*3*4*16 + 16; 8*8*16 cells to 128.
    assert number_of_parameters(make("minatar", (10, 10, 4))) == 592 + (8 * 8 * 16 * 128 + 128)
    # Atari: 8*8*4*32 + 32; 4*4*32*64 + 64; 3*3*64*64 + 64; 7*7*64 = 3,136 cells to 512.
    atari = 8_224 + 32_832 + 36_928
    assert number_of_parameters(make("nature", (84, 84, 4), (512,))) == atari + (3_136 * 512 + 512)
    # A section: 9 i o + o, and four of 9 o^2 + o; i to o is 4 to 16, 16 to 32, 32 to 32; 84 -> 42 -> 21 -> 11.
    sections = (592 + 4 * 2_320) + (4_640 + 4 * 9_248) + (9_248 + 4 * 9_248)
    assert number_of_parameters(make("impala", (84, 84, 4), (256,))) == sections + (11 * 11 * 32 * 256 + 256)


def test_without_dense_layers_the_features_are_the_cells():
    module = make("nature", (84, 84, 4), ())
    assert module(jnp.ones((84, 84, 4))).shape == (module.features,) == (3_136,)


def test_weights_are_uniform_within_one_over_the_root_of_fan_in():
    kernel = Convolution(40, 50, 5, 1, rngs=nnx.Rngs(0)).kernel[...]  # fan_in 5 * 5 * 40 = 1,000
    assert float(jnp.abs(kernel).max()) <= 1_000**-0.5
    assert_allclose(kernel.std(), 1_000**-0.5 / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize("name", ["minatar", "nature", "impala"])
def test_bytes_are_divided_by_255_and_bools_are_zeros_and_ones(name):
    shape = (40, 40, 2)
    pixels = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)
    module = make(name, shape, (5,))
    assert_allclose(module(pixels), module(pixels.astype(jnp.float32) / 255), rtol=1e-4, atol=1e-6)
    assert_array_equal(module(pixels > 99), module((pixels > 99).astype(jnp.float32)))


@pytest.mark.parametrize("shape", [(144, 16), (288, 32), (5, 40), (3, 3)])
def test_the_spectral_bound_is_no_smaller_than_the_norm_and_hardly_larger(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    norm = np.linalg.svd(matrix, compute_uv=False)[0]
    for scale in (1.0, 1e-6, 1e6):
        bound = float(spectral_bound(jnp.asarray(matrix * scale)))
        assert norm * scale * (1 - 1e-5) <= bound <= norm * scale * shape[1] ** (1 / 512) * (1 + 1e-5)


def test_the_spectral_bound_of_equal_singular_values_is_their_root_of_the_number_and_its_gradient_that_of_the_norm():
    # (sum of m ones)^(1/512), m = 4
    assert_allclose(spectral_bound(jnp.eye(4)), 4 ** (1 / 512), rtol=1e-5)
    # d sigma / dW = u v^T of the greatest one; here 2 at (0, 0), far above 1.
    gradient = jax.grad(spectral_bound)(jnp.diag(jnp.array([2.0, 1.0, 0.5])))
    assert_allclose(gradient, np.diag([1.0, 0.0, 0.0]), atol=1e-5)


def test_spectral_norm_divides_the_kernels_of_residual_blocks_and_of_nothing_else():
    plain, normalised = (make("impala", (10, 10, 4), (9,), spectral_norm=s) for s in (False, True))
    x = jax.random.normal(jax.random.key(0), (10, 10, 4))
    assert not np.allclose(plain(x), normalised(x))
    assert jax.tree.structure(nnx.state(plain)) == jax.tree.structure(nnx.state(normalised))  # no state of its own
    for section in plain.cells.sections:
        for block in section.blocks:
            for convolution in block.convolutions:
                matrix = convolution.kernel[...].reshape(-1, convolution.kernel.shape[-1])
                convolution.kernel[...] = convolution.kernel[...] / np.linalg.svd(matrix, compute_uv=False)[0]
    assert_allclose(plain(x), normalised(x), rtol=0.05, atol=1e-3)
    # A kernel's scale then is of no consequence, whatever it is.
    for section in normalised.cells.sections:
        for block in section.blocks:
            block.convolutions[0].kernel[...] = 10 * block.convolutions[0].kernel[...]
    assert_allclose(plain(x), normalised(x), rtol=0.05, atol=1e-3)


class Pixels:
    """Two actions; the first pays where the square is on the left. One step."""

    name = "pixels"
    action_space = Discrete(2)
    max_episode_steps = 1

    def __init__(self, shape=(36, 36, 1), dtype=jnp.uint8) -> None:
        self.observation_space = Box(shape, dtype)

    def draw(self, key):
        left = jax.random.bernoulli(key)
        columns = jnp.arange(self.observation_space.shape[1]) < self.observation_space.shape[1] // 2
        image = jnp.broadcast_to((columns == left)[None, :, None], self.observation_space.shape)
        return left, (image * 255).astype(self.observation_space.dtype)

    def reset(self, key):
        return self.draw(key)

    def step(self, key, state, action):
        left, obs = self.draw(key)
        reward = jnp.where((action == 0) == state, 1.0, -1.0)
        return left, TimeStep(obs, obs, reward, jnp.array(True), jnp.array(False))


@pytest.mark.parametrize("name", ["minatar", "nature", "impala"])
def test_a_torso_is_refused_where_observations_have_no_rows_and_columns(name):
    with pytest.raises(
        ConfigError, match=rf"torso: {name} needs .* rows, columns and channels.* \(4,\); set it to mlp"
    ):
        DQN.create(env="CartPole-v1", torso=name)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("nature", (10, 10, 4), r"nature needs observations of 36 x 36 or more.*\(10, 10, 4\); set it to minatar"),
        ("nature", (84, 35, 4), r"nature needs .* set it to minatar"),
        ("minatar", (2, 9, 4), r"minatar needs observations of 3 x 3 or more.*; set it to impala"),
    ],
)
def test_observations_that_are_too_small_are_refused_with_a_torso_that_fits(name, shape, words):
    with pytest.raises(ConfigError, match=words):
        IQN.create(env=Pixels(shape), torso=name)


def test_the_smallest_observations_are_taken():
    for name, shape in (("nature", (36, 36, 1)), ("minatar", (3, 3, 1)), ("impala", (1, 1, 1))):
        assert np.isfinite(jax.jit(make(name, shape))(jnp.ones(shape))).all()
        IQN.create(env=Pixels(shape), torso=name)


def test_the_spectral_norm_is_refused_where_there_are_no_residual_blocks():
    with pytest.raises(
        ConfigError, match=r"spectral_norm: .* torso=minatar has none; set it to false or torso to impala"
    ):
        DQN.create(env=Pixels(), torso="minatar", spectral_norm=True)
    with pytest.raises(ConfigError, match="spectral_norm"):
        DQN.create(env=Pixels(), torso="impala").replace(torso="nature", spectral_norm=True)


@pytest.mark.parametrize(
    ("shape", "suggested"), [((10, 10, 4), "minatar"), ((84, 84, 4), "nature"), ((2, 2, 1), "impala")]
)
def test_an_mlp_on_pixels_is_advised_against(shape, suggested):
    with pytest.warns(ConfigWarning, match=rf"torso=mlp flattens .*; set torso to {suggested}"):
        algo = DQN.create(env=Pixels(shape))
    assert train.advice(algo.env, algo.config)
    algo = DQN.create(env=Pixels(shape), torso=suggested)  # no warning: they are errors here
    assert train.advice(algo.env, algo.config) == []


def test_moments_of_each_cell_are_advised_against():
    with pytest.warns(ConfigWarning, match=r"normalize_observations=true with torso=minatar .*; set it to false"):
        DQN.create(env=Pixels(), torso="minatar", normalize_observations=True)


def test_an_unknown_torso_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="torso: unknown value 'minatr'; did you mean 'minatar'"):
        DQN.create(env=Pixels(), torso="minatr")


def test_the_names_are_those_that_are_made():
    assert TORSOS == ("mlp", "simba", "minatar", "nature", "impala")
    assert isinstance(make("mlp", (10, 10, 4)), MLP)
    assert all(isinstance(make(name, (36, 36, 1)), CNN) for name in TORSOS[2:])
    assert SECTIONS == (16, 32, 32)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", each(TORSOS, ["mlp", "minatar"]))
def test_told_to_compute_in_bfloat16_a_torso_gives_nearly_the_same_features_as_float32_and_float32_gradients(
    name, layer_norm
):
    settings = dict(layer_norm=layer_norm, spectral_norm=name == "impala")
    wide, narrow = (make(name, (38, 45, 2), (32,), **settings) for _ in range(2))
    computing_in(narrow, "bfloat16")
    x = jax.random.normal(jax.random.key(0), (38, 45, 2))
    a, b = jax.jit(wide.__call__)(x), jax.jit(narrow.__call__)(x)
    assert a.dtype == b.dtype == jnp.float32
    assert not np.array_equal(a, b)
    assert_allclose(a, b, atol=0.03 * float(jnp.abs(a).max()))  # 2^-9 per rounding
    network, params, rest = nnx.split(narrow, nnx.Param, ...)
    gradients = jax.jit(jax.grad(lambda params: (nnx.merge(network, params, rest)(x) ** 2).sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    plain = computing_in(
        make(name, (38, 45, 2), (32,), layer_norm=layer_norm), "bfloat16"
    )  # without products for norms
    products = [line for line in jax.jit(plain).lower(x).as_text().splitlines() if "dot_general" in line]
    assert len(products) > 0
    assert all(line.count("bf16") == 3 for line in products), "both operands and the result"


def test_pixels_are_pixels_in_whatever_form_that_is_no_float_they_are_handed_in():
    agent = IQN.create(env=Pixels((12, 12, 1)), torso="minatar", torso_sizes=(8,), fill_buffer=100)
    state = agent.init(jax.random.key(0))
    obs = agent.env.reset(jax.random.key(1))[1]
    assert obs.dtype == jnp.uint8
    taus, key = jnp.array([0.1, 0.9]), jax.random.key(2)
    for other in (np.asarray(obs).tolist(), np.asarray(obs, np.int64)):
        assert_array_equal(agent.quantiles(state, other, taus), agent.quantiles(state, obs, taus))
        assert_array_equal(agent.policy(state)(other, key), agent.policy(state)(obs, key))
    for ask in (lambda x: agent.policy(state)(x, key), lambda x: agent.quantiles(state, x, taus)):
        with pytest.raises(ConfigError, match=r"^obs: expected uint8, got float32"):
            ask(np.asarray(obs, np.float32) / 255)


def test_simba_is_the_sum_of_its_blocks():
    """x <- x + W_2 relu(W_1 LayerNorm(x)) for each block, then LayerNorm: in NumPy."""
    psi = make("simba", (3,), (8, 8))
    x = np.random.default_rng(0).normal(size=3).astype(np.float32)

    def layer_norm(h):
        return (h - h.mean()) / np.sqrt(h.var() + 1e-6)

    def layer(linear, h):
        return h @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])

    h = layer(psi.first, x)
    for wide, narrow in zip(psi.wide, psi.narrow, strict=True):
        assert wide.kernel.shape == (8, 32)
        h = h + layer(narrow, np.maximum(layer(wide, layer_norm(h)), 0))
    assert_allclose(psi(x), layer_norm(h), rtol=1e-4, atol=1e-5)
