"""Smooth a hand from frame to frame with the One-Euro filter (Casiez, Roussel and Vogel, CHI 2012).

The One-Euro filter is a low-pass filter whose cut-off frequency rises with speed, so that a hand at rest does not
tremble and a fast hand does not lag. Rotations are filtered on their manifold. Translations are filtered as direction
and distance, in units of the hand's size. The filter is written here because no package filters rotations on their
manifold.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from handtailor_jax.types import HandParameters

FloatArray = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class OneEuroConfig:
    """Parameters of a One-Euro filter."""

    min_cutoff: float
    """Cut-off frequency at rest, Hz; a lower one smooths more."""
    beta: float
    """Increase of the cut-off frequency with speed, Hz per (unit/s); a higher one lags less."""
    derivative_cutoff: float = 1.0
    """Cut-off frequency of the filter of the speed, Hz."""
    poles: int = 4
    """Number of equal low-pass stages in a row, which share the lag of one stage. Casiez et al. use one. At the same
    lag of one frame, four stages leave 1/3.8 of white noise's second difference instead of 1/2.7."""


class OneEuroFilter:
    """One-Euro filter of any number of vectors (..., n); the speed of a vector is the norm over the last axis."""

    def __init__(
        self,
        config: OneEuroConfig,
        difference: Callable[[FloatArray, FloatArray], FloatArray] = lambda start, end: end - start,
        advance: Callable[[FloatArray, FloatArray], FloatArray] = lambda start, step: start + step,
    ) -> None:
        """Create a filter; `difference` and `advance` are minus and plus of the space, with vectors (..., m)."""
        self._config = config
        self._difference, self._advance = difference, advance
        self._time: float | None = None
        self._previous: FloatArray = np.zeros(0)
        self._stages: list[FloatArray] = []
        self._velocity: FloatArray = np.zeros(0)

    def __call__(self, value: FloatArray, time: float, unit: float = 1.0) -> FloatArray:
        """Return the smoothed value (..., n); the first value is returned unchanged.

        The time is in seconds. The speed is in units of `unit`, so that `beta` does not depend on the unit of `value`.

        Raises:
            ValueError: If the time is not later than in the previous call.
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
    """Return the weight of the new value in a first-order low-pass filter of a cut-off frequency (Hz) and step (s)."""
    return 1.0 / (1.0 + 1.0 / (2.0 * math.pi * cutoff * step))


def rotation_filter(config: OneEuroConfig) -> OneEuroFilter:
    """Return a filter of rotations as axis-angle vectors (n, 3) in radians, with speeds in rad/s.

    Vectors of the same rotation may alternate: only the turns between rotations, at most pi, are filtered.
    """

    def turn(start: FloatArray, end: FloatArray) -> FloatArray:
        return (Rotation.from_rotvec(start).inv() * Rotation.from_rotvec(end)).as_rotvec()

    def turned(start: FloatArray, turn: FloatArray) -> FloatArray:
        return (Rotation.from_rotvec(start) * Rotation.from_rotvec(turn)).as_rotvec()

    return OneEuroFilter(config, turn, turned)


@dataclasses.dataclass(frozen=True)
class SmoothingConfig:
    """Amount of smoothing of each part of a hand."""

    pose: OneEuroConfig
    """Joint rotations; speeds in rad/s."""
    position: OneEuroConfig
    """Direction of the root from the camera; speeds in metres per second at the hand's depth."""
    distance: OneEuroConfig
    """Logarithm of the root's depth (perspective) and of the scale; speeds in 1/s."""

    @classmethod
    def at(cls, rate: float = 30.0) -> "SmoothingConfig":
        """Return the strongest smoothing whose lag is about one frame at `rate` frames per second, less with speed."""
        # A cut-off frequency f lags by 1 / (2 pi f) seconds: one frame at 0.16 times the frame rate.
        f = 0.16 * rate
        slope = rate / 30.0
        return cls(OneEuroConfig(f, 0.3, slope), OneEuroConfig(f, 2.0, slope), OneEuroConfig(f, 1.0, slope))


class HandSmoother:
    """Smoother of one hand from frame to frame; a new track needs a new smoother."""

    def __init__(self, perspective: bool, config: SmoothingConfig) -> None:
        """Create a smoother of translations in metres before a perspective camera, or of translations in pixels."""
        self._perspective = perspective
        self._pose = rotation_filter(config.pose)
        self._position = OneEuroFilter(config.position)
        self._distance = OneEuroFilter(config.distance)
        self._scale = OneEuroFilter(config.distance)

    def __call__(self, parameters: HandParameters, time: float) -> HandParameters:
        """Return the smoothed parameters of one hand at a time in seconds; its shape is kept.

        Parameters that are not finite are returned unchanged and do not change the smoother.
        """
        scale = float(parameters.scale)
        x, y, z = (float(value) for value in parameters.translation)
        rotations = np.asarray(parameters.pose, np.float64)
        if not np.isfinite([scale, x, y, z, *rotations.ravel()]).all():
            return parameters
        pose = self._pose(rotations, time)
        smooth_scale = _magnitude(self._scale, scale, time)
        if self._perspective:
            # Noise along the viewing ray is by far the largest, so it must not count in the speed across the ray.
            depth = z if abs(z) > _TINY else _TINY
            u, v = self._position(np.asarray([x / depth, y / depth]), time, unit=abs(scale / depth) or 1.0)
            depth = _magnitude(self._distance, depth, time)
            translation = np.asarray([u * depth, v * depth, depth])
        else:
            u, v = self._position(np.asarray([x, y]), time, unit=abs(scale) or 1.0)
            translation = np.asarray([u, v, z])
        smoothed = {"pose": pose, "scale": smooth_scale, "translation": translation}
        dtype = parameters.pose.dtype
        return dataclasses.replace(parameters, **{name: np.asarray(value, dtype) for name, value in smoothed.items()})


_TINY = 1e-9


def _magnitude(smooth: OneEuroFilter, value: float, time: float) -> float:
    """Smooth the logarithm of a value's magnitude; keep its sign, which a failed fit may turn."""
    return math.copysign(math.exp(float(smooth(np.log([max(abs(value), _TINY)]), time)[0])), value)
