"""Table 2: the tailor as a plug-in behind other methods."""

import math
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from handtailor_jax.detections import detection
from handtailor_jax.evaluation.metrics import GRID_5_20, auc_gain
from handtailor_jax.evaluation.paper.subjects import Hands, Predictions, Subject, placed, propose, tailored
from handtailor_jax.evaluation.report import Cell, Findings, Table
from handtailor_jax.fit import fit_detection

PUBLISHED = (
    ("HandTailor, hand module", 0.561, 0.658),
    ("Yang (BiHand)", 0.568, 0.601),
    ("Boukhayma", 0.274, 0.341),
    ("Zhou", 0.314, 0.356),
)
"""Method and AUC 5-20 on RHD before and after the tailor, as the paper prints them."""


def table2(subject: Subject, others: Sequence[Predictions]) -> Findings:
    """Return AUC 5-20 before and after the tailor, for the subject's method and for others on the same hands."""
    compared = [(subject.predictions.method, subject.with_k.before, subject.with_k.after)]
    compared += [(other.method, *_plugged_in(subject, other)) for other in others]
    body: list[tuple[Cell, ...]] = []
    for method, before, after in compared:
        before_mm, after_mm = subject.errors_mm(before), subject.errors_mm(after)
        gain = auc_gain(before_mm, after_mm, GRID_5_20, seed=subject.seed)
        interval = f"[{gain.low:+.3f}, {gain.high:+.3f}]"
        scores = (gain.before, gain.after, gain.difference, interval)
        body.append(("ours: " + method, *scores, float(before_mm.mean()), float(after_mm.mean())))
    for method, auc_before, auc_after in PUBLISHED:
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
