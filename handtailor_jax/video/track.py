"""Follow one hand through the frames of a video."""

import dataclasses
from typing import Any

import jax
import numpy as np

from handtailor_jax.detector.scan import HandTrack, Stage, TrackingConfig
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.geometry.mirror import choose, mirror_camera, mirror_hand, mirror_parameters, mirror_pixels
from handtailor_jax.images import as_rgb, check_box
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.pipeline import HandTailor
from handtailor_jax.tailor.placement import describe
from handtailor_jax.types import Hand, HandParameters, Memory, Observation, Side
from handtailor_jax.video.smoothing import HandSmoother, SmoothingConfig


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """How a hand is followed through a video."""

    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    smooth: bool = True
    """Whether results are smoothed in time, which costs a lag of about one frame."""
    pose_share: float = 0.3
    """Position of the tailor's start between the proposed pose (0) and the pose of the last frame (1)."""
    shape_frames: int = 60
    """Number of frames over which the shape of a track is averaged; older frames fade."""


class HandVideo:
    """Follow one hand through the frames of a video; call it with one frame after the other."""

    def __init__(
        self,
        tailor: HandTailor,
        rate: float = 30.0,
        camera: Any = None,
        box: Any = None,
        side: Side = "right",
        config: VideoConfig = VideoConfig(),
    ) -> None:
        """Prepare for the first frame.

        Args:
            tailor: `HandTailor` for single images.
            rate: Frames per second.
            camera: Camera of all frames, as `HandTailor` takes it.
            box: Box (x, y, w, h) where the hand is looked for first, pixels; the whole frame if None.
            side: Side of the hand.
            config: How the hand is followed.
        """
        self._tailor, self._camera, self._side, self._config = tailor, as_camera(camera), side, config
        self._smoothing = SmoothingConfig.at(rate) if config.smooth else None
        self._first_box = box
        self._track: HandTrack | None = None
        self.frames = 0
        """Number of frames so far."""
        self._forget()

    def _forget(self) -> None:
        """Begin a new track, without memory."""
        self._memory = Memory.nothing(1, self._tailor.hand.num_betas)
        self._track_length = 0
        perspective = bool(self._camera.perspectivity > 0.5)
        self._smoother = None if self._smoothing is None else HandSmoother(perspective, self._smoothing)

    def __call__(self, frame: Any, time: float) -> Hand | None:
        """Recover the hand in the next frame; return None where no hand is found.

        Args:
            frame: (H, W, 3) RGB image; all frames have the same size.
            time: Time of the frame in seconds, later than the time of the frame before.
        """
        image = as_rgb(frame)
        self.frames += 1
        height, width = image.shape[:2]
        if self._track is None:
            first = None if self._first_box is None else check_box(self._first_box, image)
            self._track = HandTrack(width, height, first, self._config.tracking)
        elif (self._track.width, self._track.height) != (width, height):
            raise InputError(
                f"frames change from {self._track.width} x {self._track.height} to {width} x {height} pixels: "
                "give frames of one size"
            )
        while True:
            stage = self._track.stage
            if stage is not Stage.FOLLOWING:
                self._forget()
            self._track, hand = self._tailor.look(self._track, image, self._camera, self._side, self._memory)
            if hand is not None:
                return self._remember(hand, time)
            if stage is Stage.GRID:
                return None

    def _remember(self, found: Hand, time: float) -> Hand:
        """Return the hand with the track's shape, smoothed; keep what the next frame starts from."""
        fitted = found.parameters
        self._track_length = min(self._track_length + 1, self._config.shape_frames)
        betas = self._memory.betas + (fitted.betas[None] - self._memory.betas) / np.float32(self._track_length)
        self._memory = Memory(
            pose=fitted.pose[None],
            betas=betas,
            pose_share=np.full(1, self._config.pose_share, betas.dtype),
            betas_share=np.ones(1, betas.dtype),
        )
        parameters = dataclasses.replace(fitted, betas=betas[0])
        if self._smoother is not None:
            parameters = self._smoother(parameters, time)
        hand = jax.device_get(_with_parameters(self._tailor.hand, found, parameters))
        return dataclasses.replace(
            hand, reprojection_before=found.reprojection_before, box=found.box, proposed=found.proposed
        )


@jax.jit
def _with_parameters(model: HandModel, hand: Hand, parameters: HandParameters) -> Hand:
    """Describe a hand of which other parameters are known; the hand model is a right hand."""
    camera = choose(hand.left, mirror_camera(hand.camera, 1.0), hand.camera)
    points = choose(hand.left, mirror_pixels(hand.detected_keypoints_2d, 1.0), hand.detected_keypoints_2d)
    parameters = choose(hand.left, mirror_parameters(parameters), parameters)
    found = describe(model, parameters, Observation(points, hand.confidence, camera))
    return choose(hand.left, mirror_hand(found), found)
