"""`HandTailor` finds the hands of images and runs the graph of `pipeline.py` on them, which recovers their meshes.

A finder for each network (finders.py) chooses the regions to search and the hands to accept.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

from handtailor_jax.detector.detector import HandDetector, answered, stack, unstack
from handtailor_jax.detector.regions import from_landmarks
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.errors import InputError
from handtailor_jax.finders import Found, HourglassFinder, LandmarkFinder, Look
from handtailor_jax.geometry.cameras import as_camera, checked_length
from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.hand_module.weights import load_iknet, load_module
from handtailor_jax.images import Image, as_rgb, check_box
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import given_hand
from handtailor_jax.pipeline import Preset, fitting_config, recover_views
from handtailor_jax.programs import is_own, kept
from handtailor_jax.tailor.placement import with_length
from handtailor_jax.types import Camera, Hand, Memory, NetworkName, Region, Side, View

_MOST_AT_ONCE = 8
"""Hands in one run of the graph; fewer hands are padded to 1, 2, 4 or 8, so that only four programs are compiled."""

# Limits of the images that `HandTailor.many` holds: their number (two runs with one hand each) and their bytes.
_MOST_IMAGES, _MOST_BYTES = 2 * _MOST_AT_ONCE, 2**28


@dataclass(frozen=True)
class Request:
    """An image with its optional camera, box and side; `HandTailor.__call__` and `one` describe the fields."""

    image: Any
    camera: Any = None
    box: Any = None
    side: Side | None = None


class HandTailor:
    """Recovers all hands of an image: ``HandTailor.load()(image)``."""

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
            InputError: If the energy is not defined for this hand module's keypoints, or `hand_length` is not a hand's.
        """
        hand = given_hand(hand)
        self.hand = hand if hand.side == "right" else hand.mirrored()
        self.config = fitting_config(module, config)
        self.hand_length = None if hand_length is None else checked_length(hand_length, camera="of each image")
        self.finder: LandmarkFinder | HourglassFinder
        if isinstance(module, HandModule):
            module = inference_form(module)
        if module.landmark_network is None:
            self.finder = HourglassFinder(module.image_size)
        else:
            self.finder = LandmarkFinder(HandDetector(landmark_network=module.landmark_network), module.image_size)
        self.module = module
        graph, self._state = nnx.split(module)

        # A static argument would be hashed in every call, which takes longer than cropping the image.
        def run(state: Any, hand: HandModel, views: View, memory: Memory) -> tuple[Hand, Region]:
            hands = recover_views(nnx.merge(graph, state), hand, views, self.config, memory)
            return hands, from_landmarks(hands.detected_keypoints_2d)

        self._run = jax.jit(kept(run, "recover", graph, self.config) if is_own(module) else run)

    @property
    def finds_all(self) -> bool:
        """Whether all hands and their sides are found: by a landmark network, alone or in the hourglass's stem."""
        return self.module.landmark_network is not None

    def __getstate__(self) -> Any:
        # Compiled programs cannot be pickled; networks are pickled as their structure and arrays.
        others = vars(self).keys() - {"module", "finder", "_state", "_run"}
        return *nnx.split(self.module), {name: vars(self)[name] for name in others}

    def __setstate__(self, stored: Any) -> None:
        graph, state, others = stored
        HandTailor.__init__(self, nnx.merge(graph, state), others["hand"], others["config"], others["hand_length"])
        vars(self).update(others)  # attributes of a subclass

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
            weights: Weight file of a hand module, the embedded one if None; "landmarks" uses only its IKNet.
            hand: Hand model; the one that the weights were trained with for "hourglass". The embedded hand if None.
            config: Energy and solver of the tailor; "auto" for the preset of this network, None for no tailor.
            network: "landmarks": the landmark network and IKNet. "hourglass": the paper's network; in the embedded
                weights its stem is a landmark network. With weights of another stem it finds one hand, a right one
                unless `side` is given.
            hand_length: Distance from the wrist to the middle fingertip of the flat hand, metres: makes depths metric;
                all images need a camera.

        Raises:
            InputError: If the network's name or the weight file is invalid.
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
        """Recover all hands of an image, by decreasing presence; at most one if not `finds_all`.

        Args:
            image: (H, W, 3) RGB image; `images.as_rgb` lists what else is accepted.
            camera: `Camera`, intrinsic matrix (3, 3) or {fx, fy, cx, cy} of the image, pixels; None if unknown.
            side: Side of all hands; if None, it is estimated, or right if not `finds_all`.
            hands: Largest number of hands; no limit if None.
            thorough: Whether overlapping tiles of the image are searched, too, which finds smaller hands and takes four
                to ten times as long; if None, only where the whole image shows no hand. If none is found, the image is
                searched like a `box` around one hand, too. Needs `finds_all`.

        Raises:
            InputError: If an argument is invalid.
        """
        check_arguments(side, hands)
        image = as_rgb(image)
        look = self.looking(image, as_camera(camera), side_prior(side))
        found = answered(self.finder.searching(image, thorough, None, 1), look)
        return [each.hand for each in found[:hands]]

    def one(
        self, image: Any, camera: Any = None, box: Any = None, side: Side | None = None, *, passes: int = 2
    ) -> Hand | None:
        """Recover one hand of an image; None if there is none. If not `finds_all`, a box always gives a hand.

        Image, camera and side are those of `__call__`. The box (x, y, w, h) around the hand is in pixels; without it,
        the hand of highest presence is returned. In a box, each further forward pass crops the hand closer, around the
        keypoints of the previous pass.

        Raises:
            InputError: If an argument is invalid.
        """
        check_arguments(side, passes=passes)
        if box is None:
            return next(iter(self(image, camera, side=side, hands=1)), None)
        image = as_rgb(image)
        look = self.looking(image, as_camera(camera), side_prior(side))
        found = answered(self.finder.searching(image, None, check_box(box, image), passes), look)
        return found[0].hand if found else None

    def many(
        self,
        requests: Iterable[Request | InputError],
        *,
        hands: int | None = None,
        thorough: bool | None = None,
        passes: int = 2,
    ) -> Iterator[tuple[Request | InputError, list[Hand] | InputError]]:
        """Recover the hands of many images, and yield them with their requests in the same order.

        The hands are those that `one` returns for a box, or else `__call__`, but hands of several images share a run of
        the graph. The result of a request that is refused is its `InputError`; errors among the requests are passed on.
        The images of at most 16 requests are held, and no further one while they have 256 MiB.

        Raises:
            InputError: If `hands` or `passes` is out of range.
        """
        check_arguments(None, hands, passes)
        source = (_checked(request) for request in requests)
        waiting: deque[_Waiting] = deque()
        while True:
            while waiting and (result := waiting[0].result) is not None:
                yield waiting.popleft().request, result if isinstance(result, InputError) else result[:hands]
            views = [view for each in waiting for view in each.views]
            full = len(waiting) >= _MOST_IMAGES or sum(each.size for each in waiting) >= _MOST_BYTES
            if len(views) < _MOST_AT_ONCE and not full and (request := next(source, None)) is not None:
                waiting.append(_Waiting(self, request, thorough, passes))
            elif views:
                count = min(len(views), _MOST_AT_ONCE)
                # All runs have one size, so that a hand's numbers do not depend on how many images are left.
                views = views[:count] + views[-1:] * (_MOST_AT_ONCE - count)
                found = self.recover(views)[:count]
                for each in waiting:
                    found = each.take(found)
            elif not waiting:
                return

    def looking(self, image: Image, camera: Camera, right: float) -> Look:
        """Return a function that recovers the hand in each region of an image, for a finder."""
        view = self.viewing(image, camera, right)
        return lambda regions: self.recover([view(region) for region in regions])

    def viewing(self, image: Image, camera: Camera, right: float) -> Callable[[Region], View]:
        """Return a function that cuts regions out of an image; `hand_length` needs its camera."""
        if self.hand_length is not None:
            checked_length(self.hand_length, camera if camera.perspectivity > 0.5 else None)
        return lambda region: self.finder.view(image, camera, region, right)

    def recover(self, views: Sequence[View], memories: Sequence[Memory] | None = None) -> list[Found]:
        """Run the graph on views of one hand each, with a memory for each if given, and copy the hands to the host."""
        if memories is None:
            memories = [Memory.nothing(self.hand.num_betas)] * len(views)
        found = []
        for batch in stack(list(zip(views, memories, strict=True)), _MOST_AT_ONCE):
            found += unstack(jax.device_get(self._run(self._state, self.hand, *batch)))
        hands = [Found(*each) for each in found[: len(views)]]
        if self.hand_length is None:
            return hands
        return [replace(each, hand=with_length(self.hand, each.hand, self.hand_length)) for each in hands]


class _Waiting:
    """The search in one image; its views share runs of the graph with views of other images."""

    def __init__(self, tailor: HandTailor, request: Request | InputError, thorough: bool | None, passes: int) -> None:
        self.request, self.views, self._found = request, list[View](), list[Found]()
        self.result: list[Hand] | InputError | None = None
        self.size = 0
        """Bytes of the image."""
        if isinstance(request, InputError):
            self.result = request
            return
        try:
            check_arguments(request.side)
            image, camera, right = as_rgb(request.image), as_camera(request.camera), side_prior(request.side)
            self.size = image.nbytes
            box = None if request.box is None else check_box(request.box, image)
            self._view = tailor.viewing(image, camera, right)
            self._search = tailor.finder.searching(image, thorough, box, passes)
            self._send(None)
        except InputError as error:
            self.result = error

    def take(self, found: list[Found]) -> list[Found]:
        """Take the hands of the first views, and return the hands that belong to later searches."""
        count = min(len(found), len(self.views))
        self._found, self.views = self._found + found[:count], self.views[count:]
        if count and not self.views:
            self._send(self._found)
        return found[count:]

    def _send(self, found: Any) -> None:
        """Continue the search until it yields further regions or ends."""
        self._found = []
        try:
            self.views = [self._view(region) for region in self._search.send(found)]
        except StopIteration as end:
            self.result = [each.hand for each in end.value]
        except InputError as error:
            self.result = error


def _checked(request: Any) -> Request | InputError:
    known = isinstance(request, Request | InputError)
    return request if known else InputError(f"request is a {type(request).__name__}: give Request(image, ...)")


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
