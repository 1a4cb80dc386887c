"""From the palm detector's output to palms: anchors, decoding, weighted suppression.

Boxes are (x, y, w, h) with the centre (x, y), in fractions of the detector's input image: 0 is its left or upper edge,
1 its right or lower edge.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.detector.palm_detector import PalmDetectorConfig
from handtailor_jax.types import Numbers, pytree

MAX_CANDIDATES = 192
"""Anchors that suppression considers. A single palm raises about three above the threshold."""

MAX_PALMS = 48
"""Palms that one image can have."""

PALM_WRIST, PALM_MIDDLE_MCP = 0, 2
"""The palm's keypoints from which its rotation is computed (`Palms.keypoints` lists all seven)."""

_SAME_PALM = 0.3
"""Boxes that overlap more (intersection over union) belong to one palm."""

_EMPTY = np.asarray([[0.5, 0.5, 1.0, 1.0, 0.5, 1.0, *[0.5, 0.0] * 6]])
"""Values of an entry without a palm: box, wrist at the bottom, other keypoints at the top."""


@pytree
class Palms:
    """Palms, or candidates for palms."""

    score: Float[Numbers, "*batch palms"]
    """Probability of a palm, 0 to 1."""
    box: Float[Numbers, "*batch palms 4"]
    """Box around the palm, without fingers: centre, width and height."""
    keypoints: Float[Numbers, "*batch palms 7 2"]
    """Keypoints (x, y): wrist, index, middle, ring and little MCP, thumb CMC, thumb MCP."""


def anchor_centers(config: PalmDetectorConfig) -> Float[np.ndarray, "anchors 2"]:
    """List the anchors' centres (x, y) in fractions of the input image: the fine level, then the coarse one."""
    levels = []
    for cell, anchors in zip((8, 16), reversed(config.level_anchors), strict=True):
        cells = config.image_size // cell
        y, x = np.divmod(np.arange(cells * cells), cells)
        levels.append(np.repeat((np.stack([x, y], axis=-1) + 0.5) / cells, anchors, axis=0))
    return np.concatenate(levels).astype(np.float32)


def decode(
    logits: Float[Array, "*batch anchors"], boxes: Float[Array, "*batch anchors 18"], config: PalmDetectorConfig
) -> Palms:
    """Turn the detector's output into one candidate an anchor.

    Args:
        logits: of the score.
        boxes: box (x, y, w, h) and seven keypoints (x, y), pixels of the input; positions are relative to the anchor.
        config: of the detector.
    """
    centers = jnp.asarray(anchor_centers(config), boxes.dtype)
    points = boxes.reshape(*boxes.shape[:-1], 9, 2) / config.image_size  # centre, size, keypoints
    anchors = jnp.broadcast_to(centers[:, None], points.shape)
    size = points[..., 1, :]
    points = points + anchors
    return Palms(
        score=jax.nn.sigmoid(jnp.clip(logits, -100.0, 100.0)),
        box=jnp.concatenate([points[..., 0, :], size], axis=-1),
        keypoints=points[..., 2:, :],
    )


def suppress(candidates: Palms, threshold: Float[Array, ""] | float) -> Palms:
    """Join candidates that overlap: the weighted suppression of BlazeFace (Bazarevsky et al., 2019).

    The best candidate and all that overlap it become one palm: the mean, weighted with the scores. That repeats until
    none is left. Candidates are limited to `MAX_CANDIDATES` and palms to `MAX_PALMS`, so that the shapes are fixed.

    Args:
        candidates: of one image, without batch axes.
        threshold: score from which a candidate counts.

    Returns:
        `MAX_PALMS` palms by falling score, each with its best candidate's score. Empty entries have score 0 and are an
        upright palm that fills the image, so that their regions are valid.
    """
    best, order = jax.lax.top_k(candidates.score, min(MAX_CANDIDATES, candidates.score.shape[0]))
    box, keypoints = candidates.box[order], candidates.keypoints[order]
    values = jnp.concatenate([box, keypoints.reshape(-1, 14)], axis=-1)
    same = intersection_over_union(box, box) > _SAME_PALM

    def take_best(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, scores, palms = state  # weights: the scores of the candidates that are left, 0 for the others
        top = jnp.argmax(weights)
        score = weights[top]
        members = jnp.where(same[top], weights, 0.0)
        # Double where: the division has a finite gradient for a row without candidates.
        total = jnp.where(score > 0.0, jnp.sum(members), 1.0)
        left = jnp.where(same[top], 0.0, weights).at[top].set(0.0)
        return left, scores.at[i].set(score), palms.at[i].set(members @ values / total)

    start = (
        jnp.where(best >= threshold, best, 0.0),
        jnp.zeros(MAX_PALMS, box.dtype),
        jnp.zeros((MAX_PALMS, 18), box.dtype),
    )
    _, scores, palms = jax.lax.fori_loop(0, MAX_PALMS, take_best, start)
    palms = jnp.where((scores > 0.0)[:, None], palms, jnp.asarray(_EMPTY, palms.dtype))
    return Palms(scores, palms[:, :4], palms[:, 4:].reshape(-1, 7, 2))


def intersection_over_union(a: Float[Array, "m 4"], b: Float[Array, "n 4"]) -> Float[Array, "m n"]:
    """Overlap of every box of `a` with every box of `b`, (x, y, w, h) with the centre (x, y); 0 for empty boxes."""
    lower = jnp.maximum(a[:, None, :2] - a[:, None, 2:] / 2.0, b[None, :, :2] - b[None, :, 2:] / 2.0)
    upper = jnp.minimum(a[:, None, :2] + a[:, None, 2:] / 2.0, b[None, :, :2] + b[None, :, 2:] / 2.0)
    shared = jnp.prod(jnp.maximum(upper - lower, 0.0), axis=-1)
    area_a, area_b = jnp.prod(a[:, 2:], axis=-1), jnp.prod(b[:, 2:], axis=-1)
    union = area_a[:, None] + area_b[None, :] - shared
    return jnp.where(shared > 0.0, shared / jnp.where(shared > 0.0, union, 1.0), 0.0)
