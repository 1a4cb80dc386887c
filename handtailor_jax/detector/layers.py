"""Layers of the palm detector and the landmark network; maps are NHWC.

Padding is TensorFlow's "SAME", which is also XLA's: with a stride of 2 the surplus pixel of padding is at the end (a
5 x 5 kernel pads 1 and 2 pixels, a 3 x 3 kernel 0 and 1). The paper's hourglass pads both ends equally.

A 1 x 1 convolution is a matrix product over the channels (`Pointwise`), which is faster on a CPU. All weights start at
zero, because they are read from files; drawing them at random would take a quarter of the time of loading a network.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_ZEROS = nnx.initializers.zeros_init()

Pointwise = functools.partial(nnx.Linear, kernel_init=_ZEROS)
"""A 1 x 1 convolution with bias; its arguments are inputs, outputs, and the `rngs` that Flax requires."""


class Convolution(nnx.Module):
    """A dense convolution of few channels with bias: the first layer of a network."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int):
        self.kernel = nnx.Param(jnp.zeros((size, size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.stride = stride

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h_out w_out outputs"]:
        """Convolve a map; its height and width are divided by the stride."""
        y = convolve(x, self.kernel[...], self.stride)
        return y + jnp.broadcast_to(self.bias[...], y.shape)


class Depthwise(nnx.Module):
    """A convolution of each channel with its own k x k kernel."""

    def __init__(self, channels: int, size: int, stride: int = 1, *, bias: bool = False):
        self.kernel = nnx.Param(jnp.zeros((size, size, channels), jnp.float32))
        self.bias = nnx.data(nnx.Param(jnp.zeros(channels, jnp.float32)) if bias else None)
        self.stride = stride

    def __call__(self, x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h_out w_out channels"]:
        """Convolve a map; its height and width are divided by the stride."""
        y = convolve(x, self.kernel[:, :, None], self.stride)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)


@functools.partial(jax.jit, static_argnames="stride")
def convolve(
    x: Float[Array, "batch h w inputs"], kernel: Float[Array, "k k inputs_per_group outputs"], stride: int
) -> Float[Array, "batch h_out w_out outputs"]:
    """Convolve a map, all channels together or each channel with its own kernel (one input per group).

    On a CPU the result is the sum of k * k shifted maps per input of a group, because XLA's grouped convolution is 15
    to 50 times slower, and its convolution of three channels 8 times. On accelerators XLA's convolution is used.
    """
    shifts = functools.partial(_as_shifts, stride=stride)
    convolution = functools.partial(_as_convolution, stride=stride)
    return jax.lax.platform_dependent(x, kernel, cpu=shifts, default=convolution)


def _as_convolution(x: Array, kernel: Array, *, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _as_shifts(x: Array, kernel: Array, *, stride: int) -> Array:
    height, width = x.shape[1:3]
    size, _, inputs, outputs = kernel.shape
    pads = jax.lax.padtype_to_pads((height, width), (size, size), (stride, stride), "SAME")
    # Without the barrier XLA may merge the padding into the sum and check bounds in each of its terms.
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))
    rows, columns = ((length - 1) // stride * stride + 1 for length in (height, width))
    terms = []
    # jax.lax.slice, because indexing takes three times as long to trace.
    for i in range(size):
        for j in range(size):
            end = (padded.shape[0], i + rows, j + columns, padded.shape[3])
            part = jax.lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))
            shape = (*part.shape[:-1], outputs)
            for c in range(inputs):
                read = part if inputs == 1 else jnp.broadcast_to(part[..., c : c + 1], shape)
                factors = jax.lax.slice(kernel, (i, j, c, 0), (i + 1, j + 1, c + 1, outputs))
                terms.append(read * jnp.broadcast_to(factors, shape))
    return functools.reduce(jnp.add, terms)


class PReLU(nnx.Module):
    """x where it is positive, a learnt slope times x elsewhere; one slope per channel."""

    def __init__(self, channels: int):
        self.slope = nnx.Param(jnp.full(channels, 0.25))

    def __call__(self, x: Float[Array, "*axes channels"]) -> Float[Array, "*axes channels"]:
        """Apply the activation."""
        return jnp.where(x > 0.0, x, x * jnp.broadcast_to(self.slope[...], x.shape))


def max_pool_2(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h_half w_half c"]:
    """Return the maximum over 2 x 2 cells, stride 2."""
    # Slices are used because XLA's window reduction and its gradient are slow on a CPU.
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def upsample_2(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
    """Double height and width by bilinear interpolation between pixel centres."""
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")
