"""`HandDetector` finds all hands in an image of any size: palms, regions around whole hands, landmarks in each region.

`find_palms`, `from_palm` and `recognise` are these three stages as functions of arrays.
"""

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
import numpy.typing as npt
from flax import nnx
from jaxtyping import Array

from handtailor_jax.detector.landmark_network import DetectedHand, HandLandmarkNetwork, recognise
from handtailor_jax.detector.palm_detector import PalmDetector, find_palms
from handtailor_jax.detector.regions import (
    SURE,
    cut,
    from_box,
    from_palm,
    is_part,
    overlap,
    square_region,
    tiles,
    to_image,
)
from handtailor_jax.detector.weights import load_landmark_network, load_palm_detector
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.images import Image, as_rgb, check_box, whole
from handtailor_jax.programs import is_own, kept
from handtailor_jax.types import Box, Region

Tree = TypeVar("Tree")
Result = TypeVar("Result")
Keypoints = npt.NDArray[np.float32]

# Regions that overlap more (intersection over union, as if not rotated) show the same hand.
_SAME_REGION = 0.5
# Hands with a smaller mean distance of keypoints, in sizes of the larger hand, are the same hand.
_SAME_HAND = 0.3


@runtime_checkable
class _Recognised(Protocol):
    """A hand that was estimated in a region: a `DetectedHand`, or the result of a whole hand module."""

    @property
    def keypoints_2d(self) -> Keypoints: ...
    @property
    def presence(self) -> float: ...
    @property
    def next_region(self) -> Region: ...


Seen = TypeVar("Seen", bound=_Recognised)
Look = Callable[[list[Region]], Sequence[Seen]]


class _Candidate(NamedTuple):
    """A region that may show a hand: score of the palm, region, and the presence above which the hand is accepted."""

    score: float
    region: Region
    presence: float


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Thresholds of detection.

    Uncertain palms of the whole image are accepted, because the landmark network rejects most wrong ones. An image has
    many tiles, which give more wrong palms, so their thresholds are stricter. MediaPipe's own thresholds are 0.5.
    """

    palm: float = 0.3
    """Least score of a palm in the whole image."""
    presence: float = 0.5
    """Presence above which a region shows a hand: in the whole image, in a box and while a hand is followed."""
    tile_palm: float = 0.5
    """Least score of a palm in a tile."""
    tile_presence: float = 0.7
    """Presence above which a region from a tile shows a hand."""
    sure: float = 0.99
    """Presence below which the landmark network runs again, in the region around a hand's keypoints."""
    most_hands: int = 64
    """Largest number of regions of an image in which the landmark network looks for hands, those of the best palms."""


class HandDetector:
    """Finds the hands in images."""

    def __init__(
        self,
        palm_detector: PalmDetector | None = None,
        landmark_network: HandLandmarkNetwork | None = None,
        config: DetectorConfig = DetectorConfig(),
    ) -> None:
        """Prepare detection with these networks or the embedded ones; programs are compiled at the first call."""
        palm_detector = palm_detector or load_palm_detector()
        landmark_network = landmark_network or load_landmark_network()
        self.config = config
        self._palm_size, self._crop_size = palm_detector.config.image_size, landmark_network.config.image_size
        palm_graph, self._palm_state = nnx.split(palm_detector)
        landmark_graph, self._landmark_state = nnx.split(landmark_network)
        # On a CPU single images are faster than a batch, because their feature maps fit into its cache.
        self._most_at_once = 1 if jax.default_backend() == "cpu" else 8

        def find(state: Any, images: Array, regions: Region, threshold: Array) -> tuple[Array, Region]:
            palms = find_palms(nnx.merge(palm_graph, state), images, regions, threshold)
            return palms.score, from_palm(palms)

        def estimate(state: Any, crops: Array, regions: Region) -> DetectedHand:
            return recognise(nnx.merge(landmark_graph, state), crops, regions)

        self._find = jax.jit(kept(find, "palms", palm_graph) if is_own(palm_detector) else find)
        self._estimate = jax.jit(estimate)

    def __call__(self, image: Any, *, thorough: bool | None = None) -> list[DetectedHand]:
        """Find all hands in an image, by decreasing presence, without duplicates.

        Args:
            image: (H, W, 3) RGB; every format of `images.as_rgb`.
            thorough: Whether to search overlapping tiles as well, which finds smaller and fainter hands in four to ten
                times the time; if None, tiles are searched only if no hand is found in the whole image. If the tiles
                show none either, the image is searched like a box around one hand.

        Raises:
            InputError: If `image` is not an image.
        """
        image = as_rgb(image)
        search: Generator[list[Region], Sequence[DetectedHand], list[DetectedHand]]
        search = self.searching(image, thorough=thorough)
        return answered(search, lambda regions: self.recognise(image, regions))

    def searching(
        self, image: Image, *, thorough: bool | None = None, known: Sequence[Region] = ()
    ) -> Generator[list[Region], Sequence[Seen], list[Seen]]:
        """Find all hands as `__call__` does, as a generator that yields regions and is sent their hands (`answered`).

        Args:
            image: (H, W, 3) RGB, uint8.
            thorough: See `__call__`.
            known: Regions of known hands, which are not searched again.
        """
        limits = self.config
        candidates = self._find_palms(image, [whole(image)], limits.palm, limits.presence)
        hands: list[Seen] = [] if thorough else (yield from self._confirm(candidates, known))
        if thorough or (thorough is None and not hands):
            squares = tiles(image.shape[1], image.shape[0])
            candidates += self._find_palms(image, squares, limits.tile_palm, limits.tile_presence)
            hands = yield from self._confirm(candidates, known)
        if thorough is not False and not hands and not known:
            # A hand that fills the image, in which no palm was found.
            hand = self._best_turn(image, whole(image), 1)
            found = (yield [hand.next_region]) if hand.presence > limits.tile_presence else []
            hands = [each for each in found if each.presence > limits.tile_presence]
        return (yield from self._look_again(hands))

    def in_box(self, image: Any, box: Any, *, passes: int = 2) -> DetectedHand | None:
        """Find the hand in a box, in any rotation; None if the landmark network finds none.

        Args:
            image: (H, W, 3) RGB.
            box: (x, y, w, h) around one hand, pixels.
            passes: Number of further forward passes, each in the region around the previous pass's keypoints.

        Raises:
            InputError: If `image` is not an image, or the box does not fit it.
        """
        image = as_rgb(image)
        hand = self._best_turn(image, check_box(box, image), passes)
        return hand if hand.presence > self.config.presence else None

    def _best_turn(self, image: Image, box: Box, passes: int) -> DetectedHand:
        """Return the most present hand in the regions of a box, after further passes around its keypoints."""
        hands: list[DetectedHand] = []
        for turns in from_box(box):
            if all(hand.presence <= SURE for hand in hands):
                hands += self.recognise(image, turns)
        hand = max(hands, key=lambda hand: hand.presence)
        for _ in range(passes):
            (hand,) = self.recognise(image, [hand.next_region])
        return hand

    def recognise(self, image: Image, regions: list[Region]) -> list[DetectedHand]:
        """Run the landmark network once in each region; return a hand for each, whatever its presence."""
        found = [
            self._estimate(self._landmark_state, crops, batch)
            for crops, batch in self._batches(image, regions, self._crop_size, extend=True)
        ]
        return [hand for batch in jax.device_get(found) for hand in unstack(batch)][: len(regions)]

    def _find_palms(self, image: Image, squares: list[Box], threshold: float, presence: float) -> list[_Candidate]:
        """Return the regions of the palms in squares of the image, with the presence that each must exceed."""
        regions = [square_region(square) for square in squares]
        found = [
            self._find(self._palm_state, images, batch, np.float32(threshold))
            for images, batch in self._batches(image, regions, self._palm_size, extend=False)
        ]
        candidates = []
        for batch in jax.device_get(found):
            for scores, palms in unstack(batch):
                for i in np.flatnonzero(scores > 0.0):
                    candidates.append(_Candidate(float(scores[i]), jax.tree.map(itemgetter(i), palms), presence))
        return candidates

    def _confirm(
        self, candidates: list[_Candidate], known: Sequence[Region]
    ) -> Generator[list[Region], Sequence[Seen], list[Seen]]:
        """Return the hands in the regions of candidates that overlap neither known regions nor better candidates."""
        kept: list[_Candidate] = []
        for candidate in sorted(candidates, key=lambda candidate: candidate.score, reverse=True):
            others = [*known, *(other.region for other in kept)]
            if all(overlap(candidate.region, other) <= _SAME_REGION for other in others):
                kept.append(candidate)
        kept = kept[: self.config.most_hands]
        found = (yield [candidate.region for candidate in kept]) if kept else []
        return _merged([hand for hand, like in zip(found, kept, strict=True) if hand.presence > like.presence])

    def _look_again(self, hands: list[Seen]) -> Generator[list[Region], Sequence[Seen], list[Seen]]:
        """Run the landmark network again around the keypoints of hands of low presence, and return all hands.

        The run of higher presence counts, unless the second one has moved to another hand.
        """
        unsure = [i for i, hand in enumerate(hands) if hand.presence < self.config.sure]
        found = (yield [hands[i].next_region for i in unsure]) if unsure else []
        for i, hand in zip(unsure, found, strict=True):
            changed = [*hands[:i], hand, *hands[i + 1 :]]
            if hand.presence > hands[i].presence and len(_merged(changed)) == len(hands):
                hands = changed
        return _merged(hands)

    def _batches(
        self, image: Image, regions: list[Region], size: int, *, extend: bool
    ) -> Iterator[tuple[Image, Region]]:
        """Yield crops of regions in batches."""
        batches = stack(regions, self._most_at_once)
        # All affine maps are computed first, because they would have to wait for a network that runs.
        maps = [np.asarray(to_image(batch, size)) for batch in batches]
        for batch, affines in zip(batches, maps, strict=True):
            yield np.stack([cut(image, affine, size, extend=extend) for affine in affines]), batch


def answered(search: Generator[list[Region], Sequence[Seen], Result], look: Look[Seen]) -> Result:
    """Run a search that yields regions and is sent the hands in them, and return its result."""
    try:
        regions = next(search)
        while True:
            regions = search.send(look(regions))
    except StopIteration as end:
        return end.value


def merge_hands(keypoints_2d: Sequence[Keypoints], presence: Sequence[float]) -> list[int]:
    """Return the indices of hands by decreasing presence, without duplicates and without parts of larger hands."""
    order = sorted(range(len(presence)), key=lambda index: presence[index], reverse=True)
    sizes = [float(hand_size(keypoints)) for keypoints in keypoints_2d]

    def same(i: int, j: int) -> bool:
        distance = float(np.linalg.norm(keypoints_2d[i] - keypoints_2d[j], axis=-1).mean())
        return distance < _SAME_HAND * max(sizes[i], sizes[j])

    kept: list[int] = []
    for i in order:
        part = any(is_part(keypoints_2d[i], keypoints_2d[other]) for other in order)
        if not part and not any(same(i, other) for other in kept):
            kept.append(i)
    return kept


def _merged(hands: list[Seen]) -> list[Seen]:
    return [hands[i] for i in merge_hands([h.keypoints_2d for h in hands], [float(h.presence) for h in hands])]


def stack(entries: Sequence[Tree], most: int) -> list[Tree]:
    """Return batches of 1, 2, 4, ... `most` entries, so that few programs are compiled; the last entry is repeated."""
    batches = []
    for first in range(0, len(entries), most):
        part = list(entries[first : first + most])
        part += part[-1:] * (2 ** math.ceil(math.log2(len(part))) - len(part))
        batches.append(jax.tree.map(lambda *leaves: np.stack(leaves), *part))
    return batches


def unstack(batch: Tree) -> list[Tree]:
    """Return the entries of a pytree of arrays along its batch axis."""
    return [jax.tree.map(itemgetter(i), batch) for i in range(len(jax.tree.leaves(batch)[0]))]
