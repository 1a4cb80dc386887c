"""Where the hands of an image are, for each of the two hand modules, and the crops that the hand module sees.

A finder gets a function `look`, which recovers the hand in each of some regions, and decides which regions to look into
and which hands to believe.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from handtailor_jax.detector import squares
from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.detector.regions import cut, square_region, to_image
from handtailor_jax.geometry.boxes import Box
from handtailor_jax.images import Image, crop_square
from handtailor_jax.types import Camera, Hand, Region, View


@dataclasses.dataclass(frozen=True)
class Found:
    """A hand that was recovered in a region, on the host."""

    hand: Hand
    around_keypoints: Region
    """Rotated region around the hand's keypoints."""

    @property
    def keypoints_2d(self) -> npt.NDArray[np.float32]:
        """(21, 2) detected keypoints (u, v), pixels of the image."""
        return self.hand.detected_keypoints_2d

    @property
    def presence(self) -> float:
        """Probability that there is a hand; 1 if the network does not estimate it."""
        return 1.0 if self.hand.presence is None else float(self.hand.presence)


Look = Callable[[Sequence[Region]], list[Found]]


@runtime_checkable
class Finder(Protocol):
    """Finds the hands for one kind of hand module."""

    def view(self, image: Image, camera: Camera, region: Region, right: float) -> View:
        """Cut a region out of an image, on the host; `right` is the prior probability of a right hand."""

    def all(self, image: Image, look: Look, thorough: bool | None, known: Sequence[Region] = ()) -> list[Found]:
        """Recover all hands outside of the known regions, by falling presence."""

    def in_box(self, image: Image, look: Look, box: Box, passes: int) -> Found | None:
        """Recover the hand in a box; None if there is none."""

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether a hand that was followed into this image is still there."""

    def next_region(self, found: Found) -> Region:
        """Return the region in which the hand is expected in the next frame of a video."""


class LandmarkFinder:
    """Regions from the palm detector; the landmark network's presence decides."""

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
        """Look into the regions of all palms."""
        return self._detector.search(image, look, thorough=thorough, known=known)

    def in_box(self, image: Image, look: Look, box: Box, passes: int) -> Found | None:
        """Look into the region around the keypoints that the best of four turns of the box shows."""
        hand = self._detector.in_box(image, box, passes=passes - 1)
        if hand is None:
            return None
        found = look([hand.next_region])[0]
        return found if self.shows(found, image) else None

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether the hand is present."""
        return found.presence > self._detector.config.presence

    def next_region(self, found: Found) -> Region:
        """Return the region around the keypoints."""
        return found.around_keypoints


class HourglassFinder:
    """Upright squares; the square with the most confident keypoints wins. It finds one hand at most."""

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
        """Look into the whole image, then into the squares of a grid, then closer at what was found."""
        height, width = image.shape[:2]
        rounds = [squares.first_square(width, height)], squares.scan_squares(width, height)
        for boxes in () if known else rounds:
            looks = [look([square_region(box)])[0] for box in boxes]
            best = max(looks, key=lambda found: self._score(found, image))
            if self._score(best, image) >= squares.ACQUIRE:
                return look([_closer(best)])
        return []

    def in_box(self, image: Image, look: Look, box: Box, passes: int) -> Found | None:
        """Look into the square around the box, then closer. The network does not tell whether there is a hand."""
        found = look([square_region(box)])[0]
        for _ in range(passes - 1):
            found = look([_closer(found)])[0]
        return found

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether the keypoints are confident and plausible."""
        return self._score(found, image) >= squares.KEEP

    def next_region(self, found: Found) -> Region:
        """Return the square around the keypoints, between this one and the last."""
        return square_region(squares.next_square(_box(found), found.keypoints_2d))

    def _score(self, found: Found, image: Image) -> float:
        height, width = image.shape[:2]
        side = _box(found)[2]
        return squares.hand_score(found.keypoints_2d, found.hand.confidence, side, width, height)


def _box(found: Found) -> Box:
    box = found.hand.box
    assert box is not None
    x, y, w, h = map(float, box)
    return x, y, w, h


def _closer(found: Found) -> Region:
    return square_region(squares.closer_square(_box(found), found.keypoints_2d, found.hand.confidence))
