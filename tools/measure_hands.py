"""Measure the detector on a folder of labelled images and print a markdown table.

python tools/measure_hands.py DIR [--sheet sheet.png]

DIR/labels.json is a list of `id`, `image` (path in DIR), `hands_total` (visible hands, unlabelled ones included) and
`hands`, each with `side`, `box` [x, y, w, h] around the keypoints and `keypoints_2d` (21 x 2 pixels, or null).

- found: labelled hands with a predicted box of intersection over union > 0.5; with the right side in parentheses.
- invented: predictions that match no label, per 100 images, among images in which every hand is labelled.
- keypoints: share within 10 % of the hand's size (longer side of its box); missed hands count as wrong. In parentheses
  the share among hands that are found.

The table has a row for every second image, because the detector's thresholds were chosen on the first, third, fifth and
so on of one such folder.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from handtailor_jax.cli import keep_compiled_programs
from handtailor_jax.detector.detector import DetectedHand, HandDetector
from handtailor_jax.errors import InputError
from handtailor_jax.images import opencv, read_picture
from handtailor_jax.skeleton import BONES

MODES = {"plain": False, "thorough": True, "thorough where plain finds nothing": None}
"""Names and the `thorough` argument of `HandDetector`."""

SAME, CLOSE = 0.5, 0.1
"""Intersection over union of a match; distance of a right keypoint, in hand sizes."""


@dataclasses.dataclass
class Counts:
    """Sums over images."""

    images: int = 0
    hands: int = 0
    found: int = 0
    sided: int = 0
    keypoints: int = 0
    keypoints_of_found: int = 0
    close: int = 0
    complete: int = 0
    """Images in which every hand is labelled."""
    invented: int = 0
    """Predictions without a label in those."""

    def row(self, name: str) -> str:
        """A row of the table."""
        found = f"{self.found} ({self.sided}) of {self.hands}, {share(self.found, self.hands)} "
        found += f"({share(self.sided, self.hands)})"
        keypoints = f"{share(self.close, self.keypoints)} ({share(self.close, self.keypoints_of_found)})"
        invented = f"{self.invented} in {self.complete}, {100 * self.invented / max(self.complete, 1):.1f}"
        return f"| {name} | {self.images} | {found} | {invented} | {keypoints} |"


def share(part: int, whole: int) -> str:
    """A share as text."""
    return f"{part / whole:.3f}" if whole else "-"


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (x, y, w, h)."""
    lower, upper = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared = float(np.maximum(upper - lower, 0.0).prod())
    return shared / (float(a[2:].prod()) + float(b[2:].prod()) - shared)


def match(labels: Sequence[dict[str, Any]], hands: Sequence[DetectedHand]) -> dict[int, int]:
    """The prediction of each label that has one, best overlaps first."""
    boxes = [np.concatenate([h.keypoints_2d.min(axis=0), np.ptp(h.keypoints_2d, axis=0)]) for h in hands]
    pairs = sorted(
        (
            (overlap(np.asarray(label["box"]), box), i, j)
            for i, label in enumerate(labels)
            for j, box in enumerate(boxes)
        ),
        reverse=True,
    )
    matched: dict[int, int] = {}
    for value, i, j in pairs:
        if value > SAME and i not in matched and j not in matched.values():
            matched[i] = j
    return matched


def count(counts: Counts, entry: dict[str, Any], hands: Sequence[DetectedHand]) -> None:
    """Add one image."""
    labels = entry["hands"]
    matched = match(labels, hands)
    counts.images += 1
    counts.hands += len(labels)
    counts.found += len(matched)
    counts.sided += sum(hands[j].side == labels[i]["side"] for i, j in matched.items())
    for i, label in enumerate(labels):
        if label["keypoints_2d"] is None:
            continue
        keypoints = np.asarray(label["keypoints_2d"])
        counts.keypoints += len(keypoints)
        if i in matched:
            distance = np.linalg.norm(hands[matched[i]].keypoints_2d - keypoints, axis=1)
            counts.keypoints_of_found += len(keypoints)
            counts.close += int((distance < CLOSE * np.ptp(keypoints, axis=0).max()).sum())
    if entry["hands_total"] == len(labels):
        counts.complete += 1
        counts.invented += len(hands) - len(matched)


def draw(image: np.ndarray, entry: dict[str, Any], hands: Sequence[DetectedHand], size: int) -> np.ndarray:
    """A tile of the contact sheet: labels as white boxes, right hands green, left hands blue."""
    cv2 = opencv()
    zoom = size / max(image.shape[:2])
    small = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)[:size, :size]
    for label in entry["hands"]:
        x, y, w, h = (round(zoom * value) for value in label["box"])
        cv2.rectangle(small, (x, y), (x + w, y + h), (255, 255, 255), 1)
    for hand in hands:
        points = np.round(zoom * hand.keypoints_2d).astype(int).tolist()
        for a, b in BONES:
            cv2.line(small, points[a], points[b], (0, 200, 0) if hand.side == "right" else (0, 80, 255), 1, cv2.LINE_AA)
    tile = np.zeros((size, size, 3), np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small
    cv2.putText(tile, str(entry["id"])[-32:], (3, size - 4), 0, 0.35, (255, 255, 0), 1)
    return tile


def main(folder: tyro.conf.Positional[Path], sheet: Path | None = None, columns: int = 8, size: int = 240) -> None:
    """Measure the detector on a folder of labelled images.

    Args:
        folder: folder with labels.json.
        sheet: contact sheet of the thorough pass to write.
        columns: tiles in a row of the sheet.
        size: side of a tile, pixels.
    """
    entries = json.loads((folder / "labels.json").read_text())
    detector = HandDetector.load()
    table = {(mode, half): Counts() for mode in MODES for half in ("1, 3, 5, ...", "2, 4, 6, ...", "all")}
    shown = []
    for index, entry in enumerate(entries):
        image = read_picture(folder / entry["image"])
        for mode, thorough in MODES.items():
            hands = detector(image, thorough=thorough)
            for half in ("2, 4, 6, ..." if index % 2 else "1, 3, 5, ...", "all"):
                count(table[mode, half], entry, hands)
            if sheet and thorough:
                shown.append(draw(image, entry, hands, size))
    print("| pass, images | images | hands found (side right) | invented, per 100 | keypoints within 10 % (of found) |")
    print("|---|---|---|---|---|")
    for (mode, half), counts in table.items():
        print(counts.row(f"{mode}: {half}"))
    if sheet:
        shown += [np.zeros_like(shown[0])] * (-len(shown) % columns)
        rows = [np.hstack(shown[first : first + columns]) for first in range(0, len(shown), columns)]
        opencv().imwrite(str(sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    keep_compiled_programs()
    try:
        tyro.cli(main, description=__doc__)
    except InputError as error:
        print(f"measure_hands: error: {error}", file=sys.stderr)
        sys.exit(2)
