"""Fit labelled photographs from their keypoints and print the errors as a markdown table.

python tools/measure_photos.py --photos FOLDER [--hint] [--sheet sheet.png] [--json errors.json]

The labels' 3D joints are another network's estimate, so distances to them measure plausibility, not accuracy.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from handtailor_jax import predict, results
from handtailor_jax.commands import command, keep_compiled_programs
from handtailor_jax.data.readers.photos import PhotoLabel, read_labels
from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.evaluation.report import markdown_table
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.images import read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.skeleton import FINGERS, KEYPOINTS
from handtailor_jax.types import Hand

FloatArray = npt.NDArray[np.floating]

_MCPS = np.asarray([KEYPOINTS.index(f"{finger}_mcp") for finger in FINGERS])
_TIPS = np.asarray([KEYPOINTS.index(f"{finger}_tip") for finger in FINGERS])
_DEEP = 0.01  # metres between MCP and tip above which the sign of a finger's depth is meaningful
_BEYOND = 5.0  # degrees
_ON_SHEET = 40


@dataclasses.dataclass(frozen=True)
class FitMeasurement:
    """Errors of fits to a folder of labelled photographs."""

    photos: Path
    """Folder with labels.json (docs/datasets.md)."""
    split: str = "val"
    """Split of the photographs."""
    hint: bool = False
    """Also give the labels' 3D joints to the fit, as a depth hint."""
    sheet: Path | None = None
    """Image file for a contact sheet of 40 overlays, evenly chosen."""
    json: Path | None = None
    """JSON file for the errors."""


@dataclasses.dataclass(frozen=True)
class FitErrors:
    """Errors of one fit."""

    reprojection_percent: float
    """Mean distance of reprojected from given keypoints, percent of the hand size."""
    excess_degrees: FloatArray
    """(15,) angle by which each joint exceeds its limits, the largest of its three."""
    distance_mm: float
    """Mean distance to the label's 3D joints after similarity alignment."""
    flipped: npt.NDArray[np.bool_]
    """(5,) fingers that point toward the camera where the label points away, or the other way round."""


@dataclasses.dataclass(frozen=True)
class CollectionErrors:
    """Errors of one collection of photographs."""

    source: str
    photographs: int
    reprojection_median_percent: float
    reprojection_p97_percent: float
    reprojection_max_percent: float
    beyond_limits_percent: float
    """Share of joints more than 5 degrees beyond their limits."""
    excess_max_degrees: float
    """Largest angle by which any joint exceeds its limits."""
    distance_median_mm: float
    distance_p90_mm: float
    flipped_percent: float
    """Share of photographs with at least one depth-flipped finger."""
    photographs_per_second: float
    """Rate of the fits alone, compiled, one after the other."""


def measure_fits(config: FitMeasurement, hand: HandModel | None = None) -> list[CollectionErrors]:
    """Fit every photograph of the split and write the files that are asked for.

    Raises:
        InputError: if the folder, its labels or an output cannot be used.
    """
    labels = read_joint_labels(config.photos, config.split)
    for path in (config.sheet, config.json):
        if path is not None:
            results.prepare_folder(path.parent)
    hand = embedded_hand() if hand is None else hand
    detections = [label_detection(label, hint=config.hint) for label in labels]
    fit_detection(detections[0], hand=hand)  # compiles
    fits: list[Hand] = []
    seconds: list[float] = []
    for found in tqdm(detections, desc=config.split, unit="photograph"):
        started = time.perf_counter()
        fits.append(fit_detection(found, hand=hand))
        seconds.append(time.perf_counter() - started)
    errors = fit_errors(labels, fits, hand)
    measured = []
    for source in sorted({label.source for label in labels}):
        chosen = [i for i, label in enumerate(labels) if label.source == source]
        measured.append(_summary(source, [errors[i] for i in chosen], sum(seconds[i] for i in chosen)))
    if config.json is not None:
        rows = [dataclasses.asdict(row) for row in measured]
        results.write_json(config.json, {"split": config.split, "hint": config.hint, "rows": rows})
    if config.sheet is not None:
        _write_sheet(config.sheet, labels, fits, errors)
    return measured


def read_joint_labels(folder: Path, split: str) -> list[PhotoLabel]:
    """Read the labels of a split, all of which must have 3D joints.

    Raises:
        InputError: if there are none, or a label is invalid or lacks 3D joints.
    """
    labels = read_labels(folder, split)
    for label in labels:
        if label.joints_3d is None:
            raise InputError(f"{folder / 'labels.json'}: {label.name} lacks joints_3d: add them to every label")
    return labels


def label_detection(label: PhotoLabel, *, hint: bool) -> Detection:
    """Return the input of a fit; with `hint`, including the 3D joints."""
    return detection(
        label.keypoints_2d,
        side=label.side,
        convention=label.convention,
        joints_3d=label.joints_3d if hint else None,
        id=Path(label.name).stem,
        image=label.path,
    )


def fit_errors(labels: Sequence[PhotoLabel], fits: Sequence[Hand], hand: HandModel) -> list[FitErrors]:
    """Return the errors of fits to photographs, in the same order.

    Args:
        labels: Labels of the photographs, with 3D joints.
        fits: Fitted hands.
        hand: Hand model whose joint limits apply.
    """
    # A mirrored left hand has the angles of a right one.
    poses = np.stack([np.asarray(fit.parameters.pose) for fit in fits])
    other_side = np.asarray([fit.side != hand.side for fit in fits])[:, None, None]
    poses = np.where(other_side, mirror_pose(poses), poses)
    angles = np.asarray(jax.jit(jax.vmap(hand.anatomy.coordinates))(jnp.asarray(poses[:, 1:])))
    lower, upper = np.asarray(hand.anatomy.lower), np.asarray(hand.anatomy.upper)
    excess = np.degrees(np.maximum(np.maximum(angles - upper, lower - angles), 0.0)).max(axis=-1)
    errors = []
    for label, fit, beyond in zip(labels, fits, excess, strict=True):
        truth = label.joints_3d
        assert truth is not None
        depth, true_depth = (points[_TIPS, 2] - points[_MCPS, 2] for points in (fit.landmarks, truth))
        reprojection = np.linalg.norm(fit.keypoints_2d - label.keypoints_2d, axis=-1).mean()
        errors.append(
            FitErrors(
                reprojection_percent=100.0 * float(reprojection / hand_size(label.keypoints_2d)),
                excess_degrees=beyond,
                distance_mm=1e3 * float(np.linalg.norm(similarity(fit.landmarks, truth) - truth, axis=-1).mean()),
                flipped=(depth * true_depth < 0.0) & (np.abs(depth) > _DEEP) & (np.abs(true_depth) > _DEEP),
            )
        )
    return errors


def _summary(source: str, errors: Sequence[FitErrors], seconds: float) -> CollectionErrors:
    reprojection = np.asarray([error.reprojection_percent for error in errors])
    excess = np.stack([error.excess_degrees for error in errors])
    distance = np.asarray([error.distance_mm for error in errors])
    flipped = np.stack([error.flipped for error in errors])
    return CollectionErrors(
        source=source,
        photographs=len(errors),
        reprojection_median_percent=float(np.median(reprojection)),
        reprojection_p97_percent=float(np.quantile(reprojection, 0.97)),
        reprojection_max_percent=float(reprojection.max()),
        beyond_limits_percent=100.0 * float((excess > _BEYOND).mean()),
        excess_max_degrees=float(excess.max()),
        distance_median_mm=float(np.median(distance)),
        distance_p90_mm=float(np.quantile(distance, 0.9)),
        flipped_percent=100.0 * float(flipped.any(axis=1).mean()),
        photographs_per_second=len(errors) / seconds,
    )


def _write_sheet(path: Path, labels: Sequence[PhotoLabel], fits: Sequence[Hand], errors: Sequence[FitErrors]) -> None:
    overlays, captions = [], []
    for i in np.unique(np.linspace(0, len(fits) - 1, _ON_SHEET).round().astype(int)).tolist():
        error = errors[i]
        overlays.append(predict.overlay([fits[i]], read_image(labels[i].path)))
        flips = f"  {error.flipped.sum()} flipped" if error.flipped.any() else ""
        captions.append(f"{labels[i].name}  {error.reprojection_percent:.1f} %  {error.distance_mm:.0f} mm{flips}")
    results.write_image(path, predict.sheet(overlays, captions))


def markdown(measured: Sequence[CollectionErrors]) -> str:
    """Return the errors as a table."""
    header = (
        "source",
        "photographs",
        "reprojection median / 97 % / max",
        "joints > 5° beyond limits",
        "most",
        "distance to 3D labels median / 90 %",
        "photographs with flipped fingers",
        "photographs/s",
    )
    body = [
        (
            row.source,
            str(row.photographs),
            f"{row.reprojection_median_percent:.2f} / {row.reprojection_p97_percent:.2f} / "
            f"{row.reprojection_max_percent:.2f} %",
            f"{row.beyond_limits_percent:.2f} %",
            f"{row.excess_max_degrees:.1f}°",
            f"{row.distance_median_mm:.1f} / {row.distance_p90_mm:.1f} mm",
            f"{row.flipped_percent:.1f} %",
            f"{row.photographs_per_second:.0f}",
        )
        for row in measured
    ]
    return "\n".join(markdown_table(header, body))


@command("measure_photos")
def main() -> None:
    """Parse the command line, measure and print."""
    config = tyro.cli(FitMeasurement, description=__doc__)
    keep_compiled_programs()
    measured = measure_fits(config)
    known = "2D keypoints and 3D joints as a hint" if config.hint else "2D keypoints alone"
    print(f"{known}, split {config.split}\n\n{markdown(measured)}")


if __name__ == "__main__":
    main()
