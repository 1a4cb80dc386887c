"""The whole method: an image and its camera in, a hand mesh that agrees with the picture out.

    estimate = hand_module(crop, camera)                # HandEstimate
    start    = initialize(hand, estimate, camera)       # Eq. 12, 15, 17
    fitted   = tailor(hand, start, estimate, camera)    # Eq. 13
    mesh     = hand.shape(fitted.betas).pose(fitted.pose).skin()

`recover` is that graph, differentiable from the mesh to the first convolution. `HandTailor` wraps it for pictures:
crops, left hands, batches. `HandVideo` follows one hand through the frames of a film.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jaxtyping import Array, Float, UInt8

from handtailor_jax.errors import InputError
from handtailor_jax.fit import Finished, HandFit, finish, hand_fit
from handtailor_jax.geometry.boxes import Box, square_around
from handtailor_jax.geometry.cameras import inverse_affine, transform_camera, transform_pixels
from handtailor_jax.geometry.mirror import mirror_camera, mirror_parameters, mirror_pixels
from handtailor_jax.geometry.rotations import rotate_towards
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.inference import inference_form
from handtailor_jax.hand_module.weights import embedded_weights, load_weights
from handtailor_jax.images import Picture, as_rgb, check_box, crop_square, whole
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.initialize import StartScale, initialize
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.tracking import HandSmoother, HandTrack, SmoothingConfig, TrackingConfig
from handtailor_jax.types import Camera, HandEstimate, HandParameters, Observation, Side, pytree

_NETWORK = TailorConfig.network()

_PAPER_CROP = 256
"""Side of the released network's crops, pixels."""

_LOOK = 1.45
"""Side of the box of a further look over the longer side of the keypoints' box: best, if barely, on the photographs
that the embedded weights were trained on, among 1.3, 1.45 and 1.6."""


@dataclasses.dataclass(frozen=True)
class HandResult:
    """The hand in one picture. Pixels are the picture's, whatever crop the network saw."""

    box: Box
    """The square that the network saw, (x, y, w, h), pixels; it may reach outside of the picture."""
    keypoints_2d: npt.NDArray[np.float32]
    """(21, 2) the hand module's keypoints (u, v), pixels."""
    confidence: npt.NDArray[np.float32]
    """(21,) how sure the hand module is of each, 0 to 1."""
    proposed: HandFit
    """The hand module's mesh, before the tailor."""
    fitted: HandFit
    """The mesh after the tailor; the proposed one if the tailor is off."""


@pytree
class Recovered:
    """What `recover` computes, with a leading batch axis."""

    estimate: HandEstimate
    """The hand module's output, in pixels of the crop and in the camera frame."""
    observation: Observation
    """The hand module's keypoints in pixels of the picture, and the picture's camera."""
    proposed: HandParameters
    """The proposal in the camera frame, with the hand module's own depth and size."""
    fitted: HandParameters
    """The tailored hand in the camera frame."""


@pytree
class Memory:
    """What is known of a hand from earlier frames; the tailor starts between it and the hand module's proposal."""

    pose: Float[Array, "16 3"]
    """Its last pose, axis-angle, radians."""
    betas: Float[Array, "betas"]
    """Its shape."""
    pose_share: Float[Array, ""]
    """How far from the proposed pose toward the last one the tailor starts, 0 to 1."""
    betas_share: Float[Array, ""]
    """The same for the shape."""

    @classmethod
    def nothing(cls, hand: HandModel) -> "Memory":
        """No earlier frames."""
        zero = jnp.zeros((), hand.dtype)
        return cls(jnp.zeros((16, 3), hand.dtype), jnp.zeros((hand.num_betas,), hand.dtype), zero, zero)


def recover(
    module: HandModule,
    hand: HandModel,
    crops: Float[Array, "batch size size 3"],
    cameras: Camera,
    to_crop: Float[Array, "batch 2 3"],
    config: TailorConfig | None,
    memory: Memory | None = None,
) -> Recovered:
    """The method's graph, from crops of right hands to fitted hands.

    Args:
        module: the hand module.
        hand: the hand model, a right hand.
        crops: RGB in [0, 1].
        cameras: of the pictures that the crops were cut from, with the batch axis; weak perspective where unknown.
        to_crop: affine map from pixels of each picture to pixels of its crop.
        config: the tailor's; None leaves the proposal as it is.
        memory: of the same hand in earlier frames.
    """
    memory = Memory.nothing(hand) if memory is None else memory
    crop_cameras = transform_camera(cameras, to_crop)
    estimate = module(crops, crop_cameras)
    confidence = estimate.confidence
    if config is not None and isinstance(config.energy, PaperEnergy):
        confidence = jnp.ones_like(confidence)  # the paper trusts all keypoints alike
    # The camera frame of a crop is that of its picture, so the tailor may work in any crop's pixels: in those of the
    # released network's, which the paper's weights are meant for.
    zoom = _PAPER_CROP / module.config.image_size
    offset = 0.5 * (zoom - 1.0)
    resize = jnp.asarray([[zoom, 0.0, offset], [0.0, zoom, offset]], to_crop.dtype)
    resize = jnp.broadcast_to(resize, to_crop.shape)
    keypoints_2d = transform_pixels(resize, estimate.keypoints_2d)
    seen = Observation(keypoints_2d, confidence, transform_camera(crop_cameras, resize))

    def one(estimate: HandEstimate, seen: Observation) -> tuple[HandParameters, HandParameters]:
        def place(pose: Array, betas: Array, scale: StartScale) -> HandParameters:
            depth, bone = estimate.root_depth, estimate.bone
            return initialize(hand, pose, betas, seen, root_depth=depth, bone=bone, scale=scale)

        proposed = place(estimate.pose, estimate.betas, "proposed")
        if config is None:
            return proposed, proposed
        pose = rotate_towards(estimate.pose, memory.pose, memory.pose_share)
        betas = estimate.betas + memory.betas_share * (memory.betas - estimate.betas)
        return proposed, tailor(hand, place(pose, betas, config.scale), seen, config)

    proposed, fitted = jax.vmap(one)(estimate, seen)
    observation = Observation(transform_pixels(inverse_affine(to_crop), estimate.keypoints_2d), confidence, cameras)
    return Recovered(estimate, observation, proposed, fitted)


@pytree
class _Results:
    """Everything of a batch that `HandResult`s are made of."""

    keypoints_2d: Float[Array, "batch 21 2"]
    confidence: Float[Array, "batch 21"]
    proposed: Finished
    fitted: Finished


def _run(
    graph: Any,
    config: TailorConfig | None,
    state: Any,
    hand: HandModel,
    crops: UInt8[Array, "batch size size 3"],
    cameras: Camera,
    to_crop: Float[Array, "batch 2 3"],
    memory: Memory,
) -> _Results:
    images = crops.astype(hand.dtype) / 255.0
    found = recover(nnx.merge(graph, state), hand, images, cameras, to_crop, config, memory)

    # Both hands in one axis: what describes them is compiled once.
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), found.proposed, found.fitted)
    of_batch = jax.vmap(functools.partial(_describe, hand))
    described = jax.vmap(of_batch, in_axes=(0, None))(both, found.observation)
    proposed, fitted = (jax.tree.map(lambda leaf, i=i: leaf[i], described) for i in range(2))
    return _Results(
        keypoints_2d=found.observation.keypoints_2d,
        confidence=found.estimate.confidence,
        proposed=proposed,
        fitted=dataclasses.replace(fitted, before=proposed.after),
    )


@jax.jit
def _describe(hand: HandModel, parameters: HandParameters, seen: Observation) -> Finished:
    infinite = jnp.asarray(jnp.inf, hand.dtype)
    found = finish(hand, parameters, seen, MANO, infinite, parameters, infinite)
    return dataclasses.replace(found, before=found.after)


def load_module(weights: str | Path | None, hand: HandModel | None) -> HandModule:
    """The hand module of a weight file, or the embedded one.

    Args:
        weights: file; the embedded weights if None.
        hand: hand model that it is to pose; the embedded hand if None.

    Raises:
        InputError: if the file cannot be read, or if the embedded weights are to pose another hand model, whose shape
            coefficients mean something else.
    """
    if weights is not None:
        return load_weights(Path(weights))
    if hand is not None:
        raise InputError(
            "the embedded weights know the embedded hand alone: with another hand model, give weights trained with it"
        )
    return embedded_weights()


class HandTailor:
    """Hands from pictures: ``HandTailor.load()(image)``."""

    def __init__(
        self, module: HandModule, hand: HandModel | None = None, config: TailorConfig | None = _NETWORK
    ) -> None:
        """Prepares a hand module for inference.

        Args:
            module: with trained weights.
            hand: hand model that the module was trained with; the embedded hand if None.
            config: the tailor's configuration; None switches the tailor off.
        """
        hand = embedded_hand() if hand is None else hand
        # The network has seen right hands only: left ones are mirrored in, and their meshes out again.
        self.hand = hand if hand.side == "right" else hand.mirrored()
        self.config = config
        self.image_size = module.config.image_size
        graph, self._state = nnx.split(inference_form(module))
        # As a static argument the graph would be hashed in every call, which takes longer than cropping the picture.
        self._run = jax.jit(functools.partial(_run, graph, config))

    @classmethod
    def load(
        cls, weights: str | Path | None = None, hand: HandModel | None = None, config: TailorConfig | None = _NETWORK
    ) -> "HandTailor":
        """A hand module from a weight file (`hand_module.weights`); the embedded weights if None.

        Raises:
            InputError: if the file cannot be read, or if the embedded weights are to pose another hand model.
        """
        return cls(load_module(weights, hand), hand, config)

    def __call__(
        self, image: Any, camera: Any = None, box: Any = None, side: Side = "right", *, looks: int = 1
    ) -> HandResult:
        """Recovers the hand in one picture.

        Args:
            image: (H, W, 3) RGB; see `images.as_rgb` for what else is accepted.
            camera: `Camera` or intrinsic matrix (3, 3) of the picture; None without intrinsics.
            box: (x, y, w, h) in pixels around the hand, with a margin; the hand is looked for (`locate`) if None.
            side: which hand it is.
            looks: how often the network looks; see `batch`.

        Raises:
            InputError: one line that names what is wrong.
        """
        result = self.batch([image], [camera], [box], [side], looks=looks)[0]
        if not np.isfinite(result.fitted.vertices).all():
            raise InputError("the network's output is not finite: its weights do not fit this picture or hand model")
        return result

    def batch(
        self,
        images: Sequence[Any],
        cameras: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        sides: Sequence[Side] | None = None,
        *,
        looks: int = 1,
    ) -> list[HandResult]:
        """Recovers one hand in each picture with one call of the network a look; compiled once per number of pictures.

        Arguments are lists of what `__call__` takes. A hand that comes out as not finite raises no error here.

        Args:
            images: (H, W, 3) each.
            cameras: of the pictures.
            boxes: around the hands.
            sides: which hands.
            looks: how often the network looks. The first look is at the box, each further one at the square around the
                keypoints of the one before: it makes up for a box that is too tight or too loose, and takes as long.
        """
        if looks < 1:
            raise InputError(f"looks has to be at least 1, not {looks}")
        count = len(images)
        cameras, boxes = cameras or [None] * count, boxes or [None] * count
        sides = sides or ["right"] * count
        if not len(cameras) == len(boxes) == len(sides) == count:
            raise InputError(f"{count} images with {len(cameras)} cameras, {len(boxes)} boxes and {len(sides)} sides")
        if not count:
            return []
        for each in zip(images, cameras, boxes, sides, strict=True):
            self.check(*each)
        pictures = [as_rgb(image) for image in images]
        squares = [
            self.locate(picture, side) if box is None else check_box(box, picture)
            for picture, box, side in zip(pictures, boxes, sides, strict=True)
        ]
        inputs = [
            self._prepare(picture, as_camera(camera), box, side)
            for picture, camera, box, side in zip(pictures, cameras, squares, sides, strict=True)
        ]
        found = self._recover(inputs, Memory.nothing(self.hand))
        for _ in range(looks - 1):
            inputs = [
                self._prepare(picture, each.camera, _closer(result), each.side)
                for picture, each, result in zip(pictures, inputs, found, strict=True)
            ]
            found = self._recover(inputs, Memory.nothing(self.hand))
        return found

    def check(self, image: Any, camera: Any = None, box: Any = None, side: Side = "right") -> None:
        """Raises the InputError that `__call__` would raise for these arguments before anything is computed."""
        if side not in ("right", "left"):
            raise InputError(f"side is 'right' or 'left', not {side!r}")
        picture = as_rgb(image)
        as_camera(camera)
        if box is not None:
            check_box(box, picture)

    def locate(self, image: Any, side: Side = "right") -> Box:
        """Where a hand seems to be in a picture: the most confident of a few squares, then a closer look at it.

        Returns:
            A box with a margin around the hand; the whole picture if none is found.
        """
        picture = as_rgb(image)
        track = HandTrack(picture.shape[1], picture.shape[0])
        found: int | None = None
        for _ in ("first", "grid"):
            if found is None:
                seen = [
                    self._recover([self._prepare(picture, as_camera(None), box, side)]) for box in track.candidates()
                ]
                track, found = track.after(
                    np.stack([hands[0].keypoints_2d for hands in seen]),
                    np.stack([hands[0].confidence for hands in seen]),
                )
        return whole(picture) if track.box is None else track.box

    def mesh(self, parameters: HandParameters, like: HandFit, keypoints_2d: Any, confidence: Any) -> HandFit:
        """The result for other parameters of a hand that was found, such as smoothed ones.

        Args:
            parameters: of the hand model of the result's side, in the camera frame.
            like: the result whose camera and side apply.
            keypoints_2d: (21, 2) what the reprojection error is measured against, pixels.
            confidence: (21,).
        """
        mirror = like.side == "left"
        camera = mirror_camera(like.camera, 1.0) if mirror else like.camera
        points = jnp.asarray(keypoints_2d)
        seen = Observation(mirror_pixels(points, 1.0) if mirror else points, jnp.asarray(confidence), camera)
        found = _describe(self.hand, mirror_parameters(parameters) if mirror else parameters, seen)
        return dataclasses.replace(
            self._as_fit(found, like.side, like.camera), reprojection_before=like.reprojection_before
        )

    def _prepare(self, picture: Picture, camera: Camera, box: Box, side: Side) -> "_Input":
        crop, to_crop, square = crop_square(picture, box, self.image_size)
        seen = camera
        if side == "left":  # the picture mirrored about its first column, u' = -u
            crop, seen = np.ascontiguousarray(crop[:, ::-1]), mirror_camera(camera, 1.0)
            to_crop[0, 2] = self.image_size - 1 - to_crop[0, 2]
        return _Input(crop, to_crop, seen, camera, square, side)

    def _recover(self, inputs: "list[_Input]", memory: Memory | None = None) -> list[HandResult]:
        found = self._run(
            self._state,
            self.hand,
            jnp.asarray(np.stack([each.crop for each in inputs])),
            jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *[each.seen for each in inputs]),
            jnp.asarray(np.stack([each.to_crop for each in inputs])),
            Memory.nothing(self.hand) if memory is None else memory,
        )
        found = jax.device_get(found)
        results = []
        for i, each in enumerate(inputs):
            of_one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
            flip = np.asarray([-1.0 if each.side == "left" else 1.0, 1.0], np.float32)
            results.append(
                HandResult(
                    box=each.box,
                    keypoints_2d=of_one.keypoints_2d * flip,
                    confidence=of_one.confidence,
                    proposed=self._as_fit(of_one.proposed, each.side, each.camera),
                    fitted=self._as_fit(of_one.fitted, each.side, each.camera),
                )
            )
        return results

    def _as_fit(self, finished: Finished, side: Side, camera: Camera) -> HandFit:
        if side == "left":
            finished = jax.tree.map(jnp.asarray, finished)
            finished = dataclasses.replace(finished, parameters=mirror_parameters(finished.parameters))
        finished = jax.device_get(finished)
        return hand_fit(finished, side, MANO.name, camera, np.asarray(self.hand.faces), side == "left")


def _closer(found: HandResult) -> Box:
    """The box for a further look: the square around the keypoints, or the same box where no hand was recognised."""
    keypoints, enough = np.asarray(found.keypoints_2d, np.float64), TrackingConfig()
    extent = np.ptp(keypoints, axis=0).max()
    if not found.confidence.mean() >= enough.keep or not extent >= enough.min_share * found.box[2]:
        return found.box
    return square_around(keypoints, _LOOK)


@dataclasses.dataclass(frozen=True)
class _Input:
    """One picture as the compiled graph takes it."""

    crop: Picture
    to_crop: npt.NDArray[np.float32]
    seen: Camera
    """The camera of the picture as the network sees it: mirrored for a left hand."""
    camera: Camera
    box: Box
    side: Side


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """How a hand is followed through a film."""

    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    smooth: bool = True
    """Whether results are smoothed in time, which costs a lag of about one frame."""
    pose_share: float = 0.3
    """How far from a frame's own proposal toward the last frame's pose the tailor starts."""
    shape_frames: int = 60
    """A track's shape is the mean over its frames; beyond this number old ones fade."""


class HandVideo:
    """Follows one hand through the frames of a film; call it with one frame after the other."""

    def __init__(
        self,
        tailor: HandTailor,
        rate: float = 30.0,
        camera: Any = None,
        box: Any = None,
        side: Side = "right",
        config: VideoConfig = VideoConfig(),
    ) -> None:
        """Before the first frame.

        Args:
            tailor: for single pictures.
            rate: frames per second.
            camera: of all frames, as in `HandTailor`.
            box: where the hand is looked for first; the whole frame if None.
            side: which hand it is.
            config: how it is followed.
        """
        self._tailor, self._camera, self._side, self._config = tailor, as_camera(camera), side, config
        self._smoothing = SmoothingConfig.at(rate) if config.smooth else None
        self._first_box = box
        self._track: HandTrack | None = None
        self.frames = 0
        """How many frames it has been shown."""
        self._forget()

    def _forget(self) -> None:
        self._memory = Memory.nothing(self._tailor.hand)
        self._track_length = 0
        perspective = bool(self._camera.perspectivity > 0.5)
        self._smoother = None if self._smoothing is None else HandSmoother(perspective, self._smoothing)

    def __call__(self, frame: Any, time: float) -> HandResult | None:
        """The hand in the next frame; None where none is found.

        Args:
            frame: (H, W, 3) RGB; all frames have one size.
            time: seconds, rising.
        """
        picture = as_rgb(frame)
        self.frames += 1
        height, width = picture.shape[:2]
        if self._track is None:
            first = None if self._first_box is None else check_box(self._first_box, picture)
            self._track = HandTrack(width, height, first, self._config.tracking)
        elif (self._track.width, self._track.height) != (width, height):
            raise InputError(
                f"frames change from {self._track.width} x {self._track.height} to {width} x {height} pixels"
            )
        for _ in ("following", "first", "grid"):
            memory = self._memory if self._track.stage == "following" else Memory.nothing(self._tailor.hand)
            seen = [
                self._tailor._recover([self._tailor._prepare(picture, self._camera, box, self._side)], memory)[0]
                for box in self._track.candidates()
            ]
            stage = self._track.stage
            self._track, best = self._track.after(
                np.stack([hand.keypoints_2d for hand in seen]), np.stack([hand.confidence for hand in seen])
            )
            if best is not None:
                if stage != "following":
                    self._forget()
                return self._remember(seen[best], time)
            if stage == "grid":
                break
        return None

    def _remember(self, found: HandResult, time: float) -> HandResult:
        """The result with the track's shape, smoothed; what the next frame starts from is kept."""
        fitted = found.fitted.parameters
        if found.fitted.side == "left":
            fitted = mirror_parameters(fitted)
        self._track_length = min(self._track_length + 1, self._config.shape_frames)
        betas = self._memory.betas + (jnp.asarray(fitted.betas) - self._memory.betas) / self._track_length
        share = jnp.asarray(self._config.pose_share, betas.dtype)
        self._memory = Memory(jnp.asarray(fitted.pose), betas, share, jnp.ones_like(share))
        parameters = dataclasses.replace(found.fitted.parameters, betas=betas)
        if self._smoother is not None:
            parameters = self._smoother(parameters, time)
        fit = self._tailor.mesh(parameters, found.fitted, found.keypoints_2d, found.confidence)
        return dataclasses.replace(found, fitted=fit)


def as_camera(camera: Any) -> Camera:
    """A camera from a `Camera`, an intrinsic matrix, or None (weak perspective, measured in pixels).

    Raises:
        InputError: if it is none of these.
    """
    if camera is None:
        return Camera.weak_perspective()
    if isinstance(camera, Camera):
        return camera
    matrix = np.asarray(camera, np.float32)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[0, 0] <= 0.0 or matrix[1, 1] <= 0.0:
        raise InputError("camera is an intrinsic matrix K of shape (3, 3) with positive focal lengths, in pixels")
    return Camera.from_matrix(matrix)
