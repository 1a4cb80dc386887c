"""Pseudo-labels for photographs: the keypoints of hands on which four copies of an image agree.

The detector runs on the image, on its mirror image and on the image rotated by 20 degrees in both directions. The
medians of the four estimates are the label. `training/sources.py` reads the file (docs/training.md).
"""

import dataclasses
import itertools
import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.detector.landmark_network import DetectedHand
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.images import SUFFIXES, Image, opencv, read_image
from handtailor_jax.results import prepare_folder, write_atomically, write_json

Points = npt.NDArray[np.float64]

UNREADABLE = "images that cannot be read"
"""Reason for which an image is left out."""

_TURN = math.radians(20.0)
# Hands of two copies are the same if the mean distance of their keypoints is below this, in hand sizes.
_SAME = 0.3
# Largest spread of a single keypoint as a multiple of the largest mean spread.
_SINGLE = 10.0 / 3.0


def label_folder(folder: Path, out: Path, *, spread: float = 0.03, val: float = 0.1) -> Counter[str]:
    """Label the images below a folder and write labels.json; an interrupted run continues where it stopped.

    Args:
        folder: Folder of the photographs.
        out: File to write, in this folder or one above it, because image names are relative to the file's folder.
        spread: Largest mean distance of the copies' keypoints from their median, in hand sizes.
        val: Share of the images of each folder whose split is "val": the last ones by name, because neighbours by name
            often show the same person and scene.

    Returns:
        Number of labelled hands ("labelled"), and numbers of hands and images without a label, by reason.

    Raises:
        InputError: If a number is out of range, there are no images, no hand is found, or the file cannot be written.
    """
    check_range("spread", spread, 1e-6, 1)
    check_range("val", val, 0, 1)
    out = out.absolute()
    images = _images(folder, out)
    partial = out.with_name(f".{out.name}.partial")
    prepare_folder(out.parent, [out.name, partial.name], images.values())
    done, detector = _begin(partial, {"version": 1, "spread": spread}), HandDetector()
    with partial.open("a", encoding="utf-8") as lines:
        for name, path in tqdm(images.items(), desc="label", unit="image"):
            if name not in done:
                try:
                    done[name] = label_image(detector, read_image(path), spread)
                except InputError as error:
                    tqdm.write(f"handtailor: skipped: {error}", file=sys.stderr)
                    done[name] = [], {UNREADABLE: 1}
                lines.write(_line([name, *done[name]]))
                lines.flush()
    counts: Counter[str] = Counter()
    labels: dict[str, Any] = {}
    splits = _splits(list(images), val)
    for name in images:
        found, missed = done[name]
        counts.update({**missed, "labelled": len(found)})
        for number, label in enumerate(found, start=1):
            # A second hand in an image needs a name of its own.
            other = {} if number == 1 else {"image": name}
            labels[name if number == 1 else f"{name}#{number}"] = {"split": splits[name], **other, **label}
    if not labels:
        partial.unlink()
        raise InputError(f"{folder}: {len(images)} images in which no hand can be labelled: use other photographs")
    write_json(out, labels)
    partial.unlink(missing_ok=True)  # a second run may have ended
    return counts


def label_image(
    detector: Callable[[Image], list[DetectedHand]], image: Image, spread: float
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the labels of the hands in an image, and how many hands were left out for each reason."""
    first, *others = ([_in_image(hand, affine) for hand in detector(copy)] for copy, affine in _copies(image))
    labels, reasons = [], Counter[str]() if first else Counter(["images without a hand"])
    for hand in first:
        seen = [hand, *filter(None, (_closest(hand, other) for other in others))]
        keypoints = np.median([each.keypoints_2d for each in seen], axis=0)
        size = float(hand_size(keypoints))
        distances = np.linalg.norm([each.keypoints_2d - keypoints for each in seen], axis=-1) / size
        if len(seen) <= len(others):
            reasons["hands that a copy does not show"] += 1
        elif len({each.side for each in seen}) > 1:
            reasons["hands whose side differs"] += 1
        elif distances.mean() > spread or distances.mean(axis=0).max() > _SINGLE * spread:
            reasons["hands whose keypoints differ"] += 1
        else:
            joints = np.median([each.joints_3d for each in seen], axis=0)
            numbers = {"keypoints_2d": keypoints.round(2).tolist(), "joints_3d": joints.round(5).tolist()}
            labels.append({"side": hand.side, **numbers, "label_spread": round(float(distances.mean()), 5)})
    return labels, dict(reasons)


def _copies(image: Image) -> Iterator[tuple[Image, Points]]:
    """Yield four copies, each with the affine map (2, 3) from pixels of the image: rotations and a reflection."""
    cv2 = opencv()
    height, width = image.shape[:2]
    yield image, np.eye(2, 3)
    yield np.ascontiguousarray(image[:, ::-1]), np.asarray([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])
    for turn in (_TURN, -_TURN):
        cosine, sine = math.cos(turn), math.sin(turn)
        size = math.ceil(width * cosine + height * abs(sine)), math.ceil(width * abs(sine) + height * cosine)
        linear = np.asarray([[cosine, -sine], [sine, cosine]])
        offset = (np.asarray(size) - 1) / 2 - linear @ (np.asarray([width, height]) - 1) / 2
        affine = np.column_stack([linear, offset])
        yield cv2.warpAffine(image, affine, size, borderMode=cv2.BORDER_REPLICATE), affine


def _in_image(hand: DetectedHand, affine: Points) -> DetectedHand:
    """Map a hand of a copy back to the image; the inverse of the affine map's linear part is its transpose."""
    linear, offset = affine[:, :2], affine[:, 2]
    keypoints = (np.asarray(hand.keypoints_2d, np.float64) - offset) @ linear
    joints = np.asarray(hand.joints_3d, np.float64)
    joints = np.concatenate([joints[:, :2] @ linear, joints[:, 2:]], axis=1)
    right = 1.0 - hand.right if np.linalg.det(linear) < 0.0 else hand.right
    return dataclasses.replace(hand, keypoints_2d=keypoints, joints_3d=joints, right=right)


def _closest(hand: DetectedHand, others: Sequence[DetectedHand]) -> DetectedHand | None:
    """Return the same hand in another copy; None if there is none."""
    close = {float(np.linalg.norm(hand.keypoints_2d - each.keypoints_2d, axis=-1).mean()): each for each in others}
    nearest = min(close, default=math.inf)
    return close[nearest] if nearest < _SAME * hand_size(hand.keypoints_2d) else None


def _images(folder: Path, out: Path) -> dict[str, Path]:
    """Return the images below a folder, sorted, by their paths relative to the folder of `out`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: give the folder of the photographs")
    above = out.parent.resolve()
    found = [p for p in sorted(folder.resolve().rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise InputError(f"{folder}: holds no image files: give a folder that does")
    if not found[0].is_relative_to(above):
        raise InputError(f"{out}: the names of images are relative to it: write it to {folder}, or a folder above")
    return {path.relative_to(above).as_posix(): path for path in found}


def _splits(names: Sequence[str], val: float) -> dict[str, str]:
    """Return the split of each image."""
    splits: dict[str, str] = {}
    folder = lambda name: name.rpartition("/")[0]  # noqa: E731
    for _, group in itertools.groupby(sorted(names, key=folder), folder):
        own = list(group)
        last = len(own) - math.floor(val * len(own) + 1e-9)
        splits |= {name: "train" if i < last else "val" for i, name in enumerate(own)}
    return splits


def _begin(partial: Path, header: dict[str, Any]) -> dict[str, tuple[list[dict[str, Any]], dict[str, int]]]:
    """Return the results of an interrupted run with the same settings by image, or begin the file of a new run."""
    lines = partial.read_bytes().splitlines() if partial.is_file() else []
    # A line that was cut short has another checksum.
    whole = [json.loads(line[9:]) for line in lines if line[:8] == f"{zlib.crc32(line[9:]):08x}".encode()]
    done = {name: (found, missed) for name, found, missed in whole[1:]} if whole and whole[0] == header else {}
    text = "".join([_line(header), *(_line([name, *both]) for name, both in done.items())])
    write_atomically(partial, lambda temporary: temporary.write_text(text, "utf-8"))
    return done


def _line(content: Any) -> str:
    """Return a line of the file of an interrupted run: a checksum, and the content as JSON."""
    text = json.dumps(content)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"
