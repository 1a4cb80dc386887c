"""Projection through a camera, and what happens to the camera when its image is cropped, resized or rotated.

Every image operation returns the camera of the new image, exactly: projecting a point with it equals projecting with
the old camera and moving the pixel.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.types import Camera


def depth_divisor(camera: Camera, z: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """What x and y are divided by before the linear part: z in perspective, 1 in weak perspective."""
    p = camera.perspectivity[..., None]
    return p * z + (1.0 - p)


def project(camera: Camera, points: Float[Array, "*batch n 3"]) -> Float[Array, "*batch n 2"]:
    """Pixels (u, v) of camera-frame points (Eq. 2 perspective, Eq. 3 weak perspective)."""
    xy = points[..., :2] / depth_divisor(camera, points[..., 2])[..., None]
    return jnp.einsum("...ij,...nj->...ni", camera.linear, xy) + camera.center[..., None, :]


def unproject(
    camera: Camera, pixels: Float[Array, "*batch n 2"], depth: Float[Array, "*batch n"]
) -> Float[Array, "*batch n 3"]:
    """Camera-frame points that project onto `pixels` (u, v) at depth z (Eq. 5 perspective, Eq. 14 weak perspective)."""
    xy = jnp.einsum("...ij,...nj->...ni", inverse_linear(camera), pixels - camera.center[..., None, :])
    return jnp.concatenate([xy * depth_divisor(camera, depth)[..., None], depth[..., None]], axis=-1)


def inverse_linear(camera: Camera) -> Float[Array, "*batch 2 2"]:
    """Inverse of the camera's 2x2 linear part, in closed form."""
    m = camera.linear
    a, b, c, d = m[..., 0, 0], m[..., 0, 1], m[..., 1, 0], m[..., 1, 1]
    adjugate = jnp.stack([jnp.stack([d, -b], axis=-1), jnp.stack([-c, a], axis=-1)], axis=-2)
    return adjugate / (a * d - b * c)[..., None, None]


def transform_pixels(
    affine: Float[Array, "*batch 2 3"], pixels: Float[Array, "*batch n 2"]
) -> Float[Array, "*batch n 2"]:
    """Applies an affine image map to pixels (u, v)."""
    return jnp.einsum("...ij,...nj->...ni", affine[..., :2], pixels) + affine[..., None, :, 2]


def inverse_affine(affine: Float[Array, "*batch 2 3"]) -> Float[Array, "*batch 2 3"]:
    """The affine image map that undoes another."""
    linear = jnp.linalg.inv(affine[..., :2])
    return jnp.concatenate([linear, -jnp.einsum("...ij,...j->...i", linear, affine[..., 2])[..., None]], axis=-1)


def transform_camera(camera: Camera, affine: Float[Array, "*batch 2 3"]) -> Camera:
    """The camera of an image moved by the affine pixel map; the camera frame stays as it is (K' = A K).

    With an in-plane rotation in `affine` the linear part is no longer diagonal, which every function here accepts.
    """
    return dataclasses.replace(
        camera,
        linear=jnp.einsum("...ij,...jk->...ik", affine[..., :2], camera.linear),
        center=transform_pixels(affine, camera.center[..., None, :])[..., 0, :],
    )


def rotate_frame(camera: Camera, angle: Float[Array, "*batch"]) -> Camera:
    """The camera expressed in a camera frame turned about the optical axis: K' = K R3^T where points become R3 p.

    Angles are in radians, positive from x toward y. After rotating an image by `angle`, turning the frame with it
    brings the linear part back to (nearly) diagonal form.
    """
    r = in_plane_rotation(angle)
    return dataclasses.replace(camera, linear=jnp.einsum("...ij,...kj->...ik", camera.linear, r))


def in_plane_rotation(angle: Float[Array, "*batch"]) -> Float[Array, "*batch 2 2"]:
    """2x2 rotation by an angle in radians, positive from x toward y (clockwise on the screen)."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)], axis=-2)


def crop_affine(
    center: Float[Array, "*batch 2"],
    side: Float[Array, "*batch"],
    size: int,
    angle: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch 2 3"]:
    """The affine pixel map that takes a square of the image to a `size` x `size` crop (datasets, section 1.4).

    Args:
        center: centre of the square, pixels (u, v); it lands on ((size - 1) / 2, (size - 1) / 2).
        side: side of the square in pixels.
        size: side of the crop in pixels.
        angle: in-plane rotation of the image content, radians.
    """
    zoom = size / side
    rotation = in_plane_rotation(jnp.zeros_like(side) if angle is None else angle)
    linear = zoom[..., None, None] * rotation
    offset = 0.5 * (size - 1) - jnp.einsum("...ij,...j->...i", linear, center)
    return jnp.concatenate([linear, offset[..., None]], axis=-1)
