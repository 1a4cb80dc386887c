"""Projection through cameras, exact cameras of cropped, resized and rotated images, and checks of given cameras."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.errors import FloatArray, InputError, check_range, checked_array, numbers, warn
from handtailor_jax.geometry import exact
from handtailor_jax.types import Camera, HandParameters

_LONGEST = 1e6
"""Largest number of an intrinsic matrix, pixels."""
_NEAREST = 0.01  # metres; points behind the camera, which only untrained networks predict, project as from here


def depth_divisor(camera: Camera, z: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Return the divisor of x and y in a projection: z, at least 10 mm, in perspective, 1 in weak perspective."""
    p = camera.perspectivity[..., None]
    return p * jnp.maximum(z, _NEAREST) + (1.0 - p)


def held_depth(camera: Camera, depth: Float[Array, ""]) -> Float[Array, ""]:
    """Clip the depth of a root to 0.05 to 50 m, for the output of untrained networks; return 0 in weak perspective."""
    return jnp.where(camera.perspectivity > 0.5, jnp.clip(depth, 0.05, 50.0), 0.0)


def focal_length(camera: Camera) -> Float[Array, ""]:
    """Return the geometric mean of the focal lengths, pixels (perspective) or pixels per unit (weak perspective)."""
    return jnp.sqrt(jnp.abs(jnp.linalg.det(camera.linear)))


def place(parameters: HandParameters, points: Float[Array, "n 3"], root: Float[Array, "3"]) -> Float[Array, "n 3"]:
    """Move model points (metres) to the camera frame; `root` is the root joint of the posed model, metres."""
    return parameters.scale * (points - root[None]) + parameters.translation[None]


@exact
def project(camera: Camera, points: Float[Array, "*batch n 3"]) -> Float[Array, "*batch n 2"]:
    """Project camera-frame points to pixels (u, v): Eq. 2 of the paper in perspective, Eq. 3 in weak perspective."""
    xy = points[..., :2] / depth_divisor(camera, points[..., 2])[..., None]
    return jnp.einsum("...ij,...nj->...ni", camera.linear, xy) + camera.center[..., None, :]


@exact
def unproject(
    camera: Camera, pixels: Float[Array, "*batch n 2"], depth: Float[Array, "*batch n"]
) -> Float[Array, "*batch n 3"]:
    """Return the points at depth z that project to pixels (u, v): Eq. 5 of the paper, or 14 in weak perspective."""
    xy = jnp.einsum("...ij,...nj->...ni", inverse_linear(camera), pixels - camera.center[..., None, :])
    return jnp.concatenate([xy * depth_divisor(camera, depth)[..., None], depth[..., None]], axis=-1)


def inverse_linear(camera: Camera) -> Float[Array, "*batch 2 2"]:
    """Invert the camera's 2 x 2 linear part."""
    return _inverse(camera.linear)


def _inverse(m: Float[Array, "*batch 2 2"]) -> Float[Array, "*batch 2 2"]:
    """Invert 2 x 2 matrices in closed form, which is compiled faster than `jnp.linalg.inv`."""
    a, b, c, d = m[..., 0, 0], m[..., 0, 1], m[..., 1, 0], m[..., 1, 1]
    adjugate = jnp.stack([jnp.stack([d, -b], axis=-1), jnp.stack([-c, a], axis=-1)], axis=-2)
    return adjugate / (a * d - b * c)[..., None, None]


@exact
def transform_pixels(
    affine: Float[Array, "*batch 2 3"], pixels: Float[Array, "*batch n 2"]
) -> Float[Array, "*batch n 2"]:
    """Apply an affine image map to pixels (u, v)."""
    return jnp.einsum("...ij,...nj->...ni", affine[..., :2], pixels) + affine[..., None, :, 2]


@exact
def inverse_affine(affine: Float[Array, "*batch 2 3"]) -> Float[Array, "*batch 2 3"]:
    """Invert an affine image map."""
    linear = _inverse(affine[..., :2])
    return jnp.concatenate([linear, -jnp.einsum("...ij,...j->...i", linear, affine[..., 2])[..., None]], axis=-1)


@exact
def transform_camera(camera: Camera, affine: Float[Array, "*batch 2 3"]) -> Camera:
    """Return the camera of an image moved by an affine pixel map A, K' = A K; the camera frame does not change.

    If `affine` rotates the image, the linear part is no longer diagonal. Every function of this module accepts that.
    """
    linear = jnp.einsum("...ij,...jk->...ik", affine[..., :2], camera.linear)
    center = transform_pixels(affine, camera.center[..., None, :])[..., 0, :]
    return Camera(linear, center, camera.perspectivity)


@exact
def rotate_frame(camera: Camera, angle: Float[Array, "*batch"]) -> Camera:
    """Return the camera in a frame rotated about the optical axis (radians, x toward y): K' = K R^T for points R p.

    Rotating the frame by the angle by which an image was rotated makes the linear part diagonal again if fx = fy.
    """
    linear = jnp.einsum("...ij,...kj->...ik", camera.linear, in_plane_rotation(angle))
    return dataclasses.replace(camera, linear=linear)


def in_plane_rotation(angle: Float[Array, "*batch"]) -> Float[Array, "*batch 2 2"]:
    """Return the 2 x 2 rotation by an angle in radians, positive from x toward y (clockwise in the image)."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)], axis=-2)


@exact
def crop_affine(
    center: Float[Array, "*batch 2"],
    side: Float[Array, "*batch"],
    size: int,
    angle: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch 2 3"]:
    """Return the affine pixel map from an image to a crop of a square, `size` x `size` pixels.

    The square's centre is mapped to ((size - 1) / 2, (size - 1) / 2); the content is rotated by `angle` (radians).
    """
    rotation = in_plane_rotation(jnp.zeros_like(side) if angle is None else angle)
    linear = (size / side)[..., None, None] * rotation
    offset = 0.5 * (size - 1) - jnp.einsum("...ij,...j->...i", linear, center)
    return jnp.concatenate([linear, offset[..., None]], axis=-1)


def as_camera(camera: Any) -> Camera:
    """Return a camera of NumPy arrays from a `Camera`, intrinsics, or None (weak perspective in pixels).

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(camera, Camera):
        camera = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), camera)
        if (camera.linear.shape, camera.center.shape, camera.perspectivity.shape) != ((2, 2), (2,), ()):
            raise InputError(f"camera.linear has shape {camera.linear.shape}: give one Camera of one image")
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(camera))
        if not finite or np.linalg.det(camera.linear) <= 0 or camera.perspectivity not in (0.0, 1.0):
            text = " ".join(str(camera).split())[:200]
            raise InputError(f"camera is not a valid camera: {text}: give finite numbers and positive focal lengths")
        return camera
    matrix = np.eye(3, dtype=np.float32) if camera is None else intrinsic_matrix(camera)
    return Camera(matrix[:2, :2], matrix[:2, 2], np.asarray(camera is not None, np.float32))


def intrinsic_matrix(camera: Any) -> FloatArray:
    """Return {fx, fy, cx, cy}, those four numbers, a matrix or a `Camera` as a checked intrinsic matrix (3, 3), pixels.

    Raises:
        InputError: If it is none of these, or no camera has such intrinsics.
    """
    if isinstance(camera, Camera):
        camera = as_camera(camera)
        if not camera.perspectivity:
            raise InputError("camera is a weak-perspective Camera: leave it out, or give intrinsics in pixels")
        return np.asarray(camera.matrix)
    if isinstance(camera, Mapping):
        missing = [key for key in ("fx", "fy", "cx", "cy") if key not in camera]
        if missing:
            raise InputError(f"camera lacks {', '.join(missing)}: give fx, fy, cx and cy in pixels")
        if others := [str(key)[:40] for key in camera if key not in ("fx", "fy", "cx", "cy")]:
            warn(f"camera has {', '.join(others)}, which is not read: undistort the image if its lens has distortion")
        camera = [camera[key] for key in ("fx", "fy", "cx", "cy")]
    array = np.asarray(numbers("camera", camera))
    if array.shape == (4,):
        fx, fy, cx, cy = array
        array = np.asarray([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    matrix = checked_array("camera", array, (3, 3), most=_LONGEST)
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise InputError(f"camera has the focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}: they must be positive")
    if min(matrix[0, 0], matrix[1, 1]) < 1:
        raise InputError(f"camera has a focal length of {min(matrix[0, 0], matrix[1, 1]):g} pixels: give it in pixels")
    if not np.array_equal(matrix[2], [0.0, 0.0, 1.0]) or np.linalg.det(matrix.astype(np.float64)) <= 0:
        raise InputError("camera is not an intrinsic matrix: its last row must be 0 0 1 and it must be invertible")
    return matrix


def checked_length(hand_length: Any, camera: Any) -> float:
    """Return a hand length as a float, metres.

    Raises:
        InputError: If it is not the length of a hand, or `camera` is None.
    """
    length = float(checked_array("hand_length", hand_length, ()))
    check_range("hand_length (metres from the wrist to the middle fingertip)", length, 0.03, 0.5)
    if camera is None:
        raise InputError("hand_length is given without camera: depth needs its intrinsics; add them, or leave it out")
    return length
