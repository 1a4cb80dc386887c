"""Photographs with keypoints: a folder of pictures and a labels.json.

The file maps each picture's path to its `side`, `split` and `keypoints_2d` (21 x 2 pixels); it may have `joints_3d`
(21 x 3, a hint) and the keypoints' `convention` ("mediapipe" if not given).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.images import Picture, opencv
from handtailor_jax.skeleton import BONES, FINGERS, KEYPOINTS
from handtailor_jax.types import Side

FloatArray = npt.NDArray[np.float32]

# Palm as a polygon, and bones as strokes of this share of the hand's size: surely skin.
_PALM = [KEYPOINTS.index("wrist")] + [KEYPOINTS.index(f"{finger}_mcp") for finger in FINGERS[1:]]
_STROKE = 0.05
# Further than this share of the hand's size from the skeleton there is no hand.
_REACH = 0.22


@dataclasses.dataclass(frozen=True)
class PhotoLabel:
    """What is known about one photograph."""

    name: str
    """Path in the labels; its first folder is the source."""
    path: Path
    """The picture."""
    side: Side
    """The hand's side as it appears."""
    keypoints_2d: FloatArray
    """(21, 2) pixels, canonical order, in the labels' own convention."""
    joints_3d: FloatArray | None
    """(21, 3) camera axes, any unit and origin: an estimate; None if there is none."""
    convention: str = "mediapipe"
    """What the keypoints mark: a name of `detections.CONVENTIONS`."""

    @property
    def source(self) -> str:
        """Its collection: the first folder of its name."""
        return self.name.split("/")[0]


def read_labels(folder: Path, split: str) -> list[PhotoLabel]:
    """The labels of a split, sorted by name.

    Raises:
        InputError: if there are none, or one is unusable.
    """
    labels = folder / "labels.json"
    try:
        content: dict[str, Any] = json.loads(labels.read_text(encoding="utf-8"))
        entries = sorted((name, entry) for name, entry in content.items() if entry["split"] == split)
    except OSError as error:
        raise InputError(f"{labels}: cannot be read ({error.strerror}): give a folder with labels.json") from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise InputError(f"{labels}: is no object of labels with a split each: get an undamaged copy") from None
    if not entries:
        raise InputError(f"{labels}: has no photographs of split {split!r}: choose another folder")
    return [_label(labels, name, entry) for name, entry in entries]


def _label(labels: Path, name: str, entry: dict[str, Any]) -> PhotoLabel:
    try:
        points = np.asarray(entry["keypoints_2d"], np.float32)
        joints = None if entry.get("joints_3d") is None else np.asarray(entry["joints_3d"], np.float32)
        side, convention = entry["side"], entry.get("convention", "mediapipe")
    except KeyError as error:
        raise InputError(f"{labels}: {name} lacks {error}: get an undamaged copy") from None
    except (TypeError, ValueError):
        raise InputError(f"{labels}: {name} holds something that is no number: get an undamaged copy") from None
    sound = points.shape == (21, 2) and bool(np.isfinite(points).all())
    if joints is not None:
        sound = sound and joints.shape == (21, 3) and bool(np.isfinite(joints).all())
    if not sound or side not in get_args(Side):
        raise InputError(
            f"{labels}: {name} needs a side, 21 keypoints in 2D and, if it has joints_3d, 21 of them: correct it"
        )
    return PhotoLabel(name, labels.parent / name, side, points, joints, convention)


def square_around(
    picture: Picture, keypoints: FloatArray, factor: float, size: int
) -> tuple[Picture, npt.NDArray[np.uint8], FloatArray]:
    """The square around a hand, `factor` times as large as its keypoints' box, resampled to `size` pixels.

    Returns:
        The square (size, size, 3), where beyond the picture its border goes on; 255 where the picture is, else 0
        (size, size); the affine map (2, 3) from the picture's pixels.
    """
    cv2 = opencv()
    low, high = keypoints.min(axis=0), keypoints.max(axis=0)
    side = max(2, round(factor * float((high - low).max())))
    left, top = (round(float(x)) for x in 0.5 * (low + high) - 0.5 * side + 0.5)
    height, width = picture.shape[:2]
    rows, columns = np.arange(top, top + side), np.arange(left, left + side)
    square = picture[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None, :]]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    coverage = 255 * inside.astype(np.uint8)
    if side != size:
        method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        square, coverage = (cv2.resize(x, (size, size), interpolation=method) for x in (square, coverage))
    zoom = size / side
    affine = np.asarray([[zoom, 0.0, zoom * (0.5 - left) - 0.5], [0.0, zoom, zoom * (0.5 - top) - 0.5]], np.float32)
    return np.ascontiguousarray(square), coverage, affine


def hand_mask(picture: Picture, keypoints: FloatArray) -> npt.NDArray[np.uint8] | None:
    """Where the hand and its wrist are in a photograph with a plain background: 0 to 255 (height, width), soft edges.

    Colours near the skeleton are told from those far from it by GrabCut (Rother et al., SIGGRAPH 2004), which a plain
    background makes reliable.

    Returns:
        None where the result does not look like a hand.
    """
    cv2 = opencv()
    size = float(np.ptp(keypoints, axis=0).max())
    height, width = picture.shape[:2]
    points = np.round(keypoints).astype(np.int32)
    skeleton = np.zeros((height, width), np.uint8)
    stroke = max(1, round(_STROKE * size))
    for a, b in BONES:
        cv2.line(skeleton, points[a].tolist(), points[b].tolist(), 255, stroke)
    cv2.fillConvexPoly(skeleton, cv2.convexHull(points[_PALM]), 255)
    # The forearm goes on from the wrist, away from the fingers.
    wrist, middle = keypoints[0], keypoints[KEYPOINTS.index("middle_mcp")]
    end = np.round(wrist + 1.5 * (wrist - middle)).astype(np.int32)
    reach = skeleton.copy()
    cv2.line(reach, points[0].tolist(), end.tolist(), 255, max(1, round(0.3 * size)))
    distance = cv2.distanceTransform(255 - reach, cv2.DIST_L2, 3)
    labels = np.where(distance < _REACH * size, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    labels[distance < 0.5 * _REACH * size] = cv2.GC_PR_FGD
    labels[skeleton > 0] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(np.ascontiguousarray(picture[..., ::-1]), labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    share = found.sum() / size**2
    # A hand with its wrist covers about a third of the square of its size.
    if not 0.12 < share < 1.1:
        return None
    return cv2.GaussianBlur(255 * found, (0, 0), 0.7)
