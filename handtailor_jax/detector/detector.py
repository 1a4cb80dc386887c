"""`HandDetector` finds all hands in an image of any size; `graph.py` has the functions of arrays behind it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jaxtyping import Array, Float, UInt8

from handtailor_jax.detector.crops import cut
from handtailor_jax.detector.graph import Hands, find_palms, recognise
from handtailor_jax.detector.landmark_network import HandLandmarkNetwork
from handtailor_jax.detector.merging import Candidate, merge_candidates, merge_hands, tiles
from handtailor_jax.detector.palm_detector import PalmDetector
from handtailor_jax.detector.regions import from_box, from_palm, to_image
from handtailor_jax.detector.weights import load_landmark_network, load_palm_detector
from handtailor_jax.geometry.boxes import Box
from handtailor_jax.images import Image, as_rgb, check_box, whole
from handtailor_jax.types import Region, Side

Tree = TypeVar("Tree")


@runtime_checkable
class Recognised(Protocol):
    """A hand that was estimated in a region."""

    @property
    def keypoints_2d(self) -> npt.NDArray[np.float32]:
        """(21, 2) keypoints (u, v), pixels of the image."""

    @property
    def presence(self) -> float:
        """Probability that there is a hand, 0 to 1."""


Seen = TypeVar("Seen", bound=Recognised)


@dataclasses.dataclass(frozen=True)
class DetectedHand:
    """One hand in an image. Pixels are those of the image."""

    keypoints_2d: npt.NDArray[np.float32]
    """(21, 2) keypoints (u, v), pixels, canonical order, MediaPipe's convention."""
    joints_3d: npt.NDArray[np.float32]
    """(21, 3) world landmarks in camera axes (x right, y down, z forward), metres; the origin is near the mean of the
    finger MCPs and the hand's size is a guess."""
    side: Side
    """Which hand it is, in an image that is not mirrored."""
    side_probability: float
    """Probability of that side, 0.5 to 1."""
    presence: float
    """Probability that there is a hand, 0 to 1."""
    region: Region
    """The region that the network saw, as NumPy arrays."""
    next_region: Region
    """The region around the keypoints, for `HandDetector.follow` in the next frame, as NumPy arrays."""


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Thresholds of detection.

    Uncertain palms of the whole image are accepted, because the landmark network rejects most wrong ones. Tiles have
    more chances for mistakes, so their thresholds are stricter. MediaPipe's own thresholds are 0.5 for both.
    """

    palm: float = 0.3
    """Least score of a palm in the whole image."""
    presence: float = 0.5
    """Presence above which a region shows a hand: in the whole image, in a box and while a hand is followed."""
    tile_palm: float = 0.5
    """Least score of a palm in a tile."""
    tile_presence: float = 0.7
    """Presence above which a region from a tile shows a hand."""
    most_hands: int = 64
    """Largest number of forward passes of the landmark network in one image; the best palms come first."""


class HandDetector:
    """Finds the hands in images."""

    def __init__(
        self,
        palm_detector: PalmDetector,
        landmark_network: HandLandmarkNetwork,
        config: DetectorConfig = DetectorConfig(),
    ) -> None:
        """Prepare detection; programs are compiled at the first call.

        Args:
            palm_detector: finds palms.
            landmark_network: finds keypoints.
            config: thresholds.
        """
        self.config = config
        self._palm_size = palm_detector.config.image_size
        self._crop_size = landmark_network.config.image_size
        palm_graph, self._palm_state = nnx.split(palm_detector)
        landmark_graph, self._landmark_state = nnx.split(landmark_network)
        # A CPU computes one image after the other faster than a batch, whose maps leave its cache.
        self._most_at_once = 1 if jax.default_backend() == "cpu" else 8

        @jax.jit
        def find(state: Any, images: Array, regions: Region, threshold: Array) -> tuple[Array, Region]:
            palms = find_palms(nnx.merge(palm_graph, state), _unit(images), regions, threshold)
            return palms.score, from_palm(palms)

        @jax.jit
        def estimate(state: Any, crops: Array, regions: Region) -> Hands:
            return recognise(nnx.merge(landmark_graph, state), _unit(crops), regions)

        self._find, self._estimate = find, estimate

    @classmethod
    def load(
        cls,
        palm: str | Path | None = None,
        landmarks: str | Path | None = None,
        config: DetectorConfig = DetectorConfig(),
    ) -> "HandDetector":
        """Load the networks.

        Args:
            palm: weight file of the palm detector; the embedded one if None.
            landmarks: weight file of the landmark network; the embedded one if None.
            config: thresholds.

        Raises:
            InputError: if a file is missing, damaged or of another network.
        """
        return cls(load_palm_detector(palm), load_landmark_network(landmarks), config)

    @classmethod
    def beside(cls, landmark_network: HandLandmarkNetwork) -> "HandDetector":
        """Combine the embedded palm detector with a landmark network."""
        return cls(load_palm_detector(), landmark_network)

    def __call__(self, image: Any, *, thorough: bool | None = None) -> list[DetectedHand]:
        """Find all hands in an image, by falling presence.

        Args:
            image: (H, W, 3) RGB; every format of `images.as_rgb`.
            thorough: whether to search overlapping tiles as well, which finds smaller and fainter hands in four to ten
                times the time; None searches tiles where the whole image shows no hand.

        Raises:
            InputError: if the image is not one.
        """
        image = as_rgb(image)
        return self.search(image, lambda regions: self._recognise(image, regions), thorough=thorough)

    def search(
        self,
        image: Image,
        recognise: Callable[[list[Region]], Sequence[Seen]],
        *,
        thorough: bool | None = None,
        known: Sequence[Region] = (),
    ) -> list[Seen]:
        """Find all hands in an image with another function in the landmark network's place.

        Args:
            image: (H, W, 3) RGB, uint8.
            recognise: estimates the hand in each region.
            thorough: see `__call__`.
            known: regions of known hands, which are not searched again.

        Returns:
            The hands that are present, by falling presence, without doubles.
        """
        limits = self.config
        candidates = self._find_palms(image, [whole(image)], limits.palm, limits.presence)
        hands = [] if thorough else self._confirm(candidates, recognise, known)
        if thorough or (thorough is None and not hands):
            squares = tiles(image.shape[1], image.shape[0])
            candidates += self._find_palms(image, squares, limits.tile_palm, limits.tile_presence)
            hands = self._confirm(candidates, recognise, known)
        return hands

    def in_box(self, image: Any, box: Any, *, passes: int = 2) -> DetectedHand | None:
        """Find the hand in a box; None if the landmark network sees none in any of four turns of the box.

        Args:
            image: (H, W, 3) RGB.
            box: (x, y, w, h) around one hand, pixels.
            passes: further forward passes, each in the region around the last pass's keypoints.

        Raises:
            InputError: if the image is not one or the box does not fit it.
        """
        image = as_rgb(image)
        turns = jax.device_get(from_box(jnp.asarray(check_box(box, image), jnp.float32)))
        hand = max(self._recognise(image, _unstack(turns)), key=lambda hand: hand.presence)
        for _ in range(passes):
            (hand,) = self._recognise(image, [hand.next_region])
        return hand if hand.presence > self.config.presence else None

    def follow(self, frame: Any, region: Region) -> DetectedHand | None:
        """Find a hand of the last frame in the next one, with the landmark network alone; None if it is lost.

        Args:
            frame: (H, W, 3) RGB.
            region: `next_region` of the hand in the last frame.

        Raises:
            InputError: if the frame is not an image.
        """
        (hand,) = self._recognise(as_rgb(frame), [region])
        return hand if hand.presence > self.config.presence else None

    def _find_palms(self, image: Image, squares: list[Box], threshold: float, presence: float) -> list[Candidate]:
        """Regions of the palms in squares of the image, with the presence that each must reach."""
        regions = [_square(box) for box in squares]
        found = [
            self._find(self._palm_state, images, batch, np.float32(threshold))
            for images, batch in self._batches(image, regions, self._palm_size, extend=False)
        ]
        candidates = []
        for batch in jax.device_get(found):
            for scores, palms in _unstack(batch):
                count = int((scores > 0.0).sum())  # palms are sorted by falling score, empty ones last
                filled = _unstack(jax.tree.map(lambda leaf, count=count: leaf[:count], palms))
                candidates += [Candidate(float(s), r, presence) for s, r in zip(scores[:count], filled, strict=True)]
        return candidates

    def _confirm(
        self,
        candidates: list[Candidate],
        recognise: Callable[[list[Region]], Sequence[Seen]],
        known: Sequence[Region],
    ) -> list[Seen]:
        """The hands in the candidates' regions."""
        candidates = merge_candidates(candidates, known)[: self.config.most_hands]
        found = recognise([candidate.region for candidate in candidates]) if candidates else []
        hands = [h for h, candidate in zip(found, candidates, strict=True) if h.presence > candidate.presence]
        chosen = merge_hands([hand.keypoints_2d for hand in hands], [hand.presence for hand in hands])
        return [hands[index] for index in chosen]

    def _recognise(self, image: Image, regions: list[Region]) -> list[DetectedHand]:
        """One forward pass of the landmark network in each region."""
        found = [
            self._estimate(self._landmark_state, crops, batch)
            for crops, batch in self._batches(image, regions, self._crop_size, extend=True)
        ]
        return [_detected(hand) for batch in jax.device_get(found) for hand in _unstack(batch)][: len(regions)]

    def _batches(
        self, image: Image, regions: list[Region], size: int, *, extend: bool
    ) -> Iterator[tuple[Image, Region]]:
        """Crops of regions in batches of 1, 2, 4 or 8, of which the last one is padded with its last region."""
        batches = []
        for first in range(0, len(regions), self._most_at_once):
            part = regions[first : first + self._most_at_once]
            padded = part + part[-1:] * (2 ** math.ceil(math.log2(len(part))) - len(part))
            batches.append(jax.tree.map(lambda *leaves: np.stack(leaves), *padded))
        # All maps first: once a network runs, they would wait for it.
        maps = [np.asarray(_to_image(batch, size)) for batch in batches]
        for batch, affines in zip(batches, maps, strict=True):
            yield np.stack([cut(image, affine, size, extend=extend) for affine in affines]), batch


def _square(box: Box) -> Region:
    x, y, w, h = box
    return Region(np.asarray([x + w / 2.0, y + h / 2.0], np.float32), np.float32(max(w, h)), np.float32(0.0))


@functools.partial(jax.jit, static_argnums=1)
def _to_image(regions: Region, size: int) -> Array:
    return to_image(regions, size)


def _unit(images: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch size size 3"]:
    return images.astype(jnp.float32) / 255.0


def _unstack(batch: Tree) -> list[Tree]:
    """The entries of a pytree of NumPy arrays with one batch axis."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(len(jax.tree.leaves(batch)[0]))]


def _detected(hand: Hands) -> DetectedHand:
    right = float(hand.right)
    return DetectedHand(
        keypoints_2d=np.asarray(hand.keypoints_2d),
        joints_3d=np.asarray(hand.joints_3d),
        side="right" if right > 0.5 else "left",
        side_probability=max(right, 1.0 - right),
        presence=float(hand.presence),
        region=hand.region,
        next_region=hand.next_region,
    )
