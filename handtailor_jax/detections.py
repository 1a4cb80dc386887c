"""Detections: checked keypoints and further estimates of another method, from arrays or JSON files."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, check_fields, checked_array, checked_times, naming, numbers, read_json
from handtailor_jax.geometry.cameras import checked_length, intrinsic_matrix
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import CONVENTIONS
from handtailor_jax.mano.pose_forms import pose_from
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_BETAS, permutation
from handtailor_jax.types import Side

FloatArray = npt.NDArray[np.float32]

_ID = re.compile(r"[^/\\\x00-\x1f]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # halves of characters, which JSON can spell but no file name can hold

# Bytes of UTF-8: file systems allow 255, and endings and a temporary name are appended.
_LONGEST_ID = 180

_LEAST_SEEN = 6  # keypoints
# More keypoints than this on exactly one spot are placeholders, not a hand.
_MOST_ON_ONE_SPOT = 4

# Largest shape coefficient, in standard deviations; beyond it the mesh no longer looks like a hand.
_MOST_STD = 10.0

# Pixels. Keypoints in a smaller box are taken for fractions of the image, which exceed 1 outside of the image.
_SMALLEST, _LARGEST = 4.0, 1e6


@dataclasses.dataclass(frozen=True)
class Detection:
    """2D keypoints and further estimates of one hand. `detection` checks and converts the arrays."""

    keypoints_2d: FloatArray
    """(21, 2) pixels (u, v), canonical order."""
    confidence: FloatArray
    """(21,) confidence of each keypoint, 0 to 1; a keypoint with confidence 0 (below 1e-6) is ignored."""
    side: Side = "right"
    """Side of the hand, in an image that is not mirrored."""
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
    fixed_betas: bool = False
    """Whether the betas are known: the fit keeps them and, with intrinsics, the model's own size."""
    hand_length: float | None = None
    """Distance from the wrist to the middle fingertip of the flat hand, metres; None if unknown."""
    time: float | None = None
    """Time of a frame of a sequence, seconds; None outside of sequences."""
    track: int = 0
    """Number of the hand in a sequence with several hands of one side."""
    id: str = "hand"
    """Name of the result's files, without suffix."""
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
    fixed_betas: Any = False,
    hand_length: Any = None,
    time: Any = None,
    track: Any = 0,
    id: str = "hand",
    image: str | Path | None = None,
    hand: HandModel | None = None,
) -> Detection:
    """Check and convert keypoints and further estimates of one hand; see the fields of `Detection`.

    The confidence is 1 if None. `order` is the order of `keypoints_2d`, `confidence` and `joints_3d`: a name in
    `KEYPOINT_ORDERS`. The camera is {fx, fy, cx, cy}, those four numbers, a (3, 3) matrix or a perspective `Camera`;
    betas are up to 10 values. `pose_from` describes `pose`, `pca`, `global_rotation` and `flat_hand_mean`; it takes the
    mean pose and the components from the model `hand`, the embedded one if None. A `hand_length` needs a camera, and
    `fixed_betas` needs betas. If a `time` is given and fewer than 6 keypoints have a confidence above 0, the frame
    does not show the hand.

    Raises:
        InputError: If a value is invalid.
    """
    to_canonical = labelling(side, convention, order)
    check_id(id)
    if type(track) is not int:
        raise InputError(f"track is {track!r:.40}: number the hands of a side 0, 1, 2")
    points, weights = _keypoints(keypoints_2d, confidence, may_miss=time is not None)
    return Detection(
        keypoints_2d=points[to_canonical],
        confidence=weights[to_canonical],
        side=side,  # type: ignore[arg-type]
        convention=convention,
        camera=None if camera is None else intrinsic_matrix(camera),
        joints_3d=None if joints_3d is None else _joints(joints_3d)[to_canonical],
        pose=pose_from(pose, pca, global_rotation, flat_hand_mean, hand, side),
        betas=checked_betas(betas, fixed_betas),
        fixed_betas=fixed_betas,
        hand_length=None if hand_length is None else checked_length(hand_length, camera),
        time=None if time is None else float(checked_times("time", time, ())),
        track=track,
        id=id,
        image=None if image is None else Path(image),
    )


def labelling(side: str, convention: str, order: str) -> list[int]:
    """Check three names and return the indices that reorder keypoints from `order` to canonical order.

    Raises:
        InputError: If the side, the landmark convention or the order is unknown.
    """
    choices = {"side": get_args(Side), "convention": CONVENTIONS, "order": KEYPOINT_ORDERS}
    for (name, known), value in zip(choices.items(), (side, convention, order), strict=True):
        if value not in known:
            raise InputError(f"{name} is {value!r}: use one of {', '.join(known)}")
    return list(permutation(KEYPOINT_ORDERS[order], KEYPOINTS))


def check_id(id: str) -> None:
    """Raise an `InputError` unless an id can be part of a file name."""
    if not isinstance(id, str) or not _ID.fullmatch(id) or id.startswith("."):
        use = "use text without slashes and control characters that does not begin with a dot"
        raise InputError(f"id is {id!r}: it names files, by default after the image, so {use}")
    if len(id.encode("utf-8", "replace")) > _LONGEST_ID or _SURROGATE.search(id):
        raise InputError(f"id is {id[:20]!r}...: it names files, so use valid text of at most {_LONGEST_ID} bytes")


def _keypoints(keypoints_2d: Any, confidence: Any, may_miss: bool) -> tuple[FloatArray, FloatArray]:
    """Return keypoints and confidences as `_points` does; with `may_miss`, all are 0 if too few are seen."""
    points, weights = _points("keypoints_2d", keypoints_2d, 2, confidence, _LARGEST, 0 if may_miss else _LEAST_SEEN)
    if (weights > 0).sum() < _LEAST_SEEN:
        return np.zeros_like(points), np.zeros_like(weights)
    _check_spread(points[weights > 0])
    return points, weights


def _points(
    name: str, points: Any, columns: int, confidence: Any, most: float, least: int = _LEAST_SEEN
) -> tuple[FloatArray, FloatArray]:
    """Return points and confidences; points of confidence 0 are replaced by the mean of the others."""
    weights = np.ones(21, np.float32) if confidence is None else checked_array("confidence", confidence, (21,))
    weights = np.where(np.abs(weights) < 1e-6, np.float32(0), weights)
    if (weights < 0).any() or (weights > 1).any():
        raise InputError("confidence has values outside 0 to 1: scale them")
    ignored = weights == 0
    if (~ignored).sum() < least:
        raise InputError(f"only {(~ignored).sum()} keypoints have a confidence above 0: at least {least} are needed")
    array = checked_array(name, points, (21, columns), ignored, most)
    if not ignored.all():
        array[ignored] = array[~ignored].mean(axis=0, dtype=np.float64)  # in float64 the order does not change it
    return array, weights


def checked_joints(joints_3d: Any, confidence: Any) -> tuple[FloatArray, FloatArray]:
    """Return 3D joints (21, 3), metres, and confidences; joints of confidence 0 are replaced by the mean of the others.

    Raises:
        InputError: If the joints are not 21 points of a hand in metres.
    """
    joints, weights = _points("joints_3d", joints_3d, 3, confidence, 1e3)
    span = np.ptp(joints, axis=0).max()
    if not 0.02 < span < 1.0:
        raise InputError(f"joints_3d extend over {span:.3g} m, which is not the size of a hand: give them in metres")
    return joints, weights


def _joints(joints_3d: Any) -> FloatArray:
    joints = checked_array("joints_3d", joints_3d, (21, 3))
    if np.ptp(joints, axis=0).max() <= 0:
        raise InputError("joints_3d are all at one point: leave them out if they are unknown")
    return joints


def checked_betas(betas: Any, fixed: Any) -> FloatArray | None:
    """Return 10 shape coefficients, of which those that are not given are 0; None if none are given.

    Raises:
        InputError: If there are too many or one is too large, or if `fixed` is not a bool, or is true without betas.
    """
    if not isinstance(fixed, bool):
        raise InputError(f"fixed_betas is {fixed!r}: use true or false")
    if betas is None:
        if fixed:
            raise InputError("fixed_betas is given without betas: add the shape coefficients")
        return None
    values = np.asarray(numbers("betas", betas)).reshape(-1)
    if values.size > NUM_BETAS:
        raise InputError(f"betas has {values.size} values: the model has {NUM_BETAS}")
    betas = checked_array("betas", np.pad(values, (0, NUM_BETAS - values.size)), (NUM_BETAS,))
    if (most := np.abs(betas).max()) > _MOST_STD:
        raise InputError(f"betas holds {most:g}: give standard deviations of the model's shapes, {_MOST_STD:g} at most")
    return betas


def read_detections(path: str | Path, hand: HandModel | None = None) -> list[Detection]:
    """Read a JSON file with one object or a list of objects; docs/cli.md lists their fields.

    `image` paths are relative to the file; `hand` is passed to `detection`. An object without an `id` is named after
    its image, or else numbered.

    Raises:
        InputError: If the file cannot be read or an entry is invalid.
    """
    path = Path(path)
    content = read_json(path, "give a JSON object with keypoints_2d, or a list of them")
    if isinstance(content, dict) and "keypoints_2d" not in content and "hands" in content:
        raise InputError(f"{path}: is a result of predict: give hands with their detected_keypoints_2d as keypoints_2d")
    entries = content if isinstance(content, list) else [content]
    if not entries:
        raise InputError(f"{path}: holds no hands: give a JSON object with keypoints_2d, or a list of them")
    detections: dict[str, Detection] = {}
    for number, entry in enumerate(entries):
        with naming(path if len(entries) == 1 else f"{path}: entry {number}"):
            found = _from_json(entry, number, path, hand)
            name = found.id.casefold()  # some file systems ignore case, so two ids could name one file
            if name in detections:
                first = list(detections).index(name)
                raise InputError(f"id {found.id!r} is also the id of entry {first}: give different ids")
        detections[name] = found
    found_times = [each.time for each in detections.values()]
    if None in found_times and any(time is not None for time in found_times):
        raise InputError(f"{path}: entry {found_times.index(None)} has no time, but others have: give all or none")
    return list(detections.values())


_FIELDS = {*inspect.signature(detection).parameters} - {"hand"}
# Fields of results that are not read; they are allowed, so that a result can be given as input.
_RESULTS = {
    *("projection", "joints", "landmarks", "scale", "translation", "runner_up", "proposed", "frame", "seen"),
    *("side_probability", "presence", "region", "box", "detected_keypoints_2d", "image_size"),
    *("reprojection_error_before", "reprojection_error_after"),
}


def _from_json(entry: Any, number: int, path: Path, hand: HandModel | None) -> Detection:
    if not isinstance(entry, dict):
        raise InputError("is not a JSON object: give an object with keypoints_2d")
    check_fields(path, entry, _FIELDS, _RESULTS)
    if entry.get("keypoints_2d") is None:
        raise InputError("has no keypoints_2d: give 21 [u, v] pairs in pixels")
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
