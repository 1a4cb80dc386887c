"""FreiHAND's joints, its scores, and the file of predictions for its server (docs/protocols.md).

Joints are (n, 21, 3) and vertices (n, m, 3), both in metres in the camera frame. Arrays of wrong shape or with values
that are not finite raise a ValueError.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from handtailor_jax.evaluation import metrics
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.evaluation.metrics import FloatArray, Points, as_points, distances_mm, mean_error, paired_points
from handtailor_jax.geometry.similarity import Similarity, best_similarity
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.results import write_atomically
from handtailor_jax.skeleton import KEYPOINTS_FROM_MANO, NUM_KEYPOINTS

FREIHAND_TIPS = (744, 320, 443, 555, 672)
"""MANO vertices that FreiHAND uses as fingertips, thumb to little finger."""


class PointScore(NamedTuple):
    """Errors of corresponding points."""

    mean_mm: float
    auc: float
    """AUC over 0 to 50 mm, 100 thresholds."""
    aligned_mean_mm: float
    """PA-MPJPE of joints or PA-MPVPE of vertices. FreiHAND's server prints it in centimetres."""
    aligned_auc: float


class FScore(NamedTuple):
    """Mean over hands of the F-score of two point clouds, between 0 and 1, at 5 mm and at 15 mm."""

    at_5: float
    at_15: float


class FreihandScore(NamedTuple):
    """Scores that FreiHAND's server reports, and a check against mirrored hands."""

    joints: PointScore
    vertices: PointScore | None
    """None if the predicted and the true mesh have different numbers of vertices."""
    f: FScore
    """F-scores without alignment."""
    f_aligned: FScore
    proper_pa_mpjpe_mm: float
    """PA-MPJPE without reflections. It is much larger than `joints.aligned_mean_mm` if hands are mirrored;
    FreiHAND's own alignment does not detect that."""


def freihand_joints(hand: HandModel, vertices: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return FreiHAND's joints (n, 21, 3), regressed from posed meshes (n, 778, 3) of MANO's right hand in any frame.

    Raises:
        ValueError: For any other mesh, because FreiHAND's joints are not defined on it.
    """
    if vertices.shape[1] != MANO_VERTICES:
        raise ValueError(f"the mesh has {vertices.shape[1]} vertices: FreiHAND's joints need MANO's {MANO_VERTICES}")
    joints = np.einsum("jv,nvi->nji", np.asarray(hand.joint_regressor), vertices)
    both = np.concatenate([joints, vertices[:, FREIHAND_TIPS]], axis=1)
    return both[:, KEYPOINTS_FROM_MANO].astype(np.float32)


def align_freihand(predicted: Points, truth: Points) -> Similarity:
    """Return FreiHAND's alignment of points (n, k, 3): Procrustes with scale, *reflections allowed*.

    It equals `scipy.linalg.orthogonal_procrustes` on sets that are centred and divided by their Frobenius norms. A
    prediction that is a single point, such as all zeros, moves to the centroid of the ground truth.
    """
    return best_similarity(*paired_points(predicted, truth), mirror=True)


def freihand_score(joints: Points, vertices: Points, true_joints: Points, true_vertices: Points) -> FreihandScore:
    """Score predictions as FreiHAND's eval.py does, with one difference for meshes other than MANO's.

    A mesh with another number of vertices than the ground truth is aligned by the transform of the joints. FreiHAND's
    program omits its division by the size of the prediction, which shrinks such meshes to a fraction of their size.
    """
    joints, true_joints = paired_points(joints, true_joints, joints=NUM_KEYPOINTS)
    vertices, true_vertices = as_points("vertices", vertices), as_points("true_vertices", true_vertices)
    by_joints, vertex_score = align_freihand(joints, true_joints), None
    if vertices.shape == true_vertices.shape:
        vertices_aligned = align_freihand(vertices, true_vertices).apply(vertices)
        vertex_score = _point_score(vertices, vertices_aligned, true_vertices)
    else:
        vertices_aligned = by_joints.apply(vertices)
    return FreihandScore(
        joints=_point_score(joints, by_joints.apply(joints), true_joints),
        vertices=vertex_score,
        f=_mean_f(vertices, true_vertices),
        f_aligned=_mean_f(vertices_aligned, true_vertices),
        proper_pa_mpjpe_mm=mean_error(distances_mm(similarity(joints, true_joints), true_joints)),
    )


def _point_score(points: FloatArray, aligned: FloatArray, truth: FloatArray) -> PointScore:
    before, after = distances_mm(points, truth), distances_mm(aligned, truth)
    areas = [metrics.auc(errors, metrics.GRID_0_50_FREIHAND) for errors in (before, after)]
    return PointScore(mean_error(before), areas[0], mean_error(after), areas[1])


def _mean_f(vertices: FloatArray, truth: FloatArray) -> FScore:
    at_5, at_15 = np.mean([f_scores(v, t) for v, t in zip(vertices, truth, strict=True)], axis=0)
    return FScore(float(at_5), float(at_15))


def f_scores(points: Points, truth: Points, thresholds_mm: tuple[float, ...] = (5.0, 15.0)) -> FloatArray:
    """Return the F-scores (thresholds,) of a cloud (a, 3) against a true cloud (b, 3), both in metres.

    The F-score is the harmonic mean of two shares: the points of each cloud whose nearest neighbour in the other cloud
    is closer than the threshold. A distance equal to the threshold does not count, unlike in PCK.
    """
    to_truth, _ = cKDTree(truth).query(points)
    from_truth, _ = cKDTree(points).query(truth)
    limits = np.asarray(thresholds_mm)[:, None] / metrics.MILLIMETRES
    precision, recall = (to_truth < limits).mean(axis=-1), (from_truth < limits).mean(axis=-1)
    total = precision + recall
    return 2.0 * precision * recall / np.where(total > 0.0, total, 1.0)


def write_predictions(path: Path, joints: Points, vertices: Points) -> None:
    """Write joints and vertices as pred.json for FreiHAND's server; the file appears once it is complete.

    Raises:
        ValueError: If the shapes are wrong or the numbers of hands differ.
        InputError: If the file cannot be written.
    """
    joints, vertices = paired_points(joints, joints, joints=NUM_KEYPOINTS)[0], as_points("vertices", vertices)
    if len(vertices) != len(joints):
        raise ValueError(f"there are {len(joints)} hands of joints but {len(vertices)} meshes: give one for each hand")
    # Hand by hand, because all numbers as Python objects would take several hundred megabytes.
    lists = ("[" + ",".join(json.dumps(hand.tolist()) for hand in hands) + "]" for hands in (joints, vertices))
    content = f"[{','.join(lists)}]"
    write_atomically(path, lambda temporary: temporary.write_text(content, "utf-8"))
