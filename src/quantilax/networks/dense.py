"""Dense layers over many rows, with weight gradients in a form that is fast on a CPU."""

import jax
from flax import nnx
from jaxtyping import Array, Float


def dense(layer: nnx.Linear, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
    """Return `layer(x)`, with a fast gradient of the weights if x is a matrix.

    For a matrix and a layer with a bias, `product_of_columns` computes that gradient. This supports
    reverse mode only: `jax.jvp` raises an error. In every case the layer computes in its `dtype`,
    if it has one.
    """
    if x.ndim != 2 or layer.bias is None:
        return layer(x)
    return _affine(*layer.promote_dtype((x, layer.kernel[...], layer.bias[...]), dtype=layer.dtype))


def product_of_columns(x: Float[Array, "rows n"], y: Float[Array, "rows m"]) -> Float[Array, "n m"]:
    """Return `x^T y`, transposing the narrower matrix first.

    XLA does not transpose by itself. On a CPU it then multiplies in one thread, at half the speed,
    or at a fifth of the speed if one of the two matrices is narrow. See
    docs/decisions/0013-gradients-of-weights.md.
    """
    if x.shape[1] > y.shape[1]:
        return _as_written(_as_written(y.T) @ x).T
    return _as_written(x.T) @ y


def _as_written(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Keep XLA from merging a transpose into a product."""
    x = jax.lax.optimization_barrier(x)
    return x


@jax.custom_vjp
def _affine(x: Float[Array, "rows n"], kernel: Float[Array, "n m"], bias: Float[Array, "m"]) -> Float[Array, "rows m"]:
    return x @ kernel + bias


def _affine_forward(
    x: Float[Array, "rows n"], kernel: Float[Array, "n m"], bias: Float[Array, "m"]
) -> tuple[Float[Array, "rows m"], tuple[Float[Array, "rows n"], Float[Array, "n m"]]]:
    return _affine(x, kernel, bias), (x, kernel)


def _affine_backward(
    saved: tuple[Float[Array, "rows n"], Float[Array, "n m"]], gradient: Float[Array, "rows m"]
) -> tuple[Float[Array, "rows n"], Float[Array, "n m"], Float[Array, "m"]]:
    x, kernel = saved
    return gradient @ kernel.T, product_of_columns(x, gradient), gradient.sum(axis=0)


_affine.defvjp(_affine_forward, _affine_backward)
