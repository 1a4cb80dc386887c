"""The hand landmark network: a 224 x 224 crop in, 21 keypoints in 2D and 3D, presence and side of the hand out.

This is MediaPipe's hand landmark network (Zhang et al., "MediaPipe Hands", 2020): a stem, fourteen inverted residual
blocks, the mean over the map, and four linear heads.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.detector.layers import Convolution, Depthwise, max_pool_2
from handtailor_jax.skeleton import NUM_KEYPOINTS
from handtailor_jax.types import Numbers, pytree


class Row(NamedTuple):
    """One inverted residual block."""

    expand: int
    """Channels between the two 1 x 1 convolutions."""
    kernel: int
    """Side of the depthwise kernel, pixels."""
    stride: int
    """Stride of the depthwise convolution."""
    outputs: int
    """Output channels."""


@dataclasses.dataclass(frozen=True)
class HandLandmarkConfig:
    """The shape of a hand landmark network."""

    rows: tuple[Row, ...]
    """The inverted residual blocks."""
    features: int
    """Channels of the last map, whose mean the heads read."""
    image_size: int = 224
    """Side of the crop, pixels."""
    stem: tuple[int, int] = (24, 16)
    """Channels of the stem's convolution and of its projection."""

    @classmethod
    def full(cls) -> "HandLandmarkConfig":
        """The network of hand_landmark_full.tflite."""
        rows = (
            Row(64, 3, 2, 24),
            Row(144, 3, 1, 24),
            Row(144, 5, 2, 40),
            Row(240, 5, 1, 40),
            Row(240, 3, 2, 80),
            Row(480, 3, 1, 80),
            Row(480, 3, 1, 80),
            Row(480, 5, 1, 112),
            Row(672, 5, 1, 112),
            Row(672, 5, 1, 112),
            Row(672, 5, 2, 192),
            Row(1152, 5, 1, 192),
            Row(1152, 5, 1, 192),
            Row(1152, 5, 1, 192),
        )
        return cls(rows, features=1152)

    @classmethod
    def lite(cls) -> "HandLandmarkConfig":
        """The network of hand_landmark_lite.tflite."""
        rows = (
            Row(64, 3, 2, 16),
            Row(96, 3, 1, 16),
            Row(96, 5, 2, 24),
            Row(144, 5, 1, 24),
            Row(144, 3, 2, 48),
            Row(288, 3, 1, 48),
            Row(288, 3, 1, 48),
            Row(288, 5, 1, 64),
            Row(384, 5, 1, 64),
            Row(384, 5, 1, 64),
            Row(384, 5, 2, 112),
            Row(672, 5, 1, 112),
            Row(672, 5, 1, 112),
            Row(672, 5, 1, 112),
        )
        return cls(rows, features=672)


@pytree
class Landmarks:
    """Output of the hand landmark network for a batch of crops."""

    crop: Float[Numbers, "batch 21 3"]
    """Keypoints (u, v) in pixels of the crop (a region's point p lies at pixel p), and z: depth relative to the wrist,
    smaller is closer, in the same unit but compressed; use `world` for depth."""
    world: Float[Numbers, "batch 21 3"]
    """Keypoints in metres: x right, y down, z away from the camera, in the turned frame of the region; the origin is
    near the mean of the four finger MCPs. The size of the hand is a guess."""
    presence: Float[Numbers, "batch"]
    """Probability that the crop shows a hand."""
    right: Float[Numbers, "batch"]
    """Probability that the hand is a right hand, in an image that is not mirrored."""


class ConvReLU6(nnx.Module):
    """A dense, depthwise or 1 x 1 convolution, then ReLU6."""

    def __init__(self, layer: Convolution | nnx.Linear | Depthwise):
        self.layer = layer

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h_out w_out outputs"]:
        """Convolve the map and clip it to [0, 6]."""
        return jnp.clip(self.layer(x), 0.0, 6.0)


class InvertedResidual(nnx.Module):
    """project(depthwise(expand(x))): 1 x 1, depthwise and 1 x 1 convolution, ReLU6 after the first two.

    A shortcut is added where it fits: the input at stride 1, its 2 x 2 maximum at stride 2.
    """

    def __init__(self, inputs: int, row: Row, *, rngs: nnx.Rngs):
        self.expand = ConvReLU6(nnx.Linear(inputs, row.expand, rngs=rngs))
        self.mix = ConvReLU6(Depthwise(row.expand, row.kernel, row.stride, bias=True, rngs=rngs))
        self.project = nnx.Linear(row.expand, row.outputs, rngs=rngs)
        self.stride, self.residual = row.stride, inputs == row.outputs

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h_out w_out outputs"]:
        """Compute the block's map."""
        y = self.project(self.mix(self.expand(x)))
        if not self.residual:
            return y
        return y + (x if self.stride == 1 else max_pool_2(x))


class HandLandmarkNetwork(nnx.Module):
    """The hand landmark network."""

    def __init__(self, config: HandLandmarkConfig, *, rngs: nnx.Rngs):
        wide, narrow = config.stem
        self.config = config
        self.stem = ConvReLU6(Convolution(3, wide, 3, 2, rngs=rngs))
        self.stem_mix = ConvReLU6(Depthwise(wide, 3, bias=True, rngs=rngs))
        self.stem_project = nnx.Linear(wide, narrow, rngs=rngs)
        inputs = (narrow, *(row.outputs for row in config.rows))
        self.blocks = nnx.List(
            [InvertedResidual(width, row, rngs=rngs) for width, row in zip(inputs[:-1], config.rows, strict=True)]
        )
        self.expand = ConvReLU6(nnx.Linear(inputs[-1], config.features, rngs=rngs))
        self.mix = ConvReLU6(Depthwise(config.features, 3, bias=True, rngs=rngs))
        self.right = nnx.Linear(config.features, 1, rngs=rngs)
        self.presence = nnx.Linear(config.features, 1, rngs=rngs)
        self.landmarks = nnx.Linear(config.features, 3 * NUM_KEYPOINTS, rngs=rngs)
        self.world = nnx.Linear(config.features, 3 * NUM_KEYPOINTS, rngs=rngs)

    def __call__(self, crops: Float[Array, "batch size size 3"]) -> Landmarks:
        """Estimate the keypoints of the hand in each crop.

        Args:
            crops: RGB from 0 to 1; the hand points up and fills about half of the crop (`regions.from_palm`).
        """
        x = self.stem_project(self.stem_mix(self.stem(crops)))
        for block in self.blocks:
            x = block(x)
        features = jnp.mean(self.mix(self.expand(x)), axis=(1, 2))
        points = (features.shape[0], NUM_KEYPOINTS, 3)
        return Landmarks(
            crop=self.landmarks(features).reshape(points),
            world=self.world(features).reshape(points),
            presence=jax.nn.sigmoid(self.presence(features)[:, 0]),
            right=jax.nn.sigmoid(self.right(features)[:, 0]),
        )
