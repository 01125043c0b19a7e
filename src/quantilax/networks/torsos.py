"""Torsos map an observation to features psi(x); `torso` builds the one that a config names.

| `torso` | layers before the dense layers of `torso_sizes` |
|---|---|
| `mlp` | none: the observation is flattened |
| `simba` | none; the layers of `torso_sizes` are residual blocks: Lee et al. (2024) |
| `minatar` | 16 filters of 3x3: Young & Tian (2019) |
| `nature` | 32 filters of 8x8, 64 of 4x4, 64 of 3x3: Mnih et al. (2015) |
| `impala` | 16, 32 and 32 filters with residual blocks: Espeholt et al. (2018) |

Sources: Young & Tian (2019), https://arxiv.org/abs/1903.03176; Mnih et al. (2015),
https://doi.org/10.1038/nature14236; Espeholt et al. (2018), https://arxiv.org/abs/1802.01561;
Lee et al. (2024), https://arxiv.org/abs/2410.09754.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, Float, Shaped

from quantilax.errors import ConfigError
from quantilax.networks.dense import dense
from quantilax.networks.noisy import NoisyLinear
from quantilax.types import Box

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "swish": jax.nn.swish,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
}

uniform_fan_in = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the initialisation of DQN and its descendants."""


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, noisy: bool = False, dtype: Any = None) -> nnx.Linear:
    """Return a dense layer with `uniform_fan_in` weights and zero biases.

    Args:
        inputs, outputs, rngs: as for `nnx.Linear`.
        noisy: whether the weights have learned noise.
        dtype: the number format in which the layer computes.
    """
    return (NoisyLinear if noisy else nnx.Linear)(inputs, outputs, kernel_init=uniform_fan_in, dtype=dtype, rngs=rngs)


class MLP(nnx.Module):
    """Dense layers on a flattened input.

    Each is followed by LayerNorm (if asked for) and the activation.
    """

    def __init__(
        self,
        inputs: int,
        sizes: Sequence[int],
        activation: str,
        layer_norm: bool,
        noisy: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Build a layer for each of `sizes`. `activation` is a name in `ACTIVATIONS`."""
        widths = [inputs, *sizes]
        self.layers = nnx.List([linear(i, o, rngs, noisy) for i, o in pairwise(widths)])
        self.norms = nnx.List([nnx.LayerNorm(o, rngs=rngs) for o in sizes] if layer_norm else [])
        self.activation = activation
        self.features = widths[-1]

    def __call__(self, obs: Shaped[Array, "*obs"]) -> Float[Array, "features"]:
        """Return psi(x) of one observation."""
        return jnp.asarray(self.rows(jnp.ravel(obs)), jnp.float32)

    def rows(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows features"]:
        """Apply the layers to the last axis, with any number of leading axes."""
        x = jnp.asarray(x, jnp.float32)
        for i, layer in enumerate(self.layers):
            x = dense(layer, x)
            if self.norms:
                x = self.norms[i](x)
            x = ACTIVATIONS[self.activation](x)
        return x


EXPANSION = 4
"""Width of a residual block's hidden layer, as a multiple of the block's width."""


class Simba(nnx.Module):
    """Residual blocks on a flattened input: `x + W_2 f(W_1 LayerNorm(x))`, then LayerNorm.

    f is the activation; the paper's is relu.

    Source: Lee et al. (2024), https://arxiv.org/abs/2410.09754. Its running normalisation of
    observations is the hyperparameter `normalize_observations`.
    """

    def __init__(self, inputs: int, sizes: Sequence[int], activation: str, *, rngs: nnx.Rngs) -> None:
        """Build a block for each of `sizes`, which are all equal."""
        width = sizes[0]
        self.first = linear(inputs, width, rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(len(sizes) + 1)])
        self.wide = nnx.List([linear(width, EXPANSION * width, rngs) for _ in sizes])
        self.narrow = nnx.List([linear(EXPANSION * width, width, rngs) for _ in sizes])
        self.activation = activation
        self.features = width

    def __call__(self, obs: Shaped[Array, "*obs"]) -> Float[Array, "features"]:
        """Return psi(x) of one observation."""
        x = self.first(jnp.asarray(jnp.ravel(obs), jnp.float32))
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=False):
            x = x + narrow(ACTIVATIONS[self.activation](wide(norm(x))))
        return jnp.asarray(self.norms[-1](x), jnp.float32)


class Layer(NamedTuple):
    """A convolution: the number of filters, their height and width, and the stride."""

    filters: int
    size: int
    stride: int


PLAIN: dict[str, tuple[Layer, ...]] = {
    "minatar": (Layer(16, 3, 1),),
    "nature": (Layer(32, 8, 4), Layer(64, 4, 2), Layer(64, 3, 1)),
}
"""Torsos that are a plain stack of convolutions, without padding."""
SECTIONS = (16, 32, 32)
"""Number of filters in each section of `impala`."""
FLAT = ("mlp", "simba")
"""Torsos of flat observations."""
TORSOS = (*FLAT, *PLAIN, "impala")


def torso(space: Box, config: Any, *, rngs: nnx.Rngs) -> "MLP | Simba | CNN":
    """Build the torso that a config describes, for the observations of a space."""
    if config.torso == "simba":
        return Simba(math.prod(space.shape), config.torso_sizes, config.activation, rngs=rngs)
    if config.torso == "mlp":
        return MLP(math.prod(space.shape), config.torso_sizes, config.activation, config.layer_norm, rngs=rngs)
    return CNN(
        config.torso,
        space.shape,
        config.torso_sizes,
        config.activation,
        config.layer_norm,
        config.spectral_norm,
        rngs=rngs,
    )


def check(space: Box, config: Any) -> None:
    """Raise `ConfigError` if the torso does not fit the observations or the other options."""
    if config.spectral_norm and config.torso != "impala":
        raise ConfigError(
            f"spectral_norm: is for residual blocks, and torso={config.torso} has none; set it to false or torso to impala"
        )
    if config.torso == "simba":
        if len(set(config.torso_sizes)) != 1:
            raise ConfigError(
                "torso_sizes: simba adds its blocks' outputs to their inputs, so all need one width, as in [128, 128]; got"
                f" {list(config.torso_sizes)}"
            )
        if config.layer_norm:
            raise ConfigError("layer_norm: simba has LayerNorm in places of its own; set it to false")
    if config.torso in FLAT:
        return
    if len(space.shape) != 3:
        raise ConfigError(
            f"torso: {config.torso} needs observations of rows, columns and channels, the environment's have the shape"
            f" {space.shape}; set it to mlp"
        )
    least = smallest(PLAIN.get(config.torso, ()))
    if min(space.shape[:2]) < least:
        raise ConfigError(
            f"torso: {config.torso} needs observations of {least} x {least} or more, the environment's have the shape"
            f" {space.shape}; set it to {_suggested(space.shape)}"
        )


def advice(space: Box, config: Any) -> list[str]:
    """Return lines on torsos known to mislead, each with the remedy."""
    if len(space.shape) == 3 and config.torso in FLAT:
        return [
            f"torso={config.torso} flattens observations of shape {space.shape} and loses which cells are neighbours; set"
            f" torso to {_suggested(space.shape)}"
        ]
    if config.torso not in FLAT and config.normalize_observations:
        return [
            f"normalize_observations=true with torso={config.torso} scales each cell by its own moments, so that the same"
            " thing looks different in each place; set it to false (bytes are divided by 255 in any case)"
        ]
    return []


def smallest(layers: Sequence[Layer]) -> int:
    """Return the height and width of the smallest image on which the layers give one cell."""
    size = 1
    for layer in reversed(layers):
        size = (size - 1) * layer.stride + layer.size
    return size


def _suggested(shape: tuple[int, ...]) -> str:
    """Return the name of a torso that is meant for images of this size."""
    rows = min(shape[:2])
    return next((name for name in reversed(PLAIN) if rows >= smallest(PLAIN[name])), "impala")


class CNN(nnx.Module):
    """Convolutions over rows and columns, then dense layers.

    LayerNorm, if asked for, comes before each activation. It is over the channels of a cell, as in
    Gallici et al. (2024), https://arxiv.org/abs/2407.04811, and over the whole output of a dense
    layer. Bytes are divided by 255; other numbers and bools are used as they are.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        sizes: Sequence[int],
        activation: str,
        layer_norm: bool,
        spectral_norm: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the convolutions and the dense layers.

        Args:
            name: of the convolutions, one of `TORSOS` except `mlp`.
            shape: of an observation: rows, columns and channels.
            sizes: of the dense layers.
            activation: a name in `ACTIVATIONS`.
            layer_norm: whether LayerNorm comes before each activation.
            spectral_norm: see `Block`; only for `impala`.
            rngs: for the initial weights.
        """
        self.cells = (
            Residual(shape, activation, layer_norm, spectral_norm, rngs=rngs)
            if name == "impala"
            else Plain(PLAIN[name], shape, activation, layer_norm, rngs=rngs)
        )
        self.mlp = MLP(math.prod(self.cells.shape), sizes, activation, layer_norm, rngs=rngs)
        self.features = self.mlp.features

    def __call__(self, obs: Shaped[Array, "rows columns channels"]) -> Float[Array, "features"]:
        """Return psi(x) of one observation."""
        x = jnp.asarray(obs, jnp.float32)
        return self.mlp(self.cells(x / 255 if obs.dtype == jnp.uint8 else x))


class Plain(nnx.Module):
    """A stack of convolutions, each followed by the activation."""

    def __init__(
        self, layers: Sequence[Layer], shape: tuple[int, ...], activation: str, layer_norm: bool, *, rngs: nnx.Rngs
    ) -> None:
        """Build the layers for inputs of `shape`. `self.shape` is the shape of the output."""
        channels = [shape[2], *(layer.filters for layer in layers)]
        self.layers = nnx.List([Convolution(i, *layer, rngs=rngs) for i, layer in zip(channels, layers, strict=False)])
        self.activations = nnx.List([Activation(c, activation, layer_norm, rngs=rngs) for c in channels[1:]])
        rows, columns = shape[:2]
        for layer in layers:
            rows, columns = ((n - layer.size) // layer.stride + 1 for n in (rows, columns))
        self.shape = rows, columns, channels[-1]

    def __call__(self, x: Float[Array, "rows columns channels"]) -> Float[Array, "rows_out columns_out filters"]:
        """Return the last activation."""
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = activation(layer(x))
        return x


class Residual(nnx.Module):
    """The convolutions of IMPALA's large network: sections, then an activation."""

    def __init__(
        self, shape: tuple[int, ...], activation: str, layer_norm: bool, spectral_norm: bool, *, rngs: nnx.Rngs
    ) -> None:
        """Build the sections for inputs of `shape`. `self.shape` is the shape of the output."""
        channels = [shape[2], *SECTIONS]
        self.sections = nnx.List(
            [Section(i, o, activation, layer_norm, spectral_norm, rngs=rngs) for i, o in pairwise(channels)]
        )
        self.activation = Activation(channels[-1], activation, layer_norm, rngs=rngs)
        rows, columns = (-(-n // 2 ** len(SECTIONS)) for n in shape[:2])
        self.shape = rows, columns, channels[-1]

    def __call__(self, x: Float[Array, "rows columns channels"]) -> Float[Array, "rows_out columns_out filters"]:
        """Return the last activation."""
        for section in self.sections:
            x = section(x)
        return self.activation(x)


class Section(nnx.Module):
    """A convolution, a 3 x 3 max pooling with stride 2, and two residual blocks."""

    def __init__(
        self, inputs: int, filters: int, activation: str, layer_norm: bool, spectral_norm: bool, *, rngs: nnx.Rngs
    ) -> None:
        """Build the convolution and the blocks."""
        self.convolution = Convolution(inputs, filters, 3, 1, padded=True, rngs=rngs)
        self.blocks = nnx.List([Block(filters, activation, layer_norm, spectral_norm, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Float[Array, "rows columns inputs"]) -> Float[Array, "rows_out columns_out filters"]:
        """Return features with half as many rows and columns, rounded up."""
        x = jnp.stack(windows(padded(self.convolution(x), 3, 2, -jnp.inf), 3, 2)).max(axis=0)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    """A residual block: x + conv(activation(conv(activation(x)))).

    With `spectral_norm`, both kernels are divided by their spectral norm, which keeps the branch
    from growing. It applies to all residual blocks and nowhere else, as in Schmidt & Schmied
    (2021), https://arxiv.org/abs/2111.10247, for this network.
    """

    def __init__(
        self, channels: int, activation: str, layer_norm: bool, spectral_norm: bool, *, rngs: nnx.Rngs
    ) -> None:
        """Build both convolutions."""
        self.activations = nnx.List([Activation(channels, activation, layer_norm, rngs=rngs) for _ in range(2)])
        self.convolutions = nnx.List(
            [
                Convolution(channels, channels, 3, 1, padded=True, spectral_norm=spectral_norm, rngs=rngs)
                for _ in range(2)
            ]
        )

    def __call__(self, x: Float[Array, "rows columns channels"]) -> Float[Array, "rows columns channels"]:
        """Return the sum."""
        y = x
        for activation, convolution in zip(self.activations, self.convolutions, strict=True):
            y = convolution(activation(y))
        return x + y


class Activation(nnx.Module):
    """The activation, after LayerNorm over the channels of each cell if asked for."""

    def __init__(self, channels: int, name: str, layer_norm: bool, *, rngs: nnx.Rngs) -> None:
        """Build the LayerNorm, if asked for. `name` is one in `ACTIVATIONS`."""
        self.norm = nnx.LayerNorm(channels, rngs=rngs) if layer_norm else None
        self.name = name

    def __call__(self, x: Float[Array, "*cells channels"]) -> Float[Array, "*cells channels"]:
        """Apply LayerNorm, if there is one, and the activation."""
        return ACTIVATIONS[self.name](x if self.norm is None else self.norm(x))


class Convolution(nnx.Module):
    """A convolution over rows and columns, computed as one product of the windows with the kernel.

    It is initialised like `linear`. On a CPU the gradient of XLA's own convolution takes four to
    ten times as long, see docs/decisions/0018-torsos.md.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        size: int,
        stride: int,
        padded: bool = False,
        spectral_norm: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Build a kernel of (size, size, inputs, filters).

        Args:
            inputs, filters: number of channels before and after.
            size: height and width of the kernel.
            stride: distance between windows.
            padded: whether zeros pad the input, so that every cell counts.
            spectral_norm: whether the kernel is divided by its spectral norm.
            rngs: for the initial weights.
        """
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (size, size, inputs, filters), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(filters))
        self.size, self.stride = size, stride
        self.padded, self.spectral_norm = padded, spectral_norm
        self.dtype: Any = None

    def __call__(self, x: Float[Array, "rows columns inputs"]) -> Float[Array, "rows_out columns_out filters"]:
        """Apply the kernel to each window and add the bias."""
        kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        if self.spectral_norm:
            kernel = kernel / spectral_bound(kernel)
        if self.padded:
            x = padded(x, self.size, self.stride, 0.0)
        x, kernel, bias = promote_dtype((x, kernel, self.bias[...]), dtype=self.dtype)
        return jnp.concatenate(windows(x, self.size, self.stride), axis=-1) @ kernel + bias


def windows(
    x: Float[Array, "rows columns channels"], size: int, stride: int
) -> list[Float[Array, "rows_out columns_out channels"]]:
    """Return, for each (i, j) in order, cell (i, j) of every window of `size` x `size`."""
    rows, columns = ((n - size) // stride * stride + 1 for n in x.shape[:2])
    return [x[i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]


def padded(
    x: Float[Array, "rows columns channels"], size: int, stride: int, value: float
) -> Float[Array, "padded_rows padded_columns channels"]:
    """Pad x with `value` so that windows begin at every `stride`-th cell.

    If the number of new cells is odd, one more goes after the last cell than before the first.
    """
    totals = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[:2])
    widths = [(total // 2, total - total // 2) for total in totals]
    return jnp.pad(x, [*widths, (0, 0)], constant_values=value)


SQUARINGS = 8


def spectral_bound(matrix: Float[Array, "n m"]) -> Float[Array, ""]:
    """Return the largest singular value of a matrix W of m columns, or slightly more.

    The result is at most m^(1/512) times too large (1.4 % at m = 1000), and never too small. It is
    `trace((W^T W)^p)^(1/2p)` with p = 2^8, computed by squaring eight times.

    That equals 256 steps of the power iteration of Miyato et al. (2018),
    https://arxiv.org/abs/1802.05957, but carries no vector from step to step, so the network stays
    a function of its parameters.
    """
    gram = matrix.T @ matrix
    log = jnp.zeros(())
    for i in range(SQUARINGS + 1):
        trace = jnp.trace(gram) + 1e-30  # above 0, even if all weights are 0
        log = log + jnp.log(trace) / 2**i
        gram = gram / trace
        gram = gram @ gram
    return jnp.exp(log / 2)
