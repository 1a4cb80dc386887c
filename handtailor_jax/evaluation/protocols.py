"""How predictions are made comparable with the truth, and the decisions that a number depends on (datasets 2.2 and 6).

Joints are (n, 21, 3) in metres, camera frame, canonical order (`skeleton.KEYPOINTS`). P is a prediction, G its truth.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from handtailor_jax.evaluation.alignment import Points, anchor, similarity
from handtailor_jax.evaluation.metrics import (
    GRID_20_50,
    FloatArray,
    Grid,
    Mask,
    auc,
    distances_mm,
    epe,
    paired_points,
    pck,
)
from handtailor_jax.skeleton import KEYPOINTS, REFERENCE_BONE, ROOT, WRIST

Alignment = Literal["lit", "zb", "ge", "root", "pa", "abs"]
"""The rows of the table in datasets 2.2."""
Wrist = Literal["bihand", "ge", "palm"]
"""STB: how joint 0 comes from the annotated palm point (datasets 1.2)."""
HandChoice = Literal["mask", "visible", "both"]
"""RHD: the hand with more pixels in the mask, the one with more visible keypoints, or both hands (datasets 1.1)."""
StbCamera = Literal["SK", "BB"]
"""STB: the colour camera, or the two of the stereo rig (datasets 1.2)."""
ScoredJoints = Literal["model", "freihand"]
"""Which joints of a predicted hand are scored: those of the model's kinematic chain, or those that FreiHAND regresses
from the posed mesh (datasets 0)."""
TestTruth = Literal["box", "root_depth", "bone_length", "intrinsics"]
"""What a method may have been told about a test image."""

PHALANX = (KEYPOINTS.index("middle_mcp"), KEYPOINTS.index("middle_pip"))
"""The bone 9-10, of which `zb` and `ge` use the true length."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The decisions that a number depends on; their description is printed beside it (datasets 6).

    Raises:
        ValueError: on a choice that does not exist, truth named twice, or `ge` without the truth that it takes.
    """

    alignment: Alignment = "lit"
    grid: Grid = GRID_20_50
    wrist: Wrist = "bihand"
    hand: HandChoice = "mask"
    stb_camera: StbCamera = "SK"
    joint_definition: ScoredJoints = "model"
    truth_used: tuple[str, ...] = ("box", "intrinsics")
    """What of the truth the method was given at test time, each a `TestTruth`; () if nothing. Not what an alignment
    takes from it afterwards, save for `ge`, where the two are the same."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("alignment", get_args(Alignment)),
            ("wrist", get_args(Wrist)),
            ("hand", get_args(HandChoice)),
            ("stb_camera", get_args(StbCamera)),
            ("joint_definition", get_args(ScoredJoints)),
        ):
            _check_choice(name, getattr(self, name), allowed)
        for truth in self.truth_used:
            _check_choice("truth_used", truth, get_args(TestTruth))
        if len(set(self.truth_used)) != len(self.truth_used):
            raise ValueError(f"truth_used names something twice: {', '.join(self.truth_used)}")
        if self.alignment == "ge" and not {"root_depth", "bone_length"} <= set(self.truth_used):
            raise ValueError("alignment ge gives the method root_depth and bone_length: name them in truth_used")

    def describe(self) -> str:
        """One line with everything that a number under this protocol depends on."""
        return (
            f"align={self.alignment} grid={self.grid.name} wrist={self.wrist} hand={self.hand} "
            f"stb_camera={self.stb_camera} joints={self.joint_definition} truth={'+'.join(self.truth_used) or 'none'}"
        )


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Predictions and truth in the form in which distances between them are taken."""

    predicted: FloatArray
    """(n, 21, 3) metres."""
    truth: FloatArray
    """(n, 21, 3) metres; `zb` replaces its joint 0, every other alignment leaves it alone."""
    counted: Mask
    """(n, 21) which joints take part: the visible ones under `zb`, all under the others (datasets 2.1)."""

    def errors_mm(self) -> FloatArray:
        """(n, 21) distances, millimetres; those that are not counted too."""
        return distances_mm(self.predicted, self.truth)


@dataclasses.dataclass(frozen=True)
class Score:
    """The figures of a set of predictions under one protocol."""

    protocol: Protocol
    samples: int
    auc: float
    pck_20: float
    """PCK at 20 mm (HandTailor, Table 1), whatever the grid."""
    mean_mm: float
    median_mm: float

    def __str__(self) -> str:
        return (
            f"AUC {self.auc:.3f}, PCK@20 {self.pck_20:.3f}, error {self.mean_mm:.2f} mm (median {self.median_mm:.2f}), "
            f"{self.samples} hands [{self.protocol.describe()}]"
        )


def lit(predicted: Points, truth: Points) -> Points:
    """(P - P9)·(|G0 - G9| / |P0 - P9|) + G9: the literature's alignment on RHD and STB, with the true reference bone.

    A prediction whose bone has no length collapses into G9.
    """
    return anchor(predicted, truth, ROOT, REFERENCE_BONE)


def root(predicted: Points, truth: Points) -> Points:
    """P - P9 + G9."""
    return anchor(predicted, truth, ROOT)


def pa(predicted: Points, truth: Points) -> Points:
    """Similarity Procrustes per sample; never mirrors (unlike FreiHAND's own, see `freihand_scoring`)."""
    return similarity(predicted, truth)


def absolute(predicted: Points, truth: Points) -> Points:
    """`abs`: the prediction as it is."""
    return predicted


def zb(predicted: Points, truth: Points) -> Points:
    """Zimmermann and Brox: joint 0 on the truth's, scaled by the true bone 9-10. Joint 0 must be the palm already.

    Their network gives joints in units of this bone, which they multiply with its true length. For predictions in
    metres the same is to make the predicted bone as long as the true one.
    """
    return anchor(predicted, truth, WRIST, PHALANX)


def ge(predicted: Points, truth: Points) -> Points:
    """Ge et al.: what a method would give that is told the true position of joint 0 and the true length of bone 9-10.

    Their network takes both as inputs and its output is scored as it is; joint 0, their root, is the truth itself.
    """
    return anchor(predicted, truth, WRIST, PHALANX)


_ALIGNMENTS: dict[str, Callable[[Points, Points], Points]] = {
    "lit": lit,
    "zb": zb,
    "ge": ge,
    "root": root,
    "pa": pa,
    "abs": absolute,
}


def palm_variant(joints: FloatArray) -> FloatArray:
    """Joints (..., 21, 3) with joint 0 moved to the midpoint of wrist and middle MCP (datasets 1.1)."""
    palm = 0.5 * (joints[..., WRIST, None, :] + joints[..., ROOT, None, :])
    return np.concatenate([palm, joints[..., 1:, :]], axis=-2)


def palm_visibility(visible: Mask) -> Mask:
    """Visibility (..., 21) to go with `palm_variant`: the palm is visible where wrist or middle MCP is."""
    palm = visible[..., WRIST, None] | visible[..., ROOT, None]
    return np.concatenate([palm, visible[..., 1:]], axis=-1)


def align(
    predicted: Points,
    truth: Points,
    name: Alignment = "lit",
    visible: npt.NDArray[np.bool_] | None = None,
    *,
    joint_0_is_palm: bool = False,
) -> Aligned:
    """Predictions brought to the truth as one row of the table in datasets 2.2 says.

    Args:
        predicted: (n, 21, 3) metres, camera frame.
        truth: (n, 21, 3), the same.
        name: The alignment.
        visible: (n, 21) what the dataset says is seen; None where it says nothing. Only `zb` asks for it.
        joint_0_is_palm: Whether joint 0 of both is a palm point as it stands (STB with the wrist recipe `palm`). Else
            `zb` takes the palm variant of both.

    Raises:
        ValueError: on wrong shapes, values that are not finite, or a name that is no alignment.
    """
    _check_choice("alignment", name, tuple(_ALIGNMENTS))
    p, t = paired_points(predicted, truth, joints=len(KEYPOINTS))
    if visible is not None and visible.shape != p.shape[:2]:
        raise ValueError(f"visible must be {p.shape[:2]} to go with the joints, not {visible.shape}")
    counted = np.ones(p.shape[:2], np.bool_)
    if name == "zb":
        if visible is not None:
            counted = visible if joint_0_is_palm else palm_visibility(visible)
        if not joint_0_is_palm:
            p, t = palm_variant(p), palm_variant(t)
    return Aligned(np.asarray(_ALIGNMENTS[name](p, t), np.float64), t, counted)


def score(predicted: Points, truth: Points, protocol: Protocol, visible: npt.NDArray[np.bool_] | None = None) -> Score:
    """AUC, PCK and errors of joints (n, 21, 3) in metres under a protocol.

    With the wrist recipe `palm` joint 0 of both must be the palm point; that recipe is STB's, so leave it at another
    one for other sets.

    Raises:
        ValueError: on wrong shapes or values that are not finite, or if `zb` finds no visible joint.
    """
    palm = protocol.wrist == "palm"
    aligned = align(predicted, truth, protocol.alignment, visible, joint_0_is_palm=palm)
    errors = aligned.errors_mm()
    error = epe(errors, aligned.counted)
    return Score(
        protocol=protocol,
        samples=len(errors),
        auc=auc(errors, protocol.grid, aligned.counted),
        pck_20=float(pck(errors, (20.0,), aligned.counted)[0]),
        mean_mm=error.mean_mm,
        median_mm=error.median_mm,
    )


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
