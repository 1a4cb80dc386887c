"""Alignments of predicted to true points, and the decisions on which a number depends (docs/protocols.md).

`similarity`, `scale_and_shift` and `anchor` take points (..., n, 3) in any one unit, either all NumPy or all JAX
arrays. `align` takes joints (n, 21, 3) in metres, camera frame.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from handtailor_jax.evaluation.metrics import FloatArray, Mask, Points, distances_mm, paired_points
from handtailor_jax.geometry.similarity import POINT, PointSet, best_similarity, ratio
from handtailor_jax.skeleton import KEYPOINTS, REFERENCE_BONE, ROOT, WRIST


def similarity(predicted: PointSet, truth: PointSet) -> PointSet:
    """Move, scale and rotate (never mirror) `predicted` so that it lies closest to `truth`."""
    return best_similarity(predicted, truth).apply(predicted)


def scale_and_shift(predicted: PointSet, truth: PointSet) -> PointSet:
    """Move and scale (never rotate) `predicted` so that it lies closest to `truth`."""
    xp = predicted.__array_namespace__()
    center = xp.mean(truth, axis=-2, keepdims=True)
    p, t = predicted - xp.mean(predicted, axis=-2, keepdims=True), truth - center
    total = xp.sum(p * t, axis=(-1, -2), keepdims=True)
    return ratio(total, xp.sum(xp.square(p), axis=(-1, -2), keepdims=True), POINT**2) * p + center


def anchor(predicted: PointSet, truth: PointSet, point: int = ROOT, bone: tuple[int, int] | None = None) -> PointSet:
    """Move `predicted` so that one point coincides with the true point, and scale it about that point.

    The scale gives a bone, two indices of points, its true length; None keeps the scale. A prediction whose bone has no
    length collapses into the point.
    """
    about = predicted - predicted[..., point, None, :]
    if bone is not None:
        about = ratio(_length(truth, bone), _length(predicted, bone), POINT) * about
    return about + truth[..., point, None, :]


def _length(points: Any, bone: tuple[int, int]) -> Any:
    """Return the length of a bone, (..., 1, 1)."""
    start, end = (points[..., joint, None, :] for joint in bone)
    return points.__array_namespace__().linalg.norm(end - start, axis=-1, keepdims=True)


Alignment = Literal["lit", "zb", "ge", "root", "pa", "abs"]
"""Alignment of a prediction to the ground truth, before distances are computed:

- lit: root on the true root, scaled by the true reference bone; usual on RHD and STB.
- zb: Zimmermann and Brox. Palm point on the true palm point, scaled by the true bone from the middle MCP to the middle
  PIP; only visible joints count.
- ge: Ge et al. Wrist on the true wrist, scaled by the same bone; their network is given both of them at test time.
- root: root on the true root.
- pa: similarity Procrustes per hand, never mirrored.
- abs: none.
"""
WristRecipe = Literal["bihand", "ge", "palm"]
"""How the wrist is derived from STB's palm point."""
StbCamera = Literal["SK", "BB"]
"""Camera of STB: the colour camera, or both cameras of the stereo rig."""
ScoredJoints = Literal["model", "freihand", "palm"]
"""Joints of a predicted hand that are scored: "model" joints are on the kinematic chain, "freihand" joints are
regressed from the posed mesh, "palm" joints are on the chain except the wrist, the mean of `PALM_VERTICES`."""
PALM_VERTICES = (95, 22)
"""Vertices of MANO whose mean is compared with STB's palm point (docs/datasets.md)."""
GivenTruth = Literal["box", "intrinsics"]
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
    """Decisions on which a number depends, beside those that all tables share. Every table prints them."""

    wrist: WristRecipe = "bihand"
    stb_camera: StbCamera = "SK"
    joint_definition: ScoredJoints = "model"
    given_truth: tuple[GivenTruth, ...] = ("box", "intrinsics")

    def __str__(self) -> str:
        """Return all decisions in one line."""
        chosen = f"wrist={self.wrist} hand=mask stb_camera={self.stb_camera} joints={self.joint_definition}"
        return f"align=lit grid=20-50 {chosen} truth={'+'.join(self.given_truth) or 'none'}"


class Aligned(NamedTuple):
    """Aligned predictions (n, 21, 3), the ground truth to compare with, and the joints (n, 21) that take part."""

    predicted: FloatArray
    truth: FloatArray  # joint 0 is the palm point under "zb"
    counted: Mask  # the visible joints under "zb", else all

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
    """Align predicted joints (n, 21, 3) to true joints, metres, camera frame.

    Only "zb" uses the visible joints (n, 21); None means all. It replaces the wrist of both by the midpoint of wrist
    and middle MCP, unless joint 0 is a palm point already (STB with the wrist recipe "palm").

    Raises:
        ValueError: On wrong shapes or coordinates that are not finite.
    """
    p, t = paired_points(predicted, truth, joints=len(KEYPOINTS))
    if visible is not None and visible.shape != p.shape[:2]:
        raise ValueError(f"visible has shape {visible.shape}: it must be {p.shape[:2]}, as for the joints")
    counted = np.ones(p.shape[:2], np.bool_)
    if alignment == "zb":
        counted = counted if visible is None else visible
        if not joint_0_is_palm:
            p, t = _palm_for_wrist(p), _palm_for_wrist(t)
            # The palm point counts as visible if the wrist or the middle MCP is visible.
            palm = counted[:, WRIST, None] | counted[:, ROOT, None]
            counted = np.concatenate([palm, counted[:, 1:]], axis=-1)
    return Aligned(_ALIGNMENTS[alignment](p, t), t, counted)


def _palm_for_wrist(joints: FloatArray) -> FloatArray:
    """Replace joint 0 by the midpoint of wrist and middle MCP."""
    palm = 0.5 * (joints[:, WRIST, None] + joints[:, ROOT, None])
    return np.concatenate([palm, joints[:, 1:]], axis=1)
