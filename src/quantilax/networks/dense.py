"""Dense layers over many rows, with gradients of the weights in a form that is fast on a CPU."""

import jax
from flax import nnx
from jaxtyping import Array, Float


def dense(layer: nnx.Linear, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
    """`layer(x)`; for a matrix of rows with the gradient of the weights as `product_of_columns` has it.

    That one has derivatives in reverse mode only: `jax.jvp` refuses. Both compute in the layer's `dtype`, if it has one.
    """
    if x.ndim != 2 or layer.bias is None:
        return layer(x)
    return _affine(*layer.promote_dtype((x, layer.kernel[...], layer.bias[...]), dtype=layer.dtype))


def product_of_columns(x: Float[Array, "rows n"], y: Float[Array, "rows m"]) -> Float[Array, "n m"]:
    """`x^T y`, the narrower of the two turned first.

    By itself XLA does not turn them: on a CPU it then multiplies in one thread, at half the speed, and if one of the two is
    narrow at a fifth. See docs/decisions/0013-gradients-of-weights.md.
    """
    if x.shape[1] > y.shape[1]:
        return _as_written(_as_written(y.T) @ x).T
    return _as_written(x.T) @ y


def _as_written(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Keep XLA from taking a transpose into a product."""
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
