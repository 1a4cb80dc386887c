"""Upright squares of an image: tiles to search for palms, and squares for an hourglass without a landmark network.

Such an hourglass always outputs a hand. A hand is accepted if its keypoints are confident and plausible. A hand that is
followed through a video is searched in one square.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.geometry.boxes import centered_square, hand_size, square_around
from handtailor_jax.types import Box

FloatArray = npt.NDArray[np.floating[Any]]

# Sides of the tiles of a thorough search, in shorter sides of the image.
_TILE_SIDES = (1.0, 2.0 / 3.0)
# Limit of the number of overlapping squares along the longer side of an image; in narrow images squares are larger.
_MOST_TILES = 16
# Sides of the hourglass's squares, in shorter sides of the image.
_SCAN_SIDES = (1.0, 0.5)
# Side of the square of a further forward pass, in hand sizes: a little better than 1.3 and 1.6 on `train` photographs.
_CLOSER = 1.45
# Side of the square around a hand that is followed, in hand sizes, and the previous square's weight, against jitter.
_FOLLOW_SIDE, _SMOOTHING = 2.0, 0.3
# Least hand size in pixels, hand size as a share of the square's side, and share of keypoints inside the image, of a
# plausible hand.
_MIN_SIZE, _MIN_SHARE, _MIN_INSIDE = 12.0, 0.1, 0.5

ACQUIRE, KEEP = 0.5, 0.3
"""Least mean confidence of a hand that is newly found, and of a hand that is followed."""


def tiles(width: int, height: int) -> list[Box]:
    """List the squares of a thorough search; none equals the whole image."""
    sides = dict.fromkeys(_sides(width, height, _TILE_SIDES))
    return [box for side in sides if side < max(width, height) for box in _cover(width, height, side)]


def scan_squares(width: int, height: int) -> list[Box]:
    """List the squares in which the hourglass searches after the whole image, largest first."""
    return [box for side in dict.fromkeys(_sides(width, height, _SCAN_SIDES)) for box in _cover(width, height, side)]


def _sides(width: int, height: int, shares: tuple[float, ...]) -> list[float]:
    """Return the sides of squares in pixels from their shares of the shorter side of the image."""
    return [max(share * min(width, height), 2.0 * max(width, height) / _MOST_TILES) for share in shares]


def _cover(width: int, height: int, side: float) -> list[Box]:
    """List squares that cover the image row by row and overlap by half or more; centred where they are larger."""

    def starts(length: int) -> list[float]:
        if side >= length:
            return [(length - side) / 2.0]
        count = math.ceil((length - side) / (side / 2.0)) + 1
        return [float(start) for start in np.linspace(0.0, length - side, count)]

    return [(x, y, side, side) for y in starts(height) for x in starts(width)]


def first_square(width: int, height: int) -> Box:
    """Return the square around the whole image, in which the hourglass searches first."""
    return centered_square(np.asarray([0.5 * (width - 1), 0.5 * (height - 1)]), float(max(width, height)))


def closer_square(square: Box, keypoints_2d: FloatArray, confidence: FloatArray) -> Box:
    """Return the square of a further forward pass: around the keypoints, or the same one if they are not plausible."""
    points = np.asarray(keypoints_2d, np.float64)
    if not confidence.mean() >= KEEP or not hand_size(points) >= _MIN_SHARE * square[2]:
        return square
    return square_around(points, _CLOSER)


def next_square(square: Box, keypoints_2d: FloatArray) -> Box:
    """Return the square in which the hand of a square is expected in the next frame of a video."""
    new = square_around(np.asarray(keypoints_2d, np.float64), _FOLLOW_SIDE)
    side = math.exp((1.0 - _SMOOTHING) * math.log(new[2]) + _SMOOTHING * math.log(square[2]))
    x, y = (
        (1.0 - _SMOOTHING) * (n + 0.5 * new[2]) + _SMOOTHING * (o + 0.5 * square[2]) - 0.5 * side
        for n, o in zip(new[:2], square[:2], strict=True)
    )
    return (x, y, side, side)


def hand_score(keypoints_2d: FloatArray, confidence: FloatArray, side: float, width: int, height: int) -> float:
    """Return the mean confidence of keypoints (21, 2), or -1 if they are not a plausible hand.

    `side` is the side of the square in which they were detected; all lengths are in pixels of the image.
    """
    if not (np.isfinite(keypoints_2d).all() and np.isfinite(confidence).all()):
        return -1.0
    limits = np.asarray([width, height]) - 0.5
    inside = (keypoints_2d > -0.5).all(axis=1) & (keypoints_2d < limits).all(axis=1)
    large = float(hand_size(keypoints_2d)) >= max(_MIN_SIZE, _MIN_SHARE * side)
    return float(confidence.mean()) if large and float(inside.mean()) >= _MIN_INSIDE else -1.0
