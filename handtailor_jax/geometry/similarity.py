"""The similarity (scale, rotation, shift) that aligns two sets of points."""

import dataclasses
from typing import Any

from jaxtyping import Float

from handtailor_jax.geometry import exact
from handtailor_jax.types import Numbers

PointSet = Float[Numbers, "*batch n 3"]

POINT = 1e-8
"""Spread about the centroid below which a set is treated as a single point, because its direction and size are rounding
noise: ten nanometres for points in metres."""


@dataclasses.dataclass(frozen=True)
class Similarity:
    """A map of points, ``scale * points @ rotation + shift``, for each of the leading axes."""

    scale: Float[Numbers, "*batch 1 1"]
    rotation: Float[Numbers, "*batch 3 3"]  # its determinant is -1 where it mirrors
    shift: Float[Numbers, "*batch 1 3"]

    @exact
    def apply(self, points: Float[Numbers, "*batch m 3"]) -> Float[Numbers, "*batch m 3"]:
        """Apply the map to any number of points."""
        return self.scale * points @ self.rotation + self.shift


@exact
def best_similarity(
    points: PointSet, target: PointSet, weights: Float[Numbers, "*batch n"] | None = None, *, mirror: bool = False
) -> Similarity:
    """Return the similarity that brings `points` closest to `target` in the weighted least-squares sense (Procrustes).

    Points that all coincide are mapped to the centroid of the target. With `mirror`, reflections are allowed, as in
    `scipy.linalg.orthogonal_procrustes`. Both sets are NumPy or JAX arrays, in any unit. If `weights` is None, all
    points have the same weight.
    """
    xp = points.__array_namespace__()
    w = xp.ones_like(points[..., :1]) if weights is None else weights[..., None]
    w = w / xp.sum(w, axis=-2, keepdims=True)
    center_p, center_t = xp.sum(w * points, axis=-2, keepdims=True), xp.sum(w * target, axis=-2, keepdims=True)
    p, t = points - center_p, target - center_t
    u, singular, vt = xp.linalg.svd(xp.swapaxes(w * p, -1, -2) @ t)
    sign = xp.ones_like(singular)
    if not mirror:
        sign = xp.concatenate([sign[..., :-1], xp.sign(xp.linalg.det(u @ vt))[..., None]], axis=-1)
    rotation = (u * sign[..., None, :]) @ vt
    strength = xp.sum(singular * sign, axis=-1)[..., None, None]
    scale = ratio(strength, xp.sum(w * xp.square(p), axis=(-1, -2), keepdims=True), POINT**2)
    return Similarity(scale, rotation, center_t - scale * center_p @ rotation)


def ratio(numerator: Any, denominator: Any, least: float) -> Any:
    """Return the quotient, or 0 where the denominator is below `least`."""
    xp, large = numerator.__array_namespace__(), denominator >= least
    return xp.where(large, numerator, 0.0) / xp.where(large, denominator, 1.0)
