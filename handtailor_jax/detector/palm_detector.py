"""The palm detector: a 192 x 192 image in, a score, a box and seven keypoints for each of 2016 anchors out.

This is MediaPipe's palm detection network (BlazePalm; Zhang et al., "MediaPipe Hands", 2020): a stack of residual
blocks with depthwise convolutions, a small feature pyramid, and linear heads on its two levels.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.detector.layers import Convolution, Depthwise, PReLU, max_pool_2, upsample_2

PALM_VALUES = 18
"""Numbers that describe a palm: centre, width and height of its box, and seven keypoints (x, y)."""


@dataclasses.dataclass(frozen=True)
class PalmDetectorConfig:
    """The shape of a palm detector."""

    image_size: int = 192
    """Side of the input image, pixels."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 256)
    """Channels of each stage. The first stage works at 1/2 of the input's size, each further one at half of that."""
    depth: int = 4
    """Equal blocks in each stage; all stages but the first begin with one more block, of stride 2."""
    level_depth: int = 2
    """Blocks in each level of the pyramid."""
    level_anchors: tuple[int, ...] = (6, 2)
    """Anchors in each cell of the pyramid's levels, from coarse (1/16 of the input's size) to fine (1/8)."""

    @classmethod
    def full(cls) -> "PalmDetectorConfig":
        """The network of palm_detection_full.tflite."""
        return cls()

    @classmethod
    def lite(cls) -> "PalmDetectorConfig":
        """The network of palm_detection_lite.tflite."""
        return cls(depth=3)


class BlazeBlock(nnx.Module):
    """PReLU(shortcut(x) + pointwise(depthwise(x))), where the depthwise convolution is 5 x 5.

    The shortcut of a block of stride 2 is a 2 x 2 maximum; channels that the input lacks are zero.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.depthwise = Depthwise(inputs, 5, stride, rngs=rngs)
        self.pointwise = nnx.Linear(inputs, outputs, rngs=rngs)
        self.activation = PReLU(outputs, rngs=rngs)
        self.stride, self.surplus = stride, outputs - inputs

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h_out w_out outputs"]:
        """Compute the block's map."""
        shortcut = x if self.stride == 1 else max_pool_2(x)
        if self.surplus:
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.surplus)))
        return self.activation(shortcut + self.pointwise(self.depthwise(x)))


class EqualBlocks(nnx.Module):
    """Blocks of one shape in a row. Their weights are stacked, so that the program holds one block, not `count`."""

    def __init__(self, channels: int, count: int, *, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=count)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> BlazeBlock:
            return BlazeBlock(channels, channels, rngs=rngs)

        self.blocks = stacked(rngs)

    def __call__(self, x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w channels"]:
        """Apply the blocks in turn."""
        graph, weights = nnx.split(self.blocks)
        # Not nnx.scan, which refuses modules under a gradient inside jit.
        return jax.lax.scan(lambda x, block: (nnx.merge(graph, block)(x), None), x, weights)[0]


class Stage(nnx.Module):
    """One block of stride 2, then equal blocks."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, rngs: nnx.Rngs):
        self.reduce = BlazeBlock(inputs, outputs, 2, rngs=rngs)
        self.equal = EqualBlocks(outputs, depth, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h_half w_half outputs"]:
        """Halve the map and compute its features."""
        return self.equal(self.reduce(x))


class PyramidLevel(nnx.Module):
    """A level of the feature pyramid: the coarser level, enlarged, plus the features of the stage at this size."""

    def __init__(self, inputs: int, outputs: int, depth: int, anchors: int, *, rngs: nnx.Rngs):
        self.lateral = nnx.Linear(inputs, outputs, rngs=rngs)
        self.activation = PReLU(outputs, rngs=rngs)
        self.equal = EqualBlocks(outputs, depth, rngs=rngs)
        self.score = nnx.Linear(outputs, anchors, rngs=rngs)
        self.box = nnx.Linear(outputs, anchors * PALM_VALUES, rngs=rngs)

    def __call__(
        self, coarser: Float[Array, "batch h w inputs"], skip: Float[Array, "batch h2 w2 outputs"]
    ) -> Float[Array, "batch h2 w2 outputs"]:
        """Compute the level's features."""
        # Interpolation and a 1 x 1 convolution commute; this order convolves a quarter of the pixels.
        return self.equal(self.activation(upsample_2(self.lateral(coarser))) + skip)

    def heads(
        self, x: Float[Array, "batch h w outputs"]
    ) -> tuple[Float[Array, "batch anchors"], Float[Array, "batch anchors 18"]]:
        """Compute the level's logits and boxes; anchors are ordered by row, column, number in the cell."""
        batch = x.shape[0]
        return self.score(x).reshape(batch, -1), self.box(x).reshape(batch, -1, PALM_VALUES)


class PalmDetector(nnx.Module):
    """The palm detection network."""

    def __init__(self, config: PalmDetectorConfig, *, rngs: nnx.Rngs):
        widths, depth, anchors = config.widths, config.depth, config.level_anchors
        self.config = config
        self.stem = Convolution(3, widths[0], 5, 2, rngs=rngs)
        self.activation = PReLU(widths[0], rngs=rngs)
        self.first = EqualBlocks(widths[0], depth, rngs=rngs)
        self.stages = nnx.List(
            [Stage(a, b, depth, rngs=rngs) for a, b in itertools.pairwise(widths)],
        )
        self.coarse = PyramidLevel(widths[-1], widths[-2], config.level_depth, anchors[0], rngs=rngs)
        self.fine = PyramidLevel(widths[-2], widths[-3], config.level_depth, anchors[1], rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> tuple[Float[Array, "batch anchors"], Float[Array, "batch anchors 18"]]:
        """Score every anchor of a batch of images.

        Args:
            images: RGB from 0 to 1.

        Returns:
            Logits, and boxes (see `palms.decode`) in pixels of the input relative to the anchors, for the anchors of
            `palms.anchor_centers`.
        """
        x = self.first(self.activation(self.stem(images)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        coarse = self.coarse(maps[-1], maps[-2])
        fine = self.fine(coarse, maps[-3])
        # The fine level's anchors come first.
        logits, boxes = zip(self.fine.heads(fine), self.coarse.heads(coarse), strict=True)
        return jnp.concatenate(logits, axis=1), jnp.concatenate(boxes, axis=1)
