"""`HandTailor`: images in, hands with meshes out. It finds the hands and runs the graph of `pipeline.py` on them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np
from flax import nnx

from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.detector.regions import from_landmarks
from handtailor_jax.errors import InputError
from handtailor_jax.finders import Finder, Found, HourglassFinder, LandmarkFinder
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.hand_module.weights import load_module
from handtailor_jax.images import Image, as_rgb, check_box
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.pipeline import recover_views
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Camera, Hand, Memory, NetworkName, Region, Side, View

Tree = TypeVar("Tree")

_MOST_AT_ONCE = 8
"""Hands in one run of the graph; fewer hands are padded to 1, 2, 4 or 8, so that only four programs are compiled."""


class HandTailor:
    """Recover all hands of an image: ``HandTailor.load()(image)``."""

    def __init__(
        self,
        module: HandModule | LandmarkHandModule,
        hand: HandModel | None = None,
        config: TailorConfig | Literal["auto"] | None = "auto",
    ) -> None:
        """Prepare a hand module for inference; programs are compiled at the first call.

        Args:
            module: Trained hand module.
            hand: Hand model that the hand module was trained with; the embedded hand if None.
            config: Energy and solver of the tailor; "auto" for the preset of this hand module, None for no tailor.

        Raises:
            InputError: If the energy is not defined for this hand module's keypoints.
        """
        hand = embedded_hand() if hand is None else hand
        self.hand = hand if hand.side == "right" else hand.mirrored()
        self.finder: Finder
        if isinstance(module, LandmarkHandModule):
            preset = TailorConfig.plug_in()
            self.finder = LandmarkFinder(HandDetector(landmark_network=module.network), module.image_size)
        else:
            preset = TailorConfig.network()
            self.finder = HourglassFinder(module.image_size)
            module = inference_form(module)
        self.config = preset if config == "auto" else config
        if isinstance(module, LandmarkHandModule) and self.config and isinstance(self.config.energy, PaperEnergy):
            raise InputError(
                "the paper's energies are defined for the hand model's own keypoints, not for the landmark network's: "
                "choose another preset, or the network hourglass"
            )
        self.module = module
        graph, self._state = nnx.split(module)

        # A static argument would be hashed in every call, which takes longer than cropping the image.
        @jax.jit
        def run(state: Any, hand: HandModel, views: View, memory: Memory) -> tuple[Hand, Region]:
            hands = recover_views(nnx.merge(graph, state), hand, views, self.config, memory)
            return hands, from_landmarks(hands.detected_keypoints_2d)

        self._run = run

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        hand: HandModel | None = None,
        config: TailorConfig | Literal["auto"] | None = "auto",
        network: NetworkName = "landmarks",
    ) -> "HandTailor":
        """Load the networks.

        Args:
            weights: Weight file of a hand module, of which "landmarks" uses IKNet alone; the embedded one if None.
            hand: Hand model; the one that the weights were trained with for "hourglass". The embedded hand if None.
            config: Energy and solver of the tailor; "auto" for the preset of this network, None for no tailor.
            network: "landmarks": all hands of any image, both sides. "hourglass": the paper's network, one hand.

        Raises:
            InputError: One line that names what is wrong with the network's name or the weight file.
        """
        if network not in get_args(NetworkName):
            raise InputError(f"network is {network!r}: use landmarks or hourglass")
        if network == "landmarks":
            return cls(LandmarkHandModule.beside(load_module(weights, None)), hand, config)
        return cls(load_module(weights, hand), hand, config)

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
        image, known = as_rgb(image), as_camera(camera)
        found = self.finder.all(image, self.looking(image, known, side_prior(side)), thorough)
        return [each.hand for each in found[:hands]]

    def one(
        self, image: Any, camera: Any = None, box: Any = None, side: Side | None = None, *, passes: int = 2
    ) -> Hand | None:
        """Recover one hand of an image; None if there is none. The hourglass always outputs a hand for a box.

        Args:
            image: Image; this and `camera` and `side` are those of `__call__`.
            camera: Camera of the image.
            box: Box (x, y, w, h) around the hand, pixels; if None, the most present hand of the image is returned.
            side: Side of the hand.
            passes: Number of forward passes for a box. Each further one crops the hand closer, around the keypoints of
                the pass before.

        Raises:
            InputError: One line that names what is wrong.
        """
        check_arguments(side, passes=passes)
        if box is None:
            return next(iter(self(image, camera, side=side, hands=1)), None)
        image, known = as_rgb(image), as_camera(camera)
        look = self.looking(image, known, side_prior(side))
        found = self.finder.in_box(image, look, check_box(box, image), passes)
        return None if found is None else found.hand

    def looking(self, image: Image, camera: Camera, right: float) -> Any:
        """Return the function that recovers the hand in each of some regions, for a `Finder`."""

        def look(regions: Sequence[Region]) -> list[Found]:
            return self.recover([self.finder.view(image, camera, region, right) for region in regions])

        return look

    def recover(self, views: Sequence[View], memories: Sequence[Memory] | None = None) -> list[Found]:
        """Run the graph on views, whether they show a hand or not, and copy the hands to the host.

        Views and memories (the hands in earlier frames) are of one hand each, without batch axes.
        """
        if memories is None:
            memories = [Memory.nothing(self.hand.num_betas)] * len(views)
        found = []
        for first in range(0, len(views), _MOST_AT_ONCE):
            part = list(zip(views, memories, strict=True))[first : first + _MOST_AT_ONCE]
            padded = part + part[-1:] * (2 ** math.ceil(math.log2(len(part))) - len(part))
            batch, memory = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
            result = jax.device_get(self._run(self._state, self.hand, batch, memory))
            found += [Found(*jax.tree.map(lambda leaf, i=i: leaf[i], result)) for i in range(len(part))]
        return found


def side_prior(side: Side | None) -> float:
    """Return the prior probability of a right hand."""
    return 0.5 if side is None else float(side == "right")


def check_arguments(side: Any = None, hands: Any = None, passes: int = 1) -> None:
    """Raise the InputError of `HandTailor` for arguments that do not depend on the image."""
    if side is not None and side not in get_args(Side):
        raise InputError(f"side is {side!r}: use right or left, or leave it out")
    if hands is not None and hands < 1:
        raise InputError(f"hands is {hands}: give at least 1")
    if passes < 1:
        raise InputError(f"passes is {passes}: give at least 1")


def check_finite(hand: Hand) -> None:
    """Raise an InputError if a hand has vertices that are not finite."""
    if not np.isfinite(hand.vertices).all():
        raise InputError("the network's output is not finite: its weights do not fit this image or hand model")
