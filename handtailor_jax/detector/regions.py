"""Regions: rotated squares of an image, from which the landmark network's crops are cut.

Pixels (u, v) of image and crop are indices on both sides: crop pixel i of n shows the region at the fraction i / n.
There is no half pixel in this map, because the networks were trained without: with half pixels their keypoints move by
0.7 % of the hand's size (the sum of u in a crop and in the mirrored crop is the crop's size, not one less).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.detector.landmark_network import Landmarks
from handtailor_jax.detector.palms import PALM_MIDDLE_MCP, PALM_WRIST, Palms
from handtailor_jax.geometry.cameras import in_plane_rotation, transform_pixels
from handtailor_jax.skeleton import KEYPOINTS, ROOT, WRIST
from handtailor_jax.types import Region

_PALM_SIDE, _PALM_SHIFT = 2.6, 0.5
"""Side of a palm's region in longer sides of the palm's box, and its shift toward the fingers in box heights."""

_LANDMARKS_SIDE, _LANDMARKS_SHIFT = 2.0, 0.1
"""The same for a region from landmarks."""

_BOX_SIDE = 1.6
"""Side of the region of a box around the whole hand, in longer sides of the box."""

_STABLE = tuple(i for i, name in enumerate(KEYPOINTS) if not name.endswith(("_dip", "_tip")))
"""Keypoints whose box makes the next region: without the finger ends, which move most."""

_INDEX_MCP, _RING_MCP = KEYPOINTS.index("index_mcp"), KEYPOINTS.index("ring_mcp")


def to_image(region: Region, size: int) -> Float[Array, "*batch 2 3"]:
    """Return the affine map from the pixels of a `size` x `size` crop of the region to the image's pixels."""
    linear = (region.side / size)[..., None, None] * in_plane_rotation(region.rotation)
    middle = jnp.full_like(region.center, size / 2.0)
    offset = region.center - jnp.einsum("...ij,...j->...i", linear, middle)
    return jnp.concatenate([linear, offset[..., None]], axis=-1)


def to_crop(region: Region, size: int) -> Float[Array, "*batch 2 3"]:
    """Return the affine map from the image's pixels to those of a `size` x `size` crop of the region.

    `geometry.cameras.transform_camera` makes the crop's camera from it.
    """
    linear = (size / region.side)[..., None, None] * in_plane_rotation(-region.rotation)
    offset = size / 2.0 - jnp.einsum("...ij,...j->...i", linear, region.center)
    return jnp.concatenate([linear, offset[..., None]], axis=-1)


def upright(box: Float[Array, "*batch 4"]) -> Region:
    """Return the unrotated square around the centre of boxes (x, y, w, h), left, top, width and height in pixels."""
    side = jnp.maximum(box[..., 2], box[..., 3])
    return Region(box[..., :2] + box[..., 2:] / 2.0, side, jnp.zeros_like(side))


def palms_to_image(palms: Palms, region: Region) -> Palms:
    """Express palms, in fractions of the crop of an unrotated region, in pixels of the image."""
    corner = (region.center - region.side[..., None] / 2.0)[..., None, :]
    side = region.side[..., None, None]
    box = palms.box * side
    corners = jnp.broadcast_to(corner, box[..., :2].shape)
    points = palms.keypoints * side[..., None]
    return Palms(
        palms.score,
        jnp.concatenate([box[..., :2] + corners, box[..., 2:]], axis=-1),
        points + jnp.broadcast_to(corners[..., None, :], points.shape),
    )


def from_palm(palms: Palms) -> Region:
    """Return the region that shows the whole hand of each palm; boxes and keypoints are in pixels of the image."""
    wrist, middle = palms.keypoints[..., PALM_WRIST, :], palms.keypoints[..., PALM_MIDDLE_MCP, :]
    return _around(palms.box[..., :2], palms.box[..., 2:], _up(middle - wrist), _PALM_SHIFT, _PALM_SIDE)


def from_landmarks(keypoints: Float[Array, "*batch 21 2"]) -> Region:
    """Return the region for a further pass on a hand, in the same image or in the next frame of a video.

    Args:
        keypoints: (u, v) in pixels of the image, canonical order.
    """
    mcp = (keypoints[..., _INDEX_MCP, :] + keypoints[..., _RING_MCP, :]) / 2.0
    rotation = _up((mcp + keypoints[..., ROOT, :]) / 2.0 - keypoints[..., WRIST, :])
    turn = in_plane_rotation(rotation)
    turned = jnp.einsum("...ji,...nj->...ni", turn, keypoints[..., jnp.asarray(_STABLE), :])
    lower, upper = jnp.min(turned, axis=-2), jnp.max(turned, axis=-2)
    center = jnp.einsum("...ij,...j->...i", turn, (lower + upper) / 2.0)
    return _around(center, upper - lower, rotation, _LANDMARKS_SHIFT, _LANDMARKS_SIDE)


def from_box(box: Float[Array, "*batch 4"]) -> Region:
    """Return four regions of a box around a hand, because the hand's rotation in a box is unknown.

    Args:
        box: (x, y, w, h): left, top, width and height in pixels of the image.

    Returns:
        Regions with a new last batch axis of length 4: turns by 0, 90, 180 and 270 degrees.
    """
    square = upright(box)
    turns = jnp.arange(4, dtype=box.dtype) * (math.pi / 2.0)
    shape = (*square.side.shape, 4)
    return Region(
        jnp.broadcast_to(square.center[..., None, :], (*shape, 2)),
        jnp.broadcast_to(_BOX_SIDE * square.side[..., None], shape),
        jnp.broadcast_to(turns, shape),
    )


def keypoints_to_image(landmarks: Landmarks, region: Region, size: int) -> Float[Array, "batch 21 2"]:
    """Return the keypoints (u, v) in pixels of the image.

    Args:
        landmarks: output of the network.
        region: of the crops.
        size: side of the crops, pixels.
    """
    return transform_pixels(to_image(region, size), landmarks.crop[..., :2])


def world_to_camera(landmarks: Landmarks, region: Region) -> Float[Array, "batch 21 3"]:
    """Return the world landmarks in the axes of the camera (x right, y down, z forward), metres, same origin."""
    xy = jnp.einsum("...ij,...nj->...ni", in_plane_rotation(region.rotation), landmarks.world[..., :2])
    return jnp.concatenate([xy, landmarks.world[..., 2:]], axis=-1)


def _around(
    center: Float[Array, "*batch 2"],
    extent: Float[Array, "*batch 2"],
    rotation: Float[Array, "*batch"],
    shift: float,
    side: float,
) -> Region:
    """The region around a box of the given extent, moved up in its own frame by `shift` heights."""
    up = jnp.stack([jnp.zeros_like(rotation), -shift * extent[..., 1]], axis=-1)
    moved = center + jnp.einsum("...ij,...j->...i", in_plane_rotation(rotation), up)
    return Region(moved, side * jnp.max(extent, axis=-1), rotation)


def _up(direction: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    """The rotation of a region in which the direction (u, v) points up, within [-pi, pi)."""
    angle = math.pi / 2.0 - jnp.arctan2(-direction[..., 1], direction[..., 0])
    return angle - 2.0 * math.pi * jnp.floor((angle + math.pi) / (2.0 * math.pi))
