"""Squares of an image to search for palms, and the choice among palms and hands that are found several times."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from handtailor_jax.geometry.boxes import Box, hand_size
from handtailor_jax.types import Region

Keypoints = npt.NDArray[np.float32]

_TILE_SIDES = (1.0, 2.0 / 3.0)
"""Sides of the tiles of a thorough pass, in shorter sides of the image."""

_MOST_TILES = 16
"""Tiles along the longer side of an image, at most; tiles of narrower images are larger."""

_SAME_REGION = 0.5
"""Regions that overlap more (intersection over union, as if not rotated) show the same hand."""

_SAME_HAND = 0.3
"""Hands whose mean keypoint distance is smaller, in sizes of the larger hand, are the same."""

_INSIDE_SIZE, _INSIDE_DISTANCE = 0.5, 0.2
"""A hand inside another hand's box is wrong if it is smaller than the first number and its centre is closer to a
keypoint of the other hand than the second; both are in sizes of the other hand."""


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


def merge_candidates(candidates: Sequence[Candidate], known: Sequence[Region] = ()) -> list[Candidate]:
    """Return the candidates by falling score without those whose region overlaps a better one's or a known one."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.score, reverse=True):
        others = [*known, *(other.region for other in kept)]
        if all(_overlap(candidate.region, other) <= _SAME_REGION for other in others):
            kept.append(candidate)
    return kept


def _overlap(a: Region, b: Region) -> float:
    """Intersection over union of two regions as if they were not rotated."""
    sides = np.asarray(a.side), np.asarray(b.side)
    gap = np.abs(np.asarray(a.center) - np.asarray(b.center))
    shared = np.clip((sides[0] + sides[1]) / 2.0 - gap, 0.0, min(sides)).prod()
    return float(shared / (sides[0] ** 2 + sides[1] ** 2 - shared))


def merge_hands(keypoints_2d: Sequence[Keypoints], presence: Sequence[float]) -> list[int]:
    """Choose hands: no doubles, and none that is a part of a larger one.

    Args:
        keypoints_2d: (21, 2) pixels for each hand.
        presence: Presence of each hand.

    Returns:
        Indices of the chosen hands, by falling presence.
    """
    order = sorted(range(len(presence)), key=lambda index: presence[index], reverse=True)
    kept: list[int] = []
    for i in order:
        a_part = any(_inside(keypoints_2d[i], keypoints_2d[other]) for other in order)
        if not a_part and not any(_same(keypoints_2d[i], keypoints_2d[other]) for other in kept):
            kept.append(i)
    return kept


def _same(a: Keypoints, b: Keypoints) -> bool:
    return float(np.linalg.norm(a - b, axis=-1).mean()) < _SAME_HAND * max(float(hand_size(a)), float(hand_size(b)))


def _inside(part: Keypoints, hand: Keypoints) -> bool:
    """Whether a hand is a part of another one: knuckles or a finger taken for a small hand."""
    size = float(hand_size(hand))
    center = (part.min(axis=0) + part.max(axis=0)) / 2.0
    if hand_size(part) >= _INSIDE_SIZE * size or (center < hand.min(axis=0)).any() or (center > hand.max(axis=0)).any():
        return False
    return float(np.linalg.norm(hand - center, axis=-1).min()) < _INSIDE_DISTANCE * size
