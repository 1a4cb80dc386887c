"""Alignments of predicted point sets to the truth, before distances are taken.

Everything is batched over leading axes: points are (..., n, 3), in any one unit.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.floating]

_POINT = 1e-8
"""A set whose spread (Frobenius norm about its centroid) is below this is a single point: its direction and size are
rounding noise. In metres ten nanometres, far below any hand."""


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Maps of points, ``scale * points @ rotation + shift``, one for each of the leading axes."""

    scale: Points
    """(..., 1, 1)"""
    rotation: Points
    """(..., 3, 3), to be applied from the right; its determinant is -1 where it mirrors."""
    shift: Points
    """(..., 1, 3)"""

    def apply(self, points: Points) -> Points:
        """`points` (..., m, 3) moved; m is any number of points."""
        return self.scale * points @ self.rotation + self.shift


def best_similarity(predicted: Points, truth: Points, *, mirror: bool = False) -> Similarity:
    """The similarities that bring `predicted` (..., n, 3) closest to `truth` (..., n, 3) in the least squares sense.

    A prediction that is a single point goes to the truth's centroid.

    Args:
        predicted: Points to move.
        truth: Where they should be.
        mirror: Whether rotations may be reflections (`scipy.linalg.orthogonal_procrustes` allows them).
    """
    center_p, center_t = predicted.mean(axis=-2, keepdims=True), truth.mean(axis=-2, keepdims=True)
    p, t = predicted - center_p, truth - center_t
    u, singular, vt = np.linalg.svd(np.swapaxes(p, -1, -2) @ t)
    sign = np.ones_like(singular)
    if not mirror:
        sign[..., -1] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[..., None, :]) @ vt
    strength = (singular * sign).sum(axis=-1, keepdims=True)[..., None]
    scale = _ratio(strength, np.square(p).sum(axis=(-1, -2), keepdims=True), _POINT**2)
    return Similarity(scale, rotation, center_t - scale * center_p @ rotation)


def similarity(predicted: Points, truth: Points) -> Points:
    """`predicted` (..., n, 3) moved, scaled and rotated (never mirrored) to lie closest to `truth`: Procrustes."""
    return best_similarity(predicted, truth).apply(predicted)


def scale_and_shift(predicted: Points, truth: Points) -> Points:
    """`predicted` (..., n, 3) moved and scaled, not rotated, to lie closest to `truth` (..., n, 3)."""
    center = truth.mean(axis=-2, keepdims=True)
    p, t = predicted - predicted.mean(axis=-2, keepdims=True), truth - center
    total = (p * t).sum(axis=(-1, -2), keepdims=True)
    return _ratio(total, np.square(p).sum(axis=(-1, -2), keepdims=True), _POINT**2) * p + center


def anchor(predicted: Points, truth: Points, point: int, bone: tuple[int, int] | None = None) -> Points:
    """`predicted` (..., n, 3) moved so that one point coincides with the truth's, and scaled about it by a true bone.

    A prediction whose bone has no length collapses into the point.

    Args:
        predicted: Points to move.
        truth: Where they should be.
        point: The point that is made to coincide.
        bone: The two points whose distance is made the true one; None leaves the scale as it is.
    """
    about = predicted - predicted[..., point, None, :]
    if bone is not None:
        about = _ratio(_length(truth, bone), _length(predicted, bone), _POINT) * about
    return about + truth[..., point, None, :]


def _length(points: Points, bone: tuple[int, int]) -> Points:
    """Length of a bone, (..., 1, 1)."""
    start, end = (points[..., joint, None, :] for joint in bone)
    return np.linalg.norm(end - start, axis=-1, keepdims=True)


def _ratio(numerator: Points, denominator: Points, least: float) -> Points:
    """The quotient, 0 where the denominator is below `least`."""
    large = denominator >= least
    return np.where(large, numerator, 0.0) / np.where(large, denominator, 1.0)
