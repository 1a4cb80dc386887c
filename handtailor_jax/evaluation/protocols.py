"""Alignments by their names in the literature, and the decisions that a number depends on (docs/protocols.md).

Joints are (n, 21, 3) in metres, camera frame, canonical order (`skeleton.KEYPOINTS`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from handtailor_jax.evaluation.alignment import anchor, similarity
from handtailor_jax.evaluation.metrics import (
    GRID_20_50,
    FloatArray,
    Grid,
    Mask,
    Points,
    distances_mm,
    paired_points,
)
from handtailor_jax.skeleton import KEYPOINTS, REFERENCE_BONE, ROOT, WRIST

Alignment = Literal["lit", "zb", "ge", "root", "pa", "abs"]
"""Alignment of a prediction to the truth before distances are taken:

- lit: root on the true root, scaled by the true reference bone; the usual one on RHD and STB.
- zb: Zimmermann and Brox. Palm point on the true palm point, scaled by the true bone from the middle MCP to the middle
  PIP; only visible joints count.
- ge: Ge et al. Wrist on the true wrist, scaled by the same bone; their network is given both at test time.
- root: root on the true root.
- pa: similarity Procrustes per hand, never mirrored.
- abs: none.
"""
WristRecipe = Literal["bihand", "ge", "palm"]
"""How the wrist is derived from STB's palm point."""
HandChoice = Literal["mask", "visible", "both"]
"""Hand of an RHD image: the one with more pixels in the mask, the one with more visible keypoints, or both."""
StbCamera = Literal["SK", "BB"]
"""Camera of STB: the colour camera, or the two of the stereo rig."""
ScoredJoints = Literal["model", "freihand"]
"""Joints of a predicted hand that are scored: those of the kinematic chain, or those that FreiHAND regresses from the
posed mesh."""
GivenTruth = Literal["box", "root_depth", "bone_length", "intrinsics"]
"""A part of the ground truth that a method is given at test time."""

_PHALANX = (KEYPOINTS.index("middle_mcp"), KEYPOINTS.index("middle_pip"))

_ALIGNMENTS: Mapping[Alignment, Callable[[Any, Any], Any]] = {
    "lit": functools.partial(anchor, point=ROOT, bone=REFERENCE_BONE),
    "zb": functools.partial(anchor, point=WRIST, bone=_PHALANX),
    "ge": functools.partial(anchor, point=WRIST, bone=_PHALANX),
    "root": functools.partial(anchor, point=ROOT),
    "pa": similarity,
    "abs": lambda predicted, truth: predicted,
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Decisions that a number depends on. Every table prints them.

    Raises:
        ValueError: for `ge` without the truth that it gives to the method.
    """

    alignment: Alignment = "lit"
    grid: Grid = GRID_20_50
    wrist: WristRecipe = "bihand"
    hand: HandChoice = "mask"
    stb_camera: StbCamera = "SK"
    joint_definition: ScoredJoints = "model"
    given_truth: tuple[GivenTruth, ...] = ("box", "intrinsics")
    """Parts of the ground truth that the method is given at test time."""

    def __post_init__(self) -> None:
        if self.alignment == "ge" and not {"root_depth", "bone_length"} <= set(self.given_truth):
            raise ValueError(
                f"given_truth is {self.given_truth}: alignment ge gives the method the truth, so name root_depth and "
                "bone_length in it"
            )

    def __str__(self) -> str:
        """Return all decisions in one line."""
        return (
            f"align={self.alignment} grid={self.grid.name} wrist={self.wrist} hand={self.hand} "
            f"stb_camera={self.stb_camera} joints={self.joint_definition} truth={'+'.join(self.given_truth) or 'none'}"
        )


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Aligned predictions, and the truth that they are compared with."""

    predicted: FloatArray
    """(n, 21, 3) metres."""
    truth: FloatArray
    """(n, 21, 3) metres; joint 0 is the palm point under `zb`."""
    counted: Mask
    """(n, 21) joints that take part: the visible ones under `zb`, else all."""

    @property
    def errors_mm(self) -> FloatArray:
        """Distances (n, 21) in millimetres, also of joints that are not counted."""
        return distances_mm(self.predicted, self.truth)


def align(
    predicted: Points,
    truth: Points,
    alignment: Alignment = "lit",
    visible: Mask | None = None,
    *,
    joint_0_is_palm: bool = False,
) -> Aligned:
    """Align predicted joints to true joints.

    Args:
        predicted: (n, 21, 3) metres, camera frame.
        truth: (n, 21, 3) metres, camera frame.
        alignment: Name of the alignment.
        visible: (n, 21) visible joints, used by `zb` only; all if None.
        joint_0_is_palm: Whether joint 0 is a palm point already (STB with the wrist recipe `palm`). Otherwise `zb`
            replaces the wrist of both by the midpoint of wrist and middle MCP.

    Raises:
        ValueError: on wrong shapes or coordinates that are not finite.
    """
    p, t = paired_points(predicted, truth, joints=len(KEYPOINTS))
    if visible is not None and visible.shape != p.shape[:2]:
        raise ValueError(f"visible has shape {visible.shape}: it must be {p.shape[:2]}, as the joints are")
    counted = np.ones(p.shape[:2], np.bool_)
    if alignment == "zb":
        counted = counted if visible is None else visible
        if not joint_0_is_palm:
            p, t = _palm_for_wrist(p), _palm_for_wrist(t)
            # The palm point is visible where wrist or middle MCP is.
            palm = counted[:, WRIST, None] | counted[:, ROOT, None]
            counted = np.concatenate([palm, counted[:, 1:]], axis=-1)
    return Aligned(_ALIGNMENTS[alignment](p, t), t, counted)


def _palm_for_wrist(joints: FloatArray) -> FloatArray:
    """Replace joint 0 by the midpoint of wrist and middle MCP."""
    palm = 0.5 * (joints[:, WRIST, None] + joints[:, ROOT, None])
    return np.concatenate([palm, joints[:, 1:]], axis=1)
