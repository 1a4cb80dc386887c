"""Detections: keypoints and other estimates of another method, checked, from arrays or JSON files."""

import dataclasses
import difflib
import inspect
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np

from handtailor_jax.errors import FloatArray, InputError, checked_array, numbers, read_json, warn
from handtailor_jax.geometry.cameras import intrinsic_matrix
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import CONVENTIONS
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_BETAS, permutation
from handtailor_jax.types import Side

_ID = re.compile(r"[^/\\\x00-\x1f]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # halves of characters, which JSON can spell but no file name can hold

# Bytes of UTF-8: file systems allow 255, and endings and a temporary name are appended.
_LONGEST_ID = 180

# More keypoints than this on exactly one spot are placeholders, not a hand.
_MOST_ON_ONE_SPOT = 4

# Pixels: fractions of the image can exceed 1 where a hand reaches out of it.
_SMALLEST, _LARGEST = 4.0, 1e6

# Radians and standard deviations.
_MOST_PARAMETER = 100.0


@dataclasses.dataclass(frozen=True)
class Detection:
    """2D keypoints of one hand and further estimates of it. `detection` checks and converts the arrays."""

    keypoints_2d: FloatArray
    """(21, 2) pixels (u, v), canonical order."""
    confidence: FloatArray
    """(21,) confidence of each keypoint, 0 to 1; a keypoint with confidence 0 (below 1e-6) is ignored."""
    side: Side = "right"
    """Side of the hand, as it is, not as a mirrored image shows it."""
    convention: str = "mano"
    """Landmark convention of the keypoints: a name in `CONVENTIONS`."""
    camera: FloatArray | None = None
    """(3, 3) intrinsic matrix, pixels of the image; None if unknown."""
    joints_3d: FloatArray | None = None
    """(21, 3) 3D keypoints in camera axes (x right, y down, z forward), any unit and origin."""
    pose: FloatArray | None = None
    """(16, 3) axis-angle rotations, radians, MANO's joint order, relative to the flat hand."""
    betas: FloatArray | None = None
    """(10,) shape coefficients of the hand model, standard deviations."""
    id: str = "hand"
    """Name of the result's files, without an ending."""
    image: Path | None = None
    """Path of the image."""


def detection(
    keypoints_2d: Any,
    *,
    confidence: Any = None,
    side: str = "right",
    convention: str = "mano",
    order: str = "canonical",
    camera: Any = None,
    joints_3d: Any = None,
    pose: Any = None,
    pca: Any = None,
    global_rotation: Any = None,
    flat_hand_mean: Any = True,
    betas: Any = None,
    id: str = "hand",
    image: str | Path | None = None,
    hand: HandModel | None = None,
) -> Detection:
    """Check and convert keypoints and further estimates of one hand; see the fields of `Detection`.

    The confidence is 1 if None. `order` is the order of `keypoints_2d`, `confidence` and `joints_3d`: a name in
    `KEYPOINT_ORDERS`. The camera is {fx, fy, cx, cy}, those four numbers, or a (3, 3) matrix; betas are up to 10
    values. The pose (16, 3) or 48 values is relative to the flat hand, or to the mean pose if not `flat_hand_mean`. In
    its place, `pca` may give up to 45 coefficients, with the `global_rotation`. Mean and components are those of the
    model `hand`, the embedded one if None, mirrored to the hand's side.

    Raises:
        InputError: If a value is invalid.
    """
    choices = {"side": get_args(Side), "convention": CONVENTIONS, "order": KEYPOINT_ORDERS}
    for (name, known), value in zip(choices.items(), (side, convention, order), strict=True):
        if value not in known:
            raise InputError(f"{name} is {value!r}: use one of {', '.join(known)}")
    _check_id(id)
    to_canonical = list(permutation(KEYPOINT_ORDERS[order], KEYPOINTS))
    points, weights = _keypoints(keypoints_2d, confidence)
    return Detection(
        keypoints_2d=points[to_canonical],
        confidence=weights[to_canonical],
        side=side,  # type: ignore[arg-type]
        convention=convention,
        camera=None if camera is None else intrinsic_matrix(camera),
        joints_3d=None if joints_3d is None else _joints(joints_3d)[to_canonical],
        pose=_pose(pose, pca, global_rotation, flat_hand_mean, hand, side),
        betas=None if betas is None else _betas(betas),
        id=id,
        image=None if image is None else Path(image),
    )


def _check_id(id: str) -> None:
    if not isinstance(id, str) or not _ID.fullmatch(id) or id.startswith("."):
        raise InputError(f"id is {id!r}: it names files, so use text without slashes that does not begin with a dot")
    if len(id.encode("utf-8", "replace")) > _LONGEST_ID or _SURROGATE.search(id):
        raise InputError(f"id is {id[:20]!r}...: it names files, so use valid text of at most {_LONGEST_ID} bytes")


def _keypoints(keypoints_2d: Any, confidence: Any) -> tuple[FloatArray, FloatArray]:
    """Return keypoints, of which ignored ones are replaced by the mean of the others, and confidences."""
    weights = np.ones(21, np.float32) if confidence is None else checked_array("confidence", confidence, (21,))
    weights = np.where(np.abs(weights) < 1e-6, np.float32(0), weights)
    if (weights < 0).any() or (weights > 1).any():
        raise InputError("confidence has values outside 0 to 1: scale them")
    ignored = weights == 0
    if (~ignored).sum() < 6:
        raise InputError(f"only {(~ignored).sum()} keypoints have a confidence above 0: at least 6 are needed")
    points = checked_array("keypoints_2d", keypoints_2d, (21, 2), ignored, _LARGEST)
    _check_spread(points[~ignored])
    points[ignored] = points[~ignored].mean(axis=0, dtype=np.float64)  # in any order the same
    return points, weights


def _joints(joints_3d: Any) -> FloatArray:
    joints = checked_array("joints_3d", joints_3d, (21, 3))
    if np.ptp(joints, axis=0).max() <= 0:
        raise InputError("joints_3d are all at one point: leave them out if they are unknown")
    return joints


def _pose(
    pose: Any, pca: Any, rotation: Any, flat_hand_mean: Any, hand: HandModel | None, side: str
) -> FloatArray | None:
    """Return the pose relative to the flat hand of this side, if it is known."""
    if not isinstance(flat_hand_mean, bool):
        raise InputError(f"flat_hand_mean is {flat_hand_mean!r}: use true or false")
    if pose is not None and pca is not None:
        raise InputError("pose and pca are both given: give either pose or pca")
    if pca is not None and rotation is None:
        raise InputError("pca is given without global_rotation: add its three axis-angle values")
    if pca is None and rotation is not None:
        raise InputError("global_rotation is given without pca: make it the first row of pose")
    if pose is None and pca is None:
        return None
    values = np.zeros((16, 3)) if pose is None else np.asarray(numbers("pose", pose))
    if values.size != 48:
        raise InputError(f"pose has {values.size} values: give 16 x 3 axis-angle values, the global rotation first")
    values = checked_array("pose", values.reshape(16, 3), (16, 3), most=_MOST_PARAMETER)
    if pca is None and flat_hand_mean:
        return values
    model = embedded_hand() if hand is None else hand
    fingers = np.zeros(45, np.float32) if flat_hand_mean else np.asarray(model.pose_mean)
    if pca is not None:
        coefficients = np.asarray(numbers("pca", pca)).reshape(-1)
        if not 1 <= coefficients.size <= 45:
            raise InputError(f"pca has {coefficients.size} values: give 1 to 45")
        coefficients = checked_array("pca", coefficients, coefficients.shape, most=_MOST_PARAMETER)
        fingers = fingers + coefficients @ np.asarray(model.pose_components)[: coefficients.size]
        values[0] = checked_array("global_rotation", rotation, (3,), most=_MOST_PARAMETER)
    fingers = fingers.reshape(15, 3)
    values[1:] += fingers if model.side == side else mirror_pose(fingers)
    return values


def _betas(betas: Any) -> FloatArray:
    values = np.asarray(numbers("betas", betas)).reshape(-1)
    if values.size > NUM_BETAS:
        raise InputError(f"betas has {values.size} values: the model has {NUM_BETAS}")
    return checked_array("betas", np.pad(values, (0, NUM_BETAS - values.size)), (NUM_BETAS,), most=_MOST_PARAMETER)


def read_detections(path: str | Path, hand: HandModel | None = None) -> list[Detection]:
    """Read a JSON file with one object or a list of objects, whose fields are listed in docs/cli.md.

    `image` paths are relative to the file; `hand` is that of `detection`. An object without an `id` is named after its
    image, or else numbered.

    Raises:
        InputError: If the file cannot be read or an entry is invalid.
    """
    path = Path(path)
    content = read_json(path, "give a JSON object with keypoints_2d, or a list of them")
    entries = content if isinstance(content, list) else [content]
    if not entries:
        raise InputError(f"{path}: holds no hands: give a JSON object with keypoints_2d, or a list of them")
    detections: dict[str, Detection] = {}
    for number, entry in enumerate(entries):
        try:
            found = _from_json(entry, number, path, hand)
            name = found.id.casefold()  # some file systems ignore case and would write two ids to one file
            if name in detections:
                first = list(detections).index(name)
                raise InputError(f"id {found.id!r} is also the id of entry {first}: give different ids")
        except InputError as error:
            where = f"{path}: " if len(entries) == 1 else f"{path}: entry {number}: "
            raise InputError(f"{where}{error}") from None
        detections[name] = found
    return list(detections.values())


_FIELDS = {*inspect.signature(detection).parameters} - {"hand"}
# Fields of results, which may be given again.
_RESULTS = {
    *("projection", "joints", "landmarks", "scale", "translation", "runner_up", "proposed", "track", "frame"),
    *("side_probability", "presence", "region", "box", "detected_keypoints_2d", "image_size"),
    *("reprojection_error_before", "reprojection_error_after"),
}


def _from_json(entry: Any, number: int, path: Path, hand: HandModel | None) -> Detection:
    if not isinstance(entry, dict):
        raise InputError("is not a JSON object: give an object with keypoints_2d")
    if entry.get("keypoints_2d") is None:
        raise InputError("has no keypoints_2d: give 21 [u, v] pairs in pixels")
    for key in entry.keys() - _FIELDS - _RESULTS:
        nearest = difflib.get_close_matches(key.casefold(), _FIELDS, 1, 0.75)
        if nearest:
            raise InputError(f"{key[:40]!r} is not a field: did you mean {nearest[0]}?")
        warn(f"{path}: {key[:40]!r} is not a field that is read: see docs/cli.md for the fields")
    fields = {key: entry[key] for key in _FIELDS if entry.get(key) is not None}
    image = fields.pop("image", None)
    if image is not None:
        if not isinstance(image, str) or not image or "\0" in image or _SURROGATE.search(image):
            raise InputError("image must be the path of an image: correct it or leave it out")
        fields["image"] = path.parent / image
    id = fields.setdefault("id", f"{number:04d}" if image is None else Path(image).stem)
    if isinstance(id, int) and not isinstance(id, bool):
        fields["id"] = str(id)
    for key in ("id", "side", "convention", "order"):
        if not isinstance(fields.get(key, ""), str):
            raise InputError(f"{key} is {fields[key]!r}: it must be text")
    return detection(**fields, hand=hand)


def _check_spread(points: FloatArray) -> None:
    extent = np.ptp(points, axis=0).max()
    if extent <= _SMALLEST:
        raise InputError(
            f"all keypoints coincide within {extent:.2g} pixels: give them in pixels, not as fractions of the image"
        )
    missing = "give missing keypoints a confidence of 0"
    spots, counts = np.unique(points, axis=0, return_counts=True)
    if counts.max() > _MOST_ON_ONE_SPOT:
        u, v = spots[counts.argmax()]
        raise InputError(f"{counts.max()} keypoints coincide at ({u:g}, {v:g}): {missing}")
    for value in (0, -1):
        empty = (points == value).all(axis=1)
        low, high = points[~empty].min(axis=0), points[~empty].max(axis=0)
        apart = max(*(low - value), *(value - high)) > 0.5 * max(high - low)
        if empty.sum() > 1 or (empty.any() and apart):
            raise InputError(f"{empty.sum()} of the keypoints are ({value}, {value}): {missing}")
