"""Landmark conventions: where a labelling scheme sees each of the 21 keypoints on the hand.

The skeleton never moves to suit a label. A convention adds a fixed offset to each keypoint, part of it rigid with the
bone above the joint and part with the bone below, in units of the reference bone (so it grows with the hand).
"""

import json
from importlib import resources

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.mano.hand_model import PosedHand
from handtailor_jax.skeleton import (
    JOINT_PARENTS,
    KEYPOINT_PARENTS,
    KEYPOINTS,
    MANO_JOINTS,
    REFERENCE_BONE,
)
from handtailor_jax.types import pytree, static


def _joint_below(keypoint: int) -> int:
    """The MANO joint whose rotation carries the bone that starts at a keypoint (for a tip, the one that ends there)."""
    name = KEYPOINTS[keypoint]
    return MANO_JOINTS.index(name) if name in MANO_JOINTS else MANO_JOINTS.index(KEYPOINTS[KEYPOINT_PARENTS[keypoint]])


KEYPOINT_JOINT = tuple(_joint_below(k) for k in range(len(KEYPOINTS)))
"""For each keypoint, the MANO joint (0-15) with which the bone below it is rigid."""

_BELOW = np.asarray(KEYPOINT_JOINT, np.int32)
_ABOVE = np.asarray([max(JOINT_PARENTS[j], 0) for j in KEYPOINT_JOINT], np.int32)


@pytree
class LandmarkConvention:
    """A labelling scheme of the 21 keypoints; `landmarks` places its labels on a posed hand."""

    offsets: Float[Array, "21 2 3"] | None
    """Offset of each label from the model's keypoint: in the frame of the bone above, then of the bone below, both in
    rest-frame axes of a right hand and in units of the reference bone. None for the model's own keypoints."""
    name: str = static(default="mano")

    def landmarks(self, posed: PosedHand) -> Float[Array, "21 3"]:
        """The 21 labels on a posed hand: canonical order, metres, rest frame."""
        keypoints = posed.keypoints
        if self.offsets is None:
            return keypoints
        offsets = self.offsets
        if posed.shaped.model.side == "left":
            offsets = offsets * jnp.asarray([-1.0, 1.0, 1.0], offsets.dtype)[None, None]
        bone = posed.joints[KEYPOINT_JOINT[REFERENCE_BONE[1]]] - posed.joints[KEYPOINT_JOINT[REFERENCE_BONE[0]]]
        length = jnp.sqrt(jnp.sum(bone * bone))
        above = jnp.einsum("kab,kb->ka", posed.joint_rotations[_ABOVE], offsets[:, 0])
        below = jnp.einsum("kab,kb->ka", posed.joint_rotations[_BELOW], offsets[:, 1])
        return keypoints + length * (above + below)


MANO = LandmarkConvention(offsets=None, name="mano")
"""The model's own keypoints: 16 joints and 5 fingertip vertices."""

CONVENTIONS = ("mano", "mediapipe")
"""Names that `load_convention` knows: the model's own keypoints, and those of MediaPipe Hands (learned by
tools/learn_convention.py)."""


def load_convention(name: str) -> LandmarkConvention:
    """A landmark convention by name.

    Raises:
        ValueError: for a name that is not in `CONVENTIONS`.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"unknown landmark convention {name!r}: use one of {', '.join(CONVENTIONS)}")
    if name == "mano":
        return MANO
    content = json.loads(resources.files("handtailor_jax").joinpath("assets", f"{name}.json").read_text())
    return LandmarkConvention(offsets=jnp.asarray(content["offsets"], jnp.float32), name=name)
