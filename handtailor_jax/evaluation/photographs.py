"""Photographs with labelled keypoints, fitted through the public `fit`: how well hands nobody rendered are explained.

The labels' 3D joints are another network's estimate, so distances to them say how plausible a fit is, not how right.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.images import read_picture
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.skeleton import FINGERS, KEYPOINTS
from handtailor_jax.types import Hand

FloatArray = npt.NDArray[np.floating]

_MCPS = np.asarray([KEYPOINTS.index(f"{finger}_mcp") for finger in FINGERS])
_TIPS = np.asarray([KEYPOINTS.index(f"{finger}_tip") for finger in FINGERS])
_DEEP = 0.01  # metres between MCP and tip from which the sign of a finger's depth means something
_BEYOND = 5.0  # degrees
_ON_SHEET = 40


@dataclasses.dataclass(frozen=True)
class PhotographBenchmark:
    """Errors of fits to a folder of labelled photographs."""

    photos: Path
    """Folder with labels.json: path -> side, split, size, keypoints_2d, joints_3d."""
    split: str = "val"
    """Which split of the photographs."""
    hint: bool = False
    """Also give the labels' 3D joints to the fit; without, 2D keypoints are all it knows."""
    sheet: Path | None = None
    """Also write a contact sheet of 40 overlays, evenly chosen, to this picture file."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A labelled photograph: what is fitted and what the result is compared with."""

    name: str
    """Path in the labels; its first folder is the source."""
    detection: Detection
    joints_3d: FloatArray
    """(21, 3) estimated 3D joints, metres, camera axes, any origin."""


@dataclasses.dataclass(frozen=True)
class PhotographErrors:
    """How well one photograph was fitted."""

    reprojection_percent: float
    """Mean distance of reprojected from given keypoints, in percent of the longer side of their box."""
    excess_degrees: FloatArray
    """(15,) by how much each joint exceeds its limits, largest of its three angles."""
    distance_mm: float
    """Mean distance to the labels' 3D joints after similarity alignment."""
    flipped: npt.NDArray[np.bool_]
    """(5,) fingers that point toward the camera where the labels say away, or the other way round."""


@dataclasses.dataclass(frozen=True)
class PhotographRow:
    """Figures of one source of photographs."""

    source: str
    photographs: int
    reprojection_median_percent: float
    reprojection_p97_percent: float
    reprojection_max_percent: float
    beyond_limits_percent: float
    """Share of joints more than 5 degrees beyond their limits."""
    excess_max_degrees: float
    """The furthest that any joint is beyond its limits."""
    distance_median_mm: float
    distance_p90_mm: float
    flipped_percent: float
    """Share of photographs with at least one depth-flipped finger."""
    photographs_per_second: float
    """Fits alone, compiled, one after the other."""


@dataclasses.dataclass(frozen=True)
class PhotographReport:
    """The rows and how they came about."""

    rows: tuple[PhotographRow, ...]
    config: PhotographBenchmark

    def __str__(self) -> str:
        """A markdown table."""
        known = "2D keypoints and 3D joints as a hint" if self.config.hint else "2D keypoints alone"
        lines = [
            f"{known}, split {self.config.split}",
            "",
            "| source | photographs | reprojection median / 97 % / max | joints > 5° beyond limits | most "
            "| distance to 3D labels median / 90 % | photographs with flipped fingers | photographs/s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.source} | {row.photographs} | {row.reprojection_median_percent:.2f} / "
            f"{row.reprojection_p97_percent:.2f} / {row.reprojection_max_percent:.2f} % "
            f"| {row.beyond_limits_percent:.2f} % | {row.excess_max_degrees:.1f}° "
            f"| {row.distance_median_mm:.1f} / {row.distance_p90_mm:.1f} mm "
            f"| {row.flipped_percent:.1f} % | {row.photographs_per_second:.0f} |"
            for row in self.rows
        ]
        return "\n".join(lines)


def run(config: PhotographBenchmark, hand: HandModel | None = None) -> PhotographReport:
    """Fits every photograph of the split; writes the files that are asked for.

    Raises:
        InputError: if the folder, its labels or an output cannot be used.
    """
    from handtailor_jax import results

    photographs = read_photographs(config.photos, config.split, hint=config.hint)
    for path in (config.sheet, config.json):
        if path is not None:
            results.prepare_folder(path.parent)
    hand = embedded_hand() if hand is None else hand
    chosen = set(np.linspace(0, len(photographs) - 1, _ON_SHEET).round().astype(int).tolist())

    fit_detection(photographs[0].detection, hand=hand)  # compiles
    fits: list[Hand] = []
    seconds: list[float] = []
    for photograph in tqdm(photographs, desc=config.split, unit="photograph"):
        started = time.perf_counter()
        fits.append(fit_detection(photograph.detection, hand=hand))
        seconds.append(time.perf_counter() - started)
    errors = measure(photographs, fits, hand)
    sources = np.asarray([photograph.name.split("/")[0] for photograph in photographs])
    rows = tuple(
        _row(source, [errors[i] for i in chosen_rows], float(np.sum(np.asarray(seconds)[chosen_rows])))
        for source in sorted(set(sources.tolist()))
        for chosen_rows in [np.flatnonzero(sources == source).tolist()]
    )
    report = PhotographReport(rows, config)
    if config.json is not None:
        content = {"split": config.split, "hint": config.hint, "rows": [dataclasses.asdict(row) for row in rows]}
        results.write_json(config.json, content)
    if config.sheet is not None:
        pictures, captions = [], []
        for i in tqdm(sorted(chosen), desc="sheet", unit="overlay"):
            found = photographs[i].detection
            assert found.image is not None
            pictures.append(results.overlay(fits[i], read_picture(found.image)))
            flips = int(errors[i].flipped.sum())
            captions.append(
                f"{photographs[i].name}  {errors[i].reprojection_percent:.1f} %  {errors[i].distance_mm:.0f} mm"
                + (f"  {flips} flipped" if flips else "")
            )
        results.write_image(config.sheet, results.sheet(pictures, captions))
    return report


def read_photographs(folder: Path, split: str, *, hint: bool = False) -> list[Photograph]:
    """The photographs of a split, sorted by path.

    Args:
        folder: holds labels.json and the pictures.
        split: as in the labels.
        hint: put the 3D joints into the detections.

    Raises:
        InputError: if there are none, or a label is unusable.
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
        raise InputError(f"{labels}: has no photographs of split {split!r}: choose another --split")
    photographs = []
    for name, entry in entries:
        try:
            joints = entry["joints_3d"]
            found = detection(
                entry["keypoints_2d"],
                side=entry["side"],
                convention="mediapipe",
                joints_3d=joints,
                id=Path(name).stem,
                image=folder / name,
            )
        except KeyError as error:
            raise InputError(f"{labels}: {name} lacks {error}: get an undamaged copy") from None
        except InputError as error:
            raise InputError(f"{labels}: {name}: {error}") from None
        assert found.joints_3d is not None
        known = found if hint else dataclasses.replace(found, joints_3d=None)
        photographs.append(Photograph(name, known, found.joints_3d))
    return photographs


def measure(photographs: list[Photograph], fits: list[Hand], hand: HandModel | None = None) -> list[PhotographErrors]:
    """Errors of fits to photographs.

    Args:
        photographs: what was fitted.
        fits: the results, in the same order.
        hand: the hand model whose limits count; the embedded hand if None.
    """
    hand = embedded_hand() if hand is None else hand
    # A mirrored left hand has the angles of a right one.
    poses = np.stack(
        [
            np.asarray(fit.parameters.pose if fit.side == hand.side else mirror_pose(jnp.asarray(fit.parameters.pose)))
            for fit in fits
        ]
    )
    angles = np.asarray(jax.jit(jax.vmap(hand.anatomy.coordinates))(jnp.asarray(poses[:, 1:])))
    lower, upper = np.asarray(hand.anatomy.lower), np.asarray(hand.anatomy.upper)
    excess = np.degrees(np.maximum(np.maximum(angles - upper, lower - angles), 0.0)).max(axis=-1)
    found = []
    for photograph, fit, beyond in zip(photographs, fits, excess, strict=True):
        given, truth = photograph.detection.keypoints_2d, photograph.joints_3d
        size = np.ptp(given, axis=0).max()
        depth, label = (xyz[_TIPS, 2] - xyz[_MCPS, 2] for xyz in (fit.landmarks, truth))
        found.append(
            PhotographErrors(
                reprojection_percent=100.0 * float(np.linalg.norm(fit.keypoints_2d - given, axis=-1).mean() / size),
                excess_degrees=beyond,
                distance_mm=1e3 * float(np.linalg.norm(similarity(fit.landmarks, truth) - truth, axis=-1).mean()),
                flipped=(depth * label < 0.0) & (np.abs(depth) > _DEEP) & (np.abs(label) > _DEEP),
            )
        )
    return found


def _row(source: str, errors: list[PhotographErrors], seconds: float) -> PhotographRow:
    reprojection = np.asarray([error.reprojection_percent for error in errors])
    excess = np.stack([error.excess_degrees for error in errors])
    distance = np.asarray([error.distance_mm for error in errors])
    flipped = np.stack([error.flipped for error in errors])
    return PhotographRow(
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
