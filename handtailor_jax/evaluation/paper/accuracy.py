"""Accuracy: Tables 1 and 2, with and without intrinsics and behind other methods, and both hand modules side by side.

If the ground truth has meshes or poses, the paper's FreiHAND table is computed with Table 1.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.detections import detection
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.alignment import Alignment
from handtailor_jax.evaluation.freihand import freihand_score
from handtailor_jax.evaluation.metrics import GRID_5_20, GRID_20_50, auc, auc_gain
from handtailor_jax.evaluation.paper.sources import HAND_MODULE
from handtailor_jax.evaluation.paper.subjects import (
    Hands,
    Predictions,
    Subject,
    meshes,
    placed,
    propose,
    rows,
    tailored,
)
from handtailor_jax.evaluation.report import Cell, Claim, Findings, Table, published
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.boxes import overlap
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.types import Hand

ALIGNMENTS: tuple[Alignment, ...] = ("lit", "root", "pa")
"""Alignments that Table 1 lists side by side, because they separate errors of scale from errors of pose."""

_FREIHAND_HANDS = 500  # largest number if the true meshes must be posed first: F-scores are slow
_SAME = 0.5  # intersection over union of the boxes around the keypoints of a hand and of its prediction


def table1(subject: Subject) -> Findings:
    """Return accuracy by alignment, FreiHAND's scores if true meshes or poses are known, and checked statements."""
    body: list[tuple[Cell, ...]] = []
    for name, hands in (
        ("hand module", subject.with_k.before),
        ("HandTailor", subject.with_k.after),
        ("hand module, no K", subject.without_k.before),
        ("HandTailor, no K", subject.without_k.after),
    ):
        for alignment in ALIGNMENTS:
            errors = subject.errors_mm(hands, alignment)
            scores = (float(np.mean(errors <= 20.0)), auc(errors, GRID_20_50), auc(errors, GRID_5_20))
            body.append(("ours: " + name, alignment, float(errors.mean()), *scores))
    for method, rhd_pck_20, rhd_auc, stb_auc in published("table1"):
        if subject.truth.dataset.startswith("stb"):
            body.append((f"published, STB: {method}", "lit", math.nan, math.nan, stb_auc, math.nan))
        else:
            body.append((f"published, RHD: {method}", "lit", math.nan, rhd_pck_20, rhd_auc, math.nan))
    note = (
        "Without intrinsics, the rotation of a hand is relative to its line of sight, not to the axis of the camera; "
        "only `pa` removes this difference."
    )
    header = ("method", "alignment", "EPE mm", "PCK@20", "AUC 20-50", "AUC 5-20")
    table = Table("table1", "Table 1: accuracy", header, tuple(body), subject.notes(note))
    has_meshes = subject.truth.vertices is not None or subject.truth.parameters is not None
    return Findings((table, _freihand_table(subject)) if has_meshes else (table,), _claims(subject))


def _claims(subject: Subject) -> tuple[Claim, ...]:
    before, after = subject.errors_mm(subject.with_k.before), subject.errors_mm(subject.with_k.after)
    gain = auc_gain(before, after, GRID_5_20, seed=subject.seed)
    lit, without_k_lit, pa, without_k_pa = (
        auc(subject.errors_mm(hands, alignment), GRID_20_50)
        for alignment in ("lit", "pa")
        for hands in (subject.with_k.after, subject.without_k.after)
    )
    return (
        Claim(
            "the tailor raises AUC 5-20 (paper: by close to 0.1)",
            f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            gain.low > 0.0,
        ),
        Claim(
            "without intrinsics the result is nearly as good (paper: AUC 20-50 .932 against .958)",
            f"AUC 20-50 {without_k_lit:.3f} against {lit:.3f}; by `pa` {without_k_pa:.3f} and {pa:.3f}",
            without_k_lit > lit - 0.03,
        ),
    )


def _freihand_table(subject: Subject) -> Table:
    count = len(subject.truth) if subject.truth.vertices is not None else min(len(subject.truth), _FREIHAND_HANDS)
    some = np.arange(count)
    truth = rows(subject.truth, some)
    true_vertices = truth.vertices  # of any hand model
    if true_vertices is None:
        assert truth.parameters is not None
        true_vertices = meshes(subject.hand, truth.parameters)
    body: list[tuple[Cell, ...]] = []
    for name, hands in (
        ("hand module", subject.with_k.before),
        ("HandTailor", subject.with_k.after),
        ("HandTailor, no K", subject.without_k.after),
    ):
        assert hands.parameters is not None
        vertices = meshes(subject.hand, rows(hands.parameters, some))
        score = freihand_score(subject.scored_joints(hands)[some], vertices, truth.joints, true_vertices)
        # Vertices are compared one by one only if both meshes are of the same hand model.
        vertex_error = math.nan if score.vertices is None else score.vertices.aligned_mean_mm
        body.append(("ours: " + name, score.joints.aligned_mean_mm, vertex_error, *score.f_aligned))
    for method, joint_error, vertex_error in published("freihand"):
        body.append((f"published, FreiHAND: {method}", joint_error, vertex_error, math.nan, math.nan))
    header = ("method", "PA-MPJPE mm", "PA-MPVPE mm", "F@5 mm", "F@15 mm")
    note = f"{count} hands; joints and vertices aligned separately, reflections allowed, as FreiHAND scores."
    return Table("freihand", "FreiHAND's scores", header, tuple(body), subject.notes(note))


def table2(subject: Subject, others: Sequence[Predictions]) -> Findings:
    """Return AUC 5-20 before and after the tailor, for the subject's method and for others on the same hands."""
    compared = [(subject.predictions.method, subject.with_k.before, subject.with_k.after)]
    compared += [(other.method, *_plugged_in(subject, other)) for other in others]
    body: list[tuple[Cell, ...]] = []
    for method, before, after in compared:
        before_mm, after_mm = subject.errors_mm(before), subject.errors_mm(after)
        gain = auc_gain(before_mm, after_mm, GRID_5_20, seed=subject.seed)
        scores = (gain.before, gain.after, gain.difference, f"[{gain.low:+.3f}, {gain.high:+.3f}]")
        body.append(("ours: " + method, *scores, float(before_mm.mean()), float(after_mm.mean())))
    for method, auc_before, auc_after in published("table2"):
        scores = (auc_before, auc_after, auc_after - auc_before, "")
        body.append((f"published, RHD: {method}", *scores, math.nan, math.nan))
    header = ("method", "AUC 5-20 before", "after", "gain", "95 % interval", "EPE before, mm", "after")
    notes = subject.notes("Methods that give joints only are fitted to their keypoints with those joints as a hint.")
    return Findings((Table("table2", "Table 2: the tailor as a plug-in", header, tuple(body), notes),))


def _plugged_in(subject: Subject, other: Predictions) -> tuple[Hands, Hands]:
    """Return the hands of another method before and after the tailor."""
    if other.pose is not None:
        proposals = propose(subject.truth, other)
        return placed(subject.hand, proposals), tailored(subject.hand, proposals, subject.config)
    assert other.joints is not None
    fitted = []
    for i in tqdm(range(len(subject.truth)), desc=f"fitting {other.method}", unit="hand"):
        found = detection(other.keypoints_2d[i], joints_3d=other.joints[i], confidence=other.confidence[i])
        fitted.append(fit_detection(found, hand=subject.hand).joints)
    return Hands(other.joints), Hands(np.stack(fitted))


def networks(subject: Subject) -> Findings:
    """Compare the landmark network with the subject's hourglass, before and after the tailor, on the hands it finds.

    The landmark network gets the whole image and its intrinsics; the hourglass is given the box around the true hand.

    Raises:
        InputError: If the predictions are not a hand module's, there are no images, or no hand is found.
    """
    if subject.predictions.method != HAND_MODULE:
        raise InputError(f"networks compares hand modules, not the {subject.predictions.method}: give --weights")
    index, found = _found(subject)
    if not found:
        raise InputError(f"{subject.truth.dataset}: the landmark network finds none of {len(subject.truth)} hands")
    right = np.asarray([not hand.left for hand in found])
    proposed = [hand.proposed for hand in found if hand.proposed is not None]
    some = subject.at(index)
    body: list[tuple[Cell, ...]] = []
    claims = []
    for name, before, after in (
        ("landmark network, finds the hand", _hands(proposed), _hands(found)),
        ("hourglass, given the box", some.with_k.before, some.with_k.after),
    ):
        errors = [some.errors_mm(hands) for hands in (before, after)]
        aligned = [some.errors_mm(hands, "pa") for hands in (before, after)]
        for stage, lit, pa in zip(("hand module", "HandTailor"), errors, aligned, strict=True):
            scores = (auc(lit, GRID_20_50), auc(lit, GRID_5_20), float(lit.mean()), float(pa.mean()))
            body.append((f"{name}: {stage}", *scores, float(pa[right].mean())))
        gain = auc_gain(errors[0], errors[1], GRID_5_20, seed=subject.seed)
        value = f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        claims.append(Claim(f"{name}: the tailor raises AUC 5-20 (paper: by close to 0.1)", value, gain.low > 0.0))
    header = ("method", "AUC 20-50", "AUC 5-20", "EPE mm", "PA mm", "PA mm, right side")
    notes = subject.notes(
        f"The landmark network finds {len(found)} of {len(subject.truth)} hands, {right.sum()} of them with the right "
        "side; both methods are scored on these."
    )
    return Findings((Table("networks", "Both hand modules", header, tuple(body), notes),), tuple(claims))


def _found(subject: Subject) -> tuple[np.ndarray, list[Hand]]:
    """Return the numbers of the hands that the landmark network finds, and the predictions."""
    tailor, truth = HandTailor.load(), subject.truth
    index, found = [], []
    for i in tqdm(range(len(truth)), desc="landmark network", unit="image"):
        hands = tailor(truth.image(i), truth.intrinsics[i])
        overlaps = [overlap(_box(truth.keypoints_2d[i]), _box(hand.detected_keypoints_2d)) for hand in hands]
        if overlaps and max(overlaps) > _SAME:
            index.append(i)
            found.append(hands[int(np.argmax(overlaps))])
    return np.asarray(index, np.int64), found


def _box(keypoints_2d: np.ndarray) -> np.ndarray:
    return np.concatenate([keypoints_2d.min(axis=0), np.ptp(keypoints_2d, axis=0)])


def _hands(found: list[Hand]) -> Hands:
    parameters = jax.tree.map(lambda *leaves: np.stack(leaves), *[hand.parameters for hand in found])
    return Hands(np.stack([hand.joints for hand in found]).astype(np.float32), parameters)
