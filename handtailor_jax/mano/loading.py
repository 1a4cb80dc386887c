"""Load hand models: the embedded hand, MANO's own files, or npz files.

embedded_hand("left")                 the hand that ships with the package, free to use
load_mano("MANO_RIGHT.pkl")           a MANO file, downloaded by the user under MANO's licence
load_hand(path, side)                 a MANO file, an npz file in the embedded hand's layout, or (None) the latter
"""

import functools
import importlib.resources
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, naming, read_file
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.mano import checks
from handtailor_jax.mano.checks import MANO_NAMES, MANO_SHAPES, Arrays
from handtailor_jax.mano.checks import MANO_VERTICES as MANO_VERTICES
from handtailor_jax.mano.hand_model import Anatomy, HandModel, LinearBlendSkin
from handtailor_jax.mano.safe_arrays import NUMPY_GLOBALS, UNDAMAGED, UnreadableArray, decode_record, parse_npz
from handtailor_jax.mano.safe_pickle import Limits, UnreadablePickle, unpickle
from handtailor_jax.skeleton import JOINT_KEYPOINTS, KEYPOINT_PARENTS, KEYPOINTS, NUM_BETAS
from handtailor_jax.types import Side

MANO_TIP_VERTICES: Mapping[Side, tuple[int, ...]] = {
    "right": (745, 317, 444, 556, 673),
    "left": (745, 317, 445, 556, 673),
}
"""Fingertip vertices of MANO's mesh: thumb, index, middle, ring, little (the choice of manopth and HandTailor)."""

_MOST_BYTES = 64 * 2**20
_LIMITS = Limits(opcodes=1_000_000, text=128 * 2**20)

# Names of Python 2 and 3, and of numpy 1 and 2, as "module name".
_GLOBALS = re.compile(
    r"(__builtin__|builtins) (set|object)|(copy_reg|copyreg) _reconstructor|numpy\._?core\.multiarray scalar"
    r"|scipy\.sparse(\.\w+)? [a-z]{3}_(matrix|array)|chumpy(\.\w+)* [^\W\d]\w*",
    re.ASCII,
)


def embedded_hand(side: Side = "right", dtype: npt.DTypeLike = jnp.float32) -> HandModel:
    """Build the hand model that ships with the package; the left hand is the mirrored right hand.

    `dtype` is the floating-point type of its arrays; float64 needs ``jax.enable_x64``.
    """
    return _on_side(_build(embedded_arrays(), "right", dtype), side)


def given_hand(hand: Any) -> HandModel:
    """Return the hand model that a caller gives, or for None the embedded right hand.

    Raises:
        InputError: If it is something else, such as the path of a file.
    """
    if hand is None or isinstance(hand, HandModel):
        return embedded_hand() if hand is None else hand
    raise InputError(f"hand is {str(hand)[:80]!r}: give a HandModel, such as load_hand(path)")


@functools.cache
def embedded_arrays() -> Arrays:
    """Return the stored arrays of the embedded right hand by name (numpy, read-only).

    Besides the hand model's own arrays: ``face_regions`` (F,) uint8 (0 palm, 1 back, 2 nails), ``uv`` (F, 3, 2),
    ``wrist_loop`` (20,) and ``attribution``.
    """
    arrays = parse_npz((importlib.resources.files("handtailor_jax") / "assets" / "hand.npz").read_bytes())
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def load_hand(
    path: str | os.PathLike[str] | None = None, side: Side | None = None, *, dtype: npt.DTypeLike = jnp.float32
) -> HandModel:
    """Load the embedded hand, an npz file in its layout, or a MANO file, depending on the content of the file.

    Args:
        path: the file; None for the embedded hand.
        side: the side of the returned model, to which the hand is mirrored if necessary; by default the side in the
            file, or right for the embedded hand. If a MANO file's name contains no side, it is the side in the file.
        dtype: floating-point type of the model's arrays.

    Raises:
        InputError: if the file is missing, damaged, unsafe, or not a hand model.
    """
    if path is None:
        return embedded_hand(side or "right", dtype)
    _check_side(side)
    arrays = read_arrays(path)
    if "template" in arrays:
        with naming(path):
            checks.check_own_arrays(arrays)
        return _on_side(_build(arrays, "right", dtype), side or "right")
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
            narrows the left one. Pass False for a file in which this is already repaired.
        dtype: floating-point type of the model's arrays; float64 needs ``jax.enable_x64``.

    Raises:
        InputError: if the file is missing, damaged, unsafe, or not a MANO model, or if its side is unknown.
    """
    _check_side(side)
    named = _side_from_name(path)
    stored = read_arrays(path)
    with naming(path):
        if side is None and named is None:
            raise InputError("its name contains no side; put 'right' or 'left' into it, as in MANO_RIGHT.pkl")
        if side is not None and named is not None and side != named:
            raise InputError(f"the name says {named} but side={side!r} was given; load it as {named} and mirror it")
        holds = cast(Side, side or named)
        checks.check_mano_arrays(stored, holds)
        arrays = {own: stored[name] for own, name in MANO_NAMES.items()}
        arrays["shape_directions"] = arrays["shape_directions"][..., :NUM_BETAS].astype(np.float64)
        if holds == "left" and correct_left_shape:
            arrays["shape_directions"][:, 0] *= -1.0
        arrays["tip_vertices"] = np.asarray(MANO_TIP_VERTICES[holds])
        checks.check_bones(arrays)
        arrays |= {name: array for name, array in embedded_arrays().items() if name.startswith("anatomy_")}
        arrays["anatomy_basis"] = _turned_axes(arrays, holds)
        return _build(arrays, holds, dtype)


def recorded_poses(path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Read the finger poses of the scans from which MANO was learnt, which its files contain.

    Returns:
        (n, 15, 3) rotations of a right hand relative to the flat hand, axis-angle, radians, in MANO's joint order; n is
        0 if the file has no `hands_coeffs`.

    Raises:
        InputError: If the file cannot be read, or the numbers are not poses.
    """
    arrays = read_arrays(path, checks.RECORDED_SHAPES)
    if not checks.RECORDED_SHAPES.keys() <= arrays.keys():
        return np.zeros((0, 15, 3), np.float32)
    mean, components, coefficients = (
        arrays[name].astype(np.float64) for name in ("hands_mean", "hands_components", "hands_coeffs")
    )
    poses = (mean + coefficients @ components).reshape(-1, 15, 3)
    largest = np.abs(poses).max(initial=0.0)
    if not largest <= 2.0 * np.pi:  # true for NaN, too
        raise InputError(f"{path}: hands_coeffs holds a rotation of {largest:.3g} rad; {UNDAMAGED}")
    return (mirror_pose(poses) if _side_from_name(path) == "left" else poses).astype(np.float32)


def read_arrays(path: str | os.PathLike[str], shapes: checks.Shapes = MANO_SHAPES) -> Arrays:
    """Read the arrays of a hand model by name; the first bytes of the file determine its format.

    `shapes` are the names and shapes of the arrays to read; from an npz file, those of `OWN_SHAPES` are read as well.

    Raises:
        InputError: if the file is missing, damaged, unsafe or too large.
    """
    with naming(path):
        content = read_file(path, _MOST_BYTES, checks.DOWNLOAD)
        if content.startswith(b"PK"):
            return parse_npz(content, {*checks.OWN_SHAPES, *shapes}, most_bytes=_MOST_BYTES)
        try:
            model = unpickle(content, _is_allowed, _LIMITS).value
        except UnreadablePickle as error:
            raise InputError(f"neither a pickle nor an npz file of a hand (it {error}); {checks.DOWNLOAD}") from None
        if not isinstance(model, dict):
            raise InputError(f"the pickle holds no dictionary of arrays; {checks.DOWNLOAD}")
        return {name: _decode(model[name], name, shapes[name]) for name in shapes if name in model}


def _is_allowed(module: str, name: str) -> bool:
    return (module, name) in NUMPY_GLOBALS or _GLOBALS.fullmatch(f"{module} {name}") is not None


def _decode(value: Any, name: str, shape: tuple[int | str, ...]) -> npt.NDArray[Any]:
    try:
        return decode_record(value, shape)
    except UnreadableArray as error:
        raise InputError(f"{name}: {error}; save it as a plain array of numbers") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{name} cannot be decoded ({reason}); {UNDAMAGED}") from None


def _check_side(side: str | None) -> None:
    if side not in (None, "right", "left"):
        raise ValueError(f"unknown side {side!r}; pass 'right' or 'left'")


def _side_from_name(path: str | os.PathLike[str]) -> Side | None:
    sides: list[Side] = [s for s in ("right", "left") if s in Path(path).name.lower()]  # type: ignore[misc]
    return sides[0] if len(sides) == 1 else None


def _on_side(model: HandModel, side: Side | None) -> HandModel:
    _check_side(side)
    return model if side in (None, model.side) else model.mirrored()


def _build(arrays: Arrays, side: Side, dtype: npt.DTypeLike) -> HandModel:
    """Build a hand model from arrays in the embedded hand's layout."""

    def real(array: npt.NDArray[Any]) -> Any:
        return jnp.asarray(array.astype(np.dtype(dtype)))

    def skin(chosen: Any) -> LinearBlendSkin:
        return LinearBlendSkin.create(
            template=real(arrays["template"][chosen]),
            shape_directions=real(arrays["shape_directions"][chosen]),
            pose_directions=real(arrays["pose_directions"][chosen]),
            weights=real(arrays["skinning_weights"][chosen]),
        )

    # Joints are regressed once in float64, so that a float32 model has no rounding errors from the sum.
    regressor = arrays["joint_regressor"].astype(np.float64)
    tip_vertices = arrays["tip_vertices"].astype(np.int32)
    return HandModel(
        skin=skin(slice(None)),
        tips=skin(tip_vertices),
        rest_joints=real(regressor @ arrays["template"].astype(np.float64)),
        joint_shape_directions=real(np.einsum("jv,vcb->jcb", regressor, arrays["shape_directions"].astype(np.float64))),
        joint_regressor=real(regressor),
        faces=jnp.asarray(arrays["faces"].astype(np.int32)),
        tip_vertices=jnp.asarray(tip_vertices),
        pose_mean=real(arrays["pose_mean"]),
        pose_components=real(arrays["pose_components"]),
        anatomy=Anatomy(
            axes=real(arrays["anatomy_basis"]),
            lower=real(arrays["anatomy_lower"]),
            upper=real(arrays["anatomy_upper"]),
            mean=real(arrays["anatomy_mean"]),
            std=real(arrays["anatomy_std"]),
        ),
        side=side,
    )


def _turned_axes(arrays: Arrays, side: Side) -> npt.NDArray[Any]:
    """Turn the anatomical axes of `arrays`, which are the embedded hand's, to the bones of their rest skeleton.

    The twist axis is the bone from a joint to its child. The flexion axis is the embedded flexion axis without its
    component along the bone. The abduction axis completes them with the handedness of the embedded axes. For a left
    hand the twist axis points against the bone, so that a mirrored pose has the coordinates of the right hand's pose
    and the same limits and priors apply.
    """
    basis = arrays["anatomy_basis"].astype(np.float64)
    orientation = np.sign(np.linalg.det(basis))  # (15,)
    flexion, outward = basis[:, 0], 1.0
    if side == "left":
        flexion, outward = mirror_pose(flexion), -1.0
    keypoints = checks.rest_keypoints(arrays)
    child = {parent: k for k, parent in enumerate(KEYPOINT_PARENTS) if KEYPOINTS[parent] != "wrist"}
    twist = keypoints[[child[k] for k in JOINT_KEYPOINTS[1:]]] - keypoints[list(JOINT_KEYPOINTS[1:])]
    twist = outward * twist / np.linalg.norm(twist, axis=1, keepdims=True)
    flexion = flexion - np.sum(flexion * twist, axis=1, keepdims=True) * twist
    lengths = np.linalg.norm(flexion, axis=1, keepdims=True)
    if not np.all(lengths > 0.1):
        raise InputError("a finger bone points along its flexion axis; is the rest pose a flat hand in MANO's frame?")
    flexion = flexion / lengths
    abduction = np.cross(twist, flexion) * orientation[:, None]
    return np.stack([flexion, abduction, twist], axis=1)
