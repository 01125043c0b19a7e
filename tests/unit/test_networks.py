"""Networks: the cosine embedding's numbers, shapes, initial weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from quantilax.networks import (
    MLP,
    ActionHead,
    FractionProposal,
    ImplicitQuantileHead,
    computing_in,
    cosines,
    in_one_pass,
    linear,
    monotone,
    with_noise,
)
from quantilax.networks.dense import dense
from quantilax.networks.heads import SINE


def test_cosines_run_from_one_to_n():
    # cos(pi i 0.3), i = 1..4: i = 0 (a constant, which the bias gives) is left out.
    assert_allclose(cosines(jnp.array([0.3]), 4)[0], [0.587785, -0.309017, -0.951057, -0.809017], atol=1e-6)


def test_cosines_are_closer_to_the_true_value_than_xlas():
    tau = np.random.default_rng(0).uniform(size=2000).astype(np.float32)
    true = np.cos(np.pi * tau[:, None].astype(np.float64) * np.arange(1, 65))
    ours = np.abs(cosines(jnp.asarray(tau), 64) - true).max()
    xlas = np.abs(jnp.cos(jnp.pi * jnp.asarray(tau)[:, None] * jnp.arange(1, 65)) - true).max()
    assert ours < 1e-5
    assert ours < xlas


def test_the_sine_polynomial_is_a_best_fit():
    # The error of a degree-9 odd minimax fit on a quarter turn is 3.3e-9; a coefficient mistyped shows at once.
    u = np.linspace(-0.25, 0.25, 10_001)
    fit = u * np.polyval(SINE[::-1], u * u)
    assert np.abs(fit - np.sin(2 * np.pi * u)).max() < 4e-9


def test_cosines_have_the_derivative_of_a_cosine():
    gradient = jax.vmap(jax.grad(lambda t: cosines(t[None], 3)[0, 2]))(jnp.array([0.11, 0.47, 0.83]))
    assert_allclose(gradient, -3 * np.pi * np.sin(3 * np.pi * np.array([0.11, 0.47, 0.83])), rtol=1e-4)


def implicit_quantile_head(layer_norm: bool = False) -> ImplicitQuantileHead:
    return ImplicitQuantileHead(8, 3, (16, 5), 10, "relu", layer_norm, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_implicit_quantile_head_gives_a_value_per_fraction_and_action(layer_norm):
    assert implicit_quantile_head(layer_norm)(jnp.ones(8), jnp.linspace(0.1, 0.9, 6)).shape == (6, 3)


def test_implicit_quantile_head_is_f_of_the_hadamard_product():
    head, psi, tau = implicit_quantile_head(), jnp.linspace(-1, 1, 8), jnp.array([0.2, 0.7])
    for k in range(2):
        cos = np.cos(np.pi * np.arange(1, 11) * float(tau[k]))
        phi = np.maximum(cos @ head.embedding.linear.kernel[...] + head.embedding.linear.bias[...], 0)
        x = psi * phi
        for layer in head.f.mlp.layers:
            x = np.maximum(x @ layer.kernel[...] + layer.bias[...], 0)
        expected = x @ head.f.out.kernel[...] + head.f.out.bias[...]
        assert_allclose(head(psi, tau)[k], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [(), (7,)])
def test_an_action_head_gives_numbers_per_action_and_dueling_is_a_value_and_advantages_of_mean_zero(rows):
    plain, dueling = (ActionHead(8, 3, 4, (5,), dueling=d, rngs=nnx.Rngs(0)) for d in (False, True))
    x = jax.random.normal(jax.random.key(0), (*rows, 8))
    numbers = plain(x)
    assert numbers.shape == (*rows, 4, 3)
    value = dueling.value_out(jax.nn.relu(dueling.value_mlp.layers[0](x)))  # (*rows, 4)
    assert_allclose(dueling(x).mean(axis=-1), value, rtol=1e-4, atol=1e-6)
    centred = numbers - numbers.mean(axis=-1, keepdims=True)  # the same weights: the first that are drawn
    assert_allclose(dueling(x) - value[..., None], centred, rtol=1e-4, atol=1e-5)


def test_a_noisy_layer_is_its_means_and_with_noise_another_whose_spread_is_sigma():
    graphdef, params = nnx.split(linear(4, 3, nnx.Rngs(0), noisy=True))
    plain = linear(4, 3, nnx.Rngs(0))
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    assert_allclose(nnx.merge(graphdef, params)(x), plain(x), rtol=1e-6)

    draws = jax.vmap(lambda key: nnx.merge(graphdef, with_noise(params, key))(x))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    assert_allclose(draws.mean(axis=0), plain(x), atol=0.05)
    # sigma = .5 / sqrt(4); f(e) has mean 0 and E f(e)^2 = E |e| = sqrt(2 / pi) =: c. y = sigma f(e_out) (x . f(e_in) + 1),
    # so its variance is sigma^2 c (c |x|^2 + 1), |x|^2 = 14.25.
    c = np.sqrt(2 / np.pi)
    assert_allclose(draws.std(axis=0), 0.25 * np.sqrt(c * (c * 14.25 + 1)), rtol=0.03)


def test_each_noisy_layer_has_noise_of_its_own_and_gradients_reach_mu_and_sigma():
    head = ActionHead(8, 2, 1, (8,), noisy=True, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(head)
    noisy = nnx.merge(graphdef, with_noise(params, jax.random.key(0)))
    noise = [noisy.mlp.layers[0].bias[...], noisy.out.bias[...]]
    assert not np.allclose(noise[0][:2], noise[1])
    gradient = jax.grad(lambda p: nnx.merge(graphdef, with_noise(p, jax.random.key(1)))(jnp.ones(8)).sum())(params)
    leaves = dict(nnx.to_flat_state(gradient))
    assert len(leaves) == 8
    assert all(float(jnp.abs(leaf[...]).max()) > 0 for leaf in leaves.values())


def test_monotone_quantiles_rise_to_an_offset_and_a_scale():
    # 3 quantiles, 2 actions; softplus(ln(e^4 - 1)) = 4 and softplus(0) = ln 2.
    raw = jnp.array([[0.0, 1.0], [0.0, 1.0], [jnp.log(2.0), 1.0], [jnp.log(jnp.expm1(4.0)), 0.0], [-1.0, 7.0]])
    # Softmax of (0, 0, ln 2) is (1/4, 1/4, 1/2): 4 times its sums, less 1.
    expected = [[0, 7 + np.log(2) / 3], [1, 7 + np.log(2) * 2 / 3], [3, 7 + np.log(2)]]
    assert_allclose(monotone(raw), expected, atol=1e-5)


def test_monotone_quantiles_learn_whatever_the_sign_of_their_scale():
    scales = jnp.array([-10.0, -1.0, 0.0, 1.0])  # of 4 actions
    raw = jnp.broadcast_to(jnp.array([0.5, -1.0, 0.0, 0.0, 2.0])[:, None], (5, 4)).at[3].set(scales)
    gradient = jax.grad(lambda raw: (jnp.array([1.0, 3.0, 2.0]) @ monotone(raw)).sum())(raw)
    assert (np.abs(gradient) > 0).all()


def test_each_fraction_is_independent_of_the_others():
    head, psi = implicit_quantile_head(), jnp.ones(8)
    together = head(psi, jnp.array([0.2, 0.7]))
    assert_allclose(together[1], head(psi, jnp.array([0.7]))[0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_a_batch_is_its_observations_one_by_one_with_fractions_of_their_own_or_shared(shape):
    head = implicit_quantile_head()
    psi = jax.random.normal(jax.random.key(0), (*shape, 8))
    own, shared = jax.random.uniform(jax.random.key(1), (*shape, 6)), jnp.linspace(0.1, 0.9, 6)
    together, together_shared = head(psi, own), head(psi, shared)
    assert together.shape == together_shared.shape == (*shape, 6, 3)
    for i in np.ndindex(*shape):
        assert_allclose(together[i], head(psi[i], own[i]), rtol=1e-5, atol=1e-6)
        assert_allclose(together_shared[i], head(psi[i], shared), rtol=1e-5, atol=1e-6)


def products(jaxpr) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the left operand and of the result of each matrix product, those of inner functions too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append((equation.invars[0].aval.shape, equation.outvars[0].aval.shape))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                found += products(inner)
    return found


def test_fractions_that_a_batch_shares_are_embedded_once():
    head = implicit_quantile_head()

    def embedded(shape: tuple[int, ...]) -> int:
        found = products(jax.make_jaxpr(head)(jnp.ones((32, 8)), jnp.ones(shape)).jaxpr)
        return max(left[0] for left, _ in found if left[-1] == 10)  # 10 cosines

    assert embedded((32, 6)) == 32 * 6
    assert embedded((6,)) == 6


def test_the_torso_is_computed_once_per_observation_whatever_the_number_of_fractions():
    torso = MLP(4, (8,), "relu", False, rngs=nnx.Rngs(0))
    head = implicit_quantile_head()

    def torso_rows(fractions: int) -> list[int]:
        jaxpr = jax.make_jaxpr(lambda x, tau: head(torso(x), tau))(jnp.ones(4), jnp.ones(fractions))
        return [math.prod(result) for left, result in products(jaxpr.jaxpr) if left[-1] == 4]

    assert torso_rows(64) == [8]


def test_several_sets_of_fractions_in_one_pass_are_the_sets_one_by_one():
    head, psi = implicit_quantile_head(), jax.random.normal(jax.random.key(0), (3, 8))
    for shape in ((3, 5), (3, 2)), ((5,), (2,)):  # fractions of their own, and shared ones
        taus = [jax.random.uniform(jax.random.key(i), s) for i, s in enumerate(shape)]
        for Z, tau in zip(in_one_pass(head, psi, *taus), taus, strict=True):
            assert_allclose(Z, head(psi, tau), rtol=1e-5, atol=1e-6)


def plain(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    return x @ layer.kernel[...] + layer.bias[...]


def gradients(affine, layer: nnx.Linear, x: jax.Array, axes=None):
    """Of a function of the outputs that is not linear, in the layer and in x; `axes` map over copies of the two."""
    graphdef, params = nnx.split(layer)

    def value(params, x):
        return jnp.sin(affine(nnx.merge(graphdef, params), x)).sum()

    gradient = jax.grad(value, argnums=(0, 1))
    if axes is None:
        return gradient(params, x)
    if axes[0] is not None:
        params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), params)
    return jax.vmap(gradient, axes)(params, x)


def assert_all_close(got, expected):
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


@pytest.mark.parametrize("outputs", [1, 2, 7, 11])  # fewer than the inputs, as many, more
@pytest.mark.parametrize("rows", [1, 40])
def test_dense_has_the_values_and_gradients_of_the_plain_layer(outputs, rows):
    layer, x = linear(7, outputs, nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (rows, 7))
    assert_allclose(dense(layer, x), plain(layer, x), rtol=1e-6)
    assert_all_close(gradients(dense, layer, x), gradients(plain, layer, x))


@pytest.mark.parametrize("outputs", [2, 7])
@pytest.mark.parametrize("axes", [(None, 0), (0, 0)])  # one layer for all, as over a batch; a layer each, as over seeds
def test_dense_under_vmap_has_the_gradients_of_the_plain_layer(outputs, axes):
    layer, x = linear(7, outputs, nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (3, 40, 7))
    assert_all_close(gradients(dense, layer, x, axes), gradients(plain, layer, x, axes))


def test_dense_has_second_derivatives():
    layer, x = linear(3, 2, nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (5, 3))

    def slope(affine, x):
        return (jax.grad(lambda x: jnp.sin(affine(layer, x)).sum())(x) ** 2).sum()

    assert_allclose(jax.grad(slope, argnums=1)(dense, x), jax.grad(slope, argnums=1)(plain, x), rtol=1e-4, atol=1e-5)


def test_no_weights_gradient_of_the_head_reads_a_matrix_of_rows_by_its_columns():
    head, psi, tau = implicit_quantile_head(), jnp.ones((32, 8)), jnp.ones((32, 6))
    graphdef, params = nnx.split(head)
    loss = jax.jit(jax.grad(lambda params: nnx.merge(graphdef, params)(psi, tau).var()))
    compiled = loss.lower(params).compile().as_text()
    products = [line for line in compiled.splitlines() if " dot(" in line]
    assert len(products) >= 7  # four layers forwards, and backwards at least as many but one
    assert [line for line in products if "lhs_contracting_dims={1}" not in line] == []


def test_weights_are_uniform_within_one_over_the_root_of_fan_in():
    kernel = MLP(100, (500,), "relu", False, rngs=nnx.Rngs(0)).layers[0].kernel[...]
    assert float(jnp.abs(kernel).max()) <= 0.1
    assert_allclose(kernel.std(), 0.1 / np.sqrt(3), rtol=0.02)


def test_an_observation_of_any_shape_and_dtype_is_flattened():
    torso = MLP(12, (5,), "swish", True, rngs=nnx.Rngs(0))
    assert torso(jnp.ones((2, 3, 2), jnp.uint8)).shape == (5,)


@pytest.mark.parametrize(("dueling", "noisy"), [(False, False), (True, False), (True, True)])
def test_in_bfloat16_a_head_gives_nearly_the_same_values_as_float32(dueling, noisy):
    def head(name):
        made = ImplicitQuantileHead(16, 3, (32,), 64, "relu", True, dueling, noisy, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(computing_in(made, name))
        return nnx.merge(graphdef, with_noise(params, jax.random.key(2)) if noisy else params)

    wide, narrow = head("float32"), head("bfloat16")
    psi, tau = jax.random.normal(jax.random.key(0), (5, 16)), jax.random.uniform(jax.random.key(1), (5, 8))
    a, b = wide(psi, tau), narrow(psi, tau)
    assert a.dtype == b.dtype == jnp.float32
    assert not np.array_equal(a, b)
    assert_allclose(a, b, atol=0.03 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("dueling", [False, True])
def test_in_bfloat16_values_of_a_hundred_are_told_apart_as_finely_as_small_ones(dueling):
    # Between 64 and 128 numbers of bfloat16 lie 0.5 apart.
    head = computing_in(ActionHead(16, 3, 1, (32,), dueling=dueling, rngs=nnx.Rngs(0)), "bfloat16")
    x = jax.random.normal(jax.random.key(0), (50, 16))
    small = head(x)
    layer = head.value_out if dueling else head.out
    layer.bias[...] = jnp.full_like(layer.bias[...], 100.0)
    assert_allclose(head(x) - 100, small, atol=1e-4)


def test_in_bfloat16_hidden_layers_compute_in_it_and_those_that_give_values_in_float32():
    head = computing_in(ImplicitQuantileHead(16, 3, (32, 8), 64, "relu", False, True, rngs=nnx.Rngs(0)), "bfloat16")
    psi, tau = jax.random.normal(jax.random.key(0), (5, 16)), jax.random.uniform(jax.random.key(1), (5, 8))
    lines = [line for line in jax.jit(head).lower(psi, tau).as_text().splitlines() if "dot_general" in line]
    assert ["bf16" in line for line in lines].count(True) == 5, "the embedding and two hidden layers of either stream"
    assert [line.count("xf32>") for line in lines if "bf16" not in line] == [3, 3], "the outputs of both"


def test_in_bfloat16_the_layer_that_proposes_fractions_still_computes_in_float32():
    proposal = FractionProposal(16, 32, rngs=nnx.Rngs(0))
    proposal.linear.kernel[...] = jax.random.normal(jax.random.key(0), (16, 32))
    psi = jax.random.normal(jax.random.key(1), (5, 16))
    before = proposal(psi)
    assert_array_equal(computing_in(proposal, "bfloat16")(psi), before)
