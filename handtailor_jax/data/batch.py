"""What a training step sees: pictures of right hands with whatever is known about each."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float, UInt8

from handtailor_jax.types import Camera, pytree

Numbers = Any
"""Arrays of NumPy, in host memory, or of JAX."""


@pytree
class Batch:
    """Pictures and their labels, in host or device memory. What is unknown holds anything finite, and has weight 0."""

    image: UInt8[Numbers, "*batch size size 3"]
    """sRGB, right hands."""
    keypoints_2d: Float[Numbers, "*batch 21 2"]
    """Keypoints (u, v) in the picture's pixels; they may lie outside of it."""
    keypoint_weight: Float[Numbers, "*batch 21"]
    """0 where a keypoint is unknown, 1 where it is sure."""
    intrinsics: Float[Numbers, "*batch 3 3"]
    """K in pixels; the identity where `has_intrinsics` is 0, which is the weak-perspective camera in pixels."""
    joints: Float[Numbers, "*batch 21 3"]
    """Keypoints in the camera frame, metres. Without intrinsics only differences and directions count."""
    pose: Float[Numbers, "*batch 16 3"]
    """Axis-angle rotations in MANO's order, radians; row 0 turns the hand in the camera frame."""
    betas: Float[Numbers, "*batch 10"]
    """Shape coefficients."""
    has_joints: Float[Numbers, "*batch"]
    """Weight of joints: 1 for truth, 0 for none, between them for estimates."""
    has_3d: Float[Numbers, "*batch"]
    """The same of pose and betas, which are never known without joints."""
    has_intrinsics: Float[Numbers, "*batch"]
    """1 where the camera is known, else 0."""
    mask: UInt8[Numbers, "*batch side side"] | None = None
    """255 where the hand is seen. Like `depth` None unless a loss asks for it; after augmentation as coarse as the
    network's maps."""
    depth: Float[Numbers, "*batch side side"] | None = None
    """Camera z of the hand, metres; 0 where the hand is not seen or its depth unknown."""

    @property
    def camera(self) -> Camera:
        """The pictures' cameras; weak perspective where none is known."""
        return Camera(
            linear=jnp.asarray(self.intrinsics[..., :2, :2]),
            center=jnp.asarray(self.intrinsics[..., :2, 2]),
            perspectivity=jnp.asarray(self.has_intrinsics),
        )
