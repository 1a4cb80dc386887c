"""Photographs with labelled keypoints, through the whole pipeline: what `handtailor predict` makes of them.

The labels mark landmarks of another convention; meshes are compared in that convention, keypoints of the network as
they are. 3D distances are to another network's estimate and say how plausible a hand is, not how right.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.evaluation.photographs import Photograph, read_photographs
from handtailor_jax.geometry.boxes import Box
from handtailor_jax.geometry.cameras import project
from handtailor_jax.images import read_picture
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.pipeline import HandTailor
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.types import Camera, Hand, HandParameters, Side

STAGES = ("keypoints", "hand module", "tailored")
"""What is compared with the labels: the network's keypoints, its mesh, and the mesh after the tailor."""

_CLOSE = 0.1  # of the hand's size
_ON_SHEET = 40


@dataclasses.dataclass(frozen=True)
class PredictionBenchmark:
    """Errors of predictions on a folder of labelled photographs."""

    photos: Path
    """Folder with labels.json: path -> side, split, size, keypoints_2d, joints_3d."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors); the embedded ones if not given."""
    split: str = "val"
    """Which split of the photographs."""
    margins: tuple[float, ...] = (2.0, 1.2)
    """Sides of the boxes that are given, over the longer side of the labelled keypoints' bounding box."""
    looks: int = 2
    """How often the network looks, as with `handtailor predict --looks`."""
    batch: int = 32
    """Photographs in one call of the network."""
    sheet: Path | None = None
    """Also write a contact sheet of 40 overlays, evenly chosen, first margin, to this picture file."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclasses.dataclass(frozen=True)
class PredictionRow:
    """Figures of one source of photographs, one margin and one stage."""

    source: str
    margin: float
    stage: str
    photographs: int
    close_percent: float
    """Share of keypoints within 10 % of the hand's size of their label."""
    median_percent: float
    """Median error of keypoints, in percent of the hand's size."""
    distance_median_mm: float | None
    """Median over photographs of the mean distance to the labels' 3D joints after similarity alignment."""


@dataclasses.dataclass(frozen=True)
class PredictionReport:
    """The rows and how they came about."""

    rows: tuple[PredictionRow, ...]
    config: PredictionBenchmark

    def __str__(self) -> str:
        """A markdown table."""
        lines = [
            f"split {self.config.split}; error in percent of the hand's size, the longer side of its labelled box",
            "",
            "| source | photographs | box | stage | keypoints within 10 % | median error | distance to 3D labels |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            distance = "" if row.distance_median_mm is None else f"{row.distance_median_mm:.1f} mm"
            lines.append(
                f"| {row.source} | {row.photographs} | {row.margin:g}x | {row.stage} | {row.close_percent:.1f} % "
                f"| {row.median_percent:.1f} % | {distance} |"
            )
        return "\n".join(lines)


def run(config: PredictionBenchmark) -> PredictionReport:
    """Predicts every photograph of the split from boxes around its labels; writes the files that are asked for.

    Raises:
        InputError: if the folder, its labels, the weights or an output cannot be used.
    """
    from handtailor_jax import results

    photographs = read_photographs(config.photos, config.split)
    for path in (config.sheet, config.json):
        if path is not None:
            results.prepare_folder(path.parent)
    tailor = HandTailor.load(config.weights)
    rows: list[PredictionRow] = []
    sheet: list[Hand] = []
    with tqdm(total=len(photographs) * len(config.margins), desc=config.split, unit="photograph") as progress:
        for margin in config.margins:
            found: list[Hand] = []
            for start in range(0, len(photographs), config.batch):
                chunk = photographs[start : start + config.batch]
                filled = [*chunk, *[chunk[-1]] * (config.batch - len(chunk))]
                found += tailor.batch(
                    [read_picture(_image(photograph)) for photograph in filled],
                    boxes=[labelled_box(photograph, margin) for photograph in filled],
                    sides=[photograph.detection.side for photograph in filled],
                    looks=config.looks,
                )[: len(chunk)]
                progress.update(len(chunk))
            rows += _rows(photographs, found, margin, tailor.hand)
            sheet = sheet or found
    report = PredictionReport(tuple(rows), config)
    if config.json is not None:
        text = {"split": config.split, "rows": [dataclasses.asdict(row) for row in rows]}
        results.write_atomically(config.json, lambda temporary: temporary.write_text(json.dumps(text, indent=1) + "\n"))
    if config.sheet is not None:
        chosen = np.linspace(0, len(photographs) - 1, _ON_SHEET).round().astype(int).tolist()
        pictures = [
            results.overlay(hand, read_picture(_image(photograph)))
            for photograph, hand in ((photographs[i], sheet[i]) for i in tqdm(chosen, desc="sheet", unit="overlay"))
        ]
        captions = [f"{photographs[i].name}  confidence {sheet[i].confidence.mean():.2f}" for i in chosen]
        results.write_image(config.sheet, results.sheet(pictures, captions))
    return report


def labelled_box(photograph: Photograph, margin: float) -> Box:
    """The square around the labelled keypoints, `margin` times as wide as their bounding box is long."""
    low, high = photograph.detection.keypoints_2d.min(axis=0), photograph.detection.keypoints_2d.max(axis=0)
    side = margin * float((high - low).max())
    u, v = 0.5 * (low + high) + 0.5
    return float(u) - 0.5 * side, float(v) - 0.5 * side, side, side


def _image(photograph: Photograph) -> Path:
    assert photograph.detection.image is not None
    return photograph.detection.image


def _rows(
    photographs: Sequence[Photograph], found: Sequence[Hand], margin: float, hand: HandModel
) -> list[PredictionRow]:
    convention = load_convention("mediapipe")
    hands: dict[Side, HandModel] = {"right": hand, "left": hand.mirrored()}
    errors: dict[str, list[npt.NDArray[np.floating]]] = {stage: [] for stage in STAGES}
    distances: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for photograph, result in zip(photographs, found, strict=True):
        labels = photograph.detection.keypoints_2d
        size = np.ptp(labels, axis=0).max()
        errors["keypoints"].append(np.linalg.norm(result.detected_keypoints_2d - labels, axis=-1) / size)
        for stage, fit in (("hand module", result.proposed), ("tailored", result)):
            pixels, points = _landmarks(hands[fit.side], fit, convention)
            errors[stage].append(np.linalg.norm(pixels - labels, axis=-1) / size)
            truth = photograph.joints_3d
            distances[stage].append(1e3 * float(np.linalg.norm(similarity(points, truth) - truth, axis=-1).mean()))
    sources = np.asarray([photograph.name.split("/")[0] for photograph in photographs])
    rows = []
    for source in sorted(set(sources.tolist())):
        of_source = sources == source
        for stage in STAGES:
            error = np.stack(errors[stage])[of_source]
            distance = np.asarray(distances[stage])[of_source] if distances[stage] else None
            rows.append(
                PredictionRow(
                    source=source,
                    margin=margin,
                    stage=stage,
                    photographs=int(of_source.sum()),
                    close_percent=100.0 * float((error < _CLOSE).mean()),
                    median_percent=100.0 * float(np.median(error)),
                    distance_median_mm=None if distance is None else float(np.median(distance)),
                )
            )
    return rows


def _landmarks(
    hand: HandModel, fit: Hand, convention: LandmarkConvention
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    pixels, points = _project(hand, fit.parameters, convention, fit.camera)
    return np.asarray(pixels), np.asarray(points)


@jax.jit
def _project(
    hand: HandModel, parameters: HandParameters, convention: LandmarkConvention, camera: Camera
) -> tuple[Float[Array, "21 2"], Float[Array, "21 3"]]:
    points = camera_keypoints(hand, parameters, convention)
    return project(camera, points), jnp.asarray(points)
