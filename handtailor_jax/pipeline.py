"""The whole method as one graph of arrays, from crops and cameras to hand meshes, and `HandTailor` around it.

For one hand, the graph is:

>>> estimate = hand_module(crop, camera)                                      # HandEstimate
>>> seen = Observation(estimate.keypoints_2d, estimate.confidence, camera)
>>> depth, bone = estimate.root_depth, estimate.bone
>>> start = initialize(hand, estimate.pose, estimate.betas, seen, root_depth=depth, bone=bone)  # Eq. 12, 17
>>> fitted = tailor(hand, start, seen)                                        # Eq. 13
>>> mesh = hand.shape(fitted.betas).pose(fitted.pose).skin()                  # Eq. 1
>>> mesh.vertices.shape
(1609, 3)

`recover` is that graph for a batch, differentiable from the mesh to the first convolution. `recover_views` also mirrors
left hands inside the graph. `HandTailor` wraps it for images: it cuts out crops, runs the graph, and copies the hands
to the host once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.detector.scan import HandTrack, Stage, closer_box
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import Box
from handtailor_jax.geometry.cameras import as_camera, inverse_affine, transform_camera, transform_pixels
from handtailor_jax.geometry.mirror import choose, mirror_camera, mirror_hand, mirror_pose
from handtailor_jax.geometry.rotations import rotate_towards
from handtailor_jax.hand_module.hand_module import HandModule, inference_form
from handtailor_jax.hand_module.weights import load_module
from handtailor_jax.images import Picture, as_rgb, check_box, crop_square, whole
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.initialize import initialize
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.placement import describe
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, Hand, HandEstimate, HandParameters, Memory, Observation, Side, View

_NETWORK = TailorConfig.network()

_PAPER_CROP = 256
"""Side of the crops of the paper's network, pixels."""


def recover(
    module: HandModule,
    hand: HandModel,
    crops: Float[Array, "batch size size 3"],
    cameras: Camera,
    to_crop: Float[Array, "batch 2 3"],
    config: TailorConfig | None,
    memory: Memory | None = None,
) -> tuple[HandEstimate, Hand]:
    """Recover hands from crops of right hands.

    Args:
        module: Hand module.
        hand: Hand model of right hands.
        crops: RGB crops with values in [0, 1].
        cameras: Cameras of the images that the crops were cut from; weak perspective where intrinsics are unknown.
        to_crop: Affine map from pixels of each image to pixels of its crop.
        config: Energy and solver of the tailor; None returns the proposal.
        memory: The same hands in earlier frames.

    Returns:
        The hand module's estimate in pixels of the crops, and the tailored hands in pixels of the images, which hold
        the `proposed` ones. Both have a leading batch axis.
    """
    crop_cameras = transform_camera(cameras, to_crop)
    estimate = module(crops, crop_cameras)
    confidence = estimate.confidence
    if config is not None and isinstance(config.energy, PaperEnergy):
        confidence = jnp.ones_like(confidence)  # the paper weighs all keypoints equally
    # The camera frame of a crop is the one of its image, so the tailor may work in pixels of any crop. It works in
    # pixels of the paper's crops, for which the paper's energies are weighted.
    zoom = _PAPER_CROP / module.config.image_size
    offset = 0.5 * (zoom - 1.0)
    resize = jnp.asarray([[zoom, 0.0, offset], [0.0, zoom, offset]], to_crop.dtype)
    resize = jnp.broadcast_to(resize, to_crop.shape)
    in_crop = Observation(
        transform_pixels(resize, estimate.keypoints_2d), confidence, transform_camera(crop_cameras, resize)
    )
    in_image = Observation(transform_pixels(inverse_affine(to_crop), estimate.keypoints_2d), confidence, cameras)

    def one(estimate: HandEstimate, in_crop: Observation, in_image: Observation, memory: Memory | None) -> Hand:
        proposed, fitted = _fit(hand, estimate, in_crop, config, memory)
        # Both hands in one axis, so that their description is compiled once.
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), proposed, fitted)
        both = jax.vmap(lambda each: describe(hand, each, in_image))(both)
        both = dataclasses.replace(both, confidence=jnp.broadcast_to(estimate.confidence[None], (2, 21)))
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
        return dataclasses.replace(second, proposed=first, reprojection_before=first.reprojection_after)

    return estimate, jax.vmap(one)(estimate, in_crop, in_image, memory)


def _fit(
    hand: HandModel,
    estimate: HandEstimate,
    observation: Observation,
    config: TailorConfig | None,
    memory: Memory | None,
) -> tuple[HandParameters, HandParameters]:
    """Place one hand's estimate in the camera frame, and tailor it to the observation; return both."""
    depth, bone = estimate.root_depth, estimate.bone
    place = functools.partial(initialize, hand, observation=observation, root_depth=depth, bone=bone)
    proposed = place(pose=estimate.pose, betas=estimate.betas, scale="proposed")
    if config is None:
        return proposed, proposed
    pose, betas = estimate.pose, estimate.betas
    if memory is not None:
        pose = rotate_towards(pose, memory.pose, memory.pose_share)
        betas = betas + memory.betas_share * (memory.betas - betas)
    start = place(pose=pose, betas=betas, scale=config.scale)
    return proposed, tailor(hand, start, observation, config)


def recover_views(
    module: HandModule, hand: HandModel, views: View, config: TailorConfig | None, memory: Memory
) -> Hand:
    """Recover the hands of a batch of views; left hands are mirrored on the way in and out."""
    size = module.config.image_size

    def as_right(view: View, memory: Memory) -> tuple[View, Memory]:
        # The image is mirrored about its first column, u' = -u, and the crop about its middle.
        signs = jnp.asarray([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]], view.to_crop.dtype)
        to_crop = (view.to_crop * signs).at[0, 2].add(size - 1.0)
        camera = mirror_camera(view.camera, 1.0)
        mirrored = dataclasses.replace(view, crop=view.crop[:, ::-1], to_crop=to_crop, camera=camera)
        remembered = dataclasses.replace(memory, pose=mirror_pose(memory.pose))
        return choose(view.left, (mirrored, remembered), (view, memory))

    def as_found(view: View, found: Hand) -> Hand:
        found = choose(view.left, mirror_hand(found), found)
        return dataclasses.replace(found, box=view.box)

    right, memory = jax.vmap(as_right)(views, memory)
    crops = right.crop.astype(hand.dtype) / 255.0
    _, hands = recover(module, hand, crops, right.camera, right.to_crop, config, memory)
    return jax.vmap(as_found)(views, hands)


class HandTailor:
    """Recover hands from images: ``HandTailor.load()(image)``."""

    def __init__(
        self, module: HandModule, hand: HandModel | None = None, config: TailorConfig | None = _NETWORK
    ) -> None:
        """Prepare a hand module for inference.

        Args:
            module: Trained hand module.
            hand: Hand model that the module was trained with; the embedded hand if None.
            config: Energy and solver of the tailor; None switches the tailor off.
        """
        hand = embedded_hand() if hand is None else hand
        self.hand = hand if hand.side == "right" else hand.mirrored()
        self.config = config
        self.image_size = module.config.image_size
        graph, self._state = nnx.split(inference_form(module))
        # A static argument would be hashed in every call, which takes longer than cropping the image.
        self._run = jax.jit(
            lambda state, hand, views, memory: recover_views(nnx.merge(graph, state), hand, views, config, memory)
        )

    @classmethod
    def load(
        cls, weights: str | Path | None = None, hand: HandModel | None = None, config: TailorConfig | None = _NETWORK
    ) -> "HandTailor":
        """Load a hand module from a weight file, or the embedded one; see `load_module`."""
        return cls(load_module(weights, hand), hand, config)

    def __call__(
        self, image: Any, camera: Any = None, box: Any = None, side: Side = "right", *, looks: int = 1
    ) -> Hand:
        """Recover the hand in one image.

        Args:
            image: (H, W, 3) RGB image; `images.as_rgb` lists what else is accepted.
            camera: `Camera`, intrinsic matrix (3, 3) or {fx, fy, cx, cy} of the image, pixels; None if unknown.
            box: Box (x, y, w, h) around the hand with a margin, pixels; `locate` looks for the hand if None.
            side: Side of the hand.
            looks: Number of forward passes; see `batch`.

        Raises:
            InputError: One line that names what is wrong.
        """
        hand = self.batch([image], [camera], [box], [side], looks=looks)[0]
        check_finite(hand)
        return hand

    def batch(
        self,
        images: Sequence[Any],
        cameras: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        sides: Sequence[Side] | None = None,
        *,
        looks: int = 1,
    ) -> list[Hand]:
        """Recover one hand in each image with one program, which is compiled once for each number of images.

        A hand that is not finite raises no error here.

        Args:
            images: Images as `__call__` takes them; so are `cameras`, `boxes` and `sides`.
            cameras: Cameras of the images; None if all are unknown.
            boxes: Boxes around the hands; None looks for all hands.
            sides: Sides of the hands; None for right hands.
            looks: Number of forward passes. The first crop is the box; each further crop is the square around the
                keypoints of the pass before, which corrects a tight or loose box and costs one more forward pass.
        """
        if looks < 1:
            raise InputError(f"looks is {looks}: give at least 1")
        count = len(images)
        cameras = [None] * count if cameras is None else list(cameras)
        boxes = [None] * count if boxes is None else list(boxes)
        sides = ["right"] * count if sides is None else list(sides)
        if not len(cameras) == len(boxes) == len(sides) == count:
            raise InputError(f"{count} images with {len(cameras)} cameras, {len(boxes)} boxes and {len(sides)} sides")
        if not count:
            return []
        for each in zip(images, cameras, boxes, sides, strict=True):
            self.check(*each)
        arrays, known = [as_rgb(image) for image in images], [as_camera(camera) for camera in cameras]
        squares = [
            self.locate(image, side) if box is None else check_box(box, image)
            for image, box, side in zip(arrays, boxes, sides, strict=True)
        ]
        hands = self.recover(list(map(self.view, arrays, known, squares, sides)))
        for _ in range(looks - 1):
            hands = self.recover(list(map(self.view, arrays, known, map(_closer, hands), sides)))
        return hands

    def check(self, image: Any, camera: Any = None, box: Any = None, side: Side = "right") -> None:
        """Raise the InputError that `__call__` would raise for these arguments before it computes anything."""
        if side not in get_args(Side):
            raise InputError(f"side is {side!r}: use right or left")
        array = as_rgb(image)
        as_camera(camera)
        if box is not None:
            check_box(box, array)

    def locate(self, image: Any, side: Side = "right") -> Box:
        """Return a square with a margin around the hand in an image; the whole image if no hand is found."""
        array = as_rgb(image)
        track = HandTrack(array.shape[1], array.shape[0])
        while track.stage is not Stage.FOLLOWING:
            searched = track.stage
            track, _ = self.look(track, array, as_camera(None), side)
            if searched is Stage.GRID:
                break
        return whole(array) if track.box is None else track.box

    def look(
        self, track: HandTrack, image: Picture, camera: Camera, side: Side, memory: Memory | None = None
    ) -> tuple[HandTrack, Hand | None]:
        """Look into every candidate of a track; return the next track, and the hand if one candidate shows it."""
        hands = [self.recover([self.view(image, camera, box, side)], memory)[0] for box in track.candidates()]
        keypoints_2d = np.stack([hand.detected_keypoints_2d for hand in hands])
        track, best = track.after(keypoints_2d, np.stack([hand.confidence for hand in hands]))
        return track, None if best is None else hands[best]

    def view(self, image: Picture, camera: Camera, box: Box, side: Side) -> View:
        """Cut out the square around a box, on the host."""
        crop, to_crop, square = crop_square(image, box, self.image_size)
        return View(crop, to_crop, np.asarray(square, np.float32), camera, np.asarray(side == "left"))

    def recover(self, views: Sequence[View], memory: Memory | None = None) -> list[Hand]:
        """Run the graph on a batch of views, and copy the hands to the host once."""
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *views)
        memory = Memory.nothing(len(views), self.hand.num_betas) if memory is None else memory
        hands = jax.device_get(self._run(self._state, self.hand, batch, memory))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], hands) for i in range(len(views))]


def check_finite(hand: Hand) -> None:
    """Raise an InputError if a hand has vertices that are not finite."""
    if not np.isfinite(hand.vertices).all():
        raise InputError("the network's output is not finite: its weights do not fit this image or hand model")


def _closer(hand: Hand) -> Box:
    assert hand.box is not None
    return closer_box(hand.box, hand.detected_keypoints_2d, hand.confidence)
