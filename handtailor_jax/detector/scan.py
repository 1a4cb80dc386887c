"""Where the paper's hourglass looks for a hand: squares of an image, without a network that detects hands.

The hourglass always outputs a hand. A square counts as showing one if its keypoints are confident and plausible. A hand
that is followed through a video is looked for in one square.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from handtailor_jax.geometry.boxes import Box, centered_square, hand_size, square_around

_CLOSER = 1.45
"""Side of the square of a further forward pass, in hand sizes. It is the best, by a little, of 1.3, 1.45 and 1.6 on the
photographs of the embedded weights' training split."""

FloatArray = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class ScanConfig:
    """When a hand counts as found, and the squares in which it is looked for."""

    margin: float = 2.0
    """Side of the square around a hand that is followed, in hand sizes."""
    smoothing: float = 0.3
    """Weight of the previous square in the next one, so that crops tremble less."""
    acquire: float = 0.5
    """Mean confidence at which a hand that was searched for counts as found."""
    keep: float = 0.3
    """Mean confidence below which a hand that is followed counts as lost."""
    min_extent: float = 12.0
    """Smallest hand size, in pixels, at which keypoints count as a hand."""
    min_share: float = 0.1
    """Smallest hand size, as a share of the side of the square, at which keypoints count as a hand."""
    min_inside: float = 0.5
    """Smallest share of keypoints inside of the image at which they count as a hand."""
    levels: tuple[float, ...] = (1.0, 0.5)
    """Sides of the squares of the grid, as shares of the image's shorter side; neighbours overlap by half."""

    def score(self, keypoints_2d: FloatArray, confidence: FloatArray, side: float, width: int, height: int) -> float:
        """Return the mean confidence of keypoints, or -1 if they are no plausible hand.

        Args:
            keypoints_2d: (21, 2) Keypoints, pixels of the image.
            confidence: (21,) Confidence of each keypoint, 0 to 1.
            side: Side of the square in which they were detected, pixels.
            width: Width of the image, pixels.
            height: Height of the image, pixels.
        """
        if not (np.isfinite(keypoints_2d).all() and np.isfinite(confidence).all()):
            return -1.0
        size = float(hand_size(keypoints_2d))
        limits = np.asarray([width, height]) - 0.5
        inside = (keypoints_2d > -0.5).all(axis=1) & (keypoints_2d < limits).all(axis=1)
        large = size >= max(self.min_extent, self.min_share * side)
        return float(confidence.mean()) if large and float(inside.mean()) >= self.min_inside else -1.0

    def next_square(self, keypoints_2d: FloatArray, previous: Box) -> Box:
        """Return the square in which the hand is expected in the next frame of a video."""
        return _between(square_around(np.asarray(keypoints_2d, np.float64), self.margin), previous, self.smoothing)


def first_square(width: int, height: int) -> Box:
    """Return the square around the whole image, with which a search begins."""
    center = np.asarray([0.5 * (width - 1), 0.5 * (height - 1)])
    return centered_square(center, float(max(width, height)))


def closer_box(box: Box, keypoints_2d: Float[np.ndarray, "21 2"], confidence: Float[np.ndarray, "21"]) -> Box:
    """Return the square for a further forward pass: around the keypoints, or the same box where they are no hand."""
    points, enough = np.asarray(keypoints_2d, np.float64), ScanConfig()
    if not confidence.mean() >= enough.keep or not hand_size(points) >= enough.min_share * box[2]:
        return box
    return square_around(points, _CLOSER)


def search_grid(width: int, height: int, levels: tuple[float, ...]) -> tuple[Box, ...]:
    """Return squares of several sizes that cover the image, largest first, row by row; neighbours overlap by half.

    Args:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        levels: Sides of the squares, as shares of the image's shorter side.
    """
    boxes: list[Box] = []
    for level in levels:
        side = float(level * min(width, height))
        rows, columns = (_starts(length, side) for length in (height, width))
        boxes += [(x, y, side, side) for y in rows for x in columns]
    return tuple(boxes)


def _starts(length: int, side: float) -> list[float]:
    """Return the starts of evenly spread intervals that cover a length and overlap by at least half."""
    count = 1 + max(0, math.ceil((length - side) / (0.5 * side) - 1e-9))
    return [float(start) for start in np.linspace(0.0, length - side, count)] if count > 1 else [0.5 * (length - side)]


def _between(new: Box, old: Box, weight: float) -> Box:
    """Return a square between two squares: `weight` of the old one in its centre and in the logarithm of its side."""
    side = math.exp((1.0 - weight) * math.log(new[2]) + weight * math.log(old[2]))
    x, y = (
        (1.0 - weight) * (n + 0.5 * new[2]) + weight * (o + 0.5 * old[2]) - 0.5 * side
        for n, o in zip(new[:2], old[:2], strict=True)
    )
    return (x, y, side, side)
