"""Kalman filters that estimate their noise from the movement, run forward in time or in both directions.

A group of components moves with a velocity that decays within about a second (an Ornstein-Uhlenbeck process), so a hand
at rest stays in place, and a gap is bridged without overshooting. Each group has one filter for each of several speeds,
in standard deviations of its measurements per second. The filters are averaged by their likelihood in the last four
seconds, from which the noise, a Student-t distribution, is estimated as well. A hand at rest is therefore smoothed over
all frames, and a fast one hardly at all. The filters are written here because no package estimates the noise.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

FloatArray = npt.NDArray[np.floating[Any]]

_SPEEDS = 0.02 * 5.0 ** np.arange(9)
"""Standard deviations of the velocity that are tried, in measurement noises per second: from still to no smoothing."""

# A few seconds cannot distinguish the slowest speeds, and a hand at rest is the most likely.
_LOG_PRIOR = -2.0 * np.minimum(np.arange(9.0), 2.0)

_DECAY = 1.0
"""Time in seconds in which a velocity decays by a factor of e."""

_WINDOW = 4.0
"""Time in seconds in which the weight of a frame in the likelihood decays by a factor of e."""

_LOST = 40.0
"""Difference of log likelihood from the best filter at which a filter is restarted from the best one."""

_FREEDOM = 8.0
"""Degrees of freedom of the noise, a Student-t distribution: a single frame that is far off counts little."""

_PRIOR_COUNT = 0.3
"""Weight of the noise that is expected beforehand, as a number of measurements."""

_FARTHEST = 1.5
"""Largest distance of a smoothed value from its measurement, in standard deviations of the expected noise."""

Measurement = tuple[float, FloatArray | None, FloatArray]
"""Time, value (groups, 4) or None, and relative variance (groups,)."""


class Filters:
    """Kalman filters of all speeds and groups of components; positions and velocities along the last axis.

    Variances are in units of the measurement variance, which each filter estimates by itself.
    """

    def __init__(self, widths: FloatArray, noise: FloatArray) -> None:
        """Create filters of groups with `widths` (groups,) components, which are padded with zeros to four.

        `noise` (groups,) is the standard deviation of the measurements that is expected beforehand. It may be ten times
        too large, but not too small, because all measurements would then be taken for outliers.
        """
        groups = len(widths)
        self._widths, self._expected = widths, noise[:, None, None] ** 2 * np.eye(4)
        self._mean = np.zeros((len(_SPEEDS), groups, 4, 2))
        self._variance = np.zeros((len(_SPEEDS), groups, 2, 2))
        self._scatter = np.zeros((len(_SPEEDS), groups, 4, 4))
        self._losses = np.zeros((len(_SPEEDS), groups))
        self._count = 0.0
        self._time: float | None = None
        self._empty = True

    def advance(self, time: float) -> None:
        """Predict the state at a later time, seconds."""
        if self._time is not None:
            step = time - self._time
            if not step > 0.0:
                raise ValueError(f"time goes from {self._time} to {time}: it must rise")
            kept = np.exp(-step / _DECAY)
            moved = _DECAY * (1.0 - kept)
            change = np.asarray([[1.0, moved], [0.0, kept]])
            self._mean = self._mean @ change.T
            both = moved * (1.0 - kept)
            added = np.asarray([[_DECAY * (2.0 * (step - moved) - both), both], [both, 1.0 - kept * kept]])
            added = added * (_SPEEDS**2)[:, None, None, None]
            self._variance = change @ self._variance @ change.T + added
            fade = np.exp(-step / _WINDOW)
            self._scatter, self._losses = fade * self._scatter, fade * self._losses
            self._count = fade * self._count
        self._time = time

    def update(self, value: FloatArray, noise: FloatArray) -> None:
        """Take a measurement (groups, 4) at the time of the prediction; `noise` (groups,) is its relative variance."""
        if self._empty:
            self._mean[..., 0], self._empty = value, False
            self._variance[..., 0, 0], self._variance[..., 1, 1] = noise, (_SPEEDS**2)[:, None]
            return
        total = self._variance[..., 0, 0] + noise
        missed = value - self._mean[..., 0]
        precision = np.linalg.inv(self._covariance())
        squares = np.einsum("jgc,jgcd,jgd->jg", missed, precision, missed) / total
        weight = (_FREEDOM + self._widths) / (_FREEDOM + squares)
        outer = missed[..., :, None] * missed[..., None, :]
        self._scatter += (weight / total)[..., None, None] * outer
        self._losses += self._widths * np.log(total) + (_FREEDOM + self._widths) * np.log1p(squares / _FREEDOM)
        self._count += 1.0
        gain = self._variance[..., 0] / (self._variance[..., 0, 0] + noise / weight)[..., None]
        self._mean += missed[..., None] * gain[:, :, None]
        self._variance -= gain[..., :, None] * self._variance[..., None, 0, :]

        # A filter for slow hands loses a fast one, and would need seconds to find it again: it is restarted.
        score = self.score()
        best, groups = score.argmax(axis=0), np.arange(len(self._widths))
        lost = score < score[best, groups] - _LOST
        if lost.any():
            for state in (self._mean, self._variance, self._scatter, self._losses):
                state[lost] = state[best, groups][np.nonzero(lost)[1]]
            self._losses[lost] += 1.5 * _LOST

    def score(self) -> FloatArray:
        """Return the log likelihood (filters, groups) of each filter with its estimate of the measurements' noise."""
        return -0.5 * (self._losses + (self._count + _PRIOR_COUNT) * np.linalg.slogdet(self._covariance())[1])

    def _covariance(self) -> FloatArray:
        """Return the covariance (filters, groups, 4, 4) of the measurements, no larger than expected beforehand.

        Without this bound any movement could be explained as noise, and a waving hand would be smoothed to rest.
        """
        found = (self._scatter + _PRIOR_COUNT * self._expected) / (self._count + _PRIOR_COUNT)
        own = np.arange(4) < self._widths[:, None]  # without the padding
        excess = np.einsum("jgcc,gc->jg", found, own) / np.einsum("gcc,gc->g", self._expected, own)
        return found / np.maximum(excess, 1.0)[..., None, None]

    def estimate(self, score: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the mean (groups, 4, 2) and the variance (groups, 2, 2) of the filters, averaged by likelihood."""
        share = softmax(score + _LOG_PRIOR[:, None], axis=0)
        mean = np.einsum("jg,jgdk->gdk", share, self._mean)
        apart = self._mean - mean
        spread = np.einsum("jg,jgdk,jgdl->gkl", share, apart, apart) / self._widths[:, None, None]
        scales = np.einsum("jgcc->jg", self._covariance()) / self._widths
        own = np.einsum("jg,jgkl->gkl", share * scales, self._variance)
        return mean, own + spread


def near(value: FloatArray, missed: Sequence[FloatArray], noise: FloatArray, variance: FloatArray) -> FloatArray:
    """Return smoothed values (groups, 4), moved toward the measured ones where three frames are too far from these.

    This follows a movement that begins suddenly or is faster than the filters expect, but not a single outlying frame.

    Args:
        value: Smoothed values of the second of three frames, or of the third.
        missed: Measured less smoothed values of the three frames, divided by the square roots of their variances.
        noise: (groups,) standard deviation of the measurements that is expected beforehand.
        variance: (groups,) relative variance of the frame's measurement.
    """
    usual = np.median(missed, axis=0)
    share = np.maximum(0.0, 1.0 - _FARTHEST * noise / np.maximum(np.linalg.norm(usual, axis=-1), 1e-12))
    return value + (share * np.sqrt(variance))[:, None] * usual


def _run(track: Sequence[Measurement], filters: Filters, backward: bool) -> Iterator[int]:
    """Run filters over a track and yield the index of each frame: forward after its measurement, backward before it."""
    for i in range(len(track) - 1, -1, -1) if backward else range(len(track)):
        time, value, noise = track[i]
        filters.advance(-time if backward else time)
        if backward:
            yield i
        if value is not None:
            filters.update(value, noise)
        if not backward:
            yield i


def smoothed(track: Sequence[Measurement], widths: FloatArray, noise: FloatArray) -> list[FloatArray]:
    """Return the values (groups, 4) of all frames, each from all frames; the first and the last must be measured.

    Filters that run forward and backward are combined by their variances. `widths` and `noise` are those of `Filters`.
    """
    ahead = Filters(widths, noise)
    scores = {i: ahead.score() for i in _run(track, ahead, backward=True)}
    behind, ahead = Filters(widths, noise), Filters(widths, noise)
    past = []
    for i in _run(track, behind, backward=False):
        scores[i] += behind.score()
        past.append(behind.estimate(scores[i]))
    found = [mean[..., 0] for mean, _ in past]
    turned = np.asarray([1.0, -1.0])  # velocities
    for i in _run(track, ahead, backward=True):
        if i < len(track) - 1:
            (mean, variance), (later, later_variance) = past[i], ahead.estimate(scores[i])
            first, second = np.linalg.inv(variance), np.linalg.inv(later_variance * np.outer(turned, turned))
            weighted = np.einsum("gkl,gdl->gdk", first, mean) + np.einsum("gkl,gdl->gdk", second, later * turned)
            found[i] = np.einsum("gkl,gdl->gdk", np.linalg.inv(first + second), weighted)[..., 0]
    missed = {
        i: (value - found[i]) / np.sqrt(variance)[:, None]
        for i, (_, value, variance) in enumerate(track)
        if value is not None
    }
    row = list(missed.values())
    row = [row[0], *row, row[-1]]
    for place, i in enumerate(missed):
        found[i] = near(found[i], row[place : place + 3], noise, track[i][2])
    return found
