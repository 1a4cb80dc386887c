"""Landmark conventions: the points of the hand that a labelling scheme uses as the 21 keypoints.

The skeleton is the same for every convention. A convention adds two fixed offsets to each keypoint, one rigid with the
bone above the joint and one rigid with the bone below. Offsets are in lengths of the reference bone.
"""

import json
from importlib import resources

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry import exact
from handtailor_jax.geometry.mirror import mirror_points
from handtailor_jax.mano.hand_model import PosedHand
from handtailor_jax.skeleton import JOINT_PARENTS, KEYPOINT_PARENTS, KEYPOINTS, MANO_JOINTS, ROOT_JOINT, WRIST
from handtailor_jax.types import pytree, static

KEYPOINT_JOINT = tuple(
    MANO_JOINTS.index(name if name in MANO_JOINTS else KEYPOINTS[parent])
    for name, parent in zip(KEYPOINTS, KEYPOINT_PARENTS, strict=True)
)
"""For each keypoint, the MANO joint (0 to 15) that rotates the bone below it; for a fingertip, the bone above it."""

_BELOW = np.asarray(KEYPOINT_JOINT, np.int32)
_ABOVE = np.asarray([max(JOINT_PARENTS[j], 0) for j in KEYPOINT_JOINT], np.int32)


@pytree
class LandmarkConvention:
    """A labelling scheme of the 21 keypoints."""

    offsets: Float[Array, "21 2 3"] | None
    """Offsets of each landmark from the model's keypoint, rigid with the bone above and with the bone below, in lengths
    of the reference bone and axes of the right hand's rest frame. None for the model's own keypoints."""
    name: str = static(default="mano")

    @exact
    def landmarks(self, posed: PosedHand) -> Float[Array, "21 3"]:
        """Return the 21 landmarks of a posed hand in canonical order, metres, rest frame."""
        if self.offsets is None:
            return posed.keypoints
        offsets = mirror_points(self.offsets) if posed.shaped.model.side == "left" else self.offsets
        bone = posed.joints[ROOT_JOINT] - posed.joints[KEYPOINT_JOINT[WRIST]]
        length = jnp.sqrt(jnp.sum(bone * bone))
        above = jnp.einsum("kab,kb->ka", posed.joint_rotations[_ABOVE], offsets[:, 0])
        below = jnp.einsum("kab,kb->ka", posed.joint_rotations[_BELOW], offsets[:, 1])
        return posed.keypoints + length * (above + below)


MANO = LandmarkConvention(offsets=None, name="mano")
"""The model's own keypoints: 16 joints and 5 fingertip vertices."""

CONVENTIONS = ("mano", "mediapipe")
"""mano: the model's own keypoints. mediapipe: those of MediaPipe Hands, estimated by tools/learn_convention.py."""


def load_convention(name: str) -> LandmarkConvention:
    """Load a landmark convention by its name in `CONVENTIONS`.

    Raises:
        ValueError: If there is no such convention.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"unknown landmark convention {name!r}: use one of {', '.join(CONVENTIONS)}")
    if name == "mano":
        return MANO
    content = json.loads(resources.files("handtailor_jax").joinpath("assets", f"{name}.json").read_text())
    return LandmarkConvention(offsets=jnp.asarray(content["offsets"], jnp.float32), name=name)
