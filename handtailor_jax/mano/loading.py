"""Load hand models: the embedded hand, MANO's own files, or npz files.

embedded_hand("left")                 the hand that ships with the package, free to use
load_mano("MANO_RIGHT.pkl")           a MANO file, downloaded by the user under MANO's licence
load_hand(path, side)                 either of them, depending on the file; None means the embedded hand
"""

import functools
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.mano.anatomy import Anatomy
from handtailor_jax.mano.checks import (
    MANO_VERTICES,
    HandModelError,
    Problem,
    check_bones,
    check_mano_arrays,
    check_own_arrays,
    naming,
)
from handtailor_jax.mano.hand_model import HandModel, LinearBlendSkin
from handtailor_jax.mano.mano_file import read_arrays
from handtailor_jax.mano.safe_npz import parse_npz
from handtailor_jax.skeleton import JOINT_KEYPOINTS, KEYPOINT_PARENTS, KEYPOINTS, KEYPOINTS_FROM_MANO, NUM_BETAS
from handtailor_jax.types import Side

__all__ = [
    "MANO_TIP_VERTICES",
    "MANO_VERTICES",
    "HandModelError",
    "embedded_arrays",
    "embedded_hand",
    "load_hand",
    "load_mano",
]

MANO_TIP_VERTICES: Mapping[Side, tuple[int, ...]] = {
    "right": (745, 317, 444, 556, 673),
    "left": (745, 317, 445, 556, 673),
}
"""Fingertip vertices of MANO's mesh: thumb, index, middle, ring, little (the choice of manopth and HandTailor)."""


def embedded_hand(side: Side = "right", dtype: npt.DTypeLike = jnp.float32) -> HandModel:
    """Build the hand model that ships with the package, in metres and in the rest frame of `HandModel`.

    Args:
        side: "right" or "left"; the left hand is the mirrored right hand.
        dtype: floating-point type of its arrays; float64 needs ``jax.enable_x64``.
    """
    return _on_side(_own_model(embedded_arrays(), "right", dtype), side)


@functools.cache
def embedded_arrays() -> Mapping[str, npt.NDArray[Any]]:
    """Return the stored arrays of the embedded right hand by name (numpy, read-only).

    Besides the hand model's own arrays: ``face_regions`` (F,) uint8 (0 palm, 1 back, 2 nails), ``uv`` (F, 3, 2),
    ``wrist_loop`` (20,) and ``attribution``.
    """
    asset = importlib.resources.files("handtailor_jax") / "assets" / "hand.npz"
    arrays = parse_npz(asset.read_bytes())
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def load_hand(
    path: str | os.PathLike[str] | None = None, side: Side | None = None, *, dtype: npt.DTypeLike = jnp.float32
) -> HandModel:
    """Load the embedded hand, an npz file in its layout, or a MANO file, depending on the content of the file.

    Args:
        path: the file; None for the embedded hand.
        side: the side of the returned model; by default the side of the hand in the file (right for the embedded
            hand). A hand of the other side is mirrored. If the name of a MANO file does not contain a side, `side` is
            the side of the hand in the file.
        dtype: floating-point type of the model's arrays.

    Raises:
        HandModelError: if the file is missing, damaged, unsafe, or not a hand model.
    """
    if path is None:
        return embedded_hand(side or "right", dtype)
    _check_side(side)
    with naming(path):
        arrays = read_arrays(path)
        if "template" in arrays:
            return _on_side(_own_model(arrays, "right", dtype), side or "right")
    stored = _side_from_name(path) or side
    return _on_side(load_mano(path, stored, dtype=dtype), side or stored)


def load_mano(
    path: str | os.PathLike[str],
    side: Side | None = None,
    *,
    correct_left_shape: bool = True,
    dtype: npt.DTypeLike = jnp.float32,
) -> HandModel:
    """Load MANO_RIGHT.pkl, MANO_LEFT.pkl, or an npz file with the same array names; in metres.

    Rest joints are the joint regressor applied to the shaped template, as in MANO. Only the first 10 shape directions
    are kept. Fingertips are `MANO_TIP_VERTICES`. The anatomical axes are those of the embedded hand, turned to the
    bones of this hand; limits and priors are those of the embedded hand.

    Args:
        path: the file.
        side: the side of the hand in the file; by default the side in the file's name.
        correct_left_shape: whether to negate the x components of a left hand's shape directions. In the released
            MANO_LEFT.pkl they have the signs of the right hand, so that a coefficient that widens the right hand
            narrows the left one. Pass False for a file in which this is already repaired. (The usual test for the
            fault is that the absolute differences to the right hand's x components sum to less than 1, which needs
            both files.) A right hand is not affected.
        dtype: floating-point type of the model's arrays; float64 needs ``jax.enable_x64``.

    Raises:
        HandModelError: if the file is missing, damaged, unsafe, or not a MANO model, or if its side is unknown.
    """
    _check_side(side)
    named = _side_from_name(path)
    with naming(path):
        arrays = read_arrays(path)
        if side is None and named is None:
            raise Problem("the name does not contain a side; pass side='right' or side='left'")
        if side is not None and named is not None and side != named:
            raise Problem(f"the name says {named} but side={side!r} was given; load it as {named} and mirror it")
        holds = cast(Side, side or named)
        check_mano_arrays(arrays, holds)
        shape_directions = arrays["shapedirs"][..., :NUM_BETAS].astype(np.float64)
        if holds == "left" and correct_left_shape:
            shape_directions[:, 0] *= -1.0
        template = arrays["v_template"].astype(np.float64)
        regressor = arrays["J_regressor"].astype(np.float64)
        tips = np.asarray(MANO_TIP_VERTICES[holds])
        rest_joints = regressor @ template
        check_bones(rest_joints, template[tips])
        return _assemble(
            template=template,
            faces=arrays["f"],
            shape_directions=shape_directions,
            pose_directions=arrays["posedirs"],
            joint_regressor=regressor,
            weights=arrays["weights"],
            pose_mean=arrays["hands_mean"],
            pose_components=arrays["hands_components"],
            tip_vertices=tips,
            anatomy=_anatomy_of(rest_joints, template[tips], holds),
            side=holds,
            dtype=dtype,
        )


def _check_side(side: str | None) -> None:
    if side not in (None, "right", "left"):
        raise ValueError(f"unknown side {side!r}; pass 'right' or 'left'")


def _side_from_name(path: str | os.PathLike[str]) -> Side | None:
    sides: list[Side] = [s for s in ("right", "left") if s in Path(path).name.lower()]  # type: ignore[misc]
    return sides[0] if len(sides) == 1 else None


def _on_side(model: HandModel, side: Side | None) -> HandModel:
    _check_side(side)
    return model if side in (None, model.side) else model.mirrored()


def _own_model(arrays: Mapping[str, npt.NDArray[Any]], side: Side, dtype: npt.DTypeLike) -> HandModel:
    """Build a hand model from the arrays of an npz file in the embedded hand's layout."""
    check_own_arrays(arrays)
    return _assemble(
        template=arrays["template"],
        faces=arrays["faces"],
        shape_directions=arrays["shape_directions"],
        pose_directions=arrays["pose_directions"],
        joint_regressor=arrays["joint_regressor"],
        weights=arrays["skinning_weights"],
        pose_mean=arrays["pose_mean"],
        pose_components=arrays["pose_components"],
        tip_vertices=arrays["tip_vertices"].astype(np.int64),
        anatomy={
            "axes": arrays["anatomy_basis"],
            **{name: arrays[f"anatomy_{name}"] for name in ("lower", "upper", "mean", "std")},
        },
        side=side,
        dtype=dtype,
    )


def _assemble(
    *,
    template: npt.NDArray[Any],
    faces: npt.NDArray[Any],
    shape_directions: npt.NDArray[Any],
    pose_directions: npt.NDArray[Any],
    joint_regressor: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    pose_mean: npt.NDArray[Any],
    pose_components: npt.NDArray[Any],
    tip_vertices: npt.NDArray[Any],
    anatomy: Mapping[str, npt.NDArray[Any]],
    side: Side,
    dtype: npt.DTypeLike,
) -> HandModel:
    # Joints are regressed once in float64, so that a float32 model carries no rounding error of the sum.
    regressor = joint_regressor.astype(np.float64)
    rest_joints = regressor @ template.astype(np.float64)
    joint_shape_directions = np.einsum("jv,vcb->jcb", regressor, shape_directions.astype(np.float64))

    def real(array: npt.NDArray[Any]) -> Any:
        return jnp.asarray(array.astype(np.dtype(dtype)))

    def skin(chosen: Any) -> LinearBlendSkin:
        return LinearBlendSkin(
            template=real(template[chosen]),
            shape_directions=real(shape_directions[chosen]),
            pose_directions=real(pose_directions[chosen]),
            weights=real(weights[chosen]),
        )

    return HandModel(
        skin=skin(slice(None)),
        tips=skin(tip_vertices),
        rest_joints=real(rest_joints),
        joint_shape_directions=real(joint_shape_directions),
        joint_regressor=real(joint_regressor),
        faces=jnp.asarray(faces.astype(np.int32)),
        tip_vertices=jnp.asarray(tip_vertices.astype(np.int32)),
        pose_mean=real(pose_mean),
        pose_components=real(pose_components),
        anatomy=Anatomy(**{name: real(array) for name, array in anatomy.items()}),
        side=side,
    )


def _anatomy_of(rest_joints: npt.NDArray[Any], tips: npt.NDArray[Any], side: Side) -> dict[str, npt.NDArray[Any]]:
    """Turn the embedded hand's anatomical axes to the bones of another rest skeleton.

    The twist axis is the bone from a joint to its child. The flexion axis is the embedded flexion axis without its
    component along the bone. The abduction axis completes them with the handedness of the embedded axes. For a left
    hand the twist axis points against the bone, so that a mirrored pose has the coordinates of the right hand's pose
    and the same limits and priors apply.
    """
    stored = embedded_arrays()
    basis = stored["anatomy_basis"].astype(np.float64)
    orientation = np.sign(np.linalg.det(basis))  # (15,)
    flexion = basis[:, 0] * (np.array([1.0, -1.0, -1.0]) if side == "left" else 1.0)  # an axial vector under x' = -x
    outward = -1.0 if side == "left" else 1.0

    keypoints = np.concatenate([rest_joints, tips])[np.asarray(KEYPOINTS_FROM_MANO)]
    child = {parent: k for k, parent in enumerate(KEYPOINT_PARENTS) if KEYPOINTS[parent] != "wrist"}
    ends = np.asarray([child[k] for k in JOINT_KEYPOINTS[1:]])
    twist = keypoints[ends] - rest_joints[1:]
    twist = outward * twist / np.linalg.norm(twist, axis=1, keepdims=True)
    flexion = flexion - np.sum(flexion * twist, axis=1, keepdims=True) * twist
    lengths = np.linalg.norm(flexion, axis=1, keepdims=True)
    if not np.all(lengths > 0.1):
        raise Problem("a finger bone points along its flexion axis; is the rest pose a flat hand in MANO's frame?")
    flexion = flexion / lengths
    abduction = np.cross(twist, flexion) * orientation[:, None]
    return {
        "axes": np.stack([flexion, abduction, twist], axis=1),
        **{name: stored[f"anatomy_{name}"] for name in ("lower", "upper", "mean", "std")},
    }
