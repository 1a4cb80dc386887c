"""Labelled photographs: a folder of images with a labels.json (docs/datasets.md, "Photographs")."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import FloatArray, Sample, check_folders, mirrored_sample
from handtailor_jax.errors import InputError, read_json
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.images import Image, opencv, read_image
from handtailor_jax.skeleton import BONES, FINGERS, KEYPOINTS, NUM_KEYPOINTS, ROOT, WRIST
from handtailor_jax.types import Side

_PALM = [WRIST, *(KEYPOINTS.index(f"{finger}_mcp") for finger in FINGERS[1:])]
# Shares of the hand size: bones drawn `_BONE_WIDTH` wide are certainly skin; pixels beyond `_REACH` of them are not.
_BONE_WIDTH = 0.05
_REACH = 0.22
_FARTHEST = 4.0  # largest coordinate of a keypoint, in image sides


@dataclasses.dataclass(frozen=True)
class PhotoLabel:
    """Label of one photograph."""

    name: str
    """Name in labels.json, which is the image's path in the folder unless the label has another; its first component is
    the collection."""
    path: Path
    """Path of the image."""
    side: Side
    """Side of the hand in the image."""
    keypoints_2d: FloatArray
    """(21, 2) keypoints in pixels, canonical order, in the label's convention."""
    joints_3d: FloatArray | None
    """(21, 3) estimated joints, camera axes, any unit and origin; None if the label has none."""
    convention: str = "mediapipe"
    """Definition of the keypoints: a name of `detections.CONVENTIONS`."""

    @property
    def source(self) -> str:
        """Collection of the photograph: the first component of its name."""
        return self.name.split("/")[0]


def read_labels(folder: Path, split: str) -> list[PhotoLabel]:
    """Read the labels of a split, sorted by name.

    Raises:
        InputError: if there are none, or a label is invalid.
    """
    path = folder / "labels.json"
    content: dict[str, Any] = read_json(path, "give a folder with a valid labels.json")
    try:
        entries = sorted((name, entry) for name, entry in content.items() if entry["split"] == split)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise InputError(f"{path}: is not a JSON object of labels, each with a split: correct the file") from None
    if not entries:
        raise InputError(f"{path}: has no photographs of split {split!r}: give some, as `handtailor label --val` does")
    return [_label(path, name, entry) for name, entry in entries]


def _label(path: Path, name: str, entry: dict[str, Any]) -> PhotoLabel:
    try:
        keypoints = np.asarray(entry["keypoints_2d"], np.float32)
        joints = None if entry.get("joints_3d") is None else np.asarray(entry["joints_3d"], np.float32)
        side, convention = entry["side"], entry.get("convention", "mediapipe")
        image = path.parent / entry.get("image", name)
    except KeyError as error:
        raise InputError(f"{path}: {name} lacks {error}: correct the label") from None
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise InputError(f"{path}: {name} has a coordinate that is not a number: correct the label") from None
    columns = ((keypoints, 2),) if joints is None else ((keypoints, 2), (joints, 3))
    valid = all(points.shape == (NUM_KEYPOINTS, n) for points, n in columns)
    if valid and not all(np.isfinite(points).all() for points, _ in columns):
        raise InputError(f"{path}: {name} has a coordinate that is not a finite number: correct the label")
    if not valid or side not in get_args(Side):
        raise InputError(
            f"{path}: {name} needs a side (left or right), 21 keypoints_2d and, if present, 21 joints_3d: "
            "correct the label"
        )
    return PhotoLabel(name, image, side, keypoints, joints, convention)


def read_photograph(label: PhotoLabel) -> Image:
    """Read the image of a label as RGB.

    Raises:
        InputError: if it cannot be read, or the keypoints are far outside it.
    """
    image = read_image(label.path)
    if np.abs(label.keypoints_2d).max() > _FARTHEST * max(image.shape):
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise InputError(f"{label.path}: has {size}, but keypoints far outside in labels.json: correct the label")
    return image


class Photos:
    """Photographs of one split, sorted by name, with 2D keypoints.

    Samples have neither joints nor intrinsics, because the labels' 3D joints have no unit and no camera.
    """

    def __init__(self, root: Path, split: str) -> None:
        """Read labels.json in `root`; images are decoded on access.

        Raises:
            InputError: if the folder or the split does not exist, or a label is invalid.
        """
        check_folders([root], "give the folder with labels.json and its images")
        self._labels = read_labels(root, split)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        label = self._labels[index]
        sample = Sample(
            name=label.name,
            image=read_photograph(label),
            keypoints_2d=label.keypoints_2d,
            visible=np.ones(NUM_KEYPOINTS, np.bool_),
            joints=None,
            intrinsics=None,
        )
        return mirrored_sample(sample) if label.side == "left" else sample


def hand_mask(image: Image, keypoints_2d: FloatArray) -> npt.NDArray[np.uint8] | None:
    """Segment the hand and its wrist in an RGB photograph with a plain background.

    GrabCut (Rother et al., SIGGRAPH 2004) separates colours near the skeleton from colours far away, which is reliable
    if the background is plain.

    Returns:
        Mask (height, width) from 0 to 255 with soft edges; None if the segment does not have the area of a hand.
    """
    cv2 = opencv()
    size = float(hand_size(keypoints_2d))
    points = np.round(keypoints_2d).astype(np.int32)
    skeleton = np.zeros(image.shape[:2], np.uint8)
    for a, b in BONES:
        cv2.line(skeleton, points[a].tolist(), points[b].tolist(), 255, max(1, round(_BONE_WIDTH * size)))
    cv2.fillConvexPoly(skeleton, cv2.convexHull(points[_PALM]), 255)
    # The forearm continues from the wrist, away from the fingers.
    elbow = np.round(keypoints_2d[WRIST] + 1.5 * (keypoints_2d[WRIST] - keypoints_2d[ROOT])).astype(np.int32)
    reach = skeleton.copy()
    cv2.line(reach, points[WRIST].tolist(), elbow.tolist(), 255, max(1, round(0.3 * size)))
    distance = cv2.distanceTransform(255 - reach, cv2.DIST_L2, 3)
    labels = np.where(distance < _REACH * size, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    labels[distance < 0.5 * _REACH * size] = cv2.GC_PR_FGD
    labels[skeleton > 0] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    # A hand with its wrist covers about a third of the square of its size.
    if not 0.12 < found.sum() / size**2 < 1.1:
        return None
    return cv2.GaussianBlur(255 * found, (0, 0), 0.7)


def without_hand(image: Image, keypoints_2d: FloatArray) -> Image:
    """Fill the part of an RGB image around a hand from its surroundings (Telea, Journal of Graphics Tools 2004)."""
    cv2 = opencv()
    hand = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(hand, cv2.convexHull(np.round(keypoints_2d).astype(np.int32)), 255)
    size = float(hand_size(keypoints_2d))
    reach = max(3, round(0.3 * size) | 1)
    hand = cv2.dilate(hand, np.ones((reach, reach), np.uint8))
    filled = cv2.inpaint(np.ascontiguousarray(image), hand, 3, cv2.INPAINT_TELEA)
    return np.asarray(filled)
