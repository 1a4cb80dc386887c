"""Boxes around hands: the hand size (the unit of thresholds and of errors in percent), squares, rotations of hands."""

import math

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.skeleton import KEYPOINTS, ROOT, WRIST
from handtailor_jax.types import Box, Numbers

_INDEX_MCP, _RING_MCP = KEYPOINTS.index("index_mcp"), KEYPOINTS.index("ring_mcp")


def hand_size(keypoints_2d: Float[Numbers, "*batch n 2"]) -> Float[Numbers, "*batch"]:
    """Return the longer side of the keypoints' bounding box, in the keypoints' unit."""
    return (keypoints_2d.max(axis=-2) - keypoints_2d.min(axis=-2)).max(axis=-1)


def largest(values: Float[Array, "*batch n m"]) -> Float[Array, "*batch m"]:
    """Return the maximum over the axis before the last, taken by its index.

    The gradient of `jnp.max` compares values with their maximum, and is NaN where XLA rounds the two differently.
    """
    return jnp.take_along_axis(values, jnp.argmax(values, axis=-2, keepdims=True), axis=-2)[..., 0, :]


def box_center(keypoints_2d: Float[Numbers, "*batch n 2"]) -> Float[Numbers, "*batch 2"]:
    """Return the centre of the keypoints' bounding box."""
    return 0.5 * (keypoints_2d.min(axis=-2) + keypoints_2d.max(axis=-2))


def square_around(keypoints_2d: Float[np.ndarray, "n 2"], factor: float) -> Box:
    """Return the square about the centre of the keypoints' bounding box, `factor` hand sizes wide; pixels."""
    return centered_square(box_center(keypoints_2d), factor * float(hand_size(keypoints_2d)))


def centered_square(center: npt.NDArray[np.floating], side: float) -> Box:
    """Return the square of a side, in pixels, about a centre (u, v)."""
    # A pixel's coordinate is its centre, but a box begins at its edge.
    return (float(center[0]) + 0.5 - 0.5 * side, float(center[1]) + 0.5 - 0.5 * side, side, side)


def overlap(first: Float[np.ndarray, "4"], second: Float[np.ndarray, "4"]) -> float:
    """Return the intersection over union of two boxes (x, y, w, h)."""
    lower, upper = np.maximum(first[:2], second[:2]), np.minimum(first[:2] + first[2:], second[:2] + second[2:])
    shared = float(np.maximum(upper - lower, 0.0).prod())
    return shared / (float(first[2:].prod()) + float(second[2:].prod()) - shared)


def turn_of_hand(keypoints_2d: Float[Array, "*batch 21 2"]) -> Float[Array, "*batch"]:
    """Return the rotation, radians, of a square in which the direction from the wrist to the finger MCPs is up."""
    mcp = (keypoints_2d[..., _INDEX_MCP, :] + keypoints_2d[..., _RING_MCP, :]) / 2.0
    return turn_to_up((mcp + keypoints_2d[..., ROOT, :]) / 2.0 - keypoints_2d[..., WRIST, :])


def turn_to_up(direction: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    """Return the rotation of a square in which the direction (u, v) points up, within [-pi, pi)."""
    angle = math.pi / 2.0 - jnp.arctan2(-direction[..., 1], direction[..., 0])
    return angle - 2.0 * math.pi * jnp.floor((angle + math.pi) / (2.0 * math.pi))
