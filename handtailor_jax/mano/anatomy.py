"""Anatomical coordinates of the 15 finger joints: flexion, abduction and twist, with limits and priors."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.types import pytree


@pytree
class Anatomy:
    """Axes, limits and priors of the finger joints, in MANO's order (index, middle, little, ring, thumb).

    An axis-angle rotation theta of a joint has the coordinates ``axes @ theta``: flexion (positive toward the palm),
    abduction (positive toward the thumb's side) and twist (about the bone), in radians.
    """

    axes: Float[Array, "15 3 3"]
    """Orthonormal rows: flexion, abduction and twist axis in the rest frame."""
    lower: Float[Array, "15 3"]
    """Smallest coordinates a healthy hand reaches, radians."""
    upper: Float[Array, "15 3"]
    """Largest coordinates a healthy hand reaches, radians."""
    mean: Float[Array, "15 3"]
    """Mean of the prior, radians."""
    std: Float[Array, "15 3"]
    """Standard deviation of the prior, radians."""

    def coordinates(self, finger_pose: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Flexion, abduction and twist (radians) of axis-angle finger rotations."""
        return jnp.einsum("jab,jb->ja", self.axes, finger_pose)

    def finger_pose(self, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Axis-angle finger rotations from flexion, abduction and twist (radians)."""
        return jnp.einsum("jab,ja->jb", self.axes, coordinates)
