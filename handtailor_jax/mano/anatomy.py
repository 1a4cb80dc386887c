"""Anatomical coordinates of the 15 finger joints: flexion, abduction and twist, with limits and a prior."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.types import pytree


@pytree
class Anatomy:
    """Axes, limits and prior of the finger joints, in MANO's order (index, middle, little, ring, thumb).

    The coordinates of a joint's axis-angle rotation v are ``axes @ v``: flexion (positive toward the palm), abduction
    (positive toward the thumb's side) and twist (about the bone), in radians.
    """

    axes: Float[Array, "15 3 3"]
    """Flexion, abduction and twist axis in the rest frame, as orthonormal rows."""
    lower: Float[Array, "15 3"]
    """Lower joint limits, radians."""
    upper: Float[Array, "15 3"]
    """Upper joint limits, radians."""
    mean: Float[Array, "15 3"]
    """Mean of the pose prior, radians."""
    std: Float[Array, "15 3"]
    """Standard deviation of the pose prior, radians."""

    def coordinates(self, finger_pose: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Convert axis-angle finger rotations (radians) to flexion, abduction and twist (radians)."""
        return jnp.einsum("jab,jb->ja", self.axes, finger_pose)

    def finger_pose(self, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Convert flexion, abduction and twist (radians) to axis-angle finger rotations (radians)."""
        return jnp.einsum("jab,ja->jb", self.axes, coordinates)
