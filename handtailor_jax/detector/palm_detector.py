"""The palm detector: from a 192 x 192 image to palms.

This is MediaPipe's palm detection network (BlazePalm; Zhang et al., "MediaPipe Hands", 2020): a stack of residual
blocks with depthwise convolutions, a small feature pyramid, and linear heads on its two levels. Its 2016 candidates,
one for each anchor, become palms by decoding and weighted suppression.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from handtailor_jax.detector.layers import Convolution, Depthwise, Pointwise, PReLU, max_pool_2, upsample_2
from handtailor_jax.types import Numbers, Region, pytree

# Numbers that describe a palm: centre, width and height of its box, and seven keypoints (x, y).
_PALM_VALUES = 18
# Largest number of anchors in the suppression. A single palm has about three above the threshold.
_MAX_CANDIDATES = 192
# Boxes that overlap more (intersection over union) belong to one palm.
_SAME_PALM = 0.3

MAX_PALMS = 48
"""Largest number of palms in one image."""


@dataclasses.dataclass(frozen=True)
class PalmDetectorConfig:
    """Shape of a palm detector; the defaults are those of palm_detection_full.tflite."""

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


class BlazeBlock(nnx.Module):
    """PReLU(shortcut(x) + pointwise(depthwise(x))), where the depthwise convolution is 5 x 5.

    The shortcut of a block of stride 2 is a 2 x 2 maximum; channels that the input lacks are zero.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.depthwise = Depthwise(inputs, 5, stride)
        self.pointwise = Pointwise(inputs, outputs, rngs=rngs)
        self.activation = PReLU(outputs)
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
        stack = nnx.vmap(lambda rngs: BlazeBlock(channels, channels, rngs=rngs), in_axes=0, out_axes=0)
        self.blocks = nnx.split_rngs(splits=count)(stack)(rngs)

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
        self.lateral = Pointwise(inputs, outputs, rngs=rngs)
        self.activation = PReLU(outputs)
        self.equal = EqualBlocks(outputs, depth, rngs=rngs)
        self.score = Pointwise(outputs, anchors, rngs=rngs)
        self.box = Pointwise(outputs, anchors * _PALM_VALUES, rngs=rngs)

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
        return self.score(x).reshape(batch, -1), self.box(x).reshape(batch, -1, _PALM_VALUES)


class PalmDetector(nnx.Module):
    """The palm detection network."""

    def __init__(self, config: PalmDetectorConfig, *, rngs: nnx.Rngs):
        widths, depth, anchors = config.widths, config.depth, config.level_anchors
        self.config = config
        self.stem = Convolution(3, widths[0], 5, 2)
        self.activation = PReLU(widths[0])
        self.first = EqualBlocks(widths[0], depth, rngs=rngs)
        self.stages = nnx.List([Stage(a, b, depth, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.coarse = PyramidLevel(widths[-1], widths[-2], config.level_depth, anchors[0], rngs=rngs)
        self.fine = PyramidLevel(widths[-2], widths[-3], config.level_depth, anchors[1], rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> tuple[Float[Array, "batch anchors"], Float[Array, "batch anchors 18"]]:
        """Compute logits and boxes (see `decode`) for every anchor; images are RGB from 0 to 1."""
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


@pytree
class Palms:
    """Palms, or candidates for palms, in fractions of the detector's input image or in pixels of the whole image."""

    score: Float[Numbers, "*batch palms"]
    """Probability of a palm, 0 to 1."""
    box: Float[Numbers, "*batch palms 4"]
    """Box around the palm, without fingers: centre (x, y), width and height."""
    keypoints: Float[Numbers, "*batch palms 7 2"]
    """Keypoints (x, y): wrist, index, middle, ring and little MCP, thumb CMC, thumb MCP."""


def find_palms(
    network: PalmDetector, images: UInt8[Array, "batch size size 3"], regions: Region, threshold: Float[Array, ""]
) -> Palms:
    """Find palms with at least a threshold's score in RGB crops (0 to 255) of unrotated regions.

    Returns:
        `MAX_PALMS` palms of each crop, in pixels of the whole image; entries with score 0 are empty.
    """
    logits, boxes = network(images.astype(jnp.float32) / 255.0)
    palms = jax.vmap(lambda candidates: suppress(candidates, threshold))(decode(logits, boxes, network.config))
    side, corner = regions.side[:, None, None], (regions.center - regions.side[:, None] / 2.0)[:, None]
    box = jnp.concatenate([palms.box[..., :2] * side + corner, palms.box[..., 2:] * side], axis=-1)
    return Palms(palms.score, box, palms.keypoints * side[..., None] + corner[:, None])


def anchor_centers(config: PalmDetectorConfig) -> Float[np.ndarray, "anchors 2"]:
    """List the anchors' centres (x, y) in fractions of the input image: the fine level, then the coarse one."""
    levels = []
    for cell, anchors in zip((8, 16), reversed(config.level_anchors), strict=True):
        cells = config.image_size // cell
        y, x = np.divmod(np.arange(cells * cells), cells)
        levels.append(np.repeat((np.stack([x, y], axis=-1) + 0.5) / cells, anchors, axis=0))
    return np.concatenate(levels).astype(np.float32)


def decode(
    logits: Float[Array, "*batch anchors"], boxes: Float[Array, "*batch anchors 18"], config: PalmDetectorConfig
) -> Palms:
    """Convert the detector's output to one candidate per anchor, in fractions of the input image.

    `boxes` are a box (x, y, w, h) and seven keypoints (x, y) in pixels of the input, relative to the anchor.
    """
    points = boxes.reshape(*boxes.shape[:-1], 9, 2) / config.image_size  # centre, size, keypoints
    size = points[..., 1, :]
    points = points + jnp.broadcast_to(jnp.asarray(anchor_centers(config), boxes.dtype)[:, None], points.shape)
    box = jnp.concatenate([points[..., 0, :], size], axis=-1)
    return Palms(jax.nn.sigmoid(jnp.clip(logits, -100.0, 100.0)), box, points[..., 2:, :])


def suppress(candidates: Palms, threshold: Float[Array, ""] | float) -> Palms:
    """Join candidates of one image that overlap: the weighted suppression of BlazeFace (Bazarevsky et al., 2019).

    The best candidate and all that overlap it become one palm: their mean, weighted by the scores. This repeats until
    no score reaches the threshold. The numbers of candidates and palms are limited, so that the shapes are fixed.

    Returns:
        `MAX_PALMS` palms by decreasing score, each with its best candidate's score; empty entries are 0.
    """
    best, order = jax.lax.top_k(candidates.score, min(_MAX_CANDIDATES, candidates.score.shape[0]))
    box, keypoints = candidates.box[order], candidates.keypoints[order]
    values = jnp.concatenate([box, keypoints.reshape(-1, 14)], axis=-1)
    same = intersection_over_union(box, box) > _SAME_PALM

    def take_best(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, scores, palms = state  # weights: the scores of the candidates that are left, 0 for the others
        top = jnp.argmax(weights)
        score = weights[top]
        members = jnp.where(same[top], weights, 0.0)
        total = jnp.where(score > 0.0, jnp.sum(members), 1.0)
        left = jnp.where(same[top], 0.0, weights).at[top].set(0.0)
        return left, scores.at[i].set(score), palms.at[i].set(members @ values / total)

    empty = jnp.zeros(MAX_PALMS, box.dtype), jnp.zeros((MAX_PALMS, _PALM_VALUES), box.dtype)
    start = (jnp.where(best >= threshold, best, 0.0), *empty)
    _, scores, palms = jax.lax.fori_loop(0, MAX_PALMS, take_best, start)
    return Palms(scores, palms[:, :4], palms[:, 4:].reshape(-1, 7, 2))


def intersection_over_union(a: Float[Array, "m 4"], b: Float[Array, "n 4"]) -> Float[Array, "m n"]:
    """Return the overlap of every box (centre, size) of `a` with every box of `b`; 0 for empty boxes."""
    lower = jnp.maximum(a[:, None, :2] - a[:, None, 2:] / 2.0, b[None, :, :2] - b[None, :, 2:] / 2.0)
    upper = jnp.minimum(a[:, None, :2] + a[:, None, 2:] / 2.0, b[None, :, :2] + b[None, :, 2:] / 2.0)
    shared = jnp.prod(jnp.maximum(upper - lower, 0.0), axis=-1)
    area_a, area_b = jnp.prod(a[:, 2:], axis=-1), jnp.prod(b[:, 2:], axis=-1)
    union = area_a[:, None] + area_b[None, :] - shared
    return jnp.where(shared > 0.0, shared / jnp.where(shared > 0.0, union, 1.0), 0.0)
