"""Follow hands through the frames of a video: each hand is a track, which keeps its number from frame to frame."""

import dataclasses
from typing import Any

import jax
import numpy as np
from scipy.special import expit, logit

from handtailor_jax.detector.detector import answered, merge_hands
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.hand_tailor import Found, HandTailor, check_arguments, side_prior
from handtailor_jax.images import Image, as_rgb, check_box
from handtailor_jax.tailor.placement import flat_length, with_betas, with_parameters
from handtailor_jax.types import Hand, Memory, Region, Side
from handtailor_jax.video.smoothing import HandSmoother, measurement_noise

_MOST_EVIDENCE, _MOST_PER_FRAME, _MOST_PRIOR = 30.0, 3.0, 6.0
"""Largest log odds of a side: in the sum over a track, in one frame's contribution, and in the network's prior."""


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Options of following hands through a video."""

    hands: int = 2
    """Number of hands to follow; 1 without a landmark network. The palm detector runs only while fewer are followed."""
    search_every: int = 5
    """Number of frames between two searches for missing hands while others are followed."""
    remember: float = 3.0
    """Time in seconds during which a hand that is found continues a lost track of the same side, with its number."""
    smooth: bool = True
    """Whether each frame is smoothed over the frames before it; see `handtailor_jax.video.smoothing`."""
    pose_share: float = 0.3
    """Start pose of the tailor, between the proposed pose (0) and the pose of the last frame (1)."""
    shape_frames: int = 60
    """Number of frames over which the shape of a track is averaged; older frames fade."""

    def __post_init__(self) -> None:
        """Raise an InputError if a number is out of range."""
        for name in ("hands", "search_every", "shape_frames"):
            check_range(name, getattr(self, name), 1)
        check_range("remember", self.remember, 0)
        check_range("pose_share", self.pose_share, 0, 1)


@dataclasses.dataclass
class _Track:
    """State of one hand between two frames."""

    number: int
    region: Region
    """Where the hand is expected in the next frame."""
    evidence: float
    """Log odds of a right hand, summed over the frames."""
    left: bool
    """Whether the hand was a left hand in the last frame."""
    memory: Memory
    """Last pose and mean shape, without a batch axis."""
    length: int
    """Number of frames in the mean shape and scale."""
    scale: float
    """Mean scale; used with intrinsics only."""
    smoother: HandSmoother | None
    keypoints_2d: np.ndarray
    """Last detected keypoints, pixels."""
    seen: float
    """Time of the last frame that showed the hand, seconds."""

    @property
    def prior(self) -> float:
        """Prior probability of a right hand in the next frame."""
        return float(expit(np.clip(self.evidence, -_MOST_PRIOR, _MOST_PRIOR)))


class HandVideo:
    """Tracker of the hands in a video, which is called with one frame after the other."""

    def __init__(
        self,
        tailor: HandTailor,
        camera: Any = None,
        box: Any = None,
        side: Side | None = None,
        config: VideoConfig = VideoConfig(),
    ) -> None:
        """Prepare for the first frame.

        Args:
            tailor: `HandTailor` for single images.
            camera: Camera of all frames, as `HandTailor` takes it.
            box: Box (x, y, w, h) of the only hand to follow in the first frame, pixels; all hands are searched if None.
            side: Side of all hands; estimated if None.
            config: Options of following.
        """
        check_arguments(side, config.hands)
        self._tailor, self._camera, self._prior = tailor, as_camera(camera), side_prior(side)
        self._config, self._box = config if box is None else dataclasses.replace(config, hands=1), box
        self._tracks: list[_Track] = []
        self._lost: list[_Track] = []
        self._count = self._next_search = 0
        self._shape: tuple[int, ...] = ()
        self.frames = 0
        """Number of frames so far."""

    def __call__(self, frame: Any, time: float) -> list[Hand]:
        """Recover the hands in the next frame, in the order of their numbers (`Hand.track`).

        Args:
            frame: (H, W, 3) RGB image; all frames have the same size.
            time: Time of the frame in seconds, later than the time of the frame before.

        Raises:
            InputError: If the frame is not an image or has another size than the first.
        """
        image = as_rgb(frame)
        if self._shape and self._shape != image.shape:
            (height, width, _), (h, w, _) = self._shape, image.shape
            raise InputError(f"frames change from {width} x {height} to {w} x {h} pixels: give frames of one size")
        self._shape = image.shape
        pairs = self._follow(image)
        if len(pairs) < self._config.hands and self.frames >= self._next_search:
            pairs += self._search(image, time, [found for _, found in pairs])
            self._next_search = self.frames + (self._config.search_every if pairs else 1)
        self._tracks = [track for track, _ in pairs]
        self.frames += 1
        hands = [self._remember(track, found, time) for track, found in pairs]
        return sorted(hands, key=lambda hand: -1 if hand.track is None else hand.track)

    def _follow(self, image: Image) -> list[tuple[_Track, Found]]:
        """Recover the hands where their tracks expect them; of several tracks of one hand, one is kept."""
        tailor, tracks = self._tailor, self._tracks
        if not tracks:
            return []
        priors = [track.prior if self._prior == 0.5 else self._prior for track in tracks]
        places = zip((track.region for track in tracks), priors, strict=True)
        views = [tailor.finder.view(image, self._camera, region, prior) for region, prior in places]
        looks = tailor.recover(views, [track.memory for track in tracks])
        shown = [i for i, found in enumerate(looks) if tailor.finder.shows(found, image)]
        # Of several tracks of one hand, the oldest is kept.
        chosen = merge_hands([looks[i].keypoints_2d for i in shown], [-float(tracks[i].number) for i in shown])
        kept = [shown[index] for index in chosen]
        if len(kept) < len(tracks):
            self._lost += [track for i, track in enumerate(tracks) if i not in kept]
            self._next_search = self.frames
        return [(tracks[i], looks[i]) for i in kept]

    def _search(self, image: Image, time: float, known: list[Found]) -> list[tuple[_Track, Found]]:
        """Search for hands that are not followed yet; a hand that was lost gets its track back."""
        tailor = self._tailor
        box = check_box(self._box, image) if self._box is not None and self.frames == 0 else None
        regions = [tailor.finder.next_region(found) for found in known]
        search = tailor.finder.searching(image, False, box, passes=2, known=regions)
        new = answered(search, tailor.looking(image, self._camera, self._prior))
        points = [found.keypoints_2d for found in (*known, *new)]
        chosen = merge_hands(points, [2.0] * len(known) + [found.presence for found in new])
        new = [new[index - len(known)] for index in chosen if index >= len(known)]
        self._lost = [track for track in self._lost if time - track.seen <= self._config.remember]
        return [(self._track_of(found, time), found) for found in new[: self._config.hands - len(known)]]

    def _track_of(self, found: Found, time: float) -> _Track:
        """Return the lost track that this hand continues, or a new one."""
        nothing = Memory.nothing(self._tailor.hand.num_betas)
        smoother = self._new_smoother()
        left = bool(found.hand.left)
        same_side = [track for track in self._lost if track.left == left]
        if same_side:
            center = found.keypoints_2d.mean(axis=0)
            track = min(same_side, key=lambda track: float(np.linalg.norm(track.keypoints_2d.mean(axis=0) - center)))
            self._lost.remove(track)
            memory = dataclasses.replace(nothing, betas=track.memory.betas, betas_share=track.memory.betas_share)
            return dataclasses.replace(track, memory=memory, smoother=smoother)
        track = _Track(self._count, found.next_region, 0.0, left, nothing, 0, 0.0, smoother, found.keypoints_2d, time)
        self._count += 1
        return track

    def _new_smoother(self) -> HandSmoother | None:
        return HandSmoother(bool(self._camera.perspectivity > 0.5)) if self._config.smooth else None

    def _remember(self, track: _Track, found: Found, time: float) -> Hand:
        """Update a track with its hand in this frame; return the hand with the track's shape, smoothed."""
        config, hand = self._config, found.hand
        if hand.side_probability is not None and self._prior == 0.5:
            right = float(1.0 - hand.side_probability if hand.left else hand.side_probability)
            known = np.clip(track.evidence, -_MOST_PRIOR, _MOST_PRIOR)
            step = np.clip(logit(np.clip(right, 1e-6, 1.0 - 1e-6)) - known, -_MOST_PER_FRAME, _MOST_PER_FRAME)
            track.evidence = float(np.clip(track.evidence + step, -_MOST_EVIDENCE, _MOST_EVIDENCE))
        moved = np.linalg.norm(found.keypoints_2d.mean(axis=0) - track.keypoints_2d.mean(axis=0))
        if track.length and (track.left != bool(hand.left) or moved > hand_size(found.keypoints_2d)):
            # The side has changed, or the place by a hand's size: the old smoother would mix in another hand.
            track.smoother = self._new_smoother()
        track.left = bool(hand.left)
        model, fitted = self._tailor.hand, hand.parameters
        track.length = min(track.length + 1, config.shape_frames)
        betas = track.memory.betas + (fitted.betas - track.memory.betas) / np.float32(track.length)
        share = np.asarray(config.pose_share, betas.dtype)
        track.memory = Memory(pose=fitted.pose, betas=betas, pose_share=share, betas_share=np.ones((), betas.dtype))
        track.region = self._tailor.finder.next_region(found)
        track.keypoints_2d, track.seen = found.keypoints_2d, time
        track.scale += (float(fitted.scale) - track.scale) / track.length
        length = self._tailor.hand_length
        scale = track.scale if length is None else length / float(flat_length(model, betas))
        parameters = with_betas(model, fitted, betas, scale, bool(self._camera.perspectivity > 0.5))
        if track.smoother is not None:
            parameters = track.smoother(parameters, time, measurement_noise(hand))
        described = jax.device_get(with_parameters(model, hand, parameters))
        return dataclasses.replace(described, track=track.number)
