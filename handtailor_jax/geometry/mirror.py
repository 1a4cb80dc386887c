"""Left and right: mirror images, cameras, points, poses and parameters about a vertical line.

The hourglass and IKNet process right hands only, and a fit only hands of its model's side. Other hands are mirrored
before, u' = (width - 1) - u and x' = -x, and the results are mirrored back. Each function is its own inverse, apart
from fields that it drops. All take NumPy and JAX arrays.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from handtailor_jax.types import Camera, Hand, HandEstimate, HandParameters, Numbers, Observation

T = TypeVar("T")


def mirror_camera(camera: Camera, width: int | float | Float[Numbers, "*batch"]) -> Camera:
    """Return the camera of the mirrored image in the mirrored frame; a width of 1 mirrors about the first column."""
    # diag(-1, 1) on both sides of the linear part flips the sign of its off-diagonal entries.
    signs = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]], camera.linear.dtype)
    center = jnp.stack([(width - 1.0) - camera.center[..., 0], camera.center[..., 1]], axis=-1)
    return Camera(camera.linear * jnp.broadcast_to(signs, camera.linear.shape), center, camera.perspectivity)


def mirror_pixels(pixels: Float[Numbers, "*batch n 2"], width: int | float) -> Float[Numbers, "*batch n 2"]:
    """Return the pixels (u, v) in the mirrored image, u' = (width - 1) - u."""
    return pixels * _row(pixels, (-1.0, 1.0)) + _row(pixels, (width - 1.0, 0.0))


def mirror_points(points: Float[Numbers, "*batch 3"]) -> Float[Numbers, "*batch 3"]:
    """Return the points in the mirrored camera frame, x' = -x."""
    return points * _row(points, (-1.0, 1.0, 1.0))


def mirror_intrinsics(intrinsics: Float[Numbers, "*batch 3 3"], width: int | float) -> Float[Numbers, "*batch 3 3"]:
    """Return K of the mirrored image in the mirrored frame: cx' = (width - 1) - cx, and the skew changes sign."""
    pixels = np.asarray([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], intrinsics.dtype)
    return pixels @ intrinsics @ np.diag([-1.0, 1.0, 1.0]).astype(intrinsics.dtype)


def mirror_pose(pose: Float[Numbers, "*batch joints 3"]) -> Float[Numbers, "*batch joints 3"]:
    """Return the axis-angle rotations of the mirrored hand: (x, y, z) becomes (x, -y, -z)."""
    return pose * _row(pose, (1.0, -1.0, -1.0))


def mirror_parameters(parameters: HandParameters) -> HandParameters:
    """Return the parameters of the mirrored hand, for the hand model of the other side."""
    return dataclasses.replace(
        parameters, pose=mirror_pose(parameters.pose), translation=mirror_points(parameters.translation)
    )


def mirror_estimate(estimate: HandEstimate, size: int) -> HandEstimate:
    """Return the estimate of the mirrored crop of `size` pixels, in the mirrored camera frame."""
    return dataclasses.replace(
        estimate,
        left=~estimate.left,
        keypoints_2d=mirror_pixels(estimate.keypoints_2d, size),
        joints=mirror_points(estimate.joints),
        pose=mirror_pose(estimate.pose),
        right=None if estimate.right is None else 1.0 - estimate.right,
    )


def mirror_observation(observation: Observation) -> Observation:
    """Return the keypoints and depths of the image mirrored about its first column (u' = -u), without maps."""
    return dataclasses.replace(
        observation,
        keypoints_2d=mirror_pixels(observation.keypoints_2d, 1.0),
        camera=mirror_camera(observation.camera, 1.0),
        depth_map=None,
        mask=None,
    )


def mirror_faces(faces: Int[Numbers, "*batch faces 3"]) -> Int[Numbers, "*batch faces 3"]:
    """Return the triangles with reversed winding, because mirroring vertices turns normals inward."""
    return faces[..., ::-1]


def mirror_hand(hand: Hand) -> Hand:
    """Return the hand of the other side in the image mirrored about its first column (u' = -u), without `region`."""
    return dataclasses.replace(
        hand,
        left=~hand.left,
        camera=mirror_camera(hand.camera, 1.0),
        parameters=mirror_parameters(hand.parameters),
        vertices=mirror_points(hand.vertices),
        faces=mirror_faces(hand.faces),
        joints=mirror_points(hand.joints),
        landmarks=mirror_points(hand.landmarks),
        keypoints_2d=mirror_pixels(hand.keypoints_2d, 1.0),
        detected_keypoints_2d=mirror_pixels(hand.detected_keypoints_2d, 1.0),
        region=None,
        proposed=None if hand.proposed is None else mirror_hand(hand.proposed),
        runner_up=None if hand.runner_up is None else mirror_hand(hand.runner_up),
    )


def choose(condition: Bool[Numbers, ""], if_true: T, if_false: T) -> T:
    """Select one of two pytrees of the same structure by a condition that may be traced."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def _row(like: Any, values: tuple[float, ...]) -> Any:
    # Broadcast by hand: strict rank promotion refuses vector times batch.
    return np.broadcast_to(np.asarray(values, like.dtype), like.shape)
