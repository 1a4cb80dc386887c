"""The hand landmark network: from a 224 x 224 crop to 21 keypoints in 2D and 3D, presence and side of the hand.

This is MediaPipe's hand landmark network (Zhang et al., "MediaPipe Hands", 2020): a stem, fourteen inverted residual
blocks, the mean over the map, and four linear heads. `recognise` converts its output to the frame of the image.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from handtailor_jax.detector.layers import Convolution, Depthwise, Pointwise, max_pool_2
from handtailor_jax.detector.regions import from_landmarks, to_image
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import in_plane_rotation, transform_pixels
from handtailor_jax.skeleton import NUM_KEYPOINTS
from handtailor_jax.types import Numbers, Region, Side, pytree

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class HandLandmarkConfig:
    """Shape of a hand landmark network; the defaults are those of hand_landmark_full.tflite."""

    image_size: int = 224
    """Side of the crop, pixels."""
    stem: tuple[int, int] = (24, 16)
    """Channels of the stem's convolution and of its projection."""
    widths: tuple[int, ...] = (24, 40, 80, 112, 192)
    """Output channels of the blocks of each stage."""
    stages: tuple[tuple[int, int, int], ...] = ((3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4))
    """Side of the depthwise kernels, stride of the first block, and number of blocks of each stage."""


@pytree
class Landmarks:
    """Output of the hand landmark network for a batch of crops."""

    crop: Float[Numbers, "batch 21 3"]
    """Keypoints (u, v) in pixels of the crop (as `regions.to_image` counts them), and z: depth relative to the wrist,
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

    A shortcut is added if the channels stay the same: the input at stride 1, its 2 x 2 maximum at stride 2.
    """

    def __init__(self, inputs: int, expanded: int, kernel: int, stride: int, outputs: int, *, rngs: nnx.Rngs):
        self.expand = ConvReLU6(Pointwise(inputs, expanded, rngs=rngs))
        self.mix = ConvReLU6(Depthwise(expanded, kernel, stride, bias=True))
        self.project = Pointwise(expanded, outputs, rngs=rngs)
        self.stride, self.residual = stride, inputs == outputs

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h_out w_out outputs"]:
        """Compute the block's map."""
        y = self.project(self.mix(self.expand(x)))
        if not self.residual:
            return y
        return y + (x if self.stride == 1 else max_pool_2(x))


class HandLandmarkNetwork(nnx.Module):
    """The hand landmark network."""

    def __init__(self, config: HandLandmarkConfig, *, rngs: nnx.Rngs):
        wide, inputs = config.stem
        self.config = config
        self.stem = ConvReLU6(Convolution(3, wide, 3, 2))
        self.stem_mix = ConvReLU6(Depthwise(wide, 3, bias=True))
        self.stem_project = Pointwise(wide, inputs, rngs=rngs)
        blocks: list[InvertedResidual] = []
        for (kernel, stride, count), outputs in zip(config.stages, config.widths, strict=True):
            for i in range(count):
                expanded = (6 if blocks else 4) * inputs
                blocks.append(InvertedResidual(inputs, expanded, kernel, 1 if i else stride, outputs, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.expand = ConvReLU6(Pointwise(inputs, 6 * inputs, rngs=rngs))
        self.mix = ConvReLU6(Depthwise(6 * inputs, 3, bias=True))
        heads = (Pointwise(6 * inputs, outputs, rngs=rngs) for outputs in (1, 1, 3 * NUM_KEYPOINTS, 3 * NUM_KEYPOINTS))
        self.right, self.presence, self.landmarks, self.world = heads

    def __call__(self, crops: Float[Array, "batch size size 3"]) -> Landmarks:
        """Estimate the hand in each crop, RGB from 0 to 1; it should point up and fill about half (see `from_palm`)."""
        return self.heads(self.maps(crops)[-1])

    def maps(self, crops: Float[Array, "batch size size 3"]) -> list[Float[Array, "batch rows columns channels"]]:
        """Return the last map of every stage, largest first; RGB is from 0 to 1."""
        x = self.stem_project(self.stem_mix(self.stem(crops)))
        maps, blocks = [], iter(self.blocks)
        for _, _, count in self.config.stages:
            for block in itertools.islice(blocks, count):
                x = block(x)
            maps.append(x)
        return maps

    def heads(self, x: Float[Array, "batch rows columns channels"]) -> Landmarks:
        """Estimate the hands from the last of the maps."""
        features = jnp.mean(self.mix(self.expand(x)), axis=(1, 2))
        points = (features.shape[0], NUM_KEYPOINTS, 3)
        return Landmarks(
            crop=self.landmarks(features).reshape(points),
            world=self.world(features).reshape(points),
            presence=jax.nn.sigmoid(self.presence(features)[:, 0]),
            right=jax.nn.sigmoid(self.right(features)[:, 0]),
        )


def by_crop(network: Callable[[Float[Array, "batch size size 3"]], T], crops: Float[Array, "batch size size 3"]) -> T:
    """Call a network on crops; on a CPU on one at a time, which is faster because feature maps stay in its cache."""

    def one_by_one(crops: Array) -> T:
        return jax.tree.map(lambda leaf: leaf[:, 0], jax.lax.map(lambda crop: network(crop[None]), crops))

    return jax.lax.platform_dependent(crops, cpu=one_by_one, default=network)


def right_probability(landmarks: Landmarks, prior: Float[Array, "batch"] | None) -> Float[Array, "batch"]:
    """Return the probability of right hands by Bayes' rule, with the network's probability as the likelihood.

    The prior is 0.5 if None. A prior of 1 or 0, for a known side, is returned unchanged.
    """
    before = jnp.full_like(landmarks.right, 0.5) if prior is None else prior.astype(landmarks.right.dtype)
    likelihood = jnp.clip(landmarks.right, 1e-6, 1.0 - 1e-6)
    return likelihood * before / (likelihood * before + (1.0 - likelihood) * (1.0 - before))


@pytree
class DetectedHand:
    """A hand in an image, or a batch of hands. Pixels are those of the image."""

    keypoints_2d: Float[Numbers, "*batch 21 2"]
    """Keypoints (u, v), pixels, canonical order, MediaPipe's convention."""
    joints_3d: Float[Numbers, "*batch 21 3"]
    """World landmarks in camera axes (x right, y down, z forward), metres; the origin is near the mean of the finger
    MCPs and the hand's size is a guess."""
    presence: Float[Numbers, "*batch"]
    """Probability that there is a hand, 0 to 1."""
    right: Float[Numbers, "*batch"]
    """Probability that it is a right hand, in an image that is not mirrored."""
    region: Region
    """The region of the network's crop."""
    next_region: Region
    """The region around the keypoints, for a further pass or the next frame of a video."""

    @property
    def side(self) -> Side:
        """Side of the hand, on the host."""
        return "right" if self.right > 0.5 else "left"

    @property
    def side_probability(self) -> float:
        """Probability of that side, 0.5 to 1, on the host."""
        return max(float(self.right), 1.0 - float(self.right))


def recognise(network: HandLandmarkNetwork, crops: Num[Array, "batch size size 3"], regions: Region) -> DetectedHand:
    """Estimate the hand in each region from its crop, RGB from 0 to 255."""
    landmarks = network(crops.astype(regions.side.dtype) / 255.0)
    keypoints = transform_pixels(to_image(regions, network.config.image_size), landmarks.crop[..., :2])
    xy = exact(jnp.einsum)("bij,bnj->bni", in_plane_rotation(regions.rotation), landmarks.world[..., :2])
    return DetectedHand(
        keypoints_2d=keypoints,
        joints_3d=jnp.concatenate([xy, landmarks.world[..., 2:]], axis=-1),
        presence=landmarks.presence,
        right=landmarks.right,
        region=regions,
        next_region=from_landmarks(keypoints),
    )
