"""From pictures to film: smoothing what is seen of a hand in each frame, and knowing where to look in the next one.

The smoothing is the One-Euro filter (Casiez, Roussel and Vogel, CHI 2012): a low-pass filter whose cut-off frequency
rises with speed, so that a hand at rest does not tremble and a fast one does not lag. Rotations are filtered on their
manifold, translations in what the camera sees of them: direction and distance apart, in units of the hand's size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import Box, centered_square, hand_size, square_around
from handtailor_jax.types import HandParameters

FloatArray = npt.NDArray[np.floating[Any]]


# ---------------------------------------------------------------------------------------------------------------------
# Smoothing


@dataclasses.dataclass(frozen=True)
class OneEuroConfig:
    """How much to smooth."""

    min_cutoff: float
    """Cut-off frequency at rest, Hz: lower is calmer."""
    beta: float
    """Rise of the cut-off frequency with speed, Hz per (unit/s): higher lags less."""
    derivative_cutoff: float = 1.0
    """Cut-off frequency of the speed, Hz."""
    poles: int = 4
    """Equal low-pass stages in a row, which share the lag of one. Casiez et al. have one. For the same lag of one
    frame four leave 1/3.8 of white noise's second difference instead of 1/2.7."""


class OneEuroFilter:
    """Smooths vectors of any number, (..., n): each is a point whose speed is the norm over the last axis."""

    def __init__(
        self,
        config: OneEuroConfig,
        difference: Callable[[FloatArray, FloatArray], FloatArray] = lambda start, end: end - start,
        advance: Callable[[FloatArray, FloatArray], FloatArray] = lambda start, step: start + step,
    ) -> None:
        """A filter at rest.

        Args:
            config: amount of smoothing.
            difference: tangent vectors (..., m) that lead from the first points to the second.
            advance: points that such vectors lead to. Both are for manifolds other than Euclidean space.
        """
        self._config = config
        self._difference, self._advance = difference, advance
        self._time: float | None = None
        self._previous: FloatArray = np.zeros(0)
        self._stages: list[FloatArray] = []
        self._velocity: FloatArray = np.zeros(0)

    def __call__(self, value: FloatArray, time: float, unit: float = 1.0) -> FloatArray:
        """The smoothed value; the first one is returned as it is.

        Args:
            value: (..., n), the same shape in every call.
            time: seconds, rising from call to call.
            unit: size of the unit in which speed is measured, so that `beta` does not depend on the value's.

        Raises:
            ValueError: if time does not rise.
        """
        value = np.asarray(value, np.float64)
        if self._time is None:
            self._velocity = np.zeros_like(self._difference(value, value))
            self._stages = [value] * self._config.poles
        else:
            step = time - self._time
            if not step > 0.0:
                raise ValueError(f"time has to rise, not to go from {self._time} to {time}")
            rate = self._difference(self._previous, value) / step
            weight = _weight(self._config.derivative_cutoff, step)
            self._velocity = self._velocity + weight * (rate - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True) / unit
            cutoff = self._config.poles * (self._config.min_cutoff + self._config.beta * speed)
            target = value
            for i, stage in enumerate(self._stages):
                target = self._advance(stage, _weight(cutoff, step) * self._difference(stage, target))
                self._stages[i] = target
        self._time, self._previous = time, value
        return self._stages[-1]


def _weight(cutoff: Any, step: float) -> Any:
    """Share of the new value in a first-order low-pass filter of that cut-off frequency (Hz) and time step (s)."""
    return 1.0 / (1.0 + 1.0 / (2.0 * math.pi * cutoff * step))


def rotation_filter(config: OneEuroConfig) -> OneEuroFilter:
    """A filter of unit quaternions (..., 4), w first; speeds in rad/s.

    A quaternion and its negative are the same rotation and may alternate.
    """
    return OneEuroFilter(config, _turn, _turned)


def _turn(start: FloatArray, end: FloatArray) -> FloatArray:
    """Axis-angle vectors (radians, at most pi) that turn the first rotations into the second."""
    relative = _product(start * np.asarray([1.0, -1.0, -1.0, -1.0]), end)
    relative = np.where(relative[..., :1] < 0.0, -relative, relative)
    sine = np.linalg.norm(relative[..., 1:], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, relative[..., :1])
    return np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0) * relative[..., 1:]


def _turned(start: FloatArray, step: FloatArray) -> FloatArray:
    turned = _product(start, quaternions(step))
    return turned / np.linalg.norm(turned, axis=-1, keepdims=True)


def quaternions(axis_angle: FloatArray) -> FloatArray:
    """Unit quaternions (..., 4), w first, of axis-angle vectors (..., 3) in radians; in numpy, for single frames."""
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    return np.concatenate([np.cos(0.5 * angle), 0.5 * np.sinc(0.5 * angle / math.pi) * axis_angle], axis=-1)


def _product(a: FloatArray, b: FloatArray) -> FloatArray:
    vector = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])
    scalar = a[..., :1] * b[..., :1] - np.sum(a[..., 1:] * b[..., 1:], axis=-1, keepdims=True)
    return np.concatenate([scalar, vector], axis=-1)


@dataclasses.dataclass(frozen=True)
class SmoothingConfig:
    """How much each part of a hand is smoothed."""

    pose: OneEuroConfig
    """Joint rotations; speeds in rad/s."""
    position: OneEuroConfig
    """Where the root is seen; speeds in metres at the hand's depth, per second."""
    distance: OneEuroConfig
    """Logarithm of the root's depth (perspective) and of the scale; speeds in 1/s."""

    @classmethod
    def at(cls, rate: float = 30.0) -> "SmoothingConfig":
        """As calm as a lag of about one frame allows, which decreases with speed.

        Args:
            rate: frames per second.
        """
        # A cut-off frequency f lags by 1 / (2 pi f) seconds: one frame at 0.16 times the frame rate.
        f = 0.16 * rate
        slope = rate / 30.0
        return cls(OneEuroConfig(f, 0.3, slope), OneEuroConfig(f, 2.0, slope), OneEuroConfig(f, 1.0, slope))


class HandSmoother:
    """Smooths one hand from frame to frame; a new track needs a new one."""

    def __init__(self, perspective: bool, config: SmoothingConfig) -> None:
        """A smoother that has seen nothing.

        Args:
            perspective: whether translations are metres in a perspective camera's frame, rather than pixels.
            config: amount of smoothing.
        """
        self._perspective = perspective
        self._pose = rotation_filter(config.pose)
        self._position = OneEuroFilter(config.position)
        self._distance = OneEuroFilter(config.distance)
        self._scale = OneEuroFilter(config.distance)

    def __call__(self, parameters: HandParameters, time: float) -> HandParameters:
        """The hand at this time, smoothed. Shape is left as it is: a track has one. What is not finite is passed over.

        Args:
            parameters: of one hand, without batch axes.
            time: seconds, rising from call to call.
        """
        scale = float(parameters.scale)
        x, y, z = (float(value) for value in parameters.translation)
        rotations = np.asarray(parameters.pose, np.float64)
        if not np.isfinite([scale, x, y, z, *rotations.ravel()]).all():
            return parameters  # and nothing to remember
        pose = self._pose(quaternions(rotations), time)
        smooth_scale = _magnitude(self._scale, scale, time)
        if self._perspective:
            # Noise along the viewing ray is by far the largest; it must not hide how still the hand is seen to be.
            depth = z if abs(z) > _TINY else _TINY
            u, v = self._position(np.asarray([x / depth, y / depth]), time, unit=abs(scale / depth) or 1.0)
            depth = _magnitude(self._distance, depth, time)
            translation = np.asarray([u * depth, v * depth, depth])
        else:
            u, v = self._position(np.asarray([x, y]), time, unit=abs(scale) or 1.0)
            translation = np.asarray([u, v, z])
        identity = np.asarray([1.0, 0.0, 0.0, 0.0])
        dtype = parameters.pose.dtype
        return dataclasses.replace(
            parameters,
            pose=jnp.asarray(_turn(np.broadcast_to(identity, pose.shape), pose), dtype),
            scale=jnp.asarray(smooth_scale, dtype),
            translation=jnp.asarray(translation, dtype),
        )


_TINY = 1e-9


def _magnitude(smooth: OneEuroFilter, value: float, time: float) -> float:
    """A value whose logarithm is smoothed; its sign is kept, which a failed fit may turn."""
    return math.copysign(math.exp(float(smooth(np.log([max(abs(value), _TINY)]), time)[0])), value)


# ---------------------------------------------------------------------------------------------------------------------
# Where to look


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """When a hand counts as seen, and where it is looked for."""

    margin: float = 2.0
    """Side of the box over the longer side of the keypoints' bounding box."""
    smoothing: float = 0.3
    """Share of the old box in the next one, against trembling crops."""
    acquire: float = 0.5
    """Mean confidence from which a hand that was searched for is taken."""
    keep: float = 0.3
    """Mean confidence below which a hand that is followed is lost."""
    min_extent: float = 12.0
    """Longer side of the keypoints' bounding box below which they are no hand, pixels."""
    min_share: float = 0.1
    """The same over the side of the box that was looked at."""
    min_inside: float = 0.5
    """Share of the keypoints that must be inside of the picture."""
    levels: tuple[float, ...] = (1.0, 0.5)
    """Sides of the search's boxes over the picture's shorter side; neighbours overlap by half."""


@dataclasses.dataclass(frozen=True)
class HandTrack:
    """Where one hand is looked for in the next frame. It never changes: `after` gives the next one.

    A hand that is followed is looked for in one box. When it is lost, first the given box is tried (or the whole
    picture), then a grid of boxes of several sizes, of which the most confident is taken; then the first box again.
    The caller looks into `candidates`, tells what was seen there, and may go on in the same frame until it is found
    or `stage` is "first" again.
    """

    width: int
    """Of the picture, pixels."""
    height: int
    first: Box | None = None
    """Where a search begins; None for a square about the picture's centre that holds all of it."""
    config: TrackingConfig = TrackingConfig()
    box: Box | None = None
    """Where the hand that is followed is expected; None while it is searched for."""
    searched_first: bool = False
    """Whether the first box of a search has been tried in vain."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"a video of {self.width} x {self.height} pixels shows no hand: give another file")

    @property
    def stage(self) -> str:
        """What `candidates` are: "following", "first" or "grid"."""
        if self.box is not None:
            return "following"
        return "grid" if self.searched_first else "first"

    def candidates(self) -> tuple[Box, ...]:
        """The boxes to look into, all of them square; how many depends on the stage and the picture's size only."""
        if self.box is not None:
            return (self.box,)
        return search_grid(self.width, self.height, self.config.levels) if self.searched_first else (self._first(),)

    def after(self, keypoints_2d: FloatArray, confidence: FloatArray) -> tuple["HandTrack", int | None]:
        """The track after looking into all of `candidates`.

        Args:
            keypoints_2d: (candidates, 21, 2) what was seen in each of them, pixels of the picture.
            confidence: (candidates, 21).

        Returns:
            The next track, and which candidate shows the hand; None if none does.
        """
        boxes = self.candidates()
        if len(keypoints_2d) != len(boxes) or len(confidence) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes were to be looked into, not {len(keypoints_2d)}")
        scores = [
            float(sure.mean()) if self._plausible(points, sure, box) else -1.0
            for points, sure, box in zip(keypoints_2d, confidence, boxes, strict=True)
        ]
        best = int(np.argmax(scores))
        if scores[best] < (self.config.acquire if self.box is None else self.config.keep):
            return dataclasses.replace(self, box=None, searched_first=self.stage == "first"), None
        box = square_around(np.asarray(keypoints_2d[best], np.float64), self.config.margin)
        if self.box is not None:
            box = _between(box, self.box, self.config.smoothing)
        return dataclasses.replace(self, box=box, searched_first=False), best

    def _first(self) -> Box:
        if self.first is None:
            center = np.asarray([0.5 * (self.width - 1), 0.5 * (self.height - 1)])
            return centered_square(center, float(max(self.width, self.height)))
        x, y, w, h = self.first
        return (x + 0.5 * (w - max(w, h)), y + 0.5 * (h - max(w, h)), max(w, h), max(w, h))

    def _plausible(self, keypoints: FloatArray, confidence: FloatArray, box: Box) -> bool:
        if not (np.isfinite(keypoints).all() and np.isfinite(confidence).all()):
            return False
        extent = float(hand_size(keypoints))
        inside = (keypoints > -0.5).all(axis=1) & (keypoints < np.asarray([self.width, self.height]) - 0.5).all(axis=1)
        large = extent >= max(self.config.min_extent, self.config.min_share * box[2])
        return large and float(inside.mean()) >= self.config.min_inside


def search_grid(width: int, height: int, levels: tuple[float, ...]) -> tuple[Box, ...]:
    """Square boxes of several sizes that cover the picture, largest first, row by row; neighbours overlap by half.

    Args:
        width: of the picture, pixels.
        height: of the picture, pixels.
        levels: sides of the boxes over the picture's shorter side.
    """
    boxes: list[Box] = []
    for level in levels:
        side = float(level * min(width, height))
        rows, columns = (_starts(length, side) for length in (height, width))
        boxes += [(x, y, side, side) for y in rows for x in columns]
    return tuple(boxes)


def _starts(length: int, side: float) -> list[float]:
    """Evenly spread beginnings of intervals that cover a length and overlap by at least half."""
    count = 1 + max(0, math.ceil((length - side) / (0.5 * side) - 1e-9))
    return [float(start) for start in np.linspace(0.0, length - side, count)] if count > 1 else [0.5 * (length - side)]


def _between(new: Box, old: Box, share: float) -> Box:
    """The square whose centre and logarithm of side lie between those of two squares."""
    side = math.exp((1.0 - share) * math.log(new[2]) + share * math.log(old[2]))
    x, y = (
        (1.0 - share) * (n + 0.5 * new[2]) + share * (o + 0.5 * old[2]) - 0.5 * side
        for n, o in zip(new[:2], old[:2], strict=True)
    )
    return (x, y, side, side)
