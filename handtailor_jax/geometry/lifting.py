"""Lifting keypoints with relative depth to the camera frame (Eq. 5, 14, 15 of the paper).

Relative depth is the depth behind the root, in lengths of the reference bone (from wrist to root).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import unproject
from handtailor_jax.skeleton import ROOT, WRIST
from handtailor_jax.types import Camera

# The depth of the unit reference bone is clipped to this: at 1 the bone points at the camera and Eq. 15 divides by 0.
_MAX_BONE_DEPTH = 0.95


def reference_bone_length(keypoints: Float[Array, "*batch 21 3"]) -> Float[Array, "*batch"]:
    """Return the distance from the wrist to the root, in the keypoints' unit."""
    bone = keypoints[..., WRIST, :] - keypoints[..., ROOT, :]
    return jnp.sqrt(jnp.sum(bone * bone, axis=-1))


def lift_scale(uvd: Float[Array, "*batch 21 3"]) -> Float[Array, "*batch"]:
    """Return s of Eq. 15 of the paper: units of (u, v) per reference bone.

    With (u, v) on the plane z = 1 of a perspective camera, s is the inverse of the hand's depth in bones. A noisy
    relative depth can exceed the bone's length; it is clipped, so that s is finite and has a gradient.
    """
    bone = uvd[..., WRIST, :] - uvd[..., ROOT, :]
    depth = jnp.clip(bone[..., 2], -_MAX_BONE_DEPTH, _MAX_BONE_DEPTH)
    return jnp.sqrt(jnp.maximum(bone[..., 0] ** 2 + bone[..., 1] ** 2, 1e-12) / (1.0 - depth * depth))


def lift(
    camera: Camera, uvd: Float[Array, "*batch 21 3"], bone: Float[Array, "*batch"], root_depth: Float[Array, "*batch"]
) -> Float[Array, "*batch 21 3"]:
    """Lift keypoints (u, v; pixels) with relative depth to the camera frame: Eq. 5, or Eq. 14 in weak perspective.

    `bone`, the length of the reference bone, and `root_depth` are in camera-frame units.
    """
    return unproject(camera, uvd[..., :2], uvd[..., 2] * bone[..., None] + root_depth[..., None])


def turn_to_axis(direction: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Return the smallest rotation that takes a direction with z > 0, of any length, to the z axis."""
    x, y, z = (direction[..., i] for i in range(3))
    length = jnp.sqrt(x * x + y * y + z * z)
    x, y, z = x / length, y / length, z / length
    # Rodrigues' formula between two unit vectors; z > 0 keeps the divisor above 1.
    share = 1.0 / (1.0 + z)
    rows = [1.0 - x * x * share, -x * y * share, -x, -x * y * share, 1.0 - y * y * share, -y, x, y, z]
    return jnp.stack(rows, axis=-1).reshape(*direction.shape[:-1], 3, 3)


def root_depth_in_bones(
    rays: Float[Array, "*batch 21 2"], relative_depth: Float[Array, "*batch 21"]
) -> Float[Array, "*batch"]:
    """Return the z of the root, in reference bones, at which the lifted reference bone has length 1.

    Eq. 15 of the paper assumes that wrist and root are equally far from the camera. Known intrinsics make this
    assumption unnecessary: with keypoints (x, y) on the plane z = 1, rays r = (x, y, 1), root depth z and the wrist's
    relative depth d, the equation |(z + d) r_wrist - z r_root| = 1 is quadratic in z.
    """
    wrist, root = rays[..., WRIST, :], rays[..., ROOT, :]
    depth = relative_depth[..., WRIST] - relative_depth[..., ROOT]
    # Clipped as in Eq. 15: a depth beyond the bone's length leaves no solution.
    length = jnp.sqrt(1.0 + jnp.sum(wrist * wrist, axis=-1))
    depth = jnp.clip(depth, -_MAX_BONE_DEPTH / length, _MAX_BONE_DEPTH / length)
    apart = wrist - root
    a = jnp.maximum(jnp.sum(apart * apart, axis=-1), 1e-8)
    half_b = depth * jnp.sum(wrist * apart, axis=-1)
    c = jnp.square(depth * length) - 1.0  # negative, so there is exactly one positive solution
    return (jnp.sqrt(half_b * half_b - a * c) - half_b) / a
