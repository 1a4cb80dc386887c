"""What another method found out about a hand: checked arrays, and the JSON files and adapters they come from."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.mano.landmarks import CONVENTIONS
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_BETAS, permutation
from handtailor_jax.types import Camera, Side

FloatArray = npt.NDArray[np.float32]

_ID = re.compile(r"[^/\\\x00-\x1f]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # halves of characters, which JSON can spell but no file name can hold

# Bytes of UTF-8: file systems allow 255, and endings and a temporary name are added.
_LONGEST_ID = 180

# More keypoints than this on exactly one spot are placeholders, not a hand.
_MOST_ON_ONE_SPOT = 4


@dataclasses.dataclass(frozen=True)
class Detection:
    """2D keypoints of one hand and whatever else is known about it. Arrays are checked and float32."""

    keypoints_2d: FloatArray
    """(21, 2) pixels (u, v), canonical order."""
    confidence: FloatArray
    """(21,) weights in [0, 1]; a keypoint with confidence 0 is ignored."""
    side: Side = "right"
    """Which hand appears in the image."""
    convention: str = "mano"
    """What the keypoints mark on the hand: a name of `CONVENTIONS`."""
    camera: FloatArray | None = None
    """(3, 3) intrinsic matrix in pixels of the image; None if unknown."""
    joints_3d: FloatArray | None = None
    """(21, 3) 3D keypoints in camera axes, any unit and origin."""
    pose: FloatArray | None = None
    """(16, 3) axis-angle rotations, radians, MANO's joint order, relative to the flat hand."""
    betas: FloatArray | None = None
    """(10,) shape coefficients of the hand model in use."""
    id: str = "hand"
    """Name of the result's files."""
    image: Path | None = None
    """The photograph."""


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
    betas: Any = None,
    id: str = "hand",
    image: str | Path | None = None,
) -> Detection:
    """Checks and converts what is known about one hand.

    Args:
        keypoints_2d: (21, 2) pixels (u, v).
        confidence: (21,) in [0, 1]; ones if None.
        side: "right" or "left", as the hand is, not as a mirrored picture shows it.
        convention: "mano" or "mediapipe".
        order: order of `keypoints_2d`, `confidence` and `joints_3d`, a name of `KEYPOINT_ORDERS`.
        camera: {fx, fy, cx, cy}, those four numbers, or a (3, 3) matrix; pixels.
        joints_3d: (21, 3) in camera axes (x right, y down, z forward), any unit and origin.
        pose: (16, 3) or 48 axis-angle values, radians, MANO's joint order, relative to the flat hand.
        betas: up to 10 shape coefficients.
        id: a file name without folders.
        image: path of the photograph.

    Raises:
        InputError: one line that names what is wrong.
    """
    if side not in get_args(Side):
        raise InputError(f"side is {side!r}: use right or left")
    if convention not in CONVENTIONS:
        raise InputError(f"convention is {convention!r}: use one of {', '.join(CONVENTIONS)}")
    if order not in KEYPOINT_ORDERS:
        raise InputError(f"order is {order!r}: use one of {', '.join(KEYPOINT_ORDERS)}")
    if not isinstance(id, str) or not _ID.fullmatch(id) or id.startswith("."):
        raise InputError(
            f"id is {id!r}: it names files, so it must be text without slashes that does not begin with a dot"
        )
    if len(id.encode("utf-8", "replace")) > _LONGEST_ID or _SURROGATE.search(id):
        raise InputError(
            f"id is {id[:20]!r}...: it names files, so it must be valid text of at most {_LONGEST_ID} bytes"
        )
    to_canonical = list(permutation(KEYPOINT_ORDERS[order], KEYPOINTS))

    weights = np.ones(21, np.float32)
    if confidence is not None:
        weights = _array("confidence", confidence, (21,))[to_canonical]
        if (weights < 0).any() or (weights > 1).any():
            raise InputError("confidence must lie between 0 and 1")
    ignored = weights == 0
    if (~ignored).sum() < 6:
        raise InputError(f"only {(~ignored).sum()} keypoints have a confidence above 0: at least 6 are needed")
    points = _array("keypoints_2d", keypoints_2d, (21, 2), ignored=ignored[np.argsort(to_canonical)])[to_canonical]
    _check_spread(points[~ignored])
    points[ignored] = points[~ignored].mean(axis=0)  # a stand-in; its weight is zero

    xyz = None
    if joints_3d is not None:
        xyz = _array("joints_3d", joints_3d, (21, 3))[to_canonical]
        if np.ptp(xyz, axis=0).max() <= 0:
            raise InputError("joints_3d are all at one point: leave them out if they are unknown")
    rotations = None
    if pose is not None:
        values = np.asarray(_numbers("pose", pose))
        if values.size != 48:
            raise InputError(f"pose has {values.size} values: give 16 x 3 axis-angle values, the global rotation first")
        rotations = _array("pose", values.reshape(16, 3), (16, 3))
    shape = None
    if betas is not None:
        values = np.asarray(_numbers("betas", betas)).reshape(-1)
        if values.size > NUM_BETAS:
            raise InputError(f"betas has {values.size} values: the model has {NUM_BETAS}")
        shape = _array("betas", np.pad(values, (0, NUM_BETAS - values.size)), (NUM_BETAS,))
    return Detection(
        keypoints_2d=points,
        confidence=weights,
        side=side,  # type: ignore[arg-type]
        convention=convention,
        camera=None if camera is None else intrinsic_matrix(camera),
        joints_3d=xyz,
        pose=rotations,
        betas=shape,
        id=id,
        image=None if image is None else Path(image),
    )


def read_detections(path: str | Path) -> list[Detection]:
    """Reads a JSON file with one object or a list of objects; see README for the fields.

    `image` paths are relative to the file. An object without an `id` is named after its image, or numbered.

    Raises:
        InputError: one line that names the file, the entry and the remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error.__class__.__name__}): give a JSON file") from None
    if not text.strip():
        raise InputError(f"{path}: is empty: give a JSON object with keypoints_2d, or a list of them")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not complete JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be a list of hands") from None
    entries = content if isinstance(content, list) else [content]
    if not entries:
        raise InputError(f"{path}: holds no hands: give a JSON object with keypoints_2d, or a list of them")
    detections: list[Detection] = []
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: " if len(entries) == 1 else f"{path}: entry {number}: "
        if not isinstance(entry, Mapping):
            raise InputError(f"{where}is no JSON object")
        try:
            found = _from_json(entry, number, path)
        except InputError as error:
            raise InputError(f"{where}{error}") from None
        # Case-blind file systems would write both into one file.
        if found.id.casefold() in seen:
            raise InputError(
                f"{where}id {found.id!r} is also that of entry {seen[found.id.casefold()]}: ids must differ"
            )
        seen[found.id.casefold()] = number
        detections.append(found)
    return detections


_FIELDS = {f.name for f in dataclasses.fields(Detection)} | {"order", "pca", "global_rotation", "flat_hand_mean"}


def _from_json(entry: Mapping[str, Any], number: int, path: Path) -> Detection:
    if "keypoints_2d" not in entry:
        raise InputError("has no keypoints_2d: give 21 [u, v] pairs in pixels")
    fields = {key: entry[key] for key in _FIELDS if entry.get(key) is not None}
    image = fields.pop("image", None)
    if image is not None:
        if not isinstance(image, str) or not image or "\0" in image or _SURROGATE.search(image):
            raise InputError("image must be the path of a picture: correct it or leave it out")
        fields["image"] = path.parent / image
    if "id" in fields:
        if isinstance(fields["id"], int) and not isinstance(fields["id"], bool):
            fields["id"] = str(fields["id"])
    else:
        fields["id"] = f"{number:04d}" if image is None else Path(image).stem
    for key in ("id", "side", "convention", "order"):
        if not isinstance(fields.get(key, ""), str):
            raise InputError(f"{key} is {fields[key]!r}: it must be text")
    fields["pose"] = _pose_from_json(fields)
    return detection(**fields)


def _pose_from_json(fields: dict[str, Any]) -> Any:
    """The `pose` field, or one put together from `pca` and `global_rotation`; removes the fields it used."""
    pose, pca = fields.pop("pose", None), fields.pop("pca", None)
    rotation, flat = fields.pop("global_rotation", None), fields.pop("flat_hand_mean", True)
    if not isinstance(flat, bool):
        raise InputError("flat_hand_mean must be true or false")
    if pca is None and (pose is None or flat):
        return pose
    if pose is not None and pca is not None:
        raise InputError("give either pose or pca, not both")
    from handtailor_jax.mano.loading import embedded_hand

    hand = embedded_hand()
    if pca is not None:
        coefficients = np.asarray(_numbers("pca", pca)).reshape(-1)
        if not 1 <= coefficients.size <= 45:
            raise InputError(f"pca has {coefficients.size} values: give 1 to 45")
        if rotation is None:
            raise InputError("pca needs a global_rotation of three axis-angle values beside it")
        fingers = hand.finger_pose_from_pca(jnp.asarray(coefficients, jnp.float32), flat_hand_mean=flat)
        return np.concatenate([_array("global_rotation", rotation, (3,))[None], np.asarray(fingers)])
    values = _array("pose", np.asarray(_numbers("pose", pose)).reshape(-1), (48,)).reshape(16, 3)
    fingers = hand.finger_pose_from_axis_angle(jnp.asarray(values[1:]), flat_hand_mean=False)
    return np.concatenate([values[:1], np.asarray(fingers)])


def from_mediapipe(
    landmarks: Sequence[Any], width: int, height: int, *, handedness: str, world_landmarks: Sequence[Any] | None = None,
    mirrored: bool = False, **known: Any,
) -> Detection:  # fmt: skip
    """A detection from MediaPipe Hands: 21 normalised landmarks, and its world landmarks as a depth hint.

    Args:
        landmarks: 21 objects with x and y in [0, 1] (``result.hand_landmarks[i]``).
        width: image width, pixels.
        height: image height, pixels.
        handedness: "Left" or "Right" as MediaPipe says it. It assumes a selfie: for a picture that is not mirrored its
            answer is the wrong way round, which this function undoes.
        world_landmarks: 21 objects with x, y, z in metres (``result.hand_world_landmarks[i]``).
        mirrored: the picture is a selfie, flipped left to right; MediaPipe's answer is then right as it is.
        **known: further arguments of `detection`.
    """
    if len(landmarks) != 21:
        raise InputError(f"MediaPipe gives 21 landmarks, not {len(landmarks)}")
    side = handedness.lower()
    if side not in get_args(Side):
        raise InputError(f"handedness is {handedness!r}: use Left or Right")
    if not mirrored:
        side = "left" if side == "right" else "right"
    # A normalised x of 0 is the left edge of the image, half a pixel left of the first pixel's centre.
    points = np.asarray([[p.x * width - 0.5, p.y * height - 0.5] for p in landmarks])
    if world_landmarks is not None:
        known["joints_3d"] = np.asarray([[p.x, p.y, p.z] for p in world_landmarks])
    return detection(points, side=side, convention="mediapipe", **known)


def _numbers(name: str, values: Any) -> Any:
    try:
        # numpy would read numbers out of text and take true for 1.
        if np.asarray(values).dtype.kind not in "OSUbc":
            return np.asarray(values, dtype=np.float64)
        if not _holds(values, (str, bytes, bool, complex)):
            return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    raise InputError(f"{name} must hold numbers only, all rows of one length")


def _holds(values: Any, kinds: tuple[type, ...]) -> bool:
    """Whether something of these types is anywhere in nested sequences."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return any(_holds(value, kinds) for value in values)
    return isinstance(values, kinds)


def _array(name: str, values: Any, shape: tuple[int, ...], ignored: npt.NDArray[np.bool_] | None = None) -> FloatArray:
    array = _numbers(name, values)
    if array.shape != shape:
        expected, got = (" x ".join(str(n) for n in s) or "one number" for s in (shape, array.shape))
        raise InputError(f"{name} must be {expected} numbers, not {got}")
    finite = np.isfinite(array) & (np.abs(array) < 1e9)
    if ignored is not None:
        finite |= ignored.reshape(-1, *([1] * (array.ndim - 1)))
    if not finite.all():
        remedy = (
            "give missing keypoints a confidence of 0" if name == "keypoints_2d" else "leave it out if it is unknown"
        )
        raise InputError(f"{name} holds NaN, infinite or absurd numbers: {remedy}")
    return np.where(np.isfinite(array), array, 0.0).astype(np.float32)


def _check_spread(points: FloatArray) -> None:
    if np.ptp(points, axis=0).max() <= 1.0:
        raise InputError(
            "the keypoints coincide (within a pixel): are they in pixels, not in units of the image's size?"
        )
    spots, counts = np.unique(points, axis=0, return_counts=True)
    if counts.max() > _MOST_ON_ONE_SPOT:
        u, v = spots[counts.argmax()]
        raise InputError(
            f"{counts.max()} keypoints coincide at ({u:g}, {v:g}): give missing keypoints a confidence of 0"
        )


def as_camera(camera: Any) -> Camera:
    """Return a camera of NumPy arrays from a `Camera`, intrinsics, or None (weak perspective in pixels).

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(camera, Camera):
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), camera)
    matrix = np.eye(3, dtype=np.float32) if camera is None else intrinsic_matrix(camera)
    return Camera(matrix[:2, :2], matrix[:2, 2], np.asarray(camera is not None, np.float32))


def intrinsic_matrix(camera: Any) -> FloatArray:
    """Return {fx, fy, cx, cy}, those four numbers or a matrix as a checked intrinsic matrix (3, 3), pixels.

    Raises:
        InputError: If it is none of these, or no camera has such intrinsics.
    """
    if isinstance(camera, Mapping):
        missing = [key for key in ("fx", "fy", "cx", "cy") if key not in camera]
        if missing:
            raise InputError(f"camera lacks {', '.join(missing)}: give fx, fy, cx and cy in pixels")
        camera = [camera[key] for key in ("fx", "fy", "cx", "cy")]
    array = np.asarray(_numbers("camera", camera))
    if array.shape == (4,):
        fx, fy, cx, cy = array
        array = np.asarray([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    matrix = _array("camera", array, (3, 3))
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise InputError(f"camera has the focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}: they must be positive")
    if not np.array_equal(matrix[2], [0.0, 0.0, 1.0]) or np.linalg.det(matrix.astype(np.float64)) <= 0:
        raise InputError("camera is no intrinsic matrix: its last row must be 0 0 1 and it must be invertible")
    return matrix
