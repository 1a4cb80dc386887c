"""`HandTailor`: images in, hands with meshes out. It finds the hands and runs the graph of `pipeline.py` on them.

A finder for each network decides which regions to look into (with a function `look`) and which hands to believe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import numpy.typing as npt
from flax import nnx

from handtailor_jax.detector import squares
from handtailor_jax.detector.detector import HandDetector, stack, unstack
from handtailor_jax.detector.regions import cut, from_landmarks, square_region, to_image
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera, checked_length
from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.hand_module.weights import load_iknet, load_module
from handtailor_jax.images import Image, as_rgb, check_box, crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.pipeline import Preset, fitting_config, recover_views
from handtailor_jax.programs import is_own, kept
from handtailor_jax.tailor.placement import with_length
from handtailor_jax.types import Box, Camera, Hand, Memory, NetworkName, Region, Side, View

_MOST_AT_ONCE = 8
"""Hands in one run of the graph; fewer hands are padded to 1, 2, 4 or 8, so that only four programs are compiled."""


@dataclass(frozen=True)
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

    @property
    def box(self) -> Box:
        """Square (x, y, w, h) about the region that the network saw, without its rotation."""
        assert self.hand.box is not None
        x, y, w, h = map(float, self.hand.box)
        return x, y, w, h


Look = Callable[[Sequence[Region]], list[Found]]


class HandTailor:
    """Recover all hands of an image: ``HandTailor.load()(image)``."""

    def __init__(
        self,
        module: HandModule | LandmarkHandModule,
        hand: HandModel | None = None,
        config: Preset = "auto",
        hand_length: float | None = None,
    ) -> None:
        """Prepare a hand module for inference; programs are compiled at the first call.

        The hand model is the one that the hand module was trained with. See `load` for the arguments.

        Raises:
            InputError: If the energy is not defined for this hand module's keypoints.
        """
        hand = embedded_hand() if hand is None else hand
        self.hand = hand if hand.side == "right" else hand.mirrored()
        self.config, self.hand_length = fitting_config(module, config), hand_length
        self.finder: LandmarkFinder | HourglassFinder
        if isinstance(module, LandmarkHandModule):
            self.finder = LandmarkFinder(HandDetector(landmark_network=module.network), module.image_size)
        else:
            self.finder = HourglassFinder(module.image_size)
            module = inference_form(module)
        self.module = module
        graph, self._state = nnx.split(module)

        # A static argument would be hashed in every call, which takes longer than cropping the image.
        def run(state: Any, hand: HandModel, views: View, memory: Memory) -> tuple[Hand, Region]:
            hands = recover_views(nnx.merge(graph, state), hand, views, self.config, memory)
            return hands, from_landmarks(hands.detected_keypoints_2d)

        self._run = jax.jit(kept(run, "recover", graph, self.config) if is_own(module) else run)

    def __getstate__(self) -> Any:
        # Compiled programs cannot be pickled; networks are pickled as their structure and arrays.
        others = vars(self).keys() - {"module", "finder", "_state", "_run"}
        return *nnx.split(self.module), {name: vars(self)[name] for name in others}

    def __setstate__(self, stored: Any) -> None:
        graph, state, others = stored
        HandTailor.__init__(self, nnx.merge(graph, state), others["hand"], others["config"], others["hand_length"])
        vars(self).update(others)  # those of a subclass

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        hand: HandModel | None = None,
        config: Preset = "auto",
        network: NetworkName = "landmarks",
        hand_length: float | None = None,
    ) -> "HandTailor":
        """Load the networks.

        Args:
            weights: Weight file of a hand module, of which "landmarks" uses IKNet alone; the embedded ones if None.
            hand: Hand model; the one that the weights were trained with for "hourglass". The embedded hand if None.
            config: Energy and solver of the tailor; "auto" for the preset of this network, None for no tailor.
            network: "landmarks": all hands of any image, both sides. "hourglass": the paper's network, one hand.
            hand_length: Wrist to middle fingertip of a flat hand, metres, for metric depths; all images need a camera.

        Raises:
            InputError: One line that names what is wrong with the network's name or the weight file.
        """
        if network not in get_args(NetworkName):
            raise InputError(f"network is {network!r}: use landmarks or hourglass")
        if network == "landmarks":
            return cls(LandmarkHandModule(load_landmark_network(), load_iknet(weights)), hand, config, hand_length)
        return cls(load_module(weights, hand), hand, config, hand_length)

    def __call__(
        self,
        image: Any,
        camera: Any = None,
        *,
        side: Side | None = None,
        hands: int | None = None,
        thorough: bool | None = None,
    ) -> list[Hand]:
        """Recover all hands of an image, by falling presence. The hourglass finds one hand at most.

        Args:
            image: (H, W, 3) RGB image; `images.as_rgb` lists what else is accepted.
            camera: `Camera`, intrinsic matrix (3, 3) or {fx, fy, cx, cy} of the image, pixels; None if unknown.
            side: Side of all hands; if None, the landmark network estimates it, and the hourglass assumes right hands.
            hands: Largest number of hands; no limit if None.
            thorough: Whether overlapping tiles of the image are searched too, which finds small hands and takes four to
                ten times as long; None does so where the whole image shows no hand. Not for the hourglass.

        Raises:
            InputError: One line that names what is wrong.
        """
        check_arguments(side, hands)
        image = as_rgb(image)
        found = self.finder.all(image, self.looking(image, as_camera(camera), side_prior(side)), thorough)
        return [each.hand for each in found[:hands]]

    def one(
        self, image: Any, camera: Any = None, box: Any = None, side: Side | None = None, *, passes: int = 2
    ) -> Hand | None:
        """Recover one hand of an image; None if there is none. The hourglass always outputs a hand for a box.

        Image, camera and side are those of `__call__`. Without a box (x, y, w, h) around the hand, pixels, the most
        present hand is returned. Each further forward pass crops the hand closer, around the keypoints of the last one.

        Raises:
            InputError: One line that names what is wrong.
        """
        check_arguments(side, passes=passes)
        if box is None:
            return next(iter(self(image, camera, side=side, hands=1)), None)
        image = as_rgb(image)
        look = self.looking(image, as_camera(camera), side_prior(side))
        found = self.finder.in_box(image, look, check_box(box, image), passes)
        return None if found is None else found.hand

    def looking(self, image: Image, camera: Camera, right: float) -> Look:
        """Return the function that recovers the hand in each of some regions, for a finder."""
        if self.hand_length is not None:
            checked_length(self.hand_length, camera if camera.perspectivity > 0.5 else None)
        return lambda regions: self.recover([self.finder.view(image, camera, region, right) for region in regions])

    def recover(self, views: Sequence[View], memories: Sequence[Memory] | None = None) -> list[Found]:
        """Run the graph on views of one hand each, with its memory or none, and copy the hands to the host."""
        if memories is None:
            memories = [Memory.nothing(self.hand.num_betas)] * len(views)
        found = []
        for batch in stack(list(zip(views, memories, strict=True)), _MOST_AT_ONCE):
            found += unstack(jax.device_get(self._run(self._state, self.hand, *batch)))
        hands = [Found(*each) for each in found[: len(views)]]
        if self.hand_length is None:
            return hands
        return [replace(each, hand=with_length(self.hand, each.hand, self.hand_length)) for each in hands]


def side_prior(side: Side | None) -> float:
    """Return the prior probability of a right hand."""
    return 0.5 if side is None else float(side == "right")


def check_arguments(side: Any = None, hands: Any = None, passes: Any = 1) -> None:
    """Raise the InputError of `HandTailor` for arguments that do not depend on the image."""
    if side is not None and side not in get_args(Side):
        raise InputError(f"side is {side!r}: use right or left, or leave it out")
    for name, value in (("hands", 1 if hands is None else hands), ("passes", passes)):
        if not isinstance(value, int | np.integer) or not 1 <= value <= 100:
            raise InputError(f"{name} is {value!r}: give at least 1, at most 100")


class LandmarkFinder:
    """Finds hands for the landmark network: regions from the palm detector; the network's presence decides."""

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
        """Look into the regions of all palms outside of the known regions; return the hands by falling presence."""
        return self._detector.search(image, look, thorough=thorough, known=known)

    def in_box(self, image: Image, look: Look, box: Box, passes: int) -> Found | None:
        """Look into the region around the keypoints that the best of four turns of the box shows."""
        hand = self._detector.in_box(image, box, passes=passes - 1)
        found = None if hand is None else look([hand.next_region])[0]
        return found if found is not None and self.shows(found, image) else None

    def shows(self, found: Found, image: Image) -> bool:
        """Return whether a hand that was followed into this image is still there."""
        return found.presence > self._detector.config.presence

    def next_region(self, found: Found) -> Region:
        """Return the region around the keypoints, where the hand is expected in the next frame of a video."""
        return found.around_keypoints


class HourglassFinder:
    """Finds one hand for the hourglass: of upright squares, the one with the most confident keypoints wins."""

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
            best = max(looks, key=lambda found: _score(found, image))
            if _score(best, image) >= squares.ACQUIRE:
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
        return _score(found, image) >= squares.KEEP

    def next_region(self, found: Found) -> Region:
        """Return the square around the keypoints, between this one and the last."""
        return square_region(squares.next_square(found.box, found.keypoints_2d))


def _score(found: Found, image: Image) -> float:
    height, width = image.shape[:2]
    return squares.hand_score(found.keypoints_2d, found.hand.confidence, found.box[2], width, height)


def _closer(found: Found) -> Region:
    return square_region(squares.closer_square(found.box, found.keypoints_2d, found.hand.confidence))
