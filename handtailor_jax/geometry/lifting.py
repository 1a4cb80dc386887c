"""From keypoints with root-relative depth to the camera frame (Eq. 5, 14, 15).

Depth is in units of the reference bone and relative to the root joint.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import unproject
from handtailor_jax.skeleton import REFERENCE_BONE
from handtailor_jax.types import Camera

# |dz'| of the unit reference bone is kept below this: at 1 the bone points at the camera and Eq. 15 divides by zero.
_MAX_BONE_DEPTH = 0.95


def lift_scale(uvd: Float[Array, "*batch 21 3"]) -> Float[Array, "*batch"]:
    """s, units of (u, v) per reference bone, from keypoints with root-relative depth (d in bones), Eq. 15.

    With (u, v) in pixels, s is in pixels per bone; with (u, v) on the plane z = 1 of a perspective camera, s is the
    inverse of the hand's depth in bones. With noisy depths the reference bone may seem longer in depth than it is;
    its depth is clipped so that s stays finite and its gradient defined.
    """
    bone = uvd[..., REFERENCE_BONE[0], :] - uvd[..., REFERENCE_BONE[1], :]
    depth = jnp.clip(bone[..., 2], -_MAX_BONE_DEPTH, _MAX_BONE_DEPTH)
    return jnp.sqrt(jnp.maximum(bone[..., 0] ** 2 + bone[..., 1] ** 2, 1e-12) / (1.0 - depth * depth))


def lift(
    camera: Camera,
    uvd: Float[Array, "*batch 21 3"],
    bone: Float[Array, "*batch"],
    root_depth: Float[Array, "*batch"],
) -> Float[Array, "*batch 21 3"]:
    """Camera-frame keypoints from (u, v, root-relative depth): Eq. 5 in perspective, Eq. 14 in weak perspective.

    Args:
        camera: the camera in whose pixels (u, v) are.
        uvd: pixels, and depth in reference bones.
        bone: length of the reference bone, camera-frame units.
        root_depth: z of the root joint, camera-frame units.
    """
    return unproject(camera, uvd[..., :2], uvd[..., 2] * bone[..., None] + root_depth[..., None])


def turn_to_axis(direction: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """The smallest rotation that takes a direction in front of the camera (z > 0, any length) to the z axis."""
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
    """z of the root joint in reference bones, at which the lifted reference bone has length 1 (after Eq. 15).

    Eq. 15 takes wrist and root to be equally far from the camera. With intrinsics nothing needs to be taken so: with
    rays r = (x, y, 1) / z, root depth z and the wrist's relative depth d, |(z + d) r_wrist - z r_root| = 1 is a
    quadratic equation in z.

    Args:
        rays: keypoints on the plane z = 1 of a perspective camera.
        relative_depth: in reference bones.
    """
    wrist, root = rays[..., REFERENCE_BONE[0], :], rays[..., REFERENCE_BONE[1], :]
    depth = relative_depth[..., REFERENCE_BONE[0]] - relative_depth[..., REFERENCE_BONE[1]]
    # As in Eq. 15: a bone that seems longer in depth than it is leaves nothing to be seen.
    length = jnp.sqrt(1.0 + jnp.sum(wrist * wrist, axis=-1))
    depth = jnp.clip(depth, -_MAX_BONE_DEPTH / length, _MAX_BONE_DEPTH / length)
    apart = wrist - root
    a = jnp.maximum(jnp.sum(apart * apart, axis=-1), 1e-8)
    half_b = depth * jnp.sum(wrist * apart, axis=-1)
    c = jnp.square(depth * length) - 1.0  # negative, so that there is one positive solution
    return (jnp.sqrt(half_b * half_b - a * c) - half_b) / a
