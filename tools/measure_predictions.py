"""Predict labelled photographs from boxes around their labels, with the hourglass, and print a table of the errors.

python tools/measure_predictions.py --photos FOLDER [--weights FILE] [--sheet sheet.png] [--json errors.json]

The labels follow MediaPipe's convention, in which meshes are compared with them; the network's keypoints are compared
as they are. The labels' 3D joints are another network's estimate, so distances to them measure plausibility, not
accuracy.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np
import numpy.typing as npt
import tyro
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax import predict, results
from handtailor_jax.commands import command, keep_compiled_programs
from handtailor_jax.data.readers.photos import PhotoLabel, read_labels
from handtailor_jax.errors import InputWarning, check_range
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.evaluation.report import markdown_table
from handtailor_jax.geometry.boxes import hand_size, square_around
from handtailor_jax.geometry.cameras import project
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.skeleton import NUM_KEYPOINTS
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.types import Camera, Hand, HandParameters, Side

FloatArray = npt.NDArray[np.floating]

Stage = Literal["keypoints", "hand module", "tailored"]
"""Stages that are compared with the labels: the network's keypoints, its mesh, and the mesh after the tailor."""

_CLOSE = 0.1  # of the hand size
_ON_SHEET = 40


@dataclasses.dataclass(frozen=True)
class PredictionMeasurement:
    """Errors of predictions on a folder of labelled photographs."""

    photos: Path
    """Folder with labels.json (docs/datasets.md)."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors); the embedded ones if not given."""
    split: str = "val"
    """Split of the photographs."""
    every: int = 1
    """Measure every n-th photograph only."""
    margins: tuple[float, ...] = (2.0, 1.2)
    """Sides of the given boxes as multiples of the labelled hand size."""
    passes: int = 2
    """Number of forward passes per image, as `handtailor predict --passes`."""
    sheet: Path | None = None
    """Image file for a contact sheet of 40 overlays of the first margin, evenly chosen."""
    json: Path | None = None
    """JSON file for the errors."""


@dataclasses.dataclass(frozen=True)
class StageErrors:
    """Errors of one stage on one collection of photographs, for boxes of one margin."""

    source: str
    margin: float
    stage: Stage
    photographs: int
    close_percent: float
    """Share of keypoints within 10 % of the hand size of their label."""
    median_percent: float
    """Median keypoint error, percent of the hand size."""
    distance_median_mm: float | None
    """Median over photographs of the mean distance to the labels' 3D joints after similarity alignment; None for the
    stage "keypoints"."""


def measure_predictions(config: PredictionMeasurement) -> list[StageErrors]:
    """Predict every photograph of the split and write the files that are asked for.

    Raises:
        InputError: if the folder, its labels, the weights or an output cannot be used.
    """
    check_range("every", config.every, 1)
    labels = read_labels(config.photos, config.split)[:: config.every]
    for path in (config.sheet, config.json):
        if path is not None:
            results.prepare_folder(path.parent)
    tailor = HandTailor.load(config.weights, network="hourglass")
    measured: list[StageErrors] = []
    for margin in config.margins:
        hands = _predict(tailor, labels, margin, config)
        measured += _stage_errors(labels, hands, margin, tailor.hand)
        if config.sheet is not None and margin == config.margins[0]:
            _write_sheet(config.sheet, labels, hands)
    if config.json is not None:
        rows = [dataclasses.asdict(row) for row in measured]
        results.write_json(config.json, {"split": config.split, "rows": rows})
    return measured


def _predict(
    tailor: HandTailor, labels: Sequence[PhotoLabel], margin: float, config: PredictionMeasurement
) -> list[Hand | None]:
    hands: list[Hand | None] = []
    for label in tqdm(labels, desc=f"{config.split}, box {margin:g}x", unit="photograph"):
        box = square_around(label.keypoints_2d, margin)
        with warnings.catch_warnings():
            # The boxes are loose on purpose, and some photographs are hardly larger than the hand.
            warnings.simplefilter("ignore", InputWarning)
            hand = tailor.one(read_image(label.path), None, box, label.side, passes=config.passes)
        hands.append(hand)
    return hands


def _stage_errors(
    labels: Sequence[PhotoLabel], predicted: Sequence[Hand | None], margin: float, hand: HandModel
) -> list[StageErrors]:
    convention = load_convention("mediapipe")
    models: dict[Side, HandModel] = {"right": hand, "left": hand.mirrored()}
    errors: dict[Stage, list[FloatArray]] = {stage: [] for stage in get_args(Stage)}
    distances: dict[Stage, list[float]] = {stage: [] for stage in get_args(Stage)}
    for label, result in zip(labels, predicted, strict=True):
        if result is None:
            for stage in errors:
                errors[stage].append(np.full(NUM_KEYPOINTS, np.inf))
            for stage in ("hand module", "tailored"):
                distances[stage].append(np.nan)
            continue
        size = hand_size(label.keypoints_2d)
        errors["keypoints"].append(np.linalg.norm(result.detected_keypoints_2d - label.keypoints_2d, axis=-1) / size)
        assert result.proposed is not None
        stages: tuple[tuple[Stage, Hand], ...] = (("hand module", result.proposed), ("tailored", result))
        for stage, fit in stages:
            pixels, points = map(np.asarray, _landmarks(models[fit.side], fit.parameters, convention, fit.camera))
            errors[stage].append(np.linalg.norm(pixels - label.keypoints_2d, axis=-1) / size)
            if label.joints_3d is not None:
                aligned = similarity(points, label.joints_3d)
                distances[stage].append(1e3 * float(np.linalg.norm(aligned - label.joints_3d, axis=-1).mean()))
            else:
                distances[stage].append(np.nan)
    rows = []
    for source in sorted({label.source for label in labels}):
        chosen = np.asarray([label.source == source for label in labels])
        for stage in errors:
            error = np.stack(errors[stage])[chosen]
            distance = np.nanmedian(np.asarray(distances[stage])[chosen]) if distances[stage] else np.nan
            rows.append(
                StageErrors(
                    source=source,
                    margin=margin,
                    stage=stage,
                    photographs=int(chosen.sum()),
                    close_percent=100.0 * float((error < _CLOSE).mean()),
                    median_percent=100.0 * float(np.median(error)),
                    distance_median_mm=None if np.isnan(distance) else float(distance),
                )
            )
    return rows


@jax.jit
def _landmarks(
    hand: HandModel, parameters: HandParameters, convention: LandmarkConvention, camera: Camera
) -> tuple[Float[Array, "21 2"], Float[Array, "21 3"]]:
    points = camera_keypoints(hand, parameters, convention)
    return project(camera, points), points


def _write_sheet(path: Path, labels: Sequence[PhotoLabel], hands: Sequence[Hand | None]) -> None:
    shown = np.unique(np.linspace(0, len(labels) - 1, _ON_SHEET).round().astype(int)).tolist()
    drawn = [[] if (hand := hands[i]) is None else [hand] for i in shown]
    overlays = [predict.overlay(drawn[k], read_image(labels[i].path)) for k, i in enumerate(tqdm(shown, desc="sheet"))]
    captions = [
        f"{labels[i].name}  {f'confidence {drawn[k][0].confidence.mean():.2f}' if drawn[k] else 'missed'}"
        for k, i in enumerate(shown)
    ]
    results.write_image(path, predict.sheet(overlays, captions))


def markdown(measured: Sequence[StageErrors]) -> str:
    """Return the errors as a table."""
    header = ("source", "photographs", "box", "stage", "keypoints within 10 %", "median error", "distance to 3D labels")
    body = [
        (
            row.source,
            str(row.photographs),
            f"{row.margin:g}x",
            row.stage,
            f"{row.close_percent:.1f} %",
            f"{row.median_percent:.1f} %",
            "" if row.distance_median_mm is None else f"{row.distance_median_mm:.1f} mm",
        )
        for row in measured
    ]
    return "\n".join(markdown_table(header, body))


@command("measure_predictions")
def main() -> None:
    """Parse the command line, measure and print."""
    config = tyro.cli(PredictionMeasurement, description=__doc__)
    keep_compiled_programs()
    measured = measure_predictions(config)
    print(f"split {config.split}; errors in percent of the labelled hand size\n\n{markdown(measured)}")


if __name__ == "__main__":
    main()
