"""Left and right: mirror images, cameras, points, poses and parameters about a vertical line.

The networks and the compiled programs see right hands only. A left hand is mirrored on the way in, u' = (width - 1) - u
and x' = -x, and its result is mirrored on the way out with the same functions: each is its own inverse. Every function
takes NumPy and JAX arrays.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from handtailor_jax.types import Camera, HandParameters

Numbers = Any
"""A NumPy or JAX array."""


def mirror_camera(camera: Camera, width: int | float | Float[Numbers, "*batch"]) -> Camera:
    """Return the camera of the mirrored image in the mirrored camera frame.

    Args:
        camera: Camera of the original image, pixels.
        width: Image width in pixels; 1 mirrors about the first column (u' = -u).
    """
    # diag(-1, 1) on both sides of the linear part flips the sign of its off-diagonal entries.
    signs = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]], camera.linear.dtype)
    u, v = camera.center[..., 0], camera.center[..., 1]
    return dataclasses.replace(
        camera,
        linear=camera.linear * jnp.broadcast_to(signs, camera.linear.shape),
        center=jnp.stack([(width - 1.0) - u, v], axis=-1),
    )


def mirror_pixels(pixels: Float[Numbers, "*batch n 2"], width: int | float) -> Float[Numbers, "*batch n 2"]:
    """Return the pixels (u, v) in the mirrored image, u' = (width - 1) - u."""
    return _scaled(pixels, (-1.0, 1.0)) + _row(pixels, (width - 1.0, 0.0))


def mirror_points(points: Float[Numbers, "*batch 3"]) -> Float[Numbers, "*batch 3"]:
    """Return the points in the mirrored camera frame, x' = -x."""
    return _scaled(points, (-1.0, 1.0, 1.0))


def mirror_intrinsics(intrinsics: Float[Numbers, "*batch 3 3"], width: int | float) -> Float[Numbers, "*batch 3 3"]:
    """Return K of the mirrored image in the mirrored frame: cx' = (width - 1) - cx, and the skew changes sign."""
    signs = np.asarray([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], intrinsics.dtype)
    shift = np.zeros((3, 3), intrinsics.dtype)
    shift[0, 2] = width - 1
    return intrinsics * np.broadcast_to(signs, intrinsics.shape) + np.broadcast_to(shift, intrinsics.shape)


def mirror_pose(pose: Float[Numbers, "*batch joints 3"]) -> Float[Numbers, "*batch joints 3"]:
    """Return the axis-angle rotations of the mirrored hand: (x, y, z) becomes (x, -y, -z)."""
    return _scaled(pose, (1.0, -1.0, -1.0))


def mirror_parameters(parameters: HandParameters) -> HandParameters:
    """Return the parameters of the mirrored hand, for the hand model of the other side."""
    return dataclasses.replace(
        parameters, pose=mirror_pose(parameters.pose), translation=mirror_points(parameters.translation)
    )


def mirror_faces(faces: Int[Numbers, "faces 3"]) -> Int[Numbers, "faces 3"]:
    """Return the triangles with reversed winding, because mirroring vertices turns normals inward."""
    return faces[:, ::-1]


def _row(like: Any, values: tuple[float, ...]) -> Any:
    # Broadcast by hand: strict rank promotion refuses vector times batch.
    return np.broadcast_to(np.asarray(values, like.dtype), like.shape)


def _scaled(array: Any, signs: tuple[float, ...]) -> Any:
    return array * _row(array, signs)
