"""Finders: for each network, the choice of the regions of an image to search and of the hands to accept."""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.detector.regions import cut, scan_squares, square_region, to_image
from handtailor_jax.geometry.boxes import hand_size, square_around
from handtailor_jax.images import Image, crop_square, whole
from handtailor_jax.types import Box, Camera, Hand, Region, View

FloatArray = npt.NDArray[np.floating[Any]]

# Side of the square of a further forward pass, in hand sizes: a little better than 1.3 and 1.6 on `train` photographs.
_CLOSER = 1.45
# Side of the square around a hand that is followed, in hand sizes, and the previous square's weight, against jitter.
_FOLLOW_SIDE, _SMOOTHING = 2.0, 0.3
# Least hand size in pixels, hand size as a share of the square's side, and share of keypoints inside the image, of a
# plausible hand.
_MIN_SIZE, _MIN_SHARE, _MIN_INSIDE = 12.0, 0.1, 0.5

ACQUIRE, KEEP = 0.5, 0.3
"""Least mean confidence of a hand that the hourglass newly finds, and of a hand that is followed."""


@dataclass(frozen=True)
class Found:
    """A hand that was recovered in a region, on the host."""

    hand: Hand
    next_region: Region
    """Rotated region around the hand's keypoints."""

    @property
    def keypoints_2d(self) -> npt.NDArray[np.float32]:
        """(21, 2) detected keypoints (u, v), pixels of the image."""
        return self.hand.detected_keypoints_2d

    @property
    def presence(self) -> float:
        """Probability that there is a hand; 1 if the network does not estimate it."""
        return 1.0 if self.hand.presence is None else float(self.hand.presence)

    @property
    def box(self) -> Box:
        """Square (x, y, w, h) about the region that the network saw, without its rotation."""
        assert self.hand.box is not None
        x, y, w, h = map(float, self.hand.box)
        return x, y, w, h


Look = Callable[[Sequence[Region]], list[Found]]
"""A function that recovers the hand in each region."""
Search = Generator[list[Region], Sequence[Found], list[Found]]
"""A search that yields regions, is sent the hands in them, and returns the hands of the image."""


class LandmarkFinder:
    """Finds hands for a landmark network, in regions from the palm detector; accepts them by their presence."""

    def __init__(self, detector: HandDetector, size: int) -> None:
        """Prepare a finder for a landmark network whose crops have the side `size`."""
        self._detector, self._size = detector, size

    def view(self, image: Image, camera: Camera, region: Region, right: float) -> View:
        """Cut out the rotated region; the border of the image is repeated outside of it."""
        affine = np.asarray(to_image(region, self._size))
        crop = cut(image, affine, self._size, extend=True)
        linear = np.linalg.inv(affine[:, :2])
        to_crop = np.concatenate([linear, -linear @ affine[:, 2:]], axis=1)
        return View(crop, to_crop, region, camera, np.float32(right))

    def searching(
        self, image: Image, thorough: bool | None, box: Box | None, passes: int, known: Sequence[Region] = ()
    ) -> Search:
        """Search the regions of all palms, or the region around the keypoints in the best rotation of a box.

        Return the hands by decreasing presence, without those in known regions.
        """
        if box is None:
            return (yield from self._detector.searching(image, thorough=thorough, known=known))
        hand = self._detector.in_box(image, box, passes=passes - 1)
        found = [] if hand is None else (yield [hand.next_region])
        return [each for each in found if self.shows(each, image)]

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether a hand that was followed into this image is still there."""
        return found.presence > self._detector.config.presence

    def next_region(self, found: Found) -> Region:
        """Return the region around the keypoints, where the hand is expected in the next frame of a video."""
        return found.next_region


class HourglassFinder:
    """Finds one hand for an hourglass without a landmark network: the most confident keypoints in upright squares."""

    def __init__(self, size: int) -> None:
        """Prepare a finder for an hourglass whose crops have the side `size`."""
        self._size = size

    def view(self, image: Image, camera: Camera, region: Region, right: float) -> View:
        """Cut out the square, moved to whole pixels; it is grey outside of the image."""
        side = float(region.side)
        x, y = (float(value) - 0.5 * side for value in region.center)
        crop, to_crop, square = crop_square(image, (x, y, side, side), self._size)
        return View(crop, to_crop, square_region(square), camera, np.float32(right))

    def searching(
        self, image: Image, thorough: bool | None, box: Box | None, passes: int, known: Sequence[Region] = ()
    ) -> Search:
        """Search the whole image, then the squares of a grid, and at last a closer square around the hand found.

        In a box, make `passes` forward passes, each in a closer square, and return the last hand, because the network
        does not estimate whether there is one. If a hand is known, there is no other.
        """
        if known:
            return []
        if box is not None:
            found = yield [square_region(box)]
            for _ in range(passes - 1):
                found = yield [_closer(found[0])]
            return list(found)
        height, width = image.shape[:2]
        for boxes in [whole(image)], scan_squares(width, height):
            looks: list[Found] = []
            for box in boxes:  # one after the other, which is as fast as in a batch
                looks += yield [square_region(box)]
            best = max(looks, key=lambda found: _score(found, image))
            if _score(best, image) >= ACQUIRE:
                return list((yield [_closer(best)]))
        return []

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether the keypoints are confident and plausible."""
        return _score(found, image) >= KEEP

    def next_region(self, found: Found) -> Region:
        """Return the square where the hand is expected in the next frame, between this one and the keypoints'."""
        return square_region(next_square(found.box, found.keypoints_2d))


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


def _score(found: Found, image: Image) -> float:
    height, width = image.shape[:2]
    return hand_score(found.keypoints_2d, found.hand.confidence, found.box[2], width, height)


def _closer(found: Found) -> Region:
    return square_region(closer_square(found.box, found.keypoints_2d, found.hand.confidence))
