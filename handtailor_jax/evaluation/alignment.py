"""Alignments of predicted points to true points: similarity (Procrustes), scale and shift, one fixed point.

Points are (..., n, 3) in any one unit. Every function takes NumPy and JAX arrays, which must not be mixed.
"""

import dataclasses
from typing import Any

from jaxtyping import Float

from handtailor_jax.skeleton import ROOT

Numbers = Any
"""A NumPy or JAX array."""

_POINT = 1e-8
"""Spread (Frobenius norm about the centroid) below which a set is taken for a single point, because its direction and
size are rounding noise. Ten nanometres for points in metres."""


@dataclasses.dataclass(frozen=True)
class Similarity:
    """A map of points, ``scale * points @ rotation + shift``, for each of the leading axes."""

    scale: Float[Numbers, "*batch 1 1"]
    rotation: Float[Numbers, "*batch 3 3"]
    """Rotation, applied from the right; its determinant is -1 where it mirrors."""
    shift: Float[Numbers, "*batch 1 3"]

    def apply(self, points: Float[Numbers, "*batch m 3"]) -> Float[Numbers, "*batch m 3"]:
        """Move points; their number need not be that of the points that were aligned."""
        return self.scale * points @ self.rotation + self.shift


def best_similarity(
    predicted: Float[Numbers, "*batch n 3"], truth: Float[Numbers, "*batch n 3"], *, mirror: bool = False
) -> Similarity:
    """Return the similarity that brings `predicted` closest to `truth` in the least-squares sense (Procrustes).

    A prediction that is a single point goes to the centroid of the truth.

    Args:
        predicted: Points to move.
        truth: Target positions.
        mirror: Whether reflections are allowed, as in `scipy.linalg.orthogonal_procrustes`.
    """
    xp = predicted.__array_namespace__()
    center_p, center_t = xp.mean(predicted, axis=-2, keepdims=True), xp.mean(truth, axis=-2, keepdims=True)
    p, t = predicted - center_p, truth - center_t
    u, singular, vt = xp.linalg.svd(xp.swapaxes(p, -1, -2) @ t)
    sign = xp.ones_like(singular)
    if not mirror:
        sign = xp.concatenate([sign[..., :-1], xp.sign(xp.linalg.det(u @ vt))[..., None]], axis=-1)
    rotation = (u * sign[..., None, :]) @ vt
    strength = xp.sum(singular * sign, axis=-1)[..., None, None]
    scale = _ratio(strength, xp.sum(xp.square(p), axis=(-1, -2), keepdims=True), _POINT**2)
    return Similarity(scale, rotation, center_t - scale * center_p @ rotation)


def similarity(
    predicted: Float[Numbers, "*batch n 3"], truth: Float[Numbers, "*batch n 3"]
) -> Float[Numbers, "*batch n 3"]:
    """Move, scale and rotate (never mirror) `predicted` so that it lies closest to `truth`."""
    return best_similarity(predicted, truth).apply(predicted)


def scale_and_shift(
    predicted: Float[Numbers, "*batch n 3"], truth: Float[Numbers, "*batch n 3"]
) -> Float[Numbers, "*batch n 3"]:
    """Move and scale (never rotate) `predicted` so that it lies closest to `truth`."""
    xp = predicted.__array_namespace__()
    center = xp.mean(truth, axis=-2, keepdims=True)
    p, t = predicted - xp.mean(predicted, axis=-2, keepdims=True), truth - center
    total = xp.sum(p * t, axis=(-1, -2), keepdims=True)
    return _ratio(total, xp.sum(xp.square(p), axis=(-1, -2), keepdims=True), _POINT**2) * p + center


def anchor(
    predicted: Float[Numbers, "*batch n 3"],
    truth: Float[Numbers, "*batch n 3"],
    point: int = ROOT,
    bone: tuple[int, int] | None = None,
) -> Float[Numbers, "*batch n 3"]:
    """Move `predicted` so that one point coincides with the truth's, and scale it about that point by a true bone.

    A prediction whose bone has no length collapses into the point.

    Args:
        predicted: Points to move.
        truth: Target positions.
        point: Index of the point that is made to coincide.
        bone: Indices of the two points whose distance is made the true one; None keeps the
            scale.
    """
    about = predicted - predicted[..., point, None, :]
    if bone is not None:
        about = _ratio(_length(truth, bone), _length(predicted, bone), _POINT) * about
    return about + truth[..., point, None, :]


def _length(points: Any, bone: tuple[int, int]) -> Any:
    """Return the length of a bone, (..., 1, 1)."""
    xp = points.__array_namespace__()
    start, end = (points[..., joint, None, :] for joint in bone)
    return xp.linalg.norm(end - start, axis=-1, keepdims=True)


def _ratio(numerator: Any, denominator: Any, least: float) -> Any:
    """Return the quotient, 0 where the denominator is below `least`."""
    xp = numerator.__array_namespace__()
    large = denominator >= least
    return xp.where(large, numerator, 0.0) / xp.where(large, denominator, 1.0)
