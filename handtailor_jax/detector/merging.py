"""Which squares of an image to search, and which of the palms and hands found there are the same."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from handtailor_jax.detector.regions import Region
from handtailor_jax.images import Box

if TYPE_CHECKING:
    from handtailor_jax.detector.detector import DetectedHand

_TILE_SIDES = (1.0, 2.0 / 3.0)
"""Sides of the tiles of a thorough pass, in shorter sides of the image."""

_MOST_TILES = 16
"""Tiles along the longer side of an image, at most; tiles of narrower images are larger."""

_SAME_REGION = 0.5
"""Regions that overlap more (intersection over union, as if not rotated) show the same hand."""

_SAME_HAND = 0.3
"""Hands whose keypoints are closer, in hand sizes, are the same."""

_INSIDE_SIZE, _INSIDE_DISTANCE = 0.5, 0.2
"""A hand inside of another one's box is wrong if it is smaller and closer to a keypoint than this, in sizes of that."""


class Candidate(NamedTuple):
    """A region that may show a hand."""

    score: float
    """Score of the palm."""
    region: Region
    """Region around the whole hand, pixels of the image."""
    presence: float
    """Presence above which the landmark network confirms the hand."""


def tiles(width: int, height: int) -> list[Box]:
    """List the half-overlapping squares (x, y, w, h) of a thorough pass; none equals the whole image."""
    boxes: list[Box] = []
    longer, shorter = max(width, height), min(width, height)
    for share in _TILE_SIDES:
        side = max(share * shorter, 2.0 * longer / _MOST_TILES)
        if side >= longer:
            continue
        columns, rows = (_starts(length, side) for length in (width, height))
        boxes += [(x, y, side, side) for y in rows for x in columns]
    return boxes


def _starts(length: int, side: float) -> list[float]:
    """Where tiles begin along an axis: from one end to the other, overlapping by half or more."""
    if side >= length:
        return [(length - side) / 2.0]
    count = math.ceil((length - side) / (side / 2.0)) + 1
    return [float(start) for start in np.linspace(0.0, length - side, count)]


def merge_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates by falling score without those whose region overlaps a better one's."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.score, reverse=True):
        if all(_overlap(candidate.region, other.region) <= _SAME_REGION for other in kept):
            kept.append(candidate)
    return kept


def _overlap(a: Region, b: Region) -> float:
    """Intersection over union of two regions as if they were not rotated."""
    sides = np.asarray(a.side), np.asarray(b.side)
    gap = np.abs(np.asarray(a.center) - np.asarray(b.center))
    shared = np.clip((sides[0] + sides[1]) / 2.0 - gap, 0.0, min(sides)).prod()
    return float(shared / (sides[0] ** 2 + sides[1] ** 2 - shared))


def merge_hands(hands: "Sequence[DetectedHand]") -> "list[DetectedHand]":
    """Return the hands by falling presence without doubles, and without hands that are parts of larger ones."""
    kept: list[DetectedHand] = []
    for hand in sorted(hands, key=lambda hand: hand.presence, reverse=True):
        if not any(_same(hand.keypoints_2d, other.keypoints_2d) for other in kept):
            kept.append(hand)
    return [hand for hand in kept if not any(_inside(hand.keypoints_2d, other.keypoints_2d) for other in kept)]


def _size(keypoints: npt.NDArray[np.float32]) -> float:
    return float(np.ptp(keypoints, axis=0).max())


def _same(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    return float(np.linalg.norm(a - b, axis=-1).mean()) < _SAME_HAND * max(_size(a), _size(b))


def _inside(part: npt.NDArray[np.float32], hand: npt.NDArray[np.float32]) -> bool:
    """Whether a hand is a part of another one: knuckles or a finger taken for a small hand."""
    size = _size(hand)
    center = (part.min(axis=0) + part.max(axis=0)) / 2.0
    if _size(part) >= _INSIDE_SIZE * size or (center < hand.min(axis=0)).any() or (center > hand.max(axis=0)).any():
        return False
    return float(np.linalg.norm(hand - center, axis=-1).min()) < _INSIDE_DISTANCE * size
