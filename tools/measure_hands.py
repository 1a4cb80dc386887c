"""Measure the whole pipeline on a folder of labelled images and print a markdown table.

python tools/measure_hands.py DIR [--split val] [--network hourglass] [--weights FILE] [--sheets FOLDER]

DIR/labels.json is one of:

- a list of `id`, `image` (path in DIR), `hands_total` (visible hands, unlabelled ones included) and `hands`, each with
  `side`, `box` [x, y, w, h] around the keypoints and `keypoints_2d` (21 x 2 pixels, or null);
- an object from paths to labels of one hand each, in the format of photographs (docs/datasets.md).

The pipeline gets neither boxes nor sides, except in the mode "boxes", which gives it the true ones of each hand.

Columns:

- found: labelled hands with a predicted box of intersection over union > 0.5; those of the correct side in parentheses.
- invented: predictions that match no label, per 100 images, among images in which every hand is labelled.
- keypoints: share within 10 % of the hand size, as detected and as reprojected from the tailored mesh (MediaPipe's
  landmarks, as in the labels); missed hands count as wrong. Shares among the hands that are found are in parentheses.
- reprojection: distance of the tailored mesh's landmarks from the detected keypoints of all found hands, percent of the
  hand size: median and 90th percentile.

A list has separate rows for odd and even images, because the detector's thresholds were chosen on the odd ones of one
such folder.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Array
from tqdm import tqdm

from handtailor_jax import predict, results
from handtailor_jax.commands import command, keep_compiled_programs
from handtailor_jax.errors import InputError, check_range, read_json
from handtailor_jax.geometry.boxes import hand_size, overlap
from handtailor_jax.geometry.cameras import project
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.types import Camera, Hand, HandParameters, NetworkName

MODES = {"plain": False, "thorough": True, "thorough where plain finds nothing": None}
"""Names and the `thorough` argument of `HandTailor`."""
BOXES = "boxes"
"""Mode in which the true boxes and sides are given."""

SAME, CLOSE = 0.5, 0.1
"""Least intersection over union of a match; largest distance of a correct keypoint, in hand sizes."""


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
    close_after: int = 0
    complete: int = 0
    """Images in which every hand is labelled."""
    invented: int = 0
    """Predictions that match no label, in complete images."""
    reprojection: list[float] = dataclasses.field(default_factory=list)
    """Reprojection error of each hand that is found, in hand sizes."""

    def row(self, name: str) -> str:
        """Return a row of the table."""
        found = f"{self.found} ({self.sided}) of {self.hands}, {share(self.found, self.hands)} "
        found += f"({share(self.sided, self.hands)})"
        before, after = (
            f"{share(close, self.keypoints)} ({share(close, self.keypoints_of_found)})"
            for close in (self.close, self.close_after)
        )
        invented = f"{self.invented} in {self.complete}, {100 * self.invented / max(self.complete, 1):.1f}"
        error = 100.0 * np.asarray(self.reprojection or [np.nan])
        errors = f"{np.median(error):.2f}, {np.percentile(error, 90):.2f}"
        return f"| {name} | {self.images} | {found} | {invented} | {before} | {after} | {errors} |"


def share(part: int, whole: int) -> str:
    """Return a share as text."""
    return f"{part / whole:.3f}" if whole else "-"


def match(labels: Sequence[dict[str, Any]], hands: Sequence[Hand]) -> dict[int, int]:
    """Return the index of the matching prediction of each label that has one; the best overlaps are matched first."""
    boxes = [
        np.concatenate([h.detected_keypoints_2d.min(axis=0), np.ptp(h.detected_keypoints_2d, axis=0)]) for h in hands
    ]
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


@jax.jit
def _landmarks(hand: HandModel, convention: LandmarkConvention, parameters: HandParameters, camera: Camera) -> Array:
    return project(camera, camera_keypoints(hand, parameters, convention))


def count(counts: Counts, entry: dict[str, Any], hands: Sequence[Hand]) -> None:
    """Add one image."""
    convention = load_convention("mediapipe")
    labels = entry["hands"]
    matched = match(labels, hands)
    counts.images += 1
    counts.hands += len(labels)
    counts.found += len(matched)
    counts.sided += sum(hands[j].side == labels[i]["side"] for i, j in matched.items())
    for j in matched.values():
        counts.reprojection.append(float(hands[j].reprojection_after / hand_size(hands[j].detected_keypoints_2d)))
    for i, label in enumerate(labels):
        if label["keypoints_2d"] is None:
            continue
        keypoints = np.asarray(label["keypoints_2d"])
        counts.keypoints += len(keypoints)
        if i in matched:
            hand, limit = hands[matched[i]], CLOSE * hand_size(keypoints)
            counts.keypoints_of_found += len(keypoints)
            counts.close += int((np.linalg.norm(hand.detected_keypoints_2d - keypoints, axis=1) < limit).sum())
            landmarks = np.asarray(_landmarks(embedded_hand(hand.side), convention, hand.parameters, hand.camera))
            counts.close_after += int((np.linalg.norm(landmarks - keypoints, axis=1) < limit).sum())
    if entry["hands_total"] == len(labels):
        counts.complete += 1
        counts.invented += len(hands) - len(matched)


def print_header(first: str) -> None:
    """Print the head of the table; `first` is the name of the first column."""
    columns = [first, "images", "hands found (side correct)", "invented, per 100"]
    columns += ["keypoints within 10 % (of found)", "after the tailor", "reprojection %: median, 90 %"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def read_entries(folder: Path, split: str, every: int) -> list[dict[str, Any]]:
    """Read the labels in either format, as entries of the first; each entry gets the names of its rows."""
    check_range("every", every, 1)
    labels = read_json(folder / "labels.json", "give a folder with labels.json")
    if isinstance(labels, list):
        for index, entry in enumerate(labels):
            entry["rows"] = ("2, 4, 6, ..." if index % 2 else "1, 3, 5, ...", "all")
        return labels[::every]
    entries = []
    for path, label in labels.items():
        if label["split"] == split:
            points = np.asarray(label["keypoints_2d"])
            hand = {**label, "box": [*points.min(axis=0), *np.ptp(points, axis=0)]}
            rows = (f"{split}, {path.split('/')[0]}",)
            entries.append({"id": path, "image": path, "hands_total": 1, "hands": [hand], "rows": rows})
    return entries[::every]


@command("measure_hands")
def main(
    folder: tyro.conf.Positional[Path],
    split: str = "val",
    network: NetworkName = "landmarks",
    weights: Path | None = None,
    modes: tuple[str, ...] = (*MODES, BOXES),
    every: int = 1,
    sheets: Path | None = None,
) -> None:
    """Measure the pipeline on a folder of labelled images.

    Args:
        folder: Folder with labels.json.
        split: Split of photographs, if labels.json is an object.
        network: Network that recovers the hands.
        weights: Weights of the hand module; the embedded ones if not given.
        modes: Rows of the table, by the names of MODES, and "boxes".
        every: Use only every n-th image.
        sheets: Folder for overlays of the last mode, eight images a sheet.
    """
    if unknown := [mode for mode in modes if mode not in (*MODES, BOXES)]:
        raise InputError(f"unknown modes {', '.join(unknown)}: use {', '.join(MODES)} or {BOXES}")
    entries = read_entries(folder, split, every)
    tailor = HandTailor.load(weights, network=network)
    table: dict[tuple[str, str], Counts] = {}
    shown: list[np.ndarray] = []
    for entry in tqdm(entries, unit="image"):
        image = read_image(folder / entry["image"])
        for mode in modes:
            if mode == BOXES:
                given = [tailor.one(image, None, label["box"], label["side"]) for label in entry["hands"]]
                hands = [hand for hand in given if hand is not None]
            else:
                hands = tailor(image, thorough=MODES[mode])
            for row in entry["rows"]:
                count(table.setdefault((mode, row), Counts()), entry, hands)
        if sheets is not None:
            shown.append(predict.overlay(hands, image))
    print_header("pass")
    for (mode, row), counts in table.items():
        print(counts.row(f"{mode}: {row}"))
    if sheets is not None:
        results.prepare_folder(sheets)
        for first in range(0, len(shown), 8):
            names = [entry["id"] for entry in entries[first : first + 8]]
            results.write_image(sheets / f"sheet_{first // 8:02d}.png", predict.sheet(shown[first : first + 8], names))


if __name__ == "__main__":
    keep_compiled_programs()
    tyro.cli(main, description=__doc__)
