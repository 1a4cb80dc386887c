"""Finders: for each network, the choice of the regions of an image to search and of the hands to accept."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from handtailor_jax.detector import squares
from handtailor_jax.detector.detector import HandDetector, answered
from handtailor_jax.detector.regions import cut, square_region, to_image
from handtailor_jax.images import Image, crop_square
from handtailor_jax.types import Box, Camera, Hand, Region, View


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

    def all(self, image: Image, look: Look, thorough: bool | None, known: Sequence[Region] = ()) -> list[Found]:
        """Return the hands in the regions of all palms, except in known regions, by decreasing presence."""
        return self._detector.search(image, look, thorough=thorough, known=known)

    def searching(self, image: Image, thorough: bool | None, box: Box | None, passes: int) -> Search:
        """Search the whole image as `all` does, or the region around the keypoints in the best rotation of a box."""
        if box is None:
            return (yield from self._detector.searching(image, thorough=thorough))
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

    def all(self, image: Image, look: Look, thorough: bool | None, known: Sequence[Region] = ()) -> list[Found]:
        """Return the hand of an image in which none is known; see `searching`."""
        return [] if known else answered(self.searching(image, thorough, None, 1), look)

    def searching(self, image: Image, thorough: bool | None, box: Box | None, passes: int) -> Search:
        """Search the whole image, then the squares of a grid, and at last a closer square around the hand found.

        In a box, make `passes` forward passes, each in a closer square, and return the last hand, because the network
        does not estimate whether there is one.
        """
        if box is not None:
            found = yield [square_region(box)]
            for _ in range(passes - 1):
                found = yield [_closer(found[0])]
            return list(found)
        height, width = image.shape[:2]
        for boxes in [squares.first_square(width, height)], squares.scan_squares(width, height):
            looks: list[Found] = []
            for square in boxes:  # one after the other, which is as fast as in a batch
                looks += yield [square_region(square)]
            best = max(looks, key=lambda found: _score(found, image))
            if _score(best, image) >= squares.ACQUIRE:
                return list((yield [_closer(best)]))
        return []

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether the keypoints are confident and plausible."""
        return _score(found, image) >= squares.KEEP

    def next_region(self, found: Found) -> Region:
        """Return the square where the hand is expected in the next frame, between this one and the keypoints'."""
        return square_region(squares.next_square(found.box, found.keypoints_2d))


def _score(found: Found, image: Image) -> float:
    height, width = image.shape[:2]
    return squares.hand_score(found.keypoints_2d, found.hand.confidence, found.box[2], width, height)


def _closer(found: Found) -> Region:
    return square_region(squares.closer_square(found.box, found.keypoints_2d, found.hand.confidence))
