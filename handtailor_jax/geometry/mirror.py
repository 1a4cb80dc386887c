"""Left and right: mirror images, cameras, points, poses and parameters about a vertical line.

The networks and the compiled programs process right hands only. A left hand is mirrored before them, u' = (width - 1)
- u and x' = -x, and its result is mirrored back with the same functions: each is its own inverse. All functions take
NumPy and JAX arrays.
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


def mirror_estimate(estimate: HandEstimate, size: int) -> HandEstimate:
    """Return the estimate of the mirrored crop, in the mirrored camera frame, without a network's own intermediates.

    Args:
        estimate: Output of a hand module.
        size: Side of the crop, pixels.
    """
    return HandEstimate(
        left=~estimate.left,
        keypoints_2d=mirror_pixels(estimate.keypoints_2d, size),
        confidence=estimate.confidence,
        joints=mirror_points(estimate.joints),
        pose=mirror_pose(estimate.pose),
        betas=estimate.betas,
        root_depth=estimate.root_depth,
        bone=estimate.bone,
        presence=estimate.presence,
        right=None if estimate.right is None else 1.0 - estimate.right,
        convention=estimate.convention,
    )


def mirror_observation(observation: Observation) -> Observation:
    """Return the keypoints and depths of the image mirrored about its first column (u' = -u), without maps."""
    return Observation(
        keypoints_2d=mirror_pixels(observation.keypoints_2d, 1.0),
        confidence=observation.confidence,
        camera=mirror_camera(observation.camera, 1.0),
        relative_depth=observation.relative_depth,
    )


def mirror_faces(faces: Int[Numbers, "*batch faces 3"]) -> Int[Numbers, "*batch faces 3"]:
    """Return the triangles with reversed winding, because mirroring vertices turns normals inward."""
    return faces[..., ::-1]


def mirror_hand(hand: Hand) -> Hand:
    """Return the hand of the other side in the image mirrored about its first column (u' = -u).

    `region` is left out: it belongs to the original image.
    """
    return Hand(
        left=~hand.left,
        camera=mirror_camera(hand.camera, 1.0),
        parameters=mirror_parameters(hand.parameters),
        vertices=mirror_points(hand.vertices),
        faces=mirror_faces(hand.faces),
        joints=mirror_points(hand.joints),
        landmarks=mirror_points(hand.landmarks),
        keypoints_2d=mirror_pixels(hand.keypoints_2d, 1.0),
        detected_keypoints_2d=mirror_pixels(hand.detected_keypoints_2d, 1.0),
        confidence=hand.confidence,
        reprojection_before=hand.reprojection_before,
        reprojection_after=hand.reprojection_after,
        proposed=None if hand.proposed is None else mirror_hand(hand.proposed),
        runner_up=None if hand.runner_up is None else mirror_hand(hand.runner_up),
        energy_gap=hand.energy_gap,
        convention=hand.convention,
    )


def choose(condition: Bool[Numbers, ""], if_true: T, if_false: T) -> T:
    """Return one of two pytrees of the same structure; inside the graph, where a side is a value."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def _row(like: Any, values: tuple[float, ...]) -> Any:
    # Broadcast by hand: strict rank promotion refuses vector times batch.
    return np.broadcast_to(np.asarray(values, like.dtype), like.shape)


def _scaled(array: Any, signs: tuple[float, ...]) -> Any:
    return array * _row(array, signs)
