"""Both hand modules side by side: the landmark network, which finds the hands, and an hourglass with given boxes."""

import numpy as np
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.metrics import GRID_5_20, GRID_20_50, auc, auc_gain
from handtailor_jax.evaluation.paper.sources import HAND_MODULE
from handtailor_jax.evaluation.paper.subjects import Hands, Subject
from handtailor_jax.evaluation.report import Cell, Claim, Findings, Table
from handtailor_jax.geometry.boxes import overlap
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.types import Hand, HandParameters

_SAME = 0.5  # intersection over union of the boxes around the keypoints of a hand and of its prediction


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
    fields = [
        np.stack([getattr(hand.parameters, name) for hand in found])
        for name in ("pose", "betas", "scale", "translation")
    ]
    return Hands(np.stack([hand.joints for hand in found]).astype(np.float32), HandParameters(*fields))
