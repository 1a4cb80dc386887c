"""Layers of the hand module; maps are NHWC.

A 1 x 1 convolution is a matrix product over the channels (`nnx.Linear`): it computes the same, and faster on a CPU.
Padding is explicit, because XLA's "SAME" pads a stride of two differently from the released network.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.hand_module.config import HandModuleConfig

Module = TypeVar("Module", bound=nnx.Module)


def linear(
    inputs: int, outputs: int, config: HandModuleConfig, *, bias: bool = True, gain: float = 2.0, rngs: nnx.Rngs
) -> nnx.Linear:
    """Create a linear layer over the last axis; on maps it is a 1 x 1 convolution."""
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=config.dtype, kernel_init=_normal(gain), rngs=rngs)


def head(inputs: int, outputs: int, config: HandModuleConfig, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Create a linear output layer, whose output is close to its bias before training."""
    return linear(inputs, outputs, config, gain=0.02, rngs=rngs)


def convolution(
    inputs: int, outputs: int, size: int, config: HandModuleConfig, *, stride: int = 1, rngs: nnx.Rngs
) -> nnx.Conv:
    """Create a convolution with an odd kernel size, padded by half of it on each side."""
    kernel, half, init = (size, size), size // 2, _normal(2.0)
    return nnx.Conv(
        inputs, outputs, kernel, strides=stride, padding=half, dtype=config.dtype, kernel_init=init, rngs=rngs
    )


def batch_norm(channels: int, config: HandModuleConfig, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Create a batch normalisation over all axes but the last, and over the devices of `config.batch_axis`."""
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, dtype=config.dtype, axis_name=config.batch_axis, rngs=rngs
    )


def _normal(gain: float) -> nnx.Initializer:
    # A gain of 2 keeps the variance through a ReLU.
    return nnx.initializers.variance_scaling(gain, "fan_in", "normal")


def _scale_and_shift(norm: nnx.BatchNorm) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Return the scale and shift per channel by which a batch normalisation is replaced at inference."""
    assert norm.scale is not None
    assert norm.bias is not None
    scale = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
    return scale, norm.bias[...] - norm.mean[...] * scale


class Affine(nnx.Module):
    """Scale and shift per channel, which replaces a batch normalisation at inference."""

    def __init__(self, scale: Float[Array, "channels"], bias: Float[Array, "channels"]):
        self.scale = nnx.Param(scale)
        self.bias = nnx.Param(bias)

    def __call__(self, x: Float[Array, "*axes channels"]) -> Float[Array, "*axes channels"]:
        """Return x * scale + bias."""
        scale = jnp.broadcast_to(self.scale[...].astype(x.dtype), x.shape)
        return x * scale + jnp.broadcast_to(self.bias[...].astype(x.dtype), x.shape)


class Block(nnx.Module):
    """A linear layer or convolution, then batch normalisation, then ReLU."""

    def __init__(self, layer: nnx.Linear | nnx.Conv, config: HandModuleConfig, *, rngs: nnx.Rngs):
        self.layer = layer
        self.norm: nnx.BatchNorm | None = batch_norm(layer.out_features, config, rngs=rngs)

    def __call__(self, x: Float[Array, "*axes inputs"]) -> Float[Array, "*axes_out outputs"]:
        """Return the output of the three layers."""
        x = self.layer(x)
        return nnx.relu(x if self.norm is None else self.norm(x))

    def fold_norm(self) -> None:
        """Merge the normalisation into kernel and bias of the layer, for inference."""
        if self.norm is not None:
            scale, shift = _scale_and_shift(self.norm)
            kernel, bias = self.layer.kernel[...], self.layer.bias
            self.layer.kernel = nnx.Param(kernel * jnp.broadcast_to(scale, kernel.shape))
            self.layer.bias = nnx.Param(shift if bias is None else bias[...] * scale + shift)
            self.layer.use_bias = True
            self.norm = None


class Bottleneck(nnx.Module):
    """A residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions, whose normalisation follows the addition."""

    def __init__(self, inputs: int, outputs: int, config: HandModuleConfig, *, rngs: nnx.Rngs):
        middle = max(inputs, outputs) // 2
        self.reduce = Block(linear(inputs, middle, config, rngs=rngs), config, rngs=rngs)
        self.mix = Block(convolution(middle, middle, 3, config, rngs=rngs), config, rngs=rngs)
        self.expand = linear(middle, outputs, config, rngs=rngs)
        self.skip = nnx.data(None if inputs == outputs else linear(inputs, outputs, config, rngs=rngs))
        self.norm: nnx.BatchNorm | Affine = batch_norm(outputs, config, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h w outputs"]:
        """Return a map of the same size with `outputs` channels."""
        skip = x if self.skip is None else self.skip(x)
        return nnx.relu(self.norm(self.expand(self.mix(self.reduce(x))) + skip))

    def fold_norm(self) -> None:
        """Replace the normalisation after the addition by a scale and shift, for inference."""
        if isinstance(self.norm, nnx.BatchNorm):
            self.norm = Affine(*_scale_and_shift(self.norm))


def inference_form(module: Module) -> Module:
    """Return a copy that computes the same as the module in evaluation mode, faster; it cannot be trained.

    The normalisation after a layer is merged into the layer. The normalisation of a bottleneck, which follows an
    addition, becomes a scale and shift per channel.
    """
    module = nnx.clone(module)
    for _, part in list(nnx.iter_modules(module)):
        if isinstance(part, Block | Bottleneck):
            part.fold_norm()
    return module


class MLP(nnx.Module):
    """Linear layers with batch normalisation and ReLU between them."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, config: HandModuleConfig, *, rngs: nnx.Rngs):
        sizes = list(itertools.pairwise((inputs, *hidden)))
        self.hidden = nnx.List([Block(linear(a, b, config, rngs=rngs), config, rngs=rngs) for a, b in sizes])
        self.head = head((inputs, *hidden)[-1], outputs, config, rngs=rngs)

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """Return the output of the last linear layer."""
        for block in self.hidden:
            x = block(x)
        return self.head(x)


def max_pool_3(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h_half w_half c"]:
    """Return the maximum over 3 x 3 cells with stride 2 and padding 1, of a map of even size."""
    # In a map of even size the last window ends at the border, so only the first row and column are padded.
    least = jnp.finfo(x.dtype).min
    rows = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=least)
    x = _maximum((rows[:, 0:-1:2], rows[:, 1::2], rows[:, 2::2]))
    columns = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=least)
    return _maximum((columns[:, :, 0:-1:2], columns[:, :, 1::2], columns[:, :, 2::2]))


def _maximum(parts: Iterable[Array]) -> Array:
    return functools.reduce(jnp.maximum, parts)


def upsample_2(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
    """Repeat every cell 2 x 2 times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Float[Array, "batch h w c"], size: int) -> Float[Array, "batch h_blocks w_blocks c_all"]:
    """Move each block of `size` x `size` pixels into the channels, row by row, with the colour varying fastest."""
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // size, size, w // size, size, c)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)
