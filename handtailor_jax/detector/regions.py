"""Regions: rotated squares of an image, from which the landmark network's crops are cut.

Pixels (u, v) of image and crop are indices: pixel i of a crop of n pixels shows the region at the fraction i / n, not
(i + 1/2) / n, because the networks were trained so. With the half pixels their keypoints move by 0.7 % of the hand's
size: a keypoint's u in a crop and in the mirrored crop add up to the crop's size, not to one less.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.detector.palm_detector import Palms
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.boxes import hand_size, largest, turn_of_hand, turn_to_up
from handtailor_jax.geometry.cameras import in_plane_rotation
from handtailor_jax.images import Image, opencv
from handtailor_jax.skeleton import KEYPOINTS
from handtailor_jax.types import Box, Numbers, Region

# The palm's keypoints from which its rotation is computed (`Palms.keypoints` lists all seven).
_PALM_WRIST, _PALM_MIDDLE_MCP = 0, 2
# Side of a palm's region in longer sides of the palm's box, and its shift toward the fingers in box heights.
_PALM_SIDE, _PALM_SHIFT = 2.6, 0.5
# Side and shift of a region from landmarks, by their box.
_LANDMARKS_SIDE, _LANDMARKS_SHIFT = 2.0, 0.1
# Sides of the two regions of a box, in longer sides of the box: for boxes close around the hand, and for loose ones.
_BOX_SIDES = (1.6, 0.8)
SURE = 0.95
"""If the presence in a region of a box's first size is above this, the second size is not tried. The best of five
values on photographs of the split `train`, in boxes of 1 to 2.6 hand sizes."""
# Sides of the tiles of a thorough search, in shorter sides of the image.
_TILE_SIDES = (1.0, 2.0 / 3.0)
# Limit of the number of overlapping squares along the longer side of an image; in narrow images squares are larger.
_MOST_TILES = 16
# Sides of the squares of an hourglass's search, in shorter sides of the image.
_SCAN_SIDES = (1.0, 0.5)
# A hand inside another hand's box is taken for a part of it if its size is below the first number and its centre is
# closer to a keypoint of the other hand than the second; both are in sizes of the other hand.
_INSIDE_SIZE, _INSIDE_DISTANCE = 0.5, 0.2
# Keypoints whose box determines the next region: without the finger ends, which move most.
_STABLE = np.asarray([i for i, name in enumerate(KEYPOINTS) if not name.endswith(("_dip", "_tip"))], np.int32)
# OpenCV warps only images whose sides fit into 16 bits; larger ones are subsampled first.
_OPENCV_LIMIT = 16_000


@functools.partial(jax.jit, static_argnames="size")
@exact
def to_image(region: Region, size: int) -> Float[Array, "*batch 2 3"]:
    """Return the affine map from the pixels of a `size` x `size` crop of the region to the image's pixels."""
    linear = (region.side / size)[..., None, None] * in_plane_rotation(region.rotation)
    middle = jnp.full_like(region.center, size / 2.0)
    offset = region.center - jnp.einsum("...ij,...j->...i", linear, middle)
    return jnp.concatenate([linear, offset[..., None]], axis=-1)


def square_region(box: Box | Float[Numbers, "4"], zoom: float = 1.0, rotation: float = 0.0) -> Region:
    """Return the square about a box's centre, `zoom` times its longer side, as NumPy arrays or arrays like the box."""
    place: Any = np.asarray(box, np.float32) if isinstance(box, tuple) else box
    center, side = place[:2] + 0.5 * place[2:], zoom * place[2:].max()
    return Region(center, side, np.asarray(rotation, place.dtype))


def from_box(box: Box | Float[Numbers, "4"]) -> list[list[Region]]:
    """Return regions of two sizes, each in four turns, because boxes may be loose and hands may point anywhere."""
    return [[square_region(box, side, turn * math.pi / 2.0) for turn in range(4)] for side in _BOX_SIDES]


def from_palm(palms: Palms) -> Region:
    """Return the region that shows the whole hand of each palm; boxes and keypoints are in pixels of the image."""
    wrist, middle = palms.keypoints[..., _PALM_WRIST, :], palms.keypoints[..., _PALM_MIDDLE_MCP, :]
    return _around(palms.box[..., :2], palms.box[..., 2:], turn_to_up(middle - wrist), _PALM_SHIFT, _PALM_SIDE)


@exact
def from_landmarks(keypoints: Float[Array, "*batch 21 2"]) -> Region:
    """Return the region around keypoints (u, v; pixels), for a further pass or for the next frame of a video."""
    rotation = turn_of_hand(keypoints)
    turn = in_plane_rotation(rotation)
    turned = jnp.einsum("...ji,...nj->...ni", turn, keypoints[..., _STABLE, :])
    lower, upper = -largest(-turned), largest(turned)
    center = jnp.einsum("...ij,...j->...i", turn, (lower + upper) / 2.0)
    return _around(center, upper - lower, rotation, _LANDMARKS_SHIFT, _LANDMARKS_SIDE)


@exact
def _around(
    center: Float[Array, "*batch 2"], extent: Float[Array, "*batch 2"], rotation: Array, shift: float, side: float
) -> Region:
    """Return the region around a box of the given extent, moved up in its own frame by `shift` heights."""
    up = jnp.stack([jnp.zeros_like(rotation), -shift * extent[..., 1]], axis=-1)
    moved = center + jnp.einsum("...ij,...j->...i", in_plane_rotation(rotation), up)
    return Region(moved, side * largest(extent[..., None])[..., 0], rotation)


def overlap(a: Region, b: Region) -> float:
    """Return the intersection over union of two regions as if they were not rotated."""
    gap = np.abs(np.asarray(a.center) - np.asarray(b.center))
    shared = np.clip((a.side + b.side) / 2.0 - gap, 0.0, min(a.side, b.side)).prod()
    return float(shared / (a.side**2 + b.side**2 - shared))


def is_part(part: npt.NDArray[np.float32], hand: npt.NDArray[np.float32]) -> bool:
    """Return whether a hand is a part of another one: knuckles or a finger that were taken for a small hand."""
    size = float(hand_size(hand))
    center = (part.min(axis=0) + part.max(axis=0)) / 2.0
    if hand_size(part) >= _INSIDE_SIZE * size or (center < hand.min(axis=0)).any() or (center > hand.max(axis=0)).any():
        return False
    return float(np.linalg.norm(hand - center, axis=-1).min()) < _INSIDE_DISTANCE * size


def cut(image: Image, to_image: npt.NDArray[np.float32], size: int, *, extend: bool) -> Image:
    """Cut a region out of an image, by bilinear interpolation without antialiasing (as the networks were trained).

    `to_image` is the affine map from the crop's pixels to the image's. Pixels outside of the image repeat its edge if
    `extend`, and are black otherwise.
    """
    cv2 = opencv()
    affine = np.asarray(to_image, np.float64)
    corners = affine[:, :2] @ np.asarray([[0, size, 0, size], [0, 0, size, size]]) + affine[:, 2:]
    # Only the part of the image that the crop shows is warped.
    shape = np.asarray([image.shape[1], image.shape[0]])
    first = np.clip(np.floor(corners.min(axis=1)) - 1, 0, shape - 1).astype(int)
    (left, top), (right, bottom) = first, np.clip(np.ceil(corners.max(axis=1)) + 2, first + 1, shape).astype(int)
    step = math.ceil(max(right - left, bottom - top) / _OPENCV_LIMIT)
    part = np.ascontiguousarray(image[top:bottom:step, left:right:step])
    affine[:, 2] -= first
    border = cv2.BORDER_REPLICATE if extend else cv2.BORDER_CONSTANT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(part, affine / step, (size, size), flags=flags, borderMode=border)


def tiles(width: int, height: int) -> list[Box]:
    """List the squares of a thorough search; none equals the whole image."""
    sides = dict.fromkeys(_sides(width, height, _TILE_SIDES))
    return [box for side in sides if side < max(width, height) for box in _cover(width, height, side)]


def scan_squares(width: int, height: int) -> list[Box]:
    """List the squares in which the hourglass searches after the whole image, largest first."""
    return [box for side in dict.fromkeys(_sides(width, height, _SCAN_SIDES)) for box in _cover(width, height, side)]


def _sides(width: int, height: int, shares: tuple[float, ...]) -> list[float]:
    """Return the sides of squares in pixels from their shares of the shorter side of the image."""
    return [max(share * min(width, height), 2.0 * max(width, height) / _MOST_TILES) for share in shares]


def _cover(width: int, height: int, side: float) -> list[Box]:
    """List squares that cover the image row by row and overlap by half or more; centred where they are larger."""

    def starts(length: int) -> list[float]:
        if side >= length:
            return [(length - side) / 2.0]
        count = math.ceil((length - side) / (side / 2.0)) + 1
        return [float(start) for start in np.linspace(0.0, length - side, count)]

    return [(x, y, side, side) for y in starts(height) for x in starts(width)]
