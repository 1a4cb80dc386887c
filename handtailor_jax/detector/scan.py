"""Where to look for one hand: squares of an image, without a network that detects hands.

A hand that is followed is looked for in one square. Otherwise the hand module looks into every square of a search, and
the square with the most confident keypoints wins.
"""

import dataclasses
import enum
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import Box, centered_square, hand_size, square_around

_CLOSER = 1.45
"""Side of the square of a further forward pass, in hand sizes. It is the best, by a little, of 1.3, 1.45 and 1.6 on the
photographs of the embedded weights' training split."""

FloatArray = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
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


class Stage(enum.Enum):
    """Which squares a `HandTrack` looks into."""

    FIRST = "first"
    """The square where a search begins."""
    GRID = "grid"
    """A grid of squares of several sizes, after the first square has shown no hand."""
    FOLLOWING = "following"
    """The square around the hand that is followed."""


@dataclasses.dataclass(frozen=True)
class HandTrack:
    """Where one hand is looked for next. A track is a value: `after` returns the next one.

    The caller looks into all `candidates`, calls `after` with the keypoints, and may repeat this in the same frame
    until the hand is found or the grid has shown none.
    """

    width: int
    """Width of the image, pixels."""
    height: int
    """Height of the image, pixels."""
    first: Box | None = None
    """Box at which a search begins; None for the square around the whole image."""
    config: TrackingConfig = TrackingConfig()
    stage: Stage = Stage.FIRST
    box: Box | None = None
    """Square in which the hand that is followed is expected; None during a search."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"a video of {self.width} x {self.height} pixels shows no hand: give another file")

    def candidates(self) -> tuple[Box, ...]:
        """Return the squares to look into; their number depends only on the stage and the size of the image."""
        if self.box is not None:
            return (self.box,)
        if self.stage is Stage.GRID:
            return search_grid(self.width, self.height, self.config.levels)
        if self.first is None:
            center = np.asarray([0.5 * (self.width - 1), 0.5 * (self.height - 1)])
            return (centered_square(center, float(max(self.width, self.height))),)
        x, y, w, h = self.first
        side = max(w, h)
        return ((x + 0.5 * (w - side), y + 0.5 * (h - side), side, side),)

    def after(self, keypoints_2d: FloatArray, confidence: FloatArray) -> tuple["HandTrack", int | None]:
        """Return the track after looking into all candidates, and the index of the candidate that shows the hand.

        Args:
            keypoints_2d: (candidates, 21, 2) Keypoints detected in each candidate, pixels of the image.
            confidence: (candidates, 21) Confidence of each keypoint, 0 to 1.

        Returns:
            The next track, and the index, which is None if no candidate shows the hand.
        """
        boxes = self.candidates()
        if len(keypoints_2d) != len(boxes) or len(confidence) != len(boxes):
            raise ValueError(f"keypoints of {len(keypoints_2d)} squares were given, expected {len(boxes)}")
        scores = [
            float(sure.mean()) if self._plausible(points, sure, box) else -1.0
            for points, sure, box in zip(keypoints_2d, confidence, boxes, strict=True)
        ]
        best = int(np.argmax(scores))
        if scores[best] < (self.config.acquire if self.box is None else self.config.keep):
            stage = Stage.GRID if self.stage is Stage.FIRST else Stage.FIRST
            return dataclasses.replace(self, box=None, stage=stage), None
        box = square_around(np.asarray(keypoints_2d[best], np.float64), self.config.margin)
        if self.box is not None:
            box = _between(box, self.box, self.config.smoothing)
        return dataclasses.replace(self, box=box, stage=Stage.FOLLOWING), best

    def _plausible(self, keypoints_2d: FloatArray, confidence: FloatArray, box: Box) -> bool:
        if not (np.isfinite(keypoints_2d).all() and np.isfinite(confidence).all()):
            return False
        size = float(hand_size(keypoints_2d))
        limits = np.asarray([self.width, self.height]) - 0.5
        inside = (keypoints_2d > -0.5).all(axis=1) & (keypoints_2d < limits).all(axis=1)
        large = size >= max(self.config.min_extent, self.config.min_share * box[2])
        return large and float(inside.mean()) >= self.config.min_inside


def closer_box(
    box: Float[np.ndarray, "4"], keypoints_2d: Float[np.ndarray, "21 2"], confidence: Float[np.ndarray, "21"]
) -> Box:
    """Return the square for a further forward pass: around the keypoints, or the same box where they are no hand."""
    points, enough = np.asarray(keypoints_2d, np.float64), TrackingConfig()
    x, y, w, h = map(float, box)
    if not confidence.mean() >= enough.keep or not hand_size(points) >= enough.min_share * w:
        return x, y, w, h
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
