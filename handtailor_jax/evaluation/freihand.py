"""FreiHAND's scores, and the files in which predictions are handed to its server (datasets 1.3 and 2.3).

Joints are (n, 21, 3), vertices (n, m, 3), both in metres in the camera frame, as FreiHAND defines them: joints and tips
by its own regressor from the mesh. Of the test truth a method may know image, K and the bone 9-10.
"""

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.alignment import Similarity, best_similarity
from handtailor_jax.evaluation.metrics import (
    GRID_0_50_FREIHAND,
    MILLIMETRES,
    FloatArray,
    Points,
    auc,
    distances_mm,
    epe,
    paired_points,
)
from handtailor_jax.evaluation.protocols import pa
from handtailor_jax.results import write_atomically
from handtailor_jax.skeleton import NUM_KEYPOINTS

F_THRESHOLDS_MM = (5.0, 15.0)
"""The thresholds of the F-scores."""

_MEMBER = "pred.json"
"""What the file is called inside of an archive."""
_PAIRS = 1 << 18
"""Distances that the nearest neighbour search holds at a time, so that its memory does not grow with the meshes."""


@dataclasses.dataclass(frozen=True)
class PointScore:
    """Errors of corresponding points."""

    mean_mm: float
    auc: float
    """Over 0 to 50 mm, 100 thresholds."""
    aligned_mean_mm: float
    """PA-MPJPE of joints, PA-MPVPE of vertices. FreiHAND's server prints it in cm."""
    aligned_auc: float


@dataclasses.dataclass(frozen=True)
class FScore:
    """Mean over samples of the F-score of two point clouds, 1 at best."""

    at_5: float
    """At 5 mm."""
    at_15: float
    """At 15 mm."""


@dataclasses.dataclass(frozen=True)
class FreihandScore:
    """What FreiHAND's server reports, and one figure that it lacks."""

    samples: int
    joints: PointScore
    vertices: PointScore | None
    """None for a mesh whose vertices do not correspond to the truth's."""
    f: FScore
    """Unaligned."""
    f_aligned: FScore
    proper_pa_mpjpe_mm: float
    """PA-MPJPE without reflections. Where it is much larger than `joints.aligned_mean_mm`, hands are mirrored, which
    FreiHAND's own alignment does not notice."""

    def __str__(self) -> str:
        mesh = "no correspondence" if self.vertices is None else f"{self.vertices.aligned_mean_mm:.2f} mm"
        return (
            f"PA-MPJPE {self.joints.aligned_mean_mm:.2f} mm, PA-MPVPE {mesh}, "
            f"F@5 {self.f_aligned.at_5:.3f}, F@15 {self.f_aligned.at_15:.3f}, {self.samples} hands"
        )


def vertices_correspond(predicted: int, truth: int) -> bool:
    """Whether vertices are compared one by one and aligned by themselves, from the numbers of vertices.

    FreiHAND's truth has 778, so there this asks for MANO's mesh. Any other mesh takes the transform that the joints
    give, and has F-scores but no vertex error.
    """
    return predicted == truth


def align_freihand(predicted: Points, truth: Points) -> Similarity:
    """FreiHAND's alignment of points (n, k, 3) to the truth: Procrustes with scale, which *may mirror*.

    Equal to `scipy.linalg.orthogonal_procrustes` on sets that are centred and divided by their Frobenius norms. A
    prediction that is a single point (all zeros) goes to the truth's centroid.

    Raises:
        ValueError: on wrong shapes or values that are not finite.
    """
    predicted, truth = paired_points(predicted, truth)
    return best_similarity(predicted, truth, mirror=True)


def freihand_score(joints: Points, vertices: Points, true_joints: Points, true_vertices: Points) -> FreihandScore:
    """Scores predictions as FreiHAND does (datasets 2.3).

    One departure: meshes without correspondence take the joints' whole transform. FreiHAND's program leaves the
    division by the prediction's size out of it, which shrinks such meshes to a fraction of their size.

    Args:
        joints: (n, 21, 3) metres, camera frame.
        vertices: (n, m, 3) metres, camera frame.
        true_joints: (n, 21, 3) metres, camera frame.
        true_vertices: (n, v, 3) metres, camera frame; v is 778 in FreiHAND.

    Raises:
        ValueError: on wrong shapes or values that are not finite.
    """
    joints, true_joints = paired_points(joints, true_joints, joints=NUM_KEYPOINTS)
    vertices, true_vertices = _meshes(vertices, true_vertices, len(joints))
    by_joints = align_freihand(joints, true_joints)
    if vertices_correspond(vertices.shape[1], true_vertices.shape[1]):
        vertices_aligned = align_freihand(vertices, true_vertices).apply(vertices)
        vertex_score = _point_score(vertices, vertices_aligned, true_vertices)
    else:
        vertices_aligned = by_joints.apply(vertices)
        vertex_score = None
    return FreihandScore(
        samples=len(joints),
        joints=_point_score(joints, by_joints.apply(joints), true_joints),
        vertices=vertex_score,
        f=_mean_f(vertices, true_vertices),
        f_aligned=_mean_f(vertices_aligned, true_vertices),
        proper_pa_mpjpe_mm=epe(distances_mm(pa(joints, true_joints), true_joints)).mean_mm,
    )


def nearest_mm(points: Points, others: Points) -> tuple[FloatArray, FloatArray]:
    """Distance to the nearest point of the other cloud: (a,) for `points` (a, 3), and (b,) for `others` (b, 3).

    Metres in, millimetres out. Memory grows with a + b, not with a·b.
    """
    a, b = np.asarray(points, np.float64), np.asarray(others, np.float64)
    rows = max(1, _PAIRS // len(b))
    of_points = np.empty(len(a))
    of_others = np.full(len(b), np.inf)
    for start in range(0, len(a), rows):
        # Differences, not |a|² + |b|² - 2ab: that loses digits where points are close, which is what is asked here.
        squares = sum(np.square(a[start : start + rows, axis, None] - b[None, :, axis]) for axis in range(3))
        of_points[start : start + rows] = np.min(squares, axis=1)
        of_others = np.minimum(of_others, np.min(squares, axis=0))
    return MILLIMETRES * np.sqrt(of_points), MILLIMETRES * np.sqrt(of_others)


def f_scores(points: Points, truth: Points, thresholds_mm: tuple[float, ...] = F_THRESHOLDS_MM) -> FloatArray:
    """F-scores (thresholds,) of a cloud (a, 3) against another (b, 3), both in metres.

    The harmonic mean of two shares: of the points of each cloud whose nearest neighbour in the other one is closer than
    the threshold. Strictly closer, unlike PCK.

    Raises:
        ValueError: if a cloud is not (points, 3) or empty.
    """
    for cloud in (points, truth):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud):
            raise ValueError(f"a cloud must be (points, 3) with at least one point, not {cloud.shape}")
    to_truth, from_truth = nearest_mm(points, truth)
    limits = np.asarray(thresholds_mm)[:, None]
    precision, recall = (to_truth < limits).mean(axis=-1), (from_truth < limits).mean(axis=-1)
    total = precision + recall
    return 2.0 * precision * recall / np.where(total > 0.0, total, 1.0)


def write_predictions(path: Path, joints: Points, vertices: Points) -> None:
    """Writes predictions as FreiHAND's server wants them: ``[xyz_list, verts_list]`` as JSON.

    `path` ends in .json, or in .zip for an archive with the file pred.json in it, which is what is uploaded. The file
    appears when it is complete: a run that is cut off leaves an older one as it was.

    Args:
        path: The file; its folder must exist.
        joints: (n, 21, 3) metres, camera frame, in the order of FreiHAND's evaluation images.
        vertices: (n, m, 3) metres, camera frame.

    Raises:
        ValueError: on wrong shapes or values that are not finite.
        InputError: if the name has another ending, or the disk refuses.
    """
    _check_ending(path)
    joints, _ = paired_points(joints, joints, joints=NUM_KEYPOINTS)
    vertices, _ = _meshes(vertices, vertices, len(joints))
    write_atomically(path, lambda temporary: _write_file(temporary, joints, vertices))


def read_predictions(path: Path) -> tuple[FloatArray, FloatArray]:
    """Joints (n, 21, 3) and vertices (n, m, 3) in metres, camera frame, from a file that `write_predictions` wrote.

    Raises:
        InputError: if the file is missing, no such file or damaged.
    """
    _check_ending(path)
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_bytes())
        else:
            with zipfile.ZipFile(path) as archive:
                content = json.loads(archive.read(_MEMBER))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as predictions ({error}); write it with write_predictions") from error
    if not isinstance(content, list) or len(content) != 2:
        raise InputError(f"{path}: must hold two lists, of joints and of vertices")
    try:
        joints, vertices = (np.asarray(part, np.float64) for part in content)
        joints, _ = paired_points(joints, joints, joints=NUM_KEYPOINTS)
        vertices, _ = _meshes(vertices, vertices, len(joints))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: must hold n x 21 x 3 joints and n x m x 3 vertices ({error})") from error
    return joints, vertices


def _point_score(points: FloatArray, aligned: Points, truth: FloatArray) -> PointScore:
    before, after = distances_mm(points, truth), distances_mm(aligned, truth)
    return PointScore(
        mean_mm=epe(before).mean_mm,
        auc=auc(before, GRID_0_50_FREIHAND),
        aligned_mean_mm=epe(after).mean_mm,
        aligned_auc=auc(after, GRID_0_50_FREIHAND),
    )


def _mean_f(vertices: Points, truth: Points) -> FScore:
    at_5, at_15 = np.mean([f_scores(v, t) for v, t in zip(vertices, truth, strict=True)], axis=0)
    return FScore(float(at_5), float(at_15))


def _meshes(vertices: Points, true_vertices: Points, samples: int) -> tuple[FloatArray, FloatArray]:
    """Both as float64; unlike `paired_points` for any numbers of vertices."""
    predicted, truth = (paired_points(v, v)[0] for v in (vertices, true_vertices))
    if not len(predicted) == len(truth) == samples:
        raise ValueError(f"{samples} hands of joints, but {len(predicted)} meshes and {len(truth)} true meshes")
    return predicted, truth


def _check_ending(path: Path) -> None:
    if path.suffix not in (".json", ".zip"):
        raise InputError(f"{path}: predictions are .json or .zip files; give it one of these endings")


def _write_file(path: Path, joints: FloatArray, vertices: FloatArray) -> None:
    if path.suffix == ".json":
        with path.open("wb") as file:
            file.writelines(_json_pieces(joints, vertices))
        return
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(_MEMBER, "w", force_zip64=True) as member,
    ):
        member.writelines(_json_pieces(joints, vertices))


def _json_pieces(joints: FloatArray, vertices: FloatArray) -> Iterator[bytes]:
    """The file's content sample by sample: as one string FreiHAND's meshes are hundreds of megabytes."""
    for opening, points in ((b"[[", joints), (b",[", vertices)):
        for index, sample in enumerate(points):
            yield b"," if index else opening
            yield json.dumps(sample.tolist()).encode()
        yield b"]"
    yield b"]"
